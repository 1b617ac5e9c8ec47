// The fused operations on device memory: every byte of every buffer as the same call leaves it on
// host memory, over algorithms, sizes, forms, kinds of memory and aliases, eagerly and in graphs.
// What host memory gets is tested by itself (tests/multirank).
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gpu/gpu_job.h"
#include "support/data.h"
#include "support/expect_error.h"

namespace zbccl::test {
namespace {

constexpr size_t kArenaBytes = size_t{48} << 20;
constexpr size_t kAlignment = 512;

class Fused : public testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Gpu, Fused,
                         testing::Values(Place::kGpuEach, Place::kThreads, Place::kOneGpu),
                         [](const auto& test) { return std::string(place_name(test.param)); });

// Algorithms are read when a communicator is made. Between two meetings: ranks may be threads.
Communicator connect_with(GpuRank& rank, const char* algorithm) {
  rank.settle();
  if (rank.rank() == 0 || rank.place() == Place::kGpuEach) {
    ::setenv("ZBCCL_ALGORITHM", algorithm, 1);
  }
  rank.meet();
  Communicator comm = rank.connect();
  rank.settle();
  return comm;
}

// The buffers of a call at the same places of two blocks, one on the device and one on the host.
class Twins {
 public:
  Twins(GpuRank& rank, DeviceMemoryKind kind)
      : rank_(rank), device_(kArenaBytes, kind, rank.device()), image_(kArenaBytes) {
    void* host = nullptr;
    check(zbcclMemAlloc(&host, kArenaBytes));
    host_.reset(static_cast<std::byte*>(host));
  }

  // A new call: nothing is taken, everything is poison.
  void begin() {
    used_ = 0;
    std::memset(host_.get(), 0xA5, kArenaBytes);
  }
  // Room for `bytes` bytes, with a gap behind.
  size_t take(size_t bytes) {
    const size_t at = used_;
    used_ = (used_ + bytes + kAlignment) / kAlignment * kAlignment;
    if (used_ > kArenaBytes) throw std::runtime_error("the test's memory is too small");
    return at;
  }
  std::byte* host(size_t at) const { return host_.get() + at; }
  std::byte* device(size_t at) const { return device_.data() + at; }

  // Runs `call(place, how)` on the device and on the host; `place` gives a buffer's address.
  using Place = std::function<std::byte*(size_t at)>;
  using Call = std::function<void(const Place& place, const zbcclCall_t* how)>;
  void upload() const {
    std::memcpy(image_.data(), host_.get(), used_);
    copy(device_.data(), image_.data());
  }
  void run_on_device(const Call& call) const {
    const zbcclCall_t how = rank_.call();
    call([this](size_t at) { return device(at); }, &how);
  }
  void run_on_host(const Call& call) const {
    call([this](size_t at) { return host(at); }, nullptr);
  }
  // The first byte that differs; `used_` if none.
  testing::AssertionResult same() const {
    copy(image_.data(), device_.data());
    rank_.stream().wait();
    for (size_t i = 0; i < used_; ++i) {
      if (image_.data()[i] == host_.get()[i]) continue;
      return testing::AssertionFailure()
             << "byte " << i << " of " << used_ << ": " << std::to_integer<int>(image_.data()[i])
             << " on the device, " << std::to_integer<int>(host_.get()[i]) << " on the host";
    }
    return testing::AssertionSuccess();
  }

 private:
  void copy(void* to, const void* from) const {
    check_cuda(cudaMemcpyAsync(to, from, used_, cudaMemcpyDefault, rank_.stream().get()),
               "cudaMemcpyAsync");
  }

