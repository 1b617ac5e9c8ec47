// Movements by copy engines, for who needs every SM. An engine's copy has its addresses when it is
// enqueued, so the ranks' hosts show each other where the outputs are, which holds them up until
// all have made the call; nothing holds up a graph that is replayed. On the device two meetings of
// one block each: nobody's output is written before its owner has come, and nobody goes on before
// his is complete.
#include <vector>

#include "collectives/cuda/engine.h"
#include "memory/cuda/driver.h"
#include "transport/cuda/failure_text.h"

namespace zbccl::cuda {
namespace {

uint64_t count_of(const Entry& entry) {
  return static_cast<uint64_t>(entry.count_high) << 32 | entry.count_low;
}

// The hosts compare what kernels compare elsewhere, and every rank finds the same.
Status compare(const std::vector<EntryCall>& all, const std::string& team) {
  const auto nranks = static_cast<int>(all.size());
  for (int a = 0; a < nranks; ++a) {
    for (int b = 0; b < nranks; ++b) {
      const Entry& said = all[static_cast<size_t>(a)].entry[b];
      const Entry& mine = all[static_cast<size_t>(b)].entry[a];
      const uint64_t expected = all[static_cast<size_t>(b)].expected[a];
      if (said.operation == mine.operation && said.shape == mine.shape &&
          count_of(said) == expected) {
        continue;
      }
      return error(Code::kInvalidUsage,
                   "{}: the ranks call different operations on the device: rank {} calls {}, rank "
                   "{} calls {} (expected {} bytes, told of {}). Call the same operations in the "
                   "same order on every rank",
                   team, b, describe_call(mine), a, describe_call(said), expected, count_of(said));
    }
  }
  return {};
}

}  // namespace

Status Engine::copy(const Collective& call, const PushArgs& args, cudaStream_t stream) {
  const int me = team_->rank();
  const int nranks = team_->size();
  std::vector<EntryCall> all(static_cast<size_t>(nranks));
  ZBCCL_RETURN_IF_ERROR(
      meeting_(&args.call, all.data(), sizeof args.call,
               call.timeout.count() > 0 ? call.timeout : team_->host().timeout()));
  ZBCCL_RETURN_IF_ERROR(compare(all, team_->host().name()));

  const TeamView view = team_->view(call.timeout);
  ZBCCL_RETURN_IF_CUDA_ERROR(launch_meet(view, args.call, stream), "meeting before copies");
  ZBCCL_RETURN_IF_ERROR(go_in_step(call.timeout));
  ZBCCL_RETURN_IF_ERROR(copy_streams_->begin(stream));
  for (int i = 1; i <= nranks; ++i) {
    const int k = (me + i) % nranks;  // no two ranks begin with the same one
    const char* const from = args.in.data + args.from[k];
    void* to = args.out.data + args.own_to;
    if (args.bytes[k] == 0) continue;
    if (k != me) {
      const Entry& theirs = all[static_cast<size_t>(k)].entry[me];
      to = team_->reach(k, {theirs.out_high, theirs.out_low});
      if (to == nullptr) return error(Code::kInternal, "the output of rank {} is not mapped", k);
    }
    if (to != from) ZBCCL_RETURN_IF_ERROR(copy_streams_->copy(to, from, args.bytes[k]));
  }
  ZBCCL_RETURN_IF_ERROR(copy_streams_->end());
  ZBCCL_RETURN_IF_ERROR(go_in_step(call.timeout));
  ZBCCL_RETURN_IF_CUDA_ERROR(launch_meet(view, args.call, stream), "meeting after copies");
  return go_in_step(call.timeout);
}

// On a GPU that ranks share, what one of them enqueues may wait for all that runs there (the first
// copy of its kind) or stand in one of the GPU's queues behind what waits itself, so no rank
// enqueues anything behind a kernel that waits for what another one has not enqueued yet.
Status Engine::go_in_step(Milliseconds timeout) {
  if (team_->sharing() == 1) return {};
  const char here = 0;
  std::vector<char> all(static_cast<size_t>(team_->size()));
  return meeting_(&here, all.data(), sizeof here,
                  timeout.count() > 0 ? timeout : team_->host().timeout());
}

}  // namespace zbccl::cuda
