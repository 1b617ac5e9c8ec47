// How a communicator comes to be: join, connect to the peers' processes, show each other the
// control memory, meet once.
#include <algorithm>
#include <cstring>
#include <vector>

#include "base/cpu.h"
#include "base/env.h"
#include "base/fork_guard.h"
#include "base/log.h"
#include "bootstrap/rendezvous.h"
#include "comm/communicator.h"
#include "comm/graveyard.h"
#include "comm/roll_call.h"
#include "comm/tuning_file.h"
#include "memory/device_memory.h"
#include "memory/pool.h"
#include "zbccl/version.h"

namespace zbccl::comm {
namespace {

using transport::ControlBlock;

template <typename T>
std::string_view as_text(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

template <typename T>
Result<std::vector<T>> parse_all(const std::vector<std::string>& blobs) {
  std::vector<T> values(blobs.size());
  for (size_t i = 0; i < blobs.size(); ++i) {
    if (blobs[i].size() != sizeof(T)) {
      return error(Code::kVersionMismatch, "rank {} introduced itself with {} bytes, expected {}",
                   i, blobs[i].size(), sizeof(T));
    }
    std::memcpy(static_cast<void*>(&values[i]), blobs[i].data(), sizeof(T));
  }
  return values;
}

// A block of the pool that is given back unless the communicator comes to be.
struct PoolBlock {
  void* data = nullptr;
  PoolBlock() = default;
  PoolBlock(const PoolBlock&) = delete;
  PoolBlock& operator=(const PoolBlock&) = delete;
  ~PoolBlock() {
    if (data != nullptr) (void)memory::Pool::process().free(data);
  }
};

// True if every rank has a core: as many usable CPUs as ranks, and no quota below that.
bool ranks_have_cores(const std::vector<Hello>& all) {
  CpuSet cpus{};
  int64_t quota = 0;
  for (const Hello& hello : all) {
    for (size_t i = 0; i < cpus.size(); ++i) cpus[i] |= hello.cpus[i];
    if (hello.quota_millicores > 0) {
      quota = quota == 0 ? hello.quota_millicores : std::min(quota, hello.quota_millicores);
    }
  }
  const auto ranks = static_cast<int64_t>(all.size());
  return count_cpus(cpus) >= ranks && (quota == 0 || quota >= ranks * 1000);
}

bool decide_spin(const std::vector<Hello>& all) {
  const auto asks = [&](Wait wait) {
    return std::any_of(all.begin(), all.end(),
                       [&](const Hello& hello) { return hello.wait == wait; });
  };
  if (asks(Wait::kSleep)) return false;
  return asks(Wait::kSpin) || ranks_have_cores(all);
}

Options with_defaults(Options options) {
  if (options.timeout.count() <= 0)
    options.timeout = Milliseconds(env::get_integer("ZBCCL_TIMEOUT"));
  if (options.init_timeout.count() <= 0) {
    options.init_timeout = Milliseconds(env::get_integer("ZBCCL_INIT_TIMEOUT"));
  }
  if (options.wait == Wait::kAuto) {
    const std::string text = env::get_string("ZBCCL_HOST_WAIT");
    if (text == "spin") options.wait = Wait::kSpin;
    if (text == "sleep") options.wait = Wait::kSleep;
  }
  if (options.current_device == kDeviceAuto) options.current_device = memory::current_device();
  return options;
}

Hello make_hello(const memory::ProcessInfo& process, const Options& options) {
  Hello hello;
  hello.process = process;
  hello.cpus = usable_cpus();
  hello.quota_millicores = cpu_quota_millicores();
  hello.one_shot_override = static_cast<uint64_t>(env::get_integer("ZBCCL_ONE_SHOT_MAX"));
  hello.epoch_base = static_cast<uint32_t>(env::get_integer("ZBCCL_EPOCH_BASE"));
  hello.wait = options.wait;
  hello.has_device = options.chosen_device() >= 0 ? 1 : 0;
  hello.device_asked = options.device >= 0 ? 1 : 0;
  hello.fits = host_fits(read_tuning());
  return hello;
}

// The waits in the store end some time before the deadline, which the questions after who is
// missing may take: a store that stands still must not make it later. Half of what connect()
// leaves, so that a rank that waits for another's process is heard with its complaint.
Deadline shortly_before(Deadline deadline) {
  const Milliseconds left = deadline.left();
  return Deadline::after(left - std::min(left / 16, Milliseconds(250)));
}

}  // namespace

// One rank's part in making a communicator, once everybody knows who everybody is.
class Builder {
 public:
  // `store`: where the ranks meet, or null if they have a communicator for that.
  Builder(bootstrap::Store* store, std::string name, int rank, std::vector<Hello> hellos,
          Options options, Deadline deadline)
      : name_(std::move(name)),
        rank_(rank),
        nranks_(static_cast<int>(hellos.size())),
        options_(options),
        deadline_(deadline),
        hellos_(std::move(hellos)),
        roll_(store, name_, rank, hellos_, deadline) {
    spin_ = decide_spin(hellos_);
    tuning_ = plan::tuning_for(nranks_, spin_, at(0).fits, at(0).one_shot_override);
  }
  // A rank that shows its control block and then fails cannot know who has mapped it by then and
  // will write there: the block (some kilobytes) is not used again. Peers only read the outbox.
  ~Builder() {
    if (!shown_ || block_.data == nullptr) return;
    block_.data = nullptr;
    for (int r = 0; r < static_cast<int>(peers_.size()); ++r) {
      ControlBlock* theirs = peers_[static_cast<size_t>(r)].block;
      if (r == rank_ || theirs == nullptr) continue;
      theirs->left(rank_, nranks_).store(1, std::memory_order_release);
    }
  }
  Builder(const Builder&) = delete;
  Builder& operator=(const Builder&) = delete;

