#include "parallel.h"

#include <algorithm>
#include <numeric>

namespace llm {

const char* collective_name(Collective which) {
  switch (which) {
    case Collective::kAttention: return "all_reduce attention";
    case Collective::kExperts: return "all_reduce experts";
    case Collective::kLogits: return "all_gather logits";
    case Collective::kDispatch: return "moe dispatch";
    case Collective::kCombine: return "moe combine";
    case Collective::kTokens: return "all_gather tokens";
  }
  return "unknown";
}

Costs operator-(const Costs& after, const Costs& before) {
  Costs difference;
  for (int i = 0; i < kNumCollectives; ++i) {
    difference[i] = {after[i].calls - before[i].calls, after[i].bytes - before[i].bytes,
                     after[i].seconds - before[i].seconds};
  }
  return difference;
}

Parallel::Parallel(std::optional<zbccl::Communicator> communicator)
    : communicator_(std::move(communicator)) {
  if (communicator_) {
    rank_ = communicator_->rank();
    size_ = communicator_->size();
  }
}

Parallel Parallel::from_environment(int device) {
  zbcclConfig_t config = ZBCCL_CONFIG_INITIALIZER;
  config.device = device;
  return Parallel(zbccl::Communicator::from_environment(&config));
}

void Parallel::account(Collective which, size_t count, double seconds) {
  Cost& cost = costs_[static_cast<size_t>(which)];
  cost.calls += 1;
  cost.bytes += count * sizeof(float);
  cost.seconds += seconds;
}

void Parallel::all_reduce(Collective which, std::span<float> values) {
  if (!communicator_) return;
  timed(which, values.size(), [&] { communicator_->all_reduce(values); });
}

void Parallel::all_gather(Collective which, std::span<float> values, size_t count) {
  if (!communicator_) return;
  timed(which, count, [&] {
    const std::span<const float> mine = values.subspan(static_cast<size_t>(rank_) * count, count);
    communicator_->all_gather(mine, values.first(static_cast<size_t>(size_) * count));
  });
}

void Parallel::all_gather_v(Collective which, std::span<float> values,
                            std::span<const size_t> counts) {
  if (!communicator_) return;
  const auto rank = static_cast<size_t>(rank_);
  const size_t begin = std::accumulate(counts.begin(), counts.begin() + rank_, size_t{0});
  timed(which, counts[rank], [&] {
    communicator_->all_gather_v(values.data() + begin, values.data(), counts, {}, zbcclFloat32);
  });
}

std::vector<double> Parallel::gather(double value) {
  if (!communicator_) return {value};
  const zbccl::Buffer<double> values(static_cast<size_t>(size_));
  values[static_cast<size_t>(rank_)] = value;
  communicator_->all_gather(std::span<const double>(&values[static_cast<size_t>(rank_)], 1),
                            values.span());
  return {values.begin(), values.end()};
}

bool Parallel::all_ok(bool ok) {
  const std::vector<double> verdicts = gather(ok ? 1.0 : 0.0);
  return std::all_of(verdicts.begin(), verdicts.end(), [](double value) { return value == 1.0; });
}

Parallel::Memory Parallel::memory() const {
  Memory memory;
  memory.held_bytes = zbccl::memory_report().held_bytes;
  if (communicator_) {
    const zbcclCommStats_t stats = communicator_->stats();
    memory.staged_bytes = stats.staged_bytes;
    memory.landing_bytes = stats.landing_bytes;
    memory.metadata_bytes = stats.metadata_bytes;
  }
  return memory;
}

}  // namespace llm
