// Unique ids, stores, and the life of communicators.
#include <zbccl/zbccl.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/env.h"
#include "bootstrap/rendezvous.h"
#include "bootstrap/tcp_store.h"
#include "bootstrap/unique_id.h"
#include "capi/group.h"
#include "capi/guard.h"
#include "capi/handles.h"
#include "memory/device_memory.h"
#include "plan/plan.h"

namespace {

using namespace zbccl;
using capi::check_handle;
using capi::check_pointer;
using capi::guard;
using comm::Communicator;

// Servers that zbcclGetUniqueId started. The calls that make or destroy a communicator or an id end
// those whose ranks have met and left; where ranks are still there, the server ends after them.
class Servers {
 public:
  static Servers& instance() {
    static Servers* const servers = new Servers;
    return *servers;
  }
  void add(std::unique_ptr<bootstrap::TcpStoreServer> server) {
    const std::lock_guard lock(mutex_);
    servers_.push_back(std::move(server));
  }
  void stop_abandoned() {
    const std::lock_guard lock(mutex_);
    for (const auto& server : servers_) {
      if (server->clients() > 0) server->stop_when_idle();
    }
    std::erase_if(servers_, [](const auto& server) { return server->abandoned(); });
  }

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<bootstrap::TcpStoreServer>> servers_;
};

Status check_count(int nranks) {
  if (nranks >= 1) return {};
  return error(Code::kInvalidArgument, "{} ranks cannot form a communicator", nranks);
}

Result<comm::Options> parse(const zbcclConfig_t* config) {
  comm::Options options;
  if (config == nullptr) return options;
  ZBCCL_RETURN_IF_ERROR(capi::check_size(config->size, sizeof *config, "zbcclConfig_t"));
  if (config->timeout_ms < 0 || config->init_timeout_ms < 0) {
    return error(Code::kInvalidArgument, "a timeout in zbcclConfig_t is negative");
  }
  if (config->host_wait < 0 || config->host_wait > 2) {
    return error(Code::kInvalidArgument, "zbcclConfig_t.host_wait is {}, expected 0, 1 or 2",
                 config->host_wait);
  }
  options.timeout = Milliseconds(config->timeout_ms);
  options.init_timeout = Milliseconds(config->init_timeout_ms);
  if (config->device < comm::kDeviceNone || config->max_blocks < 0) {
    return error(Code::kInvalidArgument, "zbcclConfig_t.{} is {}",
                 config->max_blocks < 0 ? "max_blocks" : "device",
                 config->max_blocks < 0 ? config->max_blocks : config->device);
  }
  options.wait = static_cast<comm::Wait>(config->host_wait);
  options.device = config->device;
  options.max_blocks = config->max_blocks;
  return options;
}

Deadline init_deadline(const comm::Options& options) {
  return Deadline::after(options.init_timeout.count() > 0
                             ? options.init_timeout
                             : Milliseconds(env::get_integer("ZBCCL_INIT_TIMEOUT")));
}

// Reaching the store has taken some of the time to initialise; this much is left.
comm::Options with_rest(comm::Options options, Deadline deadline) {
  options.init_timeout = std::max(deadline.left(), Milliseconds(1));
  return options;
}

Status hand_out(Result<std::unique_ptr<Communicator>> made, zbcclComm_t* comm) {
  Servers::instance().stop_abandoned();
  if (!made.ok()) return made.status();
  *comm = *made != nullptr ? capi::Shells<zbcclComm>::make(std::move(*made)) : nullptr;
  return {};
}

// Here a malformed id is an argument, not the state of the environment.
Result<bootstrap::UniqueId> parse_id(std::string_view text) {
  auto parsed = bootstrap::UniqueId::parse(text);
  if (!parsed.ok()) return error(Code::kInvalidArgument, "{}", parsed.status().message());
  return parsed;
}

Result<bootstrap::UniqueId> parse_id(const zbcclUniqueId& id) {
  const std::string_view text(id.internal, strnlen(id.internal, sizeof id.internal));
  return parse_id(text);
}

}  // namespace

extern "C" {

zbcclResult_t zbcclGetUniqueId(zbcclUniqueId* id) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_pointer(id, "id"));
    Servers::instance().stop_abandoned();
    bootstrap::UniqueId made;
    made.host = bootstrap::host_address();
    ZBCCL_ASSIGN_OR_RETURN(made.secret, bootstrap::make_secret());
    ZBCCL_ASSIGN_OR_RETURN(auto server, bootstrap::TcpStoreServer::start("", 0, made.secret));
    made.port = server->port();
    const std::string text = made.to_string();
    if (text.size() >= sizeof id->internal) {
      return error(Code::kInternal, "a unique id of {} bytes is too long", text.size());
    }
    std::memset(id, 0, sizeof *id);
    std::memcpy(id->internal, text.data(), text.size());
    Servers::instance().add(std::move(server));
    return {};
  });
}

