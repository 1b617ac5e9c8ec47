// Dispatch and combine on a communicator's GPU: memory that kernels of this rank and its peers
// share, and the calls. One thread at a time, except what Tables::settle() uses.
#pragma once

#include <mutex>
#include <vector>

#include "collectives/cuda/engine.h"
#include "kernels/cuda/moe.h"
#include "moe/device.h"
#include "moe/handle.h"
#include "moe/moe.h"
#include "moe/shapes.h"

namespace zbccl::moe {

// Host memory that the kernels of a route write, for as long as the host has not read it.
struct HostCounts {
  int32_t* words = nullptr;  // [ranks, moe_words]
  cuda::MoeTotals* totals = nullptr;
  uint32_t* done = nullptr;
};

class CudaHalf final : public DeviceHalf {
 public:
  static Result<std::unique_ptr<CudaHalf>> create(cuda::Engine& engine, Moe& moe);

  Board board() const override { return {board_.high, board_.low}; }
  Status connect(std::span<const Board> boards) override;
  int device() const override { return engine_.device(); }
  uint64_t metadata_bytes() const override { return own_bytes_; }
  uint64_t held_bytes() const override;

  Status route(collectives::Context& context, const zbcclMoeRouting_t& routing, Handle& handle,
               Milliseconds timeout) override;
  Status dispatch(collectives::Context& context, const zbcclMoeDispatch_t& call, Handle& handle,
                  Milliseconds timeout) override;
  Status route_and_dispatch(collectives::Context& context, const zbcclMoeDispatch_t& call,
                            Handle& handle, Milliseconds timeout) override;
  Status combine(collectives::Context& context, const zbcclMoeCombine_t& call, Handle& handle,
                 Milliseconds timeout) override;

  // --- for Tables ---

  // Memory of handles. It is kept for the next ones, which the order of the team's calls keeps
  // apart from what still runs, and given back with the communicator.
  struct Block {
    char* data = nullptr;
    size_t bytes = 0;
  };
  Result<Block> take_block(size_t bytes);
  void give_block(Block block);
  Result<HostCounts> take_counts();
  void give_counts(const HostCounts& counts);

  Moe& moe() { return moe_; }
  cuda::Engine& engine() { return engine_; }
  int words() const { return cuda::moe_words(view_.experts, engine_.team().size()); }

 private:
  CudaHalf(cuda::Engine& engine, Moe& moe) : engine_(engine), moe_(moe) {}
  Status make_board();
  Status make_tables();
  Status add_counts();
  // What the ranks compare of a call, the same for every peer.
  cuda::EntryCall entry_for(Operation operation, uint32_t settings, int blocks,
                            uint64_t count) const;
  // Grid of a call that would like `blocks`.
  int blocks_for(const collectives::Context& context, int blocks) const;
  // Tables for the handle, and the arguments of the kernels that fill them.
  Result<cuda::RouteArgs> prepare_route(const collectives::Context& context,
                                        const zbcclMoeRouting_t& routing, Handle& handle,
                                        Milliseconds timeout);
  Status enqueue_route(const collectives::Context& context, const cuda::RouteArgs& args,
                       Milliseconds timeout);
  cuda::DispatchArgs dispatch_args(const zbcclMoeDispatch_t& call, const DispatchShape& shape,
                                   const Handle& handle) const;
  // `route`: what has to be done before, or null.
  Status enqueue_dispatch(const collectives::Context& context, const zbcclMoeDispatch_t& call,
                          Handle& handle, const cuda::RouteArgs* route, Milliseconds timeout);
  Status receive_dispatch(const collectives::Context& context, const zbcclMoeDispatch_t& call,
                          Handle& handle, Milliseconds timeout);

  cuda::Engine& engine_;
  Moe& moe_;
  cuda::MoeView view_;
  cuda::Place board_;
  uint64_t own_bytes_ = 0;

  mutable std::mutex mutex_;  // guards what follows
  std::vector<Block> spare_;
  std::vector<HostCounts> spare_counts_;
  uint64_t block_bytes_ = 0;  // of all, spare or not
};

}  // namespace zbccl::moe
