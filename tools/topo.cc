// `zbccl topo`: what this machine is made of, what ranks share on it, and how fast it is.

#include <fmt/core.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "calibrate/table.h"
#include "command.h"
#include "topo_calibrate.h"
#include "topology/detect.h"
#include "topology/machine_key.h"
#include "topology/placement.h"

namespace zbccl::tools {
namespace {

using nlohmann::ordered_json;
using topology::Machine;
using topology::Placement;
using topology::text_of;

constexpr int kMaxRanks = 1024;
constexpr int kMaxCalibrateRanks = 64;
constexpr int kMaxMatrix = 16;  // wider than a screen beyond

struct TopoOptions {
  int ranks = 0;  // 0: one for each core
  bool json = false;
};

std::string bytes_text(uint64_t bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(units); ++unit) value /= 1024;
  return fmt::format("{:.4g} {}", value, units[unit]);
}

std::string ranks_text(const std::vector<int>& ranks) { return text_of(ranks); }

void print_machine(const Machine& machine) {
  fmt::print(
      "machine: {} package(s), {} NUMA node(s), {} core(s), {} logical processor(s) in reach\n",
      machine.packages.size(), machine.numa_nodes.size(), machine.cores.size(),
      machine.cpus.size());
  for (const auto& package : machine.packages) {
    fmt::print("  package {}: cpus {}{}\n", package.index, text_of(package.cpus),
               package.model.empty() ? "" : ", " + package.model);
  }
  for (const auto& node : machine.numa_nodes) {
    fmt::print("  NUMA node {}: cpus {}, {}\n", node.index, text_of(node.cpus),
               bytes_text(node.bytes));
  }
  for (const auto& cache : machine.caches) {
    fmt::print("  {} {}: cpus {}, {}, lines of {} B\n", cache.name(), cache.index,
               text_of(cache.cpus), bytes_text(cache.bytes), cache.line_bytes);
  }
  for (const auto& core : machine.cores) {
    fmt::print("  core {}: cpus {}\n", core.index, text_of(core.cpus));
  }
}

void print_ranks(const Machine& machine, const std::vector<Placement>& placements) {
  fmt::print("\n{} rank(s), as zbccl run --bind core places them{}:\n", placements.size(),
             placements.size() > machine.cores.size() ? " (more ranks than cores)" : "");
  for (const Placement& placement : placements) {
    fmt::print("  rank {}: core {}, cpus {}\n", placement.rank,
               machine.cores[static_cast<size_t>(placement.core)].index, text_of(placement.cpus));
  }
  fmt::print("\nshared:\n");
  const auto shared = topology::shared_parts(machine, placements);
  for (const auto& part : shared) fmt::print("  {}: ranks {}\n", part.name, ranks_text(part.ranks));
  if (shared.empty()) fmt::print("  nothing\n");
}

void print_matrix(const Machine& machine, const std::vector<Placement>& placements) {
  if (placements.size() < 2 || placements.size() > kMaxMatrix) return;
  constexpr int kWidth = 10;
  fmt::print("\nnearest thing that two ranks share:\n{:>{}}", "", kWidth);
  for (const Placement& column : placements) fmt::print("{:>{}}", column.rank, kWidth);
  fmt::print("\n");
  for (const Placement& row : placements) {
    fmt::print("{:>{}}", row.rank, kWidth);
    for (const Placement& column : placements) {
      fmt::print("{:>{}}", row.rank == column.rank ? "-" : nearest_shared(machine, row, column),
                 kWidth);
    }
    fmt::print("\n");
  }
}

ordered_json to_json(const Machine& machine, const std::vector<Placement>& placements) {
  ordered_json result = {{"packages", ordered_json::array()},
                         {"numa_nodes", ordered_json::array()},
                         {"caches", ordered_json::array()},
                         {"cores", ordered_json::array()},
                         {"cpus", machine.cpus},
                         {"ranks", ordered_json::array()},
                         {"shared", ordered_json::array()}};
  for (const auto& package : machine.packages) {
    result["packages"].push_back(
        {{"index", package.index}, {"model", package.model}, {"cpus", package.cpus}});
  }
  for (const auto& node : machine.numa_nodes) {
    result["numa_nodes"].push_back(
        {{"index", node.index}, {"bytes", node.bytes}, {"cpus", node.cpus}});
  }
  for (const auto& cache : machine.caches) {
    result["caches"].push_back({{"name", cache.name()},
                                {"index", cache.index},
                                {"bytes", cache.bytes},
                                {"line_bytes", cache.line_bytes},
                                {"cpus", cache.cpus}});
  }
  for (const auto& core : machine.cores) {
    result["cores"].push_back({{"index", core.index}, {"cpus", core.cpus}});
  }
  for (const Placement& placement : placements) {
    result["ranks"].push_back({{"rank", placement.rank},
                               {"core", machine.cores[static_cast<size_t>(placement.core)].index},
                               {"cpus", placement.cpus}});
  }
  for (const auto& part : topology::shared_parts(machine, placements)) {
    result["shared"].push_back({{"name", part.name}, {"ranks", part.ranks}});
  }
  return result;
}

int show(const TopoOptions& options) {
  const auto detected = topology::detect();
  if (!detected.ok()) throw std::runtime_error("topo: " + detected.status().message());
  const Machine machine = topology::restrict_to(detected.value(), topology::usable_cpus());
  const int ranks = options.ranks > 0 ? options.ranks : static_cast<int>(machine.cores.size());
  const std::vector<Placement> placements = topology::place(machine, ranks);
  if (options.json) {
    fmt::print("{}\n", to_json(machine, placements).dump(2));
    return kSuccess;
  }
  print_machine(machine);
  if (placements.empty()) {
    fmt::print("\nthe system does not tell this machine's cores: ranks cannot be placed\n");
    return kSuccess;
  }
  print_ranks(machine, placements);
  print_matrix(machine, placements);
  fmt::print("\n{}", describe_tuning(tuning_path(), topology::machine_key()));
  return kSuccess;
}

void add_calibrate(CLI::App& topo, Action& action) {
  auto options = std::make_shared<CalibrateOptions>();
  CLI::App* command = topo.add_subcommand(
      "calibrate",
      "Measures meetings, copies and algorithms between real ranks, fits the thresholds that the "
      "library takes, and writes them to its tuning file. Takes about half a minute; leave the "
      "machine to it");
  command->add_option("--device", options->device, "What is measured: host (default) or cuda")
      ->check(CLI::IsMember({"host", "cuda"}));
  command->add_option("-n,--ranks", options->ranks, "Numbers of ranks, separated by commas")
      ->delimiter(',')
      ->check(CLI::Range(2, kMaxCalibrateRanks));
  command->add_flag("--steady", options->steady,
                    "Fit to inputs that never change instead of ones that are written anew");
  command->add_option("--seconds", options->seconds, "Time for each size and way (0.05; cuda 0.02)")
      ->check(CLI::Range(0.001, 60.0));
  command->add_option("--output", options->output, "The file to write (where the library looks)");
  command->add_flag("--dry-run", options->dry_run, "Print the table instead of writing it");
  command->add_option("--json", options->json_path, "Also write everything measured to this file");
  command->add_option("--rank-folder", options->rank_folder)->group("");
  command->callback([&action, options] { action = [options] { return calibrate(*options); }; });
}

}  // namespace

void add_topo(CLI::App& app, Action& action) {
  auto options = std::make_shared<TopoOptions>();
  CLI::App* command = app.add_subcommand("topo", "The machine's topology");
  command->require_subcommand(1);
  CLI::App* show_command = command->add_subcommand(
      "show",
      "Packages, NUMA nodes, caches and cores that this process may use, and what ranks share");
  show_command
      ->add_option("-n,--ranks", options->ranks, "For so many ranks (default: one for each core)")
      ->check(CLI::Range(1, kMaxRanks));
  show_command->add_flag("--json", options->json, "As JSON");
  show_command->callback([&action, options] { action = [options] { return show(*options); }; });
  add_calibrate(*command, action);
}

}  // namespace zbccl::tools
