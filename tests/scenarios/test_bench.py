"""bench: what it measures and how it says so, and that nothing of it stays."""

import json
import os
import shutil
import signal
import subprocess

import pytest
from conftest import MIB, noise, volumes, wait_for
from serve import StoreServer

# Of what is asked of all requests, and of each kind that there was.
RATES = {"requests", "requests_per_second", "bytes_per_second", "p50_us", "p99_us", "p999_us"}
KINDS = ("read", "write", "trim", "flush")
MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml"}


@pytest.fixture
def web(base):
    """A volume web of base:1 (8 MiB) with blocks of its own, and what it holds."""
    base("create", "web", "--from", "base:1")
    base.write("web", {MIB: noise(MIB, 7)})
    # A clone seals what was written, once: from then on whatever there is more was left.
    base("clone", "web", "other")
    base("rm", "--yes", "other")
    base.before = files(base), base.state()
    return base


def files(snap):
    """What is in the store, by name; what events tells is not of the content."""
    return {str(p.relative_to(snap.store)) for p in snap.store.rglob("*") if p.is_file()
            and p.relative_to(snap.store).parts[0] != "events"}


def servers(snap):
    return [s for s in snap.json("ps")["servers"] if s["store"] == str(snap.store)]


def assert_nothing_left(snap):
    assert files(snap) == snap.before[0]
    assert snap.state() == snap.before[1]
    assert servers(snap) == []
    assert snap("check").endswith("all is well\n")


def assert_figures(of, kinds):
    assert set(of) == RATES | {"profile", "file", "seconds", "server_cpu_us_per_request", *KINDS}
    assert {kind for kind in KINDS if of[kind] is not None} == kinds
    assert of["requests"] == sum(of[kind]["requests"] for kind in kinds - {"flush"})
    for one in [of, *(of[kind] for kind in kinds)]:
        assert RATES <= set(one)
        assert 0 < one["p50_us"] <= one["p99_us"] <= one["p999_us"] < 5e6
        assert one["requests_per_second"] == pytest.approx(one["requests"] / of["seconds"], rel=0.01, abs=1)
    assert 0.5 < of["server_cpu_us_per_request"] < 10000


def test_a_table_tells_of_each_profile_and_the_volume_stays_as_it_is(web):
    rows = [line.split() for line in web("bench", "web", "--runtime", "0.1").splitlines()]
    assert rows[0] == "PROFILE IOPS MIB/S P50 P99 P99.9 FLUSH P50 FLUSH P99 CPU/REQUEST".split()
    assert [row[0] for row in rows[1:]] == ["randread-4k-qd1", "randread-4k-qd32", "randwrite-4k-qd1", "randwrite-4k-qd32",
                                            "randwrite-4k-qd1-fsync1", "seqread-256k-qd8", "seqwrite-256k-qd8"]
    assert all(float(row[1]) > 0 and float(row[2]) > 0 for row in rows[1:])
    assert web.err == ""
    assert_nothing_left(web)


def test_json_has_every_figure_and_a_profile_is_a_name_or_a_file(web, tmp_path):
    own = tmp_path / "my own.fio"
    own.write_text("[global]\nioengine=nbd\nuri=${URI}\nbs=8k\ntime_based=1\n[a]\nrw=read\n[b]\nrw=randtrim\n")
    said = web.json("bench", "web", "verify", "nbd-randwrite-4k-qd1-fsync1.fio", own, "--runtime", "0.3",
                    "--chart", tmp_path / "chart.png")
    assert (said["schema"], said["volume"], said["device"]) == (1, "web", False)
    profiles = said["profiles"]
    assert [p["profile"] for p in profiles] == ["verify", "randwrite-4k-qd1-fsync1", "my own"]
    for of, kinds in zip(profiles, [{"read", "write"}, {"write", "flush"}, {"read", "trim"}]):
        assert_figures(of, kinds)
        assert of["seconds"] > 0.2
    assert profiles[2]["file"] == str(own)
    assert profiles[2]["read"]["bytes_per_second"] == pytest.approx(8192 * profiles[2]["read"]["requests_per_second"], rel=0.01)
    assert (tmp_path / "chart.png").read_bytes().startswith(MAGIC["png"])
    assert_nothing_left(web)


def test_depths_are_measured_and_the_layers_removed(web, tmp_path):
    said = web.json("bench", "web", "--depths", "5,2,5", "--runtime", "0.1", "--chart", tmp_path / "chart.svg")
    assert [d["depth"] for d in said["depths"]] == [2, 5]
    for depth in said["depths"]:
        assert [p["profile"] for p in depth["profiles"]] == ["randread-4k-qd1", "randread-4k-qd32"]
        for of in depth["profiles"]:
            assert_figures(of, {"read"})
    assert (tmp_path / "chart.svg").read_bytes().startswith(MAGIC["svg"])
    assert_nothing_left(web)


