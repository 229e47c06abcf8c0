"""Damage: one clear line, exit code 2, and nothing that was there before is lost."""

import json
import os
import pathlib

import pytest
from conftest import KIB, MIB, noise


def overwrite(path, data):
    path = pathlib.Path(path)
    if path.exists():
        path.chmod(0o600)
    path.write_bytes(data)


def flip(path, offset):
    data = bytearray(pathlib.Path(path).read_bytes())
    data[offset] ^= 0x10
    overwrite(path, bytes(data))


@pytest.fixture
def two(base):
    """base:1 below a volume web with own data and a snapshot, and an unrelated image and volume."""
    base.image("other:1", noise(MIB, 50))
    base("create", "spare", "--from", "other:1")
    base("create", "web", "--from", "base:1")
    base.write("web", {MIB: b"w" * (64 * KIB)})
    base("snapshot", "web", "one")
    base.write("web", {2 * MIB: b"v" * (64 * KIB)})
    return base


def blob(base, name, kind):
    image = {t: i for i in base.json("images")["images"] for t in i["tags"]}[name]
    digest = {"layer": image["layers"][0]["digest"], "config": image["id"], "manifest": image["manifest"]}[kind]
    return base.store / "blobs/sha256" / digest[7:]


def the_rest_works(base):
    assert base.content("other:1") == noise(MIB, 50)
    assert base.content("spare") == noise(MIB, 50)


