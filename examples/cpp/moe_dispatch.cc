// One mixture-of-experts layer over all ranks: each rank's tokens go to the ranks that hold their
// experts, the experts work on them, and the results come back, added up by weight. Here expert e
// multiplies by e + 1, so everybody can tell what must come back.
//   zbccl run -n 4 -- example_moe_dispatch
#include <cmath>
#include <cstdio>
#include <exception>
#include <vector>
#include <zbccl/moe.hpp>

namespace {

constexpr int kExperts = 10;
constexpr int kTopk = 2;
constexpr int64_t kHidden = 256;

// What a gate would choose for token t of a rank.
int64_t expert_of(int rank, int64_t token, int slot) {
  return (token * 3 + rank + slot * 5) % kExperts;
}
constexpr float kWeights[kTopk] = {0.75F, 0.25F};

// The experts of this rank, on the rows that came for each of them.
void run_experts(const zbcclMoeInfo_t& info, const zbccl::Buffer<float>& rows) {
  for (int32_t e = 0; e < info.num_local_experts; ++e) {
    const auto factor = static_cast<float>(info.local_experts[e] + 1);
    const int64_t first = info.expert_offsets[e] * kHidden;
    const int64_t end = first + info.expert_counts[e] * kHidden;
    for (int64_t i = first; i < end; ++i) rows[static_cast<size_t>(i)] *= factor;
  }
}

size_t count_wrong(int rank, const zbccl::Buffer<float>& x, const zbccl::Buffer<float>& out) {
  size_t wrong = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const int64_t token = static_cast<int64_t>(i) / kHidden;
    float want = 0;
    for (int k = 0; k < kTopk; ++k) {
      want += kWeights[k] * (x[i] * static_cast<float>(expert_of(rank, token, k) + 1));
    }
    wrong += std::abs(out[i] - want) <= 1e-5F * std::abs(want) ? 0 : 1;
  }
  return wrong;
}

}  // namespace

int main() {
  try {
    auto comm = zbccl::Communicator::from_environment();
    const int64_t tokens = 5 + 3 * comm.rank();  // a different number on every rank
    std::vector<int64_t> topk_idx;
    std::vector<float> weights;
    for (int64_t i = 0; i < tokens * kTopk; ++i) {
      topk_idx.push_back(expert_of(comm.rank(), i / kTopk, static_cast<int>(i % kTopk)));
      weights.push_back(kWeights[i % kTopk]);
    }
    zbccl::Buffer<float> x(static_cast<size_t>(tokens * kHidden));
    for (size_t i = 0; i < x.size(); ++i) x[i] = 1.0F + static_cast<float>(i % 97);
    zbccl::Buffer<float> out(x.size());

    zbccl::Moe moe(comm, kExperts);  // once
    // For each layer and batch: one exchange of counts tells how much comes here.
    zbccl::MoeHandle handle =
        moe.route(zbccl::moe_routing(topk_idx.data(), tokens, kTopk, zbcclMoeExpertMajor));
    const zbcclMoeInfo_t info = handle.info();
    // In registered memory, where the others read the results in place.
    zbccl::Buffer<float> rows(static_cast<size_t>(info.allocated_rows * kHidden));

    zbcclMoeDispatch_t there = zbccl::moe_dispatch();
    there.type = zbcclFloat32;
    there.hidden = kHidden;
    there.x = x.data();
    there.recv_x = rows.data();
    handle.dispatch(there);

    run_experts(info, rows);

    zbcclMoeCombine_t back = zbccl::moe_combine();
    back.type = zbcclFloat32;
    back.hidden = kHidden;
    back.y = rows.data();
    back.topk_weights = weights.data();
    back.out = out.data();
    handle.combine(back);

    const size_t wrong = count_wrong(comm.rank(), x, out);
    std::printf(
        "rank %d of %d: %lld tokens, %lld rows for %d experts, %zu wrong, staged bytes %llu\n",
        comm.rank(), comm.size(), static_cast<long long>(tokens),
        static_cast<long long>(info.num_rows), static_cast<int>(info.num_local_experts), wrong,
        static_cast<unsigned long long>(moe.report().staged_bytes));
    return wrong == 0 ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
