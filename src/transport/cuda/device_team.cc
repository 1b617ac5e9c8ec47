#include "transport/cuda/device_team.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "base/env.h"
#include "base/log.h"
#include "kernels/cuda/fused.h"
#include "kernels/cuda/moe.h"
#include "kernels/cuda/push.h"
#include "kernels/cuda/recover.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/transfer.h"
#include "memory/cuda/peer_access.h"
#include "plan/device_plan.h"
#include "transport/cuda/failure_text.h"

namespace zbccl::cuda {
namespace {

constexpr Milliseconds kGrace{200};

uint64_t round_up(uint64_t value, uint64_t to) { return (value + to - 1) / to * to; }

ArenaShape shape_for(int nranks, uint64_t landing_bytes) {
  const plan::DeviceTuning tuning = plan::device_tuning(nranks, landing_bytes);
  ArenaShape shape;
  shape.poison_offset = round_up(sizeof(Control), 4096);
  shape.slot_bytes = tuning.slot_bytes;
  shape.inline_offset = shape.poison_offset + kPoisonSlots * shape.slot_bytes;
  shape.inline_bytes = tuning.inline_bytes;
  shape.tiles_offset = shape.inline_offset + 2 * static_cast<size_t>(nranks) * shape.inline_bytes;
  shape.tiles_bytes = tuning.tiles_bytes;
  shape.total = shape.tiles_offset + shape.tiles_bytes;
  return shape;
}

// All kernels, once for each GPU: lazy loading while another kernel waits could wait for ever.
Status load_kernels() {
  ZBCCL_RETURN_IF_CUDA_ERROR(load_reductions(), "loading the reductions");
  ZBCCL_RETURN_IF_CUDA_ERROR(load_pushes(), "loading the pushes");
  ZBCCL_RETURN_IF_CUDA_ERROR(load_fused(), "loading the fused operations");
  ZBCCL_RETURN_IF_CUDA_ERROR(load_transfer(), "loading send and receive");
  ZBCCL_RETURN_IF_CUDA_ERROR(load_moe(), "loading dispatch and combine");
  ZBCCL_RETURN_IF_CUDA_ERROR(load_recover(), "loading what follows calls that did not agree");
  return {};
}

}  // namespace

// What the ranks tell each other while the team comes to be. Plain bytes.
struct DeviceTeam::Introduction {
  int32_t code = 0;
  uint32_t unreached = 0;  // a GPU that this one does not reach, which is no error
  DeviceId device;
  uint64_t process = 0;
  memory::Location arena;
  char text[256] = {};  // of either

