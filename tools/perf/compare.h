// Another library beside zbccl, in the same run.
#pragma once

#include <memory>
#include <string>

#include "measure/gloo_module.h"
#include "perf/operation.h"

namespace zbccl::tools {

// One rank's membership. One thread.
class Comparison {
 public:
  // Where run() leaves what the operation is to give; kNone for a reference that gives no result.
  enum class Result { kOutput, kInput, kNone };

  virtual ~Comparison() = default;
  // False where the library has no such operation, type or operator; else run() makes that call.
  // The buffers stay valid until the next prepare().
  virtual bool prepare(const CallSpec& spec, const Buffers& buffers, const Shape& shape) = 0;
  virtual void run() = 0;
  virtual Result result() const { return Result::kOutput; }
};

// Throws UsageError unless `name` can be compared with.
void check_comparison(const std::string& name);
std::unique_ptr<Comparison> open_comparison(const std::string& name, const CompareGroup& group);

// What the module exports, under kComparisonSymbol.
using OpenComparison = Comparison* (*)(const CompareGroup& group);
inline constexpr const char* kComparisonSymbol = "zbccl_open_comparison";

}  // namespace zbccl::tools