  struct Free {
    void operator()(std::byte* p) const { (void)zbcclMemFree(p); }
  };
  GpuRank& rank_;
  CudaMemory device_;
  Pinned image_;
  std::unique_ptr<std::byte, Free> host_;
  size_t used_ = 0;
};

// --- all_reduce_rms_norm ---

struct NormShape {
  size_t tokens;
  size_t hidden;
  zbcclDataType_t type = zbcclBfloat16;
  zbcclNormCodes_t form = zbcclNormNoCodes;
  bool one_plus_weight = false;
  bool has_residual = true;
  bool residual_in_place = false;
  bool out_is_x = false;
  bool by_columns = false;
  Fill fill = Fill::kRandom;
};

std::string text_of(const NormShape& s) {
  return std::to_string(s.tokens) + " x " + std::to_string(s.hidden) + " " + zbcclTypeName(s.type) +
         " form " + std::to_string(s.form) + (s.residual_in_place ? ", residual in place" : "") +
         (s.out_is_x ? ", out is x" : "");
}

// Fills the buffers of `shape` and gives the call.
Twins::Call prepare(Twins& twins, const NormShape& s, int rank, uint64_t seed, Communicator& comm) {
  const size_t count = s.tokens * s.hidden;
  const bool groups = s.form == zbcclNormGroupScales || s.form == zbcclNormGroupPowersOfTwo;
  const size_t num_groups = groups ? s.hidden / 128 : 0;
  const size_t row_stride = s.by_columns ? 1 : num_groups + 3;
  const size_t group_stride = s.by_columns ? s.tokens + 3 : 1;
  twins.begin();
  const size_t x = twins.take(2 * count);
  const size_t residual = twins.take(2 * count);
  const size_t weight = twins.take(2 * s.hidden);
  const size_t residual_out = s.residual_in_place ? residual : twins.take(2 * count);
  const size_t out = s.out_is_x ? x : twins.take(2 * count);
  const size_t codes = twins.take(count);
  const size_t scales = twins.take(4 * (s.tokens + 3) * (num_groups + 3));
  const size_t exponents = twins.take((s.tokens + 3) * (num_groups + 3));
  fill(twins.host(x), count, s.type, s.fill, seed_of(seed, static_cast<uint64_t>(rank)));
  fill(twins.host(residual), count, s.type, s.fill, seed_of(seed, 1000));
  fill(twins.host(weight), s.hidden, s.type, Fill::kRandom, seed_of(seed, 1001));
  return [=, &comm](const Twins::Place& place, const zbcclCall_t* how) {
    zbcclRmsNorm_t args = ZBCCL_RMS_NORM_INITIALIZER;
    args.x = place(x);
    if (s.has_residual) args.residual = place(residual);
    args.weight = place(weight);
    args.residual_out = place(residual_out);
    args.out = place(out);
    args.tokens = s.tokens;
    args.hidden = s.hidden;
    args.type = s.type;
    args.code_form = s.form;
    args.one_plus_weight = s.one_plus_weight ? 1 : 0;
    args.scale = 0.0371F;
    if (s.form != zbcclNormNoCodes) args.codes = place(codes);
    if (groups) {
      args.scales = reinterpret_cast<float*>(place(scales));
      args.scale_row_stride = row_stride;
      args.scale_group_stride = group_stride;
    }
    if (s.form == zbcclNormGroupPowersOfTwo) {
      args.scales_ue8m0 = reinterpret_cast<uint8_t*>(place(exponents));
    }
    check(zbcclAllReduceRmsNorm(&args, comm.get(), how));
  };
}

std::vector<NormShape> norm_shapes() {
  constexpr size_t kSizes[][2] = {{1, 8},     {1, 4096},   {2, 128},   {3, 2048},
                                  {7, 7168},  {16, 1024},  {33, 512},  {150, 256},
                                  {5, 16384}, {300, 2880}, {700, 4096}};
  std::vector<NormShape> shapes;
  std::mt19937 random(5);
  for (const auto& [tokens, hidden] : kSizes) {
    for (int form = 0; form < zbcclNumNormCodes; ++form) {
      NormShape s{tokens, hidden};
      s.form = static_cast<zbcclNormCodes_t>(form);
      if (form >= zbcclNormGroupScales && hidden % 128 != 0) continue;
      s.type = random() % 3 == 0 ? zbcclFloat16 : zbcclBfloat16;
      s.one_plus_weight = random() % 2 == 0;
      s.has_residual = random() % 4 != 0;
      s.residual_in_place = s.has_residual && random() % 2 == 0;
      s.out_is_x = random() % 3 == 0;
      s.by_columns = random() % 2 == 0;
      s.fill = random() % 4 == 0 ? Fill::kSpecial : Fill::kRandom;
      shapes.push_back(s);
    }
  }
  return shapes;
}

// `enqueued` looks at the communicator between the two.
void run_twice(
    Twins& twins, const Twins::Call& call, const std::string& text,
    const std::function<void()>& enqueued = [] {}) {
  SCOPED_TRACE(text);
  twins.upload();
  twins.run_on_device(call);
  enqueued();
  twins.run_on_host(call);
  ASSERT_TRUE(twins.same());
}

TEST_P(Fused, RmsNormGivesTheBitsOfTheHost) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  for (const int most : {2, 3, 4, 8}) {
    if (ranks_at(GetParam(), most) != most) continue;
    run_gpu_job(
        {.ranks = most, .place = GetParam(), .deadline = std::chrono::seconds(120)},
        [&](GpuRank& rank) {
          for (const DeviceMemoryKind kind : {DeviceMemoryKind::kPool, DeviceMemoryKind::kPlain}) {
            Twins twins(rank, kind);
            for (const char* algorithm : {"auto", "one_shot", "two_shot_direct", "pull_push"}) {
              Communicator comm = connect_with(rank, algorithm);
              uint64_t seed = 1;
              for (const NormShape& shape : norm_shapes()) {
                const std::string text = text_of(shape) + ", " + algorithm;
                rank.note(text);
                run_twice(twins, prepare(twins, shape, rank.rank(), seed++, comm), text);
                if (testing::Test::HasFatalFailure()) break;
              }
              rank.settle();
              EXPECT_EQ(zbcclSuccess, comm.async_error());
              comm.destroy();
              rank.settle();
            }
          }
        });
  }
}

