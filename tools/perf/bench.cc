#include "perf/bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "measure/binding.h"
#include "measure/buffers.h"
#include "measure/ranks.h"
#include "measure/series.h"
#include "perf/code_error.h"
#include "perf/compare.h"
#include "perf/report.h"
#include "perf/variant.h"

namespace zbccl::tools {
namespace {

using Clock = std::chrono::steady_clock;

// What is compared in a row is measured in turn, so that a disturbance meets all of it.
constexpr int kRounds = 4;
constexpr int kBarrierChecks = 20;

class Bench {
 public:
  Bench(Communicator& comm, const PerfOptions& options)
      : comm_(comm),
        options_(options),
        rank_(comm.rank()),
        ranks_(comm.size()),
        first_(options.max_bytes, !options.unregistered),
        second_(options.max_bytes, !options.unregistered),
        extra_(extra_bytes(options.op, options.max_bytes), !options.unregistered),
        report_(options, ranks_) {
    if (!options.compare.empty()) {
      group_ = {rank_, ranks_,
                [this](const std::string& text) { return exchange_texts(comm_, text); }};
      comparison_ = open_comparison(options.compare, group_);
    }
    // Threads that exist by now, the other library's, go where they like.
    if (options.bind) bind_to_core(comm);
  }

  uint64_t run(double init_ms) {
    init_ms_ = slowest_rank(comm_, init_ms);
    if (rank_ == 0) report_.print_header();
    for (const zbcclDataType_t type : types()) {
      for (const zbcclRedOp_t redop : redops()) {
        for (const size_t bytes : sizes_of(options_))
          run_row(spec_of(options_, type, redop), bytes);
      }
    }
    if (rank_ == 0) report_.print_footer(init_ms_);
    if (rank_ == 0) report_.write_json();
    comm_.barrier();
    return wrong_;
  }

 private:
  std::vector<zbcclDataType_t> types() const {
    return has_data(options_.op) ? options_.types : std::vector{zbcclUint8};
  }
  std::vector<zbcclRedOp_t> redops() const {
    return reduces(options_.op) ? options_.redops : std::vector{zbcclSum};
  }

  void run_row(const CallSpec& spec, size_t bytes) {
    Variant out;
    out.spec = spec;
    out.rank = rank_;
    out.ranks = ranks_;
    out.element = zbcclTypeSize(spec.type);
    out.shape = shape_of(spec.op, bytes, out.element, rank_, ranks_);
    out.buffers = {first_.data(), second_.data(), extra_.data()};
    Variant in = out;
    in.in_place = true;
    in.buffers = in_place_buffers(spec.op, second_.data(), in.shape, in.element, rank_);
    in.buffers.extra = extra_.data();

    Row row;
    row.op = spec.op;
    row.ranks = ranks_;
    row.type = spec.type;
    row.redop = spec.redop;
    row.root = spec.root;
    row.bytes = out.shape.larger() * out.element;
    row.count = has_parts(spec.op) ? out.shape.larger() : out.shape.count;
    row.fresh = options_.fresh;
    row.init_ms = init_ms_;
    row.quant = quant_name(spec);
    measure(out, in, row);
    if (spec.op == Op::kAllReduceQuantized) row.error = error_of(out);
    for (const auto* measurement : {&row.out_of_place, &row.in_place}) {
      if (*measurement) wrong_ += (*measurement)->wrong.value_or(0);
    }
    if (rank_ == 0) report_.add(row);
  }

  void measure(const Variant& out, const Variant& in, Row& row) {
    const std::optional<uint64_t> wrong_out = checked(out, options_.out_of_place);
    const std::optional<uint64_t> wrong_in = checked(in, options_.in_place);
    const Variant& compared = options_.out_of_place ? out : in;
    const bool compares = prepare_comparison(compared);
    const auto run_out = [&] { run_call(out); };
    const auto run_in = [&] { run_call(in); };
    const auto run_compared = [&] { comparison_->run(); };
    fill(in, seed_);
    fill(out, seed_);
    // In place the calls work on their own results; nothing in them takes longer for it.
    const int calls_out = options_.out_of_place ? warm_up(out, run_out) : 0;
    const int calls_in = options_.in_place ? warm_up(in, run_in) : 0;
    const int calls_compared = compares ? warm_up(compared, run_compared) : 0;

    Series series_out(calls_out);
    Series series_in(calls_in);
    Series series_compared(calls_compared);
    const zbcclCommStats_t before = comm_.stats();
    for (int round = 0; round < kRounds; ++round) {
      run_share(series_out, out, round, calls_out, run_out);
      if (options_.out_of_place) row.algorithm = comm_.last_algorithm();
      run_share(series_in, in, round, calls_in, run_in);
      if (!options_.out_of_place) row.algorithm = comm_.last_algorithm();
      run_share(series_compared, compared, round, calls_compared, run_compared);
    }
    const zbcclCommStats_t after = comm_.stats();

    const auto calls = static_cast<uint64_t>(calls_out) + static_cast<uint64_t>(calls_in);
    const std::vector<uint64_t> sums = sum_over_ranks(
        comm_, {after.staged_bytes - before.staged_bytes,
                after.landing_bytes - before.landing_bytes, memory_report().held_bytes});
    // Rounded up: what happened once must not show as never. Barriers between calls move nothing.
    row.staged_bytes = (sums[0] + calls - 1) / calls;
    row.landing_bytes = (sums[1] + calls - 1) / calls;
    row.held_bytes = sums[2];
    if (options_.out_of_place) row.out_of_place = {series_out.timing(comm_), wrong_out};
    if (options_.in_place) row.in_place = {series_in.timing(comm_), wrong_in};
    if (compares) row.compare = series_compared.timing(comm_);
    // Once more, with other data, after all those calls.
    add_checked(out, row.out_of_place);
    add_checked(in, row.in_place);
  }