  // Connects to the peers' processes and makes this rank's control memory. Never fails by itself:
  // what went wrong is in the result, which the others are to see.
  Showing prepare(std::shared_ptr<memory::Exchange> exchange) {
    exchange_ = std::move(exchange);
    Showing showing;
    prepared_ = connect();
    if (prepared_.ok()) prepared_ = allocate(&showing);
    showing.code = static_cast<int32_t>(prepared_.code());
    showing.culprit = culprit_;
    showing.attachable = attachable_ ? 1 : 0;
    shown_ = prepared_.ok();
    return showing;
  }

  // Shows the others what prepare() made, in the store, and gets what they show.
  Result<std::vector<Showing>> show(const Showing& mine) {
    if (prepared_.ok()) return roll_.show(mine, shortly_before(deadline_));
    roll_.show_failure(mine);
    return prepared_;
  }

  // Maps what the others have shown, by rank, and meets them.
  Result<std::unique_ptr<Communicator>> finish(const std::vector<Showing>& showings) {
    ZBCCL_RETURN_IF_ERROR(prepared_);
    if (const Status all = roll_.check(showings); !all.ok()) {
      shown_ = false;  // everybody sees that, and nobody goes on
      return all;
    }
    if (const Status mapped = map(showings); !mapped.ok()) return roll_.explain(mapped);
    return assemble();
  }

 private:
  Status connect() {
    for (int r = 0; r < nranks_; ++r) {
      if (at(r).process.host == at(0).process.host) continue;
      return error(Code::kUnsupported,
                   "rank {} is on another machine than rank 0; this version joins the ranks of one "
                   "machine (ZBCCL_HOST_ID must be equal too)",
                   r);
    }
    attachable_ = true;
    peers_.resize(static_cast<size_t>(nranks_));
    // One that does not answer is reported in time for the others to hear of it.
    const Milliseconds reserve = std::min(deadline_.left() / 8, Milliseconds(500));
    const Deadline connect_by = Deadline::after(deadline_.left() - reserve);
    for (int i = 0; i < nranks_; ++i) {
      const int r = (rank_ + i) % nranks_;  // not everybody knocks at the same door first
      auto process = exchange_->peer(at(r).process, connect_by);
      if (!process.ok()) return roll_.unreachable(r, process.status(), culprit_);
      ZBCCL_RETURN_IF_ERROR(roll_.watch(r, *process));
      attachable_ = attachable_ && (*process)->attachable();
      peers_[static_cast<size_t>(r)].process = std::move(*process);
    }
    return {};
  }

