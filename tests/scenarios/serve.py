"""Helpers for tests of `serve`: a server of the whole store, and clients of it."""

import os
import pathlib
import signal
import subprocess

from conftest import PROGRAM, Client


class StoreServer:
    """`serve` in the foreground, from the printing of its URI to the end of a with block."""

    def __init__(self, snap, *options, env=None):
        self.snap = snap
        argv = [PROGRAM, "--store", str(snap.store), "serve", *[str(o) for o in options]]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        env={**snap.env, **(env or {})}, text=True)

    def __enter__(self):
        self.base = self.process.stdout.readline().strip()
        assert self.base, f"serve did not come up: {self.process.stderr.read()}"
        self.snap.servers.append(self)
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def pid(self):
        return self.process.pid

    def uri(self, name):
        """nbd+unix:///NAME?socket=..., nbd://HOST:PORT/NAME"""
        head, mark, tail = self.base.partition("?")
        return head + name + mark + tail

    def client(self, name):
        return Client(self.uri(name))

    def stop(self, sig=signal.SIGTERM, code=0):
        if self not in self.snap.servers:
            return
        self.snap.servers.remove(self)
        self.process.send_signal(sig)
        _, self.log = self.process.communicate(timeout=40)
        assert self.process.returncode == code, f"serve ended with {self.process.returncode}: {self.log}"


def descriptors(pid):
    """{descriptor: what it is}, without those of the process's own memory maps."""
    out = {}
    for path in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            out[path.name] = os.readlink(path)
        except FileNotFoundError:
            pass
    return out


def kib_of(pid, field):
    """A number of /proc/PID/status, in KiB."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise KeyError(field)
