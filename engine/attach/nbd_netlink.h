// NbdNetlink: the kernel's nbd devices, commanded over generic netlink (linux/nbd-netlink.h).
//
// Every call blocks, briefly: the kernel answers once it has done it. A connected device asks the
// server at the other end of its sockets at once (the partition table), so whoever serves it must
// not be the thread that calls.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "snap/result.h"

struct nl_msg;
struct nl_sock;

namespace snap::attach {

class NbdNetlink {
 public:
  /// Unsupported if the kernel has no nbd, or its module is not loaded. Tests name another family,
  /// which answers as a kernel does that lacks a command.
  static Result<NbdNetlink> open(const char* family = "nbd");

  struct Device {
    std::optional<unsigned> index;  ///< of /dev/nbdN; none: the kernel chooses
    std::uint64_t size = 0;         ///< bytes
    unsigned block_size = 512;      ///< logical
    std::uint16_t flags = 0;        ///< transmission flags of the export (doc/proto.md)
    /// A request without an answer for so long: its connection counts as dead. 0: as the kernel has
    /// it (never on one connection, else 30 s).
    std::chrono::seconds timeout{0};
    /// Without any connection for so long: requests fail. Until then they wait for reconnect().
    std::chrono::seconds dead_timeout{0};
    std::string backend;  ///< tells this device's server from every other's
  };
  /// Makes a device of connected sockets that are past the handshake; the kernel keeps its own
  /// reference to them. Gives its number. Busy if the one that was asked for is in use, or open.
  /// Unsupported if the kernel cannot say afterwards whose device it is (before Linux 5.14).
  Result<unsigned> connect(const Device& device, std::span<const int> sockets);
  /// Gives a connected device new sockets in place of dead ones; what is not needed is not taken.
  /// InvalidArgument if the device is not connected, or of another backend.
  Result<void> reconnect(unsigned index, const std::string& backend, std::span<const int> sockets);
  /// As reconnect(), for the size in bytes.
  Result<void> resize(unsigned index, const std::string& backend, std::uint64_t size);
  /// Cuts it off from its server; users of the device get I/O errors. Nothing if it is cut off.
  Result<void> disconnect(unsigned index);
  /// Whether anything is connected to it, or still has it open.
  Result<bool> connected(unsigned index);

 private:
  struct Close {
    void operator()(nl_sock* socket) const noexcept;
  };
  struct Message;
  struct Answer;
  using Socket = std::unique_ptr<nl_sock, Close>;

  NbdNetlink(Socket socket, int family) : socket_(std::move(socket)), family_(family) {}
  Result<Message> begin(int command, std::optional<unsigned> index) const;
  Result<Answer> exchange(Message message, const std::string& what);

  Socket socket_;
  int family_;
};

}  // namespace snap::attach