@pytest.mark.parametrize("where", ["start", "middle", "table", "end", "cut", "empty", "missing"])
def test_a_damaged_layer_is_named(two, where):
    layer = blob(two, "base:1", "layer")
    size = layer.stat().st_size
    if where == "missing":
        layer.unlink()
    elif where in ("cut", "empty"):
        overwrite(layer, layer.read_bytes()[:size // 2 if where == "cut" else 0])
    else:
        flip(layer, {"start": 3, "middle": size // 2, "table": size - 8192 - 100, "end": size - 10}[where])
    done = two.popen("dump", "base:1", "-", stdout=-1, stderr=-1)
    out, err = done.communicate(timeout=60)
    if done.returncode == 0:
        # A flip in bytes that no reader needs (the header's padding) may be harmless, and then the data is right.
        assert where == "start" and out == two.base
    else:
        assert done.returncode == 2, err
        line = err.decode().splitlines()
        assert len(line) == 1 and layer.name[:12] in line[0], err
    the_rest_works(two)


@pytest.mark.parametrize("kind", ["config", "manifest"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing", "nonsense", "deep"])
def test_a_damaged_config_or_manifest_is_named(two, kind, damage):
    path = blob(two, "base:1", kind)
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        overwrite(path, {"flip": data[:20] + bytes([data[20] ^ 1]) + data[21:], "cut": data[:len(data) // 2], "empty": b"",
                         "nonsense": b"\0\xff" * 100, "deep": b"[" * 200000}[damage])
    two.fails("create", "x", "--from", "base:1", code=2, says=path.name[:12])
    two.fails("export", "web", code=2)
    # Other images are listed beside the line that names this one, and go when asked to; what
    # cannot be known to be unused stays, and rmi says so.
    two.image("third:1", noise(MIB, 77))
    rows = two("images", code=2).splitlines()
    assert sorted(r.split()[0] for r in rows[1:]) == ["other", "third"] and path.name[:12] in two.err, (rows, two.err)
    assert two("rmi", "--yes", "third:1").startswith("Untagged: third:1\n")
    # A manifest names layers; one that cannot be read may name any.
    assert (kind == "manifest") == ("prune" in two.err and path.name[:12] in two.err), two.err
    assert two.content("volume:spare") == noise(MIB, 50)


@pytest.mark.parametrize("damage", [b"", b"{", b"\0" * 100, b"[]", b"{}", b"null", b"[" * 100000,
                                    b'{"schemaVersion": 2, "manifests": [{"digest": "sha256:../../x"}]}',
                                    b'{"schemaVersion": 2, "manifests": 3}'])
def test_a_damaged_index_is_named_and_not_overwritten(two, damage):
    index = two.store / "index.json"
    good = index.read_bytes()
    overwrite(index, damage)
    for args in (["images"], ["create", "x", "--from", "base:1"], ["tag", "base:1", "y:1"], ["rmi", "--yes", "base:1"],
                 ["prune", "--yes"]):
        two.fails(*args, code=2, says="index.json")
    two("import", "-", "new:1", data=noise(4096, 1), code=2)
    assert index.read_bytes() == damage
    overwrite(index, good)
    assert two.content("base:1") == two.base
    assert two.content("web")[MIB:MIB + 64 * KIB] == b"w" * (64 * KIB)
    the_rest_works(two)


@pytest.mark.parametrize("part", ["format", "index.json", "deltas", "volumes", "blobs", "oci-layout"])
def test_a_store_that_lost_a_part_is_damaged_and_not_made_anew(two, part):
    os.rename(two.store / part, two.store.parent / "lost")
    for args in (["init"], ["ls"], ["check"], ["create", "new", "--size", "1M"]):
        two.fails(*args, code=2, says=["damaged", part, "missing", "restore"])
    assert not (two.store / part).exists()
    os.rename(two.store.parent / "lost", two.store / part)
    two("check")


@pytest.mark.parametrize("damage", ["cut", "empty", "nonsense", "other", "missing"])
def test_a_damaged_volume_record_is_named_and_the_others_work(two, damage):
    path = two.store / "volumes/web/volume.json"
    two_volumes = two.volumes()
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        overwrite(path, {"cut": data[:len(data) // 2], "empty": b"", "nonsense": b"\xff" * 50,
                         "other": data.replace(b'"size"', b'"sise"', 1)}[damage])
    for args in (["dump", "web", "-"], ["export", "web"], ["commit", "web"], ["clone", "web", "x"],
                 ["snapshot", "web", "y"]):
        done = two.popen(*args, stdout=-1, stderr=-1)
        _, err = done.communicate(timeout=60)
        assert done.returncode == (4 if damage == "missing" and done.returncode == 4 else 2), (args, err)
        assert len(err.decode().splitlines()) == 1 and b"web" in err, err
    if damage != "missing":
        rows = two("ls", code=2).splitlines()
        assert sorted(r.split()[0] for r in rows[1:]) == sorted(set(two_volumes) - {"web"}) and "web" in two.err
    # What cannot be read may still be used by it: nothing is swept.
    deltas = sorted(os.listdir(two.store / "deltas"))
    if damage != "missing":
        two.fails("prune", "--yes", code=2)
        assert sorted(os.listdir(two.store / "deltas")) == deltas
        overwrite(path, data)
        assert two.content("web")[2 * MIB:2 * MIB + 64 * KIB] == b"v" * (64 * KIB)


def deltas_of(base):
    web = base.volumes()["web"]
    return base.store / "deltas" / web["delta"], [base.store / "deltas" / s for s in web["sealed"]]


@pytest.mark.parametrize("which", ["top", "sealed"])
@pytest.mark.parametrize("part", ["map", "data", "folder"])
def test_a_missing_part_of_a_delta_is_damage(two, which, part):
    top, sealed = deltas_of(two)
    folder = top if which == "top" else sealed[0]
    if part == "folder":
        for p in folder.iterdir():
            p.unlink()
        folder.rmdir()
    else:
        (folder / part).unlink()
    two.fails("export", "web", code=2, says=folder.name)
    assert two.content("base:1") == two.base
    the_rest_works(two)


def test_a_flipped_map_of_a_delta_is_damage(two):
    top, sealed = deltas_of(two)
    for folder in (top, sealed[0]):
        good = (folder / "map").read_bytes()
        for offset in (0, 9, 40, len(good) // 2):
            flip(folder / "map", offset)
            done = two.popen("dump", "web", "-", stdout=-1, stderr=-1)
            out, err = done.communicate(timeout=60)
            if done.returncode == 0:
                assert out[MIB:MIB + 64 * KIB] == b"w" * (64 * KIB), f"{folder.name} {offset}: wrong data without an error"
                assert out[2 * MIB:2 * MIB + 64 * KIB] == b"v" * (64 * KIB)
            else:
                assert done.returncode in (1, 2), err
                assert len(err.decode().splitlines()) == 1
            overwrite(folder / "map", good)
    assert two.content("web")[2 * MIB:2 * MIB + 64 * KIB] == b"v" * (64 * KIB)
