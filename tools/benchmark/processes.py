"""Commands, and servers from their start to their end."""

import contextlib
import os
import pathlib
import subprocess
import time

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = TOP / "build"
SNAPCTL = os.environ.get("SNAPCTL", str(BUILD / "tools/snapctl/snapctl"))
MIB = 1 << 20
GIB = 1 << 30


class Failed(Exception):
    """A command failed; the text has what it said."""


def sh(*argv, **kwargs):
    """What a command prints."""
    words = [str(a) for a in argv]
    done = subprocess.run(words, check=False, text=True, capture_output=True, **kwargs)
    if done.returncode != 0:
        raise Failed(f"{' '.join(words)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def cpu_seconds(pid):
    """User and system time of a process with all its threads so far (proc(5), fields 14 and 15 of stat)."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def open_files(process):
    paths = []
    with contextlib.suppress(FileNotFoundError):  # it ended by itself
        for link in pathlib.Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it closed that one just now
                paths.append(os.readlink(link))
    return paths


def kill(process):
    """As a power cut would end it: what it keeps in memory for the one after it goes, too."""
    kept_in_memory = [path for path in open_files(process) if path.startswith("/dev/shm/")] if process.poll() is None else []
    process.kill()
    process.wait()
    for path in kept_in_memory:
        pathlib.Path(path).unlink(missing_ok=True)


class Server:
    """A process that serves NBD on a unix socket, from its start to the end of a with block.

    `ready(server)`, if given, is called once it is up. With `keep` it is asked to end (and writes back what it has to);
    without it is killed, for what it served is thrown away.
    """

    def __init__(self, name, argv, socket, export, keep=True, ready=None):
        self.name, self.socket, self.export, self.keep, self.ready = name, pathlib.Path(socket), export, keep, ready
        self.argv = [str(a) for a in argv]
        self.uri = f"nbd+unix:///{export}?socket={socket}"

    def __enter__(self):
        self.socket.unlink(missing_ok=True)
        log = self.socket.with_suffix(".log")
        with open(log, "w") as errors:
            self.process = subprocess.Popen(self.argv, stdout=subprocess.DEVNULL, stderr=errors)
        self.pid = self.process.pid
        try:
            self._wait_until_up(log)
            if self.ready:
                self.ready(self)
        except BaseException:
            kill(self.process)
            raise
        return self

    def _wait_until_up(self, log):
        deadline = time.monotonic() + 30
        while not self.socket.exists():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise Failed(f"{self.name} did not come up: {log.read_text().strip()}")
            time.sleep(0.005)

    def __exit__(self, *_):
        if not self.keep:
            kill(self.process)
            return
        self.process.terminate()
        try:
            self.process.wait(120)
        except BaseException:
            kill(self.process)
            raise


def milliseconds(work):
    began = time.monotonic()
    work()
    return (time.monotonic() - began) * 1e3


def write_back(folder):
    """What is dirty of a file system goes to the disk, so that no run pays for the one before it."""
    sh("sync", "-f", folder)


def touch_memory(folder, size):
    """So much memory is touched and given back. A virtual machine's host takes pages away that were not used for a while, and who
    gets them back one by one waits for that."""
    path, piece = folder / "touched", os.urandom(MIB)
    with open(path, "wb") as f:
        for _ in range(size // MIB):
            f.write(piece)
    path.unlink()


def drop_caches():
    """Empties the page cache of the machine; false where that is not permitted."""
    os.sync()
    try:
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        return False
    return True


def forget(folder):
    """Empties the page cache, of the files in a folder at least."""
    if drop_caches():
        return
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
