"""What all parts share: how much is measured, where, the results, and how far it is."""

import json
import sys
import time

from benchmark.peers import Peers
from benchmark.processes import MIB, TOP


class Progress:
    """On a terminal one line that changes, else a line a row; on standard error, for the figures go to standard output."""

    def __init__(self, estimates):
        self.left = dict(estimates)  # seconds, by part
        self.terminal = sys.stderr.isatty()
        self.part = None
        self.expected_so_far = self.spent_so_far = 0.0

    def begin(self, part):
        self.part, self.began = part, time.monotonic()

    def end(self):
        """Gives the seconds that the part took."""
        took = time.monotonic() - self.began
        self.expected_so_far += self.left.pop(self.part)
        self.spent_so_far += took
        return took

    def minutes_left(self):
        rest = max(0.0, self.left[self.part] - (time.monotonic() - self.began))
        later = sum(seconds for part, seconds in self.left.items() if part != self.part)
        pace = self.spent_so_far / self.expected_so_far if self.expected_so_far else 1
        return (rest + later * min(max(pace, 0.5), 3)) / 60

    def _write(self, what, end):
        minutes = self.minutes_left()
        left = "less than a minute" if minutes < 1 else f"about {minutes:.0f} min"
        start = "\r\033[K" if self.terminal else ""
        sys.stderr.write(f"{start}{self.part}: {what}; {left} left{end}")
        sys.stderr.flush()

    def row(self, title):
        if not self.terminal:
            self._write(title, "\n")

    def turn(self, what):
        if self.terminal:
            self._write(what[:120], "")

    def clear(self):
        if self.terminal:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


class Bench:
    def __init__(self, scratch, sockets, size, rounds, seconds, quick):
        self.scratch, self.sockets = scratch, sockets
        self.size, self.rounds, self.seconds, self.quick = size, rounds, seconds, quick
        self.results = {"settings": {"MiB": size // MIB, "rounds": rounds, "seconds": seconds, "quick": quick},
                        "parts": [], "failures": []}
        self.progress = None
        self._peers = None

    def peers(self):
        """The peers over data in the scratch folder: made once, for the first part that asks."""
        if self._peers is None:
            self.progress.row("the data, and an image of it for each")
            self.progress.turn("the data, and an image of it for each")
            folder = self.scratch / "peers"
            folder.mkdir()
            self._peers = Peers(folder, self.sockets, self.size)
        return self._peers

    def say(self, line):
        """Prints a figure."""
        self.progress.clear()
        print(line, flush=True)

    def go_on_from(self, before):
        """Keeps what an earlier run has measured; what is measured now takes its place."""
        if before["settings"] != self.results["settings"]:
            raise ValueError(f"the run before had other settings: {before['settings']}")
        self.results = before

    def part_ended(self, part, minutes):
        others = [p for p in self.results["parts"] if p["part"] != part]
        self.results["parts"] = [*others, {"part": part, "minutes": minutes}]
        self.results["minutes"] = sum(p["minutes"] for p in self.results["parts"])

    def record(self, group, key, value):
        self.results.setdefault(group, {})[key] = value

    def failure(self, text):
        self.progress.clear()
        print(f"bench: {text}", file=sys.stderr, flush=True)
        for folder in (self.scratch, self.sockets, TOP):  # paths of this machine are of no use to a reader of the report
            text = text.replace(f"{folder}/", "")
        self.results["failures"].append(text)

    def save(self, path):
        path.write_text(json.dumps(self.results, indent=1) + "\n")
