"""A small NBD client, one request at a time: to write given blocks, to hold a volume open, to time one read."""

import socket
import struct

OPTION_MAGIC = 0x49484156454F5054
REQUEST_MAGIC = 0x25609513
REPLY_MAGIC = 0x67446698
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3


class NbdClient:
    """Use in a with block. Simple replies; the export is entered with NBD_OPT_EXPORT_NAME."""

    def __init__(self, path, export):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self._receive(18)
        name = export.encode()
        self.socket.sendall(struct.pack(">IQII", 3, OPTION_MAGIC, 1, len(name)) + name)  # 3: fixed newstyle, no zeroes
        self.size, = struct.unpack(">Q", self._receive(10)[:8])

    def _receive(self, count):
        data = bytearray()
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise ConnectionError("the server closed the connection")
            data += piece
        return bytes(data)

    def _request(self, command, offset=0, length=0, data=b""):
        self.socket.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, command, 0, offset, length) + data)
        magic, error, _ = struct.unpack(">IIQ", self._receive(16))
        if magic != REPLY_MAGIC or error != 0:
            raise ConnectionError(f"the server answered with error {error}")

    def read(self, offset, length):
        self._request(READ, offset, length)
        return self._receive(length)

    def write(self, offset, data):
        self._request(WRITE, offset, len(data), data)

    def flush(self):
        self._request(FLUSH)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.socket.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, DISCONNECT, 0, 0, 0))
        except OSError:
            pass
        self.socket.close()
