"""A volume of 64 MiB of known data, exported on a unix socket, for other programs' NBD clients."""

import os
import pathlib
import random
import subprocess
import sys

import pytest

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(TOP / "tests/support"))
SNAPCTL = os.environ.get("SNAPCTL", str(TOP / "build/tools/snapctl/snapctl"))
MIB = 1 << 20


def sh(*argv):
    """Standard output of a program that must succeed."""
    done = subprocess.run([str(a) for a in argv], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr.decode(errors='replace')}"
    return done.stdout.decode(errors="replace")


@pytest.fixture
def disk(tmp_path):
    """The imported disk: data, a hole, data."""
    path = tmp_path / "disk.raw"
    data = random.Random(1).randbytes(16 * MIB)
    with open(path, "wb") as f:
        f.write(data)
        f.seek(48 * MIB)
        f.write(data[::-1])
    return path


@pytest.fixture
def volume(disk, tmp_path, monkeypatch):
    """The volume vol of it, in the store that the environment names."""
    monkeypatch.setenv("SNAPCTL_STORE", str(tmp_path / "store"))
    sh(SNAPCTL, "import", disk, "base:1")
    sh(SNAPCTL, "create", "vol", "--from", "base:1")
    return "vol"


@pytest.fixture
def uri(volume, tmp_path):
    server = subprocess.Popen([SNAPCTL, "export", volume, "--socket", str(tmp_path / "s")],
                              stdout=subprocess.PIPE, text=True)
    yield server.stdout.readline().strip()
    server.terminate()
    assert server.wait(timeout=30) == 0
