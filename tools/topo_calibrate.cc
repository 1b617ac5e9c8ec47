// `zbccl topo calibrate`: see topo_calibrate.h.
#include "topo_calibrate.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <utility>

#include "calibrate/device_measure.h"
#include "calibrate/job.h"
#include "calibrate/measure.h"
#include "calibrate/report.h"
#include "calibrate/table.h"
#include "command.h"
#include "perf/cuda_perf.h"
#include "topology/machine.h"
#include "topology/machine_key.h"

namespace zbccl::tools {
namespace {

namespace fs = std::filesystem;

constexpr int kMostCores = 64;
constexpr int kMostGpus = 16;
constexpr double kHostSeconds = 0.05;
constexpr double kCudaSeconds = 0.02;

bool on_gpus(const CalibrateOptions& options) { return options.device == "cuda"; }

double seconds_of(const CalibrateOptions& options) {
  if (options.seconds > 0) return options.seconds;
  return on_gpus(options) ? kCudaSeconds : kHostSeconds;
}

int run_rank(const CalibrateOptions& options) {
  return run_measuring_rank(options.rank_folder, [&](const std::string& folder) {
    if (on_gpus(options)) return to_json(measure_device_rank(seconds_of(options)));
    return to_json(measure_rank({options.steady, seconds_of(options)}, folder));
  });
}

// Throws UsageError where there are no GPUs for so many ranks.
std::vector<int> rank_counts(const CalibrateOptions& options) {
  const bool gpus = on_gpus(options);
  const int cores = std::min(static_cast<int>(topology::usable_cpus().size()), kMostCores);
  if (gpus) set_cuda_environment({});
  const int most = gpus ? std::min(count_gpus({}), kMostGpus) : std::max(8, cores);
  std::vector<int> counts = options.ranks;
  if (counts.empty()) {
    for (int ranks = 2; ranks <= most; ranks *= 2) counts.push_back(ranks);
  }
  std::sort(counts.begin(), counts.end());
  counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  if (gpus && (counts.empty() || counts.back() > most)) {
    throw UsageError(fmt::format(
        "topo calibrate --device cuda: {} GPU(s) can be used here; every rank needs one, and there "
        "are at least two ranks",
        most));
  }
  return counts;
}

std::string measured_with(const CalibrateOptions& options, int ranks) {
  std::vector<std::string> arguments = {"--seconds", fmt::format("{}", seconds_of(options)),
                                        "--device", options.device};
  if (options.steady) arguments.emplace_back("--steady");
  std::fflush(stdout);
  return run_measuring_job(ranks, arguments);
}

// Fits the host's entries of the table; returns everything measured, as JSON.
std::vector<std::string> calibrate_host(const CalibrateOptions& options,
                                        const std::vector<int>& counts, plan::TuningTable& table) {
  fmt::print("data: {}\n", options.steady
                               ? "unchanging (the caches keep every line where it is)"
                               : "fresh (every rank writes its input before each call and reads "
                                 "its output after it)");
  std::vector<std::string> all;
  table.host.clear();
  for (const int ranks : counts) {
    all.push_back(measured_with(options, ranks));
    table.host.push_back(report_host(parse_measured(all.back())));
  }
  return all;
}

// The same for GPUs. Entries for other numbers of ranks stay, if they are of the same model.
std::vector<std::string> calibrate_gpus(const CalibrateOptions& options,
                                        const std::vector<int>& counts, plan::TuningTable& table) {
  std::vector<std::string> all;
  for (const int ranks : counts) {
    all.push_back(measured_with(options, ranks));
    const DeviceMeasured measured = parse_device_measured(all.back());
    if (table.gpu != measured.gpu) table.device.clear();
    table.gpu = measured.gpu;
    std::erase_if(table.device, [&](const auto& entry) { return entry.ranks == ranks; });
    table.device.push_back(report_device(measured));
  }
  std::sort(table.device.begin(), table.device.end(),
            [](const auto& a, const auto& b) { return a.ranks < b.ranks; });
  return all;
}

// Before half a minute is spent.
void check_writable(const std::string& path) {
  std::error_code error;
  const fs::path folder = fs::path(path).parent_path();
  if (!folder.empty()) fs::create_directories(folder, error);
  const std::string where = folder.empty() ? "." : folder.string();
  if (error || access(where.c_str(), W_OK) != 0 || fs::is_directory(path)) {
    throw UsageError(
        fmt::format("topo calibrate: {} cannot be written; name another file with --output", path));
  }
}

void write_measured(const std::string& path, const std::vector<std::string>& all) {
  std::ofstream file(path, std::ios::trunc);
  file << "[";
  for (size_t i = 0; i < all.size(); ++i) file << (i > 0 ? ",\n" : "") << all[i];
  file << "]\n";
  file.close();
  if (!file) throw std::runtime_error(fmt::format("--json {}: the file cannot be written", path));
}

// What the file holds of the other device, if it is of this machine.
plan::TuningTable table_before(const std::string& path, const std::string& machine) {
  auto table = read_tuning(path, machine);
  plan::TuningTable before = table.ok() ? std::move(table).value() : plan::TuningTable();
  before.machine = machine;
  return before;
}

}  // namespace

int calibrate(const CalibrateOptions& options) {
  if (!options.rank_folder.empty()) return run_rank(options);
  const std::string path = options.output.empty() ? tuning_path() : options.output;
  if (path.empty() && !options.dry_run) {
    throw UsageError(
        "topo calibrate: neither HOME nor ZBCCL_TUNING_FILE is set; name a file with "
        "--output");
  }
  if (on_gpus(options) && options.steady) {
    throw UsageError("topo calibrate: --steady is for --device host");
  }
  const std::vector<int> counts = rank_counts(options);
  if (!options.dry_run) check_writable(path);
  plan::TuningTable table = table_before(path, topology::machine_key());
  fmt::print("machine: {}\n", table.machine);
  const std::vector<std::string> all = on_gpus(options) ? calibrate_gpus(options, counts, table)
                                                        : calibrate_host(options, counts, table);
  if (!options.json_path.empty()) write_measured(options.json_path, all);
  if (options.dry_run) {
    fmt::print("\nnothing was written (--dry-run); the table would be\n{}", plan::to_json(table));
    return kSuccess;
  }
  write_tuning(path, table);
  fmt::print("\n{}", describe_tuning(path, table.machine));
  return kSuccess;
}

}  // namespace zbccl::tools
