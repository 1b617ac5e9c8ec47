#include "collectives/cuda/engine.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/env.h"
#include "base/log.h"
#include "collectives/cuda/buffers.h"
#include "collectives/cuda/host_engine.h"
#include "observe/counters.h"

namespace zbccl::cuda {
namespace {

// Landing memory that the communicators of this process hold on each GPU.
std::atomic<uint64_t> landing_held[64];

// The first communicator of a GPU gets room for speed, the second for that of small calls; the next
// ones share what is left of the promise (docs/architecture.md), and none goes without.
uint64_t landing_share(int device) {
  const auto asked = static_cast<uint64_t>(env::get_integer("ZBCCL_DEVICE_LANDING"));
  if (asked > 0) return std::clamp(asked, plan::kLeastLanding, plan::kMostLanding);
  const uint64_t held = landing_held[device & 63].load();
  constexpr uint64_t kFree = plan::kMostLanding + plan::kSecondLanding;
  for (const uint64_t share : {plan::kMostLanding, plan::kSecondLanding}) {
    if (held + share <= kFree) return share;
  }
  return plan::kLeastLanding;
}

// What was found on this machine's GPUs, where it was of the model that the ranks have.
Status tune(const plan::TuningTable& table, int device, int nranks, plan::DeviceTuning* tuning) {
  const plan::DeviceEntry* const entry = plan::device_entry(table, nranks);
  if (entry == nullptr) return {};
  cudaDeviceProp properties = {};
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, device),
                             "asking for a GPU's model");
  if (const Status same = plan::check_gpu(table, properties.name); !same.ok()) {
    log::warn(log::Subsys::kInit, "the tuning file: {}; run zbccl topo calibrate --device cuda",
              same.message());
    return {};
  }
  plan::apply(*entry, tuning);
  return {};
}

// Kernels of ranks that share a GPU wait for each other, so all of them must be on it at once, each
// block on a multiprocessor of its own as the largest ones need it, and the kernels behind them
// that begin early, too.
Status find_share(const DeviceTeam& team, int32_t* blocks) {
  if (team.sharing() == 1) return {};
  cudaDeviceProp properties = {};
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, team.device()),
                             "asking for a GPU's multiprocessors");
  *blocks = std::max(1, properties.multiProcessorCount / (2 * team.sharing()));
  return {};
}

