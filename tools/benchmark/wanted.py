"""What was wanted of the data path and of the operations, and what the results say to it."""

from benchmark.turns import median_of, ratios, spread

# The bare server is the limit; what is in memory alone does not do the job.
NO_PEERS = ("snapctl", "snapctl, no busy poll", "bare server", "nbdkit memory")
# Of the row of one write and one flush: what stands beside snapctl.
BARE_DISK = "bare disk: 8 KiB and fdatasync"
# The others write into a file that is there and in the page cache: never fresh.
START_EMPTY = ("qemu-nbd qcow2", "qemu-nbd extended_l2", "nbdkit cow")


def told(triple, digits=2):
    """'median (low to high)'"""
    middle, low, high = (f"{value:,.{digits}f}" for value in triple)
    return f"{middle} ({low} to {high})"


class Wanted:
    """Each figure adds a row; one whose rows were not measured adds none."""

    def __init__(self, results):
        self.rows = results.get("rows", {})
        self.operations = results.get("operations", {})
        self.scale = results.get("scale", {})
        self.flush = results.get("flush", {})
        self.table = []

    def add(self, work, bound, triple, most=False, unit="", digits=2):
        """`bound` is the least that was wanted, or with `most` the most."""
        reached = triple[0] <= bound if most else triple[0] >= bound
        value = told(triple, digits) + unit
        self.table.append((work, f"{'at most' if most else 'at least'} {bound:g}{unit}", value if reached else f"**{value}**"))

    def servers(self, key):
        return self.rows.get(key, {}).get("servers", {})

    def over(self, key, peer, bound, work):
        servers = self.servers(key)
        if "snapctl" in servers and peer in servers:
            self.add(work, bound, ratios(servers["snapctl"], servers[peer]))

    def over_best(self, key, bound, work, latency=False, of=None):
        """Against the peer (`of` those) with the most requests a second; with `latency` its p99 is the most that is allowed."""
        servers = self.servers(key)
        peers = {name: median_of(runs, "per_second") for name, runs in servers.items()
                 if name not in NO_PEERS and (of is None or name in of)}
        if "snapctl" not in servers or not peers:
            return
        best = max(peers, key=peers.get)
        self.add(f"{work}, times the best peer ({best})", bound, ratios(servers["snapctl"], servers[best]))
        if latency:
            self.add("its p99, times that peer's", 1, ratios(servers["snapctl"], servers[best], "p99_us"), most=True)

    def add_reads(self):
        for key, work, times_qcow2 in [("read-qd32", "4 KiB random read, depth 32", 4),
                                       ("read-qd32-2", "4 KiB random read, depth 32, 2 connections", 6)]:
            self.over(key, "bare server", 0.7, f"{work}, of the bare server")
            self.over(key, "qemu-nbd qcow2", times_qcow2, f"{work}, times qemu-nbd qcow2")
        self.over("fio-read-qd32", "bare server", 0.9, "the same with fio, 1 job, of the bare server")
        self.over("fio-read-qd32-2", "bare server", 0.8, "the same with fio, 2 jobs, of the bare server")
        servers = self.servers("read-qd32")
        if {"snapctl", "qemu-nbd qcow2"} <= set(servers):
            self.add("server CPU a 4 KiB random read, depth 32, of qemu-nbd qcow2's", 0.25,
                     ratios(servers["snapctl"], servers["qemu-nbd qcow2"], "server_cpu_us"), most=True)

    def add_writes(self):
        self.over("write-qd32", "qemu-nbd qcow2", 4, "4 KiB random write, fresh over the image, depth 32, times qemu-nbd qcow2")
        fresh, over = self.servers("write-qd32").get("snapctl"), self.servers("overwrite-qd32").get("snapctl")
        if fresh and over:
            self.add("the same, of our own overwrites", 0.85, ratios(fresh, over))
        self.over_best("read-qd1", 1.0, "4 KiB random read, depth 1", latency=True)
        self.over_best("write-qd1", 1.5, "4 KiB random write, depth 1", latency=True)
        self.over_best("read-256k", 1.2, "256 KiB sequential read")
        self.over_best("overwrite-256k", 1.2, "256 KiB sequential write, overwrites")
        self.over_best("write-256k", 1.2, "256 KiB sequential write, fresh over the image", of=START_EMPTY)

    def add_flushes(self):
        for key, where in [("", ""), ("-ext4", ", on journaled ext4")]:
            work = "4 KiB random write, a flush every 32"
            self.over(f"flushed-qd32{key}", "qemu-nbd qcow2", 5, f"{work}{where}, times qemu-nbd qcow2")
            self.over(f"flushed-qd32{key}", "nbdkit file", 3, f"{work}{where}, times nbdkit file")
            self.over(f"flushed-minute{key}", "qemu-nbd qcow2", 2.5, f"{work}, for a minute{where}, times qemu-nbd qcow2")
            self.over(f"one-flush{key}", BARE_DISK, 0.85, f"one 4 KiB write and one flush{where}, of a bare record")
            recovery = self.flush.get(f"recovery{key}")
            if recovery:
                self.add(f"recovery of a full journal{where}", 1000, (recovery["ms"],) * 3, most=True, unit=" ms", digits=0)

    def add_scale(self):
        servers = self.servers("layers-qd32")
        for name, bound in [("64 layers", 0.95), ("1,000 layers", 0.9)]:
            if {"1 layer", name} <= set(servers):
                self.add(f"4 KiB random read through {name}, of 1 layer", bound, ratios(servers[name], servers["1 layer"]))
        volumes = self.scale.get("many volumes")
        if volumes:
            each = volumes["kib_a_volume"] / 1024
            self.add(f"server with {volumes['volumes']} volumes of one image, a volume beyond the first", 1, (each, each, each),
                     most=True, unit=" MiB")

    def add_operations(self):
        for key, work in [("create-1T", "create of 1 TiB"), ("clone", "clone")]:
            if key in self.operations:
                times = self.operations[key]["sides"][f"snapctl {work.split()[0]}"]
                self.add(work, 20, spread(times), most=True, unit=" ms", digits=1)
        for key in ("import", "commit"):
            if key in self.operations:
                sides = self.operations[key]["sides"]
                self.add(f"{key}, speed of cp and fsync", 0.5,
                         spread([b / a for a, b in zip(sides[f"snapctl {key}"], sides["cp and fsync"])]))


def rows(results):
    """[(work, wanted, measured)]; what was not reached is bold."""
    wanted = Wanted(results)
    wanted.add_reads()
    wanted.add_writes()
    wanted.add_flushes()
    wanted.add_scale()
    wanted.add_operations()
    return wanted.table
