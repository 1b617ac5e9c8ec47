#include "calibrate/device_measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string_view>

#include "perf/cuda_member.h"
#include "perf/cuda_runtime.h"
#include "perf/cuda_series.h"
#include "perf/operation.h"
#include "perf/variant.h"

namespace zbccl::tools {
namespace {

constexpr size_t kKilo = 1 << 10;
constexpr size_t kMega = 1 << 20;
constexpr size_t kSmallest = 4 * kKilo;
constexpr size_t kLargest = 64 * kMega;
constexpr size_t kGridBytes = 16 * kMega;
constexpr int kFewBlocks = 16;  // where the bulk-copy engine may pay
constexpr int kTurns = 4;
constexpr zbcclDataType_t kType = zbcclBfloat16;

// An algorithm, or a form of it that other settings give.
struct Way {
  const char* name;
  const char* algorithm;
  const char* settings = "";
};

std::vector<Way> algorithms(std::initializer_list<const char*> names) {
  std::vector<Way> ways;
  for (const char* name : names) ways.push_back({name, name});
  return ways;
}

// What is measured: an operation, and the ways that the plan has for it.
struct Contest {
  Op op;
  size_t smallest;
  int max_blocks;
  std::vector<Way> ways;
};

// Which form pull_push has in the contests behind this one.
const Contest& spreading() {
  static const Contest contest = {Op::kAllReduce,
                                  kMega,
                                  0,
                                  {{"one_kernel", "pull_push", "spread_min=1099511627776"},
                                   {"two_kernels", "pull_push", "spread_min=0"}}};
  return contest;
}

std::vector<Contest> contests(int ranks) {
  std::vector<Contest> all = {
      {Op::kAllReduce, kSmallest, 0,
       algorithms({"one_shot", "two_shot", "two_shot_direct", "chunked", "pull_push"})},
      {Op::kReduceScatter, kSmallest, 0, algorithms({"one_shot", "pull"})},
      {Op::kAllGather, kSmallest, 0, algorithms({"inline", "push", "push_bulk"})},
      {Op::kAllGather, 256 * kKilo, kFewBlocks, algorithms({"push", "push_bulk"})},
      // Whole rows of 4096 elements.
      {Op::kAllReduceRmsNorm, 8 * kKilo, 0,
       algorithms({"one_shot", "two_shot_direct", "pull_push"})},
  };
  Contest broadcast = {Op::kBroadcast, kSmallest, 0, algorithms({"inline", "push"})};
  if (ranks > 2) broadcast.ways = algorithms({"inline", "push", "relay", "chain"});
  all.push_back(broadcast);
  return all;
}

struct Grid {
  const char* field;
  Op op;
  const char* algorithm;
};

std::vector<Grid> grids(int ranks) {
  std::vector<Grid> all = {{"pull_blocks", Op::kReduceScatter, "pull"},
                           {"chunk_blocks", Op::kAllReduce, "chunked"},
                           {"push_blocks", Op::kAllGather, "push"},
                           {"bulk_blocks", Op::kAllGather, "push_bulk"},
                           {"norm_blocks", Op::kAllReduceRmsNorm, "pull_push"},
                           {"quantized_blocks", Op::kAllReduceQuantized, "two_shot"}};
  if (ranks > 2) all.push_back({"relay_blocks", Op::kBroadcast, "chain"});
  return all;
}

std::vector<size_t> sizes(size_t first, size_t factor) {
  std::vector<size_t> list;
  for (size_t bytes = first; bytes <= kLargest; bytes *= factor) list.push_back(bytes);
  return list;
}

class DeviceMeasurer {
 public:
  DeviceMeasurer(Communicator& control, int device, double seconds)
      : control_(control),
        device_(device),
        input_(kLargest, DeviceMemoryKind::kPool, device),
        output_(kLargest, DeviceMemoryKind::kPool, device),
        extra_(extra_bytes(Op::kAllReduceRmsNorm, kLargest), DeviceMemoryKind::kPool, device) {
    options_.seconds = seconds;
    // What is measured is the algorithm, with the landing memory that a first communicator has.
    setenv("ZBCCL_TUNING_FILE", "none", 1);
    setenv("ZBCCL_DEVICE_LANDING", "22M", 1);
  }

