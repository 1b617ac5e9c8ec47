#include "moe_perf/bench.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "measure/binding.h"
#include "measure/gloo_module.h"
#include "measure/ranks.h"
#include "measure/series.h"
#include "moe_perf/batch.h"
#include "moe_perf/compare.h"
#include "moe_perf/device.h"
#include "moe_perf/exchange.h"
#include "moe_perf/expected.h"
#include "moe_perf/report.h"
#include "perf/data.h"

namespace zbccl::tools {
namespace {

using Clock = std::chrono::steady_clock;

// What is compared is measured in turn, so that a disturbance meets all of it.
constexpr int kRounds = 4;
constexpr size_t kPhases = std::size(kMoePhases);

// One phase by one library.
struct Measured {
  std::function<void()> call;
  std::optional<Series> series;
  std::unique_ptr<MoeDevice::Series> on_device;  // in the place of `series`
  int calls = 0;
  uint64_t staged_bytes = 0;  // on this rank
  uint64_t landing_bytes = 0;

  Timing timing(Communicator& comm) const {
    return on_device != nullptr ? on_device->timing(comm) : series->timing(comm);
  }
};

template <typename Exchange>
std::array<Measured, kPhases> phases_of(Exchange& exchange) {
  std::array<Measured, kPhases> phases;
  phases[0].call = [&exchange] { exchange.dispatch(); };
  phases[1].call = [&exchange] { exchange.combine(); };
  phases[2].call = [&exchange] {
    exchange.dispatch();
    exchange.combine();
  };
  return phases;
}

class MoeBench {
 public:
  MoeBench(Communicator& comm, const MoeOptions& options)
      : comm_(comm), options_(options), rank_(comm.rank()), table_(options) {
    if (options.cuda) device_ = open_moe_device(comm, options);
    if (!options.compare.empty()) {
      const CompareGroup group = {rank_, comm.size(), [&comm](const std::string& text) {
                                    return exchange_texts(comm, text);
                                  }};
      const auto open = reinterpret_cast<OpenMoeComparison>(gloo_symbol(kMoeComparisonSymbol));
      comparison_.reset(open(group));
    }
    // Threads that exist by now, the other library's, go where they like.
    if (options.bind) bind_to_core(comm);
  }

  uint64_t run() {
    if (rank_ == 0) table_.print_header();
    for (const int64_t tokens : options_.tokens) {
      MoeShape shape = options_.shape;
      shape.tokens = tokens;
      run_shape(shape);
    }
    if (rank_ == 0) table_.print_footer();
    if (rank_ == 0) table_.write_json();
    comm_.barrier();
    return wrong_;
  }

 private:
  using Wrong = std::array<uint64_t, 2>;  // of dispatch and combine

  void run_shape(const MoeShape& shape) {
    MoeExchange exchange(comm_, options_, shape, device_.get());
    Wrong wrong = checked(exchange, shape, true);
    bool compares = comparison_ != nullptr && comparison_is_right(exchange, shape);

    exchange.load(Batch(shape, {options_.skewed, false}, ++seed_));
    if (compares) comparison_->prepare(shape, exchange.inputs(), options_.cached);
    auto own = phases_of(exchange);
    std::array<Measured, kPhases> other;
    if (compares) other = phases_of(*comparison_);
    exchange.dispatch();
    for (Measured& phase : own) warm_up(phase);
    for (Measured& phase : other) warm_up(phase);
    for (int round = 0; round < kRounds; ++round) {
      for (Measured& phase : own) run_share(phase, round, &exchange);
      for (Measured& phase : other) run_share(phase, round, nullptr);
    }
    const zbcclMoeReport_t report = exchange.report();
    const std::vector<uint64_t> bytes = bytes_of(exchange, shape);
    // Once more, with other data, after all those calls.
    const Wrong after = checked(exchange, shape, false);
    for (size_t i = 0; i < wrong.size(); ++i) wrong[i] += after[i];
    wrong_ += wrong[0] + wrong[1];
    for (size_t i = 0; i < kPhases; ++i) {
      MoeRow row;
      row.phase = kMoePhases[i];
      row.tokens = shape.tokens;
      row.timing = own[i].timing(comm_);
      if (compares) row.compare = other[i].timing(comm_);
      row.bytes = bytes[i];
      if (options_.check) row.wrong = i < wrong.size() ? wrong[i] : wrong[0] + wrong[1];
      fill_memory(row, own[i], report);
      const std::array<int, kPhases> blocks = {
          report.dispatch_blocks, report.combine_blocks,
          std::max(report.dispatch_blocks, report.combine_blocks)};
      row.sms = blocks[i];
      row.graph = in_graphs();
      if (rank_ == 0) table_.add(row);
    }
  }

  void fill_memory(MoeRow& row, const Measured& phase, const zbcclMoeReport_t& report) {
    const auto calls = static_cast<uint64_t>(std::max(phase.calls, 1));
    const auto sums = sum_over_ranks(comm_, {phase.staged_bytes, phase.landing_bytes});
    // Rounded up: what happened once must not show as never.
    row.staged_bytes = (sums[0] + calls - 1) / calls;
    row.landing_bytes = (sums[1] + calls - 1) / calls;
    const auto most = max_over_ranks(comm_, {report.metadata_bytes, report.held_bytes});
    row.metadata_bytes = most[0];
    row.held_bytes = most[1];
  }

