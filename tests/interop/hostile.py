"""A tiny NBD client on a raw socket, written from the protocol document alone, which also says what no honest client
says. Every receive ends within the socket's time limit."""

import contextlib
import socket
import struct

NBDMAGIC, IHAVEOPT, REPLY_MAGIC = b"NBDMAGIC", b"IHAVEOPT", 0x0003E889045565A9
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY, LIST_META, SET_META, EXTENDED_HEADERS = (
    1, 2, 3, 5, 6, 7, 8, 9, 10, 11)
ACK, ERR_UNSUP, ERR_INVALID, ERR_TOO_BIG = 1, 0x80000001, 0x80000003, 0x80000009
READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS = range(8)
REQUEST_MAGIC, SIMPLE_MAGIC, CHUNK_MAGIC = 0x25609513, 0x67446698, 0x668E33EF
EINVAL, ENOSPC = 22, 28


def option(number, data=b"", length=None):
    return IHAVEOPT + struct.pack(">II", number, len(data) if length is None else length) + data


def info_data(name=b"vol", infos=(), name_length=None, count=None):
    return (struct.pack(">I", len(name) if name_length is None else name_length) + name +
            struct.pack(">H", len(infos) if count is None else count) + b"".join(struct.pack(">H", i) for i in infos))


def meta_data(name, queries):
    data = struct.pack(">I", len(name)) + name + struct.pack(">I", len(queries))
    return data + b"".join(struct.pack(">I", len(q)) + q for q in queries)


def request(command, offset=0, length=0, flags=0, cookie=1, payload=b"", magic=REQUEST_MAGIC):
    return struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length) + payload


class Client:
    """A connection to the unix socket at `path`."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(path))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, *parts):
        self.socket.sendall(b"".join(parts))

    def receive(self, count):
        out = b""
        while len(out) < count:
            got = self.socket.recv(count - len(out))
            if not got:
                raise EOFError("the server closed")
            out += got
        return out

    def is_closed(self):
        """True once the server has ended the connection, whatever it sent before."""
        with contextlib.suppress(ConnectionError):
            while self.socket.recv(1 << 16):
                pass
        return True

    # ---- Handshake

    def greet(self, flags=3):
        greeting = self.receive(18)
        assert greeting == NBDMAGIC + IHAVEOPT + struct.pack(">H", 3)
        self.send(struct.pack(">I", flags))

    def reply(self, number):
        magic, echoed, kind, length = struct.unpack(">QIII", self.receive(20))
        assert (magic, echoed) == (REPLY_MAGIC, number)
        return kind, self.receive(length)

    def answer(self, number, data=b""):
        """The replies to an option: the kind of the last, and the data of all."""
        self.send(option(number, data))
        return self.last_reply(number)

    def last_reply(self, number):
        datas = []
        while True:
            kind, data = self.reply(number)
            datas.append(data)
            if kind == ACK or kind & 0x80000000:
                return kind, datas

    def enter(self, structured=False, contexts=()):
        self.greet()
        if structured:
            assert self.answer(STRUCTURED_REPLY)[0] == ACK
        if contexts:
            assert self.answer(SET_META, meta_data(b"vol", contexts))[0] == ACK
        assert self.answer(GO, info_data())[0] == ACK
        return self

    # ---- Transmission, with simple replies to all but READ and BLOCK_STATUS

    def error(self, *args, **kwargs):
        """The error of a request that brings no data; 0 for none."""
        self.send(request(*args, **kwargs))
        return self.error_reply()

    def error_reply(self):
        magic, = struct.unpack(">I", self.receive(4))
        if magic == SIMPLE_MAGIC:
            error, _ = struct.unpack(">IQ", self.receive(12))
            return error
        assert magic == CHUNK_MAGIC
        _, kind, _, length = struct.unpack(">HHQI", self.receive(16))
        body = self.receive(length)
        return struct.unpack(">I", body[:4])[0] if kind & 0x8000 else 0

    def read(self, offset, length):
        assert self.error(READ, offset, length) == 0
        return self.receive(length)
