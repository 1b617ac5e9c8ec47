#include "gpu/moe_bed.h"

#include <algorithm>

namespace zbccl::test {
namespace {

constexpr size_t kGuard = 512;  // bytes on either side, and the alignment of what is between
constexpr std::byte kPoison{0xA5};

class GpuArray final : public MoeBed::Array {
 public:
  GpuArray(const GpuRank& rank, size_t bytes, DeviceMemoryKind kind)
      : stream_(rank.stream()), bytes_(bytes), memory_(bytes + 2 * kGuard, kind, rank.device()) {
    check_cuda(cudaMemsetAsync(memory_.data(), static_cast<int>(kPoison), bytes + 2 * kGuard,
                               stream_.get()),
               "cudaMemsetAsync");
  }
  std::byte* data() const override { return memory_.data() + kGuard; }
  size_t size() const override { return bytes_; }
  void set(const std::byte* from, size_t bytes) override {
    if (bytes == 0) return;
    check_cuda(cudaMemcpyAsync(data(), from, bytes, cudaMemcpyHostToDevice, stream_.get()),
               "cudaMemcpyAsync");
    stream_.wait();
  }
  std::vector<std::byte> get() const override {
    const std::vector<std::byte> all = whole();
    return {all.begin() + kGuard, all.end() - kGuard};
  }
  std::string damage() const override {
    const std::vector<std::byte> all = whole();
    const auto intact = [](std::byte b) { return b == kPoison; };
    if (!std::all_of(all.begin(), all.begin() + kGuard, intact)) return "written before its begin";
    if (!std::all_of(all.end() - kGuard, all.end(), intact)) return "written behind its end";
    return "";
  }

 private:
  std::vector<std::byte> whole() const {
    std::vector<std::byte> all(bytes_ + 2 * kGuard);
    check_cuda(cudaMemcpyAsync(all.data(), memory_.data(), all.size(), cudaMemcpyDeviceToHost,
                               stream_.get()),
               "cudaMemcpyAsync");
    stream_.wait();
    return all;
  }

  const CudaStream& stream_;
  size_t bytes_;
  CudaMemory memory_;
};

}  // namespace

MoeArray GpuBed::make(const MoeCase& what, size_t bytes, Holds /*holds*/) {
  const auto kind = what.foreign ? DeviceMemoryKind::kPlain : DeviceMemoryKind::kPool;
  return std::make_unique<GpuArray>(rank_, bytes, kind);
}

}  // namespace zbccl::test
