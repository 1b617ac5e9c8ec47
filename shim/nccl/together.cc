// The calls of one group.
#include <zbccl/zbccl.h>

#include <algorithm>
#include <deque>
#include <vector>

#include "call.h"
#include "driver.h"
#include "group.h"
#include "premultiplied.h"

namespace zbccl::nccl {
namespace {

// The communicators of the group's calls, held against aborts of other threads.
class Held {
 public:
  ncclResult_t hold(const std::vector<Call>& calls) {
    for (const Call& call : calls) {
      if (call.number != 0) continue;  // once each
      ZBCCL_NCCL_TRY(users_.emplace_back(call.comm).check());
    }
    return ncclSuccess;
  }

 private:
  std::deque<InUse> users_;
};

// Keeps the first error; the other calls are made all the same, since other ranks wait for them.
class First {
 public:
  void keep(ncclResult_t result) {
    if (result_ == ncclSuccess) result_ = result;
  }
  ncclResult_t result() const { return result_; }

 private:
  ncclResult_t result_ = ncclSuccess;
};

// Round by round, so that a thread that calls for several ranks does not fill one's queue while
// another, which it waits for, has nothing yet.
void interleave(std::vector<Call>& calls) {
  const bool once =
      std::all_of(calls.begin(), calls.end(), [](const Call& call) { return call.number == 0; });
  if (once) return;
  std::stable_sort(calls.begin(), calls.end(),
                   [](const Call& a, const Call& b) { return a.number < b.number; });
}

ncclResult_t in_one_group(const std::vector<Call>& calls, const cudaStream_t* stream) {
  ZBCCL_NCCL_TRY(result_of(zbcclGroupStart()));
  for (const Call& call : calls) {
    // Refused ones make the end refuse the group, with their message.
    (void)start(call, stream != nullptr ? *stream : nullptr);
  }
  return result_of(zbcclGroupEnd());
}

// Sends and receives of one communicator on device memory.
ncclResult_t transfer(const std::vector<Call>& calls) {
  std::vector<cudaStream_t> streams;
  for (const Call& call : calls) {
    cudaStream_t stream = stream_of(call);
    if (std::find(streams.begin(), streams.end(), stream) == streams.end()) {
      streams.push_back(stream);
    }
  }
  driver::Joint joint(std::move(streams), calls.front().comm->device);
  ZBCCL_NCCL_TRY(joint.fork());
  cudaStream_t stream = joint.stream();
  ZBCCL_NCCL_TRY(in_one_group(calls, &stream));
  return joint.join();
}

// Takes what lies on the device out of `transfers`.
ncclResult_t transfer_on_device(std::vector<Call>& transfers) {
  First first;
  std::vector<Call> host;
  while (!transfers.empty()) {
    ncclComm* const comm = transfers.front().comm;
    std::vector<Call> now;
    std::vector<Call> later;
    for (const Call& call : transfers) {
      if (call.comm != comm) {
        later.push_back(call);
      } else {
        (comm->device >= 0 && on_device(call) ? now : host).push_back(call);
      }
    }
    if (!now.empty()) first.keep(transfer(now));
    transfers = std::move(later);
  }
  transfers = std::move(host);
  return first.result();
}

}  // namespace

ncclResult_t run_on_host(const std::vector<Call>& calls) {
  for (const Call& call : calls) ZBCCL_NCCL_TRY(drain_stream(call));
  if (calls.size() == 1 && !is_transfer(calls.front())) {
    return result_of(start(calls.front(), nullptr));
  }
  return in_one_group(calls, nullptr);
}

ncclResult_t run_together(std::vector<Call>& calls) {
  Held held;
  ZBCCL_NCCL_TRY(held.hold(calls));
  interleave(calls);
  First first;
  // Collectives first, as NCCL does; then what must meet within the group.
  std::vector<Call> transfers;
  std::vector<Call> host;
  std::vector<Call> premultiplied;
  for (const Call& call : calls) {
    if (is_transfer(call)) {
      transfers.push_back(call);
    } else if (is_made_operator(call)) {
      premultiplied.push_back(call);
    } else if (call.comm->device < 0) {
      host.push_back(call);
    } else {
      const zbcclResult_t result = start(call, stream_of(call));
      if (result == zbcclUnsupported && !on_device(call)) {
        host.push_back(call);
      } else {
        first.keep(result_of(result));
      }
    }
  }
  if (!premultiplied.empty()) first.keep(run_premultiplied(premultiplied));
  if (!transfers.empty()) first.keep(transfer_on_device(transfers));
  host.insert(host.end(), transfers.begin(), transfers.end());
  if (!host.empty()) first.keep(run_on_host(host));
  return first.result();
}

}  // namespace zbccl::nccl
