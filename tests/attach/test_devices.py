"""A volume or an image as a block device: file systems, changes while it is in use, and the way back."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest
from conftest import MIB, PROGRAM, VIA, attached_now, check, finish, fio, make, sh, sums, wait_for
from file_systems import fill, mounted


def size_of(device):
    return int(sh("blockdev", "--getsize64", device))


def allocated(snap, name):
    return next(v["allocated"] for v in snap.json("ls")["volumes"] if v["name"] == name)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_file_system_lives_on_it(snap, point, kind):
    snap("create", "v", "--size", "400M")
    device = snap.attach("v")
    assert size_of(device) == 400 * MIB
    assert sh("blockdev", "--getss", device).strip() == "512"
    make(kind, device)
    with mounted(device, point):
        fill(point, 1)
        (point / "big").write_bytes(os.urandom(40 * MIB))
        os.sync()
        full = allocated(snap, "v")
        (point / "big").unlink()
        os.sync()

        def trimmed():
            sh("fstrim", point)  # xfs passes over what its log has not let go of yet
            return allocated(snap, "v") < full - 35 * MIB
        wait_for(trimmed, "the space of what was removed and trimmed to be the store's again")
        before = sums(point)
    check(kind, device)
    snap("detach", "v")
    assert not pathlib.Path(device.replace("/dev/", "/sys/block/") + "/pid").exists()
    again = snap.attach("v")
    with mounted(again, point):
        assert sums(point) == before
    check(kind, again)
    snap("detach", again)


def test_what_fio_writes_fio_reads(snap):
    snap("create", "v", "--size", "64M")
    device = snap.attach("v", *(["--connections", "4"] if VIA == "nbd" else []))
    finish(fio(device, "--numjobs=1"))
    snap("detach", "v")


def test_requests_are_large(snap):
    snap("create", "v", "--size", "64M")
    device = snap.attach("v")
    queue = pathlib.Path("/sys/block") / device[5:] / "queue"
    assert int((queue / "max_sectors_kb").read_text()) >= 1024
    snap("detach", "v")


def test_a_reused_device_shows_nothing_of_its_predecessor(snap):
    snap("create", "a", "--size", "8M")
    snap("create", "b", "--size", "8M")
    device = snap.attach("a")
    pathlib.Path(device).write_bytes(b"a" * 8 * MIB)
    snap("detach", "a")
    assert snap.attach("b", device) == device
    assert pathlib.Path(device).read_bytes() == bytes(8 * MIB)
    snap("detach", "b")
    snap.attach("a", device)
    assert pathlib.Path(device).read_bytes() == b"a" * 8 * MIB
    snap("detach", "a")


def test_two_volumes_at_once_and_clones_beside_each_other(snap, tmp_path):
    for kind in ["ext4", "xfs"]:
        snap("create", f"{kind}-a", "--size", "400M")
        device = snap.attach(f"{kind}-a")
        make(kind, device)
        with mounted(device, tmp_path / "a"):
            fill(tmp_path / "a", 3)
        snap("detach", f"{kind}-a")
        snap("clone", f"{kind}-a", f"{kind}-b")
        snap.mount(f"{kind}-a", tmp_path / "a")
        snap.mount(f"{kind}-b", tmp_path / "b")
        assert sums(tmp_path / "a") == sums(tmp_path / "b")
        (tmp_path / "b" / "only").write_bytes(b"b")
        assert not (tmp_path / "a" / "only").exists()
        snap("umount", tmp_path / "a", tmp_path / "b")


def test_two_btrfs_of_one_image_are_refused(snap, tmp_path):
    snap("create", "a", "--size", "200M")
    device = snap.attach("a")
    make("btrfs", device)
    snap("detach", "a")
    snap("clone", "a", "b")
    snap.mount("a", tmp_path / "a")
    (tmp_path / "b").mkdir()
    snap("mount", "b", tmp_path / "b", "--via", VIA, code=5, says=["btrfs", "UUID"])
    assert len(snap.servers()) == 1, "the refused one is attached no more"
    snap("umount", tmp_path / "a")
    snap.mount("b", tmp_path / "b")
    snap("umount", tmp_path / "b")


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_an_image_is_mounted_read_only(snap, point, tmp_path, kind):
    snap("create", "v", "--size", "400M")
    device = snap.attach("v")
    make(kind, device)
    with mounted(device, point):
        fill(point, 4)
        before = sums(point)
        os.sync()
        # In the middle of things: its journal wants a replay that a read-only device cannot have.
        snap("commit", "v", "unclean:1")
    snap("commit", "v", "clean:1")
    snap("detach", "v")
    for image in ["clean:1", "unclean:1"]:
        snap.mount(image, point)
        # What only the journal of the unclean one has is not there, and that is said.
        assert ("journal" in snap.err) == (image == "unclean:1"), snap.err
        if image == "clean:1" or kind == "ext4":
            assert sums(point) == before
        with pytest.raises(OSError):
            (point / "new").write_bytes(b"x")
        snap("rmi", image, "--yes", code=5, says="attached")
        snap("umount", point)
    device = snap.attach("clean:1")
    assert sh("blockdev", "--getro", device).strip() == "1"
    other = snap.attach("clean:1")
    assert other != device, "an image may be attached as often as one likes"
    snap("detach", device, other)


def test_commit_snapshot_clone_and_resize_while_it_is_mounted(snap, point, tmp_path):
    snap("create", "v", "--size", "200M")
    device = snap.attach("v")
    make("ext4", device)
    with mounted(device, point):
        fill(point, 5)
        os.sync()
        snap("commit", "v", "crash:1")
        fill(point, 6)
        snap("commit", "--pause", "v", "clean:1")
        assert "is mounted here" not in snap.err
        before = sums(point)
        snap("snapshot", "--pause", "v", "s1")
        snap("clone", "--pause", "v", "w")
        (point / "after").write_bytes(b"after")
        snap("resize", "v", "300M")
        assert size_of(device) == 300 * MIB
        if VIA == "nbd":  # needs CAP_SYS_RESOURCE, which containers lack
            sh("resize2fs", device)
    check("ext4", device)
    if VIA != "nbd":
        sh("e2fsck", "-f", "-p", device)
        sh("resize2fs", device)
    with mounted(device, point):
        with open(point / "large", "wb") as f:
            for _ in range(150):
                f.write(os.urandom(MIB))
        now = sums(point)
    check("ext4", device)
    snap("detach", "v")
    device = snap.attach("v")
    with mounted(device, point):
        assert sums(point) == now
    snap("detach", "v")
    # Paused: nothing to replay, on the image, the snapshot and the clone alike.
    for name in ["clean:1", "v@s1", "w"]:
        device = snap.attach(name)
        assert "needs_recovery" not in sh("dumpe2fs", "-h", device)
        check("ext4", device)
        with mounted(device, point, "ro"):
            assert sums(point) == before
        snap("detach", device)
    # Not paused: as after a power cut, which fsck mends.
    snap("create", "c", "--from", "crash:1")
    device = snap.attach("c")
    assert "needs_recovery" in sh("dumpe2fs", "-h", device)
    subprocess.run(["e2fsck", "-f", "-y", device], capture_output=True, check=False)
    check("ext4", device)
    snap("detach", "c")


def test_pause_without_a_mount_says_so(snap):
    snap("create", "v", "--size", "8M")
    snap("commit", "--pause", "v", "a:1", says="no file system of volume 'v' is mounted here")


def test_detach_waits_for_who_has_it_open(snap):
    snap("create", "v", "--size", "8M")
    device = snap.attach("v")
    holder = subprocess.Popen(["sh", "-c", f"exec 3<{device}; sleep 1.5"])
    begin = time.monotonic()
    snap("detach", "v")
    assert time.monotonic() - begin > 0.8
    holder.wait()
    device = snap.attach("v")
    holder = subprocess.Popen(["sleep", "60"], stdin=open(device, "rb"))  # pylint: disable=consider-using-with
    snap("detach", "v", code=5, says=["open in sleep", str(holder.pid), "-f"])
    holder.kill()
    holder.wait()
    snap("detach", "v")


def test_detach_flushes(snap):
    snap("create", "v", "--size", "64M")
    device = snap.attach("v")
    data = os.urandom(32 * MIB)
    pathlib.Path(device).write_bytes(data)  # in the page cache of the device, most of it
    snap("detach", "v")
    device = snap.attach("v", "--read-only")
    assert pathlib.Path(device).read_bytes()[:32 * MIB] == data
    snap("detach", "v")


def test_detach_takes_nothing_from_a_server_that_does_not_answer(snap):
    """It may have what no flush has made durable."""
    snap("create", "v", "--size", "64M")
    device = snap.attach("v", *(["--timeout", "100"] if VIA == "nbd" else []))
    pid = snap.server_of(device)["pid"]
    pathlib.Path(device).write_bytes(b"d" * 4 * MIB)
    os.kill(pid, signal.SIGSTOP)
    try:
        snap("detach", "v", code=5, says=["has said nothing", "give -f"])
        assert (snap.run / f"attached/{device[5:]}.json").exists() and device in attached_now()
        assert device not in snap("doctor", "--json"), "it has a server"
    finally:
        os.kill(pid, signal.SIGCONT)
    snap("detach", "v")
    assert not snap.servers()


def test_detach_makes_durable_what_a_server_that_died_had_answered(snap):
    live = pathlib.Path(f"/dev/shm/snapctl-{os.geteuid()}")  # the live map goes once all is in the volume
    snap("create", "v", "--size", "64M")
    snap.attach("v")
    snap("detach", "v")
    before = set(os.listdir(live))
    device = snap.attach("v")
    pid = snap.server_of(device)["pid"]
    pathlib.Path(device).write_bytes(b"d" * 4 * MIB)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}/exe"), "the server to die")
    assert set(os.listdir(live)) > before
    snap("detach", "v", says=["had died", "durable now"])
    assert set(os.listdir(live)) == before
    device = snap.attach("v")
    assert pathlib.Path(device).read_bytes()[:4 * MIB] == b"d" * 4 * MIB
    snap("detach", "v")
    # Where another has it by now, that is said.
    device = snap.attach("v")
    pid = snap.server_of(device)["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{pid}/exe"), "the server to die")
    with subprocess.Popen([PROGRAM, "export", "v"], env={**snap.env, "SNAPCTL_RUNTIME_DIR": str(snap.run / "other")},
                          stdout=subprocess.PIPE, text=True) as other:
        other.stdout.readline()
        snap("detach", "v", says=["could not be made durable", str(other.pid)])
        other.terminate()
    shutil.rmtree(snap.run / "other")
    snap("doctor", "--fix")
    (snap.run / "v.log").unlink(missing_ok=True)


def test_fifty_in_a_row_leave_nothing(snap):
    snap("create", "v", "--size", "8M")
    before = attached_now()
    for _ in range(50 if VIA == "fuse" else 10):  # a process takes long to start in the guest; serve has its fifty there
        snap.attach("v")
        snap("detach", "v")
    assert attached_now() == before and not snap.servers()


def test_fifty_in_a_row_leave_nothing_in_serve(snap):
    snap("create", "v", "--size", "8M")
    with snap.serve() as server:
        def state():
            fds = len(os.listdir(f"/proc/{server.process.pid}/fd"))
            rss = next(int(line.split()[1]) for line in open(f"/proc/{server.process.pid}/status", encoding="ascii")
                       if line.startswith("VmRSS"))
            return fds, rss
        snap.attach("v")
        snap("detach", "v")
        fds, rss = state()
        for _ in range(50):
            snap.attach("v")
            snap("detach", "v")
        wait_for(lambda: state()[0] <= fds, f"descriptors to go: {state()[0]} of {fds}")
        assert state()[1] < rss + 8 * 1024, f"memory grew from {rss} to {state()[1]} KiB"


def test_ps_and_detach_know_devices(snap):
    snap("create", "v", "--size", "8M")
    device = snap.attach("v")
    server = snap.server_of(device)
    assert server["devices"][0]["export"] == "v" and server["devices"][0]["via"] == VIA
    assert device in snap("ps") and server["pid"] and "uptime" in server
    snap("detach", device)
    assert not snap.servers()


def test_a_server_that_has_it_already_is_used(snap):
    snap("create", "v", "--size", "8M")
    server = subprocess.Popen([PROGRAM, "export", "v"], env=snap.env, stdout=subprocess.PIPE, text=True)
    server.stdout.readline()
    device = snap.attach("v")
    assert snap.server_of(device)["pid"] == server.pid
    snap("detach", "v")
    assert server.poll() is None, "it was not started by attach, so it stays"
    server.terminate()
    server.wait()
    server.stdout.close()


def test_a_store_is_known_by_every_path_to_it(snap, tmp_path):
    """Else one volume would be two devices, and what a device has would be taken away beneath it."""
    snap("create", "v", "--size", "64M")
    snap("snapshot", "v", "s1")
    device = snap.attach("v")
    link, bound = tmp_path / "link", tmp_path / "bound"
    link.symlink_to(snap.store)
    bound.mkdir()
    sh("mount", "--bind", snap.store, bound)
    try:
        for path in [f"{snap.store}/", f"{snap.store}/.", link, f"{link}/", tmp_path / "link/../link", bound]:
            snap("--store", path, "attach", "v", "--via", VIA, code=5, says=["attached as", device])
            assert snap("--store", path, "attach", "v", "--if-needed") == device
        pid = snap.server_of(device)["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not os.path.exists(f"/proc/{pid}/exe"), "the server to die")
        if VIA == "nbd":  # the device waits for another server; a loop device has none from now on
            for path in [f"{snap.store}/", link, bound]:
                for command in [["rollback", "v", "s1", "--yes"], ["reset", "v", "--yes"], ["rm", "v", "--yes"],
                                ["rename", "v", "w"], ["resize", "v", "32M", "--yes"]]:
                    snap("--store", path, *command, code=5, says="attached as " + device)
        if VIA == "nbd":
            assert snap("--store", link, "attach", "--reconnect", "v") == device
        snap("--store", bound, "detach", "-f", "v")
    finally:
        sh("umount", bound)
    snap("doctor", "--fix")
    (snap.run / "v.log").unlink(missing_ok=True)


def test_a_volume_in_other_hands_is_busy(snap):
    """A command that takes no commands has it: its pid is told, and nothing is left."""
    snap("create", "v", "--size", "64M")
    device = snap.attach("v")
    pathlib.Path(device).write_bytes(os.urandom(16 * MIB))
    snap("detach", "v")
    with subprocess.Popen([PROGRAM, "dump", "v", "-"], env=snap.env, stdout=subprocess.PIPE) as dump:
        dump.stdout.read(1)  # it has begun, and cannot go on
        before = attached_now()
        snap("attach", "v", "--via", VIA, code=5, says=str(dump.pid))
        assert attached_now() == before and not snap.servers()
        dump.stdout.read()
    snap.attach("v")
    snap("detach", "v")


def test_a_pause_does_not_outlast_another_commit(snap, point):
    """Frozen while another commit packs, writers would wait for all of it."""
    snap("create", "v", "--size", "1G")
    device = snap.attach("v")
    make("ext4", device)
    with mounted(device, point):
        with open(point / "f", "wb") as f:
            for _ in range(300):
                f.write(os.urandom(MIB))
        os.sync()
        with subprocess.Popen([PROGRAM, "commit", "v", "a:1"], env=snap.env, stderr=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL) as other:
            time.sleep(0.2)
            begin = time.monotonic()
            done = subprocess.run([PROGRAM, "commit", "--pause", "v", "b:1"], env=snap.env, capture_output=True, text=True,
                                  check=False)
            took = time.monotonic() - begin
            other.wait()
        # It waited no longer than it may freeze, or did not have to.
        assert (done.returncode == 5 and "too long" in done.stderr and took < 15) or done.returncode == 0, done.stderr
        (point / "g").write_bytes(b"x")  # nothing is frozen
        os.sync()
    snap("detach", "v")


@pytest.mark.parametrize("how", [("snapshot", "--pause", "v", "last"), ("clone", "--pause", "v", "w")], ids=["snapshot", "clone"])
def test_nobody_waits_while_older_snapshots_are_packed(snap, point, how):
    """The ninth snapshot has to pack the eight before it: not while the file system is frozen."""
    snap("create", "v", "--size", "1G")
    device = snap.attach("v")
    make("ext4", device)
    with mounted(device, point):
        for i in range(8):
            with open(point / f"f{i}", "wb") as f:
                for _ in range(16):
                    f.write(os.urandom(MIB))
            os.sync()
            snap("snapshot", "v", f"s{i}")
        before = sums(point)
        written = 0  # while a layer was being made, from its beginning on
        with subprocess.Popen([PROGRAM, *how], env=snap.env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as taking:
            while taking.poll() is None:
                packing = any(snap.store.glob("tmp/*/layer"))
                (point / "g").write_bytes(os.urandom(4096))
                fd = os.open(point / "g", os.O_RDONLY)
                os.fsync(fd)
                os.close(fd)
                written += packing and any(snap.store.glob("tmp/*/layer"))
        assert taking.returncode == 0
        # One may have begun before the freeze and seen the layer come.
        assert written > 2
        (point / "g").unlink()
        assert sums(point) == before
    snap("detach", "v")


def test_bad_input_leaves_nothing(snap, tmp_path):
    snap("create", "v", "--size", "8M")
    snap("create", "w", "--size", "8M")
    before = attached_now()
    snap("attach", "nosuch", code=4, says="nosuch")
    snap("attach", "v", "nbd0", code=64, says="/dev/nbd0")
    snap("attach", "v", "/dev/null", "--via", VIA, code=64)
    snap("attach", code=64)
    snap("detach", "v", code=4, says="not attached")
    snap("detach", "/dev/nosuch", code=4)
    snap("umount", tmp_path, code=4, says="no block device is mounted")
    snap("mount", "v", tmp_path / "nowhere", code=4, says="nowhere")
    (tmp_path / "p").mkdir()
    snap("mount", "v", tmp_path / "p", "--via", VIA, code=1, says="no file system")
    assert attached_now() == before and not snap.servers()
    device = snap.attach("v")
    snap("attach", "v", code=5, says=device)
    snap("attach", "w", device, code=5, says="in use" if VIA == "fuse" else "another server has the device")
    assert snap.server_of(device)["pid"] and len(snap.servers()) == 1
    snap("detach", "v")
    # Without root: one clear line.
    os.chmod(snap.store, 0o755)
    done = subprocess.run(["setpriv", "--reuid", "65534", "--clear-groups", PROGRAM, "attach", "v"], capture_output=True,
                          text=True, env={**snap.env, "SNAPCTL_RUNTIME_DIR": ""}, check=False)
    assert done.returncode == 1 and "root" in done.stderr, done.stderr
    os.chmod(snap.store, 0o700)


def test_doctor_mends_what_a_dead_server_left(snap):
    snap("create", "v", "--size", "8M")
    device = snap.attach("v")
    assert snap.json("doctor")["findings"] == []
    os.kill(snap.server_of(device)["pid"], 9)
    wait_for(lambda: not snap.servers(), "the server to be gone")
    # To freeze means to flush, which would wait for a server; the volume itself can be had.
    snap("commit", "--pause", "v", "a:1", code=5, says=[device, "lost its server", "--reconnect"])
    snap("commit", "v", "a:1")
    found = snap.json("doctor", code=3)["findings"]
    assert device in [f["what"] for f in found] and any(f["what"].endswith(".control") for f in found)
    snap("doctor", "--fix")
    assert snap.json("doctor")["findings"] == []
    if VIA == "nbd":
        assert pathlib.Path(device).read_bytes() == bytes(8 * MIB)
        snap("detach", "v")
    # A record that means nothing is removed, too.
    (snap.run / "attached" / "nbd77.json").write_text("{")
    snap("attach", "v", "--via", VIA, code=2, says="doctor")
    snap("doctor", "--fix")
    snap.attach("v")
    snap("detach", "v")


def test_forced_off_while_it_is_mounted(snap, point):
    snap("create", "v", "--size", "64M")
    device = snap.attach("v")
    make("ext4", device)
    sh("mount", device, point)
    (point / "f").write_bytes(b"x" * MIB)  # in the page cache: -f flushes what it can
    snap("detach", "-f", "v")
    assert not snap.servers(), "its server was its own"
    with pytest.raises(OSError):
        (point / "g").write_bytes(b"y" * MIB)
        os.sync()
        with open(point / "g", "rb") as f:
            os.fsync(f.fileno())
    sh("umount", "-l", point)
    wait_for(lambda: device not in attached_now(), "the device to go with its last user")
    device = snap.attach("v")
    subprocess.run(["e2fsck", "-f", "-y", device], capture_output=True, check=False)
    with mounted(device, point):
        assert (point / "f").read_bytes() == b"x" * MIB
    snap("detach", "v")


def test_what_is_attached_is_not_pulled_away(snap):
    """Also not when its server has died: another volume of that name would get what belongs to the first."""
    snap("create", "v", "--size", "8M")
    snap("snapshot", "v", "s")
    device = snap.attach("v")
    for server in ["lives", "has died"]:
        if server == "has died":
            os.kill(snap.server_of(device)["pid"], 9)
            wait_for(lambda: not snap.servers(), "the server to be gone")
        snap("rm", "v", "--yes", code=5)
        snap("rename", "v", "w", code=5)
        snap("rollback", "v", "s", "--yes", code=5)
        snap("reset", "v", "--yes", code=5)
        snap("resize", "v", "4M", "--yes", code=5)
    snap("detach", "-f", "v")
    snap("doctor", "--fix")
    (snap.run / "v.log").unlink(missing_ok=True)
    snap("rm", "v", "--yes")


def test_a_record_of_what_is_another_programs_by_now(snap, tmp_path):
    snap("create", "v", "--size", "8M")
    device = snap.attach("v")
    record = (snap.run / "attached" / (device[5:] + ".json")).read_text()
    snap("detach", "v")
    # The device is someone else's, and our record of it is old.
    (tmp_path / "file").write_bytes(b"o" * 8 * MIB)
    if VIA == "nbd":
        server = subprocess.Popen(["nbdkit", "-f", "-U", str(tmp_path / "s"), "file", str(tmp_path / "file")])
        wait_for((tmp_path / "s").exists, "nbdkit")
        sh("nbd-client", "-unix", tmp_path / "s", device)
    else:
        sh("losetup", device, tmp_path / "file")
    (snap.run / "attached" / (device[5:] + ".json")).write_text(record)
    snap("umount", tmp_path, code=4)
    snap("commit", "--pause", "v", "a:1", says="no file system of volume 'v' is mounted here")
    assert device in snap.json("doctor", code=3)["findings"][0]["trouble"]
    snap("detach", "v")
    assert device in attached_now(), "it is not ours to take away"
    assert pathlib.Path(device).read_bytes() == b"o" * 8 * MIB
    assert snap.attach("v") != device
    snap("detach", "v")
    if VIA == "nbd":
        sh("nbd-client", "-d", device)
        server.terminate()
        server.wait()
    else:
        sh("losetup", "-d", device)
    wait_for(lambda: device not in attached_now(), "the device to go")


def test_an_image_attached_twice_is_taken_away_by_device(snap):
    snap("create", "v", "--size", "8M")
    snap("commit", "v", "base:1")
    one, other = snap.attach("base:1"), snap.attach("base:1")
    snap("detach", "base:1", code=64, says=[one, other])
    snap("detach", one)
    snap("detach", "base:1")
    # One without a name, by its id, beside `serve`, which has none for it.
    bare = snap("commit", "v")
    with snap.serve():
        device = snap.attach(bare.removeprefix("sha256:")[:12])
        snap("detach", device)
    assert snap.attach("v") == snap.attach("v", "--if-needed")
    snap("detach", "v")


def test_doctor_leaves_alone_what_is_in_use(snap, point):
    snap("create", "v", "--size", "64M")
    device = snap.attach("v")
    make("ext4", device)
    record = snap.run / "attached" / (device[5:] + ".json")
    text = record.read_text()
    with mounted(device, point):
        record.unlink()
        snap("doctor", "--fix", code=5, says=["mounted on", str(point)])
        (point / "f").write_bytes(b"x")
        os.sync()
    record.write_text(text)
    snap("detach", "v")


def test_run_gives_a_volume_for_a_while(snap, tmp_path):
    snap("create", "v", "--size", "8M")
    snap("commit", "v", "base:1")
    before = snap("ls", "-q")
    out = snap("run", "base:1", "--device", "--", "sh", "-c",
               'test -b "$device" && echo data >"$device" && head -c 4 "$device" && echo " $volume $uri" && exit 7', code=7)
    assert out.startswith("data ") and "nbd+unix://" in out
    assert snap("ls", "-q") == before and not snap.servers()
    assert snap("run", "base:1", "--", "nbdinfo", "--size", "nbd+unix:///nosuch?socket=/nosuch", code=1) == ""
    snap("run", "base:1", "--", "sh", "-c", 'test "$(nbdinfo --size "$uri")" = 8388608')
    snap("run", "base:1", "--", "sh", "-c", "kill -9 $$", code=137)
    snap("run", "base:1", "--", "/nosuch", code=127, says="/nosuch")
    snap("run", "base:1", code=64, says="--")
    snap("run", "base:1", "--", "echo", "{}", "")
    snap("run", "base:1", "--keep", "--name", "kept", "--", "true")
    assert "kept" in snap("ls", "-q") and not snap.servers()


def test_bench_measures_a_device_of_a_clone_that_goes(snap):
    snap("create", "v", "--size", "8M")
    figures, = snap.json("bench", "v", "randrw70-4k-qd32", "--device", "--runtime", "0.3")["profiles"]
    assert figures["read"]["requests"] > 0 and figures["write"]["requests"] > 0 and figures["server_cpu_us_per_request"] > 0
    assert snap("ls", "-q") == "v" and not snap.servers()
    bench = subprocess.Popen([PROGRAM, "bench", "v", "boot", "--device", "--runtime", "60"], env=snap.env,
                             stderr=subprocess.PIPE, text=True)
    wait_for(lambda: any(server["devices"] for server in snap.servers()), "a device")
    bench.terminate()
    _, err = bench.communicate(timeout=30)
    assert bench.returncode == 130 and "the store is as it was before" in err
    assert snap("ls", "-q") == "v" and not snap.servers()
