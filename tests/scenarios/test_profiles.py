"""The job files of fio-profiles/: each runs for a moment over NBD, or on a loop device, and does what its name says."""

import concurrent.futures
import json
import os
import subprocess
import threading

import pytest

from conftest import MIB, TOP, Client, noise, sh

PROFILES = TOP / "fio-profiles"
KINDS = ("read", "write", "trim", "sync")
# What is asked of nbd-NAME.fio and device-NAME.fio alike.
ASKED = {
    "randread-4k-qd1": {"read"},
    "randread-4k-qd32": {"read"},
    "randread-4k-qd64x4": {"read"},
    "randwrite-4k-qd1": {"write"},
    "randwrite-4k-qd32": {"write"},
    "randwrite-4k-qd64x4": {"write"},
    "randrw70-4k-qd1": {"read", "write"},
    "randrw70-4k-qd32": {"read", "write"},
    "randrw70-4k-qd64x4": {"read", "write"},
    "seqread-256k-qd8": {"read"},
    "seqread-1m-qd8": {"read"},
    "seqwrite-256k-qd8": {"write"},
    "seqwrite-1m-qd8": {"write"},
    "randwrite-4k-qd1-fsync1": {"write", "sync"},
    "randwrite-4k-qd32-fsync32": {"write", "sync"},
    "trimwrite-64k-qd8": {"write", "trim"},
    "verify": {"write", "read"},
    "database": {"read", "write", "sync"},
    "boot": {"read", "write"},
}


def fio(profile, runtime, **env):
    return subprocess.run(["fio", "--output-format=json", f"--runtime={runtime}", str(PROFILES / f"{profile}.fio")],
                          env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=False)


def done_by(where, name, **env):
    """The kinds of requests that a moment of a profile has made; a longer one, where the machine is too busy for all."""
    done = set()
    for runtime in ["100ms", "500ms", "3", "10"]:
        ran = fio(f"{where}-{name}", runtime, **env)
        assert ran.returncode == 0, f"{name}: {ran.stdout[-2000:]}{ran.stderr}"
        jobs = json.loads(ran.stdout[ran.stdout.index("{"):])["jobs"]
        assert all(job["error"] == 0 for job in jobs), name
        done |= {kind for kind in KINDS if sum(job[kind]["total_ios"] for job in jobs) > 0}
        if done >= ASKED[name]:
            break
    return done


def done_by_all(where, **env):
    """The same of all: some at once, for most of the time fio waits; but what verifies bears no other beside it."""
    done = {"verify": done_by(where, "verify", **env)}
    others = [name for name in ASKED if name not in done]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        done.update(zip(others, pool.map(lambda name: done_by(where, name, **env), others)))
    return done


@pytest.mark.parametrize("where", ["nbd", "device"])
def test_there_is_a_profile_of_each_name_and_no_other(where):
    assert {p.stem.removeprefix(where + "-") for p in PROFILES.glob(where + "-*.fio")} == set(ASKED)


def test_each_job_file_says_what_it_asks_of_the_engine():
    for file in PROFILES.glob("*.fio"):
        head = [line for line in file.read_text().split("[", 1)[0].splitlines() if line.startswith(";")]
        assert any("of the engine" in line or "at best" in line for line in head), file.name


def test_over_nbd_each_profile_does_what_its_name_says(snap):
    snap.image("base:1", noise(32 * MIB, 1))
    snap("create", "v", "--from", "base:1")
    with snap.export("v") as server:
        assert done_by_all("nbd", URI=server.uri) == ASKED


def test_on_a_device_each_profile_does_what_its_name_says(tmp_path):
    assert os.geteuid() == 0, "only root may make a loop device: run the tests as root"
    disk = tmp_path / "disk"
    disk.write_bytes(noise(32 * MIB, 1))
    device = sh("losetup", "--find", "--show", disk).decode().strip()
    try:
        assert done_by_all("device", DEVICE=device) == ASKED
    finally:
        sh("losetup", "--detach", device)


def test_the_verify_profile_notices_bytes_that_are_not_what_was_written(snap):
    """Goal: a wrong read fails it. Method: a second client writes noise over all of the volume, again and again."""
    snap("create", "v", "--size", "8M")
    ended = threading.Event()

    def scribble(uri):
        with Client(uri) as h:
            while not ended.is_set():
                h.pwrite(noise(8 * MIB, 2), 0)

    with snap.export("v") as server:
        scribbler = threading.Thread(target=scribble, args=[server.uri])
        scribbler.start()
        try:
            ran = fio("nbd-verify", "5", URI=server.uri)
        finally:
            ended.set()
            scribbler.join()
    assert ran.returncode != 0 and "verify: bad" in ran.stderr + ran.stdout, ran.stdout[-2000:] + ran.stderr
