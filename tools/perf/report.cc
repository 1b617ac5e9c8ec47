#include "perf/report.h"

#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "measure/text.h"

namespace zbccl::tools {
namespace {

using nlohmann::ordered_json;

struct Bandwidth {
  double algorithm;
  double bus;
};

// GB/s; nothing where no data moves.
std::optional<Bandwidth> bandwidth(const Row& row, const Measurement& measurement) {
  if (!has_data(row.op) || measurement.timing.mean <= 0) return std::nullopt;
  const double algorithm = static_cast<double>(row.bytes) / measurement.timing.mean / 1e3;
  return Bandwidth{algorithm, algorithm * bus_factor(row.op, row.ranks)};
}

std::string main_columns(const Row& row, const std::optional<Measurement>& measurement) {
  if (!measurement) return "  " + none(8) + none(8) + none(8) + none(7);
  std::string text = "  " + number(measurement->timing.mean, 8);
  const auto width = bandwidth(row, *measurement);
  text += width ? number(width->algorithm, 8) + number(width->bus, 8) : none(8) + none(8);
  text += measurement->wrong ? fmt::format("{:>7}", *measurement->wrong) : none(7);
  return text;
}

std::string percentile_columns(const std::optional<Measurement>& measurement) {
  if (!measurement) return "  " + none(9) + none(9);
  return "  " + number(measurement->timing.p50, 9) + number(measurement->timing.p99, 9);
}

ordered_json to_json(const Row& row, const std::optional<Measurement>& measurement) {
  if (!measurement) return nullptr;
  const auto width = bandwidth(row, *measurement);
  ordered_json result = {{"time_us", measurement->timing.mean},
                         {"p50_us", measurement->timing.p50},
                         {"p99_us", measurement->timing.p99},
                         {"algbw", nullptr},
                         {"busbw", nullptr},
                         {"nwrong", nullptr}};
  if (width) result["algbw"] = width->algorithm;
  if (width) result["busbw"] = width->bus;
  if (measurement->wrong) result["nwrong"] = *measurement->wrong;
  return result;
}

const char* memory_name(const PerfOptions& options) {
  if (options.device == Device::kHost) return options.unregistered ? "unregistered" : "registered";
  switch (options.cuda.memory) {
    case DeviceMemoryKind::kPool: return "pool";
    case DeviceMemoryKind::kPlain: return "cudaMalloc";
    case DeviceMemoryKind::kRegistered: return "cudaMalloc, registered";
  }
  return "unknown";
}

ordered_json to_json(const Row& row, const PerfOptions& options, const DeviceNames& names) {
  const bool cuda = options.device == Device::kCuda;
  ordered_json result = {{"op", op_name(row.op)},
                         {"device", cuda ? "cuda" : "host"},
                         {"ranks", row.ranks},
                         {"dtype", nullptr},
                         {"redop", nullptr},
                         {"size", row.bytes},
                         {"fresh", row.fresh},
                         {"algorithm", row.algorithm},
                         {"out_of_place", to_json(row, row.out_of_place)},
                         {"in_place", to_json(row, row.in_place)},
                         {"staged_bytes", row.staged_bytes},
                         {"landing_bytes", row.landing_bytes},
                         {"held_bytes", row.held_bytes},
                         {"init_ms", row.init_ms},
                         {"compare", nullptr}};
  if (has_data(row.op)) result["dtype"] = zbcclTypeName(row.type);
  if (reduces(row.op)) result["redop"] = zbcclOpName(row.redop);
  if (!row.quant.empty()) result["quant"] = row.quant;
  if (row.error) result["error"] = {{"rms", row.error->rms}, {"largest", row.error->largest}};
  if (row.compare) {
    result["compare"] = {{"name", options.compare},
                         {"time_us", row.compare->mean},
                         {"p50_us", row.compare->p50},
                         {"p99_us", row.compare->p99}};
  }
  if (cuda) {
    result["device_held_bytes"] = row.device_held_bytes;
    result["graph"] = options.cuda.graph;
    result["calls_in_sample"] = row.calls_in_sample;
    result["memory"] = memory_name(options);
    result["one_gpu"] = options.cuda.one_gpu;
    result["max_blocks"] = options.cuda.max_blocks;
    result["gpu"] = names.gpu;
    result["cuda_driver"] = names.driver;
    result["cuda_runtime"] = names.runtime;
    result["nccl"] = names.nccl.empty() ? ordered_json() : ordered_json(names.nccl);
  }
  return result;
}

std::string iterations_text(const PerfOptions& options) {
  return options.iterations > 0 ? fmt::format("{}", options.iterations) : "by time";
}

double median(const Row& row) {
  const auto& own = row.out_of_place ? row.out_of_place : row.in_place;
  return own ? own->timing.p50 : 0;
}

}  // namespace

void Report::print_header() const {
  const bool cuda = options_.device == Device::kCuda;
  print_line(fmt::format(
      "# zbccl {}.{}.{} {}: device {}, ranks {}, iterations {}, warm-up {}, check {}, memory {}, "
      "data {}{}",
      ZBCCL_MAJOR, ZBCCL_MINOR, ZBCCL_PATCH, op_name(options_.op), cuda ? "cuda" : "host", ranks_,
      iterations_text(options_), options_.warmup, options_.check ? 1 : 0, memory_name(options_),
      options_.fresh ? "fresh" : "unchanging", is_fused(options_.op) ? ", quant " + quant() : ""));
  if (cuda) {
    print_line(fmt::format("# {}, driver for CUDA {}, runtime {}{}; {}{}", names_.gpu,
                           names_.driver, names_.runtime,
                           names_.nccl.empty() ? "" : ", NCCL " + names_.nccl,
                           options_.cuda.graph ? "replays of a graph" : "launches",
                           options_.cuda.one_gpu ? ", all ranks on one GPU" : ""));
  }
  print_line("#");
  print_columns();
}

std::string Report::quant() const {
  return quant_name(spec_of(options_, options_.types.front(), zbcclSum));
}

void Report::print_columns() const {
  const bool compares = !options_.compare.empty();
  const bool cuda = options_.device == Device::kCuda;
  const auto more = [&](const char* held, const std::string& compared) {
    return (cuda ? fmt::format("{:>12}", held) : "") + (compares ? "  " + compared : "");
  };
  print_line(fmt::format("#{:>50}{:^31}  {:^31}  {:^18}  {:^18}  {:>12}{:>12}{}", "",
                         "out-of-place", "in-place", "out-of-place", "in-place", "", "staged",
                         more("held", fmt::format("{:^28}", options_.compare))));
  print_line(fmt::format(
      "#{:>11}{:>13}{:>9}{:>9}{:>6}    {:>8}{:>8}{:>8}{:>7}  {:>8}{:>8}{:>8}{:>7}  {:>9}{:>9}  "
      "{:>9}{:>9}  {:>12}{:>12}{}",
      "size", "count", "type", "redop", "root", "time", "algbw", "busbw", "#wrong", "time", "algbw",
      "busbw", "#wrong", "p50", "p99", "p50", "p99", "algorithm", "bytes",
      more("bytes", fmt::format("{:>9}{:>9}{:>10}", "time", "p50", "p50 ratio"))));
  print_line(fmt::format(
      "#{:>11}{:>13}{:>9}{:>9}{:>6}    {:>8}{:>8}{:>8}{:>7}  {:>8}{:>8}{:>8}{:>7}  {:>9}{:>9}  "
      "{:>9}{:>9}  {:>12}{:>12}{}",
      "(B)", "(elements)", "", "", "", "(us)", "(GB/s)", "(GB/s)", "", "(us)", "(GB/s)", "(GB/s)",
      "", "(us)", "(us)", "(us)", "(us)", "", "(a call)",
      more("(a GPU)", fmt::format("{:>9}{:>9}{:>10}", "(us)", "(us)", "to zbccl"))));
}

void Report::add(const Row& row) {
  rows_.push_back(row);
  std::string text = fmt::format("{:>12}{:>13}{:>9}{:>9}{:>6}  ", row.bytes, row.count,
                                 has_data(row.op) ? zbcclTypeName(row.type) : "none",
                                 reduces(row.op) ? zbcclOpName(row.redop) : "none",
                                 has_root(row.op) ? row.root : -1);
  text += main_columns(row, row.out_of_place) + main_columns(row, row.in_place);
  text += percentile_columns(row.out_of_place) + percentile_columns(row.in_place);
  text += fmt::format("  {:>12}{:>12}", row.algorithm, row.staged_bytes);
  if (options_.device == Device::kCuda) text += fmt::format("{:>12}", row.device_held_bytes);
  if (!options_.compare.empty()) {
    if (row.compare && median(row) > 0) {
      text += "  " + number(row.compare->mean, 9) + number(row.compare->p50, 9) +
              number(row.compare->p50 / median(row), 9) + "x";
    } else {
      text += "  " + none(9) + none(9) + none(10);
    }
  }
  print_line(text);
  if (row.error) {
    print_line(
        fmt::format("# error of the codes, relative to the sums: {:.3g} root mean square, "
                    "{:.3g} at most",
                    row.error->rms, row.error->largest));
  }
}

void Report::print_footer(double init_ms) const {
  uint64_t wrong = 0;
  double sum = 0;
  int measured = 0;
  Row most;
  for (const Row& row : rows_) {
    for (const auto* measurement : {&row.out_of_place, &row.in_place}) {
      if (!*measurement) continue;
      wrong += (*measurement)->wrong.value_or(0);
      if (const auto width = bandwidth(row, **measurement)) {
        sum += width->bus;
        ++measured;
      }
    }
    most.staged_bytes = std::max(most.staged_bytes, row.staged_bytes);
    most.landing_bytes = std::max(most.landing_bytes, row.landing_bytes);
    most.held_bytes = std::max(most.held_bytes, row.held_bytes);
    most.device_held_bytes = std::max(most.device_held_bytes, row.device_held_bytes);
  }
  if (options_.check) {
    print_line(fmt::format("# Out of bounds values : {} {}", wrong, wrong == 0 ? "OK" : "FAILED"));
  } else {
    print_line("# Out of bounds values : not checked (--check)");
  }
  if (measured > 0) print_line(fmt::format("# Avg bus bandwidth    : {:.4g}", sum / measured));
  print_line(fmt::format("# Staged bytes a call  : {} at most", most.staged_bytes));
  print_line(fmt::format("# Landing bytes a call : {} at most", most.landing_bytes));
  print_line(fmt::format("# Held bytes           : {} at most, all ranks", most.held_bytes));
  if (options_.device == Device::kCuda) {
    print_line(fmt::format("# Held on a GPU        : {} at most", most.device_held_bytes));
  }
  print_line(fmt::format("# Initialisation       : {:.1f} ms, slowest rank", init_ms));
}

void Report::write_json() const {
  if (options_.json_path.empty()) return;
  ordered_json rows = ordered_json::array();
  for (const Row& row : rows_) rows.push_back(to_json(row, options_, names_));
  tools::write_json(options_.json_path, rows);
}

}  // namespace zbccl::tools
