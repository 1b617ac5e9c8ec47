#include "multirank/moe_case.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "support/connect.h"
#include "support/data.h"
#include "support/guarded.h"

namespace zbccl::test {
namespace {

enum Stream : uint64_t { kX, kScales, kWeights, kY, kBias0, kBias1, kRowWeights };

uint64_t stream(const MoeCase& what, Stream which, int rank) {
  return seed_of(what.seed, static_cast<uint64_t>(which), static_cast<uint64_t>(rank));
}

// An array of a rank, in memory of this process.
std::vector<std::byte> array_of(const MoeCase& what, Stream which, int rank, int64_t count,
                                int type) {
  const auto data_type = static_cast<zbcclDataType_t>(type);
  std::vector<std::byte> data(static_cast<size_t>(count) * element_size(data_type) + 16);
  const bool special = what.special && (which == kX || which == kY);
  fill(data.data(), static_cast<size_t>(count), data_type, special ? Fill::kSpecial : Fill::kRandom,
       stream(what, which, rank));
  return data;
}

using Holds = MoeBed::Holds;

class HostArray final : public MoeBed::Array {
 public:
  explicit HostArray(Guarded block) : block_(std::move(block)) {}
  std::byte* data() const override { return block_.data(); }
  size_t size() const override { return block_.size(); }
  void set(const std::byte* data, size_t bytes) override {
    if (bytes > 0) std::memcpy(block_.data(), data, bytes);
  }
  std::vector<std::byte> get() const override {
    return {block_.data(), block_.data() + block_.size()};
  }
  std::string damage() const override { return block_.damage(); }

