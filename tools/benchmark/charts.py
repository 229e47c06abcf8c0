"""Charts by gnuplot, each as SVG and PNG: the rows by peer, latency over layers, reads over connections."""

import itertools
import math
import subprocess

from benchmark.processes import Failed
from benchmark.turns import median_of

COLOURS = ["#0060ad", "#444444", "#c03030", "#e08060", "#f0b080", "#2e8b57", "#7fbf7f", "#b0d8b0", "#8060c0"]
PANELS = ["read-qd1", "read-qd32", "read-qd32-2", "write-qd1", "write-qd32", "overwrite-qd32", "mix-qd32", "flushed-qd32"]


def quoted(text):
    return '"' + text.replace("\\", "/").replace('"', "'") + '"'


def draw(folder, name, size, script):
    """Writes NAME.svg and NAME.png."""
    for terminal, suffix in [(f"svg size {size} dynamic noenhanced font 'sans-serif,12'", "svg"),
                             (f"pngcairo size {size} noenhanced font 'sans-serif,10'", "png")]:
        text = f"set terminal {terminal} background '#ffffff'\nset output {quoted(f'{folder}/{name}.{suffix}')}\n{script}\n"
        done = subprocess.run(["gnuplot"], input=text, text=True, capture_output=True, check=False)
        if done.returncode != 0:
            raise Failed(f"gnuplot, {name}: {done.stderr.strip()}")


def thousands(runs):
    """Thousand requests a second; 0 for who has no runs."""
    return (median_of(runs, "per_second") or 0) / 1000


def block(name, lines):
    return f"${name} << EOD\n" + "\n".join(lines) + "\nEOD\n"


def round_step(largest):
    """So that an axis up to `largest` has two to five marks, at round numbers."""
    step = 10 ** math.floor(math.log10(max(largest, 0.001)))
    return next(step * part for part in (1, 0.5, 0.2) if largest / (step * part) >= 2)


def draw_rows(folder, results):
    """A panel a row, a bar a peer."""
    rows = {key: results["rows"][key] for key in PANELS if results["rows"].get(key, {}).get("servers")}
    if not rows:
        return False
    peers = list(dict.fromkeys(name for row in rows.values() for name in row["servers"]))
    columns = 2
    lines = (len(rows) + columns - 1) // columns
    script = [f"set multiplot layout {lines},{columns} margins 0.16,0.97,0.05,0.95 spacing 0.20,0.09",
              "set style fill solid noborder", "set boxwidth 0.7", "set grid x lc '#dddddd'", "set border 3",
              "set tics nomirror out", "unset key", f"set yrange [{len(peers) - 0.4}:-0.6]"]
    for number, row in enumerate(rows.values()):
        data = [f"{i} {thousands(row['servers'].get(name)):.3f}" for i, name in enumerate(peers)]
        tics = ", ".join(f"{quoted(name)} {i}" for i, name in enumerate(peers))
        script.append(block(f"row{number}", data))
        step = round_step(max(thousands(runs) for runs in row["servers"].values()))
        script += [f"set title {quoted(row['title'])}", f"set ytics ({tics})", "set xrange [0:*]", f"set xtics {step}"]
        bars = [f"$row{number} every ::{i}::{i} using ($2/2.0):1:($2/2.0):(0.36) with boxxyerror lc rgb '{colour}'"
                for i, colour in zip(range(len(peers)), itertools.cycle(COLOURS))]
        script.append("plot " + ", \\\n     ".join(bars))
    script.append("unset multiplot")
    draw(folder, "peers", f"1100,{40 + 240 * lines}", "\n".join(script))
    return True


def draw_layers(folder, results):
    row = results["rows"].get("layers-qd1")
    if not row:
        return False
    data = []
    for name, runs in row["servers"].items():
        count = int(name.split()[0].replace(",", ""))
        data.append(f"{count} {median_of(runs, 'p50_us'):.1f} {median_of(runs, 'p99_us'):.1f}")
    draw(folder, "layers", "720,400", block("layers", data) + "\n".join([
        "set title '4 KiB random read, depth 1'", "set xlabel 'layers'", "set ylabel 'us'", "set logscale x",
        "set yrange [0:*]",
        "set xtics (1, 10, 64, 1000)", "set grid y lc '#dddddd'", "set border 3", "set tics nomirror out", "set key left top",
        "plot $layers using 1:2 with linespoints lw 2 pt 7 lc rgb '#0060ad' title 'p50', \\",
        "     $layers using 1:3 with linespoints lw 2 pt 7 lc rgb '#c03030' title 'p99'"]))
    return True


def draw_connections(folder, results):
    counts = [1, 2, 4]
    rows = [results["rows"].get(f"connections-{count}") for count in counts]
    if not all(rows):
        return False
    names = list(rows[0]["servers"])
    data = [" ".join([str(count), *(f"{thousands(row['servers'].get(name)):.3f}" for name in names)])
            for count, row in zip(counts, rows)]
    lines = [f"$connections using 1:{i + 2} with linespoints lw 2 pt 7 lc rgb '{COLOURS[i]}' title {quoted(name)}"
             for i, name in enumerate(names)]
    draw(folder, "connections", "720,400", block("connections", data) + "\n".join([
        "set title '4 KiB random read, depth 32'", "set xlabel 'connections'", "set ylabel 'thousand a second'",
        "set xrange [0.8:4.2]", "set yrange [0:*]", "set xtics (1, 2, 4)", "set grid y lc '#dddddd'", "set border 3",
        "set tics nomirror out", "set key left top", "plot " + ", \\\n     ".join(lines)]))
    return True


def draw_all(folder, results):
    """Gives the names of the charts that could be drawn."""
    folder.mkdir(exist_ok=True)
    drawn = {"peers": draw_rows, "layers": draw_layers, "connections": draw_connections}
    return [name for name, draw_one in drawn.items() if results.get("rows") and draw_one(folder, results)]
