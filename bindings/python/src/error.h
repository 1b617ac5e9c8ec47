// Failures on their way from the C API, or from a check made here, to a Python exception.
#pragma once

#include <zbccl/zbccl.h>

#include <stdexcept>
#include <string>

namespace zbccl::python {

// Reaches Python as the class of zbccl.errors that stands for `code`.
class Failure : public std::runtime_error {
 public:
  Failure(zbcclResult_t code, const std::string& message)
      : std::runtime_error(message), code_(code) {}
  zbcclResult_t code() const noexcept { return code_; }

 private:
  zbcclResult_t code_;
};

[[noreturn]] inline void fail(zbcclResult_t code, const std::string& message) {
  throw Failure(code, message);
}

// A result and its message, taken on the thread that made the call.
struct Outcome {
  zbcclResult_t result = zbcclSuccess;
  std::string message;

  static Outcome of(zbcclResult_t result) {
    return {result, result == zbcclSuccess ? "" : zbcclGetLastError()};
  }
  void check() const {
    if (result != zbcclSuccess) fail(result, message);
  }
};

inline void check(zbcclResult_t result) { Outcome::of(result).check(); }

// Teaches nanobind to turn Failure into Python's exception.
void register_failures();

}  // namespace zbccl::python
