"""serve: everything in the store under its name, as it comes and goes, and commands meanwhile."""

import grp
import json
import os
import re
import signal
import stat
import subprocess
import threading

import nbd
import pytest
from conftest import KIB, MIB, Client, noise, sh, wait_for
from serve import StoreServer, descriptors
from test_stop import ESHUTDOWN, SECTORS, Flood, Raw, ended, stop_while_flooded


def refused(uri):
    """What the library says of an export that it does not get."""
    with pytest.raises(nbd.Error) as caught:
        Client(uri)
    return str(caught.value)


def listed(uri):
    """{name: description}"""
    h = nbd.NBD()
    h.set_opt_mode(True)
    h.connect_uri(uri)
    names = {}

    def add(name, description):
        names[name] = description
        return 0

    h.opt_list(add)
    h.opt_abort()
    return names


def at_rest(snap, volume):
    return snap.volumes()[volume]["served_by"] is None


def test_every_volume_and_image_is_served_under_its_name(base):
    base("create", "web", "--from", "base:1")
    base("create", "empty", "--size", "4M")
    base("tag", "base:1", "demo/app:2")
    base("snapshot", "web", "before")
    with StoreServer(base) as server:
        assert server.base.startswith("nbd+unix:///?socket=")
        assert listed(server.base) == {"web": "volume web of base:1", "empty": "volume empty",
                                       "base:1": "image base:1", "demo/app:2": "image demo/app:2"}
        for name, size, read_only in (("web", 8, False), ("empty", 4, False), ("base:1", 8, True),
                                      ("demo/app:2", 8, True), ("web@before", 8, True)):
            with server.client(name) as h:
                assert h.get_size() == size * MIB and h.is_read_only() == read_only
                assert bytes(h.pread(4096, 0)) == (bytes(4096) if name == "empty" else base.base[:4096])
        for name in ("", "base", "base:2", "we", "web@after", "web@", "../web", "volumes/web", "x" * 4000):
            assert "no export" in refused(server.uri(name)), name
        with server.client("web") as h:
            h.pwrite(noise(MIB, 7), MIB)
            h.flush()
    assert base.content("web")[MIB:2 * MIB] == noise(MIB, 7)


def test_nbdinfo_list_opens_nothing_and_tells_of_all(base):
    for i in range(5):
        base("create", f"v{i}", "--from", "base:1")
    with StoreServer(base) as server:
        told = json.loads(sh("nbdinfo", "--list", "--no-content", "--json", server.base))
        assert {e["export-name"]: e["export-size"] for e in told["exports"]} == {
            "base:1": 8 * MIB, **{f"v{i}": 8 * MIB for i in range(5)}}
        h = nbd.NBD()
        h.set_opt_mode(True)
        h.connect_uri(server.uri("v1"))
        h.opt_info()
        assert h.get_size() == 8 * MIB and not h.is_read_only()
        assert at_rest(base, "v1")
        h.opt_abort()


def test_block_status_works_through_an_export_that_is_opened_when_asked_for(base):
    base("create", "web", "--from", "base:1")
    with StoreServer(base) as server:
        told = json.loads(sh("nbdinfo", "--map", "--json", server.uri("web")))
        assert sum(e["length"] for e in told) == 8 * MIB and len(told) > 2


def test_what_is_created_renamed_and_removed_meanwhile_is_seen_at_once(base):
    with StoreServer(base) as server:
        base("create", "web", "--from", "base:1")
        with server.client("web") as h:
            h.pwrite(b"w" * 4096, 0)
        base("rename", "web", "shop")
        assert "no export" in refused(server.uri("web"))
        with server.client("shop") as h:
            assert bytes(h.pread(4096, 0)) == b"w" * 4096
        base("resize", "shop", "16M")
        with server.client("shop") as h:
            assert h.get_size() == 16 * MIB
        base("-y", "rm", "shop")
        assert "no export" in refused(server.uri("shop"))
        base("create", "shop", "--size", "2M")
        with server.client("shop") as h:
            assert h.get_size() == 2 * MIB and bytes(h.pread(4096, 0)) == bytes(4096)
        assert set(listed(server.base)) == {"shop", "base:1"}


def test_a_tag_that_moves_gives_new_clients_the_new_image(base):
    base.image("base:2", base.base[::-1])
    base("tag", "base:1", "app:latest")
    with StoreServer(base) as server:
        with server.client("app:latest") as old:
            assert bytes(old.pread(4096, 0)) == base.base[:4096]
            base("tag", "base:2", "app:latest")
            with server.client("app:latest") as new:
                assert bytes(new.pread(4096, 0)) == base.base[::-1][:4096]
            assert bytes(old.pread(4096, 4096)) == base.base[4096:8192]


