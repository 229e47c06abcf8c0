"""Passed sockets, what systemd is told, its units, and the log: serving as a service."""

import os
import pathlib
import re
import signal
import socket
import subprocess

import nbd
import pytest
from conftest import MIB, PROGRAM, TOP, Client, noise, sh, wait_for
from serve import StoreServer


# ---- Passed sockets

def test_nbdcopy_starts_an_export_by_itself_both_ways(base, tmp_path):
    base("create", "web", "--from", "base:1")
    out = tmp_path / "out.raw"
    export = ["[", PROGRAM, "--store", base.store, "export", "web", "]"]
    sh("nbdcopy", "--", *export, out, env=base.env)
    assert out.read_bytes() == base.base
    to_stdout = sh("nbdcopy", "--", *export, "-", env=base.env)
    assert to_stdout == base.base, "something else than data is on standard output"
    out.write_bytes(base.base[::-1])
    sh("nbdcopy", "--flush", "--", out, *export, env=base.env)
    wait_for(lambda: base.volumes()["web"]["served_by"] is None)
    assert base.content("web") == base.base[::-1]


PASS_ON = """
import os, sys
fds = [int(n) for n in sys.argv[1].split(",")]
high = [os.dup2(fd, 100 + i, False) for i, fd in enumerate(fds)]
for i, fd in enumerate(high):
    os.dup2(fd, 3 + i)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)))
os.execv(sys.argv[2], sys.argv[2:])
"""


def activated(base, files, *args):
    """The program with open files passed on as systemd does it: from 3 on, to this process and no other."""
    fds = [f.fileno() for f in files]
    argv = ["/usr/bin/python3", "-c", PASS_ON, ",".join(map(str, fds)), PROGRAM, "--store", str(base.store), *args]
    return subprocess.Popen(argv, env=base.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=fds, text=True)


def listen(path):
    s = socket.socket(socket.AF_UNIX)
    s.bind(str(path))
    s.listen()
    return s


def test_passed_sockets_are_served_and_stay(base, tmp_path):
    base("create", "web", "--from", "base:1")
    paths = [tmp_path / "one", tmp_path / "two"]
    listening = [listen(path) for path in paths]
    for _ in range(2):  # a restart loses no client: the socket outlives the server
        server = activated(base, listening, "serve")
        for path in paths:
            with Client(f"nbd+unix:///web?socket={path}") as h:
                assert bytes(h.pread(4096, 0)) == base.base[:4096]
        server.terminate()
        out, err = server.communicate(timeout=30)
        assert server.returncode == 0 and out == "", err
        assert all(path.is_socket() for path in paths)


def test_passed_sockets_that_make_no_sense_are_refused(base, tmp_path):
    base("create", "web", "--from", "base:1")
    with open(os.devnull) as null:
        server = activated(base, [null], "export", "web")
        assert "no listening socket" in server.communicate(timeout=20)[1] and server.returncode == 64
    server = activated(base, [listen(tmp_path / "s")], "export", "web", "--detach")
    assert "--detach" in server.communicate(timeout=20)[1] and server.returncode == 64


def test_a_passed_socket_that_other_machines_reach_needs_tls_or_insecure(base):
    base("create", "web", "--from", "base:1")
    with socket.create_server(("0.0.0.0", 0)) as listening:
        server = activated(base, [listening], "export", "web")
        err = server.communicate(timeout=20)[1]
        assert server.returncode not in (0, None) and "without TLS" in err and "--insecure" in err
        server = activated(base, [listening], "export", "web", "--insecure")
        with Client(f"nbd://127.0.0.1:{listening.getsockname()[1]}/web") as h:
            assert bytes(h.pread(4096, 0)) == base.base[:4096]
        server.terminate()
        assert server.communicate(timeout=30)[1] is not None and server.returncode == 0


# ---- What a service manager hears

