"""Rows over NBD: the parts `lean` (tests/load/nbd_load, which costs little itself) and `fio` (its nbd engine).

Rows of reads run against servers that stay up, warm: all bytes were read through each. Rows of writes run against a
server of a state that was made just now. "Fresh" writes touch no block twice, so none of them is an overwrite.
"""

import json
import os

from benchmark.processes import BUILD, MIB, TOP, Failed, cpu_seconds, forget, sh, touch_memory, write_back
from benchmark.turns import in_turns

# ---- One run


def lean(server, load, seconds):
    """What nbd_load says of one run."""
    return json.loads(sh(BUILD / "tests/load/nbd_load", "--json", "--address", f"unix:{server.socket}", "--export", server.export,
                         "--pid", server.pid, "--seconds", seconds, *load.split()))


def fio_job(profile, seconds, scratch, settings=None, **env):
    """What fio says of the one job in a job file, or of all jobs together. What a job file says goes before `settings`."""
    report = scratch / "fio.json"
    more = [f"--{name}={value}" for name, value in (settings or {}).items()]
    try:
        sh("fio", "--output-format=json", f"--output={report}", f"--runtime={seconds * 1000:.0f}ms", "--group_reporting", *more,
           TOP / f"fio-profiles/{profile}.fio", env={**os.environ, **env}, cwd=scratch)
    except Failed as error:
        raise Failed(f"{profile}: {error}") from None
    text = report.read_text()
    return json.loads(text[text.index("{"):])["jobs"][0]


def percentile_us(job, percent):
    """The larger one of reads and writes, if both were done."""
    sides = [job[side]["clat_ns"].get("percentile", {}).get(f"{percent:.6f}", 0) for side in ("read", "write")]
    return max(sides) / 1e3


def fio_over_nbd(server, profile, seconds, scratch, settings):
    """The figures of one run of a job file, under the names that nbd_load has for them."""
    before = cpu_seconds(server.pid)
    job = fio_job(profile, seconds, scratch, settings, URI=server.uri)
    used = cpu_seconds(server.pid) - before
    requests = job["read"]["total_ios"] + job["write"]["total_ios"]
    return {"per_second": job["read"]["iops"] + job["write"]["iops"], "server_cpu_us": used / max(requests, 1) * 1e6,
            "p50_us": percentile_us(job, 50), "p99_us": percentile_us(job, 99)}


# ---- Rows. The keys are what wanted.py and charts.py look up.


def lean_row(title, load, unit="IOPS", fills=False):
    """`fills`: the row takes a page of memory for most of what it moves."""
    return {"client": "lean", "title": title, "load": load, "unit": unit, "fills": fills}


LEAN_READS = {
    "read-qd1": lean_row("4 KiB random read, depth 1", "--depth 1"),
    "read-qd32": lean_row("4 KiB random read, depth 32", "--depth 32"),
    "read-qd32-2": lean_row("4 KiB random read, depth 32 on 2 connections", "--depth 32 --connections 2"),
    "read-qd64-4": lean_row("4 KiB random read, depth 64 on 4 connections", "--depth 64 --connections 4"),
    "read-256k": lean_row("256 KiB sequential read, depth 8", "--sequential --block 256K --depth 8", "MiB/s"),
}
LEAN_WRITES = {
    "write-qd1": lean_row("4 KiB random write, fresh over the image, depth 1", "--read-percent 0 --depth 1 --once"),
    "write-qd32": lean_row("4 KiB random write, fresh over the image, depth 32", "--read-percent 0 --depth 32 --once"),
    "overwrite-qd32": lean_row("4 KiB random write, overwrites, depth 32", "--read-percent 0 --depth 32"),
    "mix-qd32": lean_row("4 KiB random, 70 % reads, depth 32", "--read-percent 70 --depth 32"),
    "write-256k": lean_row("256 KiB sequential write, fresh over the image, depth 8",
                           "--read-percent 0 --sequential --block 256K --depth 8 --once", "MiB/s", fills=True),
    "overwrite-256k": lean_row("256 KiB sequential write, overwrites, depth 8",
                               "--read-percent 0 --sequential --block 256K --depth 8", "MiB/s"),
}
LEAN_COLD = {"cold-read-qd32": lean_row("4 KiB random read, depth 32, page cache empty", "--depth 32 --once")}