def test_a_snapshot_that_is_taken_anew_is_served_as_it_is_now(base):
    base("create", "web", "--from", "base:1")
    with StoreServer(base) as server:
        for n in range(3):  # within a second, mostly: so long do names of times tell nothing
            with server.client("web") as h:
                h.pwrite(noise(4096, n), 0)
            base("snapshot", "web", "now")
            with server.client("web@now") as h:
                assert bytes(h.pread(4096, 0)) == noise(4096, n)
            base("rm", "--yes", "web@now")


def test_fifty_volumes_one_added_and_one_removed_disturb_no_client_of_another(base):
    for i in range(50):
        base("clone", "v0", f"v{i}") if i else base("create", "v0", "--from", "base:1")
    with StoreServer(base) as server:
        assert len(listed(server.base)) == 51
        done, errors, rounds = threading.Event(), [], [0, 0]

        def load(i):
            """Writes, flushes and reads back a sector after the other."""
            try:
                with server.client(f"v{i + 1}") as h:
                    while not done.is_set():
                        n = rounds[i]
                        sector = (n.to_bytes(8, "big") + bytes([i])).ljust(512, b".")
                        h.pwrite(sector, n % 4096 * 512)
                        if n % 16 == 0:
                            h.flush()
                        assert bytes(h.pread(512, n % 4096 * 512)) == sector
                        rounds[i] += 1
            except Exception as error:  # shown by the test's own thread
                errors.append(error)

        threads = [threading.Thread(target=load, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for i in range(3, 50):  # every one is had for a moment
            with server.client(f"v{i}") as h:
                h.pwrite(bytes([i]) * 512, 0)
        before = rounds[:]
        base("create", "added", "--from", "base:1")
        with server.client("added") as h:
            assert bytes(h.pread(MIB, 0)) == base.base[:MIB]
        base("-y", "rm", "v49")
        assert "no export" in refused(server.uri("v49"))
        wait_for(lambda: all(now > then + 50 for now, then in zip(rounds, before)) or errors)
        done.set()
        for thread in threads:
            thread.join()
        assert not errors, errors
        assert {f"v{i}" for i in range(49)} | {"added", "base:1"} == set(listed(server.base))
    assert base.content("v7")[:512] == bytes([7]) * 512


def test_commands_on_a_volume_that_a_client_has_go_through_the_server(base):
    base("create", "web", "--from", "base:1")
    with StoreServer(base) as server, server.client("web") as h:
        h.pwrite(b"1" * 4096, 0)
        base("snapshot", "web", "one")
        base("commit", "web", "web:1")
        base("clone", "web", "copy")
        base("set", "web", "--limit", "64M")
        base("resize", "web", "12M")
        h.pwrite(b"2" * 4096, 0)
        for command in (["rm", "web"], ["rename", "web", "x"], ["rollback", "web", "one"], ["reset", "web"],
                        ["dump", "web", "-"]):
            base.fails("-y", *command, code=5, says=["web", str(server.pid)])
        base.fails("export", "web", code=5, says=str(server.pid))
        with server.client("web:1") as image, server.client("copy") as copy:
            assert bytes(image.pread(4096, 0)) == bytes(copy.pread(4096, 0)) == b"1" * 4096
    assert base.volumes()["web"]["size"] == 12 * MIB and base.volumes()["web"]["limit"] == 64 * MIB
    assert base.content("web@one")[:4096] == b"1" * 4096
    assert base.content("web")[:4096] == b"2" * 4096


def test_a_volume_that_no_client_has_is_not_busy(base):
    base("create", "web", "--from", "base:1")
    base("snapshot", "web", "zero")

    def touch(server):
        """Leaves it open in the server, unused."""
        with server.client("web") as h:
            h.pwrite(b"t" * 4096, 0)
            h.flush()
        assert not at_rest(base, "web")

    with StoreServer(base) as server:
        base("commit", "web", "web:1")  # never asked for by a client
        assert base.volumes()["web"]["served_by"]["pid"] == server.pid
        touch(server)
        assert base.content("web")[:4096] == b"t" * 4096
        touch(server)
        base("-y", "rollback", "web", "zero")
        assert base.content("web") == base.base
        touch(server)
        base("-y", "reset", "web")
        touch(server)
        base("rename", "web", "shop")
        base("rename", "shop", "web")
        touch(server)
        with base.export("web") as own:  # a server of its own
            with Client(own.uri) as h:
                assert bytes(h.pread(4096, 0)) == b"t" * 4096
            assert "no export" in refused(server.uri("web"))
        touch(server)
        base("-y", "rm", "web@zero")
        touch(server)
        base("-y", "rm", "web")
        assert "no export" in refused(server.uri("web"))


def test_a_commit_of_a_volume_at_rest_does_not_keep_clients_out(base):
    base("create", "web", "--size", "16M")
    base.write("web", {i * MIB: noise(MIB, i) for i in range(16)})
    with StoreServer(base) as server:
        with base.popen("commit", "--compress", "zstd:19", "web", "web:1") as commit:
            wait_for(lambda: not at_rest(base, "web"))
            with server.client("web") as h:
                h.pwrite(b"n" * 4096, 0)
                assert commit.poll() is None, "it has ended, and proves nothing"
        assert commit.returncode == 0
        with server.client("web:1") as h:
            committed = bytes(h.pread(MIB, 0))
            # The client may have come before the commit had sealed what it takes.
            assert committed[:4096] in (noise(MIB, 0)[:4096], b"n" * 4096) and committed[4096:] == noise(MIB, 0)[4096:]
        with server.client("web") as h:
            assert bytes(h.pread(4096, 0)) == b"n" * 4096


def test_what_nobody_has_is_closed_after_a_while(base):
    base("create", "web", "--from", "base:1")
    with StoreServer(base) as server:
        with server.client("web"), server.client("base:1"):
            pass
        assert not at_rest(base, "web")
        wait_for(lambda: at_rest(base, "web"), seconds=20)
        files = re.compile(r"deltas/[^/]+/|sha256/[0-9a-f]{64}|lock$")
        wait_for(lambda: not any(files.search(path) for path in descriptors(server.pid).values()))
        with server.client("web") as h:
            assert bytes(h.pread(4096, 0)) == base.base[:4096]


def test_a_store_has_one_server_and_volumes_of_it_may_have_their_own(base, tmp_path):
    base("create", "web", "--from", "base:1")
    link = tmp_path / "link"
    link.symlink_to(base.store)
    with StoreServer(base) as server, base.export("web") as own:
        base.fails("serve", code=5, says=[str(base.store), "another"])
        base.store, store = link, base.store
        base.fails("serve", code=5)
        base.store = store
        assert "no export" in refused(server.uri("web"))
        assert listed(server.base).keys() == {"web", "base:1"}
        with Client(own.uri) as h:
            h.pwrite(b"o" * 4096, 0)
        base("snapshot", "web", "one")  # goes to the one that has it
        own.stop()
        with server.client("web") as h:
            assert bytes(h.pread(4096, 0)) == b"o" * 4096
        server.stop()
        assert "in use" in server.log


def test_read_only_and_the_socket_are_as_asked_for(base, tmp_path):
    base("create", "web", "--from", "base:1")
    path = tmp_path / "s.sock"
    group = grp.getgrnam("daemon")
    with StoreServer(base, "--read-only", "--socket", path, "--socket-mode", "660", "--socket-group",
                     group.gr_name) as server:
        found = os.stat(path)
        assert stat.S_IMODE(found.st_mode) == 0o660 and found.st_gid == group.gr_gid
        with server.client("web") as h:
            assert h.is_read_only()
            h.set_strict_mode(0)
            with pytest.raises(nbd.Error):
                h.pwrite(b"x" * 4096, 0)
    assert not path.exists()
    with StoreServer(base, "--tcp", "127.0.0.1:0") as server:
        assert server.base.startswith("nbd://127.0.0.1:")
        with server.client("web") as h:
            assert bytes(h.pread(4096, 0)) == base.base[:4096]


def test_serve_detached_returns_once_it_is_usable(base):
    base("create", "web", "--from", "base:1")
    told = base.json("serve", "--detach")
    (uri,), pid = told["uris"], told["pid"]
    try:
        with Client(uri.replace(":///?", ":///web?")) as h:
            h.pwrite(b"d" * 4096, 0)
    finally:
        subprocess.run(["kill", str(pid)], check=True)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
    assert base.content("web")[:4096] == b"d" * 4096


def test_term_finishes_or_refuses_what_is_in_flight_and_closes_every_volume(base):
    for i in range(3):
        base("create", f"v{i}", "--from", "base:1")
    with StoreServer(base, "--threads", "2") as server:
        silent = [Raw(server.uri("v0")).greet(), Raw(server.uri("v1")).enter()]
        floods = [Flood(server.uri(f"v{i}"), MIB) for i in range(3)]
        wait_for(lambda: min(len(f.replies) for f in floods) > 2 * SECTORS, seconds=60)
        stop_while_flooded(server, floods)
        ended(server)
        for thread in [t for f in floods for t in f.threads]:
            thread.join()
        del silent
    for i, flood in enumerate(floods):
        assert at_rest(base, f"v{i}")
        flood.check(base.content(f"v{i}"))
    assert any(ESHUTDOWN in f.replies.values() for f in floods), "nothing was left to be refused"
