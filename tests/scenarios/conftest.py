"""Scenarios: the program as its users run it. Fixtures and helpers.

Run with: /usr/bin/python3 -m pytest tests/scenarios
The program is $SNAPCTL, else build/tools/snapctl/snapctl. Every test has a store of its own; servers that
a test started are stopped at its end, and a server that does not stop in time fails the test.
"""

import errno
import json
import os
import pathlib
import random
import signal
import subprocess
import time

import nbd
import pytest

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
PROGRAM = os.environ.get("SNAPCTL", str(TOP / "build/tools/snapctl/snapctl"))
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def sh(*argv, **kwargs):
    """Runs another program, which must succeed; gives its standard output."""
    done = subprocess.run([str(a) for a in argv], capture_output=True, timeout=120, **kwargs)
    assert done.returncode == 0, f"{argv}: {done.stderr.decode(errors='replace')}"
    return done.stdout


def noise(length, seed):
    """Bytes that do not repeat and do not compress, the same for the same seed."""
    return random.Random(seed).randbytes(length)


def sparse_file(path, size, pieces):
    """A file of `size` bytes with data only at the offsets of `pieces` (a dict)."""
    with open(path, "wb") as f:
        f.truncate(size)
        for offset, data in pieces.items():
            f.seek(offset)
            f.write(data)
    return path


def data_of(path):
    """The data of a file by its offsets, in pieces of at most 1 MiB; what is not in it is a hole, which reads zero."""
    pieces, end = {}, 0
    with open(path, "rb") as f:
        while True:
            try:
                at = os.lseek(f.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                assert error.errno == errno.ENXIO
                return pieces
            end = os.lseek(f.fileno(), at, os.SEEK_HOLE)
            for offset in range(at, end, MIB):
                pieces[offset] = os.pread(f.fileno(), min(MIB, end - offset), offset)


class Client:
    """A connection to an export, through libnbd."""

    def __init__(self, uri):
        self.handle = nbd.NBD()
        self.handle.connect_uri(uri)

    def __enter__(self):
        return self.handle

    def __exit__(self, *_):
        try:
            self.handle.shutdown()
        except nbd.Error:
            pass
        self.handle = None  # closes it: Python's binding has no close()


class Server:
    """`export` in the foreground, from the printing of its URIs to the end of a with block."""

    def __init__(self, snap, objects, options):
        self.snap = snap
        self.count = len(objects)
        argv = [PROGRAM, "--store", str(snap.store), "export", *objects, *options]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=snap.env,
                                        text=True)
        self.uris = []

    def __enter__(self):
        for _ in range(self.count):
            line = self.process.stdout.readline().strip()
            assert line, f"export did not come up: {self.process.stderr.read()}"
            self.uris.append(line)
        self.uri = self.uris[0]
        self.snap.servers.append(self)
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self, sig=signal.SIGTERM, code=0):
        if self in self.snap.servers:
            self.snap.servers.remove(self)
            self.process.send_signal(sig)
            _, err = self.process.communicate(timeout=30)
            self.log = err
            assert self.process.returncode == code, f"export ended with {self.process.returncode}: {err}"


class Snap:
    """The program with a store."""

    def __init__(self, store, sockets):
        self.store = pathlib.Path(store)
        self.sockets = sockets
        self.servers = []
        self.env = {**os.environ, "XDG_RUNTIME_DIR": str(sockets)}
        self.env.pop("SNAPCTL_STORE", None)

    def __call__(self, *args, code=0, data=None, text=True, env=None, timeout=120):
        """Runs a command, which must end with exit code `code`; gives what it printed. An error is one line."""
        argv = [PROGRAM, "--store", str(self.store), *[str(a) for a in args]]
        done = subprocess.run(argv, input=data, capture_output=True, timeout=timeout,
                              stdin=subprocess.DEVNULL if data is None else None, env={**self.env, **(env or {})})
        err = done.stderr.decode(errors="replace")
        assert done.returncode == code, f"{args}: exit {done.returncode}, not {code}: {err}"
        if code not in (0, 1):
            assert_one_error_line(err)
        self.err = err
        return done.stdout.decode() if text else done.stdout

    def fails(self, *args, code, says=(), **kwargs):
        """Runs a command that must fail with one line that holds every string of `says`."""
        out = self(*args, code=code, **kwargs)
        assert_one_error_line(self.err)
        for part in [says] if isinstance(says, str) else says:
            assert str(part) in self.err, f"{args}: {part!r} is not in: {self.err}"
        return out

    def json(self, *args, **kwargs):
        return json.loads(self("--json", *args, **kwargs))

    def popen(self, *args, prefix=(), env=None, **kwargs):
        argv = [*prefix, PROGRAM, "--store", str(self.store), *[str(a) for a in args]]
        return subprocess.Popen(argv, env={**self.env, **(env or {})}, **kwargs)

    def export(self, *objects, options=()):
        return Server(self, objects, options)

    # ---- Shorthands

    def image(self, name, data, *options):
        """Imports bytes; gives the image id."""
        return self("import", "-", name, *options, data=data).strip()

    def content(self, obj):
        return self("dump", obj, "-", text=False)

    def write(self, volume, pieces):
        """Writes {offset: bytes} into a volume at rest, through a server, and flushes."""
        with self.export(volume) as server, Client(server.uri) as h:
            for offset, data in pieces.items():
                h.pwrite(data, offset)
            h.flush()

    def images(self):
        """{reference: image id}"""
        return {tag: i["id"] for i in self.json("images")["images"] for tag in i["tags"]}

    def volumes(self):
        """{name: what ls --json tells of it}"""
        return {v["name"]: v for v in self.json("ls")["volumes"]}

    def state(self):
        """What must not change when a command fails or is killed: images, volumes, and all of their content."""
        volumes = {n: (v["size"], v["image_id"], [s["name"] for s in v["snapshots"]])
                   for n, v in self.volumes().items()}
        images = self.images()
        content = {n: self.content("volume:" + n) for n in volumes}
        content.update({n: self.content("image:" + n) for n in images})
        return images, volumes, content


