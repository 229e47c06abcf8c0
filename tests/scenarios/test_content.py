"""map, diff, compare, dump."""

import os
import subprocess

import pytest
from conftest import GIB, KIB, MIB, Client, noise, sh


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
    changed.fails("dump", "web", tmp_path / "missing" / "x", "-O", "qcow2", code=1, says="missing")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("x")] == []
    with open("/dev/full", "wb") as full:
        done = changed.popen("dump", "web", "-", stdout=full, stderr=subprocess.PIPE)
        _, err = done.communicate(timeout=60)
    assert done.returncode == 6 and err.decode().startswith("snapctl: "), err


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