  // Collective: the payload of a dispatch, a combine, and both, on the busiest rank.
  std::vector<uint64_t> bytes_of(const MoeExchange& exchange, const MoeShape& shape) {
    const auto arriving = static_cast<uint64_t>(exchange.placement().filled);
    const uint64_t scales = static_cast<uint64_t>(scales_of(shape)) * sizeof(float);
    const uint64_t dispatched = arriving * (row_bytes(shape) + scales);
    const uint64_t combined = returning_rows(exchange, shape) * plain_row_bytes(shape);
    return max_over_ranks(comm_, {dispatched, combined, dispatched + combined});
  }

  // Rows that a combine reads for this rank's tokens.
  uint64_t returning_rows(const MoeExchange& exchange, const MoeShape& shape) const {
    const bool by_slot = shape.layout != zbcclMoeRankMajor && !shape.pre_reduce;
    uint64_t rows = 0;
    for (int64_t token = 0; token < shape.tokens; ++token) {
      std::vector<bool> seen(static_cast<size_t>(shape.ranks));
      for (int k = 0; k < shape.topk; ++k) {
        const int64_t expert = exchange.inputs().topk[token * shape.topk + k];
        if (expert < 0) continue;
        const auto owner = static_cast<size_t>(owner_of(shape, static_cast<int>(expert)));
        rows += by_slot || !seen[owner];
        seen[owner] = true;
      }
    }
    return rows;
  }

  // What waits for counts cannot be part of a graph.
  bool in_graphs() const {
    return device_ != nullptr &&
           (options_.cached || options_.graph || capacity_of(options_.shape) > 0);
  }

  // Collective: the number of calls that a phase is to have, the same on every rank.
  void warm_up(Measured& phase) {
    if (!phase.call) return;
    if (device_ != nullptr) {
      phase.on_device = device_->time(comm_, phase.call, in_graphs(), kRounds);
      phase.calls = phase.on_device->calls();
      return;
    }
    std::vector<double> seconds;
    const int calls = std::max(options_.warmup, options_.iterations > 0 ? 0 : 1);
    for (int i = 0; i < calls; ++i) {
      const auto begin = Clock::now();
      phase.call();
      seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    }
    phase.calls = options_.iterations > 0
                      ? options_.iterations
                      : calls_that_fit(comm_, options_.seconds, std::move(seconds));
    phase.series.emplace(phase.calls);
  }

  // Collective: this round's part of the calls. `exchange`: whose bytes are counted, or null.
  void run_share(Measured& phase, int round, const MoeExchange* exchange) {
    if (!phase.call) return;
    const auto upto = [&](int rounds) {
      return static_cast<int>(int64_t{phase.calls} * rounds / kRounds);
    };
    const uint64_t staged = exchange != nullptr ? exchange->report().staged_bytes : 0;
    const uint64_t landing = comm_.stats().landing_bytes;
    if (phase.on_device != nullptr) {
      phase.on_device->run(comm_);
    } else {
      phase.series->run_batch(comm_, upto(round + 1) - upto(round), phase.call);
    }
    if (exchange != nullptr) phase.staged_bytes += exchange->report().staged_bytes - staged;
    phase.landing_bytes += comm_.stats().landing_bytes - landing;
  }

  // ---- checks

  // Collective: wrong elements on all ranks after one dispatch and one combine of a batch of their
  // own; zeros without --check.
  Wrong checked(MoeExchange& exchange, const MoeShape& shape, bool irregular) {
    if (!options_.check) return {};
    const Batch batch(shape, {options_.skewed, irregular}, ++seed_);
    exchange.load(batch);
    exchange.poison_outputs();
    comm_.barrier();
    exchange.dispatch();
    exchange.combine();
    exchange.fetch_outputs();
    const uint64_t dispatched =
        wrong_dispatched(batch, exchange.placement(), rank_, exchange.outputs()) +
        exchange.wrong_gaps() + exchange.wrong_info();
    const uint64_t combined =
        wrong_combined(batch, rank_, shape.pre_reduce, exchange.inputs().combined);
    const auto sums = sum_over_ranks(comm_, {dispatched, combined});
    return {sums[0], sums[1]};
  }

  // Collective. Tells why where it is not, and leaves it out then.
  bool comparison_is_right(MoeExchange& exchange, const MoeShape& shape) {
    if (!options_.check) return true;
    MoeShape plain = shape;  // the other library's rows are not quantized
    plain.quant = zbcclMoeQuantNone;
    const Batch batch(plain, {options_.skewed, true}, ++seed_);
    exchange.load(batch);
    comparison_->prepare(plain, exchange.inputs(), options_.cached);
    poison(static_cast<size_t>(shape.tokens) * plain_row_bytes(shape), exchange.inputs().combined);
    comm_.barrier();
    comparison_->dispatch();
    comparison_->combine();
    const uint64_t wrong =
        wrong_dispatched(batch, exchange.placement(), rank_, comparison_->outputs()) +
        wrong_combined(batch, rank_, shape.layout != zbcclMoeRankMajor, exchange.inputs().combined);
    const uint64_t all = sum_over_ranks(comm_, {wrong})[0];
    if (all != 0 && rank_ == 0) {
      fmt::print(stderr, "zbccl moe: {} gives {} wrong elements here and is left out of the rows\n",
                 options_.compare, all);
    }
    return all == 0;
  }

  Communicator& comm_;
  const MoeOptions& options_;
  const int rank_;
  MoeTable table_;
  std::unique_ptr<MoeDevice> device_;
  std::unique_ptr<MoeComparison> comparison_;
  uint64_t seed_ = 0;
  uint64_t wrong_ = 0;
};

}  // namespace

uint64_t run_moe_bench(Communicator& comm, const MoeOptions& options) {
  return MoeBench(comm, options).run();
}

}  // namespace zbccl::tools
