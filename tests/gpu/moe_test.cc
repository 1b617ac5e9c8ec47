// Dispatch and combine on GPUs, bit by bit against plain loops on the host: layouts x types x
// quantization x routings, one GPU for each rank or one for all.
#include <gtest/gtest.h>

#include "gpu/moe_bed.h"
#include "support/expect_error.h"

namespace zbccl::test {
namespace {

constexpr int kLayouts[] = {zbcclMoeRankMajor, zbcclMoeExpertMajor, zbcclMoeExpertMasked};

class GpuMoe : public testing::TestWithParam<Place> {};
INSTANTIATE_TEST_SUITE_P(Gpu, GpuMoe,
                         testing::Values(Place::kGpuEach, Place::kThreads, Place::kOneGpu),
                         [](const auto& test) { return std::string(place_name(test.param)); });

// A case for each layout: masked ones have room for all that can come.
std::vector<MoeCase> in_every_layout(MoeCase what, int ranks) {
  std::vector<MoeCase> cases;
  for (const int layout : kLayouts) {
    MoeCase one = what;
    one.layout = layout;
    if (layout == zbcclMoeExpertMajor) one.alignment = 4;
    if (layout == zbcclMoeExpertMasked) {
      one.capacity = (what.tokens + 5) * ranks * what.topk;
      one.zero_padding = true;
    }
    cases.push_back(one);
  }
  return cases;
}

using Body = std::function<void(GpuRank&, Communicator&)>;

void run_at(Place place, int most, const Body& body) {
  run_gpu_job({.ranks = ranks_at(place, most), .place = place}, [&](GpuRank& rank) {
    Communicator comm = rank.connect();
    if (place == Place::kOneGpu && rank.rank() == 0) {
      // Freed again and kept: calls find room in the pool, and map no memory beside kernels.
      const CudaMemory room(size_t{48} << 20, DeviceMemoryKind::kPool, rank.device());
    }
    rank.settle();
    body(rank, comm);
    rank.settle();
    EXPECT_EQ(zbcclSuccess, comm.async_error());
    comm.destroy();
    rank.settle();
  });
}

void run_cases(Place place, int most, const std::vector<MoeCase>& cases) {
  run_at(place, most, [&](GpuRank& rank, Communicator& comm) {
    for (const MoeCase& one : cases) {
      rank.note(one.describe());
      GpuBed bed(rank);
      run_moe(comm, one, bed);
      rank.settle();
      if (testing::Test::HasFailure()) break;
    }
  });
}

TEST_P(GpuMoe, MovesRowsOfEveryType) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  std::vector<MoeCase> cases;
  for (const int type : {zbcclBfloat16, zbcclFloat16, zbcclFloat32, zbcclFloat8e4m3, zbcclInt8}) {
    MoeCase what;
    what.type = type;
    what.hidden = type == zbcclFloat32 ? 132 : 144;
    what.combine_type = type == zbcclFloat16 || type == zbcclFloat32 ? type : zbcclBfloat16;
    what.biases = type % 3;
    if (type == zbcclFloat8e4m3 || type == zbcclInt8) what.scales = 3;
    for (MoeCase one : in_every_layout(what, 4)) cases.push_back(one);
  }
  run_cases(GetParam(), 4, cases);
}

TEST_P(GpuMoe, MovesRowsOfModels) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  std::vector<MoeCase> cases;
  for (const int quant : {zbcclMoeQuantNone, zbcclMoeQuantFp8}) {
    for (const int64_t hidden : {int64_t{7168}, int64_t{2880}, int64_t{20480}}) {
      MoeCase what;
      what.experts = 64;
      what.topk = 8;
      what.tokens = hidden > 8192 ? 20 : 300;
      what.hidden = hidden;
      what.quant = quant;
      what.layout = zbcclMoeRankMajor;
      cases.push_back(what);
      what.layout = zbcclMoeExpertMajor;
      what.alignment = 16;
      cases.push_back(what);
    }
  }
  run_cases(GetParam(), 4, cases);
}

TEST_P(GpuMoe, QuantizesOnTheWay) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  std::vector<MoeCase> cases;
  for (const int quant :
       {zbcclMoeQuantFp8, zbcclMoeQuantFp8Pow2, zbcclMoeQuantFp8Ue8m0, zbcclMoeQuantInt8}) {
    for (const int type : {zbcclBfloat16, zbcclFloat16, zbcclFloat32}) {
      MoeCase what;
      what.quant = quant;
      what.type = type;
      what.hidden = type == zbcclFloat16 ? 640 : 280;  // whole groups, and a short one
      what.tokens = 5;
      what.transposed = type != zbcclFloat32;
      what.special = type == zbcclFloat32;
      what.strided = type == zbcclFloat16;
      what.seed = static_cast<uint64_t>(quant);
      for (MoeCase one : in_every_layout(what, 4)) cases.push_back(one);
    }
  }
  run_cases(GetParam(), 4, cases);
}

