#!/usr/bin/python3
"""Plants bugs in a copy of the engine, one at a time, and sees that the tests of its durability notice each.

  planted_bugs.py [WORD...]      all, or those whose name has one of the words

Two kinds: the bugs in BUGS, and each sync that the engine makes, left out ("no sync FILE: N", its Nth). Needs the packages
of tools/setup test. Works in a temporary copy; ends with 'N passed, N failed', a bug that no test notices being a
failure. Takes about half a minute a bug.
"""

import os
import pathlib
import re
import subprocess
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(TOP / "tests/support"))
import planting  # noqa: E402
# In this order until one fails. The last is the full enumeration.
TESTS = [
    ["engine/delta/delta_crash_test"],
    ["engine/delta/delta_fault_test"],
    ["engine/delta/delta_live_test"],
    ["engine/delta/delta_reopen_test"],
    ["engine/delta/delta_test"],
    ["engine/delta/delta_write_now_test"],
    ["engine/delta/run_file_test"],
    ["engine/store/store_test"],
    ["engine/store/names_test"],
    ["engine/store/check_test"],
    ["engine/store/ops_crash_test"],
    ["tests/crash/crash_test"],
]
# Of a bug in a file of this folder only these can notice.
FIRST = {"engine/store": 7, "engine/layer": 7}
TARGETS = [test[0] for test in TESTS]
LIMIT = 300  # seconds of a test: a bug may make it hang, which is noticing, too

FLUSH, JOURNAL, MAP = "engine/delta/flush.cpp", "engine/delta/journal.cpp", "engine/delta/map_file.cpp"
DURABLE_WRITE = "engine/io/durable_write.cpp"
RECOVERY, CHECKPOINT = "engine/delta/recovery.cpp", "engine/delta/checkpoint.cpp"
LIVE_MAP = "engine/delta/live_map.cpp"

