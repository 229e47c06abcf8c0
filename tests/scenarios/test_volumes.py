"""create, clone, snapshot, snapshots, rollback, reset, resize, rename, ls, rm."""

import json
import subprocess
import time

import pytest
from conftest import KIB, MIB, Client, noise


def test_create_of_an_image_prints_the_name_and_reads_as_the_image(base):
    assert base("create", "web", "--from", "base:1") == "web\n"
    assert base.content("web") == base.base
    lines = base("ls").splitlines()
    assert lines[0].split() == ["NAME", "IMAGE", "SIZE", "ALLOCATED", "SNAPSHOTS", "CREATED", "STATUS"]
    assert lines[1].split()[:3] == ["web", "base:1", "8MiB"]
    assert base("ls", "-q") == "web\n"


def test_create_makes_up_a_name_that_is_not_taken(base):
    names = {base("create", "--from", "base:1").strip() for _ in range(3)}
    assert len(names) == 3 and names == set(base.volumes())


def test_create_of_an_empty_volume_reads_zero_and_takes_no_space(snap):
    snap("create", "empty", "--size", "1T")
    assert snap.volumes()["empty"]["size"] == 1 << 40
    assert snap.volumes()["empty"]["allocated"] < 4 * MIB
    assert snap.json("map", "empty")["extents"] == [
        {"offset": 0, "length": 1 << 40, "type": "zero", "allocated": False, "layer": None, "depth": -1}]


def test_create_may_be_larger_than_its_image_and_reads_zero_beyond(base):
    base("create", "web", "--from", "base:1", "--size", "16M")
    assert base.content("web") == base.base + bytes(8 * MIB)


def test_create_that_makes_no_sense_says_what_to_write(base):
    base.fails("create", "base:1", code=64, says="--from base:1")
    base.fails("create", "web", code=64, says=["--from", "--size"])
    base.fails("create", "web", "--size", "12Q", code=64, says="12Q")
    base.fails("create", "web", "--size", "0", code=64)
    base.fails("create", "web", "--size", "1000", code=64, says="512")
    base.fails("create", "web", "--size", "10000T", code=1)
    base("create", "web", "--from", "base:1")
    base.fails("create", "web", "--from", "base:1", code=1, says="web")
    assert list(base.volumes()) == ["web"]


def test_a_clone_has_the_same_content_and_goes_its_own_way(base):
    base("create", "web", "--from", "base:1")
    base.write("web", {MIB: b"a" * 4096})
    assert base("clone", "web", "web2") == "web2\n"
    base.write("web", {MIB: b"b" * 4096})
    base.write("web2", {2 * MIB: b"c" * 4096})
    web, web2 = base.content("web"), base.content("web2")
    assert web[MIB:MIB + 4096] == b"b" * 4096 and web[2 * MIB:2 * MIB + 4096] == bytes(4096)
    assert web2[MIB:MIB + 4096] == b"a" * 4096 and web2[2 * MIB:2 * MIB + 4096] == b"c" * 4096
    base.fails("clone", "web", "web2", code=1, says="web2")
    base.fails("clone", "wbe", "x", code=4, says="web")


def test_rollback_goes_back_to_a_snapshot_and_can_do_so_again(base):
    base("create", "web", "--from", "base:1")
    base.write("web", {0: b"1" * 4096})
    assert base("snapshot", "web", "one") == "one\n"
    one = base.content("web")
    base.write("web", {0: b"2" * 4096})
    two_name = base("snapshot", "web").strip()
    two = base.content("web")
    base.write("web", {0: b"3" * 4096})
    assert [s["name"] for s in base.json("snapshots", "web")["snapshots"]] == ["one", two_name]
    assert base("snapshots", "web", "-q").split() == ["one", two_name]
    assert base.content("web@one") == one and base.content(f"web@{two_name}") == two
    base("rollback", "--yes", "web", two_name)
    assert base.content("web") == two
    base("rollback", "--yes", "web", "one")
    assert base.content("web") == one
    base.fails("rollback", "--yes", "web", "onee", code=4, says="one")
    base.fails("snapshot", "web", "one", code=1, says="one")


def test_a_snapshot_can_be_removed_alone(base):
    base("create", "web", "--from", "base:1")
    base.write("web", {0: b"1" * 4096})
    base("snapshot", "web", "one")
    base("snapshot", "web", "two")
    before = base.content("web")
    base("rm", "--dry-run", "web@one")
    assert len(base.json("snapshots", "web")["snapshots"]) == 2
    assert base("rm", "--yes", "web@one") == "Deleted: web@one\n"
    assert [s["name"] for s in base.json("snapshots", "web")["snapshots"]] == ["two"]
    assert base.content("web") == before
    base.fails("rm", "--yes", "web@one", code=4)


def test_reset_goes_back_to_the_image(base):
    base("create", "web", "--from", "base:1")
    base.write("web", {0: b"1" * 4096})
    base("reset", "--yes", "web")
    assert base.content("web") == base.base


