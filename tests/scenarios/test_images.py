"""import, images, history, inspect, tag, rmi."""

import contextlib
import json
import os
import pty
import subprocess
import time

import pytest
from conftest import GIB, KIB, MIB, Client, data_of, noise, sh, sparse_file


def test_import_of_standard_input_prints_the_id_and_lists_the_image(snap):
    data = noise(MIB, 1) + bytes(MIB)
    image_id = snap.image("base:1", data, "-m", "first", "-a", "me")
    assert image_id.startswith("sha256:") and len(image_id) == 71
    lines = snap("images").splitlines()
    assert lines[0].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE", "LAYERS"]
    assert lines[1].split()[:3] == ["base", "1", image_id[7:19]]
    assert snap("images", "-q").split() == [image_id[7:19]]
    assert snap("images", "-q", "--no-trunc").split() == [image_id]
    assert snap.content("base:1") == data
    row = snap.json("history", "base:1")["history"][0]
    assert (row["comment"], row["author"]) == ("first", "me")
    assert "import" in row["created_by"]


def test_no_tag_means_latest(snap):
    snap.image("base", noise(64 * KIB, 1))
    assert list(snap.images()) == ["base:latest"]
    assert snap.content("base") == snap.content("base:latest")


def test_images_of_the_same_second_are_listed_newest_first_too(snap):
    for number in range(6):
        snap.image(f"a{number}", noise(64 * KIB, number))
    assert list(snap.images()) == [f"a{number}:latest" for number in reversed(range(6))]


def test_import_of_a_sparse_file_keeps_its_holes_and_all_of_its_size(snap, tmp_path):
    path = sparse_file(tmp_path / "disk.raw", 4 * GIB, {0: noise(MIB, 1), 3 * GIB: noise(MIB, 2)})
    snap("import", path, "big:1")
    image = snap.json("images")["images"][0]
    assert image["virtual_size"] == 4 * GIB
    assert 2 * MIB <= image["stored_size"] < 4 * MIB
    data = [e for e in snap.json("map", "big:1")["extents"] if e["type"] == "data"]
    assert [(e["offset"], e["length"]) for e in data] == [(0, MIB), (3 * GIB, MIB)]
    snap("dump", "big:1", tmp_path / "back.raw")
    assert os.stat(tmp_path / "back.raw").st_size == 4 * GIB
    assert os.stat(tmp_path / "back.raw").st_blocks * 512 < 8 * MIB
    assert data_of(tmp_path / "back.raw") == data_of(path) == {0: noise(MIB, 1), 3 * GIB: noise(MIB, 2)}


@pytest.mark.parametrize("fmt", ["qcow2", "vmdk", "vhdx", "vdi"])
def test_import_recognises_formats_of_qemu(snap, tmp_path, fmt):
    raw = sparse_file(tmp_path / "disk.raw", 8 * MIB, {0: noise(MIB, 1), 5 * MIB: noise(MIB, 2)})
    sh("qemu-img", "convert", "-f", "raw", "-O", fmt, raw, tmp_path / "disk.img")
    snap("import", tmp_path / "disk.img", "base:1")
    assert snap.content("base:1") == raw.read_bytes()


def test_import_takes_an_nbd_uri(snap, tmp_path):
    raw = sparse_file(tmp_path / "disk.raw", 4 * MIB, {MIB: noise(MIB, 1)})
    snap("import", raw, "a:1")
    with snap.export("a:1") as server:
        snap("import", server.uri, "b:1")
    assert snap.content("b:1") == raw.read_bytes()


def test_import_of_a_directory_is_an_ext4_file_system_with_its_files(snap, tmp_path):
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "hello.txt").write_text("hello\n")
    (tree / "sub" / "big.bin").write_bytes(noise(3 * MIB, 1))
    snap("import", tree, "tree:1", "--size", "64M")
    snap("dump", "tree:1", tmp_path / "fs.raw")
    assert os.stat(tmp_path / "fs.raw").st_size == 64 * MIB
    sh("e2fsck", "-fn", tmp_path / "fs.raw")
    assert sh("debugfs", "-R", "cat /hello.txt", tmp_path / "fs.raw") == b"hello\n"
    sh("debugfs", "-R", f"dump /sub/big.bin {tmp_path}/big.bin", tmp_path / "fs.raw")
    assert (tmp_path / "big.bin").read_bytes() == noise(3 * MIB, 1)


def test_import_of_a_block_device(snap, tmp_path):
    assert os.geteuid() == 0, "only root may set up a loop device: run the tests as root"
    raw = sparse_file(tmp_path / "disk.raw", 4 * MIB, {0: noise(MIB, 1)})
    device = sh("losetup", "--find", "--show", "--read-only", raw).decode().strip()
    try:
        snap("import", device, "base:1")
    finally:
        sh("losetup", "--detach", device)
    assert snap.content("base:1") == raw.read_bytes()


