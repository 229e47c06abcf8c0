"""A server that gets no more memory: requests are answered ENOMEM, no one loses anything, and it goes on once there is some."""

import errno
import pathlib
import re
import resource
import time

import nbd
from conftest import KIB, MIB, Client, noise


def data_of(pid):
    """Bytes of memory that a process may write to, which RLIMIT_DATA limits."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmData:\s+(\d+) kB", status).group(1)) * KIB


def answer(call, *args):
    """The errno that a request was answered with; 0 if it was done."""
    try:
        call(*args)
        return 0
    except nbd.Error as error:
        return error.errnum


def connected(server):
    """A client, as soon as the server has noticed that it has memory again."""
    for _ in range(200):
        try:
            return Client(server.uri)
        except nbd.Error:
            time.sleep(0.02)
    raise AssertionError("the server lets no one in")


def use_up_memory(server, crowd):
    """Connects clients, each of which costs the server memory, until it has none for another; gives how many were let in."""
    for count in range(200):
        client = nbd.NBD()
        try:
            client.connect_uri(server.uri)
        except nbd.Error:
            return count
        crowd.append(client)
    raise AssertionError("the server had memory for 200 clients more")


def test_without_memory_requests_get_enomem_and_what_was_answered_is_there(snap):
    snap("create", "web", "--size", "16M")
    with snap.export("web") as server:
        pid = server.process.pid
        with Client(server.uri) as client:
            written = noise(1 * MIB, 3)
            client.pwrite(written, 1 * MIB)
            resource.prlimit(pid, resource.RLIMIT_DATA, (data_of(pid) + 512 * KIB, resource.RLIM_INFINITY))
            crowd = []
            use_up_memory(server, crowd)
            # Who was connected before gets an answer, to every kind of request, and keeps the connection.
            answers = {
                answer(client.pread, 4 * KIB, 0),
                answer(client.pwrite, noise(4 * KIB, 4), 8 * MIB),
                answer(client.pwrite, noise(512, 4), 9 * MIB + 512),
                answer(client.pwrite, noise(4 * KIB, 4), 10 * MIB, nbd.CMD_FLAG_FUA),
                answer(client.zero, 64 * KIB, 11 * MIB),
                answer(client.trim, 64 * KIB, 12 * MIB),
                answer(client.flush),
            }
            assert answers == {errno.ENOMEM}
            # The same when memory is there again, without a restart.
            crowd.clear()
            resource.prlimit(pid, resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            with connected(server) as other:
                other.pwrite(written, 5 * MIB)
                other.flush()
                assert other.pread(1 * MIB, 1 * MIB) == written
            assert client.pread(1 * MIB, 5 * MIB) == written
            assert client.pread(8 * MIB, 8 * MIB) == bytes(8 * MIB)
    assert "out of memory" in server.log
    assert snap("dump", "web", "-", text=False)[MIB:2 * MIB] == written
