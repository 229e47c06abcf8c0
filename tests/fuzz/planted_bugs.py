#!/usr/bin/python3
"""Plants bugs in a copy of the engine, one at a time, and sees that the fuzz target finds each within 20 s.

  planted_bugs.py [NAME...]      all, or those

Works in a temporary copy (tools/setup test); ends with 'N passed, N failed', a bug that is not found being a failure.
Takes about half a minute a bug.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
FORMAT, LAYER = "engine/delta/delta_format.cpp", "engine/layer/layer_format.cpp"
CONTROL, JSON = "engine/server/control_protocol.cpp", "engine/server/json_fields.h"

# name: (target, file, what stands there, what is put in its place)
BUGS = {
    "blocks of a record may be fewer than it names": (
        "journal", FORMAT,
        "head.length != frame_length(head.count) + kBlockSize * count_blocks(changes)) {", "false) {"),
    "a frame may be of any length": (
        "journal", FORMAT, "head.length > kMaxFrameBytes || ", ""),
    "a record may name blocks beyond the volume": (
        "journal", FORMAT, " ||\n        (named & ~blocks_within(change.chunk, volume_size)) != 0) {", ") {"),
    "a block may be both data and zero": (
        "map", FORMAT, "(change.data & change.zero) != 0 ||\n", "\n"),
    "a segment that shrinks forgets nothing": (
        "map", "engine/delta/map_file.cpp", "blocks.drop_beyond(head->volume_size);", "{}"),
    "a frame may have more changes than bytes": (
        "map", FORMAT, "  if (head.length < frame_length(head.count)) return std::nullopt;\n", "",
        "blocks ? head.length < plain : head.length != plain", "false"),
    "a closed delta may lack its guard": (
        "map", "engine/delta/map_file.cpp", "if (last_is_guard_ || ", "if (true || last_is_guard_ || "),
    "an option may be of any length": (
        "nbd", "engine/nbd/handshake.cpp", "if (header.length > kMaxNbdOption) {", "if (false) {"),
    "an INFO may announce more than it has": (
        "nbd", "engine/nbd/protocol.cpp", "!in.ok() || in.remaining() != count * sizeof(std::uint16_t)", "!in.ok()",
        "request.infos.push_back(in.be<std::uint16_t>());",
        "request.infos.push_back(load_be<std::uint16_t>(data.data() + in.position() + 2 * i));"),
    "a range may end beyond the export": (
        "nbd", "engine/nbd/request.cpp", "h.offset.value > rules.size || h.length > rules.size - h.offset.value",
        "h.offset.value > rules.size"),
    "a reply says a wrong length": (
        "nbd", "engine/nbd/protocol.cpp", "append_u32(out, length);", "append_u32(out, length + 1);"),
    "stored bytes may be fewer than the mask means": (
        "layer", LAYER, "if (e.stored_length != raw)", "if (false)"),
    "stored bytes may lie anywhere": (
        "layer", LAYER, "if (e.offset < kHeaderBytes || e.offset > footer.table_offset ||\n"
        "      e.stored_length > footer.table_offset - e.offset)", "if (false)"),
    "a footer may claim any number of entries": (
        "layer", LAYER, "f.footer_offset() + kFooterBytes != file_size)", "false)"),
    "control messages may be nested as deep as they like": (
        "control", CONTROL, "too_deep = too_deep || depth > kMaxDepth;", "(void)depth;"),
    "a text may be of another type": (
        "control", JSON, "if (found->is_string()) return", "return"),
    "lines with a progress report are cut": (
        "control", CONTROL, "return line_of({{\"progress\", {{\"stage\"", "return json_text({{\"progress\", {{\"stage\""),
    "a config may have other layers than its manifest": (
        "config", "engine/store/image_codec.cpp", "if (ids.size() != manifest.layers.size()) {", "if (false) {"),
    "a field of a config may be of another type": (
        "config", "engine/store/json_fields.cpp", "if (!value->is_string()) {", "if (false) {"),
    "an index keeps less of an entry than it read": (
        "config", "engine/store/image_codec.cpp", "out += separator + entry.raw;",
        "out += separator + make_index_entry(entry.manifest, entry.size, entry.reference).raw;"),
}


def run(argv, **kwargs):
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", **kwargs)


def copy_tree(folder):
    listed = run(["git", "-C", TOP, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]).stdout
    for name in filter(None, listed.split("\0")):
        if (TOP / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TOP / name, folder / name)


def main():
    chosen = sys.argv[1:] or list(BUGS)
    unknown = [name for name in chosen if name not in BUGS]
    if unknown:
        sys.exit(f"planted_bugs.py: no bug {unknown[0]!r}; known are:\n  " + "\n  ".join(BUGS))
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="planted-") as name:
        folder = pathlib.Path(name)
        copy_tree(folder)
        for name in chosen:
            target, file, *changes = BUGS[name]
            path = folder / file
            before = path.read_text()
            text, planted = before, True
            for old, new in zip(changes[::2], changes[1::2]):
                planted = planted and text.count(old) == 1
                text = text.replace(old, new)
            path.write_text(text)
            shutil.rmtree(folder / "build-fuzz/found", ignore_errors=True)
            done = run(["tests/fuzz/run", target], cwd=folder, env={**os.environ, "LC_ALL": "C"}) if planted else None
            # A target that does not build fails as well, and has found nothing.
            found = planted and f"{target} " in done.stdout and "FAILED (exit" in done.stdout
            if found:
                verdict = "found: " + next((line for line in done.stdout.splitlines()
                                            if line.startswith(("broken", "SUMMARY", "=="))), "see the log")
            elif not planted:
                verdict = f"FAILED: it cannot be planted, {file} has changed"
            else:
                verdict = "FAILED: not found\n" + done.stdout[-1500:]
            print(f"{target}: {name}\n    {verdict}", flush=True)
            passed, failed = passed + bool(found), failed + (not found)
            path.write_text(before)
    print(f"{passed} passed, {failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
