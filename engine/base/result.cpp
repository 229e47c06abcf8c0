#include "snap/result.h"

#include <cerrno>
#include <system_error>

namespace snap {

std::string_view error_code_name(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "invalid-argument";
    case ErrorCode::kNotFound:
      return "not-found";
    case ErrorCode::kExists:
      return "exists";
    case ErrorCode::kBusy:
      return "busy";
    case ErrorCode::kNoSpace:
      return "no-space";
    case ErrorCode::kIo:
      return "io";
    case ErrorCode::kCorrupt:
      return "corrupt";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kPermission:
      return "permission";
    case ErrorCode::kReadOnly:
      return "read-only";
    case ErrorCode::kCancelled:
      return "cancelled";
    case ErrorCode::kTooLarge:
      return "too-large";
    case ErrorCode::kOutOfMemory:
      return "out-of-memory";
    case ErrorCode::kProtocol:
      return "protocol";
  }
  return "unknown";
}

namespace {

ErrorCode code_of_errno(int err) {
  switch (err) {
    case ENOENT:
    case ENOTDIR:
    case ENXIO:
    case ENODEV:
      return ErrorCode::kNotFound;
    case EEXIST:
    case ENOTEMPTY:
      return ErrorCode::kExists;
    case EBUSY:
    case EAGAIN:
    case ETXTBSY:
      return ErrorCode::kBusy;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return ErrorCode::kNoSpace;
    case EINVAL:
    case ENAMETOOLONG:
    case EISDIR:
      return ErrorCode::kInvalidArgument;
    case EPERM:
    case EACCES:
      return ErrorCode::kPermission;
    case EROFS:
      return ErrorCode::kReadOnly;
    case EOPNOTSUPP:
    case ENOSYS:
      return ErrorCode::kUnsupported;
    case ECANCELED:
      return ErrorCode::kCancelled;
    case ENOMEM:
      return ErrorCode::kOutOfMemory;
    default:
      return ErrorCode::kIo;
  }
}

}  // namespace

Error Error::from_errno(int err, std::string_view what) {
  std::string message(what);
  message += ": ";
  message += std::generic_category().message(err);
  return Error(code_of_errno(err), std::move(message), err);
}

Error Error::with_context(std::string_view context) const {
  std::string message(context);
  message += ": ";
  message += rep_->message;
  return Error(rep_->code, std::move(message), rep_->sys_errno);
}

Error Error::with_code(ErrorCode code) const {
  return Error(code, rep_->message, rep_->sys_errno);
}

}  // namespace snap
