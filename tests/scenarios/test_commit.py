"""commit, at rest and served."""

import re
import signal
import subprocess
import threading
import time

import pytest
from conftest import KIB, MIB, Client, noise, wait_for


def test_commit_as_docker_does_it(base):
    """The command line of docker's own documentation: -a="pakho" -m="add webapps app"."""
    base("create", "VOL".lower(), "--from", "base:1")
    base.write("vol", {MIB: b"x" * 4096})
    out = base("commit", '-a=pakho', '-m=add webapps app', "vol", "tomcat02:1.0")
    said = base.err
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", out)
    assert base.images()["tomcat02:1.0"] == out.strip()
    row = base.json("history", "tomcat02:1.0")["history"][0]
    assert (row["author"], row["comment"]) == ("pakho", "add webapps app")
    assert "commit" in row["created_by"]
    assert re.search(r"paused for [\d.]+ (us|ms|s)", said) and len(said.splitlines()) == 1


def test_all_spellings_of_short_options_mean_the_same(base):
    base("create", "web", "--from", "base:1")
    for i, args in enumerate((["-a", "pakho"], ["-apakho"], ["-a=pakho"], ["--author", "pakho"], ["--author=pakho"])):
        base("commit", *args, "web", f"t:{i}")
        assert base.json("history", f"t:{i}")["history"][0]["author"] == "pakho", args
    base("commit", "-m==x", "web", "t:eq")
    assert base.json("history", "t:eq")["history"][0]["comment"] == "=x"
    base("commit", "-m", "=y", "web", "t:eq")
    assert base.json("history", "t:eq")["history"][0]["comment"] == "=y"
    base("commit", "-m=", "web", "t:empty")
    assert base.json("history", "t:empty")["history"][0]["comment"] == ""


def test_a_committed_image_reads_as_the_volume_did_and_the_volume_goes_on(base):
    base("create", "web", "--from", "base:1")
    base.write("web", {MIB: noise(MIB, 9), 8 * MIB - 4096: bytes(4096)})
    before = base.content("web")
    base("commit", "web", "base:2")
    assert base.content("base:2") == before and base.content("web") == before
    assert base.content("base:1") == base.base
    assert base.volumes()["web"]["allocated"] < 512 * KIB
    image = {i["tags"][0]: i for i in base.json("images")["images"]}["base:2"]
    assert len(image["layers"]) == 2 and image["layers"][1]["size"] < 2 * MIB
    base.write("web", {0: b"n" * 4096})
    base("commit", "web", "base:3")
    base("create", "web3", "--from", "base:3")
    assert base.content("web3") == b"n" * 4096 + before[4096:]


def test_commit_without_a_name_makes_an_image_without_a_name(base):
    base("create", "web", "--from", "base:1")
    base.write("web", {0: b"n" * 4096})
    image_id = base("commit", "web").strip()
    assert "<none>" in base("images")
    assert base.content(image_id[7:19]) == base.content("web")


def test_commit_of_labels_and_compression(base):
    base("create", "web", "--from", "base:1")
    base.write("web", {MIB: b"all work and no play" * 4096 * 8})
    base("commit", "--compress", "zstd", "--label", "a=1", "--label", "b=x=y", "web", "base:2")
    image = base.json("images", "base:2")["images"][0]
    assert image["labels"]["a"] == "1" and image["labels"]["b"] == "x=y"
    assert image["layers"][1]["size"] < 200 * KIB
    assert base.content("base:2") == base.content("web")
    base.fails("commit", "--compress", "gzip", "web", code=64, says="zstd")
    base.fails("commit", "--label", "=x", "web", code=64)
    base.fails("commit", "missing", code=4)


def test_commit_of_a_served_volume_goes_to_its_server_while_it_is_written_to(base):
    """A writer keeps going through the commit; what it had flushed before is in the image."""
    base("create", "web", "--from", "base:1")
    with base.export("web") as server, Client(server.uri) as h:
        h.pwrite(b"A" * MIB, MIB)
        h.flush()
        stop, failures = threading.Event(), []

        def writer():
            with Client(server.uri) as other:
                number = 0
                while not stop.is_set():
                    try:
                        other.pwrite(number.to_bytes(4, "big") * 1024, 4 * MIB + number % 64 * 4096)
                    except Exception as error:  # a failed request is what this test is about
                        failures.append(error)
                        return
                    number += 1

        thread = threading.Thread(target=writer)
        thread.start()
        try:
            out = base("commit", "-a=pakho", "-m=while served", "web", "base:2")
            assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", out)
            assert "paused for" in base.err
            assert base("snapshot", "web", "one") == "one\n"
            assert base("clone", "web", "web2") == "web2\n"
        finally:
            stop.set()
            thread.join()
        assert failures == []
        h.pwrite(b"B" * 4096, 0)
        h.flush()
        after = bytes(h.pread(8 * MIB, 0))
    assert base.content("base:2")[MIB:2 * MIB] == b"A" * MIB
    assert base.content("base:2")[:MIB] == base.base[:MIB]
    assert base.content("web2")[MIB:2 * MIB] == b"A" * MIB
    assert base.content("web") == after
    row = base.json("history", "base:2")["history"][0]
    assert (row["author"], row["comment"]) == ("pakho", "while served")


def test_a_served_volume_can_grow(base):
    base("create", "web", "--from", "base:1")
    with base.export("web") as server:
        base("resize", "web", "12M")
        with Client(server.uri) as h:
            assert h.get_size() == 12 * MIB
            h.pwrite(b"g" * 4096, 12 * MIB - 4096)
            h.flush()
    assert base.content("web")[-4096:] == b"g" * 4096


def test_errors_of_a_served_volume_come_back_as_they_are(base):
    base("create", "web", "--from", "base:1")
    base("create", "other", "--size", "1M")
    with base.export("web"):
        base("snapshot", "web", "one")
        base.fails("snapshot", "web", "one", code=1, says="one")
        base.fails("clone", "web", "other", code=1, says="other")
        base.fails("resize", "web", "1001", code=64)
        base.fails("commit", "web", "BAD NAME", code=64)


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_ends_under_a_command_is_no_cancellation(snap, sig):
    snap("create", "web", "--size", "64M")
    with snap.export("web") as server, Client(server.uri) as h:
        for at in range(0, 64 * MIB, MIB):
            h.pwrite(noise(MIB, at), at)
        h.flush()
        commit = snap.popen("commit", "web", "im:1", stderr=subprocess.PIPE, text=True)
        wait_for(lambda: any(snap.store.glob("tmp/*/layer")))
        snap.servers.remove(server)
        server.process.send_signal(sig)
        _, err = commit.communicate(timeout=30)
    server.process.communicate(timeout=30)
    assert commit.returncode == 1 and snap.images() == {}, err
    assert f"server with pid {server.process.pid} has given up" in err, err
