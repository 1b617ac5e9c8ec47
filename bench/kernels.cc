// Speed of the host kernels: zbccl_bench_kernels [--simd=NAME] [Google Benchmark's flags].
// Bytes per second count one operand: count * element size, as a collective's size does.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/host/targets.h"
#include "kernels/reduce.h"

namespace {

using zbccl::DataType;
using zbccl::RedOp;

constexpr size_t kAlignment = 4096;

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Block = std::unique_ptr<void, Free>;

// Page-aligned, as large tensors are: the worst case for the caches' sets.
Block make_block(size_t bytes) {
  Block block(std::aligned_alloc(kAlignment, (bytes + kAlignment) / kAlignment * kAlignment));
  std::memset(block.get(), 0x3C, bytes);
  return block;
}

void reduce(benchmark::State& state, DataType type, RedOp op, bool stream) {
  const auto bytes = static_cast<size_t>(state.range(0));
  const auto num_src = static_cast<size_t>(state.range(1));
  const auto num_dst = static_cast<size_t>(state.range(2));
  std::vector<Block> blocks;
  std::vector<const void*> src;
  std::vector<void*> dst;
  for (size_t k = 0; k < num_src + num_dst; ++k) {
    blocks.push_back(make_block(bytes));
    if (k < num_src) {
      src.push_back(blocks.back().get());
    } else {
      dst.push_back(blocks.back().get());
    }
  }
  const zbccl::kernels::ReduceArgs args = {
      src.data(), num_src, dst.data(), num_dst, bytes / zbccl::type_size(type),
      type,       op,      num_src,    stream};
  for (auto _ : state) {
    zbccl::kernels::reduce(args);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * state.range(0));
}

void copy(benchmark::State& state, bool stream) {
  const auto bytes = static_cast<size_t>(state.range(0));
  const Block src = make_block(bytes);
  const Block dst = make_block(bytes);
  for (auto _ : state) {
    zbccl::kernels::copy(dst.get(), src.get(), bytes, stream);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * state.range(0));
}

void register_all() {
  constexpr int64_t kSizes[] = {4, 64, 4096, 65536, 1 << 20, 64 << 20};
  for (int t = 0; t < zbccl::kNumDataTypes; ++t) {
    for (int o = 0; o < zbccl::kNumRedOps; ++o) {
      const auto type = static_cast<DataType>(t);
      const auto op = static_cast<RedOp>(o);
      const std::string name =
          std::string("reduce/") + zbccl::type_name(type) + "/" + zbccl::op_name(op);
      auto* bench = benchmark::RegisterBenchmark(name.c_str(), reduce, type, op, false);
      bench->ArgNames({"bytes", "src", "dst"});
      for (const int64_t size : kSizes) bench->Args({size, 2, 1});
      if (op != RedOp::kSum) continue;
      for (const int64_t sources : {3, 4, 5, 8, 16, 64}) {
        bench->Args({4096, sources, 1})->Args({1 << 20, sources, 1});
      }
      bench->Args({4096, 4, 4})->Args({4096, 8, 8})->Args({1 << 20, 4, 4})->Args({1 << 20, 8, 8});
      benchmark::RegisterBenchmark((name + "/stream").c_str(), reduce, type, op, true)
          ->ArgNames({"bytes", "src", "dst"})
          ->Args({1 << 20, 2, 1})
          ->Args({64 << 20, 2, 1});
    }
  }
  for (const bool stream : {false, true}) {
    auto* bench = benchmark::RegisterBenchmark(stream ? "copy/stream" : "copy/plain", copy, stream);
    for (const int64_t size : kSizes) bench->Arg(size);
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (!argument.starts_with("--simd=")) continue;
    const std::string_view wanted = argument.substr(7);
    bool found = false;
    for (const zbccl::kernels::Target* target : zbccl::kernels::available_targets()) {
      if (wanted == target->name) {
        zbccl::kernels::set_target(target);
        found = true;
      }
    }
    if (!found) {
      std::fprintf(stderr, "%s: not available here; choose from:", argv[i]);
      for (const zbccl::kernels::Target* target : zbccl::kernels::available_targets()) {
        std::fprintf(stderr, " %s", target->name);
      }
      std::fprintf(stderr, "\n");
      return 2;
    }
    for (int j = i; j + 1 < argc; ++j) argv[j] = argv[j + 1];
    --argc;
    break;
  }
  benchmark::AddCustomContext("simd", zbccl::kernels::simd_name());
  register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