  Status allocate(Showing* showing) {
    memory::Pool& pool = memory::Pool::process();
    const size_t block_bytes = ControlBlock::bytes(nranks_);
    ZBCCL_ASSIGN_OR_RETURN(block_.data, pool.allocate(block_bytes, memory::Use::kMetadata));
    ZBCCL_ASSIGN_OR_RETURN(outbox_.data,
                           pool.allocate(2 * tuning_.outbox_bytes, memory::Use::kScratch));
    std::memset(block_.data, 0, block_bytes);
    auto* block = static_cast<ControlBlock*>(block_.data);
    // Epochs start at rank 0's base; nothing has been entered yet.
    const uint32_t base = at(0).epoch_base;
    for (transport::Packet& packet : block->packets) packet.epoch.store(base);
    block->phase.phase.store(base);
    showing->block = *pool.locate(block_.data, block_bytes);
    showing->outbox = *pool.locate(outbox_.data, 2 * tuning_.outbox_bytes);
    return {};
  }

  Status map(const std::vector<Showing>& showings) {
    for (int r = 0; r < nranks_; ++r) {
      const Showing& theirs = showings[static_cast<size_t>(r)];
      attachable_ = attachable_ && theirs.attachable != 0;
      transport::Peer& peer = peers_[static_cast<size_t>(r)];
      ZBCCL_ASSIGN_OR_RETURN(std::byte* const block_base, import(r, theirs.block.segment));
      ZBCCL_ASSIGN_OR_RETURN(std::byte* const outbox_base, import(r, theirs.outbox.segment));
      peer.block = reinterpret_cast<ControlBlock*>(block_base + theirs.block.offset);
      peer.outbox = outbox_base + theirs.outbox.offset;
    }
    return {};
  }

  // The rank is named where its process does not answer.
  Result<std::byte*> import(int r, uint32_t segment) {
    auto base = peers_[static_cast<size_t>(r)].process->segment(segment, deadline_);
    if (base.ok()) return base;
    const Code code = base.status().code();
    if (code != Code::kTimeout && code != Code::kNetwork) return base;
    return roll_.unreachable(r, base.status(), culprit_);
  }

  Result<std::unique_ptr<Communicator>> assemble() {
    auto comm = std::unique_ptr<Communicator>(new Communicator);
    transport::TeamOptions team;
    team.rank = rank_;
    team.epoch_base = at(0).epoch_base;
    team.spin = spin_;
    team.outbox_bytes = tuning_.outbox_bytes;
    team.timeout = options_.timeout;
    team.name = name_;
    comm->generation_ = fork_generation();
    comm->name_ = name_;
    comm->options_ = options_;
    comm->tuning_ = tuning_;
    comm->hellos_ = hellos_;
    comm->exchange_ = exchange_;
    comm->metadata_bytes_ = ControlBlock::bytes(nranks_);
    comm->team_ = std::make_unique<transport::Team>(std::move(team), std::move(peers_));
    comm->team_->set_attachable(attachable_);
    comm->channels_ = std::make_unique<transport::Channels>(*comm->team_);
    block_.data = outbox_.data = nullptr;  // the communicator's from here on
    transport::Team* const watched = comm->team_.get();
    comm->observer_ =
        exchange_->add_observer([watched](uint64_t nonce) { watched->process_died(nonce); });
    // A peer that died before the observer was there.
    for (int r = 0; r < nranks_; ++r) {
      const memory::PeerProcess& process = *watched->peer(r).process;
      if (process.dead()) watched->process_died(process.nonce());
    }
    transport::Signature signature;
    signature.operation = static_cast<uint8_t>(Operation::kInit);
    ZBCCL_RETURN_IF_ERROR(watched->enter(signature, {}, {}, deadline_.left()));
    log::info(log::Subsys::kInit,
              "{}: rank {} of {}, version {}.{}.{}, {}, one-shot to {} bytes, {} memory of others",
              name_, rank_, nranks_, ZBCCL_MAJOR, ZBCCL_MINOR, ZBCCL_PATCH,
              spin_ ? "spinning" : "sleeping", tuning_.one_shot_max,
              attachable_ ? "attaches to" : "does not attach to");
    ZBCCL_RETURN_IF_ERROR(comm->make_engine(deadline_));
    return comm;
  }

  const Hello& at(int r) const { return hellos_[static_cast<size_t>(r)]; }

