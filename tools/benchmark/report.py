"""The measured part of docs/performance.md, out of the results of a run. What stands outside the markers stays."""

import textwrap

from benchmark import charts, wanted
from benchmark.processes import TOP
from benchmark.turns import median_of, ratios, spread
from benchmark.wanted import told

DOCUMENT = TOP / "docs/performance.md"
BEGIN = "<!-- measured by tools/bench: begin -->"
END = "<!-- measured by tools/bench: end -->"


def paragraphs(*texts):
    """Text as wide as the rest of the documents, with an empty line between paragraphs."""
    return "\n\n".join(textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False) for text in texts)


def table(head, lines):
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    out += ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join(out)


# ---- Rows of servers


def peers_of(rows):
    return list(dict.fromkeys(name for row in rows for name in row["servers"]))


def rate(row, runs):
    """What the table of a row shows of one server: IOPS or MiB/s, and its CPU time a request."""
    if not runs:
        return "-"
    key = "mib_per_second" if row["unit"] == "MiB/s" else "per_second"
    told_rate = f"{median_of(runs, key):,.0f}"
    if row["unit"] == "MiB/s":
        told_rate += " MiB/s"
    return f"{told_rate} ({median_of(runs, 'server_cpu_us'):.1f})" if "server_cpu_us" in runs[0] else told_rate


def percentiles(_, runs):
    return f"{median_of(runs, 'p50_us'):,.0f} / {median_of(runs, 'p99_us'):,.0f}" if runs and "p50_us" in runs[0] else "-"


def flush_times(_, runs):
    if not runs or "flush_p50_us" not in runs[0]:
        return "-"
    worst = max(run["flush_worst_us"] for run in runs)
    return f"{median_of(runs, 'flush_p50_us') / 1e3:.2f} / {median_of(runs, 'flush_p99_us') / 1e3:.1f} / {worst / 1e3:.0f}"


def rows_by_peer(rows, cell):
    peers = peers_of(rows)
    return table(["", *peers], [[row["title"], *(cell(row, row["servers"].get(name)) for name in peers)] for row in rows])


def ratio_of_first(row, runs):
    ours = row["servers"].get("snapctl")
    return told(ratios(ours, runs)) if ours and runs else "-"


def three_tables(rows):
    """Rates, latencies, and ratios of snapctl to each other."""
    others = [{**row, "servers": {"snapctl": row["servers"].get("snapctl"), **row["servers"]}} for row in rows]
    peers = [name for name in peers_of(others) if name != "snapctl"]
    ratio_lines = [[row["title"], *(ratio_of_first(row, row["servers"].get(name)) for name in peers)] for row in rows]
    return "\n\n".join(["Requests a second (server CPU time a request, us):", rows_by_peer(rows, rate),
                        "p50 / p99, us:", rows_by_peer(rows, percentiles),
                        "snapctl over each, median (lowest to highest) of the rounds:", table(["", *peers], ratio_lines)])


# ---- Sections. Each gives its text, or nothing where nothing of it was measured.


def head(results):
    machine, versions, settings = results["machine"], results["versions"], results["settings"]
    described = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts = ", ".join(f"{part['part']} {part['minutes']:.0f}" for part in results["parts"])
    return paragraphs(
        f"`{'`, then `'.join(results['commands'])}` measured this in {results['minutes']:.0f} minutes ({parts}) and wrote it. Medians of {settings['rounds']} rounds in turns (scale: {min(settings['rounds'], 3)}), "
        f"{settings['seconds']:g} s a run, {settings['MiB']:,} MiB of random bytes, page cache warm where nothing else is said. "
        "Timings move by up to a factor of two between runs: read ratios, not digits.",
        f"Machine: {machine['cores']} cores ({machine['CPU']}), {machine['memory']} of memory, kernel {machine['kernel']}, "
        f"{machine['file system']}. Versions: {described}.")


def wanted_section(results):
    lines = wanted.rows(results)
    return "## Wanted and measured\n\nBold: not reached.\n\n" + table(["work", "wanted", "measured"], lines) if lines else ""


def lean_section(results):
    keep = ("fio", "layers", "connections", "sparse", "dense", "one-flush")
    rows = [row for key, row in results["rows"].items() if not key.startswith(keep)]
    if not rows:
        return ""
    text = "## A lean client\n\n" + paragraphs(
        "`tests/load/nbd_load` over a unix socket. The bare server does pread and pwrite and nothing else: the limit of socket, "
        "client and page cache. It, qemu-nbd raw and nbdkit file write in place into the file that all of them serve; the others "
        "start each run of writes with nothing written. \"Fresh\" writes touch no block twice. \"-\": the row is not for that "
        "peer; flushes of nbdkit cow and memory leave nothing on the disk.") + "\n\n" + three_tables(rows)
    flushed = [row for row in rows if any(runs and "flush_p50_us" in runs[0] for runs in row["servers"].values())]
    if flushed:
        text += "\n\nFlushes, p50 / p99 / worst, ms:\n\n" + rows_by_peer(flushed, flush_times)
    return text


