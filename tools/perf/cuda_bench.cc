#include "perf/cuda_bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <stdexcept>
#include <thread>

#include "perf/cuda_check.h"
#include "perf/cuda_nccl.h"
#include "perf/cuda_series.h"
#include "perf/report.h"
#include "perf/variant.h"

namespace zbccl::tools {
namespace {

using Clock = std::chrono::steady_clock;

// What is compared is measured in turn, so that a disturbance meets all of it.
constexpr int kTurns = 4;
constexpr int kMeetings = 20;

// The blocks of memory that a library's calls work on.
struct Blocks {
  Blocks(size_t bytes, size_t extra_bytes, DeviceMemoryKind kind, int device)
      : first(bytes, kind, device), second(bytes, kind, device), extra(extra_bytes, kind, device) {}
  CudaMemory first;
  CudaMemory second;
  CudaMemory extra;
};

DeviceNames names_of(int device, const CudaNccl* nccl) {
  cudaDeviceProp properties = {};
  int driver = 0;
  int runtime = 0;
  check_cuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  check_cuda(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  check_cuda(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  return {properties.name, cuda_version_text(driver), cuda_version_text(runtime),
          nccl != nullptr ? nccl->version() : ""};
}

class CudaBench {
 public:
  CudaBench(const CudaMember& member, const PerfOptions& options)
      : control_(member.control),
        comm_(member.comm),
        options_(options),
        rank_(member.control.rank()),
        ranks_(member.control.size()),
        blocks_(options.max_bytes, extra_bytes(options.op, options.max_bytes), options.cuda.memory,
                member.device) {
    if (!options.compare.empty()) {
      nccl_.emplace(load_nccl(options.cuda.nccl_library), control_);
      nccl_blocks_.emplace(std::max<size_t>(options.max_bytes, sizeof(uint64_t)), 0,
                           DeviceMemoryKind::kPlain, member.device);
    }
    const size_t checked = options.cuda.check_max > 0
                               ? std::min(options.cuda.check_max, options.max_bytes)
                               : options.max_bytes;
    if (options.check && has_data(options.op)) check_.emplace(control_, options.op, checked);
    report_.emplace(options, ranks_, names_of(member.device, nccl_ ? &*nccl_ : nullptr));
    Buffer<double> slowest(1);
    slowest[0] = member.init_ms;
    control_.all_reduce(slowest.span(), zbcclMax);
    init_ms_ = slowest[0];
  }

  uint64_t run() {
    if (rank_ == 0) report_->print_header();
    for (const zbcclDataType_t type : types()) {
      for (const zbcclRedOp_t redop : redops()) {
        for (const size_t bytes : sizes_of(options_))
          run_row(spec_of(options_, type, redop), bytes);
      }
    }
    if (rank_ == 0) report_->print_footer(init_ms_);
    if (rank_ == 0) report_->write_json();
    control_.barrier();
    return wrong_;
  }

 private:
  // One library's call in one placement.
  struct Side {
    Variant variant;
    const Blocks* blocks = nullptr;
    std::function<void()> call;
    std::optional<CudaSeries> series;
    CudaPlan plan;
  };

  std::vector<zbcclDataType_t> types() const {
    return has_data(options_.op) ? options_.types : std::vector{zbcclUint8};
  }
  std::vector<zbcclRedOp_t> redops() const {
    return reduces(options_.op) ? options_.redops : std::vector{zbcclSum};
  }

  Variant variant_of(const CallSpec& spec, size_t bytes, const Blocks& blocks, bool in_place) {
    Variant variant;
    variant.spec = spec;
    variant.rank = rank_;
    variant.ranks = ranks_;
    variant.element = zbcclTypeSize(spec.type);
    variant.shape = shape_of(spec.op, bytes, variant.element, rank_, ranks_);
    variant.in_place = in_place;
    variant.buffers = {blocks.first.data(), blocks.second.data()};
    if (in_place) {
      variant.buffers =
          in_place_buffers(spec.op, blocks.second.data(), variant.shape, variant.element, rank_);
    }
    variant.buffers.extra = blocks.extra.data();
    return variant;
  }

  // `side` stays where it is from now on.
  void use_zbccl(Side& side, const Variant& variant) {
    side.variant = variant;
    side.blocks = &blocks_;
    side.call = [this, &side] {
      zbcclCall_t how = ZBCCL_CALL_INITIALIZER;
      how.stream = stream_.get();
      how.max_blocks = options_.cuda.max_blocks;
      const Variant& v = side.variant;
      zbccl::tools::call(comm_, v.spec, v.buffers, v.shape, rank_, ranks_, &how);
    };
  }

  void use_nccl(Side& side, const Variant& variant) {
    side.variant = variant;
    side.blocks = &*nccl_blocks_;
    side.call = [this, &side] {
      const Variant& v = side.variant;
      nccl_->call(v.spec, v.buffers, v.shape, stream_.get());
    };
  }

  void run_row(const CallSpec& spec, size_t bytes) {
    const Row row = measured_row(spec, bytes);
    for (const auto* measurement : {&row.out_of_place, &row.in_place}) {
      if (*measurement) wrong_ += (*measurement)->wrong.value_or(0);
    }
    if (rank_ == 0) report_->add(row);
    control_.barrier();  // everyone's graphs are gone
  }

  Row measured_row(const CallSpec& spec, size_t bytes) {
    Side out;
    Side in;
    Side peer;
    use_zbccl(out, variant_of(spec, bytes, blocks_, false));
    use_zbccl(in, variant_of(spec, bytes, blocks_, true));
    const bool compares = nccl_ && CudaNccl::has(spec);
    if (compares) use_nccl(peer, variant_of(spec, bytes, *nccl_blocks_, !options_.out_of_place));

    Row row;
    const Shape& shape = out.variant.shape;
    row.op = spec.op;
    row.ranks = ranks_;
    row.type = spec.type;
    row.redop = spec.redop;
    row.root = spec.root;
    row.bytes = shape.larger() * out.variant.element;
    row.count = has_parts(spec.op) ? shape.larger() : shape.count;
    row.init_ms = init_ms_;
    row.quant = quant_name(spec);
    measure(out, in, compares ? &peer : nullptr, row);
    if (spec.op == Op::kAllReduceQuantized) row.error = error_of(out);
    return row;
  }

  void measure(Side& out, Side& in, Side* peer, Row& row) {
    const std::optional<uint64_t> wrong_out = checked(out, options_.out_of_place, false);
    const std::optional<uint64_t> wrong_in = checked(in, options_.in_place, false);
    if (peer != nullptr && !peer_is_right(*peer)) peer = nullptr;
    if (options_.out_of_place) prepare(out);
    if (options_.out_of_place) row.algorithm = comm_.last_algorithm();
    if (options_.in_place) prepare(in);
    if (!options_.out_of_place) row.algorithm = comm_.last_algorithm();
    if (peer != nullptr) prepare(*peer);

    const zbcclCommStats_t before = comm_.stats();
    for (int round = 0; round < kTurns; ++round) {
      for (Side* side : {&out, &in, peer}) {
        if (side != nullptr && side->series) side->series->run(control_, side->plan.replays);
      }
      check_state();
    }
    const zbcclCommStats_t after = comm_.stats();
    count_bytes(before, after, out, in, row);
    if (options_.out_of_place) row.out_of_place = {out.series->timing(control_), wrong_out};
    if (options_.in_place) row.in_place = {in.series->timing(control_), wrong_in};
    if (peer != nullptr) row.compare = peer->series->timing(control_);
    row.calls_in_sample = options_.out_of_place ? out.plan.calls : in.plan.calls;
    // Once more, with other data, after all those calls.
    add_checked(out, row.out_of_place);
    add_checked(in, row.in_place);
  }

  CodeError error_of(Side& side) {
    const Buffers& buffers = side.variant.buffers;
    return measure_code_error(
        control_, side.variant.spec, side.variant.shape.count,
        [&](const void* input, void* output, size_t bytes) {
          // The call is that of the row, on its first elements.
          side.variant.shape.count = bytes / side.variant.element;
          check_cuda(cudaMemcpyAsync(buffers.send, input, bytes, cudaMemcpyDefault, stream_.get()),
                     "cudaMemcpyAsync");
          side.call();
          check_cuda(cudaMemcpyAsync(output, buffers.recv, bytes, cudaMemcpyDefault, stream_.get()),
                     "cudaMemcpyAsync");
          stream_.wait();
          check_state();
        });
  }

  void prepare(Side& side) {
    side.blocks->first.fill_with_numbers();
    side.blocks->second.fill_with_numbers();
    side.blocks->extra.fill_with_numbers();
    // Ranks that share a GPU: what waits for the device must not meet a kernel that waits for
    // ranks.
    control_.barrier();
    side.plan = plan_series(control_, stream_, side.call, options_, kTurns);
    side.series.emplace(stream_, side.call, side.plan.calls, options_.cuda.graph);
    check_state();
  }

  void count_bytes(const zbcclCommStats_t& before, const zbcclCommStats_t& after, const Side& out,
                   const Side& in, Row& row) {
    uint64_t calls = 0;
    for (const Side* side : {&out, &in}) {
      // With the untimed replay of each round.
      if (side->series) {
        calls += static_cast<uint64_t>(side->plan.calls) *
                 static_cast<uint64_t>((side->plan.replays + 1) * kTurns);
      }
    }
    const zbcclMemReport_t memory = memory_report();
    Buffer<uint64_t> sums(3);
    sums[0] = after.staged_bytes - before.staged_bytes;
    sums[1] = after.landing_bytes - before.landing_bytes;
    sums[2] = memory.held_bytes;
    control_.all_reduce(sums.span(), zbcclSum);
    // Rounded up: what happened once must not show as never.
    row.staged_bytes = (sums[0] + calls - 1) / calls;
    row.landing_bytes = (sums[1] + calls - 1) / calls;
    row.held_bytes = sums[2];
    Buffer<uint64_t> most(1);
    most[0] = memory.device_held_bytes;
    control_.all_reduce(most.span(), zbcclMax);
    row.device_held_bytes = most[0];
  }

  // What the device has reported since; the next call would say it in more words.
  void check_state() {
    if (const zbcclResult_t state = comm_.async_error(); state != zbcclSuccess) {
      zbcclCall_t how = ZBCCL_CALL_INITIALIZER;
      how.stream = stream_.get();
      check(zbcclBarrier(comm_.get(), &how));
      throw Error(state, "the communicator failed on the device");
    }
  }

  // ---- checks

  // Collective: wrong elements on all ranks after one call with data of its own.
  std::optional<uint64_t> checked(const Side& side, bool wanted, bool in_graph) {
    if (!wanted || !is_checked(side)) return std::nullopt;
    if (!has_data(side.variant.spec.op)) return early_leavers(side);
    const uint64_t wrong = check_->wrong(side.variant, stream_, CudaInput::kRandom, ++seed_, [&] {
      if (!in_graph) return side.call();
      const CudaGraph graph(stream_, side.call);
      control_.barrier();
      graph.launch(stream_);
      stream_.wait();
    });
    check_state();
    return sum_over_ranks(wrong);
  }

  void add_checked(const Side& side, std::optional<Measurement>& measurement) {
    if (!measurement || !measurement->wrong) return;
    *measurement->wrong += checked(side, true, options_.cuda.graph).value_or(0);
  }

  bool is_checked(const Side& side) const {
    const size_t bytes = side.variant.shape.larger() * side.variant.element;
    return options_.check && (options_.cuda.check_max == 0 || bytes <= options_.cuda.check_max);
  }

  bool peer_is_right(const Side& side) {
    if (!is_checked(side) || !has_data(side.variant.spec.op)) return true;
    const uint64_t wrong =
        sum_over_ranks(check_->wrong(side.variant, stream_, CudaInput::kExact, ++seed_, side.call));
    if (wrong != 0 && rank_ == 0) {
      fmt::print(stderr, "zbccl perf: {} gives {} wrong elements here and is left out of the row\n",
                 options_.compare, wrong);
    }
    return wrong == 0;
  }

  // Ranks that left a barrier before the last one had entered it. All read the same clock.
  uint64_t early_leavers(const Side& side) {
    uint64_t early = 0;
    const auto now = [] {
      return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch())
          .count();
    };
    for (int i = 0; i < kMeetings; ++i) {
      std::this_thread::sleep_for(std::chrono::microseconds((rank_ * 7 + i * 13) % 11 * 100));
      Buffer<int64_t> last_entry(1);
      last_entry[0] = now();
      side.call();
      stream_.wait();
      const int64_t left = now();
      control_.all_reduce(last_entry.span(), zbcclMax);
      early += left < last_entry[0];
    }
    return sum_over_ranks(early);
  }

  uint64_t sum_over_ranks(uint64_t value) {
    Buffer<uint64_t> sum(1);
    sum[0] = value;
    control_.all_reduce(sum.span(), zbcclSum);
    return sum[0];
  }

  Communicator& control_;
  Communicator& comm_;
  const PerfOptions& options_;
  const int rank_;
  const int ranks_;
  CudaStream stream_;
  Blocks blocks_;
  std::optional<Blocks> nccl_blocks_;
  std::optional<CudaNccl> nccl_;
  std::optional<CudaCheck> check_;
  std::optional<Report> report_;
  double init_ms_ = 0;
  uint64_t seed_ = 0;
  uint64_t wrong_ = 0;
};

}  // namespace

uint64_t run_cuda_bench(const CudaMember& member, const PerfOptions& options) {
  return CudaBench(member, options).run();
}

}  // namespace zbccl::tools
