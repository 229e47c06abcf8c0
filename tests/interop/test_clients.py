"""Other programs' NBD clients against an exported volume. Packages: libnbd-bin, python3-libnbd, qemu-utils,
fio, strace."""

import json
import os
import subprocess
import time

import nbd
import pytest

from conftest import MIB, SNAPCTL, sh


def nbdsh(uri, script):
    """What a script prints. Its interpreter is the first python3 of PATH, which must be the one with the binding."""
    return sh("env", "PATH=/usr/bin:/bin", "nbdsh", "-u", uri, "-c", script)


def test_nbdinfo_shows_the_export_and_its_size(uri):
    shown = json.loads(sh("nbdinfo", "--json", uri))["exports"][0]
    assert shown["export-size"] == 64 * MIB
    assert shown["can_flush"] and shown["can_fua"] and shown["can_trim"] and shown["can_zero"]
    assert shown["can_multi_conn"] and not shown["is_read_only"]
    assert "base:allocation" in shown["contexts"]


def test_nbdinfo_maps_the_hole_of_the_imported_disk(uri):
    extents = json.loads(sh("nbdinfo", "--map", "--json", uri))
    holes = [e for e in extents if e["type"] == 3]
    assert [(e["offset"], e["length"]) for e in holes] == [(16 * MIB, 32 * MIB)]