def test_a_compressed_image_has_the_same_content_and_takes_less(snap):
    data = (b"all work and no play " * 200)[:4096] * 512
    snap.image("raw:1", data)
    snap.image("small:1", data, "--compress", "zstd:9")
    sizes = {i["tags"][0]: i for i in snap.json("images")["images"]}
    assert sizes["small:1"]["stored_size"] < sizes["raw:1"]["stored_size"]
    assert sizes["small:1"]["layers"][0]["diff_id"] == sizes["raw:1"]["layers"][0]["diff_id"]
    assert snap.content("small:1") == data


def test_import_of_what_cannot_be_imported_says_why_and_makes_nothing(snap, tmp_path):
    snap("init")
    empty = tmp_path / "empty.raw"
    empty.touch()
    snap.fails("import", empty, "a:1", code=64, says="empty")
    snap.fails("import", "-", "a:1", code=64, data=b"", says="empty")
    snap.fails("import", tmp_path / "missing.raw", "a:1", code=4, says="missing.raw")
    snap.fails("import", "/dev/null", "a:1", code=64)
    snap.fails("import", empty, "UPPER:1", code=64, says="UPPER")
    snap.fails("import", empty, "a:1", "-f", "nonsense", code=64, says="nonsense")
    assert snap.images() == {}
    assert os.listdir(snap.store / "tmp") == []


def test_import_of_a_file_of_odd_size_is_padded_to_a_sector(snap, tmp_path):
    odd = tmp_path / "odd.raw"
    odd.write_bytes(noise(100001, 1))
    snap("import", odd, "a:1")
    assert snap.content("a:1") == noise(100001, 1) + bytes(100352 - 100001)




def test_tag_gives_a_second_name_and_rmi_takes_names_until_the_last_deletes(base):
    base("tag", "base:1", "registry.example.org/team/base:stable")
    assert base.images() == {"base:1": base.base_id, "registry.example.org/team/base:stable": base.base_id}
    out = base("rmi", "--yes", "base:1")
    assert out == "Untagged: base:1\n"
    out = base("rmi", "--yes", base.base_id[7:19])
    assert "Untagged: registry.example.org/team/base:stable" in out
    assert f"Deleted: {base.base_id}" in out
    assert base.images() == {}
    assert os.listdir(base.store / "blobs/sha256") == []


def test_rmi_dry_run_says_what_it_would_do_and_changes_nothing(base):
    before = base.state()
    out = base("rmi", "--dry-run", "base:1")
    assert "Would untag: base:1" in out and f"Would delete: {base.base_id}" in out
    assert base.state() == before


def test_rmi_refuses_an_image_that_a_volume_uses_and_says_which(base):
    base("create", "web", "--from", "base:1")
    base.fails("rmi", "--yes", "base:1", code=5, says=["base:1", "web"])
    assert base.content("web") == base.base
    base("rm", "--yes", "web")
    base("rmi", "--yes", "base:1")


def test_rmi_of_the_lower_image_keeps_the_layers_that_another_image_shares(base):
    base("create", "web", "--from", "base:1")
    base.write("web", {MIB: b"x" * 4096})
    base("commit", "web", "base:2")
    base("rm", "--yes", "web")
    before = base.content("base:2")
    base("rmi", "--yes", "base:1")
    assert base.content("base:2") == before



def test_inspect_shows_images_volumes_and_layers_as_docker_does(base):
    base("create", "web", "--from", "base:1", "--label", "tier=front")
    image, volume = json.loads(base("inspect", "base:1", "web"))
    assert image["Id"] == base.base_id and image["RepoTags"] == ["base:1"]
    assert image["RootFS"]["Type"] == "layers" and len(image["RootFS"]["Layers"]) == 1
    assert image["VirtualSize"] == 8 * MIB
    assert volume["Name"] == "web" and volume["ImageId"] == base.base_id and volume["Labels"] == {"tier": "front"}
    layer = json.loads(base("inspect", image["RootFS"]["Layers"][0][7:25]))[0]
    assert layer["Kind"] == "layer" and layer["Images"] == [base.base_id]
    assert os.stat(layer["Path"]).st_size == layer["Size"]


def test_a_unique_prefix_of_an_id_will_do_and_a_kind_can_be_forced(base):
    base("create", "base", "--size", "1M")
    assert json.loads(base("inspect", base.base_id[7:15]))[0]["Id"] == base.base_id
    assert json.loads(base("inspect", base.base_id))[0]["Id"] == base.base_id
    base("tag", "base:1", "base:latest")
    assert json.loads(base("inspect", "base"))[0]["Kind"] == "volume"
    assert json.loads(base("inspect", "image:base"))[0]["Kind"] == "image"
    assert json.loads(base("inspect", "volume:base"))[0]["Kind"] == "volume"



