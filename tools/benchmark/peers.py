"""The servers that are compared: all of them serve the same random bytes, from the same file system, on a unix socket.

A peer has states by name: "steady" is served as long as rows of reads run, "fresh" is made anew for each run of a row
of writes. Peers that write in place (bare, raw file, memory) have nothing to make anew: their one state serves both.
"""

import contextlib
import dataclasses
import os
import typing

from benchmark.processes import BUILD, MIB, SNAPCTL, Server, sh, write_back


@dataclasses.dataclass
class Peer:
    key: str
    name: str
    command: typing.Callable[[str], list]  # makes the state of that name, and gives what serves it: the socket follows
    copies_on_write: bool = False
    keeps_flushes: bool = True  # what was flushed is on the disk
    in_memory: bool = False
    suffix: str = ""  # of its states' names, where two peers have states of one kind


def write_random(path, size):
    with open(path, "wb") as f:
        for _ in range(size // MIB):
            f.write(os.urandom(MIB))
        os.fsync(f.fileno())


class Peers:
    """The data, and the peers over it. `sockets` is a folder with a short path."""

    def __init__(self, scratch, sockets, size):
        self.scratch, self.sockets, self.size = scratch, sockets, size
        self.raw = scratch / "base.raw"
        self.store = scratch / "store"
        write_random(self.raw, size)
        self.snapctl("import", self.raw, "base:1")
        sh("qemu-img", "convert", "-f", "raw", "-O", "qcow2", self.raw, scratch / "base.qcow2")
        self.all = [
            Peer("snapctl", "snapctl", self._snapctl, copies_on_write=True),
            Peer("snapctl-sleeping", "snapctl, no busy poll", lambda state: ["env", "SNAPCTL_BUSY_POLL=0", *self._snapctl(state)],
                 copies_on_write=True, suffix="-sleeping"),
            Peer("bare", "bare server", lambda _: [BUILD / "tests/load/bare_server", self.raw]),
            Peer("qcow2", "qemu-nbd qcow2", lambda state: self._qcow2(state, f"{state}.qcow2"), copies_on_write=True),
            Peer("qcow2-extended", "qemu-nbd extended_l2",
                 lambda state: self._qcow2(state, f"{state}-extended.qcow2", "-o", "extended_l2=on,cluster_size=128k"),
                 copies_on_write=True),
            Peer("qemu-raw", "qemu-nbd raw", lambda state: self._qemu_nbd("raw", state, self.raw)),
            Peer("nbdkit-file", "nbdkit file", lambda _: self._nbdkit("file", self.raw)),
            Peer("nbdkit-cow", "nbdkit cow", lambda _: self._nbdkit("--filter=cow", "file", self.raw),
                 copies_on_write=True, keeps_flushes=False),
            Peer("nbdkit-memory", "nbdkit memory", lambda _: self._nbdkit("memory", str(size)),
                 keeps_flushes=False, in_memory=True),
        ]

    def named(self, *keys):
        return [peer for peer in self.all if peer.key in keys]

    def snapctl(self, *argv):
        return sh(SNAPCTL, "--store", self.store, *argv)

    def _snapctl(self, state):
        with contextlib.suppress(Exception):
            self.snapctl("rm", "--yes", state)
        self.snapctl("create", state, "--from", "base:1")
        return self.snapctl_again(state)

    def snapctl_again(self, state):
        """What serves a volume that is there."""
        return [SNAPCTL, "--store", self.store, "export", state, "--socket"]

    def _qcow2(self, state, file_name, *options):
        top = self.scratch / file_name
        top.unlink(missing_ok=True)
        sh("qemu-img", "create", "-q", "-f", "qcow2", *options, "-b", self.scratch / "base.qcow2", "-F", "qcow2", top)
        return self._qemu_nbd("qcow2", state, top)

    def _qemu_nbd(self, form, state, path):
        return ["qemu-nbd", "-t", "-f", form, "--cache=writeback", "--aio=threads", "--shared=16", "-x", state, path, "-k"]

    def _nbdkit(self, *plugin):
        # TMPDIR is where the cow filter puts what is written.
        return ["env", f"TMPDIR={self.scratch}", "nbdkit", "--exit-with-parent", "-f", *plugin, "-U"]

    def serve(self, peer, state):
        """A Server of a peer, not yet started; its state is made when this is called."""
        kept = state == "steady"
        state += peer.suffix
        socket = self.sockets / f"{peer.key}-{state}.sock"
        fill = (lambda server: sh("nbdcopy", self.raw, server.uri)) if peer.in_memory else None
        return Server(peer.name, [*peer.command(state), socket], socket, state, keep=kept, ready=fill)

    def drop(self, peer, state):
        """Takes a state away, so that nothing of it is written back while another is measured."""
        if peer.key.startswith("snapctl"):
            self.snapctl("rm", "--yes", state + peer.suffix)
        for top in (self.scratch / f"{state}.qcow2", self.scratch / f"{state}-extended.qcow2"):
            top.unlink(missing_ok=True)

    @contextlib.contextmanager
    def fresh(self, peer):
        """A server of a state that was made just now, and is thrown away afterwards. Nothing else is dirty."""
        write_back(self.scratch)
        try:
            with self.serve(peer, "fresh") as server:
                yield server
        finally:
            self.drop(peer, "fresh")

    @contextlib.contextmanager
    def steady(self, peers=None):
        """{peer's key: a server}, all running and warm: every byte was read through each."""
        with contextlib.ExitStack() as stack:
            servers = {}
            for peer in peers or self.all:
                server = stack.enter_context(self.serve(peer, "steady"))
                sh("nbdcopy", server.uri, "null:")
                servers[peer.key] = server
            yield servers