TEST(FusedAlone, RmsNormOfOneRank) {
  ZBCCL_NEED_GPUS(Place::kGpuEach, 1);
  run_gpu_job({.ranks = 1}, [](GpuRank& rank) {
    Communicator comm = rank.connect();
    Twins twins(rank, DeviceMemoryKind::kPool);
    uint64_t seed = 1;
    for (const NormShape& shape : norm_shapes()) {
      run_twice(twins, prepare(twins, shape, 0, seed++, comm), text_of(shape));
    }
    comm.destroy();
  });
}

// --- all_reduce_quantized ---

Twins::Call prepare_sum(Twins& twins, size_t count, zbcclDataType_t type, zbcclDataType_t code,
                        bool in_place, int rank, uint64_t seed, Communicator& comm) {
  const size_t bytes = count * element_size(type);
  // Somewhere between two packs.
  const size_t shift = seed % 3 * element_size(type);
  twins.begin();
  const size_t in = twins.take(bytes + 16) + shift;
  const size_t out = in_place ? in : twins.take(bytes + 16) + shift;
  fill(twins.host(in), count, type, seed % 4 == 0 ? Fill::kSpecial : Fill::kRandom,
       seed_of(seed, static_cast<uint64_t>(rank)));
  return [=, &comm](const Twins::Place& place, const zbcclCall_t* how) {
    check(zbcclAllReduceQuantized(place(in), place(out), count, type, code, comm.get(), how));
  };
}

TEST_P(Fused, QuantizedSumGivesTheBitsOfTheHost) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  for (const int most : {2, 3, 4, 8}) {
    if (ranks_at(GetParam(), most) != most) continue;
    run_gpu_job(
        {.ranks = most, .place = GetParam(), .deadline = std::chrono::seconds(120)},
        [&](GpuRank& rank) {
          Communicator comm = rank.connect();
          Twins twins(rank, DeviceMemoryKind::kPlain);
          rank.settle();
          uint64_t seed = 1;
          for (const size_t count : {1U, 127U, 512U, 513U, 5000U, 100'001U, 4'000'000U}) {
            for (const zbcclDataType_t type : {zbcclFloat32, zbcclFloat16, zbcclBfloat16}) {
              for (const zbcclDataType_t code : {zbcclFloat8e4m3, zbcclInt8}) {
                const bool in_place = ++seed % 2 == 0;
                const std::string text = std::to_string(count) + " x " + zbcclTypeName(type) +
                                         " as " + zbcclTypeName(code);
                rank.note(text);
                run_twice(twins,
                          prepare_sum(twins, count, type, code, in_place, rank.rank(), seed, comm),
                          text);
                if (testing::Test::HasFatalFailure()) return;
              }
            }
          }
          rank.settle();
          EXPECT_EQ(zbcclSuccess, comm.async_error());
          comm.destroy();
          rank.settle();
        });
  }
}

TEST_P(Fused, ThroughHostMemory) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = ranks_at(GetParam(), 3),
               .place = GetParam(),
               .env = {{"ZBCCL_DENY_REACH", "mapped"}}},
              [](GpuRank& rank) {
                Communicator comm = rank.connect();
                Twins twins(rank, DeviceMemoryKind::kPool);
                rank.settle();
                // The call on the host that follows has an algorithm of its own.
                const auto is_staged = [&] { EXPECT_STREQ("host_staged", comm.last_algorithm()); };
                uint64_t seed = 900;
                for (const NormShape& shape : norm_shapes()) {
                  if (++seed % 3 != 0) continue;
                  run_twice(twins, prepare(twins, shape, rank.rank(), seed, comm), text_of(shape),
                            is_staged);
                }
                for (const size_t count : {1U, 513U, 100'001U}) {
                  const bool in_place = ++seed % 2 == 0;
                  run_twice(twins,
                            prepare_sum(twins, count, zbcclBfloat16, zbcclInt8, in_place,
                                        rank.rank(), seed, comm),
                            std::to_string(count) + " as codes", is_staged);
                }
                rank.settle();
                EXPECT_EQ(zbcclSuccess, comm.async_error());
                comm.destroy();
                rank.settle();
              });
}

