// One collective, send or receive as NCCL's interface has it, and how zbccl makes it.
#pragma once

#include <zbccl/zbccl.h>

#include <cstdint>

#include "communicator.h"
#include "driver.h"
#include "types.h"

namespace zbccl::nccl {

enum class Kind : uint8_t {
  kAllReduce,
  kAllGather,
  kReduceScatter,
  kBroadcast,
  kReduce,
  kGather,
  kScatter,
  kAllToAll,
  kSend,
  kRecv
};

struct Call {
  Kind kind;
  const void* send;
  void* recv;
  size_t count;
  ncclDataType_t type;
  ncclRedOp_t op;
  int peer;  // or the root
  ncclComm* comm;
  cudaStream_t stream;
  uint32_t number = 0;      // among the group's calls of this communicator
  uint32_t generation = 0;  // the handle's at the time of the call
};

inline bool is_transfer(const Call& call) {
  return call.kind == Kind::kSend || call.kind == Kind::kRecv;
}
// Whether it uses an operator that a user made.
inline bool is_made_operator(const Call& call) { return call.op >= ncclNumOps; }

// Calls of one rank on a GPU name the default stream, so that zbccl refuses host memory with it:
// such calls must first wait for the stream.
inline cudaStream_t stream_of(const Call& call) {
  if (call.comm->device < 0 || call.stream != nullptr) return call.stream;
  return driver::legacy_stream();
}

// Makes it, or notes it where the thread has a group open.
ncclResult_t make(const Call& call);

// Whether zbccl can know the buffers as memory of a GPU.
bool on_device(const Call& call);
// Hands it to zbccl with this stream.
zbcclResult_t start(const Call& call, cudaStream_t stream);
// Device memory: enqueues it. Host memory: waits for its stream, and blocks until it is done.
ncclResult_t run(const Call& call);
// What a call on host memory does before it begins.
ncclResult_t drain_stream(const Call& call);

}  // namespace zbccl::nccl
