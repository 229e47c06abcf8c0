"""What only nbd has: servers that die, are replaced, or never come back; connections; named devices."""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest
from conftest import MIB, TOP, VIA, check, finish, fio, make, sh, sums, wait_for
from file_systems import fill, mounted

assert VIA == "nbd", "these run in a guest with nbd: tests/attach/in_guest"


def kill_server(snap, device):
    pid = snap.server_of(device)["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}/exe"), "the server to die")
    return pid


def connections(device):
    """How many sockets the kernel has to the device's server, by the server's own count."""
    return len([c for c in device["clients"] if c["name"] == "block device"])


def test_the_kernel_knows_the_server_and_the_connections(snap):
    snap("create", "v", "--size", "8M")
    device = snap.attach("v", "/dev/nbd5", "--connections", "4")
    assert device == "/dev/nbd5"
    assert pathlib.Path("/sys/block/nbd5/backend").read_text().strip() == f"snapctl:{snap.store} v"
    wait_for(lambda: connections(snap.server_of(device)) == 4, "four connections")
    snap("detach", "v")


@pytest.mark.parametrize("server", ["own", "serve"])
def test_killed_under_load_it_goes_on_with_another(snap, point, server):
    snap("create", "v", "--size", "200M")
    serve = None
    if server == "serve":
        with snap.serve() as serve:
            survive_kills(snap, point, serve)
            snap("detach", "v")
    else:
        survive_kills(snap, point, None)
        snap("detach", "v")


def survive_kills(snap, point, serve):
    device = snap.attach("v", "--connections", "2", "--timeout", "5")
    make("ext4", device)
    with mounted(device, point):
        file = point / "fio"
        with open(file, "wb") as f:
            f.truncate(48 * MIB)
        load = fio(file, "--rate=8m")
        for _ in range(3):
            time.sleep(1)
            kill_server(snap, device)
            time.sleep(0.5)
            if serve:
                serve.process.wait()
                serve.process.stdout.close()
                serve.start()  # as systemd would: it finds by itself what it has to reconnect
            else:
                assert snap("attach", "--reconnect", "v") == device
        finish(load)
        fill(point, 7)
        before = sums(point)
    check("ext4", device)
    with mounted(device, point):
        assert sums(point) == before


def test_a_volume_that_has_grown_without_its_server_is_reconnected(snap):
    snap("create", "v", "--size", "8M")
    device = snap.attach("v")
    kill_server(snap, device)
    with snap.serve():
        snap("resize", "v", "12M")
        assert snap("attach", "--reconnect", "v") == device
        assert sh("blockdev", "--getsize64", device).strip() == str(12 * MIB)
        snap("detach", "v")
    snap("doctor", "--fix")  # what the killed one left
    (snap.run / "v.log").unlink()


def test_a_planned_restart_under_load(snap, point):
    snap("create", "v", "--size", "200M")
    device = snap.attach("v")
    load = fio(device, "--rate=8m")
    first = snap.server_of(device)["pid"]
    for _ in range(3):
        time.sleep(0.7)
        snap("restart", "v")
    assert snap.server_of(device)["pid"] != first
    finish(load)
    snap("detach", "v")


def test_serve_stopped_and_started_under_load(snap):
    """As systemctl restart: SIGTERM is no I/O error to who is on the device."""
    snap("create", "v", "--size", "64M")
    with snap.serve() as serve:
        device = snap.attach("v")
        load = fio(device, "--rate=8m")
        for _ in range(3):
            time.sleep(0.7)
            serve.stop()
            serve.start()
        finish(load)
        snap("restart", "v", code=5, says="was not started by attach")
        snap("detach", "v")


def test_a_server_that_never_comes_back_is_an_error_in_time(snap):
    snap("create", "v", "--size", "8M")
    device = snap.attach("v", "--timeout", "5", "--dead-timeout", "3")
    kill_server(snap, device)
    begin = time.monotonic()
    with pytest.raises(OSError):
        with open(device, "rb", buffering=0) as f:
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            f.read(4096)
    assert time.monotonic() - begin < 25
    snap("detach", "-f", "v")
    snap("doctor", "--fix")
    snap.attach("v")
    snap("detach", "v")