# name: (file, what stands there, what is put in its place)
BUGS = {
    "the data file is not synced before the record that names its blocks": (
        FLUSH, "auto synced = co_await sync_data(next_sync());\n    SNAP_CO_RETURN_IF_ERROR(synced);\n    data_synced_",
        "data_synced_"),
    "the data file is synced after the record that names its blocks": (
        FLUSH, "    auto recorded = co_await record(std::move(changes), through);\n",
        "    auto recorded = co_await record(std::move(changes), through);\n"
        "    auto late = co_await sync_data(next_sync());\n    SNAP_CO_RETURN_IF_ERROR(late);\n"),
    "a flush is answered before its record is written": (
        FLUSH, "auto committed = co_await commit(Path::kSmall);",
        "Result<void> committed;\n    EventLoop::current()->spawn([](DeltaImpl* self) -> Task<void> {\n"
        "      auto late = co_await self->commit(Path::kSmall);\n      (void)late;\n    }(this));"),
    "a record is not synced": (
        DURABLE_WRITE, "if (!wrote) co_return wrote;", "if (!wrote || f.native_handle() < 0) co_return wrote;"),
    "the journal's header is not synced": (
        JOURNAL, "  auto synced = co_await data_sync(*file_);\n  SNAP_CO_RETURN_IF_ERROR(synced);\n  has_header_ = true;",
        "  has_header_ = true;"),
    "a segment of the map is not synced": (
        MAP, "    auto synced = co_await data_sync(*file_);\n    SNAP_CO_RETURN_IF_ERROR(synced);\n  } while",
        "  } while"),
    "the map's new file is not synced before it is renamed": (
        MAP, "auto synced = co_await data_sync(*map.file_);", "Result<void> synced;"),
    "the directory is not synced after a compaction": (
        CHECKPOINT, "  auto synced = co_await dir_->sync();\n  SNAP_CO_RETURN_IF_ERROR(synced);\n  map_ =", "  map_ ="),
    "what recovery replays is not synced": (
        RECOVERY, "    auto synced = co_await sync_data(next_sync());\n    SNAP_CO_RETURN_IF_ERROR(synced);\n", ""),
    "what a dead process left in the page cache is not synced": (
        RECOVERY, "auto data_synced = co_await data_sync(data);", "Result<void> data_synced;\n  (void)data;"),
    "what a dead process left of its journal is not synced": (
        RECOVERY, "auto journal_synced = co_await data_sync(journal);", "Result<void> journal_synced;\n  (void)journal;"),
    "records are not replayed": (
        RECOVERY, "if (!tail->blocks.empty() && !live) {", "if (false) {"),
    "blocks of a superseded record are replayed": (JOURNAL, "      tail.blocks.clear();\n", ""),
    "the checksum of a frame's body is ignored": (
        "engine/delta/delta_format.cpp", "if (xxh3_keyed(body, context.secret) != head.body_checksum) return none;",
        ""),
    "a short write counts as whole": (
        "engine/delta/delta.cpp", "} else if (*got < bytes.size()) {\n      auto rest = co_await write_all(*data_, "
        "bytes.subspan(*got), at + *got);\n      if (!rest) error = rest.error();\n    }", "}"),
    "a short write at once counts as whole": (
        "engine/delta/delta.cpp", "  if (**done < bytes.size()) {", "  if (**done == 0) {"),
    "a write at once does not hold its blocks": (
        "engine/delta/delta.cpp", "const auto before = blocks_->hold_now(piece.chunk, piece.mask);",
        "const std::optional<MapWord> before = blocks_->word(piece.chunk);"),
    "what a failed write may have changed is not dirty": (
        "engine/delta/delta.cpp", "if (present != 0) (void)blocks_->publish_data(piece.chunk, present);",
        "blocks_->release(piece.chunk, present);"),
    "a write of a block that has data does not make it dirty": (
        "engine/delta/block_map.cpp", "dirty_of(w) | mask);\n  } while (!word.compare_exchange_weak(w, after));\n  if (dirty",
        "dirty_of(w) | static_cast<BlockMask>(mask & ~data_of(w)));\n"
        "  } while (!word.compare_exchange_weak(w, after));\n  if (dirty"),
    "a write made during a commit counts as covered by it": (
        FLUSH, "  synced_.store(epoch);", "  synced_.store(epoch_.load() + (epoch & 0));"),
    "an area of the journal is filled again before a segment covers it": (
        FLUSH, "    auto freed = co_await checkpoint_frozen();\n    SNAP_CO_RETURN_IF_ERROR(freed);\n", ""),
    "the number of a torn record is given again": (RECOVERY, "(tail->torn ? 1 : 0)", "0"),
    "a trim is answered before its hole is punched": (
        "engine/delta/zero.cpp", "    auto punched = co_await punch_hole(*data_, ByteOffset(begin), end - begin);\n",
        "    EventLoop::current()->spawn([](DeltaImpl* self, std::uint64_t from, std::uint64_t to) -> Task<void> {\n"
        "      auto late = co_await punch_hole(*self->data_, ByteOffset(from), to - from);\n"
        "      (void)late;\n    }(this, begin, end));\n    Result<void> punched;\n"),
    "a shrink cuts the file before its segment is stable": (
        "engine/delta/checkpoint.cpp", "Task<Result<void>> DeltaImpl::resize(std::uint64_t new_size) {\n",
        "Task<Result<void>> DeltaImpl::resize(std::uint64_t new_size) {\n"
        "  auto early = co_await data_->truncate(data_file_size(new_size));\n  SNAP_CO_RETURN_IF_ERROR(early);\n"),
    "a volume grows while what was zeroed of its last block is not stable": (
        CHECKPOINT, "    auto committed = co_await commit(Path::kLarge);\n    co_return committed;\n",
        "    co_return Result<void>();\n"),
    "a flush or FUA that arrives during a commit is answered with it": (
        FLUSH, "      next_round_ = nullptr;\n    }\n    bool recorded", "    }\n    bool recorded"),
    "a write with FUA is answered without its record": (
        FLUSH, "  auto recorded = co_await record_with_blocks(changes);\n  if (!recorded) co_return fail",
        "  Result<bool> recorded = true;\n  if (!recorded) co_return fail"),
    "what a write with FUA could not record is forgotten": (
        FLUSH, "      blocks_->give_back(change);", "      (void)change;"),
    "a live map counts after a failed sync": (
        FLUSH, "  if (blocks_->live() != nullptr) blocks_->live()->discount();\n", ""),
    "a live map is taken whoever opened the delta since": (
        LIVE_MAP, "h.token != token ||", "(h.token != token && false) ||"),
    "cached data is believed, however the delta was left": (
        RECOVERY, "auto dropped = co_await (*data)->drop_cache();", "Result<void> dropped;"),
    "the note that a delta was closed is found again": (
        RECOVERY, "    auto taken = co_await take_note(*dir, token);\n",
        "    Result<bool> taken = false;\n    (void)token;\n    (void)take_note;\n"),
    "a delta whose last commit failed says that it was closed": (
        CHECKPOINT, "  co_await background_.wait();\n  SNAP_CO_RETURN_IF_ERROR(committed);\n",
        "  co_await background_.wait();\n  if (!committed) co_await note_closed(*dir_, *data_);\n"
        "  SNAP_CO_RETURN_IF_ERROR(committed);\n"),
    "a volume is renamed beside a sweep": (
        "engine/store/store_volumes.cpp", "co_await impl_->lock.shared(\"rename volume \" + shown(from));",
        "co_await lock_file(*impl_->root, \"other\", false, \"\");"),
    "a snapshot's end is seen by a sweep before it is durable": (
        "engine/store/at_rest.cpp", "  // Until the new record is durable no sweep takes what it frees.\n"
        "  auto store_lock = co_await impl_->lock.shared(\"remove a snapshot of \" + shown(volume_name));\n",
        "  Result<FileLock> store_lock = FileLock();\n"),
    "a backup takes a volume that is not as it was frozen": (
        "engine/store/backup.cpp", "    if (!is_frozen(volume->record)) {", "    if (!is_frozen(volume->record) && false) {"),
    "a small flush does not ask for writes that the kernel lost": (
        FLUSH, "  check_writeback();\n  if (auto failed = failure()) co_return *failed;\n  auto appended",
        "  auto appended"),
    "with a live map records are replayed over newer blocks": (
        RECOVERY, "if (!tail->blocks.empty() && !live) {", "if (!tail->blocks.empty()) {"),
}