// --- graphs and faults ---

// Out of place, so that each replay finds its inputs; eager calls of other sizes in between.
TEST_P(Fused, InGraphs) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_gpu_job({.ranks = ranks_at(GetParam(), 4), .place = GetParam()}, [](GpuRank& rank) {
    Communicator comm = rank.connect();
    Twins norm(rank, DeviceMemoryKind::kPool);
    Twins large(rank, DeviceMemoryKind::kPool);
    Twins sum(rank, DeviceMemoryKind::kPool);
    rank.settle();
    NormShape shape{3, 4096};
    shape.form = zbcclNormGroupScales;
    const Twins::Call small_call = prepare(norm, shape, rank.rank(), 1, comm);
    shape.tokens = 700;
    const Twins::Call large_call = prepare(large, shape, rank.rank(), 2, comm);
    const Twins::Call sum_call =
        prepare_sum(sum, 30'000, zbcclBfloat16, zbcclInt8, false, rank.rank(), 3, comm);
    for (const Twins* twins : {&norm, &large, &sum}) twins->upload();
    rank.settle();
    const CudaGraph graph(rank.stream(), [&] {
      norm.run_on_device(small_call);
      sum.run_on_device(sum_call);
      large.run_on_device(large_call);
    });
    rank.settle();
    for (int i = 0; i < 100; ++i) {
      graph.launch(rank.stream());
      if (i % 3 == 0) sum.run_on_device(sum_call);
      if (i % 5 == 0) norm.run_on_device(small_call);
    }
    norm.run_on_host(small_call);
    large.run_on_host(large_call);
    sum.run_on_host(sum_call);
    for (const Twins* twins : {&norm, &large, &sum}) EXPECT_TRUE(twins->same());
    rank.settle();
    EXPECT_EQ(zbcclSuccess, comm.async_error());
    comm.destroy();
    rank.settle();
  });
}

TEST_P(Fused, AMismatchIsReportedAndNothingIsWritten) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  for (const size_t tokens : {size_t{2}, size_t{700}}) {
    run_gpu_job({.ranks = 2, .place = GetParam()}, [&](GpuRank& rank) {
      Communicator comm = rank.connect();
      Twins twins(rank, DeviceMemoryKind::kPool);
      rank.settle();
      NormShape shape{tokens, 2048};
      shape.one_plus_weight = rank.rank() == 1;
      const Twins::Call call = prepare(twins, shape, rank.rank(), 1, comm);
      twins.upload();
      twins.run_on_device(call);
      rank.stream().wait();
      EXPECT_EQ(zbcclInvalidUsage, wait_for_error(comm, std::chrono::seconds(20)));
      EXPECT_TRUE(twins.same());
      rank.settle();
      comm.destroy();
      rank.settle();
    });
  }
}

TEST(FusedArguments, DeviceMemoryIsAligned) {
  ZBCCL_NEED_GPUS(Place::kGpuEach, 1);
  run_gpu_job({.ranks = 1}, [](GpuRank& rank) {
    Communicator comm = rank.connect();
    const CudaMemory memory(1 << 16, DeviceMemoryKind::kPool, rank.device());
    zbcclRmsNorm_t args = ZBCCL_RMS_NORM_INITIALIZER;
    args.x = memory.data() + 2;
    args.weight = memory.data() + 8192;
    args.out = memory.data() + 16384;
    args.tokens = 1;
    args.hidden = 256;
    const zbcclCall_t how = rank.call();
    expect_error(zbcclInvalidArgument, zbcclAllReduceRmsNorm(&args, comm.get(), &how),
                 {"x at", "16 bytes"});
    std::vector<uint16_t> weight(256);
    args.x = memory.data();
    args.weight = weight.data();
    expect_error(zbcclInvalidArgument, zbcclAllReduceRmsNorm(&args, comm.get(), &how),
                 {"weight", "host memory"});
    comm.destroy();
  });
}

}  // namespace
}  // namespace zbccl::test
