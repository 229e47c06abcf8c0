"""Real file systems on block devices, for tests that mount them."""

import contextlib
import os
import random
import subprocess


@contextlib.contextmanager
def mounted(device, point, options="rw"):
    """The device mounted on `point`, which is made, to the end of a with block."""
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", options, str(device), str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=True)


def fill(point, seed, files=40):
    """Files of many sizes in a tree; some are removed and overwritten again."""
    rng = random.Random(seed)
    for n in range(files):
        path = point / f"d{n % 7}" / f"f{n}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(rng.randbytes(rng.choice([0, 1, 511, 4096, 70000, 300000])))
    for n in range(0, files, 5):
        (point / f"d{n % 7}" / f"f{n}").unlink()
    for n in range(1, files, 5):
        with open(point / f"d{n % 7}" / f"f{n}", "r+b") as f:
            f.write(rng.randbytes(3000))
    if not os.path.lexists(point / "link"):
        os.symlink("d1", point / "link")
