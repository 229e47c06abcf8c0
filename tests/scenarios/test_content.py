"""map, diff, compare, dump."""

import os
import subprocess

import pytest
from conftest import GIB, KIB, MIB, Client, noise, sh, wait_for


@pytest.fixture
def changed(base):
    """base with a volume web that differs from base:1 in three places."""
    base("create", "web", "--from", "base:1")
    base.write("web", {MIB: b"a" * 4096, 2 * MIB: b"b" * (128 * KIB), 8 * MIB - 4096: bytes(4096)})
    return base


def test_map_names_the_layer_of_every_extent_and_covers_all(changed):
    changed("snapshot", "web", "one")
    changed.write("web", {3 * MIB: b"c" * 4096})
    extents = changed.json("map", "web")["extents"]
    at = 0
    for e in extents:
        assert e["offset"] == at
        at += e["length"]
    assert at == 8 * MIB
    layer = changed.json("images")["images"][0]["layers"][0]["digest"]
    by_offset = {e["offset"]: e for e in extents}
    assert by_offset[0]["layer"] == layer and by_offset[0]["type"] == "data"
    assert by_offset[3 * MIB]["layer"].startswith("delta ") and by_offset[3 * MIB]["depth"] == 0
    assert by_offset[MIB]["layer"].startswith("delta ") and by_offset[MIB]["depth"] == 1
    assert by_offset[8 * MIB - 4096]["type"] == "zero" or by_offset[8 * MIB - 4096]["depth"] == 1
    assert len(changed("map", "web").splitlines()) == len(extents) + 1


def test_diff_shows_what_a_volume_changed_of_its_image_and_the_sum(changed):
    out = changed.json("diff", "web")
    assert [(e["offset"], e["length"]) for e in out["extents"]] == [
        (MIB, 4096), (2 * MIB, 128 * KIB), (8 * MIB - 4096, 4096)]
    assert out["changed"] == 136 * KIB
    lines = changed("diff", "web").splitlines()
    assert lines[1].split() == [str(MIB), "4096"]
    assert lines[-1] == "136KiB changed in 3 extents"


def test_diff_of_two_images(changed):
    changed("commit", "web", "base:2")
    assert changed.json("diff", "base:1", "base:2")["changed"] == 136 * KIB
    assert changed.json("diff", "web")["changed"] == 0
    assert changed.json("diff", "base:2", "web")["changed"] == 0
    changed.fails("diff", "base:1", code=64, says="second")


def test_diff_passes_over_blocks_that_were_written_anew_with_what_they_held(base):
    base("create", "web", "--from", "base:1")
    base.write("web", {0: base.base[:MIB]})
    assert base.json("diff", "web")["changed"] == 0
    base("compare", "web", "base:1")


def test_compare_tells_by_its_exit_code(changed):
    assert changed("compare", "base:1", "base:1") == "The content is the same\n"
    assert str(MIB) in changed("compare", "web", "base:1", code=1)
    assert changed.json("compare", "web", "base:1", code=1)["first_difference"] == MIB
    assert changed("compare", "-q", "web", "base:1", code=1) == ""
    changed("create", "wide", "--from", "base:1", "--size", "9M")
    assert "Sizes differ" in changed("compare", "wide", "base:1", code=1)
    changed.fails("compare", "web", "missing", code=4, says="missing")
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = changed.popen("compare", "base:1", "base:1", stdout=write_end, stderr=subprocess.PIPE)
    os.close(write_end)
    _, err = done.communicate(timeout=60)
    assert done.returncode == 2 and b"standard output" in err, "1 would mean that they differ"


def test_dump_to_a_file_is_sparse_and_equal(changed, tmp_path):
    out = tmp_path / "web.raw"
    changed("dump", "web", out)
    assert out.read_bytes() == changed.content("web")
    assert os.stat(out).st_blocks * 512 < 2 * MIB
    out.write_bytes(b"x" * (9 * MIB))
    changed("dump", "web", out)
    assert out.read_bytes() == changed.content("web")


@pytest.mark.parametrize("fmt", ["qcow2", "vmdk", "vhdx", "vdi"])
def test_dump_in_a_format_of_qemu_has_the_same_content(changed, tmp_path, fmt):
    out = tmp_path / f"web.{fmt}"
    changed("dump", "web", out, "-O", fmt)
    assert f'"format": "{fmt}"' in sh("qemu-img", "info", "--output=json", out).decode()
    raw = tmp_path / "web.raw"
    changed("dump", "web", raw)
    sh("qemu-img", "compare", "-f", fmt, "-F", "raw", out, raw)
    assert os.stat(out).st_blocks * 512 < 8 * MIB