class Manager:
    """The socket that systemd would have."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(20)
        self.name = address.replace("\0", "@")

    def env(self, **more):
        return {"NOTIFY_SOCKET": self.name, **more}

    def next(self):
        return dict(line.split("=", 1) for line in self.socket.recv(65536).decode().split("\n"))


@pytest.mark.parametrize("abstract", [False, True])
def test_a_service_manager_is_told_of_the_beginning_and_the_end(base, tmp_path, abstract):
    base("create", "web", "--from", "base:1")
    manager = Manager(f"\0snapctl-test-{os.getpid()}" if abstract else str(tmp_path / "notify"))
    with StoreServer(base, env=manager.env()) as server:
        ready = manager.next()
        assert ready["READY"] == "1" and ready["MAINPID"] == str(server.pid) and ready["STATUS"]
        with server.client("web") as h:
            assert h.get_size() == 8 * MIB
        server.process.send_signal(signal.SIGTERM)
        stopping = manager.next()
        assert stopping["STOPPING"] == "1" and stopping["STATUS"]


def test_a_watchdog_is_fed_twice_as_often_as_it_asks(base, tmp_path):
    manager = Manager(str(tmp_path / "notify"))
    with StoreServer(base, env=manager.env(WATCHDOG_USEC="400000")) as server:
        manager.socket.settimeout(10)  # five times a second is asked for
        told = [manager.next() for _ in range(6)]
        assert sum("WATCHDOG" in t for t in told) == 5 and sum("READY" in t for t in told) == 1
        # A loop that does not turn feeds no watchdog.
        server.process.send_signal(signal.SIGSTOP)
        manager.socket.settimeout(1)
        with pytest.raises(TimeoutError):
            while True:
                manager.next()
        server.process.send_signal(signal.SIGCONT)
    # A watchdog of another process is none of ours.
    other = Manager(str(tmp_path / "other"))
    with StoreServer(base, env=other.env(WATCHDOG_USEC="100000", WATCHDOG_PID="1")):
        assert "READY" in other.next()
        other.socket.settimeout(1)
        with pytest.raises(TimeoutError):
            other.next()


def test_a_service_manager_that_does_not_listen_holds_nothing_up(base, tmp_path):
    base("create", "web", "--from", "base:1")
    for address in (str(tmp_path / "nobody"), "nonsense", "/" + "x" * 300):
        with StoreServer(base, env={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "10000"}) as server:
            with server.client("web") as h:
                assert h.get_size() == 8 * MIB


def test_systemd_takes_the_units(tmp_path):
    built = pathlib.Path(PROGRAM).parent.parent / "systemd"
    names = ("snapctl.service", "snapctl.socket", "snapctl-attach@.service")
    for name in names:
        text = (built / name).read_text()
        # The program need not be installed for its unit to be sound.
        text = re.sub(r"^(ExecStart|ExecStop)=\S+", rf"\1={PROGRAM}", text, flags=re.M)
        assert not re.search("@[a-z]+@", text)
        (tmp_path / name.replace("@.", "@my-vol.")).write_text(text)
    done = subprocess.run(["systemd-analyze", "verify", "--man=no",
                           *[str(tmp_path / name.replace("@.", "@my-vol.")) for name in names]], capture_output=True, text=True, check=False,
                          env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"})
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "snapctl" in line]
    assert done.returncode == 0 and not ours, done.stdout + done.stderr
    assert str(TOP) not in (built / "snapctl.service").read_text()
    # "-" in a volume's name stays what it is; a restart of the server does not take devices down.
    attach = (built / "snapctl-attach@.service").read_text()
    assert "%I" not in attach and "Requires=" not in attach


# ---- The log

def test_hangup_opens_the_log_anew(base, tmp_path):
    base("create", "web", "--from", "base:1")
    log, old = tmp_path / "log", tmp_path / "log.1"

    def complain(server):
        with socket.socket(socket.AF_UNIX) as s:  # breaks the protocol, which is logged
            s.connect(server.base.split("socket=")[1])
            s.sendall(b"\0\0\0\xff")
            while s.recv(4096):
                pass

    with StoreServer(base, "--log", log) as server, server.client("web") as h:
        complain(server)
        wait_for(lambda: "ended" in log.read_text())
        assert oct(log.stat().st_mode)[-3:] == "600"
        log.rename(old)
        before = old.read_text()
        server.process.send_signal(signal.SIGHUP)
        wait_for(log.exists)
        complain(server)
        wait_for(lambda: "ended" in log.read_text())
        assert old.read_text() == before and str(old) not in os.popen(f"ls -l /proc/{server.pid}/fd").read()
        h.pwrite(b"s" * 4096, 0)  # nothing else has changed
        # Where there is no place for a new one the old one goes on.
        log.rename(tmp_path / "log.2")
        log.mkdir()
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "open log file" in (tmp_path / "log.2").read_text())
    assert "stopped" in (tmp_path / "log.2").read_text()


def test_hangup_opens_the_log_of_a_detached_server_anew(base, tmp_path):
    base("create", "web", "--from", "base:1")
    log, old = tmp_path / "log", tmp_path / "log.1"
    base("export", "web", "--detach", "--log", log)
    pid = base.volumes()["web"]["served_by"]["pid"]
    try:
        log.rename(old)
        os.kill(pid, signal.SIGHUP)
        wait_for(log.exists)
        wait_for(lambda: str(old) not in os.popen(f"ls -l /proc/{pid}/fd").read())
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
    assert "stopped" in log.read_text() and "stopped" not in old.read_text()


def test_hangup_of_the_terminal_stops_an_export_that_logs_there(base):
    base("create", "web", "--from", "base:1")
    with base.export("web") as server:
        with Client(server.uri) as h:
            h.pwrite(noise(4096, 5), 0)
        server.stop(signal.SIGHUP)
        assert "stopping on SIGHUP" in server.log
    assert base.content("web")[:4096] == noise(4096, 5)
    ignoring = ["sh", "-c", 'trap "" HUP; exec "$0" "$@"']  # as nohup does
    with base.popen("export", "web", prefix=ignoring, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    text=True) as server:
        uri = server.stdout.readline().strip()
        server.send_signal(signal.SIGHUP)
        with Client(uri) as h:
            assert bytes(h.pread(4096, 0)) == noise(4096, 5)
        server.terminate()


def test_a_client_can_neither_forge_a_line_nor_flood_the_log(base, tmp_path):
    base("create", "web", "--from", "base:1")
    log = tmp_path / "log"
    forged = b"x\n2026-01-01T00:00:00.000+00:00 info stopping on SIGTERM\r\x1b[2J\x00\x7f"
    with StoreServer(base, "--log", log) as server:
        path = server.base.split("socket=")[1]

        def ask_for(name):
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(path)
                s.sendall(b"\0\0\0\3" + b"IHAVEOPT\0\0\0\1" + len(name).to_bytes(4, "big") + name)
                while s.recv(4096):
                    pass

        ask_for(forged)
        wait_for(lambda: "which is not served" in log.read_text())
        data = log.read_bytes()
        assert b"\x1b" not in data and b"\r" not in data and b"\0" not in data and b"\x7f" not in data
        assert data.count(b"\n") == 1 and b"\\x0a2026" in data and b"pid %d" % os.getpid() in data
        for _ in range(500):
            ask_for(b"no such export")
        assert len(log.read_text().splitlines()) < 40
        wait_for(lambda: ask_for(b"again") or "lines like this were left out" in log.read_text())


def test_each_connection_that_ends_badly_has_a_line_that_says_why(base, tmp_path):
    base("create", "web", "--from", "base:1")
    log = tmp_path / "log"
    greeting = b"\0\0\0\3"
    go = greeting + b"IHAVEOPT\0\0\0\1\0\0\0\3web"
    bad = {greeting[:2]: "handshake flags", b"\0\0\1\0": "flags that do not exist",
           greeting + b"IHAVE": "middle of an option", greeting + b"x" * 16: "IHAVEOPT",
           greeting + b"IHAVEOPT\0\0\0\3\xff\xff\xff\xff": "4294967295 bytes",
           go + b"GARBAGE!" * 4: "request magic", go + b"\x25\x60\x95\x13\0": "middle of a request",
           go + b"\x25\x60\x95\x13\0\0\0\1" + bytes(16) + b"\0\0\2\0x": "middle of a payload"}
    good = [b"", greeting, greeting + b"IHAVEOPT\0\0\0\2\0\0\0\0", go, go + b"\x25\x60\x95\x13\0\0\0\2" + bytes(20)]
    with StoreServer(base, "--log", log) as server:
        for data in [*good, *bad]:
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(server.base.split("socket=")[1])
                s.sendall(data)
                s.shutdown(socket.SHUT_WR)
                try:
                    while s.recv(4096):
                        pass
                except ConnectionResetError:
                    pass
        wait_for(lambda: log.read_text().count("connection ended") >= len(bad))
        lines = [line for line in log.read_text().splitlines() if "connection ended" in line]
        assert len(lines) == len(bad)
        for why in bad.values():
            assert any(why in line for line in lines), (why, lines)
