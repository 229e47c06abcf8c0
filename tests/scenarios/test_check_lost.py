"""Who is named, and what is said to be lost, when a part that several volumes and images read through is damaged."""

import json

import pytest
from conftest import MIB
from test_check import DAMAGE, OK, check, kinds
from test_damage import overwrite

PAGE = 4096
SIZE = 2 * MIB
GROWN = 3 * MIB


@pytest.fixture
def shared(snap):
    """Two tags of one image, two volumes on it (one has grown since) and a snapshot of one; and others that are whole."""
    snap.image("base:1", b"b" * SIZE)
    snap("tag", "base:1", "again:1")
    for name in ("u", "v"):
        snap("create", name, "--from", "base:1")
        snap.write(name, {0: name.encode() * PAGE})
    snap("snapshot", "v", "one")
    snap("resize", "v", str(GROWN))
    snap.image("whole:1", b"w" * MIB)
    snap("create", "whole", "--from", "whole:1")
    return snap


def parts(snap):
    image = {t: i for i in snap.json("images")["images"] for t in i["tags"]}["base:1"]
    folder = snap.store / "blobs/sha256"
    return {"config": folder / image["id"][7:], "manifest": folder / image["manifest"][7:],
            "layer": folder / image["layers"][0]["digest"][7:]}


USERS = {"image base:1", "image again:1", "volume u", "volume v", "snapshot v@one"}


@pytest.mark.parametrize("part", ["config", "manifest", "layer"])
@pytest.mark.parametrize("how", ["cut", "missing"])
def test_all_that_read_through_a_damaged_part_are_named(shared, part, how):
    path = parts(shared)[part]
    good = path.read_bytes()
    if how == "cut":
        overwrite(path, good[:len(good) // 2])
    else:
        path.unlink()
    report = check(shared, DAMAGE)
    found = kinds(report, "damage")
    assert list(found) == [f"{part} sha256:{path.name}"]
    finding = next(iter(found.values()))
    assert set(finding["users"]) == USERS
    lost = {r["object"]: (r["offset"], r["length"]) for r in finding["lost"]}
    assert set(lost) == USERS
    assert all(offset == 0 for offset, _ in lost.values()) or part == "layer"
    if part != "layer":  # what they wrote themselves cannot be had either: nothing opens them
        assert (lost["volume u"], lost["snapshot v@one"], lost["volume v"]) == ((0, SIZE), (0, SIZE), (0, GROWN))
        # How large the image was is not known: that stands in the config.
        assert lost["image base:1"] == lost["image again:1"] == (0, None)
        text = shared("check", code=DAMAGE)
        assert f"lost: volume v, offset 0, length {GROWN}\n" in text
        assert "lost: image base:1, offset 0, length unknown\n" in text
    overwrite(path, good)
    path.chmod(0o444)
    assert check(shared, OK)["findings"] == []


def test_a_damaged_record_names_its_volume(shared):
    path = shared.store / "volumes/v/volume.json"
    good = path.read_bytes()
    for bad in (good[:100], b"", good.replace(b'"size": 3', b'"size": 4')):
        overwrite(path, bad)
        found = kinds(check(shared, DAMAGE), "damage")
        assert list(found) == ["volume v"]
        assert found["volume v"]["users"] == ["volume v"]
        assert found["volume v"]["lost"] == [{"object": "volume v", "offset": 0, "length": None}]
        assert "lost: volume v, offset 0, length unknown\n" in shared("check", code=DAMAGE)


def test_a_record_of_a_later_release_is_unchecked_and_nothing_of_it_lost(shared):
    path = shared.store / "volumes/v/volume.json"
    record = json.loads(path.read_text())
    record["format"]["incompat"] = 1 << 40
    overwrite(path, json.dumps(record).encode())
    found = kinds(check(shared, 1), "unchecked")
    assert found["volume v"]["users"] == ["volume v"] and found["volume v"]["lost"] == []


def test_that_leaks_were_not_looked_for_is_said(shared):
    line = "leaks were not looked for"
    assert line not in shared("check")
    assert line in shared("scrub")
    parts(shared)["manifest"].unlink()
    assert line in shared("check", code=DAMAGE)
    assert line not in shared("-q", "check", code=DAMAGE)
    assert not check(shared, DAMAGE)["leaks_known"]


def test_a_layer_that_is_another_one_is_lost_whole(shared):
    """It is a whole layer, as large as the right one, but not what the config says: no volume opens with it."""
    shared.image("other:1", b"o" * SIZE)
    image = {t: i for i in shared.json("images")["images"] for t in i["tags"]}["other:1"]
    other = (shared.store / "blobs/sha256" / image["layers"][0]["digest"][7:]).read_bytes()
    layer = parts(shared)["layer"]
    assert len(other) == layer.stat().st_size
    overwrite(layer, other)
    found = kinds(check(shared, DAMAGE), "damage")
    lost = {r["object"]: r["length"] for r in found[f"layer sha256:{layer.name}"]["lost"]}
    assert set(lost) == USERS and lost["volume v"] == GROWN
