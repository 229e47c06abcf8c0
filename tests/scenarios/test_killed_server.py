"""SIGKILL of a server under load from several connections: every request that was answered is there afterwards.

Four connections write, zero, trim, write with FUA and flush, eight requests in flight each, every one in a part
of the volume of its own, until the server is killed at a random moment. Then each 512-byte sector must have what
was answered last, or what was in flight. Nothing is flushed at the end: this is the promise for the death of the
process alone (docs/durability.md). The seed is printed; KILL_SEED repeats it.
"""

import os
import random
import shutil
import signal
import subprocess
import threading
import time

import nbd
from conftest import KIB, MIB, Client

SECTOR = 512
CYCLES = 50
CONNECTIONS = 4
IN_FLIGHT = 8
PART = 2 * MIB  # of the volume, a connection
SIZE = CONNECTIONS * PART


class Part:
    """What the sectors of one connection's part may hold: the value answered last, and what is in flight over it."""

    def __init__(self, begin):
        self.begin = begin
        self.answered = [0] * (PART // SECTOR)
        self.flying = {}  # cookie: (first sector, end sector, value)

    def may_be(self, sector, value):
        return value == self.answered[sector] or any(
            first <= sector < end and value == v for first, end, v in self.flying.values())


class Writer(threading.Thread):
    """Keeps requests in flight until the server goes away."""

    def __init__(self, uri, part, seed):
        super().__init__()
        self.handle = nbd.NBD()
        self.handle.connect_uri(uri)
        self.part = part
        self.random = random.Random(seed)
        self.done = 0
        self.odd = None

    def run(self):
        try:
            while True:
                while len(self.part.flying) < IN_FLIGHT:
                    self.send()
                self.handle.poll(1000)
                self.reap()
        except nbd.Error:
            pass  # it was killed
        except Exception as error:  # pylint: disable=broad-except
            self.odd = error
        try:
            self.reap()  # answers that had come when the connection broke
        except nbd.Error:
            pass

    def send(self):
        pick = self.random
        kind = pick.choice(["write"] * 6 + ["fua", "zero", "trim", "flush"])
        if kind == "flush":
            cookie = self.handle.aio_flush()
            self.part.flying[cookie] = (0, 0, 0)
            return
        sectors = pick.choice([1, 3, 8, 8, 8, 16, 128])
        first = pick.randrange(PART // SECTOR - sectors)
        if kind == "trim" or pick.randrange(2):
            first, sectors = first & ~7, max(8, sectors & ~7)
        if any(first < e and f < first + sectors for f, e, _ in self.part.flying.values()):
            return  # two in flight over one sector: either may win
        offset, length = self.part.begin + first * SECTOR, sectors * SECTOR
        value = 0 if kind in ("zero", "trim") else pick.getrandbits(63) | 1
        if kind == "zero":
            cookie = self.handle.aio_zero(length, offset)
        elif kind == "trim":
            cookie = self.handle.aio_trim(length, offset)
        else:
            data = nbd.Buffer.from_bytearray(bytearray(value.to_bytes(8, "little") * (length // 8)))
            cookie = self.handle.aio_pwrite(data, offset, flags=nbd.CMD_FLAG_FUA if kind == "fua" else 0)
        self.part.flying[cookie] = (first, first + sectors, value)

    def reap(self):
        while (cookie := self.handle.aio_peek_command_completed()) > 0:
            if not self.handle.aio_command_completed(cookie):
                continue
            first, end, value = self.part.flying.pop(cookie)
            self.part.answered[first:end] = [value] * (end - first)
            self.done += 1


def check(handle, parts, where):
    """Every sector is what it may be; from then on it is that."""
    for part in parts:
        data = handle.pread(PART, part.begin)
        for i in range(PART // SECTOR):
            sector = data[i * SECTOR:(i + 1) * SECTOR]
            value = int.from_bytes(sector[:8], "little")
            assert sector == sector[:8] * (SECTOR // 8), f"{where}: sector {i} at {part.begin} is of several writes"
            assert part.may_be(i, value), (
                f"{where}: sector {i} of the part at {part.begin} reads {value:x}, answered was {part.answered[i]:x}")
            part.answered[i] = value
        part.flying.clear()


def test_a_server_killed_under_load_loses_nothing_that_was_answered(snap):
    seed = int(os.environ.get("KILL_SEED", time.time_ns() % 1000000))
    print(f"again with KILL_SEED={seed}")
    pick = random.Random(seed)
    snap("create", "v", "--size", SIZE)
    parts = [Part(i * PART) for i in range(CONNECTIONS)]
    answered, snapshots = 0, 0
    for cycle in range(CYCLES):
        with snap.export("v", options=["--threads", "2"]) as server:
            with Client(server.uri) as handle:
                check(handle, parts, f"seed {seed}, cycle {cycle}")
            writers = [Writer(server.uri, part, pick.random()) for part in parts]
            for writer in writers:
                writer.start()
            time.sleep(pick.uniform(0.01, 0.15))
            other = None
            if cycle % 5 == 4:  # while the delta is being sealed, and another takes its place
                snapshots += 1
                other = snap.popen("snapshot", "v", f"s{cycle}", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                time.sleep(pick.uniform(0, 0.05))
            server.stop(signal.SIGKILL, code=-9)
            if other:
                other.wait(timeout=30)
            for writer in writers:
                writer.join(timeout=30)
                assert not writer.is_alive() and writer.odd is None, writer.odd
                answered += writer.done
    print(f"{answered} requests answered in {CYCLES} cycles, {snapshots} snapshots begun")
    assert answered > 50 * CYCLES, "hardly any load"
    with snap.export("v") as server, Client(server.uri) as handle:
        check(handle, parts, f"seed {seed}, at the end")


def test_without_room_for_the_live_map_the_log_says_so(snap, tmp_path):
    assert shutil.which("unshare"), "unshare is missing; it is in the package util-linux"
    snap("create", "v", "--size", "64M")
    # No folder can be made there.
    process = snap.popen(
        "export", "v", prefix=["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o ro none /dev/shm && exec "$@"', "sh"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    uri = process.stdout.readline().strip()
    with Client(uri) as handle:
        handle.pwrite(bytes([1]) * 4096, 0)
        handle.flush()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "volume v: should this process be killed, answered writes that were not flushed may be lost" in err
    assert snap.content("volume:v")[:4096] == bytes([1]) * 4096
