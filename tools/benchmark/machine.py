"""What it was measured on: the machine without its name, and versions."""

import json
import os
import pathlib
import re

from benchmark.processes import BUILD, GIB, TOP, Failed, sh


def file_system(folder):
    """The type of the file system of a folder; of ext4 also whether it has a journal."""
    device = os.stat(folder).st_dev
    numbers = f"{os.major(device)}:{os.minor(device)}"
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        kind, source = fields[fields.index("-") + 1:][:2]
        if fields[2] == numbers:
            if kind == "ext4":
                journal = list(pathlib.Path("/proc/fs/jbd2").glob(pathlib.Path(source).name + "-*"))
                return "ext4" if journal else "ext4 without a journal"
            return kind
    return "unknown"


def describe(folder):
    cpu = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    memory = int(re.search(r"MemTotal:\s*(\d+)", pathlib.Path("/proc/meminfo").read_text()).group(1)) * 1024
    return {"cores": os.cpu_count(),
            "CPU": cpu.group(1) if cpu else "unknown",
            "memory": f"{memory / GIB:.0f} GiB",
            # A release's suffix may name a machine or a provider.
            "kernel": re.match(r"[\d.]+", os.uname().release).group(0).rstrip("."),
            "file system": file_system(folder)}


def number_in(*argv):
    """The version that a program prints."""
    try:
        found = re.search(r"\d+(\.\d+)+", sh(*argv))
    except (OSError, Failed):
        found = None
    return found.group(0) if found else "none"


def versions():
    project = json.loads((BUILD / "meson-info/intro-projectinfo.json").read_text())
    try:
        commit = sh("git", "-C", TOP, "describe", "--always", "--dirty").strip()
    except (OSError, Failed):
        commit = "unknown"
    return {"snapctl": f"{project['version']} (commit {commit})",
            "qemu": number_in("qemu-nbd", "--version"), "nbdkit": number_in("nbdkit", "--version"),
            "fio": number_in("fio", "--version"), "gnuplot": number_in("gnuplot", "--version")}