def flush_section(results):
    lines = []
    for key in ("one-flush", "one-flush-ext4"):
        row = results["rows"].get(key)
        if row and len(row["servers"]) == 2:
            ours, disk = row["servers"].values()
            lines.append([row["title"] + (", journaled ext4 in a loop device" if key.endswith("ext4") else ""),
                          f"{median_of(ours, 'per_second'):,.0f} /s; a bare write of 8 KiB with fdatasync "
                          f"{median_of(disk, 'per_second'):,.0f} /s; ratio {told(ratios(ours, disk))}"])
    for key, recovery in results.get("flush", {}).items():
        where = ", journaled ext4 in a loop device" if key.endswith("ext4") else ""
        lines.append([recovery["title"] + where, f"{recovery['ms']:.0f} ms until it serves"])
    return "## Single flushes and recovery\n\n" + table(["", "measured"], lines) if lines else ""


def fio_section(results):
    rows = [row for key, row in results["rows"].items() if key.startswith("fio-")]
    return "## fio\n\nfio's nbd engine; much of these figures is its client's.\n\n" + three_tables(rows) if rows else ""


def operations_section(results):
    lines = []
    for operation in results.get("operations", {}).values():
        (_, ours), *others = operation["sides"].items()
        said = []
        for name, times in others:
            times_as_long = told(spread([b / a for a, b in zip(ours, times)]))
            said.append(f"{name}: {spread(times)[0]:,.1f} ms, {times_as_long} times as long")
        lines.append([operation["title"], told(spread(ours), 1), "<br>".join(said)])
    if not lines:
        return ""
    return "## Operations\n\n" + paragraphs(
        "Milliseconds of the whole command, until the data is on disk: snapctl syncs by itself, to the others a sync of the file "
        "and its folder is added. btrfs is in a loop device.") + "\n\n" + table(["", "snapctl, ms", "beside it"], lines)


def scale_section(results):
    curves = [row for row in results["rows"].values() if row.get("curve")]
    curves += [row for key, row in results["rows"].items() if key.startswith("connections")]
    lines = []
    for row in curves:
        first = next(iter(row["servers"].values()))
        for name, runs in row["servers"].items():
            beside = "" if runs is first or not row.get("curve") else told(ratios(runs, first))
            lines.append([row["title"], name, rate(row, runs), percentiles(row, runs), beside])
    if not lines:
        return ""
    text = "## Scale\n\n" + table(["", "", "IOPS (server CPU, us)", "p50 / p99, us", "of the first"], lines)
    touch = results.get("scale", {}).get("first touch")
    if touch:
        text += "\n\nFirst read of a region of 32 MiB by a new server, and then of another place in it, ms:\n\n" + table(
            ["", "first", "second"], [[name, told(spread(t["first"])), told(spread(t["second"]))] for name, t in touch.items()])
    many = results.get("scale", {}).get("many volumes")
    if many:
        said = (f"{many['volumes']} volumes of one image in one `snapctl serve`, each read and written a little: "
                 f"{many['pss_many_kib'] / 1024:.1f} MiB (Pss), with one {many['pss_one_kib'] / 1024:.1f} MiB: "
                 f"{many['kib_a_volume']:,.0f} KiB a volume beyond the first. ")
        if many["cache_emptied"]:
            said += (f"The image ({many['image_mib']:,} MiB) read as a whole through one of them: the page cache grew by "
                     f"{many['cached_by_first_mib']:,.0f} MiB; through nine more: by {many['cached_by_nine_more_mib']:,.0f} MiB.")
        text += "\n\n" + paragraphs(said)
    return text


def attach_section(results):
    times, speeds = results.get("attach times", {}), results.get("attach speeds", {})
    if not times:
        return ""
    return ("## Block devices\n\n" + table(["", "attach, ms", "detach, ms"], [
        [name, f"{t['attach_ms']:.1f}", f"{t['detach_ms']:.1f}"] for name, t in times.items()]) +
        "\n\nfio on the device, io_uring, direct, 4 KiB at depth 32:\n\n" + table(["", "reads /s", "writes /s"], [
            [name, f"{s['randread']:,.0f}", f"{s['randwrite']:,.0f}"] for name, s in speeds.items()]))


def programs_section(results):
    printed = ["\n".join([f"`{name}`:", "", "```", *lines, "```"]) for name, lines in results.get("programs", {}).items()]
    return "## Within the engine\n\n" + "\n\n".join(printed) if printed else ""


def charts_section(results):
    titles = {"peers": "Thousand requests a second by peer, lean client; no bar: the row is not for that peer",
              "layers": "Read latency over layers", "connections": "Random reads over connections"}
    names = charts.draw_all(TOP / "docs/charts", results)
    return "## Charts\n\n" + "\n\n".join(f"![{titles[name]}](charts/{name}.svg)" for name in names) if names else ""


def failures_section(results):
    return "## Left out\n\n" + "\n".join(f"- {text}" for text in results["failures"]) if results["failures"] else ""


def text_of(results):
    results = {"rows": {}, **results}
    sections = [head, wanted_section, charts_section, lean_section, flush_section, fio_section, operations_section, scale_section,
                attach_section, programs_section, failures_section]
    return "\n\n".join(filter(None, (section(results) for section in sections)))


def write(results):
    document = DOCUMENT.read_text()
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text_of(results)}\n\n{END}{after}")
