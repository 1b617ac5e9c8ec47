#include "perf/compare.h"

#include <dlfcn.h>
#include <fmt/core.h>
#include <unistd.h>

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

// Beside the library that this process runs with.
std::string module_path() {
  Dl_info library = {};
  const void* symbol = dlsym(RTLD_DEFAULT, "zbcclGetVersion");
  if (symbol == nullptr || dladdr(symbol, &library) == 0) return "zbccl_compare_gloo.so";
  const std::string path = library.dli_fname;
  return path.substr(0, path.rfind('/') + 1) + "zbccl_compare_gloo.so";
}

OpenComparison load(const std::string& name) {
  if (name != "gloo") {
    throw UsageError(fmt::format("--compare {}: expected gloo or copy", name));
  }
  const std::string path = module_path();
  if (access(path.c_str(), F_OK) != 0) {
    throw UsageError(
        "--compare gloo: this command was built without gloo. Install the package libgloo-dev "
        "(Debian, Ubuntu) and build again. PyTorch's gloo is not used by this command: where only "
        "PyTorch is there, time torch.distributed with the gloo backend instead.");
  }
  // Never closed: gloo's threads and statics live as long as the process.
  void* module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  void* symbol = module != nullptr ? dlsym(module, kComparisonSymbol) : nullptr;
  if (symbol == nullptr) {
    const char* why = dlerror();
    throw UsageError(
        fmt::format("--compare gloo: {} cannot be loaded ({}); install the package libgloo0", path,
                    why != nullptr ? why : "unknown reason"));
  }
  return reinterpret_cast<OpenComparison>(symbol);
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
