"""Limits of a volume and of a store, the low-water mark, and events, on a small ext4 on a loop device: needs root."""

import errno
import json
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import nbd
import pytest
from conftest import KIB, MIB, Client, Snap, blobs, empty, fill, noise, wait_for

BLOCK = 4096


def events(snap, kind=None):
    """The store's events, in order."""
    lines = [json.loads(line) for line in snap("events", "--json").splitlines()]
    for event in lines:
        assert event["schema"] == 1 and event["time"].endswith("Z") and event["message"]
    return [e for e in lines if kind is None or e["event"] == kind]


def is_full(call, *args):
    """True: it failed with ENOSPC; False: it succeeded."""
    try:
        call(*args)
    except nbd.Error as error:
        assert error.errno == "ENOSPC" or error.errnum == errno.ENOSPC, str(error)
        return True
    return False


def written_until_full(h, start, end, step=BLOCK):
    """Writes pieces one after the other; gives how many bytes could be written."""
    for at in range(start, end, step):
        if is_full(h.pwrite, noise(step, at), at):
            return at - start
    return end - start


def allocated(snap):
    return sum(os.lstat(os.path.join(folder, name)).st_blocks * 512
               for top in ("blobs", "deltas", "tmp") for folder, _, names in os.walk(snap.store / top)
               for name in names)


def fresh(small, *init):
    """A second store on the small disk."""
    sockets = small.sockets.parent / "run2"
    sockets.mkdir(mode=0o700)
    snap = Snap(small.point / "store2", sockets)
    snap.point = small.point
    snap("init", *init)
    return snap


# ---- A volume's limit


