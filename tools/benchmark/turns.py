"""Runs in turns: A B A B ..., so that what else moves the machine moves all of them; medians, ratios and their spread."""

import statistics
import subprocess

from benchmark.processes import Failed


def spread(values):
    """(median, lowest, highest)"""
    return statistics.median(values), min(values), max(values)


def ratios(ours, theirs, key="per_second"):
    """(median, lowest, highest) of the ratios within a round."""
    return spread([a[key] / max(b[key], 1e-9) for a, b in zip(ours, theirs)])


def median_of(runs, key):
    """The median of a figure over runs; None where the runs do not have it."""
    return statistics.median(run[key] for run in runs) if runs and key in runs[0] else None


def in_turns(bench, rows, names, measure):
    """Measures each of `names` in every round; prints and records the rows.

    `rows` has key -> {"title": ..., "unit": "IOPS" or "MiB/s", ...}; measure(name) gives {key: figures of one run}. Who
    fails once is left out from then on, and that is recorded. Ratios are of the first of `names` to each other; in a row
    with "curve" set, whose names are points of a curve, of each other to the first.
    """
    measured = {key: {} for key in rows}
    failed = set()
    title = " and ".join(row["title"] for row in rows.values())
    bench.progress.row(title)
    for round_number in range(bench.rounds):
        for name in names:
            if name in failed:
                continue
            bench.progress.turn(f"{title}: round {round_number + 1} of {bench.rounds}, {name}")
            try:
                figures = measure(name)
            except (Failed, OSError, ValueError, subprocess.SubprocessError) as error:
                failed.add(name)
                bench.failure(f"{title}: {name}: {error}")
                continue
            for key, run in figures.items():
                measured[key].setdefault(name, []).append(run)
    for key, row in rows.items():
        runs = {name: runs for name, runs in measured[key].items() if name not in failed}
        bench.record("rows", key, {**row, "servers": runs})
        print_row(bench, row, runs)


def told_of(runs):
    """Medians of the runs of one server; of the longest flush the longest."""
    told = f"{median_of(runs, 'per_second'):9,.0f} /s"
    if "server_cpu_us" in runs[0]:
        told += f" {median_of(runs, 'server_cpu_us'):6.1f} us"
    if "p99_us" in runs[0]:
        told += f"  p50 {median_of(runs, 'p50_us'):5.0f} p99 {median_of(runs, 'p99_us'):6.0f} us"
    if "flush_p50_us" in runs[0]:
        told += (f"  flush p50 {median_of(runs, 'flush_p50_us') / 1e3:.2f} p99 {median_of(runs, 'flush_p99_us') / 1e3:.1f} "
                 f"worst {max(r['flush_worst_us'] for r in runs) / 1e3:.0f} ms")
    return told


def print_row(bench, row, servers):
    curve = row.get("curve", False)
    bench.say(f"{row['title']}, {bench.rounds} rounds: medians of requests a second, server CPU a request, latencies; "
              f"ratio {'to' if curve else 'of'} the first")
    first = next(iter(servers.values()), None)
    for name, runs in servers.items():
        told = ""
        if runs is not first:
            middle, low, high = ratios(runs, first) if curve else ratios(first, runs)
            told = f"  ratio {middle:.2f} ({low:.2f} to {high:.2f})"
        bench.say(f"    {name:28} {told_of(runs)}{told}")
