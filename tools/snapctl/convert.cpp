// See convert.h.
#include "tools/snapctl/convert.h"

#include <fmt/format.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>

#include "engine/io/sync.h"
#include "engine/nbd/volume_export.h"
#include "engine/server/endpoint.h"
#include "engine/server/server.h"
#include "engine/store/program.h"
#include "snap/event_loop.h"

namespace snap::cli {

namespace {

/// A directory for the socket, removed in the end. Not in the store: a socket's path holds 107
/// bytes only, and a store may lie deep.
class SocketDirectory {
 public:
  static Result<std::unique_ptr<SocketDirectory>> make() {
    std::string path = "/tmp/" SNAPCTL_PROGRAM_NAME "-XXXXXX";
    if (mkdtemp(path.data()) == nullptr) return Error::from_errno(errno, "make " + path);
    return std::unique_ptr<SocketDirectory>(new SocketDirectory(path));
  }
  SocketDirectory(const SocketDirectory&) = delete;
  SocketDirectory& operator=(const SocketDirectory&) = delete;
  ~SocketDirectory() { rmdir(path_.c_str()); }  // the listener has removed the socket
  std::string socket() const { return path_ + "/nbd"; }

 private:
  explicit SocketDirectory(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

/// `file` as qemu-img takes it for a path whatever its characters: a bare name with a ':' would be
/// a protocol, one that begins with '-' an option.
std::string plain_path(const std::string& file) {
  return file.starts_with("/") ? file : "./" + file;
}

Task<void> run_server(server::Server* server, WaitGroup* running) {
  co_await server->run();
  running->done();
}

Task<Result<void>> run_convert(std::vector<std::string> argv, std::string file) {
  auto ended = co_await offload([&argv] { return run_program(argv); });
  if (!ended) co_return ended.error();
  if (ended->exit_code != 0)
    co_return Error(ErrorCode::kIo, fmt::format("write {}: {}", file, ended->errors));
  co_return Result<void>();
}

}  // namespace

const std::vector<std::string>& convert_formats() {
  static const std::vector<std::string> formats = {"qcow2", "vmdk", "vhdx", "vdi", "vpc", "qed"};
  return formats;
}

Task<Result<void>> convert_volume(std::shared_ptr<Volume> volume, std::string format,
                                  std::string file) {
  auto program = find_program("qemu-img");
  if (!program) {
    co_return Error(ErrorCode::kNotFound,
                    "dump: qemu-img is not installed; it is in the package qemu-utils");
  }
  auto directory = SocketDirectory::make();
  if (!directory) co_return directory.error();
  nbd::FixedExports exports;
  exports.add(std::make_shared<nbd::VolumeExport>(volume, "dump", "", true));
  server::UnixEndpoint endpoint;
  endpoint.path = (*directory)->socket();
  auto listener = co_await server::listen_on(endpoint);
  if (!listener) co_return listener.error();
  std::string uri = server::nbd_uri(*listener, "dump");
  std::vector<Listener> listeners;
  listeners.push_back(std::move(*listener));
  server::Server::Options options;
  options.workers.threads = 1;
  auto server = server::Server::start(exports, std::move(listeners), options);
  if (!server) co_return server.error();
  WaitGroup running;
  running.add();
  EventLoop::current()->spawn(run_server(server->get(), &running));

  // "-t writeback": with qemu-img's own default it would not sync what it wrote.
  std::vector<std::string> argv = {*program, "convert", "-f",        "raw", "-O",
                                   format,   "-t",      "writeback", uri,   plain_path(file)};
  auto converted = co_await run_convert(argv, file);
  (*server)->request_stop();
  co_await running.wait();
  co_return converted;
}

}  // namespace snap::cli
