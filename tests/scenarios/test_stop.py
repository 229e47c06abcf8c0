"""SIGTERM to `export`: what is in flight is finished, what was answered is kept, and 30 s later it is over at the latest.

The clients are plain sockets, for they go on receiving where a library would give up, or stop where it would not.
"""

import signal
import socket
import struct
import subprocess
import threading
import time

import pytest
from conftest import KIB, MIB, Client, wait_for

SECTOR, SECTORS = 512, 2048  # of one writer: more than it can have in flight, so that no two writes of a sector are
READ, WRITE, FUA = 0, 1, 1
ESHUTDOWN = 108


class Raw:
    """A client of plain bytes, which takes a volume and then does as it likes."""

    def __init__(self, uri):
        name, path = uri.removeprefix("nbd+unix:///").split("?socket=")
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(path)
        self.name = name.encode()

    def receive(self, length):
        data = b""
        while len(data) < length:
            piece = self.socket.recv(length - len(data))
            assert piece, "the server hung up"
            data += piece
        return data

    def greet(self):
        assert self.receive(18)[:8] == b"NBDMAGIC"
        self.socket.sendall(struct.pack(">I", 3))  # fixed newstyle, no zeroes
        return self

    def enter(self):
        self.greet()
        data = struct.pack(">I", len(self.name)) + self.name + struct.pack(">H", 0)
        self.socket.sendall(struct.pack(">8sII", b"IHAVEOPT", 7, len(data)) + data)
        while True:
            _, _, kind, length = struct.unpack(">QIII", self.receive(20))
            self.receive(length)
            if kind == 1:  # the option is acknowledged
                return self

    def request(self, command, cookie, offset, length, flags=0, payload=b""):
        self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, flags, command, cookie, offset, length) + payload)

    def ask_and_never_read(self):
        """More than any socket holds. The first bytes are taken, so that the replies are under way."""
        for _ in range(32):
            self.request(READ, 1, 0, MIB)
        self.receive(16)
        return self


class Flood(Raw):
    """Writes without waiting for replies, so that the server and its socket are full; and receives these.

    Every write waits for the disk (FUA). Write number n goes to sector n modulo SECTORS, and says its number.
    """

    def __init__(self, uri, start):
        super().__init__(uri)
        self.start = start
        self.sent = 0  # whole requests
        self.replies = {}  # number: error
        self.enter()
        self.hold_much()
        self.threads = [threading.Thread(target=self.send_all), threading.Thread(target=self.receive_all)]
        for thread in self.threads:
            thread.start()

    def hold_much(self):
        """Some thousand requests in the socket, which last a server longer than it takes to hear of a signal."""
        option = 32  # SO_SNDBUFFORCE, which is not limited by net.core.wmem_max, but for root alone
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, option, 4 * MIB)
        except PermissionError:
            pytest.fail("this test needs CAP_NET_ADMIN, for a large socket buffer")

    @staticmethod
    def sector(number):
        return struct.pack(">Q", number) * (SECTOR // 8)

    def send_all(self):
        try:
            while True:
                self.request(WRITE, self.sent, self.start + self.sent % SECTORS * SECTOR, SECTOR, FUA,
                             self.sector(self.sent))
                self.sent += 1
        except OSError:
            pass  # the server takes no more

    def receive_all(self):
        data = b""
        while piece := self.socket.recv(64 * KIB):
            data += piece
            whole = len(data) // 16 * 16
            for magic, error, cookie in struct.iter_unpack(">IIQ", data[:whole]):
                assert magic == 0x67446698 and cookie not in self.replies
                self.replies[cookie] = error
            data = data[whole:]

    def check(self, content):
        assert set(self.replies.values()) <= {0, ESHUTDOWN}
        lost = set(range(self.sent)) - set(self.replies)
        assert not lost, f"{len(lost)} requests got no answer: {sorted(lost)[:5]}"
        last = {}
        for number in sorted(n for n, error in self.replies.items() if error == 0):
            last[number % SECTORS] = number
        for at, number in last.items():
            offset = self.start + at * SECTOR
            assert content[offset:offset + SECTOR] == self.sector(number), f"{offset}: not what {number} wrote"


def stop_while_flooded(server, floods):
    """SIGTERM at a moment at which all floods have filled their sockets, however quick the server is."""
    server.process.send_signal(signal.SIGSTOP)

    def full():
        before = [f.sent for f in floods]
        time.sleep(0.1)
        return before == [f.sent for f in floods]
    wait_for(full)
    server.process.send_signal(signal.SIGTERM)
    server.process.send_signal(signal.SIGCONT)


def ended(server):
    """Waits for a server that was told to stop, at most the 30 s that it has; what it said meanwhile."""
    server.snap.servers.remove(server)
    try:
        _, err = server.process.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        server.process.kill()
        pytest.fail("the server did not end within 30 s")
    assert server.process.returncode == 0, err
    return err


@pytest.mark.parametrize("io", ["uring", "threads"])
def test_term_finishes_or_refuses_what_is_in_flight_and_keeps_what_was_answered(base, io):
    base.env["SNAPCTL_IO"] = io
    base("create", "web", "--from", "base:1")
    with base.export("web", options=["--threads", "2"]) as server:
        # These two never say a word again, nor close.
        silent = [Raw(server.uri).greet(), Raw(server.uri).enter()]
        floods = [Flood(server.uri, (1 + i) * MIB) for i in range(4)]
        wait_for(lambda: min(len(f.replies) for f in floods) > 2 * SECTORS, seconds=60)
        stop_while_flooded(server, floods)
        ended(server)
        for thread in [t for f in floods for t in f.threads]:
            thread.join()
        del silent
    content = base.content("web")
    for flood in floods:
        flood.check(content)
    assert any(ESHUTDOWN in f.replies.values() for f in floods), "nothing was left to be refused"
    assert content[:MIB] == base.base[:MIB] and content[5 * MIB:] == base.base[5 * MIB:]


def written_and_stuck(base, volume):
    """A server with a write that was answered, and a client that reads no replies."""
    base("create", volume, "--from", "base:1")
    server = base.export(volume).__enter__()
    with Client(server.uri) as h:
        h.pwrite(b"w" * 4096, 0)
    return server, Raw(server.uri).enter().ask_and_never_read()


def test_a_client_that_does_not_read_is_cut_off_in_time(base):
    # On both kinds of loop at once, for it takes as long as a server waits for its clients.
    stuck = []
    for io in ("uring", "threads"):
        base.env["SNAPCTL_IO"] = io
        stuck.append(written_and_stuck(base, io))
    for server, _ in stuck:
        server.process.send_signal(signal.SIGTERM)
    for server, _ in stuck:
        ended(server)
    for volume in ("uring", "threads"):
        assert base.content(volume) == b"w" * 4096 + base.base[4096:]


def test_a_second_signal_cuts_off_a_client_that_does_not_read(base):
    server, stuck = written_and_stuck(base, "web")
    server.process.send_signal(signal.SIGTERM)
    while "stopping" not in server.process.stderr.readline():
        pass
    server.process.send_signal(signal.SIGTERM)
    assert "a second signal" in ended(server)
    del stuck
    assert base.content("web") == b"w" * 4096 + base.base[4096:]