def test_dump_that_cannot_be_says_why_and_leaves_no_half_file(changed, tmp_path):
    changed.fails("dump", "web", "-", "-O", "qcow2", code=64, says="pipe")
    changed.fails("dump", "web", tmp_path / "x", "-O", "zip", code=64, says="zip")
    changed.fails("dump", "web", tmp_path / "missing" / "x", code=4, says="missing")
    changed.fails("dump", "web", tmp_path / "missing" / "x", "-O", "qcow2", code=4, says="missing")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("x")] == []
    with open("/dev/full", "wb") as full:
        done = changed.popen("dump", "web", "-", stdout=full, stderr=subprocess.PIPE)
        _, err = done.communicate(timeout=60)
    assert done.returncode == 6 and err.decode().startswith("snapctl: "), err


def beside(path):
    return sorted(p.name for p in path.parent.iterdir() if p.name.startswith(path.name))


@pytest.fixture
def in_pieces(base):
    """A volume of many pieces of data, so that a dump of it is written by many calls."""
    base("create", "pieces", "--size", "8M")
    base.write("pieces", {at: noise(4096, at) for at in range(0, 8 * MIB, 128 * KIB)})
    return base


@pytest.mark.parametrize("existed", [False, True])
def test_a_dump_that_is_interrupted_leaves_what_was_there(in_pieces, tmp_path, existed):
    out = tmp_path / "disk.raw"
    if existed:
        out.write_bytes(b"precious")
    before = beside(out), existed and out.stat()
    # Made slow, for the signal to come in the middle of it; on the loop of threads writes are calls.
    slow = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=pwrite64", "-e", "inject=pwrite64:delay_exit=50000"]
    done = in_pieces.popen("dump", "pieces", out, prefix=slow, env={"SNAPCTL_IO": "threads"}, stderr=subprocess.PIPE)
    wait_for(lambda: (beside(out), existed and out.stat()) != before)
    done.terminate()
    _, err = done.communicate(timeout=60)
    assert done.returncode == 130 and b"cancelled" in err, err
    assert beside(out) == (["disk.raw"] if existed else [])
    assert not existed or out.read_bytes() == b"precious"


@pytest.mark.parametrize("existed", [False, True])
def test_a_conversion_that_fails_leaves_what_was_there(changed, tmp_path, existed):
    programs = tmp_path / "bin"
    programs.mkdir()
    script = programs / "qemu-img"
    script.write_text('#!/bin/sh\nfor last; do :; done\necho half > "$last"\necho broken >&2\nexit 1\n')
    script.chmod(0o755)
    out = tmp_path / "disk.qcow2"
    if existed:
        out.write_bytes(b"precious")
    changed.fails("dump", "web", out, "-O", "qcow2", code=1, says="broken",
                  env={"PATH": f"{programs}:{os.environ['PATH']}"})
    assert beside(out) == (["disk.qcow2"] if existed else [])
    assert not existed or out.read_bytes() == b"precious"


def test_a_conversion_that_is_interrupted_leaves_nothing(changed, tmp_path):
    programs, temporary = tmp_path / "bin", tmp_path / "began"
    programs.mkdir()
    script = programs / "qemu-img"
    script.write_text(f'#!/bin/sh\nfor last; do :; done\necho half > "$last"\necho "$last" > {temporary}\nsleep 60\n')
    script.chmod(0o755)
    out = tmp_path / "disk.qcow2"
    env = {"PATH": f"{programs}:{os.environ['PATH']}", "TMPDIR": str(tmp_path)}
    done = changed.popen("dump", "web", out, "-O", "qcow2", env=env, stderr=subprocess.PIPE)
    wait_for(lambda: temporary.exists() and temporary.read_text().endswith("\n"))
    done.terminate()
    _, err = done.communicate(timeout=60)
    assert done.returncode == 130, err
    assert beside(out) == []
    folder = os.path.dirname(temporary.read_text().strip())
    assert not os.path.exists(folder) or folder == str(tmp_path), "the folder of the link is still there"