  std::string name_;
  int rank_;
  int nranks_;
  Options options_;
  Deadline deadline_;
  std::shared_ptr<memory::Exchange> exchange_;
  std::vector<Hello> hellos_;
  RollCall roll_;
  Status prepared_;
  int culprit_ = -1;  // of what prepared_ says
  bool spin_ = true;
  plan::Tuning tuning_;
  bool attachable_ = false;
  std::vector<transport::Peer> peers_;
  PoolBlock block_;
  PoolBlock outbox_;
  bool shown_ = false;
};

Result<std::unique_ptr<Communicator>> Communicator::create(bootstrap::Store& store,
                                                           const std::string& name, int rank,
                                                           int nranks, const Options& given) {
  env::warn_unknown();
  if (nranks < 1 || nranks > transport::kMaxRanks) {
    return error(Code::kInvalidArgument, "a communicator of {} ranks cannot be made; 1 to {} can",
                 nranks, transport::kMaxRanks);
  }
  // A rank outside [0, nranks) is reported by the join, which tells the other ranks too.
  reap();
  const Options options = with_defaults(given);
  const Deadline deadline = Deadline::after(options.init_timeout);
  ZBCCL_ASSIGN_OR_RETURN(auto exchange, memory::Exchange::acquire());
  ZBCCL_RETURN_IF_ERROR(store.attend(name, rank, nranks, deadline));
  auto made = [&]() -> Result<std::unique_ptr<Communicator>> {
    const Hello hello = make_hello(exchange->info(), options);
    ZBCCL_ASSIGN_OR_RETURN(
        const auto met,
        bootstrap::join(store, name, rank, nranks, as_text(hello), shortly_before(deadline)));
    ZBCCL_ASSIGN_OR_RETURN(std::vector<Hello> hellos, parse_all<Hello>(met));
    Builder builder(&store, name, rank, std::move(hellos), options, deadline);
    const Showing mine = builder.prepare(exchange);
    ZBCCL_ASSIGN_OR_RETURN(const std::vector<Showing> showings, builder.show(mine));
    return builder.finish(showings);
  }();
  store.leave(name, rank, made.status());
  return made;
}

// Everything is exchanged between the parent's ranks, who know each other: no store is needed.
Result<std::unique_ptr<Communicator>> Communicator::split(int color, int key,
                                                          const Options& given) {
  ZBCCL_RETURN_IF_ERROR(check_process());
  reap();
  const Options options = with_defaults(given);
  struct Choice {
    int32_t color;
    int32_t key;
    Wait wait;
    uint32_t has_device;
    uint32_t device_asked;
  };
  // The parent's device, unless another or none is asked for.
  Options child = options;
  if (child.device == kDeviceAuto && engine_ != nullptr) child.device = device();
  const Choice mine = {color, key, options.wait, child.chosen_device() >= 0 ? 1U : 0U,
                       options.device >= 0 ? 1U : 0U};
  std::vector<Choice> choices(static_cast<size_t>(size()));
  ZBCCL_RETURN_IF_ERROR(exchange(&mine, choices.data(), sizeof mine, options.init_timeout));

  std::vector<std::pair<int, int>> members;  // key, rank in the parent
  for (int r = 0; r < size(); ++r) {
    const Choice& choice = choices[static_cast<size_t>(r)];
    if (choice.color == color) members.emplace_back(choice.key, r);
  }
  std::sort(members.begin(), members.end());
  const int number = splits_++;
  std::vector<Showing> all(choices.size());
  if (color < 0) {
    const Showing nothing;
    ZBCCL_RETURN_IF_ERROR(exchange(&nothing, all.data(), sizeof nothing, options.init_timeout));
    return std::unique_ptr<Communicator>();
  }
  std::vector<Hello> hellos;
  for (const auto& [unused, r] : members) {
    hellos.push_back(hellos_[static_cast<size_t>(r)]);
    const Choice& choice = choices[static_cast<size_t>(r)];
    hellos.back().wait = choice.wait;
    hellos.back().has_device = choice.has_device;
    hellos.back().device_asked = choice.device_asked;
  }
  const auto place = std::find(members.begin(), members.end(), std::pair(key, rank()));
  Builder builder(nullptr, format("{}.{}.{}", name_, number, color),
                  static_cast<int>(place - members.begin()), std::move(hellos), child,
                  Deadline::after(options.init_timeout));
  const Showing shown = builder.prepare(exchange_);
  ZBCCL_RETURN_IF_ERROR(exchange(&shown, all.data(), sizeof shown, options.init_timeout));
  std::vector<Showing> theirs;
  for (const auto& [unused, r] : members) theirs.push_back(all[static_cast<size_t>(r)]);
  return builder.finish(theirs);
}

}  // namespace zbccl::comm
