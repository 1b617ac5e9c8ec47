// `zbccl perf OP`: measures and checks one operation, with nccl-tests' columns.

#include <fmt/core.h>

#include <algorithm>
#include <memory>
#include <zbccl/zbccl.hpp>

#include "command.h"
#include "measure/ranks.h"
#include "perf/bench.h"
#include "perf/cuda_perf.h"
#include "perf/options.h"
#include "topology/machine.h"

namespace zbccl::tools {
namespace {

int run_host_rank(const PerfArguments& arguments) {
  return run_rank("zbccl perf", arguments.ranks, [&](Communicator& comm, double init_ms) {
    return run_bench(comm, check_arguments(arguments, comm.size()), init_ms) == 0;
  });
}

int default_ranks(const PerfArguments& arguments, int gpus) {
  if (arguments.device == "cuda") return arguments.one_gpu ? 2 : gpus;
  return std::clamp(static_cast<int>(topology::usable_cpus().size()), 2, kMaxPerfRanks);
}

int run_perf(const PerfArguments& arguments) {
  const bool cuda = arguments.device == "cuda";
  // Before this process or its children load anything.
  if (cuda) set_cuda_environment(arguments);
  if (in_job()) return cuda ? run_cuda_rank(arguments) : run_host_rank(arguments);
  const int gpus = cuda ? count_gpus(arguments) : 0;
  const int ranks = arguments.ranks != 0 ? arguments.ranks : default_ranks(arguments, gpus);
  const PerfOptions options = check_arguments(arguments, ranks);
  if (cuda && !options.cuda.one_gpu && ranks > gpus) {
    throw UsageError(fmt::format(
        "--ranks {}: {} GPUs are visible; expected at most that many, or --one-gpu", ranks, gpus));
  }
  if (options.cuda.one_gpu || options.cuda.threads) return run_cuda_threads(options, ranks);
  return start_ranks("zbccl perf", ranks);
}

void add_cuda_options(CLI::App& command, PerfArguments& a) {
  command.add_flag("--graph", a.graph, "cuda: time replays of a CUDA graph of 2 to 50 calls");
  command.add_flag("--plain", a.plain, "cuda: memory from cudaMalloc, unknown to the library");
  command.add_flag("--register", a.registered, "cuda: memory from cudaMalloc, registered");
  command.add_option("--algorithm", a.algorithm, "cuda: sets ZBCCL_ALGORITHM");
  command.add_option("--max-blocks", a.max_blocks, "cuda: thread blocks that a call may use")
      ->check(CLI::Range(0, 65535));
  command.add_option("--check-max", a.check_max,
                     "cuda: check sizes up to this one (the host takes long over gigabytes)");
  command.add_flag("--one-gpu", a.one_gpu, "cuda: all ranks are threads of one process, on GPU 0");
  command.add_flag("--threads", a.threads,
                   "cuda: all ranks are threads of one process, each on its own GPU");
  command.add_option("--nccl-lib", a.nccl_library, "cuda: path of libnccl.so.2");
}

}  // namespace

void add_perf(CLI::App& app, Action& action) {
  auto a = std::make_shared<PerfArguments>();
  CLI::App* command =
      app.add_subcommand("perf",
                         "Measures and checks one operation, with nccl-tests' columns. Started by "
                         "zbccl run or torchrun "
                         "it joins that job, else it starts --ranks processes itself.");
  command->add_option("OP", a->op, op_names())->required();
  command
      ->add_option("--ranks", a->ranks,
                   "Processes (default: the cores in reach, at least 2; cuda: the GPUs)")
      ->check(CLI::Range(1, kMaxPerfRanks));
  command->add_option("--device", a->device, "Where the data lies: host (default) or cuda");
  command->add_option("-b,--minbytes", a->min_bytes, "Smallest size (1K)");
  command->add_option("-e,--maxbytes", a->max_bytes, "Largest size (64M)");
  command->add_option("-f,--stepfactor", a->factor, "Factor from size to size (2)");
  command->add_option("--sizes", a->sizes, "These sizes instead, separated by commas")
      ->delimiter(',');
  command
      ->add_option("-d,--datatype", a->types,
                   "Types, separated by commas, or all (bf16; with --compare f32)")
      ->delimiter(',');
  command->add_option("-o,--op", a->redops, "Operators, separated by commas, or all (sum)")
      ->delimiter(',');
  command
      ->add_option("-n,--iters", a->iterations,
                   "Timed calls for each size (default: 5 to 20000, as fit in --seconds)")
      ->check(CLI::Range(1, kMaxIterations));
  command
      ->add_option("--seconds", a->seconds,
                   "Time for the calls of each size and form (0.3; cuda 0.05)")
      ->check(CLI::Range(0.001, 3600.0));
  command->add_option("-w,--warmup", a->warmup, "Calls before them (5)")
      ->check(CLI::Range(0, kMaxIterations));
  command->add_option("--quant", a->quant,
                      "all_reduce_rms_norm: none (default), fp8_tensor, fp8 or fp8_pow2; "
                      "all_reduce_quantized: fp8 (default) or int8");
  command->add_option("--root,-r", a->root, "Root of reduce, broadcast, gather and scatter (0)");
  command->add_flag("--in-place", a->in_place, "Only in place (default: both)");
  command->add_flag("--out-of-place", a->out_of_place, "Only out of place (default: both)");
  command->add_flag("--check", a->check, "Verify every element on every rank, to the last bit");
  command->add_flag(
      "--fresh", a->fresh,
      "Before each timed call its rank writes the input anew, after it its rank reads "
      "the output; each call is begun together");
  command->add_flag("--unregistered", a->unregistered, "Use plain memory from malloc");
  command->add_flag("--no-bind", a->no_bind,
                    "Leave the ranks to the scheduler (default: where every rank can have a core, "
                    "its thread stays there)");
  command->add_option("--compare", a->compare,
                      "Measure in turn: gloo, or copy (every rank copies the size at once); with "
                      "--device cuda nccl");
  add_cuda_options(*command, *a);
  command->add_option("--json", a->json_path, "Also write the rows to this file");
  command->callback([&action, a] { action = [a] { return run_perf(*a); }; });
}

}  // namespace zbccl::tools