  // The grids first, then the form of pull_push: the limits between algorithms are those of the
  // grids and forms that they get.
  DeviceMeasured run() {
    DeviceMeasured measured;
    measured.ranks = control_.size();
    measured.gpu = model();
    for (const Grid& grid : grids(control_.size())) measured.grids.push_back(measure_grid(grid));
    measured.sweeps.push_back(measure_contest(spreading()));
    for (const FittedLadder& ladder : fit_ladders(measured)) {
      for (const FittedValue& value : ladder.values) settle(value.field->name, value.value);
    }
    for (const Contest& contest : contests(control_.size())) {
      measured.sweeps.push_back(measure_contest(contest));
    }
    for (auto& [algorithm, comm] : ways_) comm.destroy();
    control_.barrier();
    return measured;
  }

 private:
  // One algorithm's call; stays where it is.
  struct Side {
    Communicator* comm = nullptr;
    const char* algorithm = "";
    Variant variant;
    int max_blocks = 0;
    CudaPlan plan;
    std::optional<CudaSeries> series;
    DeviceMeasurer* owner = nullptr;

    void call() const {
      zbcclCall_t how = ZBCCL_CALL_INITIALIZER;
      how.stream = owner->stream_.get();
      how.max_blocks = max_blocks;
      const Variant& v = variant;
      zbccl::tools::call(*comm, v.spec, v.buffers, v.shape, v.rank, v.ranks, &how);
    }
  };

  std::string model() const {
    cudaDeviceProp properties = {};
    check_cuda(cudaGetDeviceProperties(&properties, device_), "cudaGetDeviceProperties");
    return properties.name;
  }

  // Collective. The library takes rank 0's settings; every rank sets the same.
  Communicator forced(const char* algorithm, const std::string& tuning) {
    setenv("ZBCCL_ALGORITHM", algorithm, 1);
    setenv("ZBCCL_DEVICE_TUNING", tuning.c_str(), 1);
    return device_communicator(control_, device_, 0).comm;
  }

  // Made when it is first asked for, with what is settled by then.
  Communicator& comm_of(const Way& way) {
    const auto found = ways_.find(way.name);
    if (found != ways_.end()) return found->second;
    const char* const comma = settled_.empty() || *way.settings == '\0' ? "" : ",";
    const std::string settings = fmt::format("{}{}{}", settled_, comma, way.settings);
    return ways_.emplace(way.name, forced(way.algorithm, settings)).first->second;
  }

  // Collective: rank 0's value.
  void settle(std::string_view field, uint64_t value) {
    Buffer<uint64_t> shared(1);
    shared[0] = value;
    control_.broadcast(shared.span(), 0);
    if (!settled_.empty()) settled_ += ',';
    settled_ += fmt::format("{}={}", field, shared[0]);
  }

  GridSweep measure_grid(const Grid& grid) {
    GridSweep sweep{grid.field, op_name(grid.op), kGridBytes, {}};
    std::vector<Point> points;
    for (const size_t blocks : {16, 32, 64, 96, 128}) {
      Communicator comm = forced(grid.algorithm, fmt::format("{}={}", grid.field, blocks));
      std::vector<std::unique_ptr<Side>> sides;
      sides.push_back(side_of(comm, grid.algorithm, grid.op, kGridBytes, 0));
      const std::vector<double> us = measure(sides);
      if (!us.empty()) points.push_back({blocks, us[0]});
      sides.clear();
      control_.barrier();  // everyone's graphs are gone
      comm.destroy();
    }
    sweep.times = Curve(std::move(points));
    const uint64_t blocks = choose_blocks(sweep.times);
    if (blocks > 0) settle(grid.field, blocks);
    return sweep;
  }

  DeviceSweep measure_contest(const Contest& contest) {
    DeviceSweep sweep;
    sweep.operation = op_name(contest.op);
    sweep.max_blocks = contest.max_blocks;
    std::vector<std::vector<Point>> times(contest.ways.size());
    std::vector<std::vector<Point>> held(contest.ways.size());
    measure_sizes(contest, sizes(contest.smallest, 2), times);
    measure_sizes(contest, sizes(contest.smallest / 2 * 3, 4), held);
    for (size_t i = 0; i < contest.ways.size(); ++i) {
      sweep.ways.push_back(
          {contest.ways[i].name, Curve(std::move(times[i])), Curve(std::move(held[i]))});
    }
    return sweep;
  }

