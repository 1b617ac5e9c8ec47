#include "bootstrap/rendezvous.h"

#include <atomic>
#include <utility>

#include "base/env.h"
#include "base/log.h"
#include "bootstrap/auth.h"
#include "bootstrap/launcher.h"
#include "bootstrap/meeting_file.h"
#include "bootstrap/served_store.h"
#include "bootstrap/socket.h"
#include "bootstrap/tcp_store.h"

namespace zbccl::bootstrap {
namespace {

using StoreResult = Result<std::shared_ptr<Store>>;

struct Endpoint {
  std::string host;
  uint16_t port = 0;
};

Result<Endpoint> master_endpoint(std::string_view needed_by) {
  const auto host = variable("MASTER_ADDR");
  if (!host) return error(Code::kInvalidUsage, "MASTER_ADDR is not set, which {} needs", needed_by);
  auto port = port_variable("MASTER_PORT");
  if (!port.ok()) return port.status().with_prefix(format("{} needs MASTER_PORT", needed_by));
  return Endpoint{*host, *port};
}

StoreResult meet_with_unique_id(const std::string& text, Deadline deadline) {
  auto id = UniqueId::parse(text);
  if (!id.ok()) return id.status().with_prefix("ZBCCL_UNIQUE_ID");
  return connect_tcp_store(*id, deadline);
}

// Rank 0 serves at MASTER_ADDR:MASTER_PORT with a secret from a file that every rank can read.
StoreResult meet_with_secret_file(const Placement& me, const std::string& path, Deadline deadline) {
  ZBCCL_ASSIGN_OR_RETURN(const Endpoint master, master_endpoint("ZBCCL_SECRET_FILE"));
  auto base = read_secret_file(path);
  if (!base.ok()) return base.status().with_prefix("ZBCCL_SECRET_FILE");
  // A secret of its own for each job, so that ranks of two jobs with one file never mix.
  ZBCCL_ASSIGN_OR_RETURN(const Secret secret,
                         hmac(*base, format("zbccl job {} at {} {}", me.job_is_global ? me.job : "",
                                            master.host, master.port)));
  const UniqueId id{master.host, master.port, secret};
  if (me.rank != 0) return connect_tcp_store(id, deadline);
  const std::string name = "master " + endpoint_text(id.host, id.port);
  auto lease = lease_server(name, "", id.port, secret);
  if (!lease.ok()) return lease.status().with_prefix("MASTER_PORT");
  ZBCCL_ASSIGN_OR_RETURN(auto store, connect_tcp_store({"127.0.0.1", id.port, secret}, deadline));
  return make_served_store(std::move(store), std::move(*lease), nullptr);
}

// One attempt at what the file says now; kNetwork where there is nothing yet, or where what is
// there was left by a run that has ended.
StoreResult connect_by_file(const MeetingFile& file, UniqueId& id, Deadline deadline) {
  ZBCCL_ASSIGN_OR_RETURN(const auto there, file.read());
  if (!there) {
    return error(Code::kNetwork, "rank 0 has not left its address in {}", file.path());
  }
  id = *there;
  auto store = connect_tcp_store(id, earlier(deadline, Deadline::after(Milliseconds(500))));
  if (store.ok() || store.status().code() == Code::kVersionMismatch) return store;
  return error(Code::kNetwork, "{} names a store that does not answer: {}", file.path(),
               store.status().message());
}

// The last rank to arrive removes the file: nobody needs it any more.
Status arrive(Store& store, const Placement& me, const MeetingFile& file, const UniqueId& id,
              Deadline deadline) {
  constexpr std::string_view kName = "zbccl/arrival";
  ZBCCL_RETURN_IF_ERROR(store.attend(kName, me.rank, me.nranks, deadline));
  const auto count = store.add(std::string(kName) + "/count", 1);
  store.leave(kName, me.rank, count.status());
  if (count.ok() && *count == me.nranks) file.remove_if(id);
  return count.status();
}

// All ranks are on this machine: rank 0 serves on the loopback interface and leaves the address and
// a fresh secret in a file that only this user can read.
StoreResult meet_over_file(const Placement& me, int turn, Deadline deadline) {
  const std::string name = format("{}-{}-of-{}", me.job, turn, me.nranks);
  ZBCCL_ASSIGN_OR_RETURN(const MeetingFile file, MeetingFile::open(name));
  UniqueId id;
  std::shared_ptr<Store> store;
  if (me.rank == 0) {
    id.host = "127.0.0.1";
    ZBCCL_ASSIGN_OR_RETURN(id.secret, make_secret());
    ZBCCL_ASSIGN_OR_RETURN(auto lease, lease_server(name, id.host, 0, id.secret));
    id.port = lease->port();
    ZBCCL_ASSIGN_OR_RETURN(auto client, connect_tcp_store(id, deadline));
    ZBCCL_RETURN_IF_ERROR(file.write(id));
    store =
        make_served_store(std::move(client), std::move(lease), [file, id] { file.remove_if(id); });
  } else {
    const std::string what = format(
        "{} rank {} of {} did not meet rank 0 on this machine (ranks on several machines "
        "need ZBCCL_UNIQUE_ID, or ZBCCL_SECRET_FILE with MASTER_ADDR and MASTER_PORT)",
        launcher_name(me.launcher), me.rank, me.nranks);
    ZBCCL_ASSIGN_OR_RETURN(store, retry_until(deadline, what, [&](Deadline attempt) {
                             return connect_by_file(file, id, attempt);
                           }));
  }
  ZBCCL_RETURN_IF_ERROR(arrive(*store, me, file, id, deadline));
  return store;
}

// torchrun's agent serves a store at MASTER_PORT and says so; without that, somebody else may (a
// process group of this program, for example), which is soon found out.
StoreResult meet_with_torchrun(const Placement& me, Deadline deadline) {
  ZBCCL_ASSIGN_OR_RETURN(const Endpoint master, master_endpoint("torchrun's RANK and WORLD_SIZE"));
  const bool agent = variable("TORCHELASTIC_USE_AGENT_STORE") == "True";
  const Milliseconds patience(me.rank == 0 ? 3'000 : 30'000);
  auto store = connect_c10d_store(master.host, master.port,
                                  agent ? deadline : earlier(deadline, Deadline::after(patience)));
  if (!store.ok() && !agent && store.status().code() == Code::kTimeout) {
    return error(
        Code::kInvalidUsage,
        "RANK and WORLD_SIZE are set but no launcher serves a store at MASTER_ADDR:MASTER_PORT "
        "({}): TORCHELASTIC_USE_AGENT_STORE is not True. Start with torchrun or `zbccl run`, set "
        "ZBCCL_UNIQUE_ID, or set ZBCCL_SECRET_FILE so that rank 0 can serve there",
        endpoint_text(master.host, master.port));
  }
  if (!store.ok()) return store.status();
  // The agent's store outlives a restart of the ranks: each gets keys of its own.
  return make_prefix_store(std::move(*store),
                           format("zbccl/{}/{}/", variable("TORCHELASTIC_RUN_ID").value_or("none"),
                                  variable("TORCHELASTIC_RESTART_COUNT").value_or("0")));
}

StoreResult meet(const Placement& me, int turn, Deadline deadline) {
  if (me.nranks == 1) return make_local_store();
  const std::string unique_id = env::get_string("ZBCCL_UNIQUE_ID");
  if (!unique_id.empty()) return meet_with_unique_id(unique_id, deadline);
  const std::string secret_file = env::get_string("ZBCCL_SECRET_FILE");
  if (!secret_file.empty()) return meet_with_secret_file(me, secret_file, deadline);
  if (me.launcher == Launcher::kTorchrun) return meet_with_torchrun(me, deadline);
  if (me.one_machine) return meet_over_file(me, turn, deadline);
  return error(Code::kInvalidUsage,
               "{} runs {} ranks on several machines, which need a secret to know each other by: "
               "set ZBCCL_SECRET_FILE to a file that only you can read and that every machine "
               "sees (umask 077; openssl rand -hex 32 > FILE), with MASTER_ADDR and MASTER_PORT "
               "of rank 0, or ZBCCL_UNIQUE_ID",
               launcher_name(me.launcher), me.nranks);
}

}  // namespace

Result<Rendezvous> from_environment(Deadline deadline) {
  // Collective: the nth call of every rank is one rendezvous with keys of its own.
  static std::atomic<int> turns{0};
  const int turn = ++turns;

  ZBCCL_ASSIGN_OR_RETURN(const auto placement, find_placement());
  Rendezvous result;
  if (!placement) {
    if (env::is_set("ZBCCL_UNIQUE_ID")) {
      return error(Code::kInvalidUsage,
                   "ZBCCL_UNIQUE_ID is set but ZBCCL_RANK and ZBCCL_WORLD_SIZE are not, and no "
                   "launcher says which rank this is: set both");
    }
    result.source = "single rank";
    result.store = make_local_store();
    log::info(log::Subsys::kInit, "no launcher's variables are set: a single rank");
    return result;
  }
  result.rank = placement->rank;
  result.nranks = placement->nranks;
  result.local_rank = placement->local_rank;
  result.source = launcher_name(placement->launcher);
  ZBCCL_ASSIGN_OR_RETURN(auto store, meet(*placement, turn, deadline));
  log::info(log::Subsys::kInit, "rank {} of {} by the variables of {}, meeting in the store {}",
            result.rank, result.nranks, result.source, store->describe());
  result.store = make_prefix_store(std::move(store), format("zbccl/{}/", turn));
  return result;
}

}  // namespace zbccl::bootstrap
