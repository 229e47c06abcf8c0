"""Power cuts under a real kernel: a guest (User-mode Linux) is killed under load, which loses its page cache and the
write cache of its disk. Each sector then holds what was flushed last, or something later (docs/durability.md).

The client writes one request after another, as its seed says, and prints how far it has come whenever a FLUSH or
a write with FUA was answered. The seed is printed; CUT_SEED repeats the writes, not the moment of the cut.
"""

import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import MIB, PROGRAM, Snap, sh

SECTOR = 512
SIZE = 4 * MIB
CUTS = 5
GUEST = pathlib.Path(__file__).resolve().parent.parent / "support" / "run-in-guest.sh"


def requests(seed):
    """The client's requests without end: (kind, first sector, end sector); the n-th writes n + 1 into every sector."""
    pick = random.Random(seed)
    while True:
        kind = pick.choice(["write"] * 12 + ["fua", "fua", "flush", "flush", "zero", "trim"])
        sectors = pick.choice([1, 3, 8, 8, 16, 128, 600])
        first = pick.randrange(SIZE // SECTOR - sectors)
        if kind in ("zero", "trim") or pick.randrange(3):
            first, sectors = first & ~7, max(8, sectors & ~7)
        yield (kind, 0, 0) if kind == "flush" else (kind, first, first + sectors)


def value_of(n, kind):
    return 0 if kind in ("zero", "trim") else n + 1


def client(store, seed):
    """Runs in the guest: prints 'at N' when N requests are durable, until the power goes."""
    import nbd  # pylint: disable=import-outside-toplevel
    server = subprocess.Popen([PROGRAM, "--store", store, "export", "v"], stdout=subprocess.PIPE, text=True)
    handle = nbd.NBD()
    handle.connect_uri(server.stdout.readline().strip())
    for n, (kind, first, end) in enumerate(requests(seed)):
        at, length = first * SECTOR, (end - first) * SECTOR
        if kind == "flush":
            handle.flush()
        elif kind == "zero":
            handle.zero(length, at)
        elif kind == "trim":
            handle.trim(length, at)
        else:
            # Answered with FUA says nothing of those before it: so a flush beside it is what is told.
            handle.pwrite((n + 1).to_bytes(8, "little") * (length // 8), at, nbd.CMD_FLAG_FUA if kind == "fua" else 0)
        if kind in ("flush", "fua"):
            print("at" if kind == "flush" else "fua", n, flush=True)


def allowed(seed, durable, fua, issued):
    """For each sector the values that it may hold."""
    last, later = [0] * (SIZE // SECTOR), [set() for _ in range(SIZE // SECTOR)]
    for n, (kind, first, end) in enumerate(requests(seed)):
        if n > issued:
            break
        value = value_of(n, kind)
        for s in range(first, end):
            if n <= durable or n in fua:
                last[s] = value
                later[s].clear()
            else:
                later[s].add(value)
    return [later[s] | {last[s]} for s in range(SIZE // SECTOR)]


def run_and_cut(disk, cut, seed):
    """Runs the client in a guest until it has come some way, and kills the guest. Gives what was printed."""
    wanted = random.randrange(20, 150)
    guest = subprocess.Popen([GUEST, "-V", "-d", disk, "-k", cut, "-t", "100", "--", sys.executable, __file__,
                              "/run/disk0/store", str(seed)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             env={**os.environ, "SNAPCTL": str(PROGRAM)})
    lines = []
    for line in guest.stdout:
        lines.append(line)
        if len(lines) == wanted:
            cut.touch()
    code = guest.wait(timeout=30)
    output = "".join(lines)
    assert code == 137 and len(lines) >= wanted, f"the guest ended with {code} and {len(lines)} lines: {output[-2000:]}"
    return output


@pytest.mark.parametrize("cut", range(CUTS))
def test_a_power_cut_loses_nothing_that_was_flushed(tmp_path, cut):
    assert os.geteuid() == 0, "the guest's disk is mounted to look at it: run the tests as root"
    seed = int(os.environ.get("CUT_SEED", time.time_ns() % 1000000)) + cut
    print(f"again with CUT_SEED={seed - cut}")
    disk, point, sockets = tmp_path / "disk", tmp_path / "point", tmp_path / "run"
    point.mkdir()
    sockets.mkdir(mode=0o700)
    with open(disk, "wb") as f:
        f.truncate(128 * MIB)
    sh("mkfs.ext4", "-q", "-E", "lazy_itable_init=0", disk)
    snap = Snap(point / "store", sockets)
    sh("mount", "-o", "loop", disk, point)
    try:
        snap("create", "v", "--size", SIZE)
    finally:
        sh("umount", point)
    output = run_and_cut(disk, tmp_path / "cut", seed)
    marks = re.findall(r"^(at|fua) (\d+)$", output, re.M)
    durable = max((int(n) for word, n in marks if word == "at"), default=-1)
    fua = {int(n) for word, n in marks if word == "fua"}
    # Beyond the last mark: as many as there may be before the next.
    issued = max(int(n) for _, n in marks) + 400

    sh("mount", "-o", "loop", disk, point)
    try:
        content = snap.content("volume:v")
    finally:
        sh("umount", point)
    for s, values in enumerate(allowed(seed, durable, fua, issued)):
        sector = content[s * SECTOR:(s + 1) * SECTOR]
        value = int.from_bytes(sector[:8], "little")
        assert sector == sector[:8] * (SECTOR // 8) and value in values, (
            f"sector {s} reads {value}; request {durable} was flushed: {sorted(values)[:8]}")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    client(sys.argv[1], int(sys.argv[2]))
