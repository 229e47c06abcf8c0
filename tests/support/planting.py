"""Bugs planted in a copy of the tree, one at a time: for programs that see whether the tests notice them.

A bug is (file, what stands there, what is put in its place, and so on in pairs).
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parent.parent.parent


def run(argv, **kwargs):
    """A finished process, with all that it said in stdout."""
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", **kwargs)


def chosen(bugs, words):
    """The names with one of the words, or all."""
    names = [name for name in bugs if not words or any(word in name for word in words)]
    if not names:
        sys.exit(f"{sys.argv[0]}: no such bug; known are:\n  " + "\n  ".join(bugs))
    return names


def copy_tree(folder):
    """Copies what git tracks, and what it would, into a folder."""
    listed = run(["git", "-C", TOP, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]).stdout
    for name in filter(None, listed.split("\0")):
        if (TOP / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TOP / name, folder / name)


def plant_each(bugs, prepare, notice):
    """Plants each in a fresh copy: `notice(name, folder)` gives whether it is noticed, and a verdict to print.

    `prepare(folder)` comes first, with no bug in it. Prints 'N passed, N failed'; a bug that is not noticed, or has no
    place any more, has failed. Gives the exit code.
    """
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        folder = pathlib.Path(folder)
        copy_tree(folder)
        prepare(folder)
        for name, (file, *changes) in bugs.items():
            path = folder / file
            before = text = path.read_text()
            noticed, verdict = False, None
            for old, new in zip(changes[::2], changes[1::2]):
                if text.count(old) != 1:
                    verdict = f"it cannot be planted, {file} has its place {text.count(old)} times"
                text = text.replace(old, new)
            if verdict is None:
                path.write_text(text)
                noticed, verdict = notice(name, folder)
                path.write_text(before)
            print(f"{name}\n    {'' if noticed else 'FAILED: '}{verdict}", flush=True)
            passed, failed = passed + noticed, failed + (not noticed)
    print(f"{passed} passed, {failed} failed")
    return int(failed != 0)
