// This rank's place in the group, the registered memory that collectives work on, and what they
// cost. With expert_parallel the only part of the engine that talks to zbccl. One thread.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>
#include <zbccl/zbccl.hpp>

namespace llm {

enum class Collective { kAttention, kExperts, kLogits, kDispatch, kCombine, kTokens };
inline constexpr int kNumCollectives = 6;
const char* collective_name(Collective which);  // "all_reduce attention", ...

struct Cost {
  uint64_t calls = 0;
  uint64_t bytes = 0;  // count * element size, as the caller gives them
  double seconds = 0;  // in the call, waiting for the other ranks included
};
using Costs = std::array<Cost, kNumCollectives>;
Costs operator-(const Costs& after, const Costs& before);

class Parallel {
 public:
  // One rank that needs no group.
  static Parallel alone() { return Parallel(std::nullopt); }
  // The job that the environment describes; one rank where it describes none.
  static Parallel from_environment() { return Parallel(zbccl::Communicator::from_environment()); }
  // The same with this rank's CUDA device.
  static Parallel from_environment(int device);
  explicit Parallel(std::optional<zbccl::Communicator> communicator);

  int rank() const { return rank_; }
  int size() const { return size_; }
  bool has_group() const { return communicator_.has_value(); }
  const zbccl::Communicator& group() const { return *communicator_; }
  // For calls on a stream; null without a group. What they cost is accounted for by the caller.
  zbcclComm_t communicator() const { return communicator_ ? communicator_->get() : nullptr; }
  void account(Collective which, size_t count, double seconds);

  // Memory from zbccl's pool, so that peers read and write it in place.
  static zbccl::Buffer<float> allocate(size_t count) {
    return zbccl::Buffer<float>(std::max<size_t>(count, 1));
  }

  // Sums over the ranks, in place; a no-op for one rank without a group.
  void all_reduce(Collective which, std::span<float> values);
  // In place: this rank's part lies at rank * count in `values`, which holds size * count.
  void all_gather(Collective which, std::span<float> values, size_t count);

  // The same with a part of its own size for each rank; values of all ranks lie one behind the
  // other.
  void all_gather_v(Collective which, std::span<float> values, std::span<const size_t> counts);

  // Accounts for the time that `call` takes.
  template <typename F>
  void timed(Collective which, size_t count, F&& call) {
    const auto start = std::chrono::steady_clock::now();
    call();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    account(which, count, elapsed.count());
  }

  const Costs& costs() const { return costs_; }

  // The values of every rank, in rank order. Not counted as a cost.
  std::vector<double> gather(double value);
  // True on every rank if `ok` is true on every rank.
  bool all_ok(bool ok);

  struct Memory {
    uint64_t staged_bytes = 0;  // of this rank's communicator
    uint64_t landing_bytes = 0;
    uint64_t metadata_bytes = 0;
    uint64_t held_bytes = 0;  // of this process
  };
  Memory memory() const;

 private:
  std::optional<zbccl::Communicator> communicator_;
  int rank_ = 0;
  int size_ = 1;
  Costs costs_;
};

}  // namespace llm
