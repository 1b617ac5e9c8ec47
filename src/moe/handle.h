// What one exchange of counts told this rank: where every row goes that it receives, and where the
// rows of its own tokens are. Written by Moe::route, then read only.
#pragma once

#include <zbccl/moe.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "moe/moe.h"
#include "moe/places.h"

namespace zbccl::moe {

class Handle;

// What a handle of device memory adds to the host's: tables on the GPU, whose counts the host gets
// to know later.
class DeviceTables {
 public:
  virtual ~DeviceTables() = default;
  // Returns once `handle` has its counts; an error where the route was wrong. Any thread.
  virtual Status settle(Handle& handle) = 0;
};

class Handle {
 public:
  explicit Handle(std::shared_ptr<Moe> moe);
  ~Handle();
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;

  bool on_device() const { return on_device_; }
  // Before Moe::route: the routing's arrays are memory of the communicator's GPU.
  void set_on_device() { on_device_ = true; }
  // On the device: waits until the counts are known here.
  Status settle() { return device == nullptr ? Status() : device->settle(*this); }
  // kInvalidUsage before Moe::route has filled it in, or where that failed.
  Status check_ready() const;
  void fill(zbcclMoeInfo_t* info) const;

  Layout layout() const { return static_cast<Layout>(routing.layout); }
  bool by_expert() const { return layout() != Layout::kRankMajor; }
  // Rows of a dispatch's outputs, and of a combine's input, that are used at all.
  int64_t used_rows() const {
    // With a capacity on the device how many rows there are is not known here.
    const bool all = layout() == Layout::kExpertMasked || (on_device_ && routing.capacity > 0);
    return all ? places.allocated_rows : places.num_rows;
  }

  // Rows that come from one source one after the other.
  struct Section {
    const uint32_t* items;  // in the source's list: slots, or tokens (RankMajor)
    int64_t count;          // kept
    int64_t row;            // where the first goes
    int32_t local;          // the expert; RankMajor: 0
  };
  // Those of `source`, whose list is at `items`. `use` returns a Status.
  template <typename Use>
  Status for_each_section(int source, const uint32_t* items, Use&& use) const;
  // written_rows, expert_counts and source_counts, from the table and the places.
  void count_rows();

  std::shared_ptr<Moe> moe;
  std::unique_ptr<DeviceTables> device;
  std::atomic<int> state{0};  // 1: ready, 2: failed
  // The first dispatch is to route, too; as the rest, of the calls' thread.
  bool routes_later = false;
  int64_t number = 0;
  zbcclMoeRouting_t routing =
      ZBCCL_MOE_ROUTING_INITIALIZER;  // once routed, its pointers are not used any more
  Table table;
  Places places;
  std::vector<int64_t> list_begins;  // where each source's list of rows for this rank begins

  // Of this rank's own tokens. In pool memory, for the peers: `experts` [T, K], then the list.
  Moe::Block block;
  std::span<const int32_t> experts;
  std::span<const uint32_t> list;
  // Expert layouts: [T, K] the row on the expert's rank; -1: none.
  std::vector<int32_t> rows;
  // RankMajor: [T, stops_each], by rank; the first without a rank ends them.
  struct Stop {
    int32_t rank = -1;
    int32_t row = -1;
  };
  std::vector<Stop> stops;
  size_t stops_each = 0;
  bool send_overflow = false;

  // For info().
  int64_t written_rows = 0;
  std::vector<int32_t> expert_counts;
  std::vector<int32_t> source_counts;
  int64_t counted_bytes = 0;  // metadata, as told to `moe`

 private:
  bool on_device_ = false;
};

template <typename Use>
Status Handle::for_each_section(int source, const uint32_t* items, Use&& use) const {
  const auto s = static_cast<size_t>(source);
  const auto ranks = static_cast<size_t>(moe->map().num_ranks());
  items += list_begins[s];
  if (!by_expert()) {
    const int64_t begin = places.offsets[s];
    const int64_t kept = rows_kept(begin, places.offsets[s + 1] - begin, places.limits[0]);
    return use(Section{items, kept, begin, 0});
  }
  const std::span<const int32_t> mine = moe->map().experts_of(moe->rank());
  const auto all = static_cast<size_t>(moe->map().num_experts());
  for (size_t e = 0; e < mine.size(); ++e) {
    const int32_t count = table.counts[s * all + static_cast<size_t>(mine[e])];
    const int64_t begin = places.begins[e * ranks + s];
    const int64_t kept = rows_kept(begin, count, places.limits[e]);
    if (kept > 0) {
      if (Status status = use(Section{items, kept, begin, static_cast<int32_t>(e)}); !status.ok()) {
        return status;
      }
    }
    items += count;
  }
  return {};
}

}  // namespace zbccl::moe
