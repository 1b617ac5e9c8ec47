// Status and Result<T>: how every internal function reports failure. Values; any thread.
#pragma once

#include <memory>
#include <optional>
#include <source_location>
#include <string>
#include <string_view>
#include <utility>

#include "base/format.h"

namespace zbccl {

// The numbers are those of zbcclResult_t.
enum class Code : int {
  kOk = 0,
  kInvalidArgument = 1,
  kInvalidUsage = 2,
  kSystem = 3,
  kCuda = 4,
  kNetwork = 5,
  kTimeout = 6,
  kRemoteFailed = 7,
  kAborted = 8,
  kRevoked = 9,
  kOutOfMemory = 10,
  kUnsupported = 11,
  kVersionMismatch = 12,
  kInternal = 13,
};
inline constexpr int kNumCodes = 14;

// "ok", "invalid argument", ...; "unknown" outside the enumeration.
const char* code_text(Code code);

// One pointer, null for ok: what goes right costs nothing to pass on.
class [[nodiscard]] Status {
 public:
  Status() = default;  // ok
  Status(Code code, std::string message,
         std::source_location where = std::source_location::current());
  Status(const Status& other) : failure_(other.ok() ? nullptr : copy(*other.failure_)) {}
  Status(Status&& other) noexcept = default;
  Status& operator=(const Status& other) {
    if (this != &other) failure_ = other.ok() ? nullptr : copy(*other.failure_);
    return *this;
  }
  Status& operator=(Status&& other) noexcept = default;
  ~Status() = default;

  bool ok() const { return failure_ == nullptr; }
  Code code() const { return ok() ? Code::kOk : failure_->code; }
  const std::string& message() const;  // "" if ok
  // "timeout: message (all_reduce.cc:42)"
  std::string to_string() const;

  // The same code with `prefix` put before the message.
  Status with_prefix(std::string_view prefix) const;

 private:
  struct Failure {
    Code code = Code::kOk;
    std::string message;
    const char* file = "";
    unsigned line = 0;
  };
  static std::unique_ptr<Failure> copy(const Failure& failure);

  std::unique_ptr<Failure> failure_;
};

// Remembers where `error(...)` was called; the format string is checked at compile time by fmt.
template <typename... Args>
struct ErrorFormat {
  template <typename S>
  consteval ErrorFormat(const S& text,
                        std::source_location location = std::source_location::current())
      : format(text), where(location) {}
  FormatString<Args...> format;
  std::source_location where;
};

// error(Code::kTimeout, "rank {} did not come", rank)
template <typename... Args>
Status error(Code code, ErrorFormat<std::type_identity_t<Args>...> format, Args&&... args) {
  return Status(code, zbccl::format(format.format, std::forward<Args>(args)...), format.where);
}

// An error of the operating system: "what: strerror". ENOMEM, ENFILE and EMFILE become
// kOutOfMemory, the rest kSystem.
Status system_error(std::string_view what, int errno_value,
                    std::source_location where = std::source_location::current());

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}  // NOLINT: converts on purpose
  // An ok status has no value to go with it, which is a defect of the caller.
  Result(Status status) : status_(std::move(status)) {  // NOLINT: converts on purpose
    if (status_.ok()) status_ = Status(Code::kInternal, "a result without a value");
  }
  bool ok() const { return status_.ok(); }
  const Status& status() const { return status_; }
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return std::move(*value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }

 private:
  Status status_;
  std::optional<T> value_;
};

}  // namespace zbccl

#define ZBCCL_CONCAT_(a, b) a##b
#define ZBCCL_CONCAT(a, b) ZBCCL_CONCAT_(a, b)

#define ZBCCL_RETURN_IF_ERROR(expression)                        \
  do {                                                           \
    if (::zbccl::Status status_ = (expression); !status_.ok()) { \
      return status_;                                            \
    }                                                            \
  } while (false)

#define ZBCCL_ASSIGN_OR_RETURN_(result, target, expression) \
  auto result = (expression);                               \
  if (!result.ok()) {                                       \
    return result.status();                                 \
  }                                                         \
  target = std::move(result).value()

// ZBCCL_ASSIGN_OR_RETURN(auto fd, open_file(path));
#define ZBCCL_ASSIGN_OR_RETURN(target, expression) \
  ZBCCL_ASSIGN_OR_RETURN_(ZBCCL_CONCAT(result_, __LINE__), target, expression)
