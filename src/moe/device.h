// What a moe object does with memory of its GPU: the seam between dispatch and combine as every
// build has them and src/moe/cuda, which a build without CUDA leaves out. One thread at a time.
//
// Calls enqueue on the stream of the context and return. Arguments that are wrong are an error of
// this rank alone: nothing is enqueued then.
#pragma once

#include <zbccl/moe.h>

#include <cstdint>
#include <memory>
#include <span>

#include "base/clock.h"
#include "base/status.h"
#include "collectives/collective.h"

namespace zbccl::moe {

class Handle;
class Moe;

class DeviceHalf {
 public:
  // Where the peers find this rank's board.
  struct Board {
    uint32_t high = 0;
    uint32_t low = 0;
  };

  virtual ~DeviceHalf() = default;
  virtual Board board() const = 0;
  // Once every rank has shown its board, by rank.
  virtual Status connect(std::span<const Board> boards) = 0;
  virtual int device() const = 0;
  virtual uint64_t metadata_bytes() const = 0;
  virtual uint64_t held_bytes() const = 0;

  // The routing, dispatch or combine of a handle that is on the device.
  virtual Status route(collectives::Context& context, const zbcclMoeRouting_t& routing,
                       Handle& handle, Milliseconds timeout) = 0;
  virtual Status dispatch(collectives::Context& context, const zbcclMoeDispatch_t& call,
                          Handle& handle, Milliseconds timeout) = 0;
  // Both, with the handle's own routing, which has a capacity.
  virtual Status route_and_dispatch(collectives::Context& context, const zbcclMoeDispatch_t& call,
                                    Handle& handle, Milliseconds timeout) = 0;
  virtual Status combine(collectives::Context& context, const zbcclMoeCombine_t& call,
                         Handle& handle, Milliseconds timeout) = 0;
};

// Null where there are more experts than kernels serve. `moe` has its map, and lives longer.
Result<std::unique_ptr<DeviceHalf>> make_device_half(collectives::Context& context, Moe& moe);

}  // namespace zbccl::moe
