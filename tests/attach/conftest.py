"""Volumes as block devices. The same tests run by nbd, in a guest with that driver (in_guest.py), and by FUSE and a
loop device in the kernel that is here: ATTACH_VIA says which. Needs root.

Every test has a store and a runtime directory of its own; what is left in the latter, or in the kernel, fails it.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(TOP / "tests/support"))
PROGRAM = os.environ.get("SNAPCTL", str(TOP / "build/tools/snapctl/snapctl"))
VIA = os.environ.get("ATTACH_VIA", "fuse")
MIB = 1 << 20


def sh(*argv, code=0, **kwargs):
    """Runs another program, which must end with `code`; gives its standard output."""
    done = subprocess.run([str(a) for a in argv], capture_output=True, timeout=300, text=True, errors="replace", check=False,
                          **kwargs)
    assert done.returncode == code, f"{argv}: exit {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def wait_for(condition, what, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    pytest.fail(f"waited in vain for {what}")


class Snap:
    """The program with a store and a runtime directory."""

    def __init__(self, store, run):
        self.store, self.run = store, run
        self.env = {**os.environ, "SNAPCTL_STORE": str(store), "SNAPCTL_RUNTIME_DIR": str(run)}

    def __call__(self, *args, code=0, says="", timeout=300):
        done = subprocess.run([PROGRAM, *[str(a) for a in args]], capture_output=True, text=True, errors="replace",
                              timeout=timeout, env=self.env, stdin=subprocess.DEVNULL, check=False)
        self.err = done.stderr
        assert done.returncode == code, f"{args}: exit {done.returncode}, not {code}: {done.stderr}"
        for part in [says] if isinstance(says, str) else says:
            assert part in done.stderr, f"{args}: {part!r} is not in: {done.stderr}"
        return done.stdout.strip()

    def json(self, *args, **kwargs):
        return json.loads(self(*args, "--json", **kwargs))

    def attach(self, name, *options):
        return self("attach", name, *options, *([] if "--via" in options else ["--via", VIA]))

    def mount(self, name, point, *options):
        point.mkdir(exist_ok=True)
        return self("mount", name, point, "--via", VIA, *options)

    def servers(self):
        return self.json("ps")["servers"]

    def server_of(self, device):
        found = [s for s in self.servers() if device in [d["device"] for d in s["devices"]]]
        assert len(found) == 1, f"{device}: {found}"
        return found[0]

    @contextlib.contextmanager
    def serve(self):
        """`serve` beside everything else."""
        server = Serve(self)
        try:
            yield server
        finally:
            server.stop()


class Serve:
    """A server of the whole store that may be killed and started again."""

    def __init__(self, snap):
        self.snap = snap
        self.start()

    def start(self):
        self.process = subprocess.Popen([PROGRAM, "serve", "--log", str(self.snap.store.parent / "serve.log")],
                                        env=self.snap.env, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline().strip(), "serve did not come up"

    def stop(self, sig=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(sig)
        self.process.wait(timeout=60)
        self.process.stdout.close()


def attached_now():
    """Every device of the kernel that is connected: nbd and loop."""
    out = set()
    for block in pathlib.Path("/sys/block").iterdir():
        if (block / "pid").exists() or (block / "loop/backing_file").exists():
            out.add("/dev/" + block.name)
    return out


@pytest.fixture
def snap(tmp_path):
    assert os.geteuid() == 0, "block devices are made by root: run the tests as root"
    run = pathlib.Path(tempfile.mkdtemp(prefix="sa-", dir="/tmp" if VIA == "fuse" else "/run"))
    before, mounts = attached_now(), pathlib.Path("/proc/self/mountinfo").read_text()
    one = Snap(tmp_path / "store", run)
    yield one
    left = [str(p.relative_to(run)) for p in run.rglob("*") if p.name not in ("attached", "lock")]
    devices = attached_now() - before
    for device in devices:
        subprocess.run([PROGRAM, "detach", "-f", device], env=one.env, capture_output=True, timeout=60, check=False)
    shutil.rmtree(run)
    assert not devices, f"still attached: {devices}"
    assert not left, f"left in the runtime directory: {left}"
    now = pathlib.Path("/proc/self/mountinfo").read_text()
    assert now.count("snapctl") == mounts.count("snapctl"), now


@pytest.fixture
def point(tmp_path):
    path = tmp_path / "point"
    path.mkdir()
    yield path
    subprocess.run(["umount", "-R", str(path)], capture_output=True, check=False)


MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,nodiscard"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-K"],
    "btrfs": ["mkfs.btrfs", "-q", "-f", "-K"],
}
CHECK = {
    "ext4": ["e2fsck", "-f", "-n"],
    "xfs": ["xfs_repair", "-n"],
    "btrfs": ["btrfs", "check", "--readonly"],
}


def make(kind, device):
    sh(*MAKE[kind], device)


def check(kind, device):
    sh(*CHECK[kind], device)


def sums(path):
    """{file: digest of its content} of a tree."""
    out = {}
    for file in sorted(path.rglob("*")):
        if file.is_file():
            with open(file, "rb") as f:
                out[str(file.relative_to(path))] = hashlib.file_digest(f, "sha256").hexdigest()
    return out


def fio(device, *options):
    """fio, which reads every block that it wrote in the end; gives its process, started."""
    argv = ["fio", "--name=verify", f"--filename={device}", "--rw=randwrite", "--bsrange=4k-256k", "--direct=1",
            "--ioengine=io_uring", "--iodepth=16", "--size=48m", "--verify=crc32c", "--verify_fatal=1",
            "--verify_state_save=0", "--randrepeat=0", *options]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process, seconds=240):
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0 and not re.search(r"verify.*(fail|bad)|err=\s*[1-9]", out), out[-3000:]
    return out