// Of the sizes that all ranks have to know, in place of a root.
uint32_t sizes_hash(const collectives::Blocks& blocks) {
  uint64_t hash = 0;
  for (const size_t count : blocks.counts) hash = (hash ^ count) * 0x9e3779b97f4a7c15U;
  return static_cast<uint32_t>(hash >> 48);
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::create(transport::Team& team,
                                               const collectives::EngineOptions& options,
                                               const collectives::Exchange& exchange,
                                               std::string* unreached) {
  auto engine = std::unique_ptr<Engine>(new Engine);
  engine->max_blocks_ = options.max_blocks;
  engine->meeting_ = options.meeting;
  ZBCCL_ASSIGN_OR_RETURN(engine->team_,
                         DeviceTeam::create(team, options.device, landing_share(options.device),
                                            options.deadline, exchange, unreached));
  if (engine->team_ == nullptr) return std::unique_ptr<Engine>();
  landing_held[options.device & 63] += engine->team_->landing_bytes();
  engine->tuning_ = plan::device_tuning(team.size(), engine->team_->landing_bytes());
  // Rank 0's settings are everyone's.
  struct Settings {
    plan::DeviceTuning tuning;
    int32_t max_blocks = 0;
    int32_t share = 0;
  };
  Settings mine = {engine->tuning_, options.max_blocks};
  ZBCCL_RETURN_IF_ERROR(find_share(*engine->team_, &mine.share));
  ZBCCL_RETURN_IF_ERROR(tune(options.tuning, options.device, team.size(), &mine.tuning));
  const std::string changes = env::get_string("ZBCCL_DEVICE_TUNING");
  if (!plan::override_tuning(changes, &mine.tuning)) {
    log::warn(log::Subsys::kEnv, "ZBCCL_DEVICE_TUNING is not understood and left out: {}", changes);
  }
  if (const auto forced = plan::parse_device_algorithm(env::get_string("ZBCCL_ALGORITHM"))) {
    mine.tuning.forced = *forced;
  }
  std::vector<Settings> all(static_cast<size_t>(team.size()));
  ZBCCL_RETURN_IF_ERROR(exchange(&mine, all.data(), sizeof mine));
  engine->tuning_ = all[0].tuning;
  engine->max_blocks_ = all[0].max_blocks;
  const auto least = [](const Settings& a, const Settings& b) { return a.share < b.share; };
  engine->share_ = std::min_element(all.begin(), all.end(), least)->share;
  if (engine->tuning_.copy_engine_min != plan::kNever ||
      engine->tuning_.forced == plan::DeviceAlgorithm::kCopyEngine) {
    const DeviceGuard guard(options.device);
    ZBCCL_RETURN_IF_ERROR(guard.status());
    ZBCCL_ASSIGN_OR_RETURN(engine->copy_streams_, CopyStreams::open());
  }
  engine->team_->set_nap(static_cast<uint32_t>(engine->tuning_.nap_ns));
  return engine;
}

Engine::~Engine() {
  if (team_ == nullptr) return;
  landing_held[team_->device() & 63] -= team_->landing_bytes();
  DevicePool& pool = team_->pool();
  const DeviceGuard guard(team_->device());
  team_.reset();  // waits for the kernels
  copy_streams_.reset();
  for (const Staging& staging : staging_) (void)pool.free(staging.data);
}

Status Engine::run(const Collective& call) {
  auto* const stream = static_cast<cudaStream_t>(call.launch.stream);
  return enqueue(stream, [&] {
    const Status status = check_buffers(call, team_->rank(), team_->size(), device());
    return status.ok() ? dispatch(call, stream) : status;
  });
}

Status Engine::take_failure(void* stream) {
  const DeviceGuard guard(team_->device());
  ZBCCL_RETURN_IF_ERROR(guard.status());
  return team_->take_failure(static_cast<cudaStream_t>(stream));
}

Status Engine::check_alive() {
  ZBCCL_RETURN_IF_ERROR(team_->state());
  return team_->host().failed() ? team_->host().failure_status() : Status();
}

Status Engine::enqueue(cudaStream_t stream, const std::function<Status()>& body) {
  const DeviceGuard guard(team_->device());
  ZBCCL_RETURN_IF_ERROR(guard.status());
  ZBCCL_RETURN_IF_ERROR(team_->take_failure(stream));
  stream_now_ = stream;
  ZBCCL_RETURN_IF_ERROR(team_->order(stream));
  staged_now_ = 0;
  const Status status = body();
  ZBCCL_RETURN_IF_ERROR(team_->enqueued(stream));
  if (status.ok()) {
    observe::Traffic& traffic = observe::thread_traffic();
    (staged_now_ > 0 ? traffic.staged_calls : traffic.direct_calls).add(1);
  }
  return status;
}

Status Engine::dispatch(const Collective& call, cudaStream_t stream) {
  if (call.operation == Operation::kAllReduceRmsNorm) return reduce_norm(call, stream);
  if (team_->size() == 1) return copy_alone(call, stream);
  if (call.operation == Operation::kAllReduceQuantized) return reduce_quantized(call, stream);
  if (reduces(call.operation)) return reduce(call, stream);
  if (call.operation == Operation::kBroadcast) return broadcast(call, stream);
  return move(call, stream);
}

// A communicator of one rank: the result is the input.
Status Engine::copy_alone(const Collective& call, cudaStream_t stream) {
  algorithm_ = plan::DeviceAlgorithm::kNone;
  const size_t bytes = collectives::payload_bytes(call, 0);
  if (bytes == 0) return {};  // the buffers may be null
  const size_t from_at = call.send_blocks != nullptr ? collectives::send_block(call, 0).offset : 0;
  const size_t to_at = call.recv_blocks != nullptr ? collectives::recv_block(call, 0).offset : 0;
  const void* const from = collectives::at(call.send, from_at);
  void* const to = collectives::at(call.recv, to_at);
  if (from == to) return {};
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream),
                             "copying");
  return {};
}

plan::DevicePlan Engine::plan_for(const Collective& call, uint64_t bytes, uint64_t longest,
                                  uint64_t share) {
  plan::DeviceCall what;
  what.operation = call.operation;
  what.type = call.type;
  what.bytes = bytes;
  what.longest = longest;
  what.share = share;
  what.rows = call.norm != nullptr ? call.norm->tokens : 0;
  what.in_place = collectives::swaps_in_place(call);
  what.nranks = team_->size();
  what.max_blocks = block_limit(call.launch);
  const plan::DevicePlan plan = plan::choose(what, tuning_);
  algorithm_ = plan.algorithm;
  return plan;
}