@pytest.mark.parametrize("name", ["..", "../x", "a/../../b", "/etc/passwd", ".hidden", "a b", "a\nb", "", "x" * 10000,
                                  "\x1b[2J", "ä", "-x"])
def test_hostile_names_are_refused_with_one_short_line(base, name):
    before = base.state()
    listing = sorted(os.listdir(base.store))
    for args in (["create", "--size", "1M", "--", name], ["create", "--size", "1M", f"volume:{name}"],
                 ["clone", "--", name, "ok"], ["rm", "--yes", "--", name], ["history", "--", name],
                 ["import", "--", "/dev/zero", name], ["rename", "--", "web", name],
                 ["tag", "--", "base:1", f"x:{name}"], ["commit", "--", name], ["snapshot", "--", "web", f"../{name}"],
                 ["inspect", "--", name], ["dump", "--", name, "-"]):
        done = base.popen(*args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        _, err = done.communicate(timeout=60)
        assert done.returncode in (4, 64), (args, done.returncode, err)
        lines = err.decode().splitlines()
        assert len(lines) == 1 and len(lines[0]) < 2000 and lines[0].startswith("snapctl: "), (args, err)
        assert b"\x1b" not in err
    assert base.state() == before
    assert sorted(os.listdir(base.store)) == listing


def test_import_of_an_unreadable_file_says_so(snap, tmp_path):
    if os.geteuid() == 0:
        # Root reads everything; a directory read as a raw file is what even root cannot.
        snap.fails("import", tmp_path, "a:1", "-f", "raw", code=64, says=str(tmp_path))
    else:
        secret = tmp_path / "secret.raw"
        secret.write_bytes(bytes(4096))
        secret.chmod(0)
        snap.fails("import", secret, "a:1", code=1, says="secret.raw")


def test_a_truncated_qcow2_is_refused(snap, tmp_path):
    raw = sparse_file(tmp_path / "disk.raw", 8 * MIB, {0: noise(4 * MIB, 1)})
    sh("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, tmp_path / "disk.qcow2")
    os.truncate(tmp_path / "disk.qcow2", 70000)
    done = snap.popen("import", tmp_path / "disk.qcow2", "a:1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, err = done.communicate(timeout=60)
    assert done.returncode in (1, 2, 64), err
    assert snap.images() == {}


def test_history_has_a_row_for_each_layer_newest_first(base):
    base("create", "web", "--from", "base:1")
    base.write("web", {0: noise(4096, 9)})
    base("commit", "-m", "second", "web", "base:2")
    lines = base("history", "base:2").splitlines()
    assert lines[0].split() == ["LAYER", "ID", "CREATED", "CREATED", "BY", "SIZE", "COMMENT"]
    assert len(lines) == 3
    assert lines[1].endswith("second")
    rows = base.json("history", "base:2")["history"]
    assert rows[0]["comment"] == "second"
    layers = base.json("images", "base:2")["images"][0]["layers"]
    assert [r["layer"] for r in rows] == [layer["digest"] for layer in reversed(layers)]


def test_names_that_do_not_exist_get_exit_code_4_and_the_nearest_that_does(base):
    base("create", "database", "--size", "1M")
    base.fails("history", "bsae:1", code=4, says="base:1")
    base.fails("inspect", "databse", code=4, says="database")
    base.fails("rm", "--yes", "databasse", code=4, says="database")
    base.fails("create", "v", "--from", "base:2", code=4, says="base:1")
    base.fails("rmi", "--yes", "nothing-like-it-at-all", code=4)
    base.fails("history", "database", code=4, says="volume")
    base.fails("rm", "--yes", "base:1", code=4, says="image")


def test_on_a_terminal_the_id_of_an_import_has_a_line_of_its_own(snap):
    ours, theirs = pty.openpty()
    program = snap.popen("import", "-", "new:1", stdin=subprocess.PIPE, stdout=theirs, stderr=theirs)
    os.close(theirs)
    for seed in range(4):
        program.stdin.write(noise(4 * MIB, seed))
        program.stdin.flush()
        time.sleep(0.2)  # the bar is not drawn all the time
    seen = os.read(ours, 64 * KIB)  # the bar
    program.stdin.close()
    with contextlib.suppress(OSError):  # the end of a terminal
        while piece := os.read(ours, 64 * KIB):
            seen += piece
    os.close(ours)
    assert program.wait(timeout=30) == 0
    assert b"import" in seen and b"\x1b[K" + snap.images()["new:1"].encode() + b"\r\n" in seen, seen
