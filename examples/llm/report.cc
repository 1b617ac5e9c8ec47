#include "report.h"

#include <fmt/core.h>

#include <nlohmann/json.hpp>
#include <numeric>

namespace llm {
namespace {

double sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

double mean(const std::vector<double>& values) {
  return sum(values) / static_cast<double>(values.size());
}

// The counters that are added up stay far below 2^53, so a double holds them exactly.
uint64_t total(Parallel& parallel, uint64_t value) {
  return static_cast<uint64_t>(sum(parallel.gather(static_cast<double>(value))));
}

std::string table_row(const std::string& name, const std::string& calls, const std::string& bytes,
                      double microseconds, double mean_microseconds, double share) {
  return fmt::format("  {:<22} {:>7} {:>10} {:>12.1f} {:>12.1f} {:>7.1f} %\n", name, calls, bytes,
                     microseconds, mean_microseconds, 100 * share);
}

}  // namespace

double PhaseReport::compute_seconds() const {
  double rest = seconds;
  for (const Cost& cost : costs) rest -= cost.seconds;
  return rest;
}

double PhaseReport::mean_compute_seconds() const {
  double rest = mean_seconds;
  for (const double collective : mean_collective_seconds) rest -= collective;
  return rest;
}

PhaseReport collect(const std::string& name, const Phase& phase, Parallel& parallel) {
  PhaseReport report{name, phase.tokens, phase.seconds, mean(parallel.gather(phase.seconds)),
                     phase.costs};
  for (int i = 0; i < kNumCollectives; ++i) {
    report.mean_collective_seconds[i] = mean(parallel.gather(phase.costs[i].seconds));
  }
  return report;
}

MemoryReport collect_memory(Parallel& parallel) {
  const Parallel::Memory memory = parallel.memory();
  return {total(parallel, memory.staged_bytes), total(parallel, memory.landing_bytes),
          total(parallel, memory.metadata_bytes), total(parallel, memory.held_bytes)};
}

std::string to_table(const PhaseReport& report) {
  const double tokens = report.tokens;
  const auto per_token = [tokens](double seconds) { return seconds * 1e6 / tokens; };
  std::string text = fmt::format("{}: {} tokens in {:.1f} ms, {:.1f} tokens/s\n", report.name,
                                 report.tokens, report.seconds * 1e3, tokens / report.seconds);
  text += fmt::format("  {:<22} {:>7} {:>10} {:>12} {:>12} {:>9}\n", "", "calls", "bytes",
                      "us/token", "all ranks", "share");
  text += table_row("compute", "", "", per_token(report.compute_seconds()),
                    per_token(report.mean_compute_seconds()),
                    report.compute_seconds() / report.seconds);
  for (int i = 0; i < kNumCollectives; ++i) {
    const Cost& cost = report.costs[i];
    if (cost.calls == 0) continue;
    text += table_row(collective_name(static_cast<Collective>(i)), std::to_string(cost.calls),
                      std::to_string(cost.bytes), per_token(cost.seconds),
                      per_token(report.mean_collective_seconds[i]), cost.seconds / report.seconds);
  }
  text += table_row("total", "", "", per_token(report.seconds), per_token(report.mean_seconds), 1);
  return text;
}

nlohmann::json to_json(const PhaseReport& report) {
  nlohmann::json collectives = nlohmann::json::array();
  for (int i = 0; i < kNumCollectives; ++i) {
    const Cost& cost = report.costs[i];
    if (cost.calls == 0) continue;
    collectives.push_back({{"name", collective_name(static_cast<Collective>(i))},
                           {"calls", cost.calls},
                           {"bytes", cost.bytes},
                           {"seconds", cost.seconds},
                           {"mean_seconds", report.mean_collective_seconds[i]}});
  }
  return {{"name", report.name},
          {"tokens", report.tokens},
          {"seconds", report.seconds},
          {"tokens_per_second", report.tokens / report.seconds},
          {"compute_seconds", report.compute_seconds()},
          {"mean_compute_seconds", report.mean_compute_seconds()},
          {"collectives", collectives}};
}

nlohmann::json to_json(const MemoryReport& report) {
  return {{"staged_bytes", report.staged_bytes},
          {"landing_bytes", report.landing_bytes},
          {"metadata_bytes", report.metadata_bytes},
          {"held_bytes", report.held_bytes}};
}

}  // namespace llm
