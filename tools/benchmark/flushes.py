"""The part `flush`: what it costs that writes are on the disk."""

import os
import time

from benchmark.over_nbd import fio_job, lean, lean_row, meant_for, on_fresh
from benchmark.peers import Peers, write_random
from benchmark.processes import MIB, Server, sh
from benchmark.turns import in_turns
from benchmark.wanted import BARE_DISK

# All 32 are awaited before each flush. (fio's fsync=32 with requests in flight is something else: a flush after every two
# or three writes, beside others that go on.)
FLUSHED_WRITES = "--read-percent 0 --depth 32 --flush-every 32"
TITLE = "4 KiB random write, 32 awaited and then flushed"


def flushed_row(bench, peers, key, title):
    """Peers whose flush leaves something on the disk."""
    on_fresh(bench, key, lean_row(title, FLUSHED_WRITES), peers, {}, [p for p in peers.all if p.keeps_flushes and meant_for(key, p.key)])


def flushed_minute(bench, peers, key, where):
    seconds = 10 if bench.quick else 60
    by_name = {peer.name: peer for peer in peers.named("snapctl", "qcow2")}
    rounds, bench.rounds = bench.rounds, 1

    def measure(name):
        with peers.fresh(by_name[name]) as server:
            return {key: lean(server, FLUSHED_WRITES, seconds)}
    try:
        in_turns(bench, {key: lean_row(f"{TITLE}, {seconds} s{where}", FLUSHED_WRITES)}, list(by_name), measure)
    finally:
        bench.rounds = rounds


def one_flush(bench, peers, key):
    """One write and one flush at a time, beside the least that a disk can do for it."""
    record = peers.scratch / "record"
    write_random(record, 16 * MIB)
    snapctl, = peers.named("snapctl")
    row = {"client": "lean", "title": "one 4 KiB write and one flush, again and again",
           "load": "--read-percent 0 --depth 1 --flush-every 1", "unit": "IOPS"}

    def measure(name):
        if name != snapctl.name:
            job = fio_job("file-record-8k-fdatasync", bench.seconds, peers.scratch, FILE=str(record))
            return {key: {"per_second": job["write"]["iops"]}}
        with peers.fresh(snapctl) as server:
            return {key: lean(server, row["load"], bench.seconds)}
    in_turns(bench, {key: row}, [snapctl.name, BARE_DISK], measure)


def time_recovery(bench, peers, key):
    """A server that is killed after flushed writes, and nothing left of it but the disk: how long until it serves."""
    seconds = 5 if bench.quick else 20
    bench.progress.turn("recovery of a full journal")
    snapctl, = peers.named("snapctl")
    with peers.serve(snapctl, "fresh") as server:  # a fresh one is killed at the end
        lean(server, FLUSHED_WRITES, seconds)
    journals = sorted(peers.store.glob("deltas/*/journal"), key=lambda p: p.stat().st_mtime)
    journal = journals[-1].stat().st_size / MIB
    began = time.monotonic()
    with Server(snapctl.name, [*peers.snapctl_again("fresh"), server.socket], server.socket, "fresh"):
        took = (time.monotonic() - began) * 1e3
    peers.drop(snapctl, "fresh")
    title = f"recovery after {seconds} s of flushed writes, journal of {journal:.0f} MiB"
    bench.say(f"{title}: {took:.0f} ms until it serves")
    bench.record("flush", key, {"title": title, "ms": took})


def measure_all(bench, peers, key, where):
    flushed_row(bench, peers, f"flushed-qd32{key}", TITLE + where)
    one_flush(bench, peers, f"one-flush{key}")
    time_recovery(bench, peers, f"recovery{key}")
    flushed_minute(bench, peers, f"flushed-minute{key}", where)


def on_loop_ext4(bench):
    """The same on a journaled ext4 in a loop device."""
    image, folder = bench.scratch / "ext4.img", bench.scratch / "ext4"
    with open(image, "wb") as f:
        f.truncate(8 * bench.size + (1 << 30))
    sh("mkfs.ext4", "-q", image)
    folder.mkdir()
    sh("mount", "-o", "loop", image, folder)
    try:
        measure_all(bench, Peers(folder, bench.sockets, bench.size), "-ext4", ", journaled ext4 in a loop device")
    finally:
        sh("umount", folder)
        image.unlink()


def run(bench):
    peers = bench.peers()
    measure_all(bench, peers, "", "")
    if os.getuid() == 0:
        on_loop_ext4(bench)
    else:
        bench.failure("flushes on ext4 in a loop device need root: left out")