zbcclResult_t zbcclUniqueIdToString(const zbcclUniqueId* id, char* text, size_t size) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_pointer(id, "id"));
    ZBCCL_RETURN_IF_ERROR(check_pointer(text, "text"));
    ZBCCL_ASSIGN_OR_RETURN(const bootstrap::UniqueId parsed, parse_id(*id));
    const std::string made = parsed.to_string();
    if (made.size() >= size) {
      return error(Code::kInvalidArgument, "the buffer has {} bytes, {} are needed", size,
                   made.size() + 1);
    }
    std::memcpy(text, made.c_str(), made.size() + 1);
    return {};
  });
}

zbcclResult_t zbcclUniqueIdFromString(const char* text, zbcclUniqueId* id) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_pointer(text, "text"));
    ZBCCL_RETURN_IF_ERROR(check_pointer(id, "id"));
    ZBCCL_ASSIGN_OR_RETURN(const bootstrap::UniqueId parsed, parse_id(text));
    const std::string made = parsed.to_string();
    if (made.size() >= sizeof id->internal) {
      return error(Code::kInvalidArgument, "the text of a unique id is too long");
    }
    std::memset(id, 0, sizeof *id);
    std::memcpy(id->internal, made.data(), made.size());
    return {};
  });
}

zbcclResult_t zbcclStoreCreateLocal(zbcclStore_t* store) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_pointer(store, "store"));
    *store = capi::Shells<zbcclStore>::make(bootstrap::make_local_store());
    return {};
  });
}

zbcclResult_t zbcclStoreCreateC10d(const char* host, int port, zbcclStore_t* store) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_pointer(host, "host"));
    ZBCCL_RETURN_IF_ERROR(check_pointer(store, "store"));
    if (port < 1 || port > 65535) {
      return error(Code::kInvalidArgument, "{} is not a port", port);
    }
    ZBCCL_ASSIGN_OR_RETURN(auto made,
                           bootstrap::connect_c10d_store(host, static_cast<uint16_t>(port),
                                                         init_deadline(comm::Options{})));
    *store = capi::Shells<zbcclStore>::make(std::move(made));
    return {};
  });
}

zbcclResult_t zbcclStoreDestroy(zbcclStore_t store) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_handle(store));
    (void)capi::Shells<zbcclStore>::take(store);
    return {};
  });
}

zbcclResult_t zbcclCommInitRank(zbcclComm_t* comm, int nranks, zbcclUniqueId id, int rank,
                                const zbcclConfig_t* config) {
  const auto start = [&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_pointer(comm, "comm"));
    ZBCCL_RETURN_IF_ERROR(check_count(nranks));
    ZBCCL_ASSIGN_OR_RETURN(comm::Options options, parse(config));
    // A group makes the communicator on another thread.
    const int current = memory::current_device();
    options.current_device = current >= 0 ? current : comm::kDeviceNone;
    ZBCCL_ASSIGN_OR_RETURN(const bootstrap::UniqueId parsed, parse_id(id));
    const auto init = [=]() -> Status {
      const Deadline deadline = init_deadline(options);
      ZBCCL_ASSIGN_OR_RETURN(auto store, bootstrap::connect_tcp_store(parsed, deadline));
      return hand_out(
          Communicator::create(*store, "world", rank, nranks, with_rest(options, deadline)), comm);
    };
    if (!capi::Group::open()) return init();
    capi::Group::of_this_thread().add_init(init);
    return {};
  };
  return guard([&] {
    Status status = start();
    return status.ok() ? status : capi::Group::refuse(std::move(status));
  });
}

zbcclResult_t zbcclCommInitEnv(zbcclComm_t* comm, const zbcclConfig_t* config) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_pointer(comm, "comm"));
    ZBCCL_ASSIGN_OR_RETURN(const comm::Options options, parse(config));
    const Deadline deadline = init_deadline(options);
    ZBCCL_ASSIGN_OR_RETURN(auto found, bootstrap::from_environment(deadline));
    // The same store serves every communicator that this job makes from its environment.
    static std::atomic<int> number{0};
    const int n = number.fetch_add(1);
    const std::string name = n == 0 ? std::string("world") : format("world{}", n);
    return hand_out(Communicator::create(*found.store, name, found.rank, found.nranks,
                                         with_rest(options, deadline)),
                    comm);
  });
}

