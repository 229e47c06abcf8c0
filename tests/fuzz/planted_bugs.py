#!/usr/bin/python3
"""Plants bugs in a copy of the engine, one at a time, and sees that the fuzz target finds each within 20 s.

  planted_bugs.py [WORD...]      all, or those whose name has one of the words

Works in a temporary copy (tools/setup test); ends with 'N passed, N failed', a bug that is not found being a failure.
Takes about half a minute a bug.
"""

import os
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "support"))
import planting  # noqa: E402

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
    "chunks of a layer may stand in any order": (
        "layer", LAYER, "(n != 0 && entry->chunk <= entries.back().chunk) || ", ""),
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


def main():
    chosen = {name: BUGS[name] for name in planting.chosen(BUGS, sys.argv[1:])}

    def notice(name, folder):
        target = chosen[name][0]
        shutil.rmtree(folder / "build-fuzz/found", ignore_errors=True)
        said = planting.run(["tests/fuzz/run", target], cwd=folder, env={**os.environ, "LC_ALL": "C"}).stdout
        # A target that does not build fails as well, and has found nothing.
        if f"{target} " not in said or "FAILED (exit" not in said:
            return False, f"{target} does not find it\n{said[-1500:]}"
        how = next((line for line in said.splitlines() if line.startswith(("broken", "SUMMARY", "=="))), "see the log")
        return True, f"{target}: {how}"

    return planting.plant_each({name: bug[1:] for name, bug in chosen.items()}, lambda folder: None, notice)


if __name__ == "__main__":
    sys.exit(main())
