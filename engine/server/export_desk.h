// ExportDesk: where connections, on the workers' loops, ask for exports, which are looked up and
// opened on the store's loop.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/sync.h"
#include "engine/nbd/export.h"
#include "engine/server/catalogue.h"
#include "engine/server/log.h"
#include "engine/server/open_items.h"
#include "snap/task.h"

namespace snap::server {

/// Opens what a client is to use, which stays open as long as the export is there. Images and
/// snapshots are read-only in any case.
Task<Result<std::shared_ptr<nbd::Export>>> open_export(OpenItems& open, ServedItem item,
                                                       bool read_only);

class ExportDesk final : public nbd::ExportTable {
 public:
  /// All outlive it. `read_only` refuses writes to everything.
  ExportDesk(Catalogue& catalogue, OpenItems& open, bool read_only)
      : catalogue_(catalogue), open_(open), read_only_(read_only) {}

  /// Answers what connections ask, until stop(). On the store's loop.
  Task<void> run();
  /// Once no connection is left.
  void stop();

  /// Every connection has a table of its own, so there is nothing here.
  std::shared_ptr<nbd::Export> find(std::string_view) override { return nullptr; }
  std::vector<std::shared_ptr<nbd::Export>> list() override { return {}; }
  std::unique_ptr<nbd::ExportTable> for_connection() override;

 private:
  class View;
  /// A question and its answer. It lives with the connection that waits for it.
  struct Question {
    nbd::Lookup wanted;
    std::vector<std::shared_ptr<nbd::Export>> found;
    std::string refusal;
    AsyncEvent answered;
  };

  void ask(Question* question);
  Task<void> answer(Question* question);
  Task<Result<void>> list_all(Question* question);
  Task<Result<void>> find_one(Question* question);

  Catalogue& catalogue_;
  OpenItems& open_;
  const bool read_only_;

  std::mutex lock_;  // guards the next two
  std::vector<Question*> asked_;
  bool stopped_ = false;
  AsyncEvent arrived_;
  WaitGroup answering_;
  RateLimit complaints_{20, 1};
  AsyncMutex listing_;  ///< a list is long: one at a time
};

}  // namespace snap::server
