// A server of exports that need no store, for tests of the protocol with other people's clients and
// for measuring what the protocol costs.
//
//   test_server [--threads N] [--socket PATH] EXPORT...
//   EXPORT: memory:NAME:BYTES[:ro]  |  file:NAME:PATH
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/nbd/memory_export.h"
#include "engine/server/endpoint.h"
#include "engine/server/server.h"
#include "engine/server/signals.h"
#include "snap/file.h"

namespace snap::server {
namespace {

/// A raw file, read and written as it is.
class FileExport final : public nbd::Export {
 public:
  FileExport(std::string name, std::unique_ptr<File> file, std::uint64_t size)
      : name_(std::move(name)), file_(std::move(file)), size_(size) {}

  const std::string& name() const noexcept override { return name_; }
  const std::string& description() const noexcept override { return name_; }
  std::uint64_t size() const noexcept override { return size_; }
  bool read_only() const noexcept override { return false; }

  Task<Result<void>> read(ByteOffset at, std::span<std::byte> out) override {
    return read_exact(*file_, out, at);
  }
  Task<Result<void>> write(ByteOffset at, std::span<const std::byte> bytes,
                           Volume::WriteOptions options) override {
    auto done = co_await write_all(*file_, bytes, at);
    if (done && options.fua) done = co_await flush();
    co_return done;
  }
  Task<Result<void>> write_zeroes(ByteOffset at, std::uint64_t length,
                                  Volume::ZeroOptions options) override {
    auto op = punch_hole(*file_, at, length);
    auto done = co_await op;
    if (!done) co_return done.error();
    if (options.fua) co_return co_await flush();
    co_return Result<void>();
  }
  Task<Result<void>> trim(ByteOffset at, std::uint64_t length,
                          Volume::WriteOptions options) override {
    return write_zeroes(at, length, {.fua = options.fua});
  }
  Task<Result<void>> flush() override {
    auto op = data_sync(*file_);
    auto done = co_await op;
    if (!done) co_return done.error();
    co_return Result<void>();
  }
  Task<Result<std::vector<Extent>>> extents(ByteOffset at, std::uint64_t length,
                                            std::size_t) override {
    std::vector<Extent> all{{at, length, true, true, 0}};
    co_return all;
  }
  Task<Result<void>> prefetch(ByteOffset, std::uint64_t) override { co_return Result<void>(); }

 private:
  std::string name_;
  std::unique_ptr<File> file_;
  std::uint64_t size_;
};

std::vector<std::string> split(std::string_view text) {
  std::vector<std::string> parts;
  while (true) {
    const std::size_t colon = text.find(':');
    parts.emplace_back(text.substr(0, colon));
    if (colon == std::string_view::npos) return parts;
    text.remove_prefix(colon + 1);
  }
}

Task<Result<std::shared_ptr<nbd::Export>>> make_export(std::string text) {
  const std::vector<std::string> parts = split(text);
  if (parts.size() >= 3 && parts[0] == "memory") {
    const bool read_only = parts.size() == 4 && parts[3] == "ro";
    co_return std::shared_ptr<nbd::Export>(std::make_shared<nbd::MemoryExport>(
        parts[1], std::strtoull(parts[2].c_str(), nullptr, 10), read_only, "a test export"));
  }
  if (parts.size() == 3 && parts[0] == "file") {
    const OpenFlags flags{.write = true};
    auto file = co_await open_file(parts[2], flags);
    if (!file) co_return file.error();
    auto stat = co_await (*file)->stat();
    if (!stat) co_return stat.error();
    (*file)->advise_random();
    co_return std::shared_ptr<nbd::Export>(
        std::make_shared<FileExport>(parts[1], std::move(*file), stat->size));
  }
  co_return Error(ErrorCode::kInvalidArgument, "no such kind of export: " + text);
}

Task<void> stop_on_signal(StopSignals* signals, PendingOps* waits, Server* server) {
  auto signal = co_await signals->next(*waits);
  if (signal) log_info("stopping on signal " + std::to_string(*signal));
  server->request_stop();
}

Task<Result<void>> serve(std::string socket, std::size_t threads, std::vector<std::string> texts) {
  nbd::FixedExports exports;
  for (const std::string& text : texts) {
    auto made = co_await make_export(text);
    if (!made) co_return made.error();
    exports.add(std::move(*made));
  }
  auto signals = StopSignals::open();
  if (!signals) co_return signals.error();
  auto inherited = inherited_listeners();
  if (!inherited) co_return inherited.error();
  std::vector<Listener> listeners = std::move(*inherited);
  if (!socket.empty()) {
    UnixEndpoint endpoint{.path = socket};
    auto listener = co_await listen_on(std::move(endpoint));
    if (!listener) co_return listener.error();
    listeners.push_back(std::move(*listener));
  }
  Server::Options options;
  options.workers.threads = threads;
  auto server = Server::start(exports, std::move(listeners), options);
  if (!server) co_return server.error();
  for (const auto& e : exports.list())
    std::puts(nbd_uri((*server)->listeners().front(), e->name()).c_str());
  std::fflush(stdout);
  PendingOps waits;
  EventLoop::current()->spawn(stop_on_signal(&*signals, &waits, server->get()));
  co_await (*server)->run();
  co_return Result<void>();
}

int main_of(int argc, char** argv) {
  std::string socket;
  std::size_t threads = 0;
  std::vector<std::string> exports;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "--socket" && i + 1 < argc) {
      socket = argv[++i];
    } else if (word == "--threads" && i + 1 < argc) {
      threads = std::strtoul(argv[++i], nullptr, 10);
    } else {
      exports.emplace_back(word);
    }
  }
  auto blocked = block_stop_signals();
  auto loop = make_event_loop();
  if (!blocked || !loop) return 1;
  auto served = (*loop)->run(serve(socket, threads, exports));
  if (served) return 0;
  std::fprintf(stderr, "test_server: %s\n", served.error().message().c_str());
  return 1;
}

}  // namespace
}  // namespace snap::server

int main(int argc, char** argv) {
  return snap::server::main_of(argc, argv);
}