def test_a_stuck_server_is_given_up(snap):
    """Requests without an answer go to other connections, and in the end fail; nothing hangs for ever."""
    snap("create", "v", "--size", "8M")
    device = snap.attach("v", "--timeout", "2", "--dead-timeout", "2")
    pid = snap.server_of(device)["pid"]
    os.kill(pid, signal.SIGSTOP)
    # Each of its threads stops when it is scheduled next: one may still answer.
    wait_for(lambda: all(stat.read_text().rpartition(")")[2].split()[0] == "T"
                         for stat in pathlib.Path(f"/proc/{pid}/task").glob("*/stat")), "the server stops")
    begin = time.monotonic()
    with pytest.raises(OSError):
        with open(device, "rb", buffering=0) as f:
            f.seek(3 * MIB)  # what no one who looks for partitions has read already
            f.read(4096)
    assert time.monotonic() - begin < 60
    os.kill(pid, signal.SIGCONT)
    snap("detach", "-f", "v")


@pytest.mark.parametrize("reconnected", [False, True])
def test_a_slow_server_gets_its_connections_back(snap, reconnected):
    """What the kernel has given up for lost in the meantime goes on by itself, and no old write comes late."""
    snap("create", "v", "--size", "64M")
    device = snap.attach("v", "--connections", "2", "--timeout", "1", "--dead-timeout", "30")
    snap("resize", "v", "80M")
    if reconnected:  # it has lost nothing, and takes nothing
        assert snap("attach", "--reconnect", "v") == device
    load = fio(device, "--rate=8m")
    pid = snap.server_of(device)["pid"]
    for _ in range(2):
        time.sleep(1)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(5)
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: connections(snap.server_of(device)) == 2, "both connections")
    finish(load)
    assert snap.server_of(device)["pid"] == pid
    snap("detach", "v")


@pytest.mark.parametrize("server", ["own", "serve"])
def test_an_image_goes_on_when_its_tag_has_moved(snap, tmp_path, server):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(os.urandom(8 * MIB))
    second.write_bytes(os.urandom(8 * MIB))
    snap("import", first, "a:1")
    with snap.serve() if server == "serve" else contextlib.nullcontext() as serve:
        device = snap.attach("a:1", "--dead-timeout", "20")
        snap("import", second, "a:1")
        if serve:
            serve.stop()
            serve.start()
            wait_for(lambda: connections(snap.server_of(device)) > 0, "it to be reconnected")
        else:
            pid = snap.server_of(device)["pid"]
            snap("restart", device)
            assert snap.server_of(device)["pid"] != pid
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as f:
            f.write("3")
        assert pathlib.Path(device).read_bytes() == first.read_bytes()
        if not serve:
            kill_server(snap, device)
            assert snap("attach", "--reconnect", device) == device
            assert pathlib.Path(device).read_bytes() == first.read_bytes()
        snap("detach", device)
    snap("doctor", "--fix")  # what the killed one left
    for log in snap.run.glob("*.log"):
        log.unlink()


def test_disconnected_behind_our_back(snap):
    snap("create", "v", "--size", "8M")
    device = snap.attach("v")
    sh("nbd-client", "-d", device)
    wait_for(lambda: not os.path.exists(f"/sys/block/{device[5:]}/pid"), "the device to go")
    # Its server sees it, and has nothing left to do.
    wait_for(lambda: not snap.servers(), "the server to end")
    snap("detach", "v", code=4, says="not attached")
    snap("attach", "--reconnect", "v", code=4, says="not attached")
    snap.attach("v")
    snap("detach", "v")


def test_given_up_by_the_kernel_while_no_server_ran(snap):
    snap("create", "v", "--size", "8M")
    device = snap.attach("v")
    kill_server(snap, device)
    sh("nbd-client", "-d", device)
    wait_for(lambda: not os.path.exists(f"/sys/block/{device[5:]}/pid"), "the device to go")
    snap("attach", "--reconnect", "v", code=4, says="no longer connected")
    assert device in "".join(f["trouble"] for f in snap.json("doctor", code=3)["findings"])
    snap("detach", "v")
    snap("doctor", "--fix")
    (snap.run / "v.log").unlink()


def test_a_device_of_ours_without_a_record_is_found(snap):
    snap("create", "v", "--size", "8M")
    device = snap.attach("v")
    (snap.run / "attached" / f"{device[5:]}.json").unlink()
    found = snap.json("doctor", code=3)["findings"]
    assert [f["what"] for f in found] == [device]
    pid = snap.servers()[0]["pid"]
    snap("doctor", "--fix")
    assert not os.path.exists(f"/sys/block/{device[5:]}/pid")
    os.kill(pid, signal.SIGTERM)
    wait_for(lambda: not snap.servers(), "the server to go")
    (snap.run / "v.log").unlink()  # nobody knew that it was the server of a device