def fio_row(title, profile, **settings):
    return {"client": "fio", "title": title, "load": profile, "settings": settings, "unit": "IOPS"}


FIO_READS = {
    "fio-read-qd1": fio_row("4 KiB random read, depth 1", "nbd-randread-4k-qd1"),
    "fio-read-qd32": fio_row("4 KiB random read, depth 32", "nbd-randread-4k-qd32"),
    "fio-read-qd32-2": fio_row("4 KiB random read, depth 32, 2 jobs", "nbd-randread-4k-qd32", numjobs=2),
}
FIO_WRITES = {
    "fio-write-qd1": fio_row("4 KiB random write, depth 1", "nbd-randwrite-4k-qd1"),
    "fio-write-qd32": fio_row("4 KiB random write, depth 32", "nbd-randwrite-4k-qd32"),
}

# ---- Parts

# One request at a time is mostly waiting: only there is it worth a row of its own whether the server sleeps meanwhile.
POLLED = {"read-qd1", "write-qd1", "fio-read-qd1", "fio-write-qd1"}


def meant_for(key, peer_key):
    return peer_key != "snapctl-sleeping" or key in POLLED


def run_once(bench, row, server):
    if row["client"] == "lean":
        return lean(server, row["load"], bench.seconds)
    return fio_over_nbd(server, row["load"], bench.seconds, bench.scratch, row["settings"])


def on_steady(bench, rows, steady):
    """Rows against servers that stay up."""
    for key, row in rows.items():
        names = {server.name: server for peer_key, server in steady.items() if meant_for(key, peer_key)}
        in_turns(bench, {key: row}, list(names), lambda name, key=key, row=row, names=names: {key: run_once(bench, row, names[name])})


def on_fresh(bench, key, row, peers, steady, chosen=None):
    """One row against states that are made anew for every run, of those peers that have such states."""
    by_name = {peer.name: peer for peer in chosen or peers.all if meant_for(key, peer.key)}

    def measure(name):
        peer = by_name[name]
        if row.get("fills"):
            touch_memory(peers.scratch, peers.size)
        if not peer.copies_on_write and peer.key in steady:
            write_back(peers.scratch)
            return {key: run_once(bench, row, steady[peer.key])}
        with peers.fresh(peer) as server:
            return {key: run_once(bench, row, server)}
    in_turns(bench, {key: row}, list(by_name), measure)


def overwrites(bench, key, row, peers, steady):
    """Writes into a part of the export that was written through this server and is on the disk."""
    part = min(256 * MIB, peers.size)
    by_name = {peer.name: peer for peer in peers.all if meant_for(key, peer.key)}

    def write_twice(server):
        lean(server, f"--read-percent 0 --sequential --once --block 256K --depth 8 --size {part}", 60)
        write_back(peers.scratch)
        return {key: lean(server, f"{row['load']} --size {part}", bench.seconds)}

    def measure(name):
        peer = by_name[name]
        if not peer.copies_on_write:
            return write_twice(steady[peer.key])
        with peers.fresh(peer) as server:
            return write_twice(server)
    in_turns(bench, {key: row}, list(by_name), measure)


def cold(bench, key, row, peers):
    """Servers that were just started, and nothing of the data in memory."""
    by_name = {peer.name: peer for peer in peers.all if meant_for(key, peer.key) and not peer.in_memory}

    def measure(name):
        with peers.fresh(by_name[name]) as server:
            forget(peers.scratch)
            return {key: lean(server, row["load"], bench.seconds)}
    in_turns(bench, {key: row}, list(by_name), measure)


def run_lean(bench):
    peers = bench.peers()
    with peers.steady() as steady:
        on_steady(bench, LEAN_READS, steady)
        for key, row in LEAN_WRITES.items():
            if key.startswith("overwrite-"):
                overwrites(bench, key, row, peers, steady)
            else:
                on_fresh(bench, key, row, peers, steady)
    for key, row in LEAN_COLD.items():
        cold(bench, key, row, peers)


def run_fio(bench):
    peers = bench.peers()
    with peers.steady() as steady:
        on_steady(bench, FIO_READS, steady)
        for key, row in FIO_WRITES.items():
            on_fresh(bench, key, row, peers, steady)
