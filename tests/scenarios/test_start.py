"""What a process gets from who starts it, and the first moments of a server."""

import os
import resource
import select
import signal
import subprocess
import time

import pytest
from conftest import Client, sh, wait_for


def closed_descriptors():
    for fd in range(3):
        os.close(fd)


def test_programs_are_run_though_the_parent_ignores_the_end_of_its_children(base, tmp_path):
    out = tmp_path / "base.qcow2"
    done = base.popen("dump", "base:1", out, "-O", "qcow2", stderr=subprocess.PIPE,
                      preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    _, err = done.communicate(timeout=60)
    assert done.returncode == 0, err
    assert '"format": "qcow2"' in sh("qemu-img", "info", "--output=json", out).decode()


def test_a_server_goes_to_the_background_without_standard_descriptors(base):
    base("create", "web", "--from", "base:1")
    started = base.popen("export", "web", "--detach", preexec_fn=closed_descriptors)
    try:
        assert started.wait(timeout=20) == 0
        served = base.volumes()["web"]["served_by"]["pid"]
    finally:
        started.kill()
    os.kill(served, signal.SIGTERM)
    wait_for(lambda: base.volumes()["web"]["served_by"] is None)


def test_without_standard_descriptors_nothing_else_gets_their_numbers(base, tmp_path):
    base("create", "web", "--from", "base:1")
    server = base.popen("export", "web", "--socket", base.sockets / "x.sock", preexec_fn=closed_descriptors)
    try:
        wait_for((base.sockets / "x.sock").exists)
        with Client(f"nbd+unix:///web?socket={base.sockets}/x.sock") as h:
            assert bytes(h.pread(4096, 0)) == base.base[:4096]
        assert [os.readlink(f"/proc/{server.pid}/fd/{fd}") for fd in range(3)] == ["/dev/null"] * 3
    finally:
        server.terminate()
        assert server.wait(timeout=30) == 0


def test_what_cannot_be_read_or_written_for_want_of_a_descriptor_is_an_error(base):
    for args, closed in ((["dump", "base:1", "-"], 1), (["images"], 1), (["import", "-", "other:1"], 0)):
        done = base.popen(*args, stderr=subprocess.PIPE, preexec_fn=lambda fd=closed: os.close(fd))
        _, err = done.communicate(timeout=60)
        assert done.returncode == 1 and b"Bad file descriptor" in err, (args, err)
    assert set(base.images()) == {"base:1"}


@pytest.mark.parametrize("detach", [False, True])
def test_a_signal_in_the_first_moment_of_a_server_ends_it_at_once(base, detach):
    base("create", "web", "--from", "base:1")
    # It comes with the last call before the signals are blocked.
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=prctl", "-e", "inject=prctl:signal=SIGTERM"]
    begin = time.monotonic()
    server = base.popen("export", "web", *["--detach"] * detach, prefix=strace, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE, text=True)
    out, err = server.communicate(timeout=60)
    assert server.returncode == 130 and out == "", (out, err)
    assert len(err.splitlines()) == 1 and err.startswith("snapctl: "), err
    assert time.monotonic() - begin < 8, "it went on, and was cut off after a while"
    assert base.volumes()["web"]["served_by"] is None


def test_a_hangup_in_the_first_moment_of_a_server_that_opens_its_log_anew_does_not_end_it(base, tmp_path):
    base("create", "web", "--from", "base:1")
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=prctl", "-e", "inject=prctl:signal=SIGHUP:when=1"]
    server = base.popen("export", "web", "--log", tmp_path / "log", prefix=strace, stdout=subprocess.PIPE, text=True)
    try:
        uri = server.stdout.readline().strip()
        time.sleep(11)  # as long as a command has to end
        with Client(uri) as h:
            assert bytes(h.pread(4096, 0)) == base.base[:4096]
    finally:
        os.kill(base.volumes()["web"]["served_by"]["pid"], signal.SIGTERM)
        assert server.wait(timeout=30) == 0


def test_a_server_that_fails_late_in_its_start_ends(base):
    base("create", "web", "--from", "base:1")
    failed = 0
    for most in range(16, 64):  # of file descriptors: it runs out of them at one step after the other
        server = base.popen("export", "web", "--threads", "1", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=lambda n=most: resource.setrlimit(resource.RLIMIT_NOFILE, (n, n)))
        try:
            assert select.select([server.stdout], [], [], 20)[0], f"with {most} descriptors it neither serves nor ends"
            if server.stdout.readline():
                server.terminate()
                assert server.wait(timeout=30) == 0
                break
            assert server.wait(timeout=20) != 0
        finally:
            server.kill()
        failed += 1
    assert failed > 4 and most < 63
    assert base.content("web") == base.base