def test_partitions_appear_and_are_mounted(snap, point, tmp_path):
    snap("create", "v", "--size", "64M")
    device = snap.attach("v")
    sh("sfdisk", "-q", device, input="label: gpt\nsize=20M\nsize=30M\n")
    wait_for(lambda: os.path.exists(device + "p2"), "the partitions")
    make("ext4", device + "p2")
    with mounted(device + "p2", point):
        fill(point, 2)
        before = sums(point)
        snap("detach", "v", code=5, says=["mounted on", str(point)])
    snap("detach", "v")
    snap("commit", "v", "parts:1")
    snap.mount("v", point, "--partition", "2")
    assert sums(point) == before
    snap("umount", point)
    snap("mount", "v", point, "--via", VIA, code=64, says="--partition")
    assert not snap.servers()


@pytest.fixture
def udev():
    """The real udevd with our rule beside its own."""
    rules = pathlib.Path("/run/udev/rules.d")
    rules.mkdir(parents=True, exist_ok=True)
    shutil.copy(TOP / "tools/systemd/59-snapctl.rules", rules)
    daemon = subprocess.Popen(["/lib/systemd/systemd-udevd"], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: os.path.exists("/run/udev/control"), "udevd")
    yield lambda: sh("udevadm", "settle", "--timeout=60")
    daemon.terminate()
    assert "59-snapctl" not in daemon.communicate(timeout=30)[1], "udevd complains of the rule"


def test_udev_names_the_device_and_leaves_what_is_in_it_alone(snap, udev, point):
    snap("create", "v", "--size", "64M")
    device = snap.attach("v")
    udev()
    assert os.path.realpath("/dev/snapctl/v") == device
    sh("sfdisk", "-q", device, input="label: gpt\nsize=30M\n")
    wait_for(lambda: os.path.exists(device + "p1"), "the partition")
    make("ext4", device + "p1")
    sh("udevadm", "trigger", "--action=change", device + "p1")
    udev()
    assert os.path.realpath("/dev/snapctl/v-part1") == device + "p1"
    for links in ["by-uuid", "by-partuuid", "by-label"]:
        found = [os.path.realpath(p) for p in pathlib.Path("/dev/disk", links).glob("*")]
        assert not [p for p in found if p.startswith(device)], found
    with mounted("/dev/snapctl/v-part1", point):
        assert snap.server_of(device)["pid"]
    snap("detach", "v")
    udev()
    assert not os.path.lexists("/dev/snapctl/v")
    snap("commit", "v", "team/base:1")
    other = snap.attach("team/base:1")
    udev()
    assert os.path.realpath("/dev/snapctl/team/base:1") == other
    snap("detach", other)
    # By FUSE and loop as well.
    loop = snap.attach("v", "--via", "fuse")
    udev()
    assert os.path.realpath("/dev/snapctl/v") == loop
    snap("detach", "v")


def test_the_server_is_out_of_the_way_when_memory_is_short(snap):
    snap("create", "v", "--size", "8M")
    server = snap.server_of(snap.attach("v"))
    assert pathlib.Path(f"/proc/{server['pid']}/oom_score_adj").read_text().strip() == "-1000"
    flags = int(pathlib.Path(f"/proc/{server['pid']}/stat").read_text().rsplit(")", 1)[1].split()[6])
    assert flags & 0x00080000 and flags & 0x00100000, f"PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE are not in {flags:#x}"
    snap("detach", "v")


def test_memory_that_is_short_is_no_deadlock(snap, point):
    """Twice the guest's memory, dirtied through the device and its file system."""
    total = next(int(line.split()[1]) for line in open("/proc/meminfo", encoding="ascii") if line.startswith("MemTotal"))
    pieces = 2 * total // 1024
    snap("create", "v", "--size", (pieces + 200) * MIB)
    device = snap.attach("v")
    make("ext4", device)
    piece = os.urandom(MIB)
    with mounted(device, point):
        with open(point / "f", "wb") as f:
            for n in range(pieces):
                f.write(n.to_bytes(8, "little") + piece[8:])
        os.sync()
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as f:
            f.write("3")
        with open(point / "f", "rb") as f:
            for n in range(pieces):
                assert f.read(MIB) == n.to_bytes(8, "little") + piece[8:], n
    snap("detach", "v")

