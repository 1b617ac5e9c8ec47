// Making communicators.
#include <zbccl/zbccl.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "communicator.h"
#include "define.h"
#include "driver.h"
#include "job.h"
#include "meeting.h"

namespace zbccl::nccl {
namespace {

static_assert(sizeof(ncclUniqueId) == sizeof(zbcclUniqueId));

zbcclConfig_t config_of(const Settings& settings, int device) {
  zbcclConfig_t config = ZBCCL_CONFIG_INITIALIZER;
  config.device = device >= 0 ? device : ZBCCL_DEVICE_NONE;
  config.max_blocks = settings.max_blocks;
  return config;
}

ncclResult_t check_rank(int rank, int nranks) {
  if (nranks < 1) {
    return fail(ncclInvalidArgument, "{} ranks cannot form a communicator", nranks);
  }
  if (rank >= 0 && rank < nranks) return ncclSuccess;
  return fail(ncclInvalidArgument, "{} is not a rank; there are {}", rank, nranks);
}

ncclComm* prepare(const Settings& settings, const Identity& identity) {
  ncclComm* const comm = new_communicator();
  comm->settings = settings;
  comm->identity = identity;
  return comm;
}

ncclResult_t submit_for(ncclComm* target, ncclComm* parent, ncclComm_t* out, Job::Make make,
                        bool blocking) {
  auto job = std::make_shared<Job>(std::move(make), target, parent, out, blocking);
  if (target != nullptr) target->job = job;
  if (parent != nullptr) parent->job = job;
  *out = target;
  return submit(std::move(job));
}

ncclResult_t init_rank(ncclComm_t* out, int nranks, const ncclUniqueId& id, int rank,
                       const ncclConfig_t* config) {
  ZBCCL_NCCL_TRY(check_pointer(out, "comm"));
  *out = nullptr;
  ZBCCL_NCCL_TRY(check_rank(rank, nranks));
  Settings settings;
  ZBCCL_NCCL_TRY(read_config(config, &settings));
  zbcclUniqueId own = {};
  std::memcpy(own.internal, id.internal, sizeof own.internal);
  // Here and not when the job runs, on a thread that has no device.
  const zbcclConfig_t how = config_of(settings, driver::current_device());
  const Identity identity({id.internal, sizeof id.internal});
  return submit_for(
      prepare(settings, identity), nullptr, out,
      [=](zbcclComm_t* made) {
        const driver::Current current(how.device);
        return result_of(zbcclCommInitRank(made, nranks, own, rank, &how));
      },
      settings.blocking);
}

// Devices of ncclCommInitAll; -1 for ranks without one.
ncclResult_t devices_for(int ndev, const int* devices, std::vector<int>* chosen) {
  const int found = driver::count_devices();
  if (devices == nullptr && found == 0)
    return chosen->assign(static_cast<size_t>(ndev), -1), ncclSuccess;
  for (int i = 0; i < ndev; ++i) {
    const int device = devices != nullptr ? devices[i] : i;
    if (device < 0 || device >= found) {
      return fail(ncclInvalidArgument, "there is no GPU {}: this process sees {} of them", device,
                  found);
    }
    chosen->push_back(device);
  }
  return ncclSuccess;
}

ncclResult_t init_all(ncclComm_t* comms, int ndev, const int* devices) {
  ZBCCL_NCCL_TRY(check_pointer(comms, "comm"));
  ZBCCL_NCCL_TRY(check_rank(0, ndev));
  std::vector<int> chosen;
  ZBCCL_NCCL_TRY(devices_for(ndev, devices, &chosen));
  zbcclStore_t store = nullptr;
  ZBCCL_NCCL_TRY(result_of(zbcclStoreCreateLocal(&store)));
  const std::shared_ptr<zbcclStore> kept(store, [](zbcclStore_t it) { zbcclStoreDestroy(it); });
  const Identity identity = Identity::random();
  std::vector<std::shared_ptr<Job>> jobs;
  for (int r = 0; r < ndev; ++r) {
    const zbcclConfig_t how = config_of({}, chosen[static_cast<size_t>(r)]);
    comms[r] = prepare({}, identity);
    jobs.push_back(std::make_shared<Job>(
        [=](zbcclComm_t* made) {
          const driver::Current current(how.device);
          return result_of(zbcclCommInitStore(made, ndev, r, kept.get(), "all", &how));
        },
        comms[r], nullptr, comms + r, true));
  }
  const ncclResult_t result = run_jobs(jobs);
  if (result == ncclSuccess) return result;
  for (int r = 0; r < ndev; ++r) {
    if (comms[r] == nullptr) continue;
    release(comms[r]);
    retire(std::exchange(comms[r], nullptr));
  }
  return result;
}

ncclResult_t split(ncclComm* comm, int color, int key, ncclComm_t* out,
                   const ncclConfig_t* config) {
  ZBCCL_NCCL_TRY(check_usable(comm));
  ZBCCL_NCCL_TRY(check_pointer(out, "newcomm"));
  *out = nullptr;
  if (color < 0 && color != NCCL_SPLIT_NOCOLOR) {
    return fail(ncclInvalidArgument, "the color is {}, expected 0 or more, or NCCL_SPLIT_NOCOLOR",
                color);
  }
  Settings settings = comm->settings;
  ZBCCL_NCCL_TRY(read_config(config, &settings));
  const uint64_t number = comm->splits++;
  const zbcclConfig_t how = config_of(settings, comm->device);
  ncclComm* const target =
      color >= 0
          ? prepare(settings, comm->identity.derive("split", number, static_cast<uint64_t>(color)))
          : nullptr;
  return submit_for(
      target, comm, out,
      [=](zbcclComm_t* made) {
        const driver::Current current(how.device);
        const InUse use(comm);
        ZBCCL_NCCL_TRY(use.check());
        return result_of(zbcclCommSplit(comm->inner, color, key, made, &how));
      },
      settings.blocking);
}

// The ranks that stay, in order.
ncclResult_t survivors_of(const ncclComm* comm, const int* excluded, int num_excluded,
                          std::vector<int>* left) {
  std::vector<bool> gone(static_cast<size_t>(comm->nranks), false);
  for (int i = 0; i < num_excluded; ++i) {
    const int rank = excluded[i];
    if (rank < 0 || rank >= comm->nranks || gone[static_cast<size_t>(rank)]) {
      return fail(ncclInvalidArgument, "{} is not a rank of {}, or is excluded twice", rank,
                  comm->nranks);
    }
    gone[static_cast<size_t>(rank)] = true;
  }
  if (gone[static_cast<size_t>(comm->rank)]) {
    return fail(ncclInvalidArgument, "rank {} excludes itself; ranks that leave do not call this",
                comm->rank);
  }
  for (int r = 0; r < comm->nranks; ++r) {
    if (!gone[static_cast<size_t>(r)]) left->push_back(r);
  }
  return ncclSuccess;
}

ncclResult_t shrink(ncclComm* comm, const int* excluded, int num_excluded, ncclComm_t* out,
                    const ncclConfig_t* config, int flags) {
  ZBCCL_NCCL_TRY(check_settled(comm));
  ZBCCL_NCCL_TRY(check_pointer(out, "newcomm"));
  *out = nullptr;
  if (num_excluded < 1) {
    return fail(ncclInvalidArgument, "{} ranks are excluded, expected at least 1", num_excluded);
  }
  ZBCCL_NCCL_TRY(check_pointer(excluded, "excludeRanksList"));
  if (flags != NCCL_SHRINK_DEFAULT && flags != NCCL_SHRINK_ABORT) {
    return fail(ncclInvalidArgument, "the flags of a shrink are {}, expected 0 or 1", flags);
  }
  std::vector<int> left;
  ZBCCL_NCCL_TRY(survivors_of(comm, excluded, num_excluded, &left));
  Settings settings = comm->settings;
  ZBCCL_NCCL_TRY(read_config(config, &settings));
  // What the survivors call themselves depends on who they are, so two opinions do not mix.
  Identity place = comm->identity.derive("shrink", comm->shrinks++, left.size());
  for (const int rank : left) place = place.derive("left", static_cast<uint64_t>(rank), 0);
  const int rank = static_cast<int>(std::find(left.begin(), left.end(), comm->rank) - left.begin());
  const int nranks = static_cast<int>(left.size());
  const zbcclConfig_t how = config_of(settings, comm->device);
  const bool abort = flags == NCCL_SHRINK_ABORT;
  return submit_for(
      prepare(settings, place), comm, out,
      [=](zbcclComm_t* made) {
        if (abort && comm->inner != nullptr) {
          ZBCCL_NCCL_TRY(result_of(zbcclCommAbort(comm->inner)));
        }
        const driver::Current current(how.device);
        zbcclUniqueId id = {};
        ZBCCL_NCCL_TRY(meet(place, rank, nranks, init_timeout(), &id));
        return result_of(zbcclCommInitRank(made, nranks, id, rank, &how));
      },
      settings.blocking);
}

}  // namespace
}  // namespace zbccl::nccl

