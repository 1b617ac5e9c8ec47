#include "moe_perf/report.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "measure/text.h"
#include "moe_perf/memory.h"

namespace zbccl::tools {
namespace {

using nlohmann::ordered_json;

const char* mode_name(const MoeOptions& options) { return options.low_latency ? "ll" : "normal"; }
const char* routing_name(const MoeOptions& options) {
  return options.skewed ? "skewed" : "uniform";
}

ordered_json to_json(const MoeRow& row, const MoeOptions& options) {
  const MoeShape& shape = options.shape;
  ordered_json result = {{"mode", mode_name(options)},
                         {"phase", phase_name(row.phase)},
                         {"dtype", zbcclTypeName(shape.type)},
                         {"ranks", shape.ranks},
                         {"device", options.cuda ? "cuda" : "host"},
                         {"tokens", row.tokens},
                         {"hidden", shape.hidden},
                         {"experts", shape.experts},
                         {"topk", shape.topk},
                         {"layout", layout_name(shape.layout)},
                         {"quant", quant_name(shape)},
                         {"routing", routing_name(options)},
                         {"cached", options.cached},
                         {"graph", row.graph},
                         {"time_us", row.timing.mean},
                         {"p50_us", row.timing.p50},
                         {"p99_us", row.timing.p99},
                         {"bytes", row.bytes},
                         {"nwrong", nullptr},
                         {"staged_bytes", row.staged_bytes},
                         {"landing_bytes", row.landing_bytes},
                         {"metadata_bytes", row.metadata_bytes},
                         {"held_bytes", row.held_bytes},
                         {"sms", row.sms},
                         {"compare", nullptr}};
  if (row.wrong) result["nwrong"] = *row.wrong;
  if (row.compare) {
    result["compare"] = {{"name", options.compare},
                         {"time_us", row.compare->mean},
                         {"p50_us", row.compare->p50},
                         {"p99_us", row.compare->p99}};
  }
  return result;
}

std::string bytes_text(uint64_t bytes) {
  constexpr uint64_t kKiB = 1 << 10;
  constexpr uint64_t kMiB = 1 << 20;
  if (bytes < 10 * kMiB) {
    return fmt::format("{:.1f} KiB", static_cast<double>(bytes) / kKiB);
  }
  return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / kMiB);
}

}  // namespace

const char* phase_name(MoePhase phase) {
  switch (phase) {
    case MoePhase::kDispatch: return "dispatch";
    case MoePhase::kCombine: return "combine";
    case MoePhase::kBoth: return "both";
  }
  return "unknown";
}

void MoeTable::print_header() const {
  const MoeShape& shape = options_.shape;
  const std::string iterations =
      options_.iterations > 0 ? fmt::format("{}", options_.iterations) : "by time";
  print_line(fmt::format(
      "# zbccl {}.{}.{} moe: device {}, ranks {}, mode {}, hidden {}, experts {}, top-{}, {}, "
      "quantization {}",
      ZBCCL_MAJOR, ZBCCL_MINOR, ZBCCL_PATCH, options_.cuda ? "cuda" : "host", shape.ranks,
      mode_name(options_), shape.hidden, shape.experts, shape.topk, zbcclTypeName(shape.type),
      quant_name(shape)));
  print_line(fmt::format(
      "# layout {}{}, routing {}, {}, {}, memory {}, iterations {}, warm-up {}, check {}",
      layout_name(shape.layout), shape.pre_reduce ? ", results added up first" : "",
      routing_name(options_), options_.cached ? "handle kept" : "routed anew by each dispatch",
      options_.two_phases ? "two phases" : "one phase",
      options_.unregistered ? "unregistered" : "registered", iterations, options_.warmup,
      options_.check ? 1 : 0));
  print_line("#");
  const bool compares = !options_.compare.empty();
  print_line(
      fmt::format("#{:>9}{:>10}{:>13}{:>10}{:>10}{:>10}{:>8}{:>8}{:>10}{}", "tokens", "phase",
                  "bytes", "time", "p50", "p99", "p50 bw", "#wrong", "staged",
                  compares ? fmt::format("{:>10}{:>12}", options_.compare, "p50 ratio") : ""));
  print_line(fmt::format("#{:>9}{:>10}{:>13}{:>10}{:>10}{:>10}{:>8}{:>8}{:>10}{}", "(a rank)", "",
                         "(in a rank)", "(us)", "(us)", "(us)", "(GB/s)", "", "(B)",
                         compares ? fmt::format("{:>10}{:>12}", "p50 (us)", "to zbccl") : ""));
}

void MoeTable::add(const MoeRow& row) {
  rows_.push_back(row);
  const Timing& timing = row.timing;
  const double bandwidth = timing.p50 > 0 ? static_cast<double>(row.bytes) / timing.p50 / 1e3 : 0;
  std::string text =
      fmt::format("{:>10}{:>10}{:>13}", row.tokens, phase_name(row.phase), row.bytes) +
      number(timing.mean, 10) + number(timing.p50, 10) + number(timing.p99, 10) +
      number(bandwidth, 8) + (row.wrong ? fmt::format("{:>8}", *row.wrong) : none(8)) +
      fmt::format("{:>10}", row.staged_bytes);
  if (!options_.compare.empty()) {
    text += row.compare && timing.p50 > 0
                ? number(row.compare->p50, 10) + number(row.compare->p50 / timing.p50, 11) + "x"
                : none(10) + none(12);
  }
  print_line(text);
}

void MoeTable::print_footer() const {
  uint64_t wrong = 0;
  MoeRow most;
  for (const MoeRow& row : rows_) {
    wrong += row.wrong.value_or(0);
    most.staged_bytes = std::max(most.staged_bytes, row.staged_bytes);
    most.landing_bytes = std::max(most.landing_bytes, row.landing_bytes);
    most.metadata_bytes = std::max(most.metadata_bytes, row.metadata_bytes);
    most.held_bytes = std::max(most.held_bytes, row.held_bytes);
    most.tokens = std::max(most.tokens, row.tokens);
  }
  if (options_.check) {
    print_line(fmt::format("# Out of bounds values : {} {}", wrong, wrong == 0 ? "OK" : "FAILED"));
  } else {
    print_line("# Out of bounds values : not checked (--check)");
  }
  print_line(fmt::format("# Staged bytes a call  : {} at most, landing {}", most.staged_bytes,
                         most.landing_bytes));
  print_line(
      fmt::format("# Memory to communicate: {} of metadata on a rank, {} held, for {} tokens",
                  bytes_text(most.metadata_bytes), bytes_text(most.held_bytes), most.tokens));
  MoeShape shape = options_.shape;
  shape.tokens = most.tokens;
  const PeerMemory peer = deep_ep_memory(shape);
  print_line(
      fmt::format("# DeepEP's formulas    : version 1 normal {} (20 SMs), low latency {}; version "
                  "2 at least {}",
                  bytes_text(peer.normal), bytes_text(peer.low_latency), bytes_text(peer.elastic)));
}

void MoeTable::write_json() const {
  if (options_.json_path.empty()) return;
  ordered_json rows = ordered_json::array();
  for (const MoeRow& row : rows_) rows.push_back(to_json(row, options_));
  tools::write_json(options_.json_path, rows);
}

}  // namespace zbccl::tools
