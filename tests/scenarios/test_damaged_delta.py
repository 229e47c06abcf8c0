"""A map or journal that is cut short or flipped: one clear line, or the content that was there; all else is untouched.

What is damaged belongs to the volume web; beside it are images and volumes of their own, which must read as before.
"""

import signal

import pytest
from conftest import KIB, MIB, Client, noise
from test_damage import flip, overwrite

PAGE = 4096
# One flush each, together less than an area of the journal: what web holds after the first n of them is a state that it had.
WRITES = [(MIB, b"a" * (16 * KIB)), (2 * MIB, b"b" * PAGE), (3 * MIB, b"c" * (12 * KIB)), (5 * MIB, b"d" * PAGE)]


@pytest.fixture
def many(base):
    """Volumes web and spare of base:1, and an unrelated image and volume."""
    base.image("other:1", noise(MIB, 50))
    base("create", "spare", "--from", "other:1")
    base.write("spare", {0: b"s" * PAGE})
    base("create", "web", "--from", "base:1")
    return base


def states(base):
    content, all_states = bytearray(base.base), [base.base]
    for offset, data in WRITES:
        content[offset:offset + len(data)] = data
        all_states.append(bytes(content))
    return all_states


def write_all(base, sig=signal.SIGTERM, code=0):
    with base.export("web") as server:
        h = Client(server.uri).handle
        for offset, data in WRITES:
            h.pwrite(data, offset)
            h.flush()
        server.stop(sig, code=code)
        del h


def delta(base):
    return base.store / "deltas" / base.volumes()["web"]["delta"]


def the_rest_reads(base):
    assert base.content("base:1") == base.base
    assert base.content("other:1") == noise(MIB, 50)
    assert base.content("volume:spare") == b"s" * PAGE + noise(MIB, 50)[PAGE:]


def served(base, volume):
    """(content, "") as an NBD client reads it, or (None, the line) if export fails, which must be by exit code 2."""
    with base.popen("export", volume, "spare", stdout=-1, stderr=-1, text=True) as process:
        uri, spare = process.stdout.readline().strip(), process.stdout.readline().strip()
        data = None
        if uri and spare:
            with Client(uri) as h:
                data = bytes(h.pread(8 * MIB, 0))
            with Client(spare) as h:
                assert bytes(h.pread(PAGE, 0)) == b"s" * PAGE
            process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    if data is not None:
        assert process.returncode == 0, err
        return data, ""
    assert process.returncode == 2, (process.returncode, err)
    assert len(err.splitlines()) == 1 and err.startswith("snapctl: "), err
    return None, err


def read(base, what):
    """The same of dump."""
    process = base.popen("dump", what, "-", stdout=-1, stderr=-1)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:
        return out, ""
    assert process.returncode == 2 and len(err.decode().splitlines()) == 1, (process.returncode, err)
    return None, err.decode()


def try_all(base, path, damages, allowed):
    """Damages the file in each way, for dump and for export: an error that names the file, or one of `allowed`."""
    folder = {p: p.read_bytes() for p in path.parent.iterdir()}
    wrong = []
    for name, damage in damages.items():
        for reader in (read, served):
            damage()
            data, err = reader(base, "web")
            if data is None:
                assert path.parent.name in err and path.name in err, (name, err)
            elif data not in allowed:
                wrong.append((name, reader.__name__))
            for p in path.parent.iterdir():
                p.unlink()
            for p, good in folder.items():
                overwrite(p, good)
    assert wrong == [], "wrong content without an error"
    the_rest_reads(base)


def cut_to(path, sizes):
    good = path.read_bytes()
    return {f"cut to {size} of {len(good)}": lambda size=size: overwrite(path, good[:size])
            for size in sizes if size < len(good)}


def test_a_map_cut_short_at_rest_is_damage(many):
    write_all(many)
    path = delta(many) / "map"
    size = path.stat().st_size
    sizes = [0, 1, PAGE - 1, *range(PAGE, size, PAGE), *range(PAGE + 100, size, PAGE)]
    try_all(many, path, cut_to(path, sizes), states(many)[-1:])


def test_a_map_of_several_servings_cut_short_at_rest_is_damage(many):
    for piece in WRITES:
        many.write("web", dict([piece]))
    path = delta(many) / "map"
    size = path.stat().st_size
    sizes = [0, *range(PAGE, size, PAGE), size - 100]
    try_all(many, path, cut_to(path, sizes), states(many)[-1:])


def test_a_flipped_map_at_rest_is_damage(many):
    write_all(many)
    path = delta(many) / "map"
    flips = {f"flip {at}": lambda at=at: flip(path, at)
             for page in range(0, path.stat().st_size, PAGE) for at in (page, page + 60, page + 2000)}
    try_all(many, path, flips, states(many)[-1:])


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_map_of_a_snapshot_is_damage(many, damage):
    write_all(many)
    many("snapshot", "web", "one")
    sealed = many.store / "deltas" / many.volumes()["web"]["sealed"][0] / "map"
    size = sealed.stat().st_size
    if damage == "cut":
        damages = cut_to(sealed, [0, 1, *range(PAGE, size, PAGE), size - 100])
    else:
        damages = {f"flip {at}": lambda at=at: flip(sealed, at) for at in range(0, size, 1000)}
    try_all(many, sealed, damages, states(many)[-1:])


def records(path):
    """Offsets of the records of a journal."""
    data = path.read_bytes()
    return [at for at in range(PAGE, len(data), PAGE) if data[at:at + 4] == b"SFRM"]


def test_a_flipped_journal_of_a_killed_server_is_damage_but_for_its_last_record(many):
    write_all(many, signal.SIGKILL, code=-9)
    path = delta(many) / "journal"
    at = records(path)
    assert len(at) == len(WRITES), "one record a flush"
    all_states = states(many)
    try_all(many, path, {f"flip {n}": lambda n=n: flip(path, n) for n in (0, 8, 60, 75, 4090)}, all_states[-1:])
    try_all(many, path, {f"flip {n}": lambda n=n: flip(path, n) for n in (at[0], at[0] + 9, at[0] + 64, at[1] + 60,
                                                                        at[2] + 20, at[2] + 70)}, all_states[-1:])
    # The last record may be one that was being written when the power went: then the state before it is right.
    try_all(many, path, {f"flip {n}": lambda n=n: flip(path, n) for n in (at[-1], at[-1] + 56, at[-1] + 66)},
            all_states[-2:])


def test_a_journal_of_a_killed_server_cut_short_gives_a_state_that_was_flushed(many):
    """Cut after a record it is damage. Before the first, where the power may have gone, its absence cannot be told."""
    write_all(many, signal.SIGKILL, code=-9)
    path = delta(many) / "journal"
    at, size = records(path), path.stat().st_size
    try_all(many, path, cut_to(path, [0, 100, PAGE, at[1], at[2] + 100, at[-1] + 30, size - PAGE, size - 1]),
            states(many))