using zbccl::nccl::check_pointer;
using zbccl::nccl::guard;

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclGetUniqueId, (ncclUniqueId * id)) {
  return guard([&]() -> ncclResult_t {
    ZBCCL_NCCL_TRY(check_pointer(id, "uniqueId"));
    zbcclUniqueId own = {};
    ZBCCL_NCCL_TRY(zbccl::nccl::result_of(zbcclGetUniqueId(&own)));
    std::memcpy(id->internal, own.internal, sizeof id->internal);
    return ncclSuccess;
  });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclCommInitRank,
                  (ncclComm_t * comm, int nranks, ncclUniqueId id, int rank)) {
  return guard([&] { return zbccl::nccl::init_rank(comm, nranks, id, rank, nullptr); });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclCommInitRankConfig,
                  (ncclComm_t * comm, int nranks, ncclUniqueId id, int rank,
                   ncclConfig_t* config)) {
  return guard([&] { return zbccl::nccl::init_rank(comm, nranks, id, rank, config); });
}

// One meeting place is enough for the ranks of a machine, so the first id counts.
ZBCCL_NCCL_DEFINE(ncclResult_t, ncclCommInitRankScalable,
                  (ncclComm_t * comm, int nranks, int rank, int nids, ncclUniqueId* ids,
                   ncclConfig_t* config)) {
  return guard([&]() -> ncclResult_t {
    ZBCCL_NCCL_TRY(check_pointer(ids, "commIds"));
    if (nids < 1 || nids > nranks) {
      return zbccl::nccl::fail(ncclInvalidArgument, "{} ids for {} ranks; expected 1 to {}", nids,
                               nranks, nranks);
    }
    return zbccl::nccl::init_rank(comm, nranks, ids[0], rank, config);
  });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclCommInitAll,
                  (ncclComm_t * comms, int ndev, const int* devices)) {
  return guard([&] { return zbccl::nccl::init_all(comms, ndev, devices); });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclCommSplit,
                  (ncclComm_t comm, int color, int key, ncclComm_t* out, ncclConfig_t* config)) {
  return guard([&] { return zbccl::nccl::split(comm, color, key, out, config); });
}

ZBCCL_NCCL_DEFINE(ncclResult_t, ncclCommShrink,
                  (ncclComm_t comm, int* excluded, int num_excluded, ncclComm_t* out,
                   ncclConfig_t* config, int flags)) {
  return guard(
      [&] { return zbccl::nccl::shrink(comm, excluded, num_excluded, out, config, flags); });
}