  CodeError error_of(const Variant& variant) {
    return measure_code_error(
        comm_, variant.spec, variant.shape.count,
        [&](const void* input, void* output, size_t bytes) {
          Shape shape;
          shape.count = bytes / variant.element;
          std::memcpy(first_.data(), input, bytes);
          call(comm_, variant.spec, {first_.data(), second_.data()}, shape, rank_, ranks_);
          std::memcpy(output, second_.data(), bytes);
        });
  }

  void run_call(const Variant& variant) {
    call(comm_, variant.spec, variant.buffers, variant.shape, rank_, ranks_);
  }

  // Collective: this round's part of `calls` calls.
  void run_share(Series& series, const Variant& variant, int round, int calls,
                 const std::function<void()>& call) {
    const auto upto = [&](int rounds) {
      return static_cast<int>(int64_t{calls} * rounds / kRounds);
    };
    const int share = upto(round + 1) - upto(round);
    if (!options_.fresh) {
      series.run_batch(comm_, share, call);
      return;
    }
    series.run_apart(
        comm_, share, [&] { write_input(variant); }, call, [&] { read_output(variant); });
  }

  // Collective: the calls that a series is to have, on every rank the same number.
  int warm_up(const Variant& variant, const std::function<void()>& call) {
    std::vector<double> seconds;
    const int calls = std::max(options_.warmup, options_.iterations > 0 ? 0 : 1);
    seconds.reserve(static_cast<size_t>(calls));
    for (int i = 0; i < calls; ++i) {
      const auto begin = Clock::now();
      if (options_.fresh) write_input(variant);
      call();
      if (options_.fresh) read_output(variant);
      seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    }
    if (options_.iterations > 0) return options_.iterations;
    return calls_that_fit(comm_, options_.seconds, std::move(seconds));
  }

  // ---- checks

  // Collective: wrong elements on all ranks after one call with data of its own.
  std::optional<uint64_t> checked(const Variant& variant, bool wanted) {
    if (!options_.check || !wanted) return std::nullopt;
    if (!has_data(variant.spec.op)) return early_leavers();
    ++seed_;
    fill(variant, seed_);
    run_call(variant);
    const uint64_t wrong =
        wrong_output(variant, seed_, variant.buffers.recv) + wrong_input(variant, seed_);
    return sum_over_ranks(comm_, {wrong})[0];
  }

  void add_checked(const Variant& variant, std::optional<Measurement>& measurement) {
    if (!measurement || !measurement->wrong) return;
    *measurement->wrong += checked(variant, true).value_or(0);
  }

  // Ranks that left a barrier before the last one had entered it. All read the same clock.
  uint64_t early_leavers() {
    uint64_t early = 0;
    const auto now = [] {
      return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch())
          .count();
    };
    for (int i = 0; i < kBarrierChecks; ++i) {
      std::this_thread::sleep_for(std::chrono::microseconds((rank_ * 7 + i * 13) % 11 * 100));
      Buffer<int64_t> last_entry(1);
      last_entry[0] = now();
      comm_.barrier();
      const int64_t left = now();
      comm_.all_reduce(last_entry.span(), zbcclMax);
      early += left < last_entry[0];
    }
    return sum_over_ranks(comm_, {early})[0];
  }

  // ---- the other library

  bool prepare_comparison(const Variant& variant) {
    if (comparison_ == nullptr ||
        !comparison_->prepare(variant.spec, variant.buffers, variant.shape)) {
      return false;
    }
    const Comparison::Result result = comparison_->result();
    if (!options_.check || !has_data(variant.spec.op) || result == Comparison::Result::kNone) {
      return true;
    }
    ++seed_;
    fill(variant, seed_);
    comm_.barrier();
    comparison_->run();
    const void* output =
        result == Comparison::Result::kInput ? variant.buffers.send : variant.buffers.recv;
    const uint64_t wrong = sum_over_ranks(comm_, {wrong_output(variant, seed_, output)})[0];
    if (wrong != 0 && rank_ == 0) {
      fmt::print(stderr, "zbccl perf: {} gives {} wrong elements here and is left out of the row\n",
                 options_.compare, wrong);
    }
    return wrong == 0;
  }

  Communicator& comm_;
  const PerfOptions& options_;
  const int rank_;
  const int ranks_;
  Memory first_;
  Memory second_;
  Memory extra_;
  Report report_;
  CompareGroup group_;
  std::unique_ptr<Comparison> comparison_;
  double init_ms_ = 0;
  uint64_t seed_ = 0;
  uint64_t wrong_ = 0;
};

}  // namespace

uint64_t run_bench(Communicator& comm, const PerfOptions& options, double init_ms) {
  return Bench(comm, options).run(init_ms);
}

}  // namespace zbccl::tools
