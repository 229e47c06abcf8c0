"""The part `scale`: what a request costs must not grow with connections, layers, sizes or volumes.

Curves are printed and kept for the charts. All is done with the command line: layers are made by as many
`snapctl commit`, of a volume that is served meanwhile.
"""

import contextlib
import os
import pathlib
import random
import re
import time

from benchmark.nbd_client import NbdClient
from benchmark.over_nbd import lean, lean_row
from benchmark.peers import write_random
from benchmark.processes import GIB, MIB, SNAPCTL, Server, drop_caches, forget, milliseconds, sh, write_back
from benchmark.turns import in_turns, spread

BLOCK = 4096
CHAIN_BYTES = 64 * MIB
REGION = 32 * MIB  # what one leaf of the map covers
SIZES = {"1 GiB": GIB, "32 GiB": 32 * GIB, "1 TiB": 1024 * GIB}


def curve(title, load):
    return {**lean_row(title, load), "curve": True}


class Store:
    """A store of its own, and servers of its volumes."""

    def __init__(self, bench, name):
        self.bench, self.folder = bench, bench.scratch / name
        self.folder.mkdir()
        self.path = self.folder / "store"

    def snapctl(self, *argv):
        return sh(SNAPCTL, "--store", self.path, *argv)

    def server(self, volume, *command):
        """Of one volume, or by another command than export; killed at its end, for the store is thrown away."""
        socket = self.bench.sockets / f"{volume}.sock"
        words = command or ("export", volume)
        return Server(volume, [SNAPCTL, "--store", self.path, *words, "--socket", socket], socket, volume, keep=False)


# ---- Connections


def connections(bench):
    peers = bench.peers()
    with peers.steady(peers.named("snapctl", "bare", "qcow2")) as steady:
        names = {server.name: server for server in steady.values()}
        for count in (1, 2, 4):
            key, load = f"connections-{count}", f"--depth 32 --connections {count}"
            in_turns(bench, {key: lean_row(f"4 KiB random read, depth 32, connections: {count}", load)}, list(names),
                     lambda name, key=key, load=load: {key: lean(names[name], load, bench.seconds)})


# ---- Layers


