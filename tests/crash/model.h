// Model: what a workload's volume and what was made of it may read as after a power cut.
//
// Each sector has versions, one for each operation that set it. A version may be read if its
// operation had begun, and if no version that is durable came after it: one whose operation was
// answered, which was FUA or followed by a flush that was answered (by a snapshot, a commit, a
// clone, a close too), and which began after the first one's end. Operations in flight together
// have no order. The model knows nothing of how the engine works.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tests/crash/trace.h"

namespace snap::crash {

class Model {
 public:
  explicit Model(const Trace& trace);

  /// Prepares for cuts at this boundary.
  void cut_at(std::uint64_t boundary) { at(boundary, false); }
  /// Prepares for the end of the trace with nothing lost: what was answered counts as durable.
  void at_the_end() { at(~std::uint64_t{0} - 1, true); }
  /// Why `content` must not be; empty if it may.
  std::string check(const Content& content) const;

 private:
  struct Version {
    WriteId id = 0;
    std::uint64_t start = 0;  ///< orders
    std::uint64_t end = ~std::uint64_t{0};
    std::uint64_t begun_at = 0;    ///< boundaries
    std::uint64_t durable_at = 0;  ///< from this boundary on; ~0: never
    std::uint64_t done_at = 0;     ///< ~0: never
  };
  /// Something that is there or not, and whose content is fixed.
  struct Object {
    std::string name;
    std::vector<WriteId> content;
    std::uint64_t begun_at = 0, there_at = 0;  ///< may be there, must be
    std::uint64_t leaving_at = ~0ull, gone_at = ~0ull;
  };

  void at(std::uint64_t boundary, bool nothing_lost);
  void add_versions(const Done& done);
  std::uint64_t durable_at(const Done& done) const;
  std::vector<WriteId> volume_before(const Done& done) const;
  void add_objects();

  const Trace& trace_;
  std::vector<std::vector<Version>> sectors_;
  std::vector<Object> objects_;
  Object volume_;
  struct Size {
    std::uint64_t sectors = 0, begun_at = 0, done_at = 0;
  };
  std::vector<Size> sizes_;

  // Of the last at()
  std::uint64_t boundary_ = 0;
  std::vector<std::vector<WriteId>> allowed_;
};

std::string id_text(WriteId id);

}  // namespace snap::crash
