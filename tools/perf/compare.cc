#include "perf/compare.h"

#include <fmt/core.h>

#include <cstring>

#include "command.h"

namespace zbccl::tools {
namespace {

constexpr const char* kCopy = "copy";

// What no operation can be expected to beat by much: every rank copies as many bytes as the larger
// of its input and its output has, at the same time as the others.
class CopyReference : public Comparison {
 public:
  bool prepare(const CallSpec& spec, const Buffers& buffers, const Shape& shape) override {
    from_ = buffers.send;
    to_ = buffers.recv;
    bytes_ = shape.larger() * zbcclTypeSize(spec.type);
    return has_data(spec.op) && from_ != to_;
  }
  void run() override { std::memcpy(to_, from_, bytes_); }
  Result result() const override { return Result::kNone; }

 private:
  const void* from_ = nullptr;
  void* to_ = nullptr;
  size_t bytes_ = 0;
};

OpenComparison load(const std::string& name) {
  if (name != "gloo") {
    throw UsageError(fmt::format("--compare {}: expected gloo or copy", name));
  }
  return reinterpret_cast<OpenComparison>(gloo_symbol(kComparisonSymbol));
}

}  // namespace

void check_comparison(const std::string& name) {
  if (name != kCopy) (void)load(name);
}

std::unique_ptr<Comparison> open_comparison(const std::string& name, const CompareGroup& group) {
  if (name == kCopy) return std::make_unique<CopyReference>();
  return std::unique_ptr<Comparison>(load(name)(group));
}

}  // namespace zbccl::tools
