"""save and load, and the store as an OCI image layout."""

import json
import os
import subprocess

import pytest
from conftest import KIB, MIB, PROGRAM, Snap, noise, sh


@pytest.fixture
def friend(tmp_path):
    """Another store."""
    sockets = tmp_path / "friend-run"
    sockets.mkdir(mode=0o700)
    return Snap(tmp_path / "friend", sockets)


@pytest.fixture
def two(base):
    """base with an image base:2 of two layers."""
    base("create", "web", "--from", "base:1")
    base.write("web", {MIB: noise(MIB, 9)})
    base("commit", "-m", "second", "web", "base:2")
    return base


def layers(snap, name):
    return [layer["digest"][7:19] for layer in snap.json("images", name)["images"][0]["layers"]]


def test_an_image_travels_by_save_and_load_with_the_words_of_docker(two, friend, tmp_path):
    tar = tmp_path / "two.tar"
    two("save", "-o", tar, "base:2")
    out = friend("load", "-i", tar).splitlines()
    bottom, top = layers(two, "base:2")
    assert out == [f"{bottom}: Load complete", f"{top}: Load complete", "Loaded image: base:2"]
    assert friend.images()["base:2"] == two.images()["base:2"]
    assert friend.content("base:2") == two.content("base:2")
    assert friend.json("history", "base:2") == two.json("history", "base:2")
    assert friend("load", "-i", tar).splitlines() == [
        f"{bottom}: Already exists", f"{top}: Already exists", "Loaded image: base:2"]


def test_layers_that_exist_are_skipped(two, friend, tmp_path):
    two("save", "-o", tmp_path / "one.tar", "base:1")
    two("save", "-o", tmp_path / "two.tar", "base:2")
    friend("load", "-i", tmp_path / "one.tar")
    bottom, top = layers(two, "base:2")
    assert friend("load", "-i", tmp_path / "two.tar").splitlines() == [
        f"{bottom}: Already exists", f"{top}: Load complete", "Loaded image: base:2"]
    friend("create", "v", "--from", "base:2")
    assert friend.content("v") == two.content("base:2")


def test_save_and_load_through_pipes(two, friend):
    tar = two("save", "base:1", "base:2", text=False)
    out = friend("load", data=tar).splitlines()
    assert out[-2:] == ["Loaded image: base:1", "Loaded image: base:2"]
    assert friend.images() == two.images()
    assert friend("load", "-q", data=tar).split() == [two.images()["base:1"], two.images()["base:2"]]
    assert len(friend.json("load", data=tar)["layers_existing"]) == 2


def test_skopeo_copies_an_image_out_of_the_store_and_the_copy_works_in_another(two, friend, tmp_path):
    other = tmp_path / "layout"
    sh("skopeo", "copy", "--insecure-policy", f"oci:{two.store}:base:2", f"oci:{other}:base:2")
    friend("load", "-i", other)
    assert friend.content("base:2") == two.content("base:2")
    assert friend.images()["base:2"] == two.images()["base:2"]


def test_a_damaged_archive_is_refused_and_adds_nothing(two, friend, tmp_path):
    tar = tmp_path / "two.tar"
    two("save", "-o", tar, "base:2")
    whole = tar.read_bytes()
    friend("init")
    broken = tmp_path / "broken.tar"
    for name, data in (("cut", whole[:len(whole) // 2]), ("flipped", whole[:MIB // 2] + bytes([whole[MIB // 2] ^ 1]) +
                                                         whole[MIB // 2 + 1:])):
        broken.write_bytes(data)
        friend.fails("load", "-i", broken, code=2)
        assert friend.images() == {}, name
    broken.write_bytes(b"this is no archive" * 1000)
    friend("load", "-i", broken, code=2 if _code(friend, broken) == 2 else 64)
    broken.write_bytes(b"")
    assert _code(friend, broken) in (2, 64)
    friend.fails("load", "-i", tmp_path / "missing.tar", code=4, says="missing.tar")
    assert friend.images() == {}


def _code(snap, path):
    done = snap.popen("load", "-i", path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    done.communicate(timeout=60)
    return done.returncode


def test_save_of_what_does_not_exist_writes_nothing(base, tmp_path):
    base.fails("save", "-o", tmp_path / "x.tar", "base:9", code=4, says="base:1")
    base.fails("save", "-o", tmp_path / "no" / "x.tar", "base:1", code=4, says="no/x.tar")
    assert not (tmp_path / "x.tar").exists()
