// What `zbccl moe` found: the table for people and the JSON rows. One thread, on rank 0.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "measure/series.h"
#include "moe_perf/options.h"

namespace zbccl::tools {

enum class MoePhase { kDispatch, kCombine, kBoth };
inline constexpr MoePhase kMoePhases[] = {MoePhase::kDispatch, MoePhase::kCombine, MoePhase::kBoth};
const char* phase_name(MoePhase phase);

struct MoeRow {
  MoePhase phase = MoePhase::kDispatch;
  int64_t tokens = 0;
  Timing timing;
  uint64_t bytes = 0;  // rows and scales that the busiest rank takes in, its own included
  std::optional<uint64_t> wrong;  // elements on all ranks; none without --check
  uint64_t staged_bytes = 0;      // of one call, all ranks together
  uint64_t landing_bytes = 0;     // the same
  uint64_t metadata_bytes = 0;    // of one rank, the most
  uint64_t held_bytes = 0;        // the same
  int sms = 0;                    // thread blocks of a call, 0 on host memory
  bool graph = false;             // calls were replayed by graphs
  std::optional<Timing> compare;
};

class MoeTable {
 public:
  explicit MoeTable(const MoeOptions& options) : options_(options) {}

  void print_header() const;
  void add(const MoeRow& row);  // prints it too
  void print_footer() const;
  // Throws std::runtime_error where the file cannot be written.
  void write_json() const;

 private:
  const MoeOptions& options_;
  std::vector<MoeRow> rows_;
};

}  // namespace zbccl::tools
