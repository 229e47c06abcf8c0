"""init, df, prune, info, version, help, and what holds for every command."""

import json
import os
import pathlib
import pty
import re
import select
import signal
import stat
import subprocess
import time

import pytest
from conftest import KIB, MIB, PROGRAM, noise, sh

COMMANDS = ["import", "images", "history", "inspect", "tag", "rmi", "commit", "diff", "compare", "map", "dump", "save",
            "load", "create", "clone", "snapshot", "snapshots", "rollback", "reset", "ls", "rm", "rename", "resize",
            "export", "init", "set", "df", "prune", "info", "events", "version", "help"]


def test_init_makes_a_private_store_and_is_safe_to_run_again(snap):
    assert snap("init") == f"{snap.store}\n"
    assert stat.S_IMODE(os.stat(snap.store).st_mode) == 0o700
    assert json.loads((snap.store / "oci-layout").read_text())["imageLayoutVersion"] == "1.0.0"
    snap("init")


def test_the_store_is_found_by_flag_then_environment_then_default(snap, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    env = {**snap.env, "HOME": str(home), "SNAPCTL_STORE": str(tmp_path / "by-env")}
    out = subprocess.run([PROGRAM, "init"], env=env, capture_output=True, text=True, check=True).stdout
    assert out == f"{tmp_path}/by-env\n"
    assert snap("init", env={"SNAPCTL_STORE": str(tmp_path / "by-env")}) == f"{snap.store}\n"


def test_df_shows_what_is_shared_and_what_prune_would_free(base):
    base("create", "web", "--from", "base:1")
    base.write("web", {MIB: noise(MIB, 9)})
    base("commit", "web", "base:2")
    usage = base.json("df")
    assert usage["layer_bytes"] >= 1300 * KIB and usage["shared_saving"] >= 300 * KIB
    kinds = {(row["kind"], row["name"]) for row in usage["objects"]}
    assert any(name == "base:2" for _, name in kinds) and any(name == "web" for _, name in kinds)
    assert "Reclaimable" in base("df") and "base:2" in base("df", "-v")


def test_prune_removes_what_nothing_names_and_nothing_else(base):
    base("create", "web", "--from", "base:1")
    before = base.state()
    stray = base.store / "blobs/sha256" / ("0" * 64)
    stray.write_bytes(b"x" * 100000)
    assert base.json("df")["reclaimable"] >= 100000
    assert "0" * 64 in base("prune", "--dry-run")
    assert stray.exists()
    out = base("prune", "--yes")
    assert f"Deleted: sha256:{'0' * 64}" in out and "reclaimed" in out
    assert not stray.exists()
    assert base.state() == before


def test_what_a_dead_process_left_in_tmp_is_removed(base):
    left = base.store / "tmp" / "11111111-1111-4111-8111-111111111111"
    left.mkdir()
    (left / "layer").write_bytes(b"x" * 4096)
    base("images")
    assert not left.exists()


def test_info_and_version_tell_about_store_and_program(base):
    info = base.json("info")
    assert info["path"] == str(base.store) and info["images"] == 1 and info["volumes"] == 0
    assert info["io"] in ("io_uring", "threads") and info["available"] <= info["total"]
    assert str(base.store) in base("info")
    assert re.match(r"snapctl \d+\.\d+\.\d+", base("version"))
    assert base.json("version")["version"]
    assert base("--version") == base("version") and base.json("--version") == base.json("version")


def test_every_json_has_a_schema_and_integers_for_bytes(base):
    base("create", "web", "--from", "base:1")
    base("snapshot", "web", "one")
    for args in (["images"], ["history", "base:1"], ["ls"], ["snapshots", "web"], ["df"], ["info"], ["version"],
                 ["map", "web"], ["diff", "web"], ["compare", "web", "base:1"], ["prune", "--dry-run"], ["init"]):
        out = base.json(*args)
        assert list(out)[0] == "schema" and out["schema"] == 1, args
    image = base.json("images")["images"][0]
    assert isinstance(image["virtual_size"], int) and image["virtual_size"] == 8 * MIB
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", image["created"])



def test_usage_errors_exit_with_64_on_one_line(snap):
    snap.fails("comit", code=64, says="commit")
    snap.fails("images", "--nonsense", code=64, says=["--nonsense", "help images"])
    snap.fails("tag", "only-one", code=64)
    snap.fails("create", "a", "b", code=64)
    snap.fails("--progress", "wild", "images", code=64, says="wild")
    snap.fails("help", "comit", code=64, says="commit")
    snap.fails("--store", code=64)
    snap.fails("resize", "a", "b", "c", "d", code=64)


def test_progress_is_drawn_on_a_terminal_and_quiet_elsewhere(snap, tmp_path):
    disk = tmp_path / "disk.raw"
    disk.write_bytes(noise(64 * MIB, 1))
    snap("import", disk, "a:1")
    assert snap.err == ""
    parent, child = pty.openpty()
    process = snap.popen("import", disk, "a:2", "--compress", "zstd:15", stdout=subprocess.DEVNULL, stderr=child)
    os.close(child)
    seen = b""
    while True:
        try:
            piece = os.read(parent, 4096)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.close(parent)
    assert process.wait() == 0
    assert b"/s" in seen and b"%" in seen and b"[" in seen


def test_a_question_is_asked_on_a_terminal_and_no_means_no(base):
    base("create", "web", "--size", "1M")

    def answer(text):
        parent, child = pty.openpty()
        process = base.popen("rm", "web", stdin=child, stdout=subprocess.DEVNULL, stderr=child)
        os.close(child)
        os.read(parent, 100)
        os.write(parent, text)
        code = process.wait(timeout=60)
        os.close(parent)
        return code

    assert answer(b"n\n") != 0
    assert list(base.volumes()) == ["web"]
    assert answer(b"y\n") == 0
    assert base.volumes() == {}


def test_ctrl_c_cancels_and_leaves_the_store_as_it_was(base, tmp_path):
    before = base.state()
    disk = tmp_path / "disk.raw"
    with open(disk, "wb") as f:
        for i in range(8):
            f.write(noise(32 * MIB, i))
    process = base.popen("import", disk, "big:1", "--compress", "zstd:19", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert out == b"" and err.decode().startswith("snapctl: cancelled") and len(err.decode().splitlines()) == 1
    assert base.state() == before
    assert os.listdir(base.store / "tmp") == []


def test_a_closed_standard_output_is_an_error_not_a_crash(base):
    read, write = os.pipe()
    os.close(read)
    process = base.popen("images", stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1 and err.decode().startswith("snapctl: "), err
    with open("/dev/full", "wb") as full:
        process = base.popen("images", stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 6, err


def test_a_store_that_cannot_be_is_refused_by_name(snap, tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("I am a file")
    for path in (plain, plain / "below"):
        snap.store = path
        assert subprocess.run([PROGRAM, "--store", str(path), "images"], capture_output=True).returncode not in (0, 139, 134)
    full = tmp_path / "full"
    full.mkdir()
    (full / "my-thesis.txt").write_text("irreplaceable")
    done = subprocess.run([PROGRAM, "--store", str(full), "prune", "--yes"], capture_output=True, text=True)
    assert (full / "my-thesis.txt").read_text() == "irreplaceable"


def test_help_lists_every_command_and_tells_about_each(snap):
    for args in ([], ["help"], ["--help"], ["-h"]):
        out = snap(*args)
        for group in ("IMAGES", "VOLUMES", "ACCESS", "STORE"):
            assert group in out
        for command in COMMANDS:
            assert re.search(rf"^  {command}\b", out, re.M), command
    for command in COMMANDS:
        assert snap("help", command) == snap(command, "--help")
        assert len(snap("help", command).splitlines()) < 60


def test_a_newer_format_is_refused_with_what_is_needed(base):
    lines = (base.store / "format").read_text().splitlines(keepends=True)
    assert lines[3] == "incompat 0000000000000000\n" and lines[4].startswith("needs ")
    text = "".join([*lines[:3], "incompat 0000000000001000\n", "needs 7.8.9\n"])
    digest = sh("xxhsum", "-H3", input=text.encode()).decode().split(" = ")[-1].split()[0].removeprefix("XXH3_")
    (base.store / "format").chmod(0o600)
    (base.store / "format").write_text(f"{text}checksum {digest}\n")
    base.fails("images", code=1, says=["7.8.9", "newer"])
    base.fails("create", "v", "--size", "1M", code=1, says="7.8.9")


def test_words_that_are_commands_or_look_like_lists_are_names_like_any_other(base):
    base("create", "images", "--size", "1M")
    base("create", "rm", "--size", "1M")
    base("rename", "rm", "help")
    assert set(base.volumes()) == {"images", "help"}
    base.fails("rm", "--yes", "[images]", code=64)
    base.fails("rm", "--yes", "", code=64)
    base.fails("rmi", "--yes", "{}", code=64)
    assert set(base.volumes()) == {"images", "help"}
    base("rm", "--yes", "images", "help")
    assert base.volumes() == {} and list(base.images()) == ["base:1"]
