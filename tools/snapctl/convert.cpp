// See convert.h.
#include "tools/snapctl/convert.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "engine/io/sync.h"
#include "engine/nbd/volume_export.h"
#include "engine/server/endpoint.h"
#include "engine/server/server.h"
#include "engine/store/program.h"
#include "snap/event_loop.h"
#include "tools/snapctl/child_process.h"

namespace snap::cli {

namespace {

/// A directory of our own, removed in the end with the file that it is for. Not in the store: a
/// socket's path holds 107 bytes only, and a store may lie deep.
class OwnDirectory {
 public:
  static Result<std::unique_ptr<OwnDirectory>> make() {
    std::string path = "/tmp/" SNAPCTL_PROGRAM_NAME "-XXXXXX";
    if (mkdtemp(path.data()) == nullptr) return Error::from_errno(errno, "make " + path);
    return std::unique_ptr<OwnDirectory>(new OwnDirectory(path));
  }
  OwnDirectory(const OwnDirectory&) = delete;
  OwnDirectory& operator=(const OwnDirectory&) = delete;
  ~OwnDirectory() {
    if (!link_.empty()) unlink(link_.c_str());
    rmdir(path_.c_str());  // the listener has removed the socket
  }
  std::string socket() const { return path_ + "/nbd"; }
  /// Another name of a file, which goes with the directory.
  Result<std::string> link_to(const std::string& file, const std::string& name) {
    const std::unique_ptr<char, decltype(&free)> whole(realpath(file.c_str(), nullptr), &free);
    if (!whole) return Error::from_errno(errno, "find " + file);
    const std::string link = path_ + "/" + name;
    if (symlink(whole.get(), link.c_str()) != 0) return Error::from_errno(errno, "make " + link);
    link_ = link;
    return link;
  }

 private:
  explicit OwnDirectory(std::string path) : path_(std::move(path)) {}
  std::string path_;
  std::string link_;
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

/// What a program wrote to `errors`: the end of it, in one line if it is one.
std::string said(int errors) {
  constexpr off_t kMost = 4096;
  const off_t size = ::lseek(errors, 0, SEEK_END);
  std::string text(static_cast<std::size_t>(std::clamp<off_t>(size, 0, kMost)), '\0');
  const ssize_t n = ::pread(errors, text.data(), text.size(), std::max<off_t>(size - kMost, 0));
  text.resize(n < 0 ? 0 : static_cast<std::size_t>(n));
  while (!text.empty() && (text.back() == '\n' || text.back() == ' '))
    text.pop_back();
  return text;
}

/// Ends it, and waits for its end, once this program is interrupted.
Result<void> run_until_interrupted(const std::vector<std::string>& argv, const std::string& file) {
  const UniqueFd quiet(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const UniqueFd errors(::memfd_create("errors", MFD_CLOEXEC));
  if (!quiet || !errors) return Error::from_errno(errno, "run " + argv[0]);
  ChildProcess::Options options;
  options.environment = {{"LC_ALL", "C"}, {"LANGUAGE", ""}};
  options.input = options.output = quiet.get();
  options.errors = errors.get();
  options.own_group = true;
  auto child = ChildProcess::start(argv, std::move(options));
  if (!child) return child.error();
  auto code = child->wait_unless_interrupted();
  if (!code) return code.error();
  if (*code == 0) return {};
  std::string why = said(errors.get());
  if (why.empty()) why = fmt::format("{} ended with {}", argv[0], *code);
  return Error(ErrorCode::kIo, fmt::format("write {}: {}", file, why));
}

Task<Result<void>> run_convert(std::vector<std::string> argv, std::string file) {
  auto running = [&argv, &file] { return run_until_interrupted(argv, file); };
  auto ended = co_await offload(running);
  co_return ended;
}

}  // namespace

const std::vector<std::string>& convert_formats() {
  static const std::vector<std::string> formats = {"qcow2", "vmdk", "vhdx", "vdi", "vpc", "qed"};
  return formats;
}

Task<Result<void>> convert_volume(std::shared_ptr<Volume> volume, ConvertTarget target) {
  auto program = find_program("qemu-img");
  if (!program) {
    co_return Error(ErrorCode::kNotFound,
                    "dump: qemu-img is not installed; it is in the package qemu-utils");
  }
  auto directory = OwnDirectory::make();
  if (!directory) co_return directory.error();
  std::unique_ptr<OwnDirectory> link_directory;
  std::string file = plain_path(target.file);
  if (!target.name.empty()) {
    auto made = OwnDirectory::make();
    if (!made) co_return made.error();
    link_directory = std::move(*made);
    auto link = link_directory->link_to(target.file, target.name);
    if (!link) co_return link.error();
    file = std::move(*link);
  }
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
  std::vector<std::string> argv = {*program,      "convert", "-f",        "raw", "-O",
                                   target.format, "-t",      "writeback", uri,   file};
  auto converted = co_await run_convert(argv, target.file);
  (*server)->request_stop();
  co_await running.wait();
  co_return converted;
}

}  // namespace snap::cli
