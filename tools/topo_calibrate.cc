#include "topo_calibrate.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "calibrate/fit.h"
#include "calibrate/measure.h"
#include "calibrate/table.h"
#include "command.h"
#include "launch/launcher.h"
#include "launch/program.h"
#include "topology/machine.h"
#include "topology/machine_key.h"

namespace zbccl::tools {
namespace {

namespace fs = std::filesystem;

constexpr int kMostCores = 64;
constexpr uint64_t kNever = uint64_t{1} << 40;
// Stores past the cache disturb nobody's cache, but have to earn their place.
constexpr double kStreamMargin = 0.05;
constexpr const char* kResult = "measured.json";

// A folder of ours under the system's temporary one, taken away at the end.
class Folder {
 public:
  Folder() : path_((fs::temp_directory_path() / "zbccl-calibrate-XXXXXX").string()) {
    if (mkdtemp(path_.data()) == nullptr) {
      throw std::runtime_error(path_ +
                               " cannot be made: set TMPDIR to a folder that can be written");
    }
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::vector<int> rank_counts(const CalibrateOptions& options) {
  std::vector<int> counts = options.ranks;
  if (counts.empty()) {
    const int cores = std::min(static_cast<int>(topology::usable_cpus().size()), kMostCores);
    for (int ranks = 2; ranks <= std::max(8, cores); ranks *= 2) counts.push_back(ranks);
  }
  std::sort(counts.begin(), counts.end());
  counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  return counts;
}

// What one rank of the measuring job does.
int run_rank(const CalibrateOptions& options) {
  const char* rank = std::getenv("ZBCCL_RANK");
  const std::string name = rank != nullptr ? rank : "0";
  const fs::path folder = fs::path(options.rank_folder) / name;
  fs::create_directories(folder);
  try {
    const Measured measured = measure_rank({options.steady, options.seconds}, folder.string());
    if (name == "0") {
      std::ofstream(fs::path(options.rank_folder) / kResult) << to_json(measured);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "zbccl topo calibrate: rank %s: %s\n", name.c_str(), error.what());
    return kFailure;
  }
  return kSuccess;
}

Measured measure(const CalibrateOptions& options, int ranks) {
  const Folder folder;
  Job job;
  job.caller = "zbccl topo calibrate";
  job.program = own_path();
  job.arguments = {
      job.program,     "topo",       "calibrate", "--seconds", fmt::format("{}", options.seconds),
      "--rank-folder", folder.path()};
  if (options.steady) job.arguments.emplace_back("--steady");
  job.ranks = ranks;
  job.prefix = false;
  if (const int code = launch(job); code != kSuccess) {
    throw std::runtime_error(fmt::format("measuring with {} ranks failed (code {})", ranks, code));
  }
  std::ifstream file(fs::path(folder.path()) / kResult);
  std::ostringstream text;
  text << file.rdbuf();
  return parse_measured(text.str());
}

std::string size_text(uint64_t bytes) {
  if (bytes >= kNever) return "never";
  constexpr uint64_t kKilo = 1 << 10;
  if (bytes >= kKilo * kKilo)
    return fmt::format("{:.3g} MiB", static_cast<double>(bytes) / 1048576);
  if (bytes >= kKilo) return fmt::format("{:.3g} KiB", static_cast<double>(bytes) / 1024);
  return fmt::format("{} B", bytes);
}

void print_curves(const char* first_name, const Curve& first, const char* second_name,
                  const Curve& second) {
  fmt::print("  {:>12}{:>14}{:>14}   (us)\n", "size", first_name, second_name);
  for (size_t i = 0; i < first.points().size(); ++i) {
    fmt::print("  {:>12}{:>14.2f}{:>14.2f}\n", first.points()[i].bytes, first.points()[i].us,
               second.points()[i].us);
  }
}

void print_held_out(const std::vector<HeldOut>& results) {
  fmt::print("  held out: {:>10}{:>12}{:>14}{:>14}{:>9}{:>18}\n", "size", "chosen", "predicted us",
             "measured us", "error", "lost to the best");
  for (const HeldOut& held : results) {
    fmt::print("  {:>20}{:>12}{:>14.2f}{:>14.2f}{:>8.0f}%{:>17.0f}%\n", held.bytes, held.chosen,
               held.predicted_us, held.measured_us,
               100 * (held.predicted_us / held.measured_us - 1),
               100 * (held.measured_us / held.best_us - 1));
  }
}

plan::HostEntry fit(const Measured& m) {
  fmt::print("\n{} ranks\n", m.ranks);
  fmt::print("  meeting: {:.2f} us spinning, {:.2f} us sleeping: {}\n", m.meeting_spin,
             m.meeting_sleep, m.wait);
  if (m.faster_wait != m.wait) {
    fmt::print("  ZBCCL_HOST_WAIT={} would make them faster here, at the price that it has\n",
               m.faster_wait);
  }
  const Point& copied = m.copy.points().back();
  fmt::print("  every rank copying {} at once: {:.0f} us, {:.1f} GB/s each\n",
             size_text(copied.bytes), copied.us,
             static_cast<double>(copied.bytes) / copied.us / 1e3);
  print_curves("one_shot", m.one_shot, "two_shot", m.two_shot);
  const Threshold one_shot = fit_threshold(m.one_shot, m.two_shot, "one_shot", "two_shot", 0);
  fmt::print("  one-shot up to {}: {}\n", size_text(one_shot.bytes), one_shot.why);
  print_held_out(hold_out(one_shot, m.one_shot, m.two_shot, m.one_shot_held, m.two_shot_held,
                          "one_shot", "two_shot"));
  print_curves("cached", m.cached, "streamed", m.streamed);
  const Threshold stream = fit_threshold(m.cached, m.streamed, "cached", "streamed", kStreamMargin);
  const uint64_t stream_min = stream.open ? kNever : stream.bytes;
  fmt::print("  stores past the cache from {}: {}\n", size_text(stream_min), stream.why);
  print_held_out(
      hold_out(stream, m.cached, m.streamed, m.cached_held, m.streamed_held, "cached", "streamed"));
  plan::HostEntry entry;
  entry.fit = {static_cast<uint32_t>(m.ranks), m.wait == "sleep" ? 1U : 0U, one_shot.bytes,
               stream_min};
  entry.cost = fit_host_cost(m.copy, m.wait == "sleep" ? m.meeting_sleep : m.meeting_spin);
  return entry;
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

void write_measured(const std::string& path, const std::vector<Measured>& all) {
  std::ofstream file(path, std::ios::trunc);
  file << "[";
  for (size_t i = 0; i < all.size(); ++i) file << (i > 0 ? ",\n" : "") << to_json(all[i]);
  file << "]\n";
  file.close();
  if (!file) throw std::runtime_error(fmt::format("--json {}: the file cannot be written", path));
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
  plan::TuningTable table;
  table.machine = topology::machine_key();
  if (!options.dry_run) check_writable(path);
  fmt::print("machine: {}\ndata: {}\n", table.machine,
             options.steady ? "unchanging (the caches keep every line where it is)"
                            : "fresh (every rank writes its input before each call and reads its "
                              "output after it)");
  std::vector<Measured> all;
  for (const int ranks : rank_counts(options)) {
    std::fflush(stdout);
    all.push_back(measure(options, ranks));
    table.host.push_back(fit(all.back()));
  }
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
