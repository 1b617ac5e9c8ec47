// What the ranks of one moe object show each other for a call: one board for each rank, in that
// rank's pool, mapped by all. One thread at a time.
//
// A board has two slots, which calls use by turns (the parity of the team's sequence): a rank
// writes a slot for operation e only after it has finished e - 1, which all had entered, so all had
// finished e - 2, the last that read this slot. The team's entry orders writes before reads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/status.h"
#include "collectives/collective.h"
#include "transport/control_block.h"

namespace zbccl::moe {

inline constexpr size_t kNumTerms = 6;

struct Slot {
  uint32_t wrong;  // the rank's own arguments are, and how; the rest is then not set
  char how[228];
  int64_t terms[kNumTerms];  // that the ranks must agree on
  int64_t own[8];
  transport::BufferRef refs[4];
};

// What a rank says of the weights of a call.
inline constexpr int64_t kGiven = 1;
inline constexpr int64_t kWanted = 2;

class Board {
 public:
  Board() = default;
  Board(const Board&) = delete;
  Board& operator=(const Board&) = delete;

  // Makes this rank's board, before the operation that shows it. It lives as long as the team's
  // control memory.
  Status make(transport::Team& team, size_t num_experts);
  // In that operation, once entered: maps the others'.
  Status map(transport::Team& team);
  transport::BufferRef ref() const { return ref_; }
  size_t bytes() const { return bytes_; }

  // This rank's slot for the operation to be entered next.
  Slot& next(const transport::Team& team) { return slot(own_, team.sequence() + 1); }
  std::span<int32_t> next_counts(const transport::Team& team) {
    return {counts(own_, team.sequence() + 1), num_experts_};
  }
  std::span<int32_t> next_rank_counts(const transport::Team& team) {
    return {counts(own_, team.sequence() + 1) + num_experts_, bases_.size()};
  }
  // Bytes that are not 0 for the ranks that this one has masked.
  std::span<uint8_t> next_mask(const transport::Team& team) {
    return {mask(own_, team.sequence() + 1), bases_.size()};
  }

  // Enters `operation` with the next slot, which bears `local` if that is an error, and compares:
  // an error on any rank, or terms (named by `names`) that differ,
  // are an error on every rank.
  Status enter(transport::Team& team, Operation operation, int32_t object, const Status& local,
               std::initializer_list<const char*> names, Milliseconds timeout);

  // Of the operation that was entered.
  const Slot& shown(const transport::Team& team, int rank) const {
    return slot(bases_[static_cast<size_t>(rank)], team.sequence());
  }
  const int32_t* shown_counts(const transport::Team& team, int rank) const {
    return counts(bases_[static_cast<size_t>(rank)], team.sequence());
  }
  const int32_t* shown_rank_counts(const transport::Team& team, int rank) const {
    return shown_counts(team, rank) + num_experts_;
  }
  // A rank that wants weights, and one that has rows and gives none; every rank finds the same. The
  // slots' `own` hold those flags at `flags`, and the number of rows at `rows`.
  std::optional<std::pair<int, int>> missing_weights(const transport::Team& team, size_t flags,
                                                     size_t rows) const;
  const uint8_t* shown_mask(const transport::Team& team, int rank) const {
    return mask(bases_[static_cast<size_t>(rank)], team.sequence());
  }

 private:
  // Both slots stand first, so that their places do not depend on the number of experts.
  static Slot& slot(std::byte* base, uint32_t sequence) {
    return reinterpret_cast<Slot*>(base)[sequence & 1U];
  }
  int32_t* counts(std::byte* base, uint32_t sequence) const {
    return reinterpret_cast<int32_t*>(base + 2 * sizeof(Slot) + (sequence & 1U) * tables_bytes());
  }
  uint8_t* mask(std::byte* base, uint32_t sequence) const {
    return reinterpret_cast<uint8_t*>(counts(base, sequence) + num_experts_ + bases_.size());
  }
  size_t tables_bytes() const {
    constexpr size_t kUnit = 128;
    const size_t used = sizeof(int32_t) * (num_experts_ + bases_.size()) + bases_.size();
    return (used + kUnit - 1) / kUnit * kUnit;
  }
  Status compare(const transport::Team& team, Operation operation,
                 std::initializer_list<const char*> names) const;

  size_t num_experts_ = 0;
  size_t bytes_ = 0;
  transport::BufferRef ref_;
  std::byte* own_ = nullptr;
  std::vector<std::byte*> bases_;
};

}  // namespace zbccl::moe
