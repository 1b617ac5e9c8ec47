// `zbccl run`: starts the ranks of a program on this machine.

#include <fmt/core.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "command.h"
#include "launch/launcher.h"
#include "launch/program.h"
#include "topology/detect.h"
#include "topology/placement.h"

namespace zbccl::tools {
namespace {

constexpr int kMaxRanks = 1024;

struct RunOptions {
  int ranks = 0;
  bool no_prefix = false;
  double grace_seconds = 5;
  std::string bind = "none";
};

// For each rank the processors of the core that `zbccl topo show -n N` names.
std::vector<std::vector<int>> bound_cpus(int ranks) {
  const auto machine = topology::detect();
  if (!machine.ok()) throw UsageError("--bind core: " + machine.status().message());
  const auto usable = topology::restrict_to(machine.value(), topology::usable_cpus());
  const auto placements = topology::place(usable, ranks);
  std::vector<std::vector<int>> cpus;
  cpus.reserve(placements.size());
  for (const auto& placement : placements) cpus.push_back(placement.cpus);
  if (cpus.empty()) throw UsageError("--bind core: the system does not tell this machine's cores");
  return cpus;
}

int run_program(const RunOptions& options, std::vector<std::string> arguments) {
  if (arguments.empty()) {
    throw UsageError("run: expected a program, as in: zbccl run -n 4 -- PROGRAM ARGUMENTS");
  }
  const Program program = find_program(arguments.front());
  if (program.path.empty()) {
    std::fprintf(stderr, "zbccl run: %s\n", program.error.c_str());
    return program.exit_code;
  }
  Job job;
  job.caller = "zbccl run";
  job.program = program.path;
  job.arguments = std::move(arguments);
  job.ranks = options.ranks;
  job.prefix = !options.no_prefix;
  job.grace = std::chrono::milliseconds(std::llround(options.grace_seconds * 1000));
  if (options.bind == "core") job.cpus = bound_cpus(options.ranks);
  return launch(job);
}

}  // namespace

std::vector<std::string> split_program(int& argc, char** argv) {
  if (argc < 2 || std::string_view(argv[1]) != "run") return {};
  int at = 2;
  for (; at < argc; ++at) {
    const std::string_view argument = argv[at];
    if (argument.size() < 2 || argument[0] != '-' || argument == "--") break;
    const bool takes_next =
        argument == "-n" || argument == "--ranks" || argument == "--grace" || argument == "--bind";
    if (takes_next && at + 1 < argc) ++at;
  }
  const int begin = at < argc && std::string_view(argv[at]) == "--" ? at + 1 : at;
  std::vector<std::string> program(argv + begin, argv + argc);
  argc = at;
  return program;
}

void add_run(CLI::App& app, Action& action, const std::vector<std::string>& program) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* command = app.add_subcommand(
      "run",
      "Starts N processes of a program on this machine, as the ranks of one job: zbccl run -n N -- "
      "PROGRAM ARGUMENTS.\nRanks find each other by ZBCCL_RANK, ZBCCL_WORLD_SIZE, ZBCCL_LOCAL_RANK "
      "and ZBCCL_UNIQUE_ID.\nRank 0 reads what is piped into this command. The exit code is that "
      "of "
      "the first rank that failed, 128 + signal where a signal ended it.");
  command->add_option("-n,--ranks", options->ranks, "How many")
      ->required()
      ->check(CLI::Range(1, kMaxRanks));
  command->add_flag("--no-prefix", options->no_prefix,
                    "Leave out the \"[rank] \" before each line; the ranks write to the terminal");
  command
      ->add_option("--grace", options->grace_seconds,
                   "Seconds that the others have to report it when a rank fails, before they are "
                   "ended (default 5)")
      ->check(CLI::Range(0.0, 86400.0));
  command
      ->add_option("--bind", options->bind,
                   "core: bind each rank to the core that zbccl topo show names; none (default)")
      ->check(CLI::IsMember({"none", "core"}));
  command->callback([&action, &program, options] {
    action = [options, &program] { return run_program(*options, program); };
  });
}

}  // namespace zbccl::tools
