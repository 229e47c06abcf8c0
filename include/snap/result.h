// Result<T> and Error: how every fallible function of snapctl reports.
//
// An Error is one pointer wide and empty of cost until something fails. It carries a code (what
// kind of failure), the errno where the kernel gave one, and a message that a person can act on:
// what failed, on what, why. Callers add context on the way up with `with_context`.
#pragma once

#include <cassert>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace snap {

/// What kind of failure. One table maps these to NBD errno values (engine/nbd) and one to exit
/// codes (tools/snapctl).
enum class ErrorCode {
  kInvalidArgument,  ///< the caller asked for something that makes no sense
  kNotFound,         ///< no such object
  kExists,           ///< the object is there already
  kBusy,             ///< held by another process, or in use
  kNoSpace,          ///< the file system, the store limit or a volume limit is full
  kIo,               ///< the kernel failed a read, write or sync
  kCorrupt,          ///< stored bytes are not what was written: damage
  kUnsupported,      ///< a format, feature or file system that this release cannot handle
  kPermission,       ///< not allowed
  kReadOnly,         ///< a write to something that takes none
  kCancelled,        ///< shut down before it finished
  kTooLarge,         ///< beyond a limit of limits.h
  kOutOfMemory,      ///< no memory for it
  kProtocol,         ///< a peer broke the protocol
};

/// A short stable name ("not-found") for logs and --json.
std::string_view error_code_name(ErrorCode code) noexcept;

/// Why something failed. Move-only in spirit, copyable for convenience; never empty.
class [[nodiscard]] Error {
 public:
  Error(ErrorCode code, std::string message, int sys_errno = 0)
      : rep_(std::make_shared<Rep>(Rep{code, sys_errno, std::move(message)})) {}

  /// An Error of the errno `err`: `what` says what was being done and on what, e.g.
  /// "write 4096 bytes at 8192 to deltas/…/data"; strerror is appended.
  static Error from_errno(int err, std::string_view what);

  ErrorCode code() const noexcept { return rep_->code; }
  /// The kernel's errno, or 0.
  int sys_errno() const noexcept { return rep_->sys_errno; }
  const std::string& message() const noexcept { return rep_->message; }

  /// The same failure seen from one level up: "<context>: <message>".
  Error with_context(std::string_view context) const;
  /// The same failure under another code (e.g. a missing blob of a chain is damage).
  Error with_code(ErrorCode code) const;

 private:
  struct Rep {
    ErrorCode code;
    int sys_errno;
    std::string message;
  };
  std::shared_ptr<const Rep> rep_;
};

/// Either a T or an Error; the names are those of std::expected.
template <class T>
class [[nodiscard]] Result {
 public:
  using value_type = T;

  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  template <class U>
  requires(std::is_convertible_v<U&&, T> && !std::is_same_v<std::remove_cvref_t<U>, T> &&
           !std::is_same_v<std::remove_cvref_t<U>, Error> &&
           !std::is_same_v<std::remove_cvref_t<U>, Result<T>>) Result(U&& value)
      : state_(std::in_place_index<0>, std::forward<U>(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}

  bool has_value() const noexcept { return state_.index() == 0; }
  explicit operator bool() const noexcept { return has_value(); }

  T& value() & { return *std::get_if<0>(checked(0)); }
  const T& value() const& { return *std::get_if<0>(checked(0)); }
  T&& value() && { return std::move(*std::get_if<0>(checked(0))); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const& { return *std::get_if<1>(checked(1)); }
  Error&& error() && { return std::move(*std::get_if<1>(checked(1))); }

  template <class U>
  T value_or(U&& other) const& {
    return has_value() ? value() : static_cast<T>(std::forward<U>(other));
  }

 private:
  std::variant<T, Error>* checked(std::size_t index) {
    if (state_.index() != index) std::abort();
    return &state_;
  }
  const std::variant<T, Error>* checked(std::size_t index) const {
    if (state_.index() != index) std::abort();
    return &state_;
  }
  std::variant<T, Error> state_;
};

/// Success without a value, or an Error.
template <>
class [[nodiscard]] Result<void> {
 public:
  using value_type = void;

  Result() = default;
  Result(Error error) : error_(std::move(error)) {}

  bool has_value() const noexcept { return !error_.has_value(); }
  explicit operator bool() const noexcept { return has_value(); }
  void value() const {
    if (error_) std::abort();
  }
  const Error& error() const& { return *error_; }
  Error&& error() && { return std::move(*error_); }

 private:
  std::optional<Error> error_;
};

}  // namespace snap

/// Leaves the enclosing function with the error of `result` if it holds one. For plain functions.
#define SNAP_RETURN_IF_ERROR(result)        \
  do {                                      \
    if (!(result)) return (result).error(); \
  } while (false)

/// The same inside a coroutine; `result` is a named Result, never a co_await expression.
#define SNAP_CO_RETURN_IF_ERROR(result)        \
  do {                                         \
    if (!(result)) co_return (result).error(); \
  } while (false)
