"""export: URIs, several exports, read-only, sockets, detach. How it ends is in test_stop.py."""

import os
import signal
import socket
import stat
import subprocess
import threading
import time

import nbd
import pytest
from conftest import KIB, MIB, PROGRAM, Client, noise, sh, wait_for


def test_export_prints_a_uri_that_clients_can_use_at_once(base):
    base("create", "web", "--from", "base:1")
    with base.export("web") as server:
        assert server.uri.startswith("nbd+unix:///web?socket=")
        assert f"export-size: {8 * MIB}" in sh("nbdinfo", server.uri).decode()
        with Client(server.uri) as h:
            assert bytes(h.pread(8 * MIB, 0)) == base.base
        path = server.uri.split("socket=")[1]
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert not os.path.exists(path)


def test_what_was_flushed_is_there_after_the_server_was_killed(base):
    base("create", "web", "--from", "base:1")
    with base.export("web") as server:
        with Client(server.uri) as h:
            h.pwrite(noise(MIB, 7), MIB)
            h.flush()
            h.pwrite(b"q" * 4096, 0)  # not flushed: there is the old block or the new one
        server.stop(signal.SIGKILL, code=-9)
    content = base.content("web")
    assert content[4096:] == base.base[4096:MIB] + noise(MIB, 7) + base.base[2 * MIB:]
    assert content[:4096] in (b"q" * 4096, base.base[:4096])


def test_several_exports_on_one_socket(base, tmp_path):
    base("create", "web", "--from", "base:1")
    base("create", "data", "--size", "4M")
    path = tmp_path / "s.sock"
    with base.export("web", "data", "base:1", options=["--socket", str(path)]) as server:
        assert [u.split("?")[0] for u in server.uris] == ["nbd+unix:///web", "nbd+unix:///data",
                                                          "nbd+unix:///base:1"] or \
            server.uris[2].startswith("nbd+unix:///base%3A1")
        for uri, size in zip(server.uris, (8, 4, 8)):
            with Client(uri) as h:
                assert h.get_size() == size * MIB
        with Client(server.uris[2]) as h:
            assert h.is_read_only()
            assert bytes(h.pread(MIB, 0)) == base.base[:MIB]
        listed = sh("nbdinfo", "--list", "--json", f"nbd+unix:///?socket={path}").decode()
        assert '"data"' in listed and '"web"' in listed


def test_read_only_refuses_writes(base):
    base("create", "web", "--from", "base:1")
    with base.export("web", options=["--read-only"]) as server, Client(server.uri) as h:
        assert h.is_read_only()
        h.set_strict_mode(0)
        with pytest.raises(nbd.Error):
            h.pwrite(b"x" * 4096, 0)
    assert base.content("web") == base.base


def test_export_over_tcp_on_loopback(base):
    base("create", "web", "--from", "base:1")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with base.export("web", options=["--tcp", f"127.0.0.1:{port}"]) as server:
        assert server.uri == f"nbd://127.0.0.1:{port}/web"
        with Client(server.uri) as h:
            assert bytes(h.pread(4096, 0)) == base.base[:4096]
            # One that vanishes from the network does not hold its volume for ever.
            connections = ["ss", "-tnoH", "state", "established", f"sport = :{port}"]
            wait_for(lambda: b"timer:(keepalive" in sh(*connections))


def test_threads_share_a_volume(base):
    base("create", "web", "--from", "base:1")
    with base.export("web", options=["--threads", "4"]) as server:
        handles = [nbd.NBD() for _ in range(4)]
        for h in handles:
            h.connect_uri(server.uri)

        def work(i):
            for n in range(64):
                handles[i].pwrite(bytes([i]) * 4096, (n * 4 + i) * 4096)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        handles[0].flush()
        data = bytes(handles[3].pread(256 * 4096, 0))
        for h in handles:
            h.shutdown()
    assert data == b"".join(bytes([i % 4]) * 4096 for i in range(256))
    assert base.content("web")[:256 * 4096] == data


def test_detach_returns_once_the_volume_is_usable_and_the_server_stops_by_signal(base, tmp_path):
    base("create", "web", "--from", "base:1")
    uri = base("export", "web", "--detach").strip()
    pid = base.json("ls")["volumes"][0]["served_by"]["pid"]
    try:
        with Client(uri) as h:
            h.pwrite(b"d" * 4096, 0)
            h.flush()
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_for(lambda: base.volumes()["web"]["served_by"] is None)
    assert base.content("web")[:4096] == b"d" * 4096


def test_detach_reports_why_it_could_not(base):
    base("create", "web", "--from", "base:1")
    with base.export("web"):
        base.fails("export", "web", "--detach", "--socket", base.sockets / "other.sock", code=5, says="web")
    base.fails("export", "wbe", "--detach", code=4, says="web")


def test_export_that_cannot_says_why(base, tmp_path):
    base("create", "web", "--from", "base:1")
    base.fails("export", "wbe", code=4, says="web")
    base.fails("export", "web", tmp_path / "disk.raw", code=64, says=["dump", "NBD"])
    base.fails("export", "web", "disk.raw", code=64, says="dump")
    base.fails("export", "web", "--socket", tmp_path / ("x" * 200), code=64, says="107")
    base.fails("export", "web", "--tcp", "not an address", code=64)
    base.fails("export", "web", "--threads", "0", code=64)
    base.fails("export", "web", "--socket", tmp_path / "a", "--tcp", "127.0.0.1:1", code=64)
    with base.export("web", options=["--socket", str(tmp_path / "a.sock")]) as server:
        base("create", "two", "--size", "1M")
        base.fails("export", "two", "--socket", tmp_path / "a.sock", code=5, says="a.sock")
        base.fails("export", "web", "--socket", tmp_path / "b.sock", code=5, says=str(server.process.pid))


def test_large_reads_of_a_disk_that_is_data_and_holes_by_turns(snap):
    # Two replies of a thousand chunks and more, which no send takes at once.
    content = b"".join(noise(64 * KIB, n) if n % 2 == 0 else bytes(64 * KIB) for n in range(1024))
    half = len(content) // 2
    snap("create", "web", "--size", "64M")
    snap.write("web", {n * 64 * KIB: noise(64 * KIB, n) for n in range(0, 1024, 2)})
    with snap.export("web") as server, Client(server.uri) as h:
        for _ in range(3):
            reads = [(nbd.Buffer(half), at) for at in (0, half)]
            cookies = [h.aio_pread(buffer, at) for buffer, at in reads]
            time.sleep(0.2)  # until the replies wait for who reads them
            for cookie in cookies:
                while not h.aio_command_completed(cookie):
                    h.poll(-1)
            assert all(buffer.to_bytearray() == content[at:at + half] for buffer, at in reads)


def test_trim_gives_space_back(base):
    base("create", "web", "--from", "base:1")
    with base.export("web") as server, Client(server.uri) as h:
        h.pwrite(noise(4 * MIB, 5), 2 * MIB)
        h.flush()
        full = base.volumes()["web"]["allocated"]
        h.trim(4 * MIB, 2 * MIB)
        h.flush()
        assert base.volumes()["web"]["allocated"] <= full - 3 * MIB
    assert base.content("web") == base.base[:2 * MIB] + bytes(4 * MIB) + base.base[6 * MIB:]
