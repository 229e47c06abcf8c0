"""nbd-tester-client, the test client of the protocol's reference implementation, in all of its modes."""

import pathlib
import subprocess

import pytest
from conftest import SNAPCTL, sh

BUILD = pathlib.Path(__file__).parent / "build_nbd_tester.sh"


@pytest.fixture(scope="session")
def tester(tmp_path_factory):
    program = tmp_path_factory.mktemp("tester") / "nbd-tester-client"
    built = subprocess.run([BUILD, program], capture_output=True, text=True, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    return program


@pytest.fixture
def empty(tmp_path, monkeypatch):
    """The socket of a server with a volume of zeros, which the transaction logs begin with."""
    monkeypatch.setenv("SNAPCTL_STORE", str(tmp_path / "store"))
    sh(SNAPCTL, "create", "vol", "--size", "64M")
    server = subprocess.Popen([SNAPCTL, "export", "vol", "--socket", tmp_path / "s"], stdout=subprocess.PIPE)
    server.stdout.readline()
    yield tmp_path / "s"
    server.terminate()
    assert server.wait(timeout=30) == 0


MODES = {
    "throughput": [],
    "writes": ["-w"],
    "writes with flushes": ["-w", "-f"],
    "handshake": ["-h"],
    "requests larger than others take": ["-o"],
}


@pytest.mark.parametrize("mode", MODES)
def test_nbd_tester_client_is_content_with(uri, tester, tmp_path, mode):
    done = subprocess.run([tester, *MODES[mode], "-N", "vol", "-u", tmp_path / "s"], capture_output=True, text=True,
                          timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_nbd_tester_client_finds_the_data_of_its_transaction_log_intact(empty, tester):
    # The package's other log has requests of 47 MiB, which a client may send only to who has said that he takes them.
    done = subprocess.run([tester, "-i", "-t", f"{tester}.tr", "-N", "vol", "-u", empty], capture_output=True, text=True,
                          timeout=120, check=False)
    assert done.returncode == 0, done.stderr
