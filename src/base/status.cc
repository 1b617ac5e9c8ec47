#include "base/status.h"

#include <cerrno>
#include <cstring>

namespace zbccl {

const char* code_text(Code code) {
  switch (code) {
    case Code::kOk: return "ok";
    case Code::kInvalidArgument: return "invalid argument";
    case Code::kInvalidUsage: return "invalid usage";
    case Code::kSystem: return "system error";
    case Code::kCuda: return "cuda error";
    case Code::kNetwork: return "network error";
    case Code::kTimeout: return "timeout";
    case Code::kRemoteFailed: return "remote failed";
    case Code::kAborted: return "aborted";
    case Code::kRevoked: return "revoked";
    case Code::kOutOfMemory: return "out of memory";
    case Code::kUnsupported: return "unsupported";
    case Code::kVersionMismatch: return "version mismatch";
    case Code::kInternal: return "internal error";
  }
  return "unknown";
}

Status::Status(Code code, std::string message, std::source_location where) {
  if (code == Code::kOk) return;
  const char* slash = std::strrchr(where.file_name(), '/');
  failure_ = std::make_unique<Failure>();
  failure_->code = code;
  failure_->message = std::move(message);
  failure_->file = slash != nullptr ? slash + 1 : where.file_name();
  failure_->line = where.line();
}

std::unique_ptr<Status::Failure> Status::copy(const Failure& failure) {
  return std::make_unique<Failure>(failure);
}

const std::string& Status::message() const {
  static const std::string* const kNone = new std::string;
  return ok() ? *kNone : failure_->message;
}

std::string Status::to_string() const {
  if (ok()) return "ok";
  return zbccl::format("{}: {} ({}:{})", code_text(failure_->code), failure_->message,
                       failure_->file, failure_->line);
}

Status Status::with_prefix(std::string_view prefix) const {
  Status copy = *this;
  if (!ok()) copy.failure_->message = zbccl::format("{}: {}", prefix, message());
  return copy;
}

Status system_error(std::string_view what, int errno_value, std::source_location where) {
  const bool exhausted = errno_value == ENOMEM || errno_value == ENFILE || errno_value == EMFILE;
  char text[128];
  return Status(exhausted ? Code::kOutOfMemory : Code::kSystem,
                zbccl::format("{}: {}", what, strerror_r(errno_value, text, sizeof text)), where);
}

}  // namespace zbccl