def make_chain(bench, store, layers):
    """Image chain:LAYERS. The bottom has all blocks; each other layer those whose hash falls to it, spread over the volume."""
    raw = store.folder / "chain.raw"
    write_random(raw, CHAIN_BYTES)
    store.snapctl("import", raw, f"bottom:{layers}")
    store.snapctl("create", "growing", "--from", f"bottom:{layers}")
    blocks = [[] for _ in range(layers)]
    for block in range(CHAIN_BYTES // BLOCK):
        blocks[(block * 0x9E3779B97F4A7C15 % (1 << 64) >> 20) % layers].append(block)
    began = time.monotonic()
    with store.server("growing") as server, NbdClient(server.socket, "growing") as client:
        for layer in range(1, layers):
            bench.progress.turn(f"a chain of {layers} layers: {layer}")
            for block in blocks[layer]:
                client.write(block * BLOCK, os.urandom(BLOCK))
            store.snapctl("commit", "growing", *([f"chain:{layers}"] if layer == layers - 1 else []))
    if layers == 1:
        store.snapctl("tag", "bottom:1", "chain:1")
    else:
        bench.say(f"a chain of {layers} layers, made by writes and commits: {(time.monotonic() - began):.1f} s")
    store.snapctl("rm", "--yes", "growing")
    store.snapctl("create", f"layers-{layers}", "--from", f"chain:{layers}")


def layers(bench, counts=(1, 64, 1000)):
    store = Store(bench, "layers")
    bench.progress.row("chains")
    for count in counts:
        make_chain(bench, store, count)
    write_back(store.folder)
    names = {"1 layer" if count == 1 else f"{count:,} layers": count for count in counts}
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, count in names.items():
            servers[name] = stack.enter_context(store.server(f"layers-{count}"))
            sh("nbdcopy", servers[name].uri, "null:")
        for key, load in {"layers-qd32": "--depth 32", "layers-qd1": "--depth 1"}.items():
            title = f"4 KiB random read through layers, {load.strip('-')}"
            in_turns(bench, {key: curve(title, load)}, list(names),
                     lambda name, key=key, load=load: {key: lean(servers[name], load, bench.seconds)})
    cold_reads(bench, store, names)
    first_touch(bench, store, names)


def cold_reads(bench, store, names):
    def measure(name):
        with store.server(f"layers-{names[name]}") as server:
            forget(store.folder)
            return {"layers-cold": lean(server, "--depth 1 --once", bench.seconds)}
    in_turns(bench, {"layers-cold": curve("4 KiB random read through layers, depth 1, page cache empty", "--depth 1 --once")},
             list(names), measure)


def first_touch(bench, store, names):
    """The first read of a region of 32 MiB through a server that was just started, and a read of another chunk of it."""
    times = {name: {"first": [], "second": []} for name in names}
    bench.progress.row("first touch")
    for _ in range(2 * bench.rounds):
        for name, count in names.items():
            with store.server(f"layers-{count}") as server, NbdClient(server.socket, f"layers-{count}") as client:
                for begin in range(0, CHAIN_BYTES, REGION):
                    times[name]["first"].append(milliseconds(lambda: client.read(begin, BLOCK)))
                    times[name]["second"].append(milliseconds(lambda: client.read(begin + REGION // 2, BLOCK)))
    for name, of_name in times.items():
        first, second = spread(of_name["first"]), spread(of_name["second"])
        bench.say(f"first touch of 32 MiB, {name}: {first[0]:.2f} ms ({first[1]:.2f} to {first[2]:.2f}), "
                  f"then {second[0]:.2f} ms ({second[1]:.2f} to {second[2]:.2f})")
    bench.record("scale", "first touch", times)


# ---- Sizes


def sparse_sizes(bench):
    """Blocks far apart: random writes over the whole volume, then reads of the same places."""
    def measure(name):
        store.snapctl("create", "sparse", "--size", str(SIZES[name]))
        try:
            with store.server("sparse") as server:
                written = lean(server, "--read-percent 0 --depth 32 --seed 7", bench.seconds)
                # So short that reads, which are faster, do not get past what was written.
                read = lean(server, "--depth 32 --seed 7", bench.seconds / 5)
        finally:
            store.snapctl("rm", "--yes", "sparse")
        if read["reads"] > written["writes"]:
            raise ValueError("the reads got past what was written")
        return {"sparse-write": written, "sparse-read": read}
    store = Store(bench, "sparse")
    in_turns(bench, {"sparse-write": curve("4 KiB random write over an empty volume, depth 32", "--read-percent 0 --depth 32"),
                     "sparse-read": curve("4 KiB random read of what was written so, depth 32", "--depth 32")},
             list(SIZES), measure)


def dense_sizes(bench):
    """Volumes that were written as a whole."""
    store = Store(bench, "dense")
    sizes = {"1 GiB": GIB, "4 GiB": 4 * GIB} if not bench.quick else {"256 MiB": 256 * MIB, "1 GiB": GIB}
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, size in sizes.items():
            bench.progress.turn(f"a volume of {name}, written as a whole")
            volume = f"dense-{size // MIB}"
            store.snapctl("create", volume, "--size", str(size))
            servers[name] = stack.enter_context(store.server(volume))
            lean(servers[name], "--read-percent 0 --sequential --once --block 256K --depth 8", 600)
            sh("nbdcopy", servers[name].uri, "null:")
        write_back(store.folder)
        for key, load, title in [("dense-read", "--depth 32", "4 KiB random read of a volume written as a whole, depth 32"),
                                 ("dense-write", "--read-percent 0 --depth 32",
                                  "4 KiB random write into a volume written as a whole, depth 32")]:
            in_turns(bench, {key: curve(title, load)}, list(sizes),
                     lambda name, key=key, load=load: {key: lean(servers[name], load, bench.seconds)})


# ---- Many volumes


def pss_kib(pid):
    """Memory of a process, what it shares with others by its part (proc(5), smaps_rollup)."""
    return int(re.search(r"^Pss:\s*(\d+)", pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M).group(1))


def cached_mib():
    return int(re.search(r"^Cached:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text(), re.M).group(1)) / 1024


def touch_a_little(client):
    """16 blocks are read, 4 written, and flushed: places far apart."""
    for _ in range(16):
        client.read(random.randrange(client.size // BLOCK) * BLOCK, BLOCK)
    for _ in range(4):
        client.write(random.randrange(client.size // BLOCK) * BLOCK, os.urandom(BLOCK))
    client.flush()


def many_volumes(bench, count=100):
    """Memory of one server with 1 and with 100 volumes of one image, each used a little and held open by a client."""
    store = Store(bench, "many")
    raw = store.folder / "base.raw"
    bench.progress.row(f"{count} volumes of one image")
    write_random(raw, bench.size)
    store.snapctl("import", raw, "base:1")
    raw.unlink()
    for i in range(count):
        store.snapctl("create", f"v{i}", "--from", "base:1")
    emptied = drop_caches()
    cached = [cached_mib()]
    with store.server("many", "serve") as server, contextlib.ExitStack() as clients:
        for i in range(count):
            bench.progress.turn(f"{count} volumes of one image: {i}")
            client = clients.enter_context(NbdClient(server.socket, f"v{i}"))
            if i < 10:  # the base is read as a whole, through each of ten
                for offset in range(0, client.size, MIB):
                    client.read(offset, MIB)
                if i in (0, 9):
                    cached.append(cached_mib())
            touch_a_little(client)
            if i == 0:
                time.sleep(1)
                one = pss_kib(server.pid)
        time.sleep(1)
        many = pss_kib(server.pid)
    figures = {"volumes": count, "pss_one_kib": one, "pss_many_kib": many, "kib_a_volume": (many - one) / (count - 1),
               "image_mib": bench.size // MIB, "cache_emptied": emptied,
               "cached_by_first_mib": cached[1] - cached[0], "cached_by_nine_more_mib": cached[2] - cached[1]}
    bench.record("scale", "many volumes", figures)
    bench.say(f"one server, 1 volume: {one / 1024:.1f} MiB; {count} volumes of one image: {many / 1024:.1f} MiB; "
              f"{figures['kib_a_volume']:.0f} KiB a volume beyond the first")
    bench.say(f"page cache after the image of {bench.size // MIB} MiB was read through the first: "
              f"{figures['cached_by_first_mib']:+,.0f} MiB; through nine more: {figures['cached_by_nine_more_mib']:+,.0f} MiB")


def run(bench):
    rounds = bench.rounds
    bench.rounds = min(rounds, 3)
    try:
        connections(bench)
        layers(bench)
        sparse_sizes(bench)
        dense_sizes(bench)
        many_volumes(bench)
    finally:
        bench.rounds = rounds
