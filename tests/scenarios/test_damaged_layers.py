"""One of several layers, or what names them, is cut short, flipped or missing: whoever needs it gets one clear line,
at rest and over NBD; whoever does not reads as before, and nothing is lost once the bytes are back.
"""

import signal

import nbd
import pytest
from conftest import KIB, MIB, Client, noise
from test_damage import blob, flip, overwrite, the_rest_works


@pytest.fixture
def three(base):
    """base:3 of three layers, base:2 of the lower two, volumes web and spare, an unrelated image."""
    base.image("other:1", noise(MIB, 50))
    base("create", "spare", "--from", "other:1")
    base("create", "web", "--from", "base:1")
    for tag in (2, 3):
        base.write("web", {tag * MIB: noise(MIB, 10 + tag)})
        base("commit", "web", f"base:{tag}")
    base.good = {name: base.content(name) for name in ("base:1", "base:2", "base:3", "web")}
    return base


def layers(base):
    image = {t: i for i in base.json("images")["images"] for t in i["tags"]}["base:3"]
    return [base.store / "blobs/sha256" / layer["digest"][7:] for layer in image["layers"]]


def read(base, what):
    """(content, "") of dump, or (None, the line) if it fails, which must be by exit code 2."""
    process = base.popen("dump", what, "-", stdout=-1, stderr=-1)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:
        return out, ""
    assert process.returncode == 2 and len(err.splitlines()) == 1, (process.returncode, err)
    return None, err.decode()


def served(base, volume):
    """What a client reads in pieces of 64 KiB, None for those that fail with EIO; or the line if export fails by 2."""
    with base.popen("export", volume, "--log", "/dev/null", stdout=-1, stderr=-1, text=True) as process:
        uri = process.stdout.readline().strip()
        pieces = []
        if uri:
            with Client(uri) as h:
                for at in range(0, 8 * MIB, 64 * KIB):
                    try:
                        pieces.append(bytes(h.pread(64 * KIB, at)))
                    except nbd.Error as error:
                        assert error.errno == "EIO", error
                        pieces.append(None)
            process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    if uri:
        assert process.returncode == 0, err
        return pieces, ""
    assert process.returncode == 2 and len(err.splitlines()) == 1, (process.returncode, err)
    return None, err


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("how", ["cut", "missing", "data", "footer"])
def test_one_layer_of_three_is_damaged(three, which, how):
    layer = layers(three)[which]
    good, size = layer.read_bytes(), layer.stat().st_size
    if how == "missing":
        layer.unlink()
    elif how == "cut":
        overwrite(layer, good[:size // 2])
    else:
        flip(layer, {"data": size // 2, "footer": size - 10}[how])
    for depth, name in enumerate(("base:1", "base:2", "base:3")):
        data, err = read(three, name)
        if depth < which:
            assert data == three.good[name], (name, err)
        else:
            assert data is None and layer.name[:12] in err, (name, err)
    data, err = read(three, "web")
    assert data is None and layer.name[:12] in err, err
    pieces, err = served(three, "web")
    if pieces is None:
        assert layer.name[:12] in err, err
    else:
        expected = [three.good["web"][at:at + 64 * KIB] for at in range(0, 8 * MIB, 64 * KIB)]
        assert all(got in (None, want) for got, want in zip(pieces, expected)), "wrong data without an error"
        assert None in pieces
    the_rest_works(three)
    if how == "missing":
        layer.touch()
    overwrite(layer, good)
    for name, content in three.good.items():
        assert three.content(name) == content
    assert [p for p in served(three, "web")[0] if p is None] == []


@pytest.mark.parametrize("kind", ["config", "manifest", "index", "volume"])
def test_flips_and_cuts_in_what_names_the_layers_are_named_or_harmless(three, kind):
    """At ten places each, for dump and for export: the content that was there, or exit code 2 with one line."""
    path = {"index": three.store / "index.json", "volume": three.store / "volumes/web/volume.json"}.get(kind)
    path = path or blob(three, "base:3", kind)
    good = path.read_bytes()
    places = [n * len(good) // 10 for n in range(10)]
    damages = [good[:n] for n in places] + [good[:n] + bytes([good[n] ^ 1]) + good[n + 1:] for n in places]
    for n, damage in enumerate(damages):
        overwrite(path, damage)
        for name in ("web", "base:3"):
            process = three.popen("dump", name, "-", stdout=-1, stderr=-1)
            out, err = process.communicate(timeout=60)
            # A flip in a tag of index.json makes it another tag: then there is none of that name.
            allowed = (0, 2, 4) if kind == "index" and name == "base:3" else (0, 2)
            assert process.returncode in allowed, (n, name, err)
            if process.returncode == 0:
                assert out == three.good[name], (n, name)
            else:
                assert len(err.splitlines()) == 1 and err.startswith(b"snapctl: "), err
        if n % 8 == 0:
            pieces, err = served(three, "web")
            assert pieces is None or b"".join(pieces) == three.good["web"], n
        if kind != "index":
            the_rest_works(three)
    overwrite(path, good)
    the_rest_works(three)
    for name, content in three.good.items():
        assert three.content(name) == content