TEST_P(GpuMoe, TakesAnyRouting) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  std::vector<MoeCase> cases;
  for (const Routed routed : {Routed::kOneExpert, Routed::kEmptyRank, Routed::kDuplicates,
                              Routed::kNone, Routed::kSkewed}) {
    MoeCase what;
    what.routed = routed;
    what.idx_type = zbcclInt32;
    for (MoeCase one : in_every_layout(what, 4)) cases.push_back(one);
  }
  MoeCase odd;  // ranks without experts or tokens, experts that do not divide, many slots
  odd.mapped = true;
  odd.idle_rank = true;
  odd.experts = 7;
  for (MoeCase one : in_every_layout(odd, 4)) cases.push_back(one);
  odd.no_tokens = true;
  for (MoeCase one : in_every_layout(odd, 4)) cases.push_back(one);
  MoeCase slots;
  slots.experts = 67;
  slots.topk = 32;
  slots.tokens = 70;
  slots.hidden = 64;
  for (MoeCase one : in_every_layout(slots, 4)) cases.push_back(one);
  run_cases(GetParam(), 4, cases);
}

TEST_P(GpuMoe, TakesManyTokens) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  std::vector<MoeCase> cases;
  for (const int layout : {zbcclMoeRankMajor, zbcclMoeExpertMajor}) {
    MoeCase what;
    what.layout = layout;
    what.experts = 256;
    what.topk = 8;
    what.tokens = 2500;
    what.hidden = 32;
    cases.push_back(what);
  }
  run_cases(GetParam(), 2, cases);
}

TEST_P(GpuMoe, AddsUpInEveryForm) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  std::vector<MoeCase> cases;
  for (const int type : {zbcclBfloat16, zbcclFloat16, zbcclFloat32}) {
    for (int form = 0; form < 6; ++form) {
      MoeCase what;
      what.combine_type = type;
      what.type = type;
      what.hidden = form == 5 ? 8 : 264;  // less than a warp, and a rest
      what.pre_reduce = form % 2 == 1;
      what.weighted = form % 3 != 0;
      what.biases = form % 3;
      what.special = form == 4;
      what.topk = form == 3 ? 11 : 6;
      what.tokens = 40;
      what.strided = form == 2;
      what.seed = static_cast<uint64_t>(form);
      for (MoeCase one : in_every_layout(what, 4)) cases.push_back(one);
    }
  }
  run_cases(GetParam(), 4, cases);
}

TEST_P(GpuMoe, LeavesOutWhatDoesNotFit) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  std::vector<MoeCase> cases;
  for (const int layout : kLayouts) {
    for (const int64_t capacity : {1, 4, 13, 1000}) {
      for (const bool zero : {false, true}) {
        MoeCase what;
        what.layout = layout;
        what.capacity = capacity;
        what.zero_padding = zero;
        what.routed = zero ? Routed::kSkewed : Routed::kRandom;
        what.quant = zero ? zbcclMoeQuantFp8Pow2 : zbcclMoeQuantNone;
        what.alignment = layout == zbcclMoeExpertMajor ? 8 : 1;
        what.biases = 1;
        cases.push_back(what);
      }
    }
  }
  run_cases(GetParam(), 4, cases);
}

// One kernel where experts have places of their own; in the other layouts two, one behind the
// other.
TEST_P(GpuMoe, RoutesWithTheDispatch) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  std::vector<MoeCase> cases;
  MoeCase masked;
  masked.with_dispatch = true;
  masked.layout = zbcclMoeExpertMasked;
  masked.capacity = 90;
  for (const int quant : {zbcclMoeQuantNone, zbcclMoeQuantFp8, zbcclMoeQuantFp8Pow2,
                          zbcclMoeQuantFp8Ue8m0, zbcclMoeQuantInt8}) {
    for (const int type : {zbcclBfloat16, zbcclFloat16, zbcclFloat32}) {
      MoeCase what = masked;
      what.quant = quant;
      what.type = type;
      what.hidden = type == zbcclFloat16 ? 640 : 280;  // whole groups, and a short one
      what.transposed = type != zbcclFloat32;
      what.special = type == zbcclFloat32;
      what.strided = type == zbcclFloat16;
      what.zero_padding = quant % 2 == 0;
      what.phases = type == zbcclBfloat16;
      what.seed = static_cast<uint64_t>(quant);
      cases.push_back(what);
    }
  }
  for (const Routed routed : {Routed::kOneExpert, Routed::kEmptyRank, Routed::kDuplicates,
                              Routed::kNone, Routed::kSkewed}) {
    for (const int64_t capacity : {1, 13}) {
      MoeCase what = masked;
      what.routed = routed;
      what.idx_type = zbcclInt32;
      what.capacity = capacity;
      what.zero_padding = capacity > 1;
      cases.push_back(what);
    }
  }
  MoeCase odd = masked;  // ranks without experts or tokens, experts that do not divide
  odd.mapped = true;
  odd.idle_rank = true;
  odd.experts = 7;
  cases.push_back(odd);
  odd.no_tokens = true;
  cases.push_back(odd);
  MoeCase many = masked;  // of tokens for each block, and slots
  many.experts = 67;
  many.topk = 32;
  many.tokens = 300;
  many.hidden = 64;
  many.capacity = 40;
  cases.push_back(many);
  MoeCase model = masked;
  model.experts = 64;
  model.topk = 8;
  model.tokens = 24;
  model.hidden = 7168;
  for (const int quant : {zbcclMoeQuantNone, zbcclMoeQuantFp8}) {
    model.quant = quant;
    cases.push_back(model);
  }
  model.hidden = 61440;  // more than shared memory has room for
  model.quant = zbcclMoeQuantNone;
  model.tokens = 3;
  cases.push_back(model);
  MoeCase given = masked;  // codes with their scales
  given.type = zbcclFloat8e4m3;
  given.hidden = 256;
  given.scales = 2;
  for (const bool transposed : {false, true}) {
    given.transposed = transposed;
    cases.push_back(given);
  }
  for (const int layout : {zbcclMoeRankMajor, zbcclMoeExpertMajor}) {
    MoeCase what = masked;
    what.layout = layout;
    cases.push_back(what);
  }
  run_cases(GetParam(), 4, cases);
}