def test_nbdcopy_reads_the_disk_over_several_connections(uri, disk, tmp_path):
    sh("nbdcopy", "--connections=4", uri, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == disk.read_bytes()


def test_nbdcopy_writes_over_several_connections_and_qemu_img_compares(uri, disk, tmp_path):
    changed = bytearray(disk.read_bytes())
    changed[20 * MIB:21 * MIB] = b"x" * MIB
    changed[0:4096] = bytes(4096)
    (tmp_path / "changed").write_bytes(changed)
    sh("nbdcopy", "--connections=4", "--flush", tmp_path / "changed", uri)
    assert "identical" in sh("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, tmp_path / "changed")


def test_qemu_img_converts_out_of_the_volume(uri, disk, tmp_path):
    sh("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, tmp_path / "out.qcow2")
    sh("qemu-img", "compare", tmp_path / "out.qcow2", disk)


def test_qemu_io_writes_zeroes_discards_and_reads_patterns(uri):
    out = sh("qemu-io", "-f", "raw", "-c", "write -P 0x5a 1M 64k", "-c", "write -P 0xa5 1536k 513",
             "-c", "flush", "-c", "read -P 0x5a 1M 64k", "-c", "read -P 0xa5 1536k 513",
             "-c", "write -z 1M 32k", "-c", "read -P 0 1M 32k", "-c", "read -P 0x5a 1056k 32k",
             "-c", "discard 1M 64k", "-c", "write -f -P 0x11 1M 4k", "-c", "read -P 0x11 1M 4k", uri)
    assert "verification failed" not in out


def test_fio_verifies_what_it_wrote_at_random(uri, tmp_path):
    sh("fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bsrange=512-64k",
       "--iodepth=16", "--size=32M", "--verify=crc32c", "--verify_fatal=1", "--fsync=32", "--verify_state_save=0",
       f"--output={tmp_path / 'fio.out'}")


def test_nbdsh_writes_trims_and_reads_with_strict_mode_off(uri):
    script = """
h.set_strict_mode(0)
h.pwrite(b"snap" * 1024, 4096)
h.trim(65536, 8192)
h.zero(1048576, 131072, nbd.CMD_FLAG_FUA)
h.flush()
assert h.pread(4096, 4096) == b"snap" * 1024
assert h.pread(65536, 8192) == bytes(65536)
assert h.pread(1048576, 131072) == bytes(1048576)
try:
    h.pread(512, h.get_size())
    raise SystemExit("a read beyond the end was answered")
except nbd.Error as error:
    assert error.errno == "EINVAL", error
assert h.pread(4096, 4096) == b"snap" * 1024
"""
    nbdsh(uri, script)


def test_qemu_img_bench_reads_and_writes_with_flushes(uri):
    sh("qemu-img", "bench", "-f", "raw", "-c", "4000", "-d", "32", uri)
    sh("qemu-img", "bench", "-f", "raw", "-w", "-c", "2000", "-d", "32", "--flush-interval=64", uri)


def test_nbdfuse_shows_the_volume_as_a_file(uri, disk, tmp_path):
    mount = tmp_path / "mount"
    mount.mkdir()
    fuse = subprocess.Popen(["nbdfuse", mount / "file", uri])
    try:
        while not (mount / "file").exists():
            assert fuse.poll() is None, "nbdfuse ended"
            time.sleep(0.02)
        assert (mount / "file").read_bytes() == disk.read_bytes()
        with open(mount / "file", "r+b") as f:
            f.seek(20 * MIB + 100)
            f.write(b"through a file")
    finally:
        sh("fusermount3", "-u", mount)
        assert fuse.wait(timeout=30) == 0
    assert b"through a file" in nbdsh(uri, "print(h.pread(4096, 20971520))").encode()


def test_nbdkit_stands_between_client_and_server_as_a_proxy(uri, disk, tmp_path):
    copy = tmp_path / "copy"
    script = f"nbdcopy $uri {copy} && qemu-io -f raw -c 'write -P 7 17M 64k' -c flush -c 'read -P 7 17M 64k' $uri"
    sh("nbdkit", "-U", "-", "nbd", f"uri={uri}", "--run", script)
    assert copy.read_bytes() == disk.read_bytes()
    assert "7" in nbdsh(uri, "print(h.pread(1, 17825792)[0])")


def test_nbd_client_lists_the_exports(uri, tmp_path):
    assert "vol" in sh("nbd-client", "-l", "-unix", tmp_path / "s").split()


def test_checklist_12_cache_reads_ahead(uri, tmp_path):
    """What a layer's file has in the page cache, before and after (fincore of util-linux)."""
    layer = max((tmp_path / "store/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)

    def resident():
        return int(sh("fincore", "--bytes", "--noheadings", "--output", "RES", layer))

    with open(layer, "rb") as f:
        os.fsync(f.fileno())
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert resident() < 4 * MIB
    h = nbd.NBD()
    h.connect_uri(uri)
    h.cache(16 * MIB, 0)
    h.shutdown()
    assert resident() >= 16 * MIB


def test_checklist_20_fast_zero_is_fast_or_changes_nothing(uri):
    h = nbd.NBD()
    h.connect_uri(uri)
    before = h.pread(16 * MIB, 0)
    h.zero(8 * MIB, 4 * MIB, nbd.CMD_FLAG_FAST_ZERO)
    assert h.pread(16 * MIB, 0) == before[:4 * MIB] + bytes(8 * MIB) + before[12 * MIB:]
    with pytest.raises(nbd.Error, match="not supported"):  # parts of blocks have to be written
        h.zero(1000, 100, nbd.CMD_FLAG_FAST_ZERO)
    assert h.pread(4096, 0) == before[:4096]
    h.shutdown()


def test_checklist_21_replies_over_tcp_are_not_held_back(volume, tmp_path):
    """TCP_NODELAY, which only the server's own calls show."""
    trace = tmp_path / "trace"
    server = subprocess.Popen(["strace", "-D", "-f", "-qq", "-e", "trace=setsockopt", "-o", trace, SNAPCTL, "export", volume,
                               "--tcp", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    sh("nbdinfo", "--size", server.stdout.readline().strip())
    server.terminate()
    assert server.wait(timeout=30) == 0
    until = time.monotonic() + 20
    while "TCP_NODELAY, [1], 4) = 0" not in trace.read_text():  # the tracer may end a little later
        assert time.monotonic() < until, trace.read_text()
        time.sleep(0.05)
