"""What BLOCK_STATUS tells other programs of a volume. Packages: libnbd-bin, python3-libnbd, qemu-utils."""

import json
import threading

import nbd
from conftest import MIB, sh

DEPTH, DELTA = "qemu:allocation-depth", "snap:delta"


def written(uri):
    """4 KiB written and 64 KiB trimmed over the base's data; 4 KiB written into its hole."""
    h = nbd.NBD()
    h.connect_uri(uri)
    h.pwrite(b"a" * 4096, 1 * MIB)
    h.trim(65536, 2 * MIB)
    h.pwrite(b"b" * 4096, 20 * MIB)
    h.shutdown()


def extents(uri, context):
    """[(offset, length, type)] as nbdinfo prints them."""
    shown = json.loads(sh("nbdinfo", f"--map={context}", "--json", uri))
    return [(e["offset"], e["length"], e["type"]) for e in shown]


def test_checklist_10_nbdinfo_lists_every_context(uri):
    shown = json.loads(sh("nbdinfo", "--json", "--list", uri))["exports"][0]
    assert set(shown["contexts"]) == {"base:allocation", DEPTH, DELTA}


def test_checklist_10_nbdinfo_maps_the_depth_of_each_extent(uri):
    written(uri)
    assert extents(uri, DEPTH) == [
        (0, MIB, 2), (MIB, 4096, 1), (MIB + 4096, MIB - 4096, 2), (2 * MIB, 65536, 1),
        (2 * MIB + 65536, 14 * MIB - 65536, 2), (16 * MIB, 4 * MIB, 0), (20 * MIB, 4096, 1),
        (20 * MIB + 4096, 28 * MIB - 4096, 0), (48 * MIB, 16 * MIB, 2)]


def test_checklist_10_nbdinfo_maps_what_changed_since_the_image(uri):
    assert extents(uri, DELTA) == [(0, 64 * MIB, 0)]
    written(uri)
    changed = [(offset, length) for offset, length, flags in extents(uri, DELTA) if flags == 1]
    assert changed == [(MIB, 4096), (2 * MIB, 65536), (20 * MIB, 4096)]


def test_checklist_10_qemu_img_maps_data_and_holes(uri):
    written(uri)
    shown = json.loads(sh("qemu-img", "map", "--output=json", "-f", "raw", uri))
    data = [(e["start"], e["length"]) for e in shown if e["data"]]
    assert data == [(0, 2 * MIB), (2 * MIB + 65536, 14 * MIB - 65536), (20 * MIB, 4096),
                    (48 * MIB, 16 * MIB)]


def test_checklist_10_qemu_img_maps_the_delta_as_a_dirty_bitmap(uri):
    """qemu shows the bits of a context that it is given as its data flag, inverted."""
    written(uri)
    socket = uri.split("socket=")[1]
    image = f"driver=nbd,server.type=unix,server.path={socket},export=vol,x-dirty-bitmap={DELTA}"
    shown = json.loads(sh("qemu-img", "map", "--output=json", "--image-opts", image))
    assert [(e["start"], e["length"]) for e in shown if not e["data"]] == [
        (MIB, 4096), (2 * MIB, 65536), (20 * MIB, 4096)]


def test_checklist_10_an_answered_write_is_told_while_others_write(uri):
    """Each block's status is asked for right after its write was answered, while another connection
    writes without end; and a block that no one has written stays unchanged."""
    done = threading.Event()

    def disturb():
        h = nbd.NBD()
        h.connect_uri(uri)
        at = 0
        while not done.is_set():
            h.pwrite(b"d" * 65536, 32 * MIB + at)
            h.trim(65536, 32 * MIB + at)
            at = (at + 65536) % (8 * MIB)
        h.shutdown()

    noise = threading.Thread(target=disturb)
    noise.start()
    try:
        h = nbd.NBD()
        h.add_meta_context("base:allocation")
        h.add_meta_context(DELTA)
        h.connect_uri(uri)
        for i in range(500):
            at = 17 * MIB + i * 8192
            h.pwrite(b"w" * 4096, at)
            seen = {}
            h.block_status(8192, at, lambda name, _, list_, err, seen=seen: seen.update({name: list_}))
            assert seen["base:allocation"] == [4096, 0, 4096, 3]
            assert seen[DELTA] == [4096, 1, 4096, 0]
        h.shutdown()
    finally:
        done.set()
        noise.join()
