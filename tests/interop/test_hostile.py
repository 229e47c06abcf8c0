"""A client that means harm, written from the protocol document alone: what other servers' CVEs and bugs were about (the
NBD checklist), a cut at every byte, lies about lengths, garbage. After each the server serves on."""

import contextlib
import os
import random
import re
import socket
import struct
import subprocess
import time

import pytest

from conftest import MIB, SNAPCTL, sh
from hostile import (ABORT, ACK, BLOCK_STATUS, CACHE, DISC, EINVAL, ENOSPC, ERR_INVALID, ERR_TOO_BIG, ERR_UNSUP,
                     EXPORT_NAME, EXTENDED_HEADERS, FLUSH, GO, IHAVEOPT, INFO, LIST, LIST_META, READ, SET_META, STARTTLS,
                     STRUCTURED_REPLY, TRIM, WRITE, WRITE_ZEROES, Client, info_data, meta_data, option, request)

SIZE = 64 * MIB
MAX_CONNECTIONS = 256  # kMaxConnections
BEGIN = b"\0\0\0\x03"  # the client's flags


class Server:
    """`export vol`; `connect()` gives a client, `check()` shows that it serves on."""

    def __init__(self, path):
        self.path = path / "s"
        self.log_path = path / "log"
        self.process = subprocess.Popen([SNAPCTL, "export", "vol", "--socket", str(self.path), "--log",
                                         str(self.log_path)], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline()

    def connect(self):
        return Client(self.path)

    def check(self):
        """A good client comes and works, also once more, while the bad ones go."""
        until = time.monotonic() + 30
        while True:
            try:
                with self.connect() as client:
                    client.enter()
                    block = random.randbytes(4096)
                    assert client.error(WRITE, SIZE - 4096, 4096, payload=block) == 0
                    assert client.read(SIZE - 4096, 4096) == block
                    client.send(request(DISC))
                    assert client.is_closed()
                    return
            except (EOFError, ConnectionError):  # the places of the bad ones are not free yet
                assert time.monotonic() < until
                time.sleep(0.05)

    def log(self):
        return self.log_path.read_text()

    def status(self, field):
        """Bytes, of /proc/PID/status."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as f:
            return int(re.search(rf"^{field}:\s+(\d+) kB", f.read(), re.M)[1]) << 10

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile")
    os.environ["SNAPCTL_STORE"] = str(path / "store")
    try:
        sh(SNAPCTL, "create", "vol", "--size", SIZE)
        server = Server(path)
    finally:
        del os.environ["SNAPCTL_STORE"]
    yield server
    server.process.terminate()
    assert server.process.wait(timeout=30) == 0


@pytest.fixture
def server(running):
    """One server for all tests: each leaves it serving, and with no more descriptors than before."""
    running.check()
    before = running.descriptors()
    yield running
    running.check()
    until = time.monotonic() + 30
    while running.descriptors() > before:
        assert time.monotonic() < until, f"{running.descriptors()} descriptors, {before} before"
        time.sleep(0.05)


@pytest.fixture
def client(server):
    with server.connect() as it:
        yield it


# ---- Handshake


@pytest.mark.parametrize("length", [3000, 4096, 4097, 60000])
def test_cve_2017_15118_long_export_names(client, length):
    client.greet()
    kind, _ = client.answer(INFO, info_data(b"n" * length))
    assert kind & 0x80000000
    client.send(option(EXPORT_NAME, b"n" * length))
    assert client.is_closed()


def test_cve_2022_26495_name_length_of_all_ones(client):
    client.greet()
    for number in (INFO, GO, LIST_META, SET_META):
        if number == LIST_META:
            assert client.answer(STRUCTURED_REPLY)[0] == ACK
        assert client.answer(number, b"\xff\xff\xff\xff" + b"vol\0\0")[0] == ERR_INVALID
    assert client.answer(GO, info_data())[0] == ACK


@pytest.mark.parametrize("name_length, count", [(0xFFFFFFFF, 0), (0xFFFFFFFA, 0), (0x7FFFFFFF, 1), (4, 0), (3, 1),
                                                (3, 0xFFFF), (0, 0x7FFF), (0x80000000, 0x8000)])
def test_cve_2022_26496_lengths_inside_info_and_go_that_overflow(client, name_length, count):
    client.greet()
    for number in (INFO, GO):
        assert client.answer(number, info_data(name_length=name_length, count=count))[0] == ERR_INVALID
    assert client.answer(GO, info_data())[0] == ACK


def test_lies_about_lengths_inside_meta_context_options(client):
    client.greet()
    assert client.answer(STRUCTURED_REPLY)[0] == ACK
    good = meta_data(b"vol", [b"base:allocation"])
    for at in (0, 7, 11):  # of the name, the count, the query
        for lie in (0xFFFFFFFF, 0x80000000, len(good), 1 << 20):
            data = good[:at] + struct.pack(">I", lie) + good[at + 4:]
            assert client.answer(SET_META, data)[0] & 0x80000000
    assert client.answer(SET_META, meta_data(b"vol", [b"q" * 4097]))[0] == ERR_INVALID
    assert client.answer(SET_META, meta_data(b"n" * 4097, [b"base:"]))[0] in (ERR_INVALID, ERR_TOO_BIG)
    assert client.answer(SET_META, meta_data(b"vol", [b""] * 15000))[0] == ACK
    assert client.answer(SET_META, good)[0] == ACK
    assert client.answer(GO, info_data())[0] == ACK


@pytest.mark.parametrize("number", [EXPORT_NAME, LIST, STARTTLS, GO, 4711])
def test_cve_2017_15119_options_of_4_gb(server, number):
    for length in (0xFFFFFFFF, 0x7FFFFFFF, (64 << 10) + 1):
        with server.connect() as client:
            client.greet()
            client.send(option(number, length=length))
            assert client.is_closed()


def test_cve_2021_3716_plaintext_behind_starttls_to_a_server_without_tls(client):
    client.greet()
    client.send(option(STARTTLS), option(GO, info_data()))
    assert client.reply(STARTTLS)[0] & 0x80000000  # refused: the next option is one in its own right
    assert client.last_reply(GO)[0] == ACK


def test_cve_2019_14850_commands_out_of_order(server):
    """A request where an option is due, options after GO, a second greeting."""
    for early in (request(READ, 0, 512), request(DISC), b"\0" * 28):
        with server.connect() as client:
            client.greet()
            client.send(early)
            assert client.is_closed()
    for late in (option(GO, info_data()), option(ABORT), b"\0\0\0\x03" * 7):
        with server.connect() as client:
            client.enter()
            client.send(late, b"\0" * 28)
            assert client.is_closed()


def test_cve_2013_7441_and_cve_2017_9524_a_cut_at_every_byte_of_the_handshake(server):
    dialogue = b"".join((BEGIN, option(STRUCTURED_REPLY), option(LIST), option(LIST_META, meta_data(b"vol", [])),
                         option(SET_META, meta_data(b"vol", [b"base:allocation"])), option(INFO, info_data()),
                         option(4711, b"data"), option(GO, info_data(infos=(1, 2, 3))), request(READ, 0, 512),
                         request(WRITE, 0, 64, payload=b"x" * 64), request(BLOCK_STATUS, 0, 4096)))
    for cut in range(len(dialogue)):
        with server.connect() as client:
            if cut % 2:  # dropped: with what the server has sent unread
                client.receive(18)
            client.send(dialogue[:cut])
            if cut % 3 == 0:  # half-closed: the server ends by itself
                client.socket.shutdown(socket.SHUT_WR)
                assert client.is_closed()


@pytest.mark.parametrize("seed", range(5))
def test_garbage_at_every_stage(server, seed):
    rng = random.Random(seed)
    for stage in range(40):
        with server.connect() as client, contextlib.suppress(ConnectionError):
            if stage % 4 == 1:
                client.greet()
            if stage % 4 == 2:
                client.greet()
                client.send(IHAVEOPT)
            if stage % 4 == 3:
                client.enter(structured=True)
            client.send(rng.randbytes(rng.choice((1, 16, 28, 100, 70000))))
            client.socket.shutdown(socket.SHUT_WR)
            assert client.is_closed()


def test_every_option_with_every_small_length_of_garbage(client):
    client.greet()
    rng = random.Random(1)
    for number in (LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY, LIST_META, SET_META, EXTENDED_HEADERS, 4, 12):
        for length in range(1, 40):
            kind, _ = client.answer(number, b"\xff" + rng.randbytes(length - 1))
            assert kind & 0x80000000
    assert client.answer(4711)[0] == ERR_UNSUP
    assert client.answer(GO, info_data())[0] == ACK


# ---- Transmission


def test_cve_2005_3534_a_request_longer_than_any_buffer(server):
    """A read is refused, a payload ends the connection before anything is allocated."""
    with server.connect() as client:
        client.enter()
        assert client.error(READ, 0, 32 * MIB + 1) == EINVAL
        assert client.error(READ, 0, 0xFFFFFFFF) == EINVAL
        assert client.error(FLUSH) == 0
    before = server.status("VmRSS")
    for length in (32 * MIB + 1, 0x7FFFFFFF, 0xFFFFFFFF):
        with server.connect() as client:
            client.enter()
            client.send(request(WRITE, 0, length))
            assert client.is_closed()
    assert server.status("VmRSS") < before + 32 * MIB


def test_cve_2020_10761_requests_near_the_limits(client):
    """The longest there are, at both ends of the export; errors with words as long as they get."""
    client.enter(structured=True)
    for offset, length, error in ((0, 32 * MIB, 0), (SIZE - 32 * MIB, 32 * MIB, 0), (SIZE - 32 * MIB + 1, 32 * MIB, 22),
                                  (SIZE, 1, 22), (2**64 - 1, 1, 22), (2**64 - 32 * MIB, 32 * MIB, 22),
                                  (2**63, 0xFFFFFFFF, 22)):
        client.send(request(READ, offset, length))
        while True:
            head = client.receive(20)
            flags, kind, _, body = struct.unpack(">HHQI", head[4:])
            data = client.receive(body)
            if kind & 0x8000:
                assert struct.unpack(">I", data[:4])[0] == error
            if flags & 1:
                break
    assert client.error(WRITE_ZEROES, 0, 0xFFFFFFFF) == ENOSPC
    assert client.error(TRIM, 2**64 - 1, 0xFFFFFFFF) == EINVAL


def test_cve_2025_47711_block_status_of_all_ones(client):
    client.enter(structured=True, contexts=[b"base:allocation", b"snap:delta", b"qemu:allocation-depth"])
    for offset, length in ((0, 0xFFFFFFFF), (SIZE - 1, 0xFFFFFFFF), (2**64 - 1, 0xFFFFFFFF), (SIZE, 1), (0, 0)):
        assert client.error(BLOCK_STATUS, offset, length) == EINVAL
    assert client.error(BLOCK_STATUS, 0, SIZE, flags=8) == 0  # REQ_ONE


def test_unknown_commands_and_flags_leave_the_connection(client):
    client.enter()
    for command in (8, 99, 0xFFFF):
        assert client.error(command, 0, 4096) == EINVAL
    for command in (READ, TRIM, CACHE, FLUSH, WRITE_ZEROES):
        assert client.error(command, 0, 0 if command == FLUSH else 4096, flags=0x8000) == EINVAL
    assert client.error(WRITE, 0, 4096, flags=0x8000, payload=b"x" * 4096) == EINVAL
    assert client.error(FLUSH) == 0


def test_nbdkit_9d82aa4f_many_reads_queued_then_hung_up(server):
    for _ in range(10):
        client = server.connect()
        client.enter()
        client.send(*(request(READ, 0, MIB, cookie=i) for i in range(200)))
        client.socket.close()


def test_a_payload_that_is_announced_and_never_sent(server):
    """Others are served meanwhile."""
    stuck = [server.connect().enter() for _ in range(20)]
    for client in stuck:
        client.send(request(WRITE, 0, 32 * MIB, payload=b"x" * 100))
    server.check()
    for client in stuck:
        client.socket.close()


def test_half_closed_sockets_get_their_replies(client):
    client.enter()
    client.send(*(request(FLUSH, cookie=i) for i in range(50)))
    client.socket.shutdown(socket.SHUT_WR)
    assert [client.error_reply() for _ in range(50)] == [0] * 50
    assert client.is_closed()


def test_a_client_that_never_reads_stops_only_itself(server):
    stuck = server.connect().enter()
    stuck.socket.settimeout(0.2)
    with pytest.raises(TimeoutError):  # the server takes no more of it
        while True:
            stuck.send(request(READ, 0, MIB) * 1000)
    for _ in range(5):
        server.check()
    stuck.socket.close()


# ---- Many of them


def test_memory_stays_bounded_under_200_hostile_connections(server):
    """50 read none of the replies that they asked for, 50 announce payloads that do not come, 100 stay in the
    handshake, half of them in the middle of an option. What all may hold together is the server's budget of 512 MiB,
    and for each connection 1 MiB and its receive buffer (include/snap/limits.h)."""
    before = server.status("VmRSS")
    bad = []
    for _ in range(50):
        client = server.connect().enter()
        client.send(*(request(READ, 0, MIB, cookie=i) for i in range(100)))
        bad.append(client)
    for _ in range(50):
        client = server.connect().enter()
        client.send(request(WRITE, 0, 32 * MIB, payload=b"x" * 1000))
        bad.append(client)
    for i in range(100):
        client = server.connect()
        client.greet()
        client.send(option(GO, b"x" * 65000, length=65536) if i % 2 else IHAVEOPT)
        bad.append(client)
    for _ in range(5):
        server.check()
    bound = before + 512 * MIB + 256 * (MIB + 512 * 1024)
    assert server.status("VmHWM") < bound, f"{server.status('VmHWM') // MIB} MiB, {before // MIB} MiB before"
    for client in bad:
        client.socket.close()


def test_cve_2024_7409_thousands_of_half_open_connections(server):
    """Beyond its limit the server closes connections at once; those within it are let go when the handshake's time is
    up, and a good client gets a place."""
    kept, turned_away = [], 0
    for i in range(3000):
        client = server.connect()
        try:
            client.receive(18)
            if i % 2:
                client.send(BEGIN + IHAVEOPT)
            kept.append(client)
        except (EOFError, ConnectionError):
            turned_away += 1
            client.socket.close()
        if i % 100 == 0:
            assert server.descriptors() < MAX_CONNECTIONS + 100
    assert turned_away > 0
    server.check()  # waits for the first to be let go
    for client in kept:
        assert client.is_closed()
    log = server.log()
    assert "a client was turned away" in log
    assert log.count("turned away") < min(turned_away, 300), "they flood the log"
    for client in kept:
        client.socket.close()


def test_connecting_and_leaving_10000_times_loses_no_descriptor(server):
    """The fixture counts them."""
    for i in range(10000):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(server.path))
        if i % 5 == 0:
            with contextlib.suppress(ConnectionError):  # turned away: too many are still on their way out
                client.sendall(BEGIN)
        client.close()
