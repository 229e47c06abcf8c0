"""check, scrub and backup: damage is found and named, leaks are told apart from it, and a backup is a store of its own."""

import fcntl
import hashlib
import json
import shutil
import signal
import subprocess
import time

import pytest
from conftest import KIB, MIB, Client, Snap, blobs, noise, sh, volumes, wait_for
from test_damage import flip, overwrite

PAGE = 4096
OK, DAMAGE, LEAKS = 0, 2, 3


def check(snap, code, *args, command="check"):
    return snap.json(command, *args, code=code)


def kinds(report, kind):
    return {f["object"]: f for f in report["findings"] if f["kind"] == kind}


def files(snap):
    """{path: bytes} of all that check must not change; locks say who held them last."""
    return {str(p.relative_to(snap.store)): p.read_bytes() for p in snap.store.rglob("*")
            if p.is_file() and p.name not in ("lock", "index.lock")}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A store with each kind of file: images, volumes with own data, a snapshot, and a journal with records."""
    top = tmp_path_factory.mktemp("template")
    (top / "run").mkdir(mode=0o700)
    snap = Snap(top / "store", top / "run")
    data = bytearray(8 * MIB)
    data[0:256 * KIB] = noise(256 * KIB, 1)
    data[4 * MIB:4 * MIB + 64 * KIB] = noise(64 * KIB, 2)
    data[-4096:] = noise(4096, 3)
    snap.base = bytes(data)
    snap.image("base:1", snap.base)
    snap.image("other:1", noise(MIB, 50))
    snap("create", "spare", "--from", "other:1")
    snap.write("spare", {0: b"s" * PAGE})
    snap("create", "web", "--from", "base:1")
    snap.write("web", {MIB: b"w" * (64 * KIB)})
    snap("snapshot", "web", "one")
    snap.write("web", {2 * MIB: b"v" * (64 * KIB)})
    snap("commit", "spare", "other:2")
    # Killed, so that its journal has records.
    snap("create", "killed", "--from", "base:1")
    with snap.export("killed") as server:
        with Client(server.uri) as h:
            for i in range(4):
                h.pwrite(bytes([i + 1]) * PAGE, i * MIB)
                h.flush()
        server.stop(signal.SIGKILL, code=-9)
    return snap


@pytest.fixture
def full(template, snap):
    """A copy of that store."""
    sh("cp", "-a", "--sparse=always", template.store, snap.store)
    snap.base = template.base
    return snap


def layer_of(snap, name):
    image = {t: i for i in snap.json("images")["images"] for t in i["tags"]}[name]
    return snap.store / "blobs/sha256" / image["layers"][-1]["digest"][7:]


def delta_of(snap, volume):
    return snap.store / "deltas" / snap.volumes()[volume]["delta"]


def test_a_store_that_is_whole_has_no_findings_and_is_left_as_it_is(full):
    before = files(full)
    assert check(full, OK)["findings"] == []
    report = check(full, OK, command="scrub")
    assert report["findings"] == [] and report["bytes_read"] > 256 * KIB
    assert (report["images"], report["volumes"]) == (3, 3)
    assert "all is well" in full("check")
    assert files(full) == before


def test_a_flipped_byte_in_each_kind_of_file_is_found(full):
    web, killed = delta_of(full, "web"), delta_of(full, "killed")
    sealed = full.store / "deltas" / full.volumes()["web"]["sealed"][0]
    manifest = {t: i for i in full.json("images")["images"] for t in i["tags"]}["base:1"]
    layer = layer_of(full, "base:1")
    size = layer.stat().st_size
    places = {
        "index.json": [full.store / "index.json", (150, 200)],
        "oci-layout": [full.store / "oci-layout", (3, 25)],
        "volume.json": [full.store / "volumes/web/volume.json", (60, 200)],
        "manifest": [full.store / "blobs/sha256" / manifest["manifest"][7:], (20, 200)],
        "config": [full.store / "blobs/sha256" / manifest["id"][7:], (20, 200)],
        "layer": [layer, (100, size - 9000, size - 4200, size - 100)],
        "map at rest": [web / "map", (0, 80, PAGE + 30, PAGE + 100)],
        "map, sealed": [sealed / "map", (0, 80, PAGE + 30, PAGE + 100)],
        "journal": [killed / "journal", (PAGE + 10, PAGE + 100)],
    }
    for name, (path, offsets) in places.items():
        for offset in offsets:
            flip(path, offset)
            report = check(full, DAMAGE)
            found = kinds(report, "damage")
            assert any(path.name in json.dumps(f) or path.parent.name in json.dumps(f) for f in found.values()), (
                name, offset, found)
            flip(path, offset)
    path = full.store / "format"
    flip(path, 3)
    full.fails("check", code=DAMAGE, says="format")
    flip(path, 3)
    assert check(full, OK)["findings"] == []


def test_files_that_are_missing_or_cut_short_are_found(full):
    web = delta_of(full, "web")
    sealed = full.store / "deltas" / full.volumes()["web"]["sealed"][0]
    layer = layer_of(full, "base:1")
    for path in (layer, web / "map", web / "data", web / "journal", sealed / "map", sealed / "data",
                 full.store / "volumes/web/volume.json", full.store / "index.json"):
        good = path.read_bytes()
        overwrite(path, good[:PAGE if path.name == "data" else len(good) // 2])
        if path.name == "journal":  # a closed delta's may be cut: it says nothing that counts
            full("check")
        else:
            check(full, DAMAGE)
        path.unlink()
        if path.name == "index.json":
            full.fails("check", code=DAMAGE, says="index.json")
        else:
            check(full, DAMAGE)
        overwrite(path, good)
        path.chmod(0o444 if path.parent.name == "sha256" else 0o600)
    assert check(full, OK)["findings"] == []


def test_what_is_lost_is_named_by_volume_offset_and_length(full):
    layer = layer_of(full, "base:1")
    data = layer.read_bytes()
    # base:1 has data at its start and at 4 MiB; raw chunks lie in the layer as they are.
    at = data.index(full.base[4 * MIB:4 * MIB + PAGE])
    flip(layer, at)
    assert check(full, OK)["findings"] == [], "check does not read the stored bytes"
    found = kinds(check(full, DAMAGE, command="scrub"), "damage")
    assert list(found) == ["layer sha256:" + layer.name]
    finding = found["layer sha256:" + layer.name]
    assert set(finding["users"]) == {"image base:1", "volume web", "snapshot web@one", "volume killed"}
    lost = {(r["object"], r["offset"], r["length"]) for r in finding["lost"]}
    assert lost == {(name, 4 * MIB, 64 * KIB)
                    for name in ("image base:1", "volume web", "snapshot web@one", "volume killed")}
    flip(layer, at)
    # In the first chunk, of which the volume killed has the first block itself.
    flip(layer, PAGE)
    finding = kinds(check(full, DAMAGE, command="scrub"), "damage")["layer sha256:" + layer.name]
    lost = {(r["object"], r["offset"], r["length"]) for r in finding["lost"]}
    assert ("image base:1", 0, 64 * KIB) in lost and ("volume killed", PAGE, 60 * KIB) in lost
    assert "lost: volume killed, offset 4096, length 61440" in full("scrub", code=DAMAGE)
    flip(layer, PAGE)
    # A map that is damaged may stand for any block.
    flip(delta_of(full, "web") / "map", 100)
    finding = next(iter(kinds(check(full, DAMAGE), "damage").values()))
    assert finding["lost"] == [{"object": "volume web", "offset": 0, "length": 8 * MIB}]


def test_a_layer_whose_table_is_damaged_names_what_it_stood_for(base):
    layer = layer_of(base, "base:1")
    # The table's one slice lies before the index and the footer, a page each.
    flip(layer, layer.stat().st_size - 3 * PAGE + 10)
    finding = kinds(check(base, DAMAGE), "damage")["layer sha256:" + layer.name]
    assert finding["lost"] == [{"object": "image base:1", "offset": 0, "length": 8 * MIB}]


def test_foreign_things_in_the_stores_folders_are_named_and_left_alone(full, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("not ours")
    web = delta_of(full, "web")
    layer = layer_of(full, "other:1")
    places = [full.store / "garbage", full.store / "blobs/garbage", full.store / "blobs/sha256/garbage",
              full.store / "volumes/Garbage", full.store / "volumes/web/garbage", full.store / "deltas/garbage",
              web / "garbage", full.store / "blobs/sha256" / ("0" * 64), full.store / "deltas" / ("0" * 36)]
    for place in places:
        place.symlink_to(secret)
    moved = tmp_path / "moved"
    shutil.move(layer, moved)
    layer.symlink_to(moved)  # the right bytes, by a link that may lead anywhere
    report = check(full, DAMAGE, "--repair")
    found = set(kinds(report, "damage"))
    for place in [*places, layer]:
        assert any(str(place.relative_to(full.store)) in name for name in found), (place, found)
        assert place.is_symlink()
    assert secret.read_text() == "not ours" and kinds(report, "leak") == {}
    assert full.content("volume:spare") == b"s" * PAGE + noise(MIB, 50)[PAGE:]


def forge(snap, name, change):
    """Points `name` at an image whose config was changed by `change`, all digests right."""
    image = {t: i for i in snap.json("images")["images"] for t in i["tags"]}["base:1"]
    folder = snap.store / "blobs/sha256"
    config = json.loads((folder / image["id"][7:]).read_text())
    change(config)
    manifest = json.loads((folder / image["manifest"][7:]).read_text())
    for part, text in (("config", json.dumps(config)), ("manifest", None)):
        if text is None:
            manifest["config"] = {**manifest["config"], "digest": digest, "size": size}
            text = json.dumps(manifest)
        digest, size = "sha256:" + hashlib.sha256(text.encode()).hexdigest(), len(text)
        (folder / digest[7:]).write_text(text)
    index = json.loads((snap.store / "index.json").read_text())
    index["manifests"].append({"digest": digest, "mediaType": manifest["mediaType"], "size": size,
                               "annotations": {"org.opencontainers.image.ref.name": name}})
    (snap.store / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("lie", ["size", "content", "layers"])
def test_a_config_that_lies_is_damage(full, lie):
    def change(config):
        if lie == "size":
            config["config"]["Labels"]["dev.snapctl.size"] = str(64 * MIB)
        elif lie == "content":
            config["rootfs"]["diff_ids"] = ["sha256:" + "1" * 64]
        else:
            config["rootfs"]["diff_ids"] *= 2
    forge(full, "lie:1", change)
    report = check(full, DAMAGE)
    assert len(kinds(report, "damage")) == 1, report["findings"]
    assert "lie:1" in json.dumps(report["findings"])
    # The rest is looked at all the same.
    flip(delta_of(full, "web") / "map", 100)
    assert len(kinds(check(full, DAMAGE), "damage")) == 2


def test_leaks_are_told_and_reclaimed_and_nothing_else_is_touched(full):
    before = files(full)
    web = delta_of(full, "web")
    shutil.copytree(web, full.store / "deltas/00000000-0000-4000-8000-000000000000")
    data = noise(8 * KIB, 9)
    name = hashlib.sha256(data).hexdigest()
    overwrite(full.store / "blobs/sha256" / name, data)
    left = full.store / "tmp/11111111-0000-4000-8000-000000000000"
    left.mkdir()
    (left / "lock").write_bytes(b"")
    (left / "layer").write_bytes(data)
    (full.store / ".index.json.0.tmp").write_bytes(b"{")
    (full.store / "volumes/web/.volume.json.0.tmp").write_bytes(b"{")
    (full.store / "volumes/gone").mkdir()
    (full.store / "volumes/gone/lock").write_bytes(b"")
    (full.store / "volumes/gone/removed.json").write_bytes(b"")
    with_leaks = files(full)
    report = check(full, LEAKS)
    leaks = kinds(report, "leak")
    assert kinds(report, "damage") == {} and report["leaks_known"]
    assert set(leaks) == {
        "delta 00000000-0000-4000-8000-000000000000", "blob sha256:" + name, f"'tmp/{left.name}'", "'.index.json.0.tmp'",
        "'volumes/web/.volume.json.0.tmp'", "'volumes/gone'"}
    assert files(full) == with_leaks, "check without --repair changes nothing"
    assert "--repair" in full.err
    report = check(full, OK, "--repair")
    assert all(f["reclaimed"] for f in kinds(report, "leak").values()) and len(kinds(report, "leak")) == 6
    assert files(full) == before
    assert not (full.store / "volumes/gone").exists()
    assert check(full, OK)["findings"] == []


def test_a_volume_whose_record_is_gone_is_damage_and_keeps_its_data(full):
    web, content = delta_of(full, "web"), full.content("volume:web")
    record = full.store / "volumes/web/volume.json"
    text = record.read_bytes()
    record.unlink()
    before = files(full)
    for args in ((), ("--repair",)):
        found = kinds(check(full, DAMAGE, *args), "damage")
        assert list(found) == ["volume web"]
        assert web.name in found["volume web"]["what"] and str(record) in found["volume web"]["what"]
    full("prune", "--yes")
    assert "volume 'web' has lost its record" in full.err
    full.fails("create", "web", "--size", "1M", code=DAMAGE, says="lost its record")
    assert files(full) == before
    full("rm", "--yes", "killed")
    assert "lost its record" in full.err
    record.write_bytes(text)
    assert full.content("volume:web") == content
    full("prune", "--yes")
    assert check(full, OK)["findings"] == []


def test_beside_damage_of_a_root_nothing_is_reclaimed(full):
    data = noise(8 * KIB, 9)
    overwrite(full.store / "blobs/sha256" / hashlib.sha256(data).hexdigest(), data)
    flip(full.store / "volumes/web/volume.json", 100)
    before = files(full)
    report = check(full, DAMAGE, "--repair")
    assert not report["leaks_known"] and kinds(report, "leak") == {}
    assert files(full) == before


def test_check_while_a_server_writes_finds_nothing_and_disturbs_nothing(full):
    with full.export("web") as server, Client(server.uri) as h:
        for i in range(40):
            h.pwrite(bytes([i]) * (64 * KIB), i % 8 * MIB)
            h.flush()
            if i % 8 == 0:
                assert check(full, OK)["findings"] == []
        assert check(full, OK, command="scrub")["findings"] == []
        # What is damaged is found beside it, and in it as far as it can be looked at.
        flip(layer_of(full, "other:1"), 100)
        flip(delta_of(full, "web") / "map", 100)
        found = kinds(check(full, DAMAGE), "damage")
        assert len(found) == 2 and any(delta_of(full, "web").name in name for name in found)
        flip(delta_of(full, "web") / "map", 100)
        assert bytes(h.pread(64 * KIB, 7 * MIB)) == bytes([39]) * (64 * KIB)


def test_a_volume_that_is_renamed_beside_a_scrub_is_not_damaged(full):
    scrub = full.popen("scrub", "--rate", "400K", "--json", stdout=subprocess.PIPE)
    time.sleep(0.4)
    full("rename", "web", "web2")
    full("create", "web", "--size", "1M")
    out, _ = scrub.communicate(timeout=60)
    assert scrub.returncode == OK and json.loads(out)["findings"] == []


def test_a_store_that_is_not_there_is_not_made(snap):
    snap.fails("check", code=4, says="no store")
    assert not snap.store.exists()


# ---- backup


def backed_up(full, tmp_path):
    return Snap(tmp_path / "copy", full.sockets)


def test_a_backup_is_a_store_with_the_same_images_and_volumes(full, tmp_path):
    report = full.json("backup", tmp_path / "copy")
    assert (report["images"], report["volumes"], report["failed"]) == (3, 3, [])
    copy = backed_up(full, tmp_path)
    images, kept, content = full.state()
    assert copy.state() == (images, kept, content)
    assert copy.content("volume:web@one") == full.content("volume:web@one")
    assert copy.json("history", "base:1") == full.json("history", "base:1")
    assert check(copy, OK)["findings"] == [] and check(copy, OK, command="scrub")["findings"] == []
    assert check(full, OK)["findings"] == []
    # It works as a store: a volume is served, committed and removed there, and the source does not notice.
    copy.write("web", {0: b"x" * PAGE})
    copy("commit", "web", "new:1")
    copy("rm", "--yes", "spare")
    assert full.state() == (images, kept, content)


def test_a_second_backup_copies_what_is_new_and_nothing_else(full, tmp_path):
    full.json("backup", tmp_path / "copy")
    copy = backed_up(full, tmp_path)
    report = full.json("backup", tmp_path / "copy")
    assert (report["blobs_copied"], report["deltas_copied"], report["bytes_copied"]) == (0, 0, 0)
    before = {p: p.stat().st_ino for p in (copy.store / "blobs/sha256").iterdir()}
    full.write("web", {3 * MIB: b"z" * (128 * KIB)})
    full.image("other:1", noise(MIB, 51))  # the tag moves
    full("rename", "spare", "spare2")
    report = full.json("backup", tmp_path / "copy")
    assert report["deltas_copied"] == 1 and report["blobs_copied"] == 3
    assert report["bytes_copied"] < 2 * MIB
    assert {p: p.stat().st_ino for p in before if p.exists()} == before
    assert copy.content("volume:web") == full.content("volume:web")
    assert copy.content("image:other:1") == noise(MIB, 51)
    assert volumes(copy) == {"web", "killed", "spare2"}
    assert check(copy, OK)["findings"] == []
    # What the source lacks stays, until it is asked for.
    full("rm", "--yes", "killed")
    full("rmi", "--yes", "other:1")
    full.json("backup", tmp_path / "copy")
    assert "killed" in volumes(copy) and "other:1" in copy.images()
    assert full.json("backup", "--delete", tmp_path / "copy")["removed"] == ["killed"]
    assert volumes(copy) == volumes(full) and copy.images() == full.images()
    assert set(blobs(copy)) == set(blobs(full))



def test_a_store_is_not_backed_up_to_itself_by_whatever_path(snap, tmp_path):
    snap("init")
    (tmp_path / "link").symlink_to(snap.store)
    before = {p.name: p.read_bytes() for p in snap.store.iterdir() if p.is_file()}
    for path in (snap.store, tmp_path / "link", str(snap.store) + "/."):
        snap.fails("backup", path, code=64, says=["the store itself", "give a new or empty directory"])
    assert {p.name: p.read_bytes() for p in snap.store.iterdir() if p.is_file()} == before
    snap.image("base:1", b"b" * MIB)  # it is still a store


def test_a_backup_goes_on_by_whatever_path_its_store_is_named(snap, tmp_path):
    snap.image("base:1", b"b" * MIB)
    (tmp_path / "link").symlink_to(snap.store)
    for path in (tmp_path / "link", tmp_path / "link/../link", snap.store):
        Snap(path, snap.sockets)("backup", tmp_path / "copy")
    marker = tmp_path / "copy/backup"
    assert json.loads(marker.read_text()) == {"source": str(snap.store)}
    marker.write_text(json.dumps({"source": str(tmp_path / "link")}))  # as releases before had it
    snap("backup", tmp_path / "copy")
    marker.write_text(json.dumps({"source": str(tmp_path / "elsewhere")}))
    snap.fails("backup", tmp_path / "copy", code=64, says="it is a backup of the store")


def test_a_backup_of_a_volume_that_is_being_written_to_has_what_was_flushed(snap, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for i in range(20):
        (tree / f"file{i}").write_bytes(noise(20 * KIB, i))
    snap("import", tree, "fs:1")
    snap("create", "v", "--from", "fs:1")
    snap("create", "raw", "--size", "8M")
    copy = Snap(tmp_path / "copy", snap.sockets)
    # A writer that goes on from block to block, flushing each: what it has flushed before is to be in the copy.
    code = ("import nbd,sys\nh=nbd.NBD(); h.connect_uri(sys.argv[1])\n"
            "for i in range(1, 1 << 20):\n"
            "    h.pwrite(i.to_bytes(8,'little')*512, i % 2048 * 4096); h.flush(); print(i, flush=True)\n")
    with snap.export("v", "raw") as server:
        with Client(server.uris[0]) as h:
            h.pwrite(h.pread(PAGE, 0), 0)  # the super block, as it is: a delta that is not empty
            h.flush()
        writer = subprocess.Popen(["/usr/bin/python3", "-c", code, server.uris[1]], stdout=subprocess.PIPE, text=True)
        flushed = 0
        for _ in range(3):
            while flushed < 50 or flushed % 50:
                flushed = int(writer.stdout.readline())
            report = snap.json("backup", copy.store)
            assert report["failed"] == []
            for line in iter(writer.stdout.readline, ""):  # what was printed meanwhile
                later = int(line)
                if later % 50 == 0:
                    break
            content = copy.content("volume:raw")
            values = [int.from_bytes(content[b * PAGE:b * PAGE + 8], "little") for b in range(2048)]
            newest = max(values)
            # The writer flushes each before the next: so all up to the newest are there, and what was flushed before.
            assert newest >= flushed, (newest, flushed)
            for i in range(max(1, newest - 2047), newest + 1):
                assert values[i % 2048] == i, (i, newest)
            flushed = later + 1
            assert copy.content("volume:v") == snap.content("image:fs:1")
        writer.kill()
        writer.wait()
        assert bytes(Client(server.uris[1]).handle.pread(8, PAGE)) != bytes(8), "the volume is still served"
    copy("dump", "v", tmp_path / "disk.raw")
    sh("e2fsck", "-fn", tmp_path / "disk.raw")
    assert check(copy, OK)["findings"] == []


def test_a_backup_that_is_killed_is_no_store_and_goes_on(full, tmp_path):
    full.image("big:1", noise(24 * MIB, 7))
    copy = backed_up(full, tmp_path)
    layers = copy.store / "blobs/sha256"
    kept = 0
    for i in range(6):
        process = full.popen("backup", copy.store, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: (layers.exists() and len(list(layers.iterdir())) > kept) or process.poll() is not None)
        time.sleep(0.005 * i)
        process.kill()
        if process.wait() == 0:
            break
        kept = len(list(layers.iterdir()))
        if (copy.store / "format").exists() and b"incompat 0000000000000001" in (copy.store / "format").read_bytes():
            copy.fails("ls", code=1, says="not whole")
            copy.fails("export", "web", code=1, says="not whole")
    assert kept > 0, "it was never killed half way"
    inodes = {p.name: p.stat().st_ino for p in layers.iterdir()}
    full("backup", copy.store)
    assert {n: i for n, i in inodes.items() if (layers / n).stat().st_ino == i} == inodes, "copied again"
    assert copy.state() == full.state() and check(copy, OK)["findings"] == []


def test_a_later_backup_that_is_killed_leaves_the_earlier_one(full, tmp_path):
    full.json("backup", tmp_path / "copy")
    copy = backed_up(full, tmp_path)
    before = copy.state()
    full.image("big:1", noise(24 * MIB, 7))
    process = full.popen("backup", copy.store, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: any((copy.store / "tmp").rglob("blob")) or process.poll() is not None)
    process.kill()
    assert process.wait() == -9
    assert copy.state() == before
    full("backup", copy.store)
    assert copy.state() == full.state() and check(copy, OK)["findings"] == []


def test_damage_in_the_source_is_named_and_the_rest_is_backed_up(full, tmp_path):
    flip(layer_of(full, "other:1"), PAGE + 10)
    flip(full.store / "volumes/killed/volume.json", 100)
    report = full.json("backup", tmp_path / "copy", code=DAMAGE)
    copy = backed_up(full, tmp_path)
    assert set(copy.images()) == {"base:1"} and volumes(copy) == {"web"}
    assert len(report["failed"]) == 4, report["failed"]
    assert copy.content("volume:web") == full.content("volume:web")
    assert check(copy, OK, command="scrub")["findings"] == []


@pytest.mark.parametrize("how", ["renamed and damaged", "lost"])
def test_a_backup_of_a_store_with_a_damaged_or_lost_record_removes_no_volume(full, tmp_path, how):
    full("backup", tmp_path / "copy")
    copy = backed_up(full, tmp_path)
    content, removed = full.content("volume:web"), full.content("volume:spare")
    full("rm", "--yes", "spare")
    if how == "lost":
        (full.store / "volumes/web/volume.json").unlink()
    else:
        full("rename", "web", "site")
        record = full.store / "volumes/site/volume.json"
        overwrite(record, record.read_bytes()[:100])
    images = copy.images()
    report = full.json("backup", "--delete", copy.store, code=DAMAGE)
    assert report["removed"] == [] and any("no volume was removed" in why for why in report["failed"]), report
    assert any("lost its record" in why for why in report["failed"]) == (how == "lost")
    assert volumes(copy) == {"web", "spare", "killed"} and copy.images() == images
    assert copy.content("volume:web") == content and copy.content("volume:spare") == removed
    # A backup without --delete says that it has not all, too.
    full("backup", copy.store, code=DAMAGE)


def test_a_backup_again_mends_copies_that_are_damaged(full, tmp_path):
    full("backup", tmp_path / "copy")
    copy = backed_up(full, tmp_path)
    good = files(copy)
    sealed = copy.store / "deltas" / copy.volumes()["web"]["sealed"][0]
    layer = layer_of(copy, "base:1")
    tag = next(e for e in json.loads(good["index.json"])["manifests"] if "base:1" in e["annotations"].values())
    manifest = copy.store / "blobs/sha256" / tag["digest"][7:]
    for path in (layer, manifest, sealed / "data", sealed / "map"):
        overwrite(path, path.read_bytes()[:PAGE if path != manifest else 10])
    flip(copy.store / "deltas" / copy.volumes()["killed"]["sealed"][0] / "map", PAGE + 20)
    check(copy, DAMAGE)
    report = full.json("backup", copy.store)
    assert (report["blobs_copied"], report["deltas_copied"]) == (2, 2), report
    assert files(copy) == good and check(copy, OK, command="scrub")["findings"] == []
    assert layer.stat().st_mode & 0o777 == 0o444
    # A whole copy is not replaced by what is damaged in the source.
    whole = layer_of(full, "base:1").read_bytes()
    overwrite(layer_of(full, "base:1"), b"cut short")
    full("backup", copy.store, code=DAMAGE)  # the volumes above it cannot be frozen
    assert files(copy) == good
    overwrite(layer_of(full, "base:1"), whole)
    # A delta of the backup's own holds nothing and is made anew.
    shutil.rmtree(delta_of(copy, "web"))
    full("backup", copy.store)
    assert check(copy, OK)["findings"] == [] and len(volumes(copy)) == 3


def refuses_what_was_written_in_it(full, copy):
    """A run again keeps what was written to web in the backup, until it is given up there."""
    full.fails("backup", copy.store, code=1, says=["web", "written to"])
    assert copy.content("volume:web")[:4096] == b"mine" * 1024
    copy("reset", "--yes", "web")
    full("backup", copy.store)
    assert copy.content("volume:web") == full.content("volume:web")


def test_a_backup_of_a_store_that_did_not_change_says_that_a_volume_was_written_to_there(full, tmp_path):
    full("backup", tmp_path / "copy")
    copy = backed_up(full, tmp_path)
    copy.write("web", {0: b"mine" * 1024})
    refuses_what_was_written_in_it(full, copy)


def test_a_backup_does_not_overwrite_what_is_none_or_was_written_to(full, tmp_path):
    other = Snap(tmp_path / "other", full.sockets)
    other("create", "own", "--size", "1M")
    for target in (other.store, full.store):
        full.fails("backup", target, code=64, says="back up")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/mine").write_text("x")
    full.fails("backup", tmp_path / "files", code=64, says="mine")
    full("backup", tmp_path / "copy")
    copy = backed_up(full, tmp_path)
    other.fails("backup", copy.store, code=64, says="a backup of")
    copy.write("web", {0: b"mine" * 1024})
    full.write("web", {0: b"theirs!!" * 512})
    refuses_what_was_written_in_it(full, copy)


def test_a_volume_that_is_held_by_who_takes_no_commands_is_busy_and_the_rest_is_backed_up(full, tmp_path):
    with open(full.store / "volumes/web/lock", "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        full.fails("backup", tmp_path / "copy", code=5, says="web")
    assert volumes(backed_up(full, tmp_path)) == {"spare", "killed"}
