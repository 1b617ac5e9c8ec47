// What a run cost, as a table for people and as JSON. Collective where it says so.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "generate.h"
#include "parallel.h"

namespace llm {

// One phase's time: this rank's, and the mean over the ranks.
struct PhaseReport {
  std::string name;
  int tokens = 0;
  double seconds = 0;
  double mean_seconds = 0;
  Costs costs;
  std::array<double, kNumCollectives> mean_collective_seconds = {};

  double compute_seconds() const;
  double mean_compute_seconds() const;
};

struct MemoryReport {
  uint64_t staged_bytes = 0;  // sums over the ranks
  uint64_t landing_bytes = 0;
  uint64_t metadata_bytes = 0;
  uint64_t held_bytes = 0;
};

// Collective: every rank gives the same phase of its run.
PhaseReport collect(const std::string& name, const Phase& phase, Parallel& parallel);
// Collective.
MemoryReport collect_memory(Parallel& parallel);

std::string to_table(const PhaseReport& report);
nlohmann::json to_json(const PhaseReport& report);
nlohmann::json to_json(const MemoryReport& report);

}  // namespace llm
