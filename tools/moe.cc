// `zbccl moe`: measures and checks the dispatch and combine of a mixture of experts.

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <string>
#include <zbccl/zbccl.hpp>

#include "command.h"
#include "measure/ranks.h"
#include "moe_perf/bench.h"
#include "moe_perf/device.h"
#include "moe_perf/options.h"
#include "topology/machine.h"

namespace zbccl::tools {
namespace {

constexpr const char* kCaller = "zbccl moe";

int run_moe(const MoeArguments& arguments) {
  if (in_job()) {
    return run_rank(kCaller, arguments.ranks, [&](Communicator& comm, double /*init_ms*/) {
      return run_moe_bench(comm, check_arguments(arguments, comm.size())) == 0;
    });
  }
  if (arguments.device == "cuda") {
    // Whatever library a rank may load stays off NVLink multicast.
    setenv("NCCL_NVLS_ENABLE", "0", 1);
    // What can be told without a GPU.
    (void)check_arguments(arguments, std::max(arguments.ranks, 1));
    const int gpus = count_moe_devices();
    const int ranks = arguments.ranks != 0 ? arguments.ranks : gpus;
    if (ranks > gpus) {
      throw UsageError("--ranks " + std::to_string(ranks) + ": each needs a GPU, and there are " +
                       std::to_string(gpus));
    }
    (void)check_arguments(arguments, ranks);
    return start_ranks(kCaller, ranks);
  }
  const int cores = static_cast<int>(topology::usable_cpus().size());
  const int ranks = arguments.ranks != 0 ? arguments.ranks : std::clamp(cores, 2, kMaxMoeRanks);
  (void)check_arguments(arguments, ranks);
  return start_ranks(kCaller, ranks);
}

void add_measurement(CLI::App& command, MoeArguments& a) {
  command
      .add_option("-n,--iters", a.iterations,
                  "Timed calls of each phase (default: 5 to 20000, as fit in --seconds)")
      ->check(CLI::Range(1, kMaxMoeIterations));
  command.add_option("--seconds", a.seconds, "Time for the calls of each phase (0.3)")
      ->check(CLI::Range(0.001, 3600.0));
  command.add_option("-w,--warmup", a.warmup, "Calls before them (3)")
      ->check(CLI::Range(0, kMaxMoeIterations));
  command.add_flag("--check", a.check, "Verify every element on every rank, to the last bit");
  command.add_flag("--unregistered", a.unregistered, "Use plain memory from malloc");
  command.add_flag("--no-bind", a.no_bind,
                   "Leave the ranks to the scheduler (default: where every rank can have a core, "
                   "its thread stays there)");
  command.add_option(
      "--compare", a.compare,
      "Measure in turn: gloo (the same exchange by its alltoallv), or none (default)");
  command.add_option("--json", a.json_path, "Also write the rows to this file");
}

}  // namespace

void add_moe(CLI::App& app, Action& action) {
  auto a = std::make_shared<MoeArguments>();
  CLI::App* command = app.add_subcommand(
      "moe",
      "Measures and checks dispatch and combine of a mixture of experts. Started by zbccl run or "
      "torchrun it joins that job, else it starts --ranks processes itself.");
  command->add_option("--ranks", a->ranks, "Processes (default: the cores in reach, at least 2)")
      ->check(CLI::Range(1, kMaxMoeRanks));
  command->add_option("--device", a->device, "Where the data lies: host (default) or cuda");
  command->add_option("--max-blocks", a->max_blocks, "cuda: thread blocks that a call may use")
      ->check(CLI::Range(0, 128));
  command->add_option("--mode", a->mode, "normal (default), or ll: low latency");
  command
      ->add_option("--tokens", a->tokens,
                   "Tokens of each rank (1024, ll 128); several numbers, separated by commas, are "
                   "measured one after the other")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24));
  command->add_option("--hidden", a->hidden, "Elements of a row (7168)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24));
  command->add_option("--experts", a->experts, "Of all ranks together (256, ll 288)")
      ->check(CLI::Range(1, 1 << 16));
  command->add_option("--topk", a->topk, "Experts of a token (8)")
      ->check(CLI::Range(1, ZBCCL_MOE_MAX_TOPK));
  command->add_option("--layout", a->layout,
                      "rank_major (default), expert_major or expert_masked (default of ll)");
  command
      ->add_option("--alignment", a->alignment, "expert_major: rows at which an expert begins (1)")
      ->check(CLI::Range(1, 1 << 16));
  command->add_option("--dtype", a->type, "bf16 (default), f16 or f32");
  command->add_option("--quant", a->quant,
                      "What dispatched rows become on their way: none (default), fp8, fp8_pow2, "
                      "fp8_ue8m0, int8, or given: fp8 codes with scales before the call");
  command->add_option("--routing", a->routing,
                      "uniform (default), or skewed: expert 0 is every token's first choice");
  command->add_flag("--cached", a->cached, "Route once; dispatches move rows only");
  command->add_flag("--graph", a->graph,
                    "cuda: give every layout a capacity, so that routing can be captured as well");
  command->add_flag("--two-phases", a->two_phases, "Send and receive by a call each");
  command->add_flag("--pre-reduce", a->pre_reduce,
                    "Layouts by expert: a rank adds up its results for a token before they travel");
  add_measurement(*command, *a);
  command->callback([&action, a] { action = [a] { return run_moe(*a); }; });
}

}  // namespace zbccl::tools