def test_depths_of_a_volume_without_an_image_and_of_one_with_changes(web):
    web("create", "empty", "--size", "1M")
    web.before = files(web), web.state()
    for volume, asked, depth in [("empty", "1", "1"), ("web", "1,2", "2")]:
        table = [row.split() for row in web("bench", volume, "--depths", asked, "--runtime", "0.1").splitlines()]
        assert [row[:2] for row in table] == [["DEPTH", "PROFILE"], [depth, "randread-4k-qd1"], [depth, "randread-4k-qd32"]]
    assert web.err == "depth 1 is left out: volume 'web' has 2 layers already\n"
    web.fails("bench", "web", "--depths", "1", code=64, says=["web", "2 layers already"])
    assert_nothing_left(web)


def measured(web):
    return servers(web) and servers(web)[0]["connections"] > 0


def layered(web):
    return len(os.listdir(web.store / "blobs/sha256")) > 30


@pytest.mark.parametrize("sig,options,under_way", [(signal.SIGINT, ["--runtime", "60"], measured),
                                                   (signal.SIGTERM, ["--depths", "4000"], layered)])
def test_an_interrupt_removes_the_clone_and_its_layers(web, sig, options, under_way):
    bench = web.popen("bench", "web", *options, stderr=subprocess.PIPE, text=True,
                      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    wait_for(lambda: under_way(web))
    assert len(volumes(web)) == 2
    bench.send_signal(sig)
    _, err = bench.communicate(timeout=20)
    assert bench.returncode == 130 and err.splitlines() == ["snapctl: cancelled; the store is as it was before"]
    assert_nothing_left(web)


def test_a_profile_that_fails_takes_nothing_of_what_was_measured_and_leaves_nothing(web, tmp_path):
    bad = tmp_path / "bad.fio"
    bad.write_text("[a]\nioengine=nbd\nuri=${URI}\nrw=read\nnosuch=1\n")
    says = ["bad", "fio ended with 1"]
    table = web.fails("bench", "web", "randread-4k-qd1", bad, "--runtime", "0.1", code=1, says=says)
    assert [line.split()[0] for line in table.splitlines()] == ["PROFILE", "randread-4k-qd1"]
    said = web.fails("--json", "bench", "web", "randread-4k-qd1", bad, "--runtime", "0.1", code=1, says=says)
    assert [p["profile"] for p in json.loads(said)["profiles"]] == ["randread-4k-qd1"]
    assert web.fails("bench", "web", bad, "--runtime", "0.1", code=1, says=says) == ""
    assert_nothing_left(web)


def test_a_volume_is_measured_while_it_is_served(web):
    with web.export("web"):
        assert_figures(web.json("bench", "web", "randread-4k-qd1", "--runtime", "0.1")["profiles"][0], {"read"})
        assert volumes(web) == {"web"}
    with StoreServer(web):
        said = web.json("bench", "web", "--depths", "3", "--runtime", "0.1")
        assert [d["depth"] for d in said["depths"]] == [3]
        assert volumes(web) == {"web"}
    assert_nothing_left(web)


def test_what_is_missing_is_said_before_anything_is_made(web, tmp_path):
    nowhere = {"PATH": str(tmp_path / "bin")}
    (tmp_path / "bin").mkdir()
    web.fails("bench", "web", env=nowhere, code=4, says=["fio is not installed", "the package fio"])
    os.symlink(shutil.which("fio"), tmp_path / "bin/fio")
    web.fails("bench", "web", "--chart", "x.png", env=nowhere, code=4, says=["gnuplot", "the package gnuplot-nox"])
    web.fails("bench", "web", "--chart", tmp_path / "none/x.png", code=4, says=[tmp_path / "none/x.png"])
    web.fails("bench", "web", env={"SNAPCTL_PROFILES": str(tmp_path / "none")}, code=4,
              says=[tmp_path / "none", "SNAPCTL_PROFILES"])
    web.fails("bench", "nosuch", code=4, says="nosuch")
    web.fails("bench", "web", "randread-4k-qd2", code=4,
              says=["did you mean 'randread-4k-qd1'", "boot, database", "trimwrite-64k-qd8", "verify"])
    web.fails("bench", "web", "device-boot", code=64, says="--device")
    web.fails("bench", "web", tmp_path / "none.fio", code=4, says="none.fio")
    assert_nothing_left(web)


@pytest.mark.parametrize("words", [["--depths", "0"], ["--depths", "4001"], ["--depths", "1,x"], ["--depths", "1", "--all"],
                                   ["--depths", "1", "boot"], ["--all", "boot"], ["--runtime", "0"], ["--chart", "x.gif"]])
def test_options_that_make_no_sense_are_refused(snap, words):
    snap.fails("bench", "web", *words, code=64)


def test_profiles_are_taken_from_the_folder_that_the_environment_names(web, tmp_path):
    (tmp_path / "nbd-mine.fio").write_text("[a]\nioengine=nbd\nuri=${URI}\nrw=randread\ntime_based=1\n")
    here = {"SNAPCTL_PROFILES": str(tmp_path)}
    said = web.json("bench", "web", "--all", "--runtime", "0.1", env=here)
    assert [p["profile"] for p in said["profiles"]] == ["mine"]
    web.fails("bench", "web", env=here, code=4, says="there are: mine")