  void measure_sizes(const Contest& contest, const std::vector<size_t>& list,
                     std::vector<std::vector<Point>>& points) {
    std::vector<bool> serves(contest.ways.size(), true);
    for (const size_t bytes : list) {
      std::vector<std::unique_ptr<Side>> sides;
      std::vector<size_t> places;
      for (size_t i = 0; i < contest.ways.size(); ++i) {
        if (!serves[i]) continue;
        const Way& way = contest.ways[i];
        auto side = side_of(comm_of(way), way.algorithm, contest.op, bytes, contest.max_blocks);
        serves[i] = takes_its_algorithm(*side);
        if (!serves[i]) continue;
        sides.push_back(std::move(side));
        places.push_back(i);
      }
      const std::vector<double> us = measure(sides);
      for (size_t i = 0; i < us.size(); ++i) points[places[i]].push_back({bytes, us[i]});
      sides.clear();
      control_.barrier();  // everyone's graphs are gone
    }
  }

  std::unique_ptr<Side> side_of(Communicator& comm, const char* algorithm, Op op, size_t bytes,
                                int max_blocks) {
    auto side = std::make_unique<Side>();
    side->owner = this;
    side->comm = &comm;
    side->algorithm = algorithm;
    side->max_blocks = max_blocks;
    Variant& v = side->variant;
    v.spec.op = op;
    v.spec.type = kType;
    v.rank = control_.rank();
    v.ranks = control_.size();
    v.element = zbcclTypeSize(kType);
    v.shape = shape_of(op, bytes, v.element, v.rank, v.ranks);
    v.buffers = {input_.data(), output_.data(), extra_.data()};
    return side;
  }

  // Collective: once. Where the plan cannot have what is forced it takes another, the same on every
  // rank.
  bool takes_its_algorithm(const Side& side) {
    side.call();
    stream_.wait();
    check_state(side);
    return std::string(side.comm->last_algorithm()) == side.algorithm;
  }

  // Collective: medians of the slowest rank, in turn, so that a disturbance meets all of them.
  std::vector<double> measure(const std::vector<std::unique_ptr<Side>>& sides) {
    for (const auto& side : sides) {
      const Side* const it = side.get();
      control_.barrier();
      const std::function<void()> call = [it] { it->call(); };
      side->plan = plan_series(control_, stream_, call, options_, kTurns);
      side->series.emplace(stream_, call, side->plan.calls, true);
      check_state(*side);
    }
    for (int turn = 0; turn < kTurns; ++turn) {
      for (const auto& side : sides) {
        side->series->run(control_, side->plan.replays);
        check_state(*side);
      }
    }
    std::vector<double> us;
    us.reserve(sides.size());
    for (const auto& side : sides) us.push_back(side->series->timing(control_).p50);
    return us;
  }

  static void check_state(const Side& side) {
    const zbcclResult_t state = side.comm->async_error();
    if (state == zbcclSuccess) return;
    throw Error(state, fmt::format("{} by {} failed on the device", op_name(side.variant.spec.op),
                                   side.algorithm));
  }

  Communicator& control_;
  const int device_;
  PerfOptions options_;
  CudaStream stream_;
  CudaMemory input_;
  CudaMemory output_;
  CudaMemory extra_;
  std::string settled_;  // as ZBCCL_DEVICE_TUNING takes it
  std::map<std::string, Communicator> ways_;
};

}  // namespace

DeviceMeasured measure_device_rank(double seconds) {
  const zbcclConfig_t config = host_config();
  Communicator control = Communicator::from_environment(&config);
  const int device = local_gpu(control.rank());
  warm_up(device);
  const DeviceMeasured measured = DeviceMeasurer(control, device, seconds).run();
  control.barrier();
  control.destroy();
  return measured;
}

}  // namespace zbccl::tools