# A call that syncs.
SYNC = re.compile(r"\bco_await (?:(?:data_sync|full_sync|sync_data)\(([^;]*)\)|([^;=]*?)(?:->|\.)sync\(\));")
# Syncs whose loss cannot lose anything, and why they are made.
HARMLESS = {
    ("engine/delta/checkpoint.cpp", 1): "before the lock is taken; checkpoint_frozen() makes sure of it under the lock",
    ("engine/delta/journal.cpp", 4): "a record makes itself stable, and where zeros were not written zeros are read; it tells "
                                     "of a failing disk before an area relies on it",
    ("engine/delta/map_file.cpp", 3): "of a guard, which tells damage at rest from a torn write: without it, or with a torn "
                                      "one, the map is the same",
    ("engine/store/backup.cpp", 2): "create_delta() syncs the same folder before a record names what is in it, which is not "
                                    "what it is there for",
    ("engine/layer/layer_writer.cpp", 1): "spreads the writing of a layer over its hashing; the last sync covers it all",
}


def left_out_syncs():
    """BUGS of the second kind: name -> (file, text, text with one call less)."""
    bugs = {}
    for folder in ("engine/delta", "engine/layer", "engine/store"):
        for path in sorted((TOP / folder).glob("*.cpp")):
            file = str(path.relative_to(TOP))
            if file.endswith(("_test.cpp", "_bench.cpp")):
                continue
            text = path.read_text()
            for number, call in enumerate(SYNC.finditer(text), 1):
                if (file, number) in HARMLESS:
                    continue
                nothing = f"((void)({call.group(1) or call.group(2)}), Result<void>());"
                bugs[f"no sync {file}: {number}, {' '.join(call.group(0).split())}"] = (
                    file, text, text[:call.start()] + nothing + text[call.end():])
    return bugs


def build(folder):
    return planting.run(["tools/build"], cwd=folder, env={**os.environ, "TARGETS": " ".join(TARGETS)})


def noticed_by(folder, file=""):
    """The first test that fails, or None; of those that can tell of a bug in the file."""
    for test in TESTS[FIRST.get(os.path.dirname(file), 0):]:
        try:
            done = planting.run([folder / "build" / test[0], *test[1:]], timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return f"{test[0]}, which does not end"
        if done.returncode != 0:
            return test[0]
    return None


def prepare(folder):
    built = build(folder)
    by = f"{TARGETS} do not build" if built.returncode != 0 else noticed_by(folder)
    if by:
        sys.exit(f"planted_bugs.py: without any bug: {by}\n{built.stdout[-2000:]}")


def main():
    bugs = {**BUGS, **left_out_syncs()}
    bugs = {name: bugs[name] for name in planting.chosen(bugs, sys.argv[1:])}

    def notice(name, folder):
        built = build(folder)
        if built.returncode != 0:
            return False, "it does not compile\n" + built.stdout[-1500:]
        by = noticed_by(folder, bugs[name][0])
        return by is not None, f"noticed by {by}" if by else "no test notices it"

    return planting.plant_each(bugs, prepare, notice)


if __name__ == "__main__":
    sys.exit(main())
