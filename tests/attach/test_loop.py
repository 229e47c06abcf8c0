"""What only FUSE and loop devices have: they go with their server."""

import os
import pathlib

from conftest import MIB, VIA, attached_now, sh, wait_for

assert VIA == "fuse", "these run in the kernel that is here"


def test_taken_away_by_another_program(snap):
    snap("create", "v", "--size", "8M")
    device = snap.attach("v")
    sh("losetup", "-d", device)
    wait_for(lambda: not snap.servers(), "the server to end")
    snap("detach", "v", code=4, says="not attached")
    (snap.run / "v.log").unlink()
    snap.attach("v")
    snap("detach", "v")


def test_a_server_that_is_told_to_stop_takes_loop_devices_with_it(snap):
    snap("create", "v", "--size", "64M")
    with snap.serve() as server:
        device = snap.attach("v")
        data = os.urandom(16 * MIB)
        pathlib.Path(device).write_bytes(data)
        server.stop()
        assert device not in attached_now() and snap.json("doctor")["findings"] == []
        server.start()
        device = snap.attach("v")
        assert pathlib.Path(device).read_bytes()[:16 * MIB] == data
        snap("detach", "v")