def test_a_dump_replaces_the_target_of_a_link_and_keeps_its_mode(changed, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    target, link = folder / "disk.raw", tmp_path / "link"
    link.symlink_to("elsewhere/disk.raw")
    content = changed.content("web")
    changed.fails("dump", "web", link, code=4, says=["link", "leads nowhere"])  # its target is not there yet
    assert beside(target) == []
    target.write_bytes(b"old")
    target.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(target, 1234, 4321)
    changed("dump", "web", link)
    assert link.is_symlink() and target.read_bytes() == content and beside(target) == ["disk.raw"]
    assert target.stat().st_mode & 0o7777 == 0o640
    assert os.geteuid() != 0 or (target.stat().st_uid, target.stat().st_gid) == (1234, 4321)


def test_a_dump_goes_through_no_link_that_the_kernel_does_not_follow(changed, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.symlink_to(b)
    b.symlink_to(a)
    changed.fails("dump", "web", a, code=1, says=["write to", "Too many levels of symbolic links"])
    # One that it refuses (protected_symlinks), whatever can be found out of where it leads.
    secret, link = tmp_path / "secret", tmp_path / "link"
    secret.write_bytes(b"secret")
    link.symlink_to(secret)
    refused = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-P", link, "-e", "inject=newfstatat:error=EACCES"]
    done = changed.popen("dump", "web", link, prefix=refused, stderr=subprocess.PIPE)
    _, err = done.communicate(timeout=60)
    assert done.returncode not in (0, None) and b"Permission denied" in err, err
    assert secret.read_bytes() == b"secret" and a.is_symlink() and link.is_symlink()
    assert not list(tmp_path.glob("*.partial-*"))


def test_a_dump_to_what_cannot_be_replaced_is_written_in_place(changed, tmp_path):
    assert os.geteuid() == 0, "only root may mount a file: run the tests as root"
    source, point = tmp_path / "source", tmp_path / "point"
    source.write_bytes(b"longer than nothing")
    point.write_bytes(b"")
    sh("mount", "--bind", source, point)
    try:
        changed("dump", "web", point)
        assert point.read_bytes() == changed.content("web")
    finally:
        sh("umount", point)
    assert source.read_bytes() == changed.content("web") and point.read_bytes() == b""


def test_a_dump_to_what_has_no_name_is_written_in_place(changed, tmp_path):
    with open(tmp_path / "gone", "w+b") as out:
        os.unlink(out.name)
        assert changed.popen("dump", "web", "/dev/stdout", stdout=out).wait(timeout=60) == 0
        assert out.read() == changed.content("web")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("gone")]


def test_a_vmdk_knows_the_name_that_it_gets(changed, tmp_path):
    changed("dump", "web", tmp_path / "nbd", "-O", "vmdk")
    assert b'SPARSE "nbd"' in (tmp_path / "nbd").read_bytes()[:64 * KIB]
    assert beside(tmp_path / "nbd") == ["nbd"]


def test_dump_to_a_device_of_large_sectors_in_one_of_which_the_volume_ends(snap, tmp_path):
    assert os.geteuid() == 0, "only root may set up a loop device: run the tests as root"
    size = 4 * MIB + 512
    snap("create", "odd", "--size", str(size))
    snap.write("odd", {MIB: b"x" * 4096})
    raw = tmp_path / "device.raw"
    raw.write_bytes(b"o" * (8 * MIB))
    device = sh("losetup", "--find", "--show", "--sector-size", "4096", raw).decode().strip()
    try:
        snap("dump", "odd", device)
    finally:
        sh("losetup", "--detach", device)
    assert raw.read_bytes() == snap.content("odd") + b"o" * (8 * MIB - size)
    assert os.stat(raw).st_blocks * 512 < 5 * MIB, "what could be a hole is none"


def test_a_served_volume_is_read_through_a_snapshot_of_it(changed):
    with changed.export("web") as server, Client(server.uri) as h:
        h.pwrite(b"z" * 4096, 0)
        for args in (["dump", "web", "-"], ["map", "web"], ["diff", "web"], ["compare", "web", "base:1"]):
            changed.fails(*args, code=5, says=["web", str(server.process.pid), "web@now"])
        changed("snapshot", "web", "now")
        h.pwrite(b"y" * 4096, 0)
        assert changed.content("web@now")[:4096] == b"z" * 4096
        assert changed.json("diff", "web@now", "base:1")["changed"] == 140 * KIB
        assert len(changed("map", "web@now").splitlines()) > 3


def test_a_huge_empty_volume_is_mapped_compared_and_dumped_at_once(snap, tmp_path):
    snap("create", "a", "--size", "8T")
    snap("clone", "a", "b")
    snap.write("a", {0: b"x" * 4096, 7 << 40: b"y" * 4096})
    assert len(snap.json("map", "a", timeout=10)["extents"]) == 4
    assert snap.json("diff", "a", "b", timeout=10)["changed"] == 8192
    snap("dump", "b", tmp_path / "b.raw", timeout=10)
    assert os.stat(tmp_path / "b.raw").st_size == 8 << 40
