#include "parallel.h"

#include <algorithm>

namespace llm {

const char* collective_name(Collective which) {
  switch (which) {
    case Collective::kAttention: return "all_reduce attention";
    case Collective::kExperts: return "all_reduce experts";
    case Collective::kLogits: return "all_gather logits";
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

template <typename F>
void Parallel::timed(Collective which, size_t count, F&& call) {
  if (!communicator_) return;
  const auto start = std::chrono::steady_clock::now();
  call();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  account(which, count, elapsed.count());
}

void Parallel::account(Collective which, size_t count, double seconds) {
  Cost& cost = costs_[static_cast<size_t>(which)];
  cost.calls += 1;
  cost.bytes += count * sizeof(float);
  cost.seconds += seconds;
}

void Parallel::all_reduce(Collective which, std::span<float> values) {
  timed(which, values.size(), [&] { communicator_->all_reduce(values); });
}

void Parallel::all_gather(Collective which, std::span<float> values, size_t count) {
  timed(which, count, [&] {
    const std::span<const float> mine = values.subspan(static_cast<size_t>(rank_) * count, count);
    communicator_->all_gather(mine, values.first(static_cast<size_t>(size_) * count));
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
