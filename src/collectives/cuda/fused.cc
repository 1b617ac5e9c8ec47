// The fused operations on device memory.
#include "kernels/cuda/fused.h"

#include <algorithm>
#include <array>

#include "collectives/cuda/buffers.h"
#include "collectives/cuda/engine.h"

namespace zbccl::cuda {

using collectives::NormCall;
using plan::DeviceAlgorithm;

namespace {

NormSpec spec_of(const NormCall& call) {
  NormSpec spec;
  spec.residual = call.residual;
  spec.weight = call.weight;
  spec.hidden = static_cast<int>(call.norm.hidden);
  spec.epsilon = call.norm.epsilon;
  spec.inverse_scale = 1.0F / call.norm.scale;
  spec.form = call.norm.form;
  spec.one_plus_weight = call.norm.one_plus_weight;
  spec.row_stride = static_cast<int64_t>(call.outputs.row_stride);
  spec.group_stride = static_cast<int64_t>(call.outputs.group_stride);
  return spec;
}

}  // namespace

Status Engine::reduce_norm(const Collective& call, cudaStream_t stream) {
  const NormCall& norm = *call.norm;
  const int nranks = team_->size();
  const uint64_t bytes = call.count * type_size(call.type);
  const uint64_t row_bytes = norm.norm.hidden * type_size(call.type);
  const auto share =
      static_cast<uint64_t>(norm_share(static_cast<int64_t>(norm.tokens), nranks)) * row_bytes;
  plan::DevicePlan plan = plan_for(call, bytes, share);
  plan.threads = norm_threads(static_cast<int>(norm.norm.hidden));
  const bool alone = nranks == 1;
  const bool shares = plan.algorithm != DeviceAlgorithm::kOneShot;
  NormArgs args;
  args.spec = spec_of(norm);
  args.tokens = static_cast<int64_t>(norm.tokens);
  const TeamView view = team_->view(call.timeout);
  // Kernels load the weight before they look for rows, and of none it may be null.
  if (norm.tokens == 0) args.spec.weight = view.control[team_->rank()];
  args.pull = plan.algorithm == DeviceAlgorithm::kPullPush;

  // Who is reached where it lies: an input that peers read, outputs that they write.
  Operand in{static_cast<char*>(const_cast<void*>(call.send)), {}, false};
  if (args.pull && !alone) ZBCCL_RETURN_IF_ERROR(open_input(call.send, bytes, stream, &in));
  args.x = in.data;
  const std::array<NormBuffer, kNormOutputs> outputs = norm_outputs(norm);
  std::array<Operand, kNormOutputs> opened;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const NormBuffer& output = outputs[i];
    opened[i].data = static_cast<char*>(output.data);
    if (output.data != nullptr && shares && !alone) {
      ZBCCL_RETURN_IF_ERROR(open_output(output.data, output.bytes, &opened[i]));
      args.places[i] = opened[i].place;
    }
    args.own.data[i] = opened[i].data;
  }

  transport::Signature signature;
  collectives::describe_norm(norm, &signature);
  Entry entry = entry_for(call, plan, bytes | (signature.layout & 0xffff) << 48);
  entry.operation |= static_cast<uint32_t>(signature.red_op) << 16;
  entry.shape |= static_cast<uint32_t>(norm.norm.hidden);
  entry.in_high = in.place.high;
  entry.in_low = in.place.low;
  for (int r = 0; r < nranks; ++r) {
    args.call.entry[r] = entry;
    args.call.expected[r] = static_cast<uint64_t>(entry.count_high) << 32 | entry.count_low;
  }

  const LaunchShape shape = shape_of(plan, stream);
  const auto peers = static_cast<uint64_t>(nranks - 1);
  if (shares) {
    ZBCCL_RETURN_IF_CUDA_ERROR(launch_norm_shares(view, args, call.type, shape), "norm by shares");
    if (!args.pull) team_->host().count_landing(share * peers);
  } else {
    ZBCCL_RETURN_IF_CUDA_ERROR(launch_norm_one_shot(view, args, call.type, shape), "one-shot norm");
    team_->host().count_landing(bytes * peers);
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    ZBCCL_RETURN_IF_ERROR(close_output(opened[i], outputs[i].data, outputs[i].bytes, stream));
  }
  return {};
}

// As many elements at a time as land in one slot.
Status Engine::reduce_quantized(const Collective& call, cudaStream_t stream) {
  const int nranks = team_->size();
  const size_t element = type_size(call.type);
  const auto most =
      static_cast<size_t>(quantized_most(static_cast<int64_t>(tuning_.slot_bytes), nranks));
  // Ranks that disagree about all of it do so in the first part.
  const uint64_t all = uint64_t{call.count} * 0x9e3779b97f4a7c15U >> 48;
  size_t first = 0;
  do {
    const size_t count = std::min(most, call.count - first);
    const int64_t share = quantized_share(static_cast<int64_t>(count), nranks);
    const plan::DevicePlan plan = plan_for(call, count * element, 0, static_cast<uint64_t>(share));
    QuantizedArgs args;
    char* const from = static_cast<char*>(const_cast<void*>(call.send));
    args.in = {from + first * element, count * element};
    args.out = {static_cast<char*>(call.recv) + first * element, count * element};
    Entry entry = entry_for(call, plan, count * element | all << 48);
    entry.shape |= static_cast<uint32_t>(call.code);
    for (int r = 0; r < nranks; ++r) {
      args.call.entry[r] = entry;
      args.call.expected[r] = count * element | all << 48;
    }
    ZBCCL_RETURN_IF_CUDA_ERROR(launch_quantized(team_->view(call.timeout), args, call.type,
                                                call.code, shape_of(plan, stream)),
                               "quantised sum");
    // Codes and scales, of the elements and of the sums.
    team_->host().count_landing(static_cast<uint64_t>(quantized_packs(share, nranks)) * kPackBytes /
                                static_cast<uint64_t>(nranks) * static_cast<uint64_t>(nranks - 1));
    first += count;
  } while (first < call.count);
  return {};
}

}  // namespace zbccl::cuda