Entry Engine::entry_for(const Collective& call, const plan::DevicePlan& plan,
                        uint64_t bytes) const {
  Entry entry = {};
  entry.operation = static_cast<uint32_t>(call.operation) | static_cast<uint32_t>(call.type) << 8 |
                    static_cast<uint32_t>(call.op) << 16 |
                    static_cast<uint32_t>(plan.algorithm) << 24;
  entry.shape = static_cast<uint32_t>(call.root) | static_cast<uint32_t>(plan.blocks) << 16;
  entry.count_low = static_cast<uint32_t>(bytes);
  entry.count_high = static_cast<uint32_t>(bytes >> 32);
  entry.in_high = entry.out_high = kNoSegment << 16;
  // A pair that disagrees on a size says so; the others are to notice, too.
  if (call.operation == Operation::kAllGatherV && call.recv_blocks != nullptr) {
    entry.shape |= sizes_hash(*call.recv_blocks);
  } else if (call.operation == Operation::kReduceScatterV) {
    entry.shape |= sizes_hash(*call.send_blocks);
  }
  return entry;
}

LaunchShape Engine::shape_of(const plan::DevicePlan& plan, cudaStream_t stream) const {
  return {plan.blocks, plan.threads, stream, plan.overlap};
}

Result<char*> Engine::stage(size_t bytes) {
  if (staged_now_ == staging_.size()) staging_.emplace_back();
  Staging& staging = staging_[staged_now_++];
  if (staging.bytes < bytes) {
    // The smaller one may still be in use by what is enqueued: it is freed with the engine.
    if (staging.data != nullptr) staging_.push_back(staging);
    Staging& grown = staging_[staged_now_ - 1];
    grown = {};
    ZBCCL_ASSIGN_OR_RETURN(grown.data, team_->pool().allocate(bytes, memory::Use::kStaging));
    grown.bytes = bytes;
  }
  team_->host().count_staged(bytes);
  return static_cast<char*>(staging_[staged_now_ - 1].data);
}

Status Engine::open_input(const void* data, size_t bytes, cudaStream_t stream, Operand* operand) {
  operand->data = static_cast<char*>(const_cast<void*>(data));
  auto place = team_->show(data, bytes);
  if (!place.ok() && place.status().code() == Code::kUnsupported) {
    ZBCCL_ASSIGN_OR_RETURN(operand->data, stage(bytes));
    operand->staged = true;
    ZBCCL_RETURN_IF_CUDA_ERROR(
        cudaMemcpyAsync(operand->data, data, bytes, cudaMemcpyDeviceToDevice, stream),
        "staging a buffer");
    place = team_->show(operand->data, bytes);
  }
  ZBCCL_RETURN_IF_ERROR(place.status());
  operand->place = *place;
  return {};
}

Status Engine::close_output(const Operand& operand, void* data, size_t bytes, cudaStream_t stream) {
  if (!operand.staged || bytes == 0) return {};
  ZBCCL_RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(data, operand.data, bytes, cudaMemcpyDeviceToDevice, stream),
      "copying a staged output");
  return {};
}

}  // namespace zbccl::cuda

namespace zbccl::collectives {
namespace {

Result<std::unique_ptr<DeviceEngine>> make_own(transport::Team& team, const EngineOptions& options,
                                               const Exchange& exchange) {
  std::string unreached;
  ZBCCL_ASSIGN_OR_RETURN(std::unique_ptr<DeviceEngine> engine,
                         cuda::Engine::create(team, options, exchange, &unreached));
  if (engine != nullptr) return engine;
  log::info(log::Subsys::kInit, "{}: device memory goes through host memory: {}", team.name(),
            unreached);
  ZBCCL_ASSIGN_OR_RETURN(engine, cuda::HostEngine::create(team, options, std::move(unreached)));
  return engine;
}

}  // namespace

// Nobody makes a call, whose kernels would wait for all, before every rank has what it needs: to
// get it a rank may have to wait for the kernels on its GPU, or on any of its process.
Result<std::unique_ptr<DeviceEngine>> make_device_engine(transport::Team& team,
                                                         const EngineOptions& options,
                                                         const Exchange& exchange) {
  struct Made {
    int32_t code = 0;
    char text[252] = {};
  };
  auto engine = make_own(team, options, exchange);
  Made mine;
  if (!engine.ok()) {
    mine.code = static_cast<int32_t>(engine.status().code());
    std::strncpy(mine.text, engine.status().message().c_str(), sizeof mine.text - 1);
  }
  std::vector<Made> all(static_cast<size_t>(team.size()));
  const Status met = exchange(&mine, all.data(), sizeof mine);
  ZBCCL_RETURN_IF_ERROR(engine.status());
  ZBCCL_RETURN_IF_ERROR(met);
  for (int r = 0; r < team.size(); ++r) {
    const Made& theirs = all[static_cast<size_t>(r)];
    if (theirs.code == 0) continue;
    return error(static_cast<Code>(theirs.code), "rank {} cannot use its CUDA device: {}", r,
                 std::string(theirs.text, strnlen(theirs.text, sizeof theirs.text)));
  }
  return engine;
}

}  // namespace zbccl::collectives
