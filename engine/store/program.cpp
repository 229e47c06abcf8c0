// See program.h.
#include "engine/store/program.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <string_view>

#include "engine/io/unique_fd.h"

extern char** environ;

namespace snap {

namespace {

constexpr std::size_t kErrorsKept = 4096;
constexpr std::size_t kOutputKept = 64u << 10;

/// File actions of posix_spawn: a type, so that every path frees them.
class SpawnActions {
 public:
  SpawnActions() { posix_spawn_file_actions_init(&actions_); }
  SpawnActions(const SpawnActions&) = delete;
  SpawnActions& operator=(const SpawnActions&) = delete;
  ~SpawnActions() { posix_spawn_file_actions_destroy(&actions_); }
  posix_spawn_file_actions_t* get() { return &actions_; }

 private:
  posix_spawn_file_actions_t actions_;
};

std::vector<std::string> environment_in_c() {
  std::vector<std::string> out;
  for (char** e = environ; *e != nullptr; ++e) {
    const std::string_view entry = *e;
    if (!entry.starts_with("LC_ALL=") && !entry.starts_with("LANGUAGE=")) out.emplace_back(entry);
  }
  out.emplace_back("LC_ALL=C");
  return out;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> out;
  for (auto& t : texts)
    out.push_back(t.data());
  out.push_back(nullptr);
  return out;
}

/// Reads to the end and keeps the last kErrorsKept bytes.
std::string drain(int fd) {
  std::string kept;
  std::array<char, 4096> buffer;
  for (;;) {
    const ssize_t n = ::read(fd, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    kept.append(buffer.data(), static_cast<std::size_t>(n));
    if (kept.size() > 2 * kErrorsKept) kept.erase(0, kept.size() - kErrorsKept);
  }
  if (kept.size() > kErrorsKept) kept.erase(0, kept.size() - kErrorsKept);
  while (!kept.empty() && (kept.back() == '\n' || kept.back() == ' '))
    kept.pop_back();
  return kept;
}

Result<int> wait_for(pid_t pid, const std::string& name) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return Error::from_errno(errno, "wait for " + name);
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

std::optional<std::string> find_program(const std::string& name) {
  const char* path = std::getenv("PATH");
  std::string folders = path != nullptr ? path : "/usr/local/bin:/usr/bin:/bin";
  folders += ":/usr/local/sbin:/usr/sbin:/sbin";
  for (std::size_t begin = 0; begin <= folders.size();) {
    const std::size_t end = std::min(folders.find(':', begin), folders.size());
    const std::string folder = folders.substr(begin, end - begin);
    begin = end + 1;
    if (folder.empty() || folder[0] != '/') continue;  // never from the working directory
    const std::string candidate = folder + "/" + name;
    if (::access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return std::nullopt;
}

Result<ProgramResult> run_program(std::vector<std::string> argv, Output output,
                                  const std::string& directory) {
  // Memory, not a pipe: two pipes would have to be read side by side.
  const UniqueFd kept(output == Output::kKept ? ::memfd_create("output", MFD_CLOEXEC) : -1);
  if (output == Output::kKept && !kept)
    return Error::from_errno(errno, "keep the output of " + argv[0]);
  std::array<int, 2> pipe_ends{};
  if (::pipe2(pipe_ends.data(), O_CLOEXEC) != 0)
    return Error::from_errno(errno, "make a pipe for " + argv[0]);
  SpawnActions actions;
  if (!directory.empty()) posix_spawn_file_actions_addchdir_np(actions.get(), directory.c_str());
  posix_spawn_file_actions_addopen(actions.get(), STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  if (kept) {
    posix_spawn_file_actions_adddup2(actions.get(), kept.get(), STDOUT_FILENO);
  } else {
    posix_spawn_file_actions_addopen(actions.get(), STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  }
  posix_spawn_file_actions_adddup2(actions.get(), pipe_ends[1], STDERR_FILENO);
  std::vector<std::string> environment = environment_in_c();
  pid_t pid = 0;
  const int spawned = ::posix_spawn(&pid, argv[0].c_str(), actions.get(), nullptr,
                                    pointers(argv).data(), pointers(environment).data());
  ::close(pipe_ends[1]);  // a pipe end: nothing is lost
  ProgramResult result;
  if (spawned == 0) result.errors = drain(pipe_ends[0]);
  ::close(pipe_ends[0]);
  if (spawned != 0) return Error::from_errno(spawned, "run " + argv[0]);
  auto code = wait_for(pid, argv[0]);
  if (!code) return code.error();
  result.exit_code = *code;
  if (kept) {
    result.output.resize(kOutputKept);
    const ssize_t n = ::pread(kept.get(), result.output.data(), kOutputKept, 0);
    if (n < 0) return Error::from_errno(errno, "read the output of " + argv[0]);
    result.output.resize(static_cast<std::size_t>(n));
  }
  return result;
}

}  // namespace snap