  void fail(const Status& status) {
    code = static_cast<int32_t>(status.code());
    std::strncpy(text, status.message().c_str(), sizeof text - 1);
  }
  void note(const Result<Reach>& found) {
    if (!found.ok()) return fail(found.status());
    if (found->mapped) return;
    unreached = 1;
    std::strncpy(text, found->why.c_str(), sizeof text - 1);
  }
  std::string words() const { return {text, strnlen(text, sizeof text)}; }
};

Result<std::unique_ptr<DeviceTeam>> DeviceTeam::create(transport::Team& team, int device,
                                                       uint64_t landing_bytes, Deadline deadline,
                                                       const Exchange& exchange,
                                                       std::string* unreached) {
  auto made = std::unique_ptr<DeviceTeam>(new DeviceTeam(team, device));
  ZBCCL_RETURN_IF_ERROR(made->open(landing_bytes, deadline, exchange, unreached));
  if (!unreached->empty()) made = nullptr;
  return made;
}

// Rounds: how much landing memory everyone can spare; arenas are made; whose memory a driver lets a
// GPU reach; they are mapped; they are tried. After each, an error of one is everyone's, and so is
// a GPU out of reach.
Status DeviceTeam::open(uint64_t landing_bytes, Deadline deadline, const Exchange& exchange,
                        std::string* unreached) {
  const int nranks = team_.size();
  view_.rank = team_.rank();
  view_.nranks = nranks;
  for (int r = 0; r < nranks; ++r) processes_.push_back(team_.peer(r).process);
  std::vector<Introduction> all(static_cast<size_t>(nranks));
  const auto agree = [&](const Introduction& mine) -> Status {
    ZBCCL_RETURN_IF_ERROR(exchange(&mine, all.data(), sizeof mine));
    for (int r = 0; r < nranks; ++r) {
      const Introduction& theirs = all[static_cast<size_t>(r)];
      if (theirs.code != 0) {
        return error(static_cast<Code>(theirs.code), "rank {} cannot use its CUDA device: {}", r,
                     theirs.words());
      }
      if (theirs.unreached == 0 || !unreached->empty()) continue;
      *unreached = format("the GPU of rank {} does not reach all others: {}", r, theirs.words());
    }
    return {};
  };

  std::vector<uint64_t> landing(static_cast<size_t>(nranks));
  ZBCCL_RETURN_IF_ERROR(exchange(&landing_bytes, landing.data(), sizeof landing_bytes));
  landing_bytes_ = *std::min_element(landing.begin(), landing.end());
  Introduction mine;
  mine.process = processes_[static_cast<size_t>(rank())]->nonce();
  Status status = make_arena(&mine.arena);
  if (status.ok()) {
    mine.device = pool_->id();
  } else {
    mine.fail(status);
  }
  ZBCCL_RETURN_IF_ERROR(agree(mine));
  const std::vector<Introduction> peers = all;
  mine.note(look(peers));
  ZBCCL_RETURN_IF_ERROR(agree(mine));
  if (!unreached->empty()) return {};
  status = connect(peers, deadline);
  if (!status.ok()) mine.fail(status);
  ZBCCL_RETURN_IF_ERROR(agree(mine));
  mine.note(probe(deadline));
  ZBCCL_RETURN_IF_ERROR(agree(mine));
  return unreached->empty() ? finish(peers) : Status();
}

// The peers have acknowledged their imports by now, so the tables have everyone's arena.
Status DeviceTeam::finish(std::span<const Introduction> peers) {
  for (int r = 0; r < size(); ++r) {
    const auto i = static_cast<size_t>(r);
    const uint64_t base = remotes_[i]->base(peers[i].arena.segment);
    if (base == 0) return error(Code::kInternal, "the arena of rank {} is not mapped", r);
    view_.control[r] = reinterpret_cast<Control*>(base + peers[i].arena.offset);
    view_.segments[r] = remotes_[i]->table();
    view_.fresh_segments[r] = remotes_[i]->host_table();
    const auto there = std::count_if(peers.begin(), peers.end(), [&](const Introduction& it) {
      return it.device == peers[i].device;
    });
    sharing_ = std::max(sharing_, static_cast<int>(there));
  }
  team_.on_failure([this] { abort(); });
  return {};
}

Status DeviceTeam::make_arena(memory::Location* place) {
  if (size() > kMaxRanks) {
    return error(Code::kUnsupported, "device memory is served for up to {} ranks, not {}",
                 kMaxRanks, size());
  }
  ZBCCL_ASSIGN_OR_RETURN(pool_, DevicePool::of(device_));
  const DeviceGuard guard(device_);
  ZBCCL_RETURN_IF_ERROR(guard.status());
  ZBCCL_RETURN_IF_ERROR(load_kernels());
  view_.shape = shape_for(size(), landing_bytes_);
  ZBCCL_ASSIGN_OR_RETURN(arena_, pool_->allocate(view_.shape.total, memory::Use::kScratch));
  view_.control[rank()] = static_cast<Control*>(arena_);
  void* words = nullptr;
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaHostAlloc(&words, sizeof(HostWords), cudaHostAllocPortable),
                             "pinned memory for failures");
  words_ = new (words) HostWords;
  view_.record = &words_->record;
  view_.abort = &words_->abort;
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&side_, cudaStreamNonBlocking),
                             "a stream for aborts");
  ZBCCL_RETURN_IF_ERROR(order_.open());
  ZBCCL_RETURN_IF_ERROR(initialise_arena());
  *place = *pool_->locate(arena_, view_.shape.total);
  return {};
}

// Epochs begin at the base that the host's team begins at; what carries an epoch says so, or the
// first operation after a wrap could mistake fresh memory for its own.
Status DeviceTeam::initialise_arena() {
  auto control = std::make_unique<Control>();
  std::memset(static_cast<void*>(control.get()), 0, sizeof(Control));
  const auto base = static_cast<uint32_t>(env::get_integer("ZBCCL_EPOCH_BASE"));
  for (auto& slot : control->entries) {
    for (auto& rank : slot) std::fill(std::begin(rank), std::end(rank), base);
  }
  for (auto& slot : control->places) {
    for (auto& rank : slot) std::fill(std::begin(rank), std::end(rank), base);
  }
  for (int b = 0; b < kMaxBlocks; ++b) {
    for (int r = 0; r < kMaxRanks; ++r) {
      control->exits[b][r] = base;
      control->steps[b][r] = control->credits[b][r] = static_cast<uint64_t>(base) << 32;
    }
    control->progress[b].epoch = base;
  }
  char* const arena = static_cast<char*>(arena_);
  ZBCCL_RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(arena, control.get(), sizeof(Control), cudaMemcpyHostToDevice, side_),
      "initialising the arena");
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(arena + view_.shape.poison_offset, 0xff,
                                             kPoisonSlots * view_.shape.slot_bytes, side_),
                             "poisoning the landing memory");
  const std::vector<uint32_t> fresh(
      (view_.shape.tiles_offset - view_.shape.inline_offset) / sizeof(uint32_t), base);
  ZBCCL_RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(arena + view_.shape.inline_offset, fresh.data(),
                      fresh.size() * sizeof(uint32_t), cudaMemcpyHostToDevice, side_),
      "initialising the landing memory");
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(side_), "initialising the arena");
  return {};
}