def test_resize_grows_with_zeros_and_shrinks_only_when_told(base):
    base("create", "web", "--from", "base:1")
    base("resize", "web", "12M")
    assert base.content("web") == base.base + bytes(4 * MIB)
    base.fails("resize", "web", "4M", code=64, says="--yes")
    assert "Would resize" in base("resize", "--dry-run", "web", "4M")
    assert base.volumes()["web"]["size"] == 12 * MIB
    base("resize", "--yes", "web", "4M")
    assert base.content("web") == base.base[:4 * MIB]
    base("resize", "web", "8M")
    assert base.content("web") == base.base[:4 * MIB] + bytes(4 * MIB)
    base.fails("resize", "web", "1001", code=64)


def test_rename_keeps_everything_but_the_name(base):
    base("create", "web", "--from", "base:1")
    base.write("web", {0: b"1" * 4096})
    base("snapshot", "web", "one")
    before, volume_id = base.content("web"), base.volumes()["web"]["id"]
    base("rename", "web", "site")
    assert list(base.volumes()) == ["site"] and base.volumes()["site"]["id"] == volume_id
    assert base.content("site") == before and base.json("snapshots", "site")["snapshots"][0]["name"] == "one"
    base("create", "other", "--size", "1M")
    base.fails("rename", "site", "other", code=1, says="other")
    base.fails("rename", "web", "x", code=4)


def test_destructive_commands_want_yes_off_a_terminal_and_dry_run_changes_nothing(base):
    base("create", "web", "--from", "base:1")
    base.write("web", {0: b"1" * 4096})
    base("snapshot", "web", "one")
    base.write("web", {0: b"2" * 4096})
    before = base.state()
    for args in (["rm", "web"], ["rmi", "base:1"], ["rollback", "web", "one"], ["reset", "web"], ["prune"]):
        base.fails(*args, code=64, says=["--yes", "--dry-run"])
        assert base.state() == before
    for args in (["rm", "web"], ["rollback", "web", "one"], ["reset", "web"], ["prune"]):
        base(*args, "--dry-run")
        assert base.state() == before


def test_rm_of_several_removes_what_it_can_and_reports_the_rest(base):
    base("create", "a", "--size", "1M")
    base("create", "b", "--size", "1M")
    base.fails("rm", "--yes", "a", "nope", "b", code=4, says="nope")
    assert base.volumes() == {}
    assert list((base.store / "deltas").iterdir()) == []


def test_each_name_that_a_command_cannot_do_is_told_on_a_line_of_its_own(base):
    base("create", "web", "--from", "base:1")
    base("tag", "base:1", "other:1")
    for args, code in ((["rm", "--yes", "no1", "no2"], 4), (["rmi", "--yes", "no1", "other:1", "volume:web"], 4),
                       (["inspect", "no1", "base:1", "no2"], 4), (["rmi", "--yes", "volume:web", "no2"], 64)):
        done = base.popen(*args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        out, err = done.communicate(timeout=60)
        assert done.returncode == code, err
        missed = [name for name in args[1:] if name.startswith("no") or name == "volume:web"]
        assert len(err.splitlines()) == len(missed), err
        assert all(name in line for name, line in zip(missed, err.splitlines())), err
        assert ("other:1" in args) == ("Untagged: other:1" in out)
    assert set(base.images()) == {"base:1"}


def test_a_volume_in_use_is_not_removed_renamed_reset_or_rolled_back_and_the_pid_is_named(base):
    base("create", "web", "--from", "base:1")
    base("snapshot", "web", "one")
    with base.export("web") as server:
        pid = str(server.process.pid)
        for args in (["rm", "--yes", "web"], ["rename", "web", "x"], ["reset", "--yes", "web"],
                     ["rollback", "--yes", "web", "one"], ["export", "web", "--socket", str(base.sockets / "x.sock")]):
            base.fails(*args, code=5, says=["web", pid])
        assert base.json("ls")["volumes"][0]["served_by"]["pid"] == server.process.pid
        assert f"pid {pid}" in base("ls")
    base("rm", "--yes", "web")


def test_create_and_clone_of_a_huge_volume_take_no_longer_than_of_a_small_one(base):
    def best_of(size):
        times = []
        for i in range(5):
            started = time.monotonic()
            base("create", f"v{size.lower()}{i}", "--from", "base:1", "--size", size)
            base("clone", f"v{size.lower()}{i}", f"c{size.lower()}{i}")
            times.append(time.monotonic() - started)
        return min(times)

    small, huge = best_of("16M"), best_of("8T")
    assert huge < small * 3 + 0.2


def test_a_volume_with_as_many_snapshots_as_wait_to_be_packed_is_read(base):
    base("create", "web", "--from", "base:1")
    for n in range(10):
        base.write("web", {n * MIB // 8: bytes([n + 1]) * 4096})
        base("snapshot", "web", f"s{n}")
        base.write("web", {2 * MIB: bytes([n + 1]) * 4096})
        content = base.content("web")
        assert content[n * MIB // 8] == n + 1 and content[2 * MIB] == n + 1
        assert base.json("map", "web")["extents"]
    assert base.content("web@s3")[2 * MIB] == 3