def test_a_volume_takes_its_limit_to_the_block_and_goes_on(small):
    small("create", "v", "--from", "base:1", "--size", "16M", "--limit", "1M")
    assert small.volumes()["v"]["limit"] == MIB
    with small.export("v") as server, Client(server.uri) as h, Client(server.uri) as other:
        assert written_until_full(h, 4 * MIB, 16 * MIB) == MIB
        # That request alone: reads, overwrites, flushes, zeros, and other connections go on.
        assert bytes(h.pread(BLOCK, 4 * MIB)) == noise(BLOCK, 4 * MIB)
        h.pwrite(b"o" * 64 * KIB, 4 * MIB)
        other.pwrite(b"p" * 512, 4 * MIB + 512)
        h.flush()
        assert is_full(other.pwrite, b"x" * 512, 8 * MIB + 512)
        assert bytes(other.pread(BLOCK, 8 * MIB)) == bytes(BLOCK)
        # Discard makes room for as much and no more.
        h.trim(8 * BLOCK, 4 * MIB + 64 * KIB)
        assert written_until_full(h, 8 * MIB, 9 * MIB) == 8 * BLOCK
        # More is had while it is served; none at all is no limit.
        small("set", "v", "--limit", "1.5M")
        assert written_until_full(h, 10 * MIB, 12 * MIB) == MIB // 2
        small("set", "v", "--limit", "none")
        assert small.volumes()["v"]["limit"] is None
        assert written_until_full(h, 12 * MIB, 14 * MIB, 64 * KIB) == 2 * MIB
        small("set", "v", "--limit", "4K")
        assert is_full(h.pwrite, b"x" * BLOCK, 15 * MIB)
        h.pwrite(b"q" * BLOCK, 12 * MIB)
        h.flush()
    content = small.content("v")
    assert content[4 * MIB:4 * MIB + 512] == b"o" * 512 and content[4 * MIB + 512:4 * MIB + 1024] == b"p" * 512
    assert content[12 * MIB:12 * MIB + BLOCK] == b"q" * BLOCK
    assert json.loads(small("inspect", "v"))[0]["Limit"] == 4096
    # It holds for whoever serves it next, counts what is there, and a volume at rest can be set as well.
    small("set", "v", "--limit", "5M")
    with small.export("v") as server, Client(server.uri) as h:
        held = small.volumes()["v"]
        room = written_until_full(h, 14 * MIB, 16 * MIB)
        assert room == 5 * MIB - (MIB + MIB // 2 + 2 * MIB), held


def test_a_limit_is_of_the_writable_layer_and_clones_have_it_too(small):
    small("create", "v", "--size", "8M", "--limit", "256K")
    with small.export("v") as server, Client(server.uri) as h:
        assert written_until_full(h, 0, MIB) == 256 * KIB
        small("snapshot", "v", "s")  # the layer is sealed: a new one begins
        assert written_until_full(h, MIB, 2 * MIB) == 256 * KIB
        small("clone", "v", "w")
        assert written_until_full(h, 2 * MIB, 3 * MIB) == 256 * KIB
    with small.export("w") as server, Client(server.uri) as h:
        assert written_until_full(h, 4 * MIB, 5 * MIB) == 256 * KIB
    small("commit", "v", "base:2")
    with small.export("v") as server, Client(server.uri) as h:
        assert written_until_full(h, 5 * MIB, 6 * MIB) == 256 * KIB


def test_limits_that_make_no_sense_are_refused(small):
    for limit in ["0", "4095", "257T", "-1", "x"]:
        small.fails("create", "v", "--size", "1M", f"--limit={limit}", code=64)
        small.fails("set", "web", f"--limit={limit}", code=64)
    assert set(small.volumes()) == {"web"}
    small.fails("set", "web", code=64, says="--limit")
    small.fails("set", code=64, says="--low-water")
    small.fails("set", "web", "--low-water", "1M", code=64, says="low-water")
    small.fails("set", "wbe", "--limit", "1M", code=4, says="web")
    for words in (["--limit", "0"], ["--low-water", "0"], ["--limit", "1M", "--low-water", "1M"]):
        small.fails("set", *words, code=64)
        small.fails("init", *words, code=64)
    small.fails("init", "--limit", "1G", code=1, says=["already", "set --limit"])
    info = small.json("info")
    assert info["limit"] is None and info["low_water"] is None


def test_an_event_tells_once_that_a_volume_is_out_of_space_and_once_that_it_is_well_again(small):
    small("create", "v", "--size", "8M", "--limit", "1M")
    with small.export("v") as server, Client(server.uri) as h:
        for more_writes in (False, True):
            before = len(events(small))
            assert written_until_full(h, 0, 8 * MIB, 64 * KIB) == MIB
            wait_for(lambda: len(events(small)) > before)
            if more_writes:  # more of the same, and no more of it told
                assert is_full(h.pwrite, b"x" * BLOCK, 5 * MIB)
            else:  # below the limit, but no room to speak of
                h.trim(BLOCK, 0)
            time.sleep(1.3)
            told = events(small)[before:]
            assert [e["event"] for e in told] == ["volume-no-space"], told
            assert told[0]["volume"] == "v" and told[0]["limit"] == MIB and "limit" in told[0]["message"]
            h.trim(MIB, 0)
            wait_for(lambda: len(events(small)) > before + 1)
            assert events(small)[-1]["event"] == "volume-normal"
    assert len(events(small)) == 4
    assert server.log.count("got no new block because of the volume's limit") == 2, server.log
    assert server.log.count("can take new blocks again") == 2, server.log


# ---- The store's limit


def test_what_the_limit_cannot_hold_is_refused_early_in_one_line(small, tmp_path):
    snap = fresh(small, "--limit", "16M", "--low-water", "2M")
    info = snap.json("info")
    assert info["limit"] == 16 * MIB and info["low_water"] == 2 * MIB and info["left"] <= 16 * MIB
    snap.fails("init", "--limit", "32M", code=1, says=["already", "set"])
    disk = tmp_path / "disk.raw"
    disk.write_bytes(noise(20 * MIB, 1))
    line = ["limit of 16.0 MiB", "no space", "prune", "set --limit"]
    snap.fails("import", disk, "a:1", code=6, says=[*line, "more than"])
    assert blobs(snap) == {} and os.listdir(snap.store / "tmp") == []
    # What says its size only at its end: as soon as it is more than is left.
    snap.fails("import", "-", "a:1", code=6, says=line, data=disk.read_bytes())
    assert blobs(snap) == {} and os.listdir(snap.store / "tmp") == [] and allocated(snap) == 0
    # Zeros that take space in the file take none here; what compresses is given a chance.
    zeros = tmp_path / "zeros.raw"
    zeros.write_bytes(bytes(40 * MIB) + noise(MIB, 2))
    snap("import", zeros, "zeros:1")
    snap("import", "--compress", "zstd", zeros, "zeros:2")
    text = tmp_path / "text.raw"
    text.write_bytes(b"".join(str(i).encode().rjust(4096, b".") for i in range(5120)))
    snap.fails("import", text, "text:1", code=6, says=["--compress"])
    snap("import", "--compress", "zstd", text, "text:1")
    assert allocated(snap) <= 16 * MIB
    # Of a load nothing stays.
    small("import", disk, "big:1")
    small("save", "-o", tmp_path / "big.tar", "big:1")
    before = blobs(snap)
    snap.fails("load", "-i", tmp_path / "big.tar", code=6, says=line)
    with open(tmp_path / "big.tar", "rb") as f:
        snap.fails("load", "-i", "-", code=6, says=line, data=f.read())
    assert blobs(snap) == before and os.listdir(snap.store / "tmp") == []
    # Raised, it all goes through.
    snap("set", "--limit", "48M")
    snap("load", "-i", tmp_path / "big.tar")
    assert snap.content("big:1") == noise(20 * MIB, 1)


@pytest.mark.parametrize("how", [(), ("--compress", "zstd")], ids=["raw", "compressed"])
def test_imports_beside_each_other_never_pass_the_limit_and_one_that_fits_stays(small, tmp_path, how):
    snap = fresh(small, "--limit", "20M")
    files = []
    for i in range(3):
        files.append(tmp_path / f"disk{i}.img")
        files[i].write_bytes(noise(12 * MIB, i))
    imports = [snap.popen("import", "-", f"c{i}:1", *how, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) for i in range(3)]
    # All have written most of what they bring before one of them ends.
    for process, file in zip(imports, files):
        process.stdin.write(file.read_bytes()[:11 * MIB])
        process.stdin.flush()
    codes = []
    with ThreadPoolExecutor(3) as pool:
        ends = pool.map(lambda one: one[0].communicate(one[1].read_bytes()[11 * MIB:]), zip(imports, files))
        for process, (_, error) in zip(imports, ends):
            codes.append(process.returncode)
            if process.returncode:
                assert b"no space" in error and b"set --limit" in error, error
    assert sorted(codes) == [0, 6, 6]
    assert allocated(snap) <= 20 * MIB
    assert not os.listdir(snap.store / "tmp")
    name = f"c{codes.index(0)}:1"
    snap("create", "v", "--from", name)
    assert snap.content("v") == files[codes.index(0)].read_bytes()
    assert len(snap("images", "-q").split()) == 1


def test_a_commit_that_does_not_fit_is_refused_before_anything_changes(small):
    snap = fresh(small, "--limit", "16M")
    snap("create", "v", "--size", "32M")
    snap.write("v", {0: noise(6 * MIB, 1), 8 * MIB: noise(3 * MIB, 2)})
    snap.fails("commit", "v", "a:1", code=6, says=["limit of 16.0 MiB", "9.", "--compress"])
    assert snap.volumes()["v"]["sealed"] == [] and snap.images() == {} and os.listdir(snap.store / "tmp") == []
    with snap.export("v"):
        snap.fails("commit", "v", "a:1", code=6, says="limit of 16.0 MiB")
    snap.fails("commit", "--compress", "zstd", "v", "a:1", code=6, says="limit of 16.0 MiB")
    assert snap.images() == {} and os.listdir(snap.store / "tmp") == []
    content = snap.content("v")
    snap("set", "--limit", "32M")
    snap("commit", "v", "a:1")
    assert snap.content("image:a:1") == content
    # What the layer replaced has gone: there is room for volumes again, and none below what one takes.
    snap("set", "--limit", str(allocated(snap) + 8 * KIB))
    snap.fails("create", "w", "--from", "a:1", code=6, says=["limit", "raise"])
    assert set(snap.volumes()) == {"v"}
    snap("set", "--limit", "none")
    snap("create", "w", "--from", "a:1")


def test_volumes_stop_at_the_stores_limit_and_go_on_when_there_is_room(small):
    snap = fresh(small, "--limit", "24M", "--low-water", "8M")
    snap("create", "old", "--size", "32M")
    snap.write("old", {0: noise(8 * MIB, 1)})
    for name in ("a", "b"):
        snap("create", name, "--size", "64M")
    # Two processes, and two connections to one of them.
    with snap.export("a") as one, snap.export("b") as other, Client(one.uri) as h, Client(other.uri) as g:
        written = 0
        at = 0
        full = {h: False, g: False}
        while not all(full.values()):
            for client in (h, g):
                full[client] = full[client] or is_full(client.pwrite, noise(256 * KIB, at), at)
                written += 0 if full[client] else 256 * KIB
            at += 256 * KIB
            assert at < 32 * MIB
            time.sleep(0.15)
        used = allocated(snap)
        assert 22 * MIB < used < 27 * MIB, used
        h.pwrite(noise(256 * KIB, 5), 0)  # overwrites and flushes go on
        for client in (h, g):
            client.flush()
        wait_for(lambda: events(snap, "limit-reached"))
        wait_for(lambda: len(events(snap, "volume-no-space")) == 2)
        assert all("the store's limit" in e["message"] for e in events(snap, "volume-no-space"))
        assert len(events(snap, "low-water")) == 1 and len(events(snap, "limit-reached")) == 1
        told = events(snap, "low-water")[0]
        assert told["low_water"] == 8 * MIB and told["left"] < 8 * MIB and told["limit"] == 24 * MIB
        snap.fails("create", "c", "--size", "1M", code=6, says="limit of 24.0 MiB")
        # Space comes back: a removed volume, a discard, a raised limit. No one is restarted.
        snap("rm", "--yes", "old")
        wait_for(lambda: not is_full(g.pwrite, noise(256 * KIB, 7), 40 * MIB))
        wait_for(lambda: [e for e in events(snap, "store-normal") if "limit" in e["message"]])
        h.trim(4 * MIB, 0)
        snap("set", "--limit", "40M", "--low-water", "1M")
        wait_for(lambda: len(events(snap, "store-normal")) == 2)
        wait_for(lambda: len(events(snap, "volume-normal")) == 2)
        # The other process may have looked first; this one does within a second.
        wait_for(lambda: not is_full(h.pwrite, noise(8 * MIB, 8), 8 * MIB))
        assert len(events(snap, "low-water")) == 1 and len(events(snap, "limit-reached")) == 1
        kinds = [e["event"] for e in events(snap)]
    assert snap.content("a")[8 * MIB:16 * MIB] == noise(8 * MIB, 8)
    assert 2 <= kinds.count("volume-no-space") <= 2 + kinds.count("volume-normal"), kinds
    assert (one.log + other.log).count("less than its low-water mark of 8.0 MiB") == 1
    assert (one.log + other.log).count("of its limit of 24.0 MiB") == 1


def test_one_process_never_exceeds_the_limit_however_fast_it_writes(small):
    snap = fresh(small, "--limit", "16M")
    names = ["a", "b", "c"]
    for name in names:
        snap("create", name, "--size", "64M")
    with snap.export(*names) as server:
        def run(uri):
            with Client(uri) as h:
                assert written_until_full(h, 0, 64 * MIB, 128 * KIB) < 16 * MIB

        threads = [threading.Thread(target=run, args=[uri]) for uri in server.uris]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        used = allocated(snap)
        # Data is exact; maps and journals of three volumes come on top.
        assert 15 * MIB < used < 16 * MIB + 3 * 300 * KIB, used


def test_the_low_water_mark_looks_at_the_disk_too(small):
    small("set", "--low-water", "16M")
    with small.export("web") as server, Client(server.uri) as h:
        time.sleep(1.5)
        assert events(small) == []
        fill(small, 12 * MIB)
        try:
            wait_for(lambda: events(small))
            # Just below what is left now: within the hysteresis, so neither left nor crossed anew.
            left = os.statvfs(small.point).f_bavail * os.statvfs(small.point).f_frsize
            small("set", "--low-water", str(left - 256 * KIB))
            time.sleep(1.5)
            assert [e["event"] for e in events(small)] == ["low-water"]
            assert events(small)[0]["available"] < 16 * MIB and "limit" not in events(small)[0]
        finally:
            empty(small)
        wait_for(lambda: [e["event"] for e in events(small)] == ["low-water", "store-normal"])
        h.pwrite(b"x" * BLOCK, 3 * MIB)


def test_a_command_tells_of_a_mark_that_it_crosses(small):
    snap = fresh(small, "--limit", "32M", "--low-water", "24M")
    snap.image("a:1", noise(4 * MIB, 1))
    assert events(snap) == []
    snap.image("a:2", noise(8 * MIB, 2))
    assert [e["event"] for e in events(snap)] == ["low-water"]
    snap.image("a:3", noise(MIB, 3))
    assert [e["event"] for e in events(snap)] == ["low-water"]


def test_each_crossing_is_told_without_a_server(snap):
    snap("init", "--limit", "20M", "--low-water", "5M")
    told = []
    for i in range(3):
        snap.image("a:1", noise(16 * MIB, i))
        assert [e["event"] for e in events(snap)] == told + ["low-water"]
        snap("rmi", "--yes", "a:1")
        told += ["low-water", "store-normal"]
        assert [e["event"] for e in events(snap)] == told
    # A mark that an eighth more of would be above the limit.
    snap("set", "--low-water", "19M")
    for i in range(2):
        snap.image("a:1", noise(2 * MIB, i))
        snap("rmi", "--yes", "a:1")
        told += ["low-water", "store-normal"]
        assert [e["event"] for e in events(snap)] == told
    # What changes is the mark, and not what is left.
    snap.image("a:1", noise(2 * MIB, 1))
    snap("set", "--low-water", "1M")
    assert [e["event"] for e in events(snap)] == told + ["low-water", "store-normal"]


# ---- A full disk


def test_on_a_full_disk_the_event_is_kept_and_the_volume_goes_on_once_there_is_room(small):
    small("create", "v", "--size", "32M")
    with small.export("v") as server, Client(server.uri) as h, Client(server.uri) as other:
        h.pwrite(b"k" * BLOCK, 0)
        h.flush()
        fill(small, 0)
        try:
            assert written_until_full(h, MIB, 32 * MIB, 64 * KIB) < 31 * MIB
            other.pwrite(b"m" * BLOCK, 0)
            other.flush()
            assert bytes(other.pread(BLOCK, 0)) == b"m" * BLOCK
            time.sleep(1.5)
            log_is_on_the_full_disk = (small.store / "events").exists()
        finally:
            empty(small)
        assert not is_full(h.pwrite, noise(MIB, 9), 16 * MIB)
        wait_for(lambda: events(small, "volume-normal"))
        told = events(small, "volume-no-space")
        assert log_is_on_the_full_disk and len(told) == 1 and "a full disk" in told[0]["message"]
    assert small.content("v")[16 * MIB:17 * MIB] == noise(MIB, 9)


def test_where_no_event_can_be_written_the_mark_is_told_in_the_log_and_later_as_an_event(small):
    in_the_way = small.store / "events" / "log"
    in_the_way.unlink()
    in_the_way.mkdir()
    small("set", "--low-water", "60M")
    with small.export("web") as server:
        time.sleep(2.5)
        in_the_way.rmdir()
        wait_for(lambda: events(small))
        time.sleep(1.5)
        assert [e["event"] for e in events(small)] == ["low-water"]
    assert server.log.count("less than its low-water mark of 60.0 MiB") == 1, server.log


def test_what_the_disk_cannot_hold_is_refused_before_it_is_full(small, tmp_path):
    disk = tmp_path / "disk.raw"
    disk.write_bytes(noise(12 * MIB, 1))
    sockets = tmp_path / "friend-run"
    sockets.mkdir(mode=0o700)
    friend = Snap(tmp_path / "friend", sockets)
    friend("import", disk, "a:1")
    friend("create", "v", "--from", "a:1", "--size", "32M")
    friend.write("v", {16 * MIB: noise(12 * MIB, 2)})
    friend("commit", "v", "a:2")
    friend("save", "-o", tmp_path / "a.tar", "a:2")
    disk.write_bytes(noise(12 * MIB, 3))
    # The load: more than each of two layers, less than both. The import: less than its one layer.
    for leave, words in ((20 * MIB, ["load", "-i", tmp_path / "a.tar"]), (10 * MIB, ["import", disk, "b:1"])):
        fill(small, leave)
        try:
            free = lowest = os.statvfs(small.point).f_bavail
            process = small.popen(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            while process.poll() is None:
                lowest = min(lowest, os.statvfs(small.point).f_bavail)
                time.sleep(0.001)
            err = process.stderr.read().decode()
            assert process.returncode == 6 and "the file system of" in err and len(err.splitlines()) == 1, err
            assert (free - lowest) * os.statvfs(small.point).f_frsize < MIB, words
        finally:
            empty(small)
        small(*words)
    assert small.content("a:2") == friend.content("a:2")


# ---- events


def test_events_follow_and_pass_over_what_is_no_event(small):
    assert small("events") == "" and small("events", "--json") == ""
    small("create", "v", "--size", "8M", "--limit", "64K")
    folder = small.store / "events"
    with small.export("v") as server, Client(server.uri) as h:
        follower = small.popen("events", "--json", "--follow", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        given_up = threading.Timer(30, follower.kill)  # a line that does not come must not hang the test
        given_up.start()
        try:
            assert written_until_full(h, 0, MIB) == 64 * KIB
            first = json.loads(follower.stdout.readline())
            assert (first["event"], first["volume"]) == ("volume-no-space", "v")
            with open(folder / "log", "ab") as f:
                f.write(b"garbage\n\xff\xfe\n{}\n[1]\n" + b"{" * 100000 + b"\n" + b'{"time":"yesterday","event":"x"}\n')
                f.write(b'{"time":"2026-01-01T00:00:00Z","event":"from-\\u001b[31m-later","message":"m","more":[{}]}\n{"time":"2026-0')
            h.trim(64 * KIB, 0)
            assert json.loads(follower.stdout.readline())["event"] == "from-\x1b[31m-later"
            assert json.loads(follower.stdout.readline())["event"] == "volume-normal"
            # Rotated away while it is followed.
            os.rename(folder / "log", folder / "log.1")
            assert written_until_full(h, 0, MIB) == 64 * KIB
            assert json.loads(follower.stdout.readline())["event"] == "volume-no-space"
            follower.send_signal(2)
            _, err = follower.communicate(timeout=10)
            assert follower.returncode == 0, err
        finally:
            given_up.cancel()
            follower.kill()
    kinds = [e["event"] for e in events(small)]
    assert kinds[0] == kinds[-1] == "volume-no-space" and len(kinds) == 4
    assert "\x1b" not in small("events") and "7 lines" in small.err
    (folder / "state").write_bytes(b"\x00" * 100)
    small("set", "--low-water", "60M")
    small.image("x:1", b"x" * BLOCK)
    assert [e["event"] for e in events(small)][-1] == "low-water"
    (folder / "log").unlink()
    (folder / "log.1").unlink()
    assert small("events") == ""


def test_many_servers_tell_of_a_crossing_once(small):
    small("set", "--low-water", "16M")
    for i in range(4):
        small("create", f"v{i}", "--size", "1M")
    servers = [small.export(f"v{i}").__enter__() for i in range(4)]
    told = []
    for change, event in [(lambda: fill(small, 8 * MIB), "low-water"), (lambda: empty(small), "store-normal")] * 2:
        change()
        told.append(event)
        wait_for(lambda: len(events(small)) >= len(told))
        time.sleep(1.5)  # for the other servers
        assert [e["event"] for e in events(small)] == told
    for server in servers:
        server.stop()
    assert [e["event"] for e in events(small)] == told


def test_settings_that_are_damaged_are_told_and_can_be_set_anew(small):
    small("set", "--limit", "60M", "--low-water", "1M")
    path = small.store / "settings.json"
    good = path.read_text()
    for bad in [good.replace("62914560", "62914561"), "", "{}", "x" * 5000, good[:-20]]:
        path.write_text(bad)
        small.fails("import", "-", "x:1", code=2, says="settings", data=b"x" * BLOCK)
        small.fails("set", "--limit", "50M", code=2, says="both")
        with small.export("web") as server, Client(server.uri) as h:  # what is there is served all the same
            assert bytes(h.pread(BLOCK, 0)) == noise(MIB, 2)[:BLOCK]
        assert "settings" in server.log
    small("set", "--limit", "50M", "--low-water", "none")
    info = small.json("info")
    assert info["limit"] == 50 * MIB and info["low_water"] is None
    small.image("x:1", b"x" * BLOCK)