// What can be known before anything is mapped.
Result<Reach> DeviceTeam::look(std::span<const Introduction> peers) const {
  const uint64_t process = processes_[static_cast<size_t>(rank())]->nonce();
  for (int r = 0; r < size(); ++r) {
    const Introduction& theirs = peers[static_cast<size_t>(r)];
    if (r == rank()) continue;
    if (theirs.device == pool_->id() && theirs.process != process) {
      return error(Code::kUnsupported,
                   "rank {} of another process is on the same GPU ({}): their kernels could wait "
                   "for each other for ever; give each process a GPU of its own",
                   r, theirs.device.text());
    }
    // Between ranks on one GPU, too: so that one is enough to test what is done without.
    if (env::get_string("ZBCCL_DENY_REACH") == "mapped") {
      return Reach{false, "ZBCCL_DENY_REACH denies mapped memory of other ranks"};
    }
    ZBCCL_ASSIGN_OR_RETURN(const Reach found, may_reach(device_, theirs.device));
    if (!found.mapped) return found;
  }
  return Reach{true, ""};
}

Status DeviceTeam::connect(std::span<const Introduction> peers, Deadline deadline) {
  const DeviceGuard guard(device_);
  ZBCCL_RETURN_IF_ERROR(guard.status());
  for (int r = 0; r < size(); ++r) {
    const auto i = static_cast<size_t>(r);
    ZBCCL_ASSIGN_OR_RETURN(auto remote,
                           RemoteMemory::open(processes_[i], peers[i].device, device_));
    remotes_.push_back(std::move(remote));
  }
  const auto location = *pool_->locate(arena_, view_.shape.total);
  return pool_->share(location.segment, processes_, deadline, [this] { return team_.failed(); });
}

// What the driver promises is tried: written and read back, once for each pair of GPUs.
Result<Reach> DeviceTeam::probe(Deadline deadline) {
  for (int r = 0; r < size(); ++r) {
    const auto i = static_cast<size_t>(r);
    if (remotes_[i]->id() == pool_->id()) continue;
    ZBCCL_ASSIGN_OR_RETURN(const Reach found, probe_reach(*processes_[i], *remotes_[i], deadline));
    if (!found.mapped) return found;
  }
  return Reach{true, ""};
}

DeviceTeam::~DeviceTeam() {
  team_.on_failure(nullptr);
  const DeviceGuard guard(device_);
  // Kernels that wait end at their deadline; a failed team's at once.
  order_.close();
  if (side_ != nullptr) {
    (void)cudaStreamSynchronize(side_);
    (void)cudaStreamDestroy(side_);
  }
  remotes_.clear();
  if (words_ != nullptr) (void)cudaFreeHost(words_);
  if (arena_ != nullptr) (void)pool_->free(arena_);
  kept_.clear();
}

std::function<void()> DeviceTeam::take_arena() {
  return [pool = pool_, arena = std::exchange(arena_, nullptr),
          kept = std::exchange(kept_, {})]() mutable {
    if (arena != nullptr) (void)pool->free(arena);
    kept.clear();
  };
}

TeamView DeviceTeam::view(Milliseconds timeout) const {
  TeamView view = view_;
  const Milliseconds limit = timeout.count() > 0 ? timeout : team_.timeout();
  view.timeout_ns = static_cast<uint64_t>(limit.count()) * 1'000'000;
  return view;
}

Result<Place> DeviceTeam::show(const void* data, size_t bytes) {
  if (bytes == 0) return Place{};
  auto location = pool_->locate(data, bytes);
  if (!location || (location->segment != 0 && !pool_->still_valid(*location))) {
    ZBCCL_RETURN_IF_ERROR(pool_->add_foreign(data, bytes));
    location = pool_->locate(data, bytes);
    if (!location) return error(Code::kInternal, "{} was registered and is not found", data);
  }
  ZBCCL_RETURN_IF_ERROR(pool_->share(location->segment, processes_,
                                     Deadline::after(team_.timeout()),
                                     [this] { return team_.failed(); }));
  return make_place(location->segment, location->offset);
}

void* DeviceTeam::reach(int rank, const Place& place) const {
  const uint64_t base = remotes_[static_cast<size_t>(rank)]->base(place.high >> 16);
  if (base == 0) return nullptr;
  const uint64_t offset = static_cast<uint64_t>(place.high & 0xffff) << 32 | place.low;
  return reinterpret_cast<void*>(base + offset);
}