def assert_one_error_line(err):
    lines = err.splitlines()
    assert len(lines) == 1, f"not one line: {err!r}"
    assert lines[0].startswith("snapctl: "), err
    assert len(lines[0]) < 2000, f"a line of {len(lines[0])} characters"


def tags(snap):
    """{reference: digest of its manifest}, read from the store's file: for tests that look after every step."""
    index = json.loads((snap.store / "index.json").read_text())
    return {m["annotations"]["org.opencontainers.image.ref.name"]: m["digest"] for m in index["manifests"]}


def volumes(snap):
    """The names of the store's volumes, read from its folders."""
    return {path.parent.name for path in (snap.store / "volumes").glob("*/volume.json")}


def blobs(snap):
    """{digest: bytes}"""
    return {path.name: path.read_bytes() for path in (snap.store / "blobs/sha256").iterdir()}


def changed_volumes(snap, first, count):
    """Makes volumes of base:1, each with changes of its own in two places: {name: content}."""
    expected = {}
    for i in range(first, first + count):
        snap("create", f"v{i}", "--from", "base:1")
        content = bytearray(snap.base)
        for at, length in ((MIB, 64 * KIB), (3 * MIB, 4096)):
            content[at:at + length] = noise(length, i)
        expected[f"v{i}"] = bytes(content)
    with snap.export(*expected) as server:
        for uri, content in zip(server.uris, expected.values()):
            with Client(uri) as h:
                for at, length in ((MIB, 64 * KIB), (3 * MIB, 4096)):
                    h.pwrite(content[at:at + length], at)
    return expected


@pytest.fixture
def snap(tmp_path):
    sockets = tmp_path / "run"
    sockets.mkdir(mode=0o700)
    it = Snap(tmp_path / "store", sockets)
    yield it
    for server in list(it.servers):
        server.stop()


@pytest.fixture
def base(snap):
    """A store with the image base:1 of 8 MiB: data at its start, in its middle and at its end."""
    data = bytearray(8 * MIB)
    data[0:256 * KIB] = noise(256 * KIB, 1)
    data[4 * MIB:4 * MIB + 64 * KIB] = noise(64 * KIB, 2)
    data[-4096:] = noise(4096, 3)
    snap.base = bytes(data)
    snap.base_id = snap.image("base:1", snap.base)
    return snap


@pytest.fixture
def small(tmp_path):
    """A store on an ext4 of 64 MiB with base:1 of 4 MiB and a volume web with 1 MiB of its own."""
    assert os.geteuid() == 0, "only root may mount a file system: run the tests as root"
    disk, point = tmp_path / "small.img", tmp_path / "small"
    with open(disk, "wb") as f:
        f.truncate(64 * MIB)
    sh("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0", disk)
    point.mkdir()
    sh("mount", "-o", "loop", disk, point)
    try:
        sockets = tmp_path / "run"
        sockets.mkdir(mode=0o700)
        snap = Snap(point / "store", sockets)
        snap.point = point
        snap.base = noise(4 * MIB, 1)
        snap.image("base:1", snap.base)
        snap("create", "web", "--from", "base:1")
        snap.write("web", {0: noise(MIB, 2)})
        yield snap
        for server in list(snap.servers):
            server.stop()
    finally:
        # What io_uring had open in a process that has ended is closed a moment later.
        wait_for(lambda: subprocess.run(["umount", point], capture_output=True, check=False).returncode == 0)


def fill(snap, leave):
    """Takes all space but `leave` bytes."""
    free = os.statvfs(snap.point).f_bavail * os.statvfs(snap.point).f_frsize
    with open(snap.point / "ballast", "wb") as f:
        try:
            os.posix_fallocate(f.fileno(), 0, max(free - leave, 4096))
        except OSError:
            pass  # metadata takes some of it: full is full
        size = os.fstat(f.fileno()).st_size
        # fallocate of the last blocks may fail as a whole, so they are taken one by one.
        if leave == 0:
            try:
                while True:
                    os.write(f.fileno(), bytes(4096)) if size == 0 else os.pwrite(f.fileno(), bytes(4096), size)
                    size += 4096
            except OSError:
                pass


def empty(snap):
    (snap.point / "ballast").unlink()


def wait_for(condition, seconds=20):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)