TEST_P(GpuMoe, SendsNowAndReceivesLater) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  MoeCase what;
  what.phases = true;
  run_cases(GetParam(), 4, in_every_layout(what, 4));
}

TEST_P(GpuMoe, ReachesForeignMemory) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  if (GetParam() == Place::kOneGpu) GTEST_SKIP() << "cudaMalloc waits for the other ranks' kernels";
  MoeCase what;
  what.foreign = true;
  what.strided = true;
  what.scales = 2;
  what.transposed = true;
  run_cases(GetParam(), 4, in_every_layout(what, 4));
}

TEST_P(GpuMoe, TakesOneRank) {
  ZBCCL_NEED_GPUS(GetParam(), 1);
  MoeCase what;
  what.biases = 1;
  what.quant = zbcclMoeQuantInt8;
  run_cases(GetParam(), 1, in_every_layout(what, 1));
}

// The first rank takes the last one out, and back in.
TEST_P(GpuMoe, LeavesRanksOut) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_at(GetParam(), 3, [](GpuRank& rank, Communicator& comm) {
    const int last = comm.size() - 1;
    const auto ranks = static_cast<size_t>(comm.size());
    std::vector<MoeCase> cases = in_every_layout(MoeCase(), 3);
    cases.push_back(cases.back());
    cases.back().with_dispatch = true;
    for (const MoeCase& what : cases) {
      MoeWorld world = make_world(what, comm.size());
      Moe moe = make_moe(comm, what, world);
      GpuBed bed(rank);
      for (const bool masked : {true, false}) {
        world.masked.assign(ranks, std::vector<bool>(ranks, false));
        world.masked[0][ranks - 1] = masked;
        if (comm.rank() == 0) moe.set_mask(last, masked);
        RouteArrays arrays;
        MoeHandle handle = call_route(moe, what, world, comm.rank(), arrays, bed);
        run_dispatch(handle, what, world, comm.rank(), bed);
        expect_counts(handle, arrays);
        expect_info(handle, world, comm.rank());
        run_combine(handle, what, world, comm.rank(), bed);
        rank.settle();
      }
    }
  });
}

// With one handle again and again, routings that change, and handles of both kinds at once.
TEST_P(GpuMoe, KeepsHandles) {
  ZBCCL_NEED_GPUS(GetParam(), 2);
  run_at(GetParam(), 4, [](GpuRank& rank, Communicator& comm) {
    MoeCase what;
    const MoeWorld world = make_world(what, comm.size());
    Moe moe = make_moe(comm, what, world);
    GpuBed bed(rank);
    MoeArray indices;
    MoeHandle first = route(moe, what, world, comm.rank(), indices, bed);
    MoeCase other = what;
    other.layout = zbcclMoeExpertMajor;
    other.alignment = 2;
    MoeCase on_host = what;
    on_host.seed = 7;
    const MoeWorld host_world = make_world(on_host, comm.size());
    MoeArray host_indices;
    MoeHandle host = route(moe, on_host, host_world, comm.rank(), host_indices);
    for (uint64_t i = 0; i < 40; ++i) {
      other.seed = 100 + i;
      const MoeWorld changed = make_world(other, comm.size());
      MoeArray changed_indices;
      MoeHandle second = route(moe, other, changed, comm.rank(), changed_indices, bed);
      expect_info(second, changed, comm.rank());
      run_dispatch(second, other, changed, comm.rank(), bed);
      run_dispatch(first, what, world, comm.rank(), bed);
      run_combine(first, what, world, comm.rank(), bed);
      run_combine(second, other, changed, comm.rank(), bed);
      if (testing::Test::HasFailure()) break;
    }
    rank.settle();
    run_dispatch(host, on_host, host_world, comm.rank());
    EXPECT_EQ(0U, moe.report().staged_bytes);
    EXPECT_LT(moe.report().metadata_bytes, uint64_t{1} << 20);
  });
}

}  // namespace
}  // namespace zbccl::test