Status DeviceTeam::write(void* to, const void* from, size_t bytes) {
  const DeviceGuard guard(device_);
  ZBCCL_RETURN_IF_ERROR(guard.status());
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, side_),
                             "copying tables");
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(side_), "copying tables");
  return {};
}

Status DeviceTeam::read(void* to, const void* from, size_t bytes, Deadline deadline) {
  const DeviceGuard guard(device_);
  ZBCCL_RETURN_IF_ERROR(guard.status());
  ZBCCL_ASSIGN_OR_RETURN(const Driver* const table, driver());
  const RelaxedCapture relaxed(*table);
  while (!order_.is_over()) {
    if (deadline.passed()) {
      return error(Code::kTimeout, "{}: what was enqueued on the device before has not ended",
                   team_.name());
    }
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, side_),
                             "reading tables");
  ZBCCL_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(side_), "reading tables");
  return {};
}

Status DeviceTeam::order(cudaStream_t stream) {
  ZBCCL_RETURN_IF_ERROR(order_.before(stream));
  if (recovered_) return {};
  // In a graph it is done by the first replay, if not by another call before; later ones find it
  // done.
  ZBCCL_RETURN_IF_CUDA_ERROR(launch_recover(view(Milliseconds(0)), generation_, stream),
                             "going on after calls that did not agree");
  ZBCCL_ASSIGN_OR_RETURN(const bool capturing, is_capturing(stream));
  recovered_ = !capturing;
  return {};
}

void DeviceTeam::abort() {
  const std::lock_guard lock(mutex_);
  if (words_ == nullptr || words_->to_peers != 0) return;
  std::atomic_ref<uint32_t>(words_->abort).store(1, std::memory_order_release);
  words_->to_peers = static_cast<uint32_t>(FailureKind::kPeerFailed) |
                     static_cast<uint32_t>(rank() + 1) << 8 |
                     static_cast<uint32_t>(FailureKind::kAborted) << 16;
  const DeviceGuard guard(device_);
  if (!guard.status().ok()) return;
  for (int r = 0; r < size(); ++r) {
    if (r == rank() || processes_[static_cast<size_t>(r)]->dead()) continue;
    (void)cudaMemcpyAsync(&view_.control[r]->failed, &words_->to_peers, sizeof(uint32_t),
                          cudaMemcpyDefault, side_);
  }
}

FailureKind DeviceTeam::recorded() const {
  return static_cast<FailureKind>(
      std::atomic_ref<uint32_t>(words_->record.kind).load(std::memory_order_acquire));
}

Status DeviceTeam::state() {
  if (recorded() == FailureKind::kNone) return {};
  const std::lock_guard lock(mutex_);
  return find_failure();
}

// The caller holds mutex_.
Status DeviceTeam::find_failure() {
  const FailureKind kind = recorded();
  if (kind == FailureKind::kNone) return {};
  if (reported_) return failure_;
  // What a peer tells of may be a death that this host hears of in a moment.
  if (first_seen_ == Clock::time_point()) first_seen_ = Clock::now();
  const bool hearsay = kind == FailureKind::kPeerFailed &&
                       static_cast<FailureKind>(words_->record.code) == FailureKind::kAborted;
  if (hearsay && !team_.failed() && Clock::now() - first_seen_ < kGrace) return {};
  failure_ = describe(words_->record);
  reported_ = true;
  return failure_;
}

Status DeviceTeam::take_failure(cudaStream_t stream) {
  if (recorded() == FailureKind::kNone) return team_.failed() ? team_.failure_status() : Status();
  Status status;
  {
    const std::lock_guard lock(mutex_);
    status = find_failure();
    if (status.ok() || !can_recover(words_->record)) return status;
    // Kernels write nothing there before the team is back in use.
    words_->record = {};
    reported_ = false;
    failure_ = {};
    first_seen_ = {};
    ++generation_;
    recovered_ = false;
  }
  ZBCCL_ASSIGN_OR_RETURN(const bool capturing, is_capturing(stream));
  if (capturing) return status;
  ZBCCL_RETURN_IF_ERROR(order(stream));
  ZBCCL_RETURN_IF_ERROR(enqueued(stream));
  return status;
}

Status DeviceTeam::describe(const FailureRecord& record) {
  // What is known better than a kernel knows it.
  const auto kind = static_cast<FailureKind>(record.kind);
  const bool told = kind == FailureKind::kAborted || kind == FailureKind::kPeerFailed;
  if (told && team_.failed()) return team_.failure_status();
  const auto base = static_cast<uint32_t>(env::get_integer("ZBCCL_EPOCH_BASE"));
  return describe_failure(record, {team_.name(), rank(), base});
}

}  // namespace zbccl::cuda
