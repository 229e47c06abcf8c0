// ServiceManager: tells systemd, if that started us, how the service is (sd_notify(3)): datagrams
// to the socket that NOTIFY_SOCKET names. libsystemd would do the same with five more libraries.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>

namespace snap::server {

class ServiceManager {
 public:
  /// No one to tell.
  ServiceManager() = default;
  /// Takes the variables out of the environment; before threads.
  static ServiceManager from_environment();

  bool present() const noexcept { return !socket_.empty(); }
  /// Sends assignments, one a line ("READY=1\nSTATUS=..."). Never waits; what cannot be sent is
  /// lost, for there is no one else to tell.
  void notify(std::string_view state) const;
  /// How often it wants to hear WATCHDOG=1 at least, if at all.
  std::optional<std::chrono::microseconds> watchdog() const noexcept { return watchdog_; }

 private:
  std::string socket_;  ///< a path, or '@' and an abstract name
  std::optional<std::chrono::microseconds> watchdog_;
};

}  // namespace snap::server