 private:
  Guarded block_;
};

MoeArray memory(MoeBed& bed, const MoeCase& what, size_t bytes, Holds holds = Holds::kElements) {
  return bed.make(what, bytes, holds);
}

MoeArray memory_of(MoeBed& bed, const MoeCase& what, const std::vector<std::byte>& data,
                   size_t bytes, Holds holds = Holds::kElements) {
  MoeArray made = bed.make(what, bytes, holds);
  made->set(data.data(), bytes);
  return made;
}

int64_t stride_of(const MoeCase& what) { return what.strided ? what.hidden + 16 : what.hidden; }

// `expected` begins as what the array was poisoned with.
std::vector<std::byte> poisoned_copy(const MoeArray& array) { return array->get(); }

void expect_same(const std::vector<std::byte>& expected, const MoeArray& array, const char* name) {
  const std::vector<std::byte> got = array->get();
  EXPECT_EQ("", array->damage()) << name;
  ASSERT_EQ(expected.size(), got.size()) << name;
  const auto at = std::mismatch(expected.begin(), expected.end(), got.begin()).first;
  EXPECT_EQ(expected.end(), at) << name << " differs from byte " << at - expected.begin() << " of "
                                << expected.size();
}

template <typename T>
void put(std::vector<std::byte>& data, int64_t i, T value) {
  std::memcpy(data.data() + static_cast<size_t>(i) * sizeof value, &value, sizeof value);
}

int64_t output_scales(const MoeCase& what) {
  const int64_t groups = (what.hidden + 127) / 128;
  switch (what.quant) {
    case zbcclMoeQuantNone: return what.scales;
    case zbcclMoeQuantInt8: return 1;
    case zbcclMoeQuantFp8Ue8m0: return (groups + 3) / 4;
    default: return groups;
  }
}

// Where scale `s` of row `row` goes; the strides of the call are set to it.
struct ScalePlaces {
  int64_t capacity;  // 0: rows are not grouped
  int64_t strides[3];
  int64_t at(int64_t row, int64_t s) const {
    const int64_t expert = capacity == 0 ? 0 : row / capacity;
    return expert * strides[0] + (row - expert * capacity) * strides[1] + s * strides[2];
  }
};

ScalePlaces scale_places(const MoeCase& what, int64_t rows) {
  const int64_t each = output_scales(what);
  const int64_t capacity = what.layout == zbcclMoeExpertMasked ? what.capacity : 0;
  const int64_t group = capacity == 0 ? rows : capacity;
  if (what.transposed) return {capacity, {group * each, 1, std::max<int64_t>(group, 1)}};
  return {capacity, {group * each, each, 1}};
}

}  // namespace

MoeArray MoeBed::make(const MoeCase& what, size_t bytes, Holds holds) {
  Guarded block =
      what.foreign ? Guarded::plain(bytes, holds == Holds::kRows ? 3 : 8) : registered(bytes);
  return std::make_unique<HostArray>(std::move(block));
}

std::string MoeCase::describe() const {
  std::string text = "layout " + std::to_string(layout) + " experts " + std::to_string(experts) +
                     " topk " + std::to_string(topk) + " tokens " + std::to_string(tokens) +
                     " hidden " + std::to_string(hidden) + " type " + std::to_string(type) +
                     " quant " + std::to_string(quant) + " scales " + std::to_string(scales) +
                     " routed " + std::to_string(static_cast<int>(routed)) + " capacity " +
                     std::to_string(capacity) + " alignment " + std::to_string(alignment) +
                     " seed " + std::to_string(seed);
  for (const auto& [flag, name] : {std::pair{transposed, " transposed"},
                                   {strided, " strided"},
                                   {zero_padding, " zero_padding"},
                                   {mapped, " mapped"},
                                   {foreign, " foreign"},
                                   {pre_reduce, " pre_reduce"},
                                   {weighted, " weighted"},
                                   {phases, " phases"},
                                   {with_dispatch, " with_dispatch"},
                                   {special, " special"},
                                   {idle_rank, " idle_rank"}}) {
    if (flag) text += name;
  }
  return text;
}

MoeWorld make_world(const MoeCase& what, int ranks) {
  MoeWorld world;
  world.ranks = ranks;
  world.experts = what.experts;
  world.topk = what.topk;
  world.layout = what.layout;
  world.alignment = what.alignment;
  for (int e = 0; e < what.experts; ++e) {
    const int share = what.experts / ranks;
    const int more = what.experts % ranks;
    int rank = e < more * (share + 1) ? e / (share + 1) : more + (e - more * (share + 1)) / share;
    // By a map: scattered, and the last rank has none where there are others.
    if (what.mapped) rank = (e * 5 + 1) % std::max(ranks - 1, 1);
    world.rank_of.push_back(rank);
  }
  for (int r = 0; r < ranks; ++r) {
    int64_t tokens = what.tokens + (r * 3) % 5;
    if (what.no_tokens || (what.idle_rank && r == ranks - 1)) tokens = 0;
    std::vector<int64_t> indices;
    for (int64_t i = 0; i < tokens * what.topk; ++i) {
      const uint64_t chance =
          mix(seed_of(what.seed, 99, static_cast<uint64_t>(r)) ^ static_cast<uint64_t>(i));
      auto expert = static_cast<int64_t>(chance % static_cast<uint64_t>(what.experts));
      const uint64_t second = chance >> 40;
      if (second % 7 == 0) expert = -1;
      if (what.routed == Routed::kOneExpert) expert = what.experts - 1;
      if (what.routed == Routed::kNone) expert = -1;
      if (what.routed == Routed::kSkewed && second % 8 != 1) expert = what.experts / 2;
      if (what.routed == Routed::kDuplicates && i % what.topk != 0) expert = indices.back();
      if (what.routed == Routed::kEmptyRank && expert >= 0 &&
          world.rank_of[static_cast<size_t>(expert)] == 0) {
        expert = -1;
      }
      indices.push_back(expert);
    }
    world.topk_idx.push_back(indices);
    world.capacity.push_back(what.capacity);
  }
  return world;
}

Moe make_moe(Communicator& comm, const MoeCase& what, const MoeWorld& world) {
  if (what.mapped) return {comm, what.experts, world.rank_of};
  return {comm, what.experts};
}

MoeHandle call_route(Moe& moe, const MoeCase& what, const MoeWorld& world, int rank,
                     RouteArrays& arrays, MoeBed& bed) {
  const auto& mine = world.topk_idx[static_cast<size_t>(rank)];
  const size_t index = what.idx_type == zbcclInt64 ? 8 : 4;
  std::vector<std::byte> numbers(mine.size() * index);
  for (size_t i = 0; i < mine.size(); ++i) {
    if (what.idx_type == zbcclInt64) {
      put(numbers, static_cast<int64_t>(i), mine[i]);
    } else {
      put(numbers, static_cast<int64_t>(i), static_cast<int32_t>(mine[i]));
    }
  }
  arrays.indices = memory_of(bed, what, numbers, numbers.size());
  const size_t experts = world.experts_of(rank).size();
  arrays.counts = memory(bed, what, experts * sizeof(int32_t));
  arrays.status = memory(bed, what, 3 * sizeof(int64_t));
  const bool by_expert = what.layout != zbcclMoeRankMajor;
  const size_t ranges_bytes = experts * static_cast<size_t>(world.ranks) * sizeof(int64_t);
  arrays.ranges = memory(bed, what, by_expert ? ranges_bytes : 0);
  zbcclMoeRouting_t routing = moe_routing();
  routing.topk_idx = mine.empty() ? nullptr : arrays.indices->data();
  routing.num_tokens = world.tokens(rank);
  routing.num_topk = what.topk;
  routing.idx_type = what.idx_type;
  routing.layout = what.layout;
  routing.alignment = what.alignment;
  routing.capacity = world.capacity[static_cast<size_t>(rank)];
  routing.recv_counts = reinterpret_cast<int32_t*>(arrays.counts->data());
  routing.recv_status = reinterpret_cast<int64_t*>(arrays.status->data());
  if (by_expert) routing.recv_ranges = reinterpret_cast<int64_t*>(arrays.ranges->data());
  routing.with_dispatch = what.with_dispatch ? 1 : 0;
  bed.settle();
  MoeHandle handle = moe.route(routing, bed.call());
  bed.settle();
  return handle;
}

void expect_counts(const MoeHandle& handle, const RouteArrays& arrays) {
  const zbcclMoeInfo_t info = handle.info();
  const auto experts = static_cast<size_t>(info.num_local_experts);
  const auto ranks = static_cast<size_t>(info.num_ranks);
  const int64_t want_status[3] = {info.num_rows, info.needed_capacity, info.overflow};
  std::vector<std::byte> want(sizeof want_status);
  std::memcpy(want.data(), want_status, sizeof want_status);
  expect_same(want, arrays.status, "recv_status");
  want.resize(experts * sizeof(int32_t));
  if (experts > 0) std::memcpy(want.data(), info.expert_counts, want.size());
  expect_same(want, arrays.counts, "recv_counts");
  if (info.layout == zbcclMoeRankMajor) return;
  want.resize(experts * ranks * sizeof(int64_t));
  for (size_t i = 0; i < experts * ranks; ++i) {
    const int64_t first = info.source_begins[i] - info.expert_offsets[i / ranks];
    put(want, static_cast<int64_t>(i), first << 32 | info.source_counts[i]);
  }
  expect_same(want, arrays.ranges, "recv_ranges");
}

MoeHandle route(Moe& moe, const MoeCase& what, const MoeWorld& world, int rank, MoeArray& indices,
                MoeBed& bed) {
  RouteArrays arrays;
  MoeHandle handle = call_route(moe, what, world, rank, arrays, bed);
  expect_counts(handle, arrays);
  indices = std::move(arrays.indices);
  return handle;
}

void expect_info(const MoeHandle& handle, const MoeWorld& world, int rank) {
  const zbcclMoeInfo_t info = handle.info();
  const MoeRows expected = reference_rows(world, rank);
  EXPECT_EQ(expected.num_rows, info.num_rows);
  EXPECT_EQ(static_cast<int64_t>(expected.rows.size()), info.allocated_rows);
  EXPECT_EQ(expected.needed_capacity, info.needed_capacity);
  EXPECT_EQ(expected.overflow ? 1 : 0, info.overflow);
  EXPECT_EQ(rank, info.rank);
  EXPECT_EQ(world.ranks, info.num_ranks);
  const auto mine = world.experts_of(rank);
  ASSERT_EQ(static_cast<int32_t>(mine.size()), info.num_local_experts);
  const auto ranks = static_cast<size_t>(world.ranks);
  for (size_t e = 0; e < mine.size(); ++e) {
    EXPECT_EQ(mine[e], info.local_experts[e]);
    EXPECT_EQ(expected.expert_counts[e], info.expert_counts[e]);
    if (info.layout == zbcclMoeRankMajor) continue;
    for (size_t s = 0; s < ranks; ++s) {
      const int64_t begin = info.source_begins[e * ranks + s];
      for (int64_t i = 0; i < info.source_counts[e * ranks + s]; ++i) {
        const MoeRow& row = expected.rows.at(static_cast<size_t>(begin + i));
        EXPECT_EQ(static_cast<int>(s), row.source);
        EXPECT_EQ(static_cast<int>(e), row.expert);
      }
    }
  }
  if (info.layout != zbcclMoeRankMajor) return;
  for (int64_t row = 0; row < info.num_rows; ++row) {
    const int source = expected.rows.at(static_cast<size_t>(row)).source;
    EXPECT_LE(info.source_offsets[source], row);
    EXPECT_GT(info.source_offsets[source + 1], row);
  }
}

void run_dispatch(MoeHandle& handle, const MoeCase& what, const MoeWorld& world, int rank,
                  MoeBed& bed) {
  const MoeRows expected = reference_rows(world, rank);
  const auto rows = static_cast<int64_t>(expected.rows.size());
  const int64_t tokens = world.tokens(rank);
  const bool quantized = what.quant != zbcclMoeQuantNone;
  const bool by_expert = what.layout != zbcclMoeRankMajor;
  const size_t element = element_size(static_cast<zbcclDataType_t>(what.type));
  const size_t out_element = quantized ? 1 : element;
  const int64_t stride = stride_of(what);
  const int64_t per_row = output_scales(what);
  const ScalePlaces places = scale_places(what, rows);
  const auto index = static_cast<size_t>(what.idx_type == zbcclInt64 ? 8 : 4);

  const MoeArray x = memory_of(bed, what, array_of(what, kX, rank, tokens * stride, what.type),
                               static_cast<size_t>(tokens * stride) * element, Holds::kRows);
  const MoeArray scales =
      memory_of(bed, what, array_of(what, kScales, rank, tokens * what.scales, zbcclFloat32),
                static_cast<size_t>(tokens * what.scales) * 4);
  const MoeArray weights =
      memory_of(bed, what, array_of(what, kWeights, rank, tokens * what.topk, zbcclFloat32),
                static_cast<size_t>(tokens * what.topk) * 4);
  const MoeArray recv_x =
      memory(bed, what, static_cast<size_t>(rows * stride) * out_element, Holds::kRows);
  const MoeArray recv_scales = memory(bed, what, static_cast<size_t>(rows * per_row) * 4);
  const MoeArray recv_idx =
      memory(bed, what, static_cast<size_t>(rows * what.topk) * index, Holds::kRows);
  const MoeArray recv_weights = memory(bed, what, static_cast<size_t>(rows * what.topk) * 4);
  const MoeArray row_weights = memory(bed, what, static_cast<size_t>(rows) * 4);
  const MoeArray src = memory(bed, what, static_cast<size_t>(rows) * 4);

  zbcclMoeDispatch_t args = moe_dispatch();
  args.type = what.type;
  args.quant = what.quant;
  args.zero_padding = what.zero_padding ? 1 : 0;
  args.hidden = what.hidden;
  args.x = tokens > 0 ? x->data() : nullptr;
  args.x_stride = what.strided ? stride : 0;
  args.num_scales = what.scales;
  args.x_scales = what.scales > 0 && tokens > 0 ? scales->data() : nullptr;
  if (what.transposed && what.scales > 0) {
    args.x_scale_strides[0] = 1;
    args.x_scale_strides[1] = std::max<int64_t>(tokens, 1);
  }
  args.recv_x = recv_x->data();
  args.recv_rows = rows;
  args.recv_x_stride = what.strided ? stride : 0;
  args.recv_scales = per_row > 0 ? recv_scales->data() : nullptr;
  if (what.transposed) std::copy_n(places.strides, 3, args.recv_scale_strides);
  args.topk_weights = what.weighted ? reinterpret_cast<const float*>(weights->data()) : nullptr;
  if (by_expert) {
    if (what.weighted) args.recv_row_weights = reinterpret_cast<float*>(row_weights->data());
  } else {
    args.recv_topk_idx = recv_idx->data();
    if (what.weighted) args.recv_topk_weights = reinterpret_cast<float*>(recv_weights->data());
  }
  args.recv_src_idx = reinterpret_cast<int32_t*>(src->data());

  auto want_x = poisoned_copy(recv_x);
  auto want_scales = poisoned_copy(recv_scales);
  auto want_idx = poisoned_copy(recv_idx);
  auto want_weights = poisoned_copy(recv_weights);
  auto want_row_weights = poisoned_copy(row_weights);
  auto want_src = poisoned_copy(src);
  std::vector<std::vector<std::byte>> all_x;
  std::vector<std::vector<std::byte>> all_scales;
  std::vector<std::vector<std::byte>> all_weights;
  for (int s = 0; s < world.ranks; ++s) {
    all_x.push_back(array_of(what, kX, s, world.tokens(s) * stride, what.type));
    all_scales.push_back(array_of(what, kScales, s, world.tokens(s) * what.scales, zbcclFloat32));
    all_weights.push_back(array_of(what, kWeights, s, world.tokens(s) * what.topk, zbcclFloat32));
  }
  const bool leaves = what.layout == zbcclMoeExpertMasked && !what.zero_padding;
  for (int64_t row = 0; row < rows; ++row) {
    const MoeRow& from = expected.rows[static_cast<size_t>(row)];
    std::byte* const to = want_x.data() + static_cast<size_t>(row * stride) * out_element;
    if (from.source < 0) {
      if (leaves) continue;
      put(want_src, row, int32_t{-1});
      if (args.recv_row_weights != nullptr) put(want_row_weights, row, 0.0F);
      for (int64_t k = 0; k < what.topk; ++k) {
        if (index == 8) put(want_idx, row * what.topk + k, int64_t{-1});
        if (index == 4) put(want_idx, row * what.topk + k, int32_t{-1});
        if (args.recv_topk_weights != nullptr) put(want_weights, row * what.topk + k, 0.0F);
      }
      if (!what.zero_padding) continue;
      std::memset(to, 0, static_cast<size_t>(what.hidden) * out_element);
      for (int64_t s = 0; s < per_row; ++s) put(want_scales, places.at(row, s), 0);
      continue;
    }
    const auto source = static_cast<size_t>(from.source);
    const std::byte* const in =
        all_x[source].data() + static_cast<size_t>(from.token * stride) * element;
    if (quantized) {
      const MoeCodes codes = reference_codes(in, what.hidden, what.type, what.quant);
      std::memcpy(to, codes.codes.data(), codes.codes.size());
      for (int64_t s = 0; s < per_row; ++s) {
        put(want_scales, places.at(row, s), codes.scales.at(static_cast<size_t>(s)));
      }
    } else {
      std::memcpy(to, in, static_cast<size_t>(what.hidden) * element);
      for (int64_t s = 0; s < per_row; ++s) {
        const int64_t at =
            what.transposed ? s * world.tokens(from.source) + from.token : from.token * per_row + s;
        uint32_t scale = 0;
        std::memcpy(&scale, all_scales[source].data() + at * 4, 4);
        put(want_scales, places.at(row, s), scale);
      }
    }
    put(want_src, row, static_cast<int32_t>(from.token));
    const auto* const w = reinterpret_cast<const float*>(all_weights[source].data());
    if (args.recv_row_weights != nullptr) {
      put(want_row_weights, row, w[from.token * what.topk + from.slot]);
    }
    for (int k = 0; k < what.topk && !by_expert; ++k) {
      const int64_t expert = world.expert_of(from.source, from.token, k);
      const int local = world.local_of(rank, expert);
      const int64_t at = row * what.topk + k;
      if (index == 8) put(want_idx, at, static_cast<int64_t>(local));
      if (index == 4) put(want_idx, at, static_cast<int32_t>(local));
      if (args.recv_topk_weights != nullptr) {
        put(want_weights, at, local >= 0 ? w[from.token * what.topk + k] : 0.0F);
      }
    }
  }
  if (by_expert) want_idx = poisoned_copy(recv_idx);
  if (by_expert || args.recv_topk_weights == nullptr) want_weights = poisoned_copy(recv_weights);

  bed.settle();
  if (what.phases) {
    args.phase = zbcclMoeSendPhase;
    handle.dispatch(args, bed.call());
    args.phase = zbcclMoeReceivePhase;
  }
  handle.dispatch(args, bed.call());
  bed.settle();
  expect_same(want_x, recv_x, "recv_x");
  expect_same(want_scales, recv_scales, "recv_scales");
  expect_same(want_idx, recv_idx, "recv_topk_idx");
  expect_same(want_weights, recv_weights, "recv_topk_weights");
  expect_same(want_row_weights, row_weights, "recv_row_weights");
  expect_same(want_src, src, "recv_src_idx");
}

void run_combine(MoeHandle& handle, const MoeCase& what, const MoeWorld& world, int rank,
                 MoeBed& bed) {
  const int type = what.combine_type;
  const size_t element = element_size(static_cast<zbcclDataType_t>(type));
  const bool by_expert = what.layout != zbcclMoeRankMajor;
  const int64_t tokens = world.tokens(rank);
  const int64_t stride = stride_of(what);
  std::vector<MoeRows> rows;
  std::vector<std::vector<std::byte>> y;
  std::vector<std::vector<std::byte>> row_weights;
  for (int r = 0; r < world.ranks; ++r) {
    rows.push_back(reference_rows(world, r));
    const auto count = static_cast<int64_t>(rows.back().rows.size());
    y.push_back(array_of(what, kY, r, count * stride, type));
    row_weights.push_back(array_of(what, kRowWeights, r, count * what.topk, zbcclFloat32));
  }
  const auto mine = static_cast<size_t>(rank);
  const auto own_rows = static_cast<int64_t>(rows[mine].rows.size());
  const MoeArray own_y =
      memory_of(bed, what, y[mine], static_cast<size_t>(own_rows * stride) * element, Holds::kRows);
  const MoeArray own_weights =
      memory_of(bed, what, row_weights[mine], static_cast<size_t>(own_rows * what.topk) * 4);
  const auto weights = array_of(what, kWeights, rank, tokens * what.topk, zbcclFloat32);
  const auto bias0 = array_of(what, kBias0, rank, tokens * what.hidden, type);
  const auto bias1 = array_of(what, kBias1, rank, tokens * what.hidden, type);
  const MoeArray given_weights =
      memory_of(bed, what, weights, static_cast<size_t>(tokens * what.topk) * 4);
  const size_t bias_bytes = static_cast<size_t>(tokens * what.hidden) * element;
  const MoeArray given_bias0 = memory_of(bed, what, bias0, bias_bytes, Holds::kRows);
  const MoeArray given_bias1 = memory_of(bed, what, bias1, bias_bytes, Holds::kRows);
  const MoeArray out =
      memory(bed, what, static_cast<size_t>(tokens * stride) * element, Holds::kRows);
  const MoeArray sums = memory(bed, what, static_cast<size_t>(tokens * what.topk) * 4);

  zbcclMoeCombine_t args = moe_combine();
  args.type = type;
  args.hidden = what.hidden;
  args.y = own_y->data();
  args.y_stride = what.strided ? stride : 0;
  args.out = out->data();
  args.out_stride = what.strided ? stride : 0;
  if (what.biases > 0) args.bias[0] = given_bias0->data();
  if (what.biases > 1) args.bias[1] = given_bias1->data();
  const auto* const own = reinterpret_cast<const float*>(weights.data());
  if (by_expert) {
    args.pre_reduce = what.pre_reduce ? 1 : 0;
    if (what.weighted) {
      args.topk_weights = reinterpret_cast<const float*>(given_weights->data());
    }
  } else if (what.weighted) {
    args.recv_topk_weights = reinterpret_cast<const float*>(own_weights->data());
    args.combined_topk_weights = reinterpret_cast<float*>(sums->data());
  }

  auto want = poisoned_copy(out);
  auto want_sums = poisoned_copy(sums);
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<MoeTerm> terms;
    std::vector<float> total(static_cast<size_t>(what.topk), 0.0F);
    const auto add = [&](int r, int slot) {
      for (size_t i = 0; i < rows[static_cast<size_t>(r)].rows.size(); ++i) {
        const MoeRow& row = rows[static_cast<size_t>(r)].rows[i];
        if (row.source != rank || row.token != t || (by_expert && row.slot != slot)) continue;
        const bool at_expert =
            !by_expert || row.expert == world.local_of(r, world.expert_of(rank, t, slot));
        if (!at_expert) continue;
        terms.push_back(
            {r, y[static_cast<size_t>(r)].data() + i * static_cast<size_t>(stride) * element,
             by_expert ? own[t * what.topk + slot] : 1.0F});
        if (by_expert) continue;
        const auto* const w =
            reinterpret_cast<const float*>(row_weights[static_cast<size_t>(r)].data());
        for (size_t k = 0; k < total.size(); ++k) total[k] = total[k] + w[i * total.size() + k];
      }
    };
    if (by_expert) {
      for (int k = 0; k < what.topk; ++k) {
        const int64_t expert = world.expert_of(rank, t, k);
        if (expert >= 0) add(world.rank_of[static_cast<size_t>(expert)], k);
      }
    } else {
      for (int r = 0; r < world.ranks; ++r) add(r, -1);
    }
    const size_t at = static_cast<size_t>(t * what.hidden) * element;
    reference_sum(terms, by_expert && what.weighted, what.pre_reduce && by_expert,
                  what.biases > 0 ? bias0.data() + at : nullptr,
                  what.biases > 1 ? bias1.data() + at : nullptr, what.hidden, type,
                  want.data() + static_cast<size_t>(t * stride) * element);
    if (args.combined_topk_weights == nullptr) continue;
    for (size_t k = 0; k < total.size(); ++k) {
      put(want_sums, t * what.topk + static_cast<int64_t>(k), total[k]);
    }
  }
  bed.settle();
  if (what.phases) {
    args.phase = zbcclMoeSendPhase;
    handle.combine(args, bed.call());
    args.phase = zbcclMoeReceivePhase;
  }
  handle.combine(args, bed.call());
  bed.settle();
  expect_same(want, out, "out");
  expect_same(want_sums, sums, "combined_topk_weights");
}

