"""What a server tells of itself: --metrics, stat, ps."""

import collections
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import nbd
import pytest
from conftest import KIB, MIB, Client, noise, sh, wait_for
from serve import StoreServer, descriptors, kib_of


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture
def metrics(base):
    """Where a server's metrics shall be: the option, and how they are read."""
    address = f"127.0.0.1:{free_port()}"

    def read():
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            return answer.read().decode()

    read.address = address
    read.options = ["--metrics", address]
    return read


def values(text):
    """{name{labels}: number}"""
    return {m[1]: float(m[2]) for m in re.finditer(r"^([^#\s]\S*) (\S+)$", text, re.M)}


def check_by_promtool(text):
    done = subprocess.run(["promtool", "check", "metrics"], input=text.encode(), capture_output=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()


def test_metrics_are_what_prometheus_takes_and_count_what_clients_did(base, metrics):
    base("create", "web", "--from", "base:1")
    base("create", "idle", "--size", "4M")
    with StoreServer(base, *metrics.options) as server:
        check_by_promtool(metrics())  # before anything was served
        with server.client("web") as h, server.client("base:1") as image:
            for i in range(10):
                h.pwrite(noise(64 * KIB, i), i * MIB // 2)
            h.pread(MIB, 0)
            image.pread(4096, 0)
            h.zero(MIB, 0)
            h.trim(MIB, MIB)
            h.set_strict_mode(0)
            told = values(metrics())
            assert told['snapctl_volume_dirty_bytes{volume="web"}'] >= 10 * 64 * KIB - 2 * MIB
            assert told['snapctl_volume_dirty_bytes{volume="web"}'] > 0
            h.flush()
            text = metrics()
            check_by_promtool(text)
            told = values(text)
        web = lambda name, kind: told[f'snapctl_{name}{{volume="web",kind="{kind}"}}']
        assert web("requests_total", "write") == 10 and web("request_bytes_total", "write") == 640 * KIB
        assert web("requests_total", "read") == 1 and web("request_bytes_total", "read") == MIB
        assert [web("requests_total", kind) for kind in ("zero", "trim", "flush")] == [1, 1, 1]
        assert told['snapctl_requests_total{volume="base:1",kind="read"}'] == 1
        assert told["snapctl_connections"] == 2 and told['snapctl_volume_connections{volume="web"}'] == 1
        assert told['snapctl_volume_size_bytes{volume="web"}'] == 8 * MIB
        assert told['snapctl_volume_dirty_bytes{volume="web"}'] == 0
        assert 0 < told['snapctl_volume_allocated_bytes{volume="web"}'] <= 640 * KIB
        assert told['snapctl_requests_in_flight{volume="web"}'] == 0
        buckets = [(float(le), n) for key, n in told.items() for le in re.findall(
            r'^snapctl_request_duration_seconds_bucket\{volume="web",kind="write",le="(\S+)"\}$', key)]
        assert len(buckets) > 15 and buckets == sorted(buckets) and buckets[-1] == (float("inf"), 10)
        assert [n for _, n in buckets] == sorted(n for _, n in buckets)
        assert 0 < told['snapctl_request_duration_seconds_sum{volume="web",kind="write"}'] < 10
        assert "idle" not in text, "it was never asked for"
        # What is closed, because another needs it or no one does, goes on where it was when it is opened again.
        base("-y", "reset", "web")
        assert values(metrics())['snapctl_requests_total{volume="web",kind="write"}'] == 10
        with server.client("web") as h:
            h.pwrite(b"x" * 512, 0)
            assert values(metrics())['snapctl_requests_total{volume="web",kind="write"}'] == 11


def test_failed_requests_and_connections_are_counted(base, metrics):
    base("create", "web", "--size", "8M", "--limit", "64K")
    with base.export("web", options=metrics.options) as server:
        with Client(server.uri) as h:
            h.pwrite(bytes([1]) * 64 * KIB, 0)
            with pytest.raises(nbd.Error):
                h.pwrite(bytes([1]) * 64 * KIB, MIB)
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(server.uri.split("socket=")[1])
            s.sendall(b"\xff" * 4)
            while s.recv(100):
                pass
        wait_for(lambda: values(metrics())["snapctl_connections_ended_badly_total"] == 1 and
                 values(metrics())["snapctl_connections"] == 0)
        told = values(metrics())
        assert told['snapctl_request_errors_total{volume="web",kind="write"}'] == 1
        assert told['snapctl_request_bytes_total{volume="web",kind="write"}'] == 64 * KIB
        assert told["snapctl_connections_accepted_total"] == 2 and told["snapctl_connections"] == 0


def test_only_get_of_metrics_is_answered(base, metrics):
    base("create", "web", "--from", "base:1")

    def ask(data):
        """What comes back until the server hangs up."""
        with socket.create_connection(metrics.address.split(":"), timeout=20) as s:
            s.sendall(data)
            out = b""
            while piece := s.recv(65536):
                out += piece
            return out

    with base.export("web", options=metrics.options) as server:
        host, port = metrics.address.split(":")
        for method, path, status in (("GET", "/metrics", 200), ("GET", "/metrics?x=1", 200), ("GET", "/", 404),
                                     ("GET", "/metrics/x", 404), ("POST", "/metrics", 405), ("HEAD", "/metrics", 405),
                                     ("DELETE", "/", 405)):
            connection = http.client.HTTPConnection(host, int(port), timeout=20)
            connection.request(method, path)
            assert connection.getresponse().status == status, (method, path)
            connection.close()
        assert b" 400 " in ask(b"nonsense\r\n\r\n") and b" 400 " in ask(b"GET /metrics\r\n\r\n")
        assert b" 431 " in ask(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 9000)
        assert b" 200 " in ask(b"GET /metrics HTTP/1.0\r\n\r\n")
        with Client(server.uri) as h:
            assert h.get_size() == 8 * MIB


def test_metrics_clients_that_say_nothing_keep_no_one_out_for_long(base, metrics):
    base("create", "web", "--from", "base:1")
    with base.export("web", options=metrics.options) as server:
        address = metrics.address.split(":")
        silent = [socket.create_connection(address, timeout=20) for _ in range(8)]
        with socket.create_connection(address, timeout=20) as ninth:
            assert ninth.recv(1) == b"", "more than eight are kept"
        for s in silent:
            assert s.recv(1) == b"", "it is not hung up on"
        assert "snapctl_connections 0" in metrics()
        # Nor do they hold up the end.
        silent = [socket.create_connection(address, timeout=20) for _ in range(8)]
        wait_for(lambda: sum("socket" in d for d in descriptors(server.process.pid).values()) >= 8)
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 20
        del silent


def test_metrics_beyond_loopback_want_to_be_asked_for(base):
    base("create", "web", "--from", "base:1")
    for command in (["export", "web"], ["serve"]):
        base.fails(*command, "--metrics", f"0.0.0.0:{free_port()}", code=1, says=["metrics", "other machines"])
        base.fails(*command, "--metrics", "here", code=64, says="HOST:PORT")
    port = free_port()
    with base.export("web", options=["--metrics", f"0.0.0.0:{port}", "--insecure"]):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            assert b"snapctl_" in answer.read()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        base.fails("export", "web", "--metrics", f"127.0.0.1:{s.getsockname()[1]}", code=5, says="metrics")
    assert base.volumes()["web"]["served_by"] is None


# ---- stat

def test_stat_shows_rates_and_latencies_of_a_second(base):
    base("create", "web", "--from", "base:1")
    with base.export("web") as server, Client(server.uri) as h:
        stat = base.popen("--json", "stat", "web", "--watch", "0.5", stdout=subprocess.PIPE, text=True)
        for _ in range(3):
            for i in range(200):
                h.pwrite(noise(4096, i), i * 4096)
            seen = json.loads(stat.stdout.readline())
        stat.send_signal(signal.SIGINT)
        stat.communicate(timeout=20)
        assert stat.returncode in (0, 130)
        assert seen["volume"] == "web" and seen["served_by"] == server.process.pid and seen["connections"] == 1
        assert seen["requests"]["write"]["requests"] > 0 and 0.2 < seen["seconds"] < 20
        writes = seen["requests"]["write"]
        assert writes["bytes"] == writes["requests"] * 4096 and writes["p50_us"] <= writes["p99_us"]
        told = base.json("stat", "web")
        assert told["requests"]["write"]["requests"] == 600 and told["requests"]["write"]["requests_per_second"] == 0
        assert told["dirty"] > 0 and told["allocated"] > 600 * KIB and told["size"] == 8 * MIB
        lines = base("stat", "web").splitlines()
        assert lines[0].split()[:3] == ["READ/S", "MIB/S", "P50/P99"] and len(lines) == 2
        assert len(lines[0]) == len(lines[1])


def test_stat_of_a_volume_at_rest_says_so(base):
    base("create", "web", "--from", "base:1")
    assert base.json("stat", "web")["served_by"] is None
    base("stat", "web")
    assert "at rest" in base.err
    base.fails("stat", "wbe", code=4, says="web")
    base.fails("stat", "web", "--watch", "0", code=64)


# ---- ps

def servers(base):
    """What ps tells of servers of this store: other tests have theirs."""
    return [s for s in base.json("ps")["servers"] if s["store"] == str(base.store)]


def test_ps_lists_servers_what_they_have_open_and_for_whom(base, tmp_path):
    assert servers(base) == []
    for name in ("web", "data", "other"):
        base("create", name, "--from", "base:1")
    with base.export("data", "base:1", options=["--socket", str(tmp_path / "d.sock")]) as own:
        with StoreServer(base, "--tcp", "127.0.0.1:0") as server, server.client("web"), server.client("web"):
            told = {s["command"]: s for s in servers(base)}
            assert told["serve"]["pid"] == server.pid and told["export"]["pid"] == own.process.pid
            assert told["serve"]["store"] == told["export"]["store"] == str(base.store)
            assert told["export"]["addresses"] == [str(tmp_path / "d.sock")]
            assert told["serve"]["addresses"][0].startswith("127.0.0.1:") and told["serve"]["connections"] == 2
            clients = {c: {e["name"]: e["connections"] for e in s["exports"]} for c, s in told.items()}
            assert clients == {"serve": {"web": 2}, "export": {"data": 0, "base:1": 0}}
            assert 0 <= told["serve"]["uptime"] < 60
            table = base("ps")
            assert table.splitlines()[0].split() == ["PID", "COMMAND", "UPTIME", "SOCKET", "KIND", "EXPORT", "DEVICE", "CLIENTS"]
            assert re.search(rf"^{server.pid} +serve .* volume +web +- +127.0.0.1:\d+, 127.0.0.1:\d+$", table, re.M), table
            assert {(c["export"], c["tls"]) for c in told["serve"]["clients"]} == {("web", False)}
            assert all(re.fullmatch(r".*127.0.0.1:\d+", c["name"]) for c in told["serve"]["clients"])
            with Client(own.uri):
                mine = [c for s in servers(base) if s["command"] == "export" for c in s["clients"]]
                assert [(c["name"], c["export"]) for c in mine] == [(f"client with pid {os.getpid()}", "data")]
                assert re.search(rf"^{own.process.pid} +export .* volume +data +- +pid {os.getpid()}$", base("ps"), re.M)
            wait_for(lambda: all(s["clients"] == [] for s in servers(base) if s["command"] == "export"))
            assert set(base("ps", "-q").split()) >= {str(server.pid), str(own.process.pid)}


def test_ps_passes_over_dead_servers_and_reports_stuck_ones(base):
    base("create", "web", "--from", "base:1")
    base("create", "data", "--from", "base:1")
    with base.export("data") as live:
        with base.export("web") as server:
            server.stop(signal.SIGKILL, code=-9)
        assert [s["pid"] for s in servers(base)] == [live.process.pid]
        with base.export("web") as server:
            live.process.send_signal(signal.SIGSTOP)
            try:
                assert [s["pid"] for s in servers(base)] == [server.process.pid]
                assert "nothing for" in base.err
            finally:
                live.process.send_signal(signal.SIGCONT)


# ---- What ten thousand clients leave

def test_ten_thousand_connects_leave_no_descriptor_behind(base):
    base("create", "web", "--from", "base:1")
    go = b"\0\0\0\3" + b"IHAVEOPT\0\0\0\7\0\0\0\x09\0\0\0\3web\0\0"
    with StoreServer(base) as server:
        path = server.base.split("socket=")[1]

        def connect(times):
            """One after the other: some leave at once, some after the greeting, some with a volume, some badly."""
            for i in range(times):
                with socket.socket(socket.AF_UNIX) as s:
                    s.connect(path)
                    if i % 4 == 1:
                        s.recv(18)
                    elif i % 4 == 2:
                        s.recv(18)
                        s.sendall(go)
                        s.recv(64)
                    elif i % 4 == 3:
                        s.sendall(b"\xff\xff\xff\xff")

        def settled():
            return servers(base)[0]["connections"] == 0

        with server.client("web"):  # what a first client makes stays
            connect(500)
            wait_for(lambda: servers(base)[0]["connections"] == 1)
            before = collections.Counter(descriptors(server.pid).values()).total()
            memory = kib_of(server.pid, "VmRSS")
            connect(10000)
            wait_for(lambda: servers(base)[0]["connections"] == 1)
            after = descriptors(server.pid)
            assert len(after) == before, after
            assert kib_of(server.pid, "VmRSS") < memory + 16 * KIB
        wait_for(settled)
        assert servers(base)[0]["exports"][0] == {"name": "web", "kind": "volume", "size": 8 * MIB, "read_only": False,
                                                  "connections": 0}