zbcclResult_t zbcclCommInitStore(zbcclComm_t* comm, int nranks, int rank, zbcclStore_t store,
                                 const char* name, const zbcclConfig_t* config) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_pointer(comm, "comm"));
    ZBCCL_RETURN_IF_ERROR(check_handle(store));
    ZBCCL_RETURN_IF_ERROR(check_pointer(name, "name"));
    ZBCCL_RETURN_IF_ERROR(check_count(nranks));
    if (*name == '\0' || std::strlen(name) > 256) {
      return error(Code::kInvalidArgument, "the name of a communicator has 1 to 256 characters");
    }
    ZBCCL_ASSIGN_OR_RETURN(const comm::Options options, parse(config));
    return hand_out(Communicator::create(*store->object, name, rank, nranks, options), comm);
  });
}

zbcclResult_t zbcclCommInitAll(zbcclComm_t* comms, int nranks, const zbcclConfig_t* config) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_pointer(comms, "comms"));
    ZBCCL_RETURN_IF_ERROR(check_count(nranks));
    ZBCCL_ASSIGN_OR_RETURN(const comm::Options options, parse(config));
    const auto store = bootstrap::make_local_store();
    std::vector<std::unique_ptr<Communicator>> made(static_cast<size_t>(nranks));
    std::vector<Status> results(static_cast<size_t>(nranks));
    std::vector<std::thread> threads;
    for (int r = 0; r < nranks; ++r) {
      threads.emplace_back([&, r] {
        auto result = Communicator::create(*store, "local", r, nranks, options);
        if (result.ok()) made[static_cast<size_t>(r)] = std::move(*result);
        results[static_cast<size_t>(r)] = result.status();
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const Status& result : results) ZBCCL_RETURN_IF_ERROR(result);
    for (int r = 0; r < nranks; ++r) {
      comms[r] = capi::Shells<zbcclComm>::make(std::move(made[static_cast<size_t>(r)]));
    }
    return {};
  });
}

zbcclResult_t zbcclCommSplit(zbcclComm_t comm, int color, int key, zbcclComm_t* out,
                             const zbcclConfig_t* config) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_handle(comm));
    ZBCCL_RETURN_IF_ERROR(check_pointer(out, "out"));
    ZBCCL_ASSIGN_OR_RETURN(const comm::Options options, parse(config));
    return hand_out(comm->object->split(color, key, options), out);
  });
}

zbcclResult_t zbcclCommDestroy(zbcclComm_t comm) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_handle(comm));
    (void)capi::Shells<zbcclComm>::take(comm);
    Servers::instance().stop_abandoned();
    return {};
  });
}

zbcclResult_t zbcclCommAbort(zbcclComm_t comm) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_handle(comm));
    comm->object->abort();
    return {};
  });
}

zbcclResult_t zbcclCommGetAsyncError(zbcclComm_t comm, zbcclResult_t* state) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_handle(comm));
    ZBCCL_RETURN_IF_ERROR(check_pointer(state, "state"));
    *state = static_cast<zbcclResult_t>(comm->object->state().code());
    return {};
  });
}

zbcclResult_t zbcclCommCount(zbcclComm_t comm, int* nranks) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_handle(comm));
    ZBCCL_RETURN_IF_ERROR(check_pointer(nranks, "nranks"));
    *nranks = comm->object->size();
    return {};
  });
}

zbcclResult_t zbcclCommGetDevice(zbcclComm_t comm, int* device) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_handle(comm));
    ZBCCL_RETURN_IF_ERROR(check_pointer(device, "device"));
    *device = comm->object->device();
    return {};
  });
}

zbcclResult_t zbcclCommUserRank(zbcclComm_t comm, int* rank) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_handle(comm));
    ZBCCL_RETURN_IF_ERROR(check_pointer(rank, "rank"));
    *rank = comm->object->rank();
    return {};
  });
}

zbcclResult_t zbcclCommGetStats(zbcclComm_t comm, zbcclCommStats_t* stats) {
  return guard([&]() -> Status {
    ZBCCL_RETURN_IF_ERROR(check_handle(comm));
    ZBCCL_RETURN_IF_ERROR(check_pointer(stats, "stats"));
    ZBCCL_RETURN_IF_ERROR(capi::check_size(stats->size, sizeof *stats, "zbcclCommStats_t"));
    const comm::Stats values = comm->object->stats();
    stats->operations = values.operations;
    stats->failures = values.failures;
    stats->bytes = values.bytes;
    stats->staged_bytes = values.staged_bytes;
    stats->landing_bytes = values.landing_bytes;
    stats->metadata_bytes = values.metadata_bytes;
    stats->wait_ns = values.wait_ns;
    return {};
  });
}

const char* zbcclCommLastAlgorithm(zbcclComm_t comm) {
  if (!check_handle(comm).ok()) return "none";
  return comm->object->last_algorithm();
}

}  // extern "C"
