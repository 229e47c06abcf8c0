// See child_process.h.
#include "tools/snapctl/child_process.h"

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <string_view>
#include <thread>

#include "tools/snapctl/interrupt.h"

extern char** environ;

namespace snap::cli {

namespace {

constexpr std::chrono::milliseconds kLook{20};
constexpr std::chrono::seconds kEndPatience{5};

/// Attributes and file actions of posix_spawn: a type, so that every path frees them.
class SpawnOptions {
 public:
  SpawnOptions() {
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_init(&files);
  }
  SpawnOptions(const SpawnOptions&) = delete;
  SpawnOptions& operator=(const SpawnOptions&) = delete;
  ~SpawnOptions() {
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&files);
  }
  posix_spawnattr_t attributes;
  posix_spawn_file_actions_t files;
};

void set_options(SpawnOptions& spawn, const ChildProcess::Options& options) {
  sigset_t defaults, none;
  sigemptyset(&none);
  sigemptyset(&defaults);
  for (const int number : {SIGINT, SIGQUIT, SIGTERM, SIGHUP, SIGPIPE})
    sigaddset(&defaults, number);
  posix_spawnattr_setsigdefault(&spawn.attributes, &defaults);
  posix_spawnattr_setsigmask(&spawn.attributes, &none);
  posix_spawnattr_setpgroup(&spawn.attributes, 0);
  const int group = options.own_group ? POSIX_SPAWN_SETPGROUP : 0;
  posix_spawnattr_setflags(&spawn.attributes, static_cast<short>(POSIX_SPAWN_SETSIGDEF |
                                                                 POSIX_SPAWN_SETSIGMASK | group));
  if (options.input >= 0)
    posix_spawn_file_actions_adddup2(&spawn.files, options.input, STDIN_FILENO);
  if (options.output >= 0)
    posix_spawn_file_actions_adddup2(&spawn.files, options.output, STDOUT_FILENO);
  if (options.errors >= 0)
    posix_spawn_file_actions_adddup2(&spawn.files, options.errors, STDERR_FILENO);
}

std::vector<std::string> environment_of(const ChildProcess::Options& options) {
  std::vector<std::string> out;
  for (const auto& [name, value] : options.environment)
    out.push_back(name + "=" + value);
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    bool replaced = false;
    for (const auto& [name, value] : options.environment)
      replaced = replaced || text.starts_with(name + "=");
    if (!replaced) out.emplace_back(text);
  }
  return out;
}

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> out;
  for (std::string& text : texts)
    out.push_back(text.data());
  out.push_back(nullptr);
  return out;
}

int code_of(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

Result<ChildProcess> ChildProcess::start(std::vector<std::string> argv, Options options) {
  SpawnOptions spawn;
  set_options(spawn, options);
  std::vector<std::string> environment = environment_of(options);
  pid_t pid = 0;
  const int spawned = ::posix_spawnp(&pid, argv[0].c_str(), &spawn.files, &spawn.attributes,
                                     pointers(argv).data(), pointers(environment).data());
  if (spawned != 0) return Error::from_errno(spawned, "run " + argv[0]);
  return ChildProcess(pid, argv[0]);
}

Result<int> ChildProcess::wait() {
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0) {
    if (errno != EINTR) return Error::from_errno(errno, "wait for " + name_);
  }
  return code_of(status);
}

Result<int> ChildProcess::wait_unless_interrupted() {
  int status = 0;
  for (;;) {
    const pid_t ended = ::waitpid(pid_, &status, WNOHANG);
    if (ended < 0 && errno != EINTR) return Error::from_errno(errno, "wait for " + name_);
    if (ended == pid_) return code_of(status);
    if (interrupted()) break;
    std::this_thread::sleep_for(kLook);
  }
  ::kill(-pid_, SIGTERM);
  const auto end = std::chrono::steady_clock::now() + kEndPatience;
  while (::waitpid(pid_, &status, WNOHANG) != pid_) {
    if (std::chrono::steady_clock::now() >= end) {
      ::kill(-pid_, SIGKILL);
      (void)wait();
      break;
    }
    std::this_thread::sleep_for(kLook);
  }
  return Error(ErrorCode::kCancelled, name_ + " was told to end");
}

}  // namespace snap::cli
