"""The parts `engine` and `store`: programs of the engine that print their own figures, kept as they print them."""

import subprocess

from benchmark.processes import BUILD, MIB, Failed, kill

PROGRAMS = {
    # Each takes the folder to work in first.
    "engine": lambda mib, rounds: [["engine/layer/layer_bench", ".", mib], ["engine/volume/chain_bench", "."]],
    "store": lambda mib, rounds: [["engine/store/ops_bench", ".", mib, mib, rounds]],
}


def targets(part):
    return [program[0] for program in PROGRAMS[part](0, 0)]


def run(part, bench):
    folder = bench.scratch / part
    folder.mkdir()
    rounds = min(bench.rounds, 3) if part == "store" else bench.rounds
    for program in PROGRAMS[part](bench.size // MIB, rounds):
        bench.progress.row(program[0])
        lines = []
        words = [str(BUILD / program[0]), *map(str, program[1:])]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
            try:
                for line in process.stdout:
                    bench.say(line.rstrip())
                    lines.append(line.rstrip())
                    bench.progress.turn(program[0])
            except BaseException:
                kill(process)
                raise
        if process.returncode != 0:
            raise Failed(f"{program[0]} ended with exit code {process.returncode}")
        bench.record("programs", program[0].rsplit("/", 1)[1], lines)
