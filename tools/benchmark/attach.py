"""The part `attach`: a block device made and taken away, beside what does it by hand; fio on it. Needs root."""

import json
import os
import pathlib
import statistics
import subprocess
import time

from benchmark.over_nbd import lean
from benchmark.processes import SNAPCTL, Failed, Server, milliseconds, sh, write_back


PATIENCE = 10  # seconds until what should be there in a moment is given up


def wait_for(what, happened):
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {PATIENCE} s")
        time.sleep(0.001)


class ByHand:
    """A volume as a block device without snapctl attach: the kernel's nbd client, or nbdfuse and losetup."""

    def __init__(self, uri, socket, scratch):
        self.uri, self.socket, self.point = uri, socket, scratch / "fuse"
        self.nbd = pathlib.Path("/sys/module/nbd").exists()
        self.name = "nbd-client" if self.nbd else "nbdfuse and losetup"
        self.device = self.process = None

    def attach(self):
        if self.nbd:
            sh("nbd-client", "-unix", self.socket, "/dev/nbd9", "-N", "v")
            self.device = "/dev/nbd9"
            return
        self.point.mkdir(exist_ok=True)
        self.process = subprocess.Popen(["nbdfuse", str(self.point / "disk"), self.uri])
        wait_for("nbdfuse", lambda: (self.point / "disk").exists() or self.process.poll() is not None)
        self.device = sh("losetup", "--find", "--show", "--direct-io=on", self.point / "disk").strip()

    def detach(self):
        """Undoes as much of attach() as was done."""
        device, self.device = self.device, None
        process, self.process = self.process, None
        if device is not None:
            sh(*(["nbd-client", "-d"] if self.nbd else ["losetup", "-d"]), device)
        if process is not None:
            unmount = ["fusermount3", "-u", str(self.point)]
            wait_for("unmounting nbdfuse", lambda: process.poll() is not None or
                     subprocess.run(unmount, capture_output=True, check=False).returncode == 0)
            process.wait(PATIENCE)


def fio_on_device(device, seconds, scratch):
    """{profile: requests a second}, by io_uring, 4 KiB at depth 32."""
    out = {}
    for rw in ["randread", "randwrite"]:
        report = scratch / "fio.json"
        sh("fio", f"--name={rw}", f"--filename={device}", f"--rw={rw}", "--bs=4k", "--iodepth=32", "--ioengine=io_uring",
           "--direct=1", "--time_based", f"--runtime={seconds * 1000:.0f}ms", "--output-format=json", f"--output={report}",
           cwd=scratch)
        job = json.loads(report.read_text())["jobs"][0]
        out[rw] = job["read" if rw == "randread" else "write"]["iops"]
    return out


class Attach:
    def __init__(self, bench):
        self.bench, self.scratch = bench, bench.scratch / "attach"
        self.scratch.mkdir()
        self.store = self.scratch / "store"
        self.rounds = 4 * bench.rounds
        self.attached = False

    def snapctl(self, *argv):
        return sh(SNAPCTL, "--store", self.store, *argv)

    def attach(self):
        device = self.snapctl("attach", "v").strip()
        self.attached = True
        return device

    def detach(self):
        self.snapctl("detach", "v")
        self.attached = False

    def times(self, name, attach, detach):
        self.bench.progress.row(name)
        both = []
        for round_number in range(self.rounds):
            self.bench.progress.turn(f"{name}: round {round_number + 1} of {self.rounds}")
            both.append((milliseconds(attach), milliseconds(detach)))
        middle = [statistics.median(column) for column in zip(*both)]
        self.bench.say(f"{name:40} attach {middle[0]:6.1f} ms   detach {middle[1]:6.1f} ms   ({self.rounds} rounds)")
        self.bench.record("attach times", name, {"attach_ms": middle[0], "detach_ms": middle[1]})

    def speeds(self, sides):
        """fio on each device of {name: (attach, detach)} in turns; the volume was written as a whole before."""
        runs = {name: [] for name in sides}
        self.bench.progress.row("fio on the device")
        for round_number in range(self.bench.rounds):
            for name, (attach, detach) in sides.items():
                self.bench.progress.turn(f"fio on the device: round {round_number + 1} of {self.bench.rounds}, {name}")
                try:
                    runs[name].append(fio_on_device(attach(), self.bench.seconds, self.scratch))
                finally:
                    detach()
        for name, figures in runs.items():
            middle = {rw: statistics.median(run[rw] for run in figures) for rw in figures[0]}
            self.bench.say(f"{name:40} " + "   ".join(f"{rw} {rate:9,.0f} /s" for rw, rate in middle.items()))
            self.bench.record("attach speeds", name, middle)

    def run(self):
        self.snapctl("create", "v", "--size", "256M")
        socket = self.bench.sockets / "serve.sock"
        try:
            self.times("snapctl attach, a server of its own", self.attach, self.detach)
            with Server("serve", [SNAPCTL, "--store", self.store, "serve", "--socket", socket], socket, "v") as server:
                self.with_server(server)
        finally:
            if self.attached:
                self.detach()

    def with_server(self, server):
        self.times("snapctl attach, by serve", self.attach, self.detach)
        hand = ByHand(server.uri, server.socket, self.scratch)

        def attach_by_hand():
            hand.attach()
            return hand.device
        try:
            self.times(f"by hand: {hand.name}", hand.attach, hand.detach)
            lean(server, "--read-percent 0 --sequential --once --block 256K --depth 8", 60)
            write_back(self.scratch)
            self.speeds({"snapctl attach": (self.attach, self.detach), f"by hand: {hand.name}": (attach_by_hand, hand.detach)})
        finally:
            hand.detach()


def run(bench):
    if os.getuid() != 0:
        bench.failure("block devices need root: left out")
        return
    Attach(bench).run()
