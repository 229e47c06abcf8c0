"""What measures: the lean load generator (tests/load/nbd_load), and what tools/bench makes of figures."""

import json
import pathlib
import subprocess
import sys
import threading

import pytest
from conftest import KIB, MIB, PROGRAM, TOP, Client, noise

sys.path.insert(0, str(TOP / "tools"))
from benchmark import report, turns, wanted  # pylint: disable=wrong-import-position

LOAD = pathlib.Path(PROGRAM).parent.parent.parent / "tests/load/nbd_load"


@pytest.fixture(name="served")
def served_volume(snap):
    """Gives a function that runs the generator against a volume of 8 MiB, and the volume's server."""
    snap("create", "v", "--size", "8M")
    with snap.export("v") as server:
        def run(*options):
            path = server.uri.rsplit("socket=", 1)[1]
            return subprocess.run([LOAD, "--json", "--address", f"unix:{path}", *options], capture_output=True, text=True,
                                  timeout=60, check=False)
        yield run, server


def figures(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_block_once_and_a_flush_after_every_32_before_the_next(served):
    run, server = served
    said = figures(run("--read-percent", "0", "--once", "--flush-every", "32", "--depth", "8", "--seconds", "60"))
    assert (said["writes"], said["reads"], said["flushes"]) == (8 * MIB // (4 * KIB), 0, 8 * MIB // (128 * KIB) - 1)
    assert said["per_second"] == pytest.approx(said["writes"] / said["seconds"])
    assert 0 < said["p50_us"] <= said["p99_us"] <= said["p999_us"] and said["flush_p50_us"] > 0
    with Client(server.uri) as h:  # really written, each block of it
        content = h.pread(8 * MIB, 0)
    assert all(content[at:at + 4 * KIB].strip(b"\0") for at in range(0, 8 * MIB, 4 * KIB))


def test_a_mix_on_two_connections_with_the_servers_time(served):
    run, server = served
    said = figures(run("--read-percent", "70", "--connections", "2", "--block", "16K", "--seconds", "0.5",
                       "--pid", str(server.process.pid)))
    assert 0.6 < said["reads"] / (said["reads"] + said["writes"]) < 0.8
    assert said["mib_per_second"] == pytest.approx(said["per_second"] * 16 / 1024)
    assert said["server_cpu_us"] >= 0


def test_it_verifies_and_notices_what_another_wrote(served):
    run, server = served
    assert figures(run("--read-percent", "50", "--verify", "--seconds", "0.5"))["compared"] > 0
    ended = threading.Event()

    def scribble():
        with Client(server.uri) as h:
            while not ended.is_set():
                h.pwrite(noise(8 * MIB, 2), 0)
    scribbler = threading.Thread(target=scribble)
    scribbler.start()
    try:
        done = run("--read-percent", "50", "--verify", "--seconds", "20")
    finally:
        ended.set()
        scribbler.join()
    assert done.returncode == 1 and "nbd_load: " in done.stderr


def runs(*rates, cpu=5.0):
    return [{"per_second": rate, "server_cpu_us": cpu, "p50_us": 10.0, "p99_us": 20.0} for rate in rates]


# Ratios of the rounds: 4, 1 and 3; the ratio of the medians would be 2.
RESULTS = {
    "commands": ["tools/bench --report"], "minutes": 1.5, "parts": [{"part": "lean", "minutes": 1.5}], "failures": ["fio: broke"],
    "settings": {"MiB": 64, "rounds": 3, "seconds": 1}, "machine": {"cores": 2, "CPU": "C", "memory": "1 GiB", "kernel": "6.1",
                                                                   "file system": "ext4"},
    "versions": {"snapctl": "0"},
    "rows": {"read-qd32": {"title": "reads", "unit": "IOPS", "servers": {
        "snapctl": runs(400, 100, 300), "bare server": runs(400, 200, 300, cpu=4.0), "qemu-nbd qcow2": runs(100, 100, 100, cpu=40.0)}}},
}


def test_ratios_are_of_the_same_round():
    assert turns.ratios(runs(400, 100, 300), runs(100, 100, 100)) == (3, 1, 4)


def test_what_was_wanted_and_missed_is_bold():
    table = {work: (bound, value) for work, bound, value in wanted.rows(RESULTS)}
    assert table["4 KiB random read, depth 32, of the bare server"] == ("at least 0.7", "1.00 (0.50 to 1.00)")
    assert table["4 KiB random read, depth 32, times qemu-nbd qcow2"] == ("at least 4", "**3.00 (1.00 to 4.00)**")
    assert table["server CPU a 4 KiB random read, depth 32, of qemu-nbd qcow2's"][1].startswith("0.12 ")


def test_the_report_takes_its_place_and_leaves_the_rest(tmp_path, monkeypatch):
    (tmp_path / "docs").mkdir()
    document = tmp_path / "docs/performance.md"
    document.write_text(f"before\n{report.BEGIN}\nearlier figures\n{report.END}\nafter\n")
    monkeypatch.setattr(report, "TOP", tmp_path)
    monkeypatch.setattr(report, "DOCUMENT", document)
    report.write(RESULTS)
    text = document.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n") and text.endswith(f"{report.END}\nafter\n") and "earlier figures" not in text
    assert "| reads | 300 (5.0) | 300 (4.0) | 100 (40.0) |" in text
    assert "| reads | 1.00 (0.50 to 1.00) | 3.00 (1.00 to 4.00) |" in text
    assert "- fio: broke" in text
    assert (tmp_path / "docs/charts/peers.svg").read_text().lstrip().startswith("<?xml")
    assert (tmp_path / "docs/charts/peers.png").read_bytes().startswith(b"\x89PNG")