void run_moe(Communicator& comm, const MoeCase& what, MoeBed& bed) {
  SCOPED_TRACE(what.describe());
  const int rank = comm.rank();
  const MoeWorld world = make_world(what, comm.size());
  Moe moe = make_moe(comm, what, world);
  RouteArrays arrays;
  MoeHandle handle = call_route(moe, what, world, rank, arrays, bed);
  if (what.with_dispatch) run_dispatch(handle, what, world, rank, bed);
  expect_counts(handle, arrays);
  expect_info(handle, world, rank);
  run_dispatch(handle, what, world, rank, bed);
  run_combine(handle, what, world, rank, bed);
  EXPECT_EQ(what.foreign ? moe.report().staged_bytes : 0, moe.report().staged_bytes);
}

MoeHandle route(Moe& moe, const MoeCase& what, const MoeWorld& world, int rank, MoeArray& indices) {
  MoeBed bed;
  return route(moe, what, world, rank, indices, bed);
}

void run_dispatch(MoeHandle& handle, const MoeCase& what, const MoeWorld& world, int rank) {
  MoeBed bed;
  run_dispatch(handle, what, world, rank, bed);
}

void run_combine(MoeHandle& handle, const MoeCase& what, const MoeWorld& world, int rank) {
  MoeBed bed;
  run_combine(handle, what, world, rank, bed);
}

void run_moe(Communicator& comm, const MoeCase& what) {
  MoeBed bed;
  run_moe(comm, what, bed);
}

}  // namespace zbccl::test
