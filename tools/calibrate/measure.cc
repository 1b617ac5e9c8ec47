#include "calibrate/measure.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "calibrate/table.h"
#include "measure/binding.h"
#include "measure/buffers.h"
#include "measure/series.h"
#include "perf/variant.h"
#include "topology/machine.h"
#include "topology/machine_key.h"

namespace zbccl::tools {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kKilo = 1 << 10;
constexpr size_t kMega = 1 << 20;
constexpr size_t kLargestOneShot = 256 * kKilo;
constexpr int kManyRanks = 16;
constexpr uint64_t kNever = uint64_t{1} << 40;
constexpr int kRounds = 4;
constexpr int kMinCalls = 8;
constexpr int kMaxCalls = 4000;

enum class Wait { kDecide, kSpin, kSleep };

// A communicator in which the plan is forced to one side of each threshold. A new one and not a
// part of `parent`, whose tuning parts would share. Every rank sets the same; the library takes
// rank 0's.
Communicator forced(Communicator* parent, Wait wait, const plan::Fit& fit,
                    const std::string& folder) {
  const std::string path = folder + "/forced.json";
  // An entry counts for ranks that wait in its way; this one for both.
  plan::Fit sleeping = fit;
  sleeping.sleeps = 1;
  plan::TuningTable table;
  table.machine = topology::machine_key();
  table.host = {{fit, {}}, {sleeping, {}}};
  write_tuning(path, table);
  setenv("ZBCCL_TUNING_FILE", path.c_str(), 1);
  setenv("ZBCCL_ONE_SHOT_MAX", fmt::format("{}", fit.one_shot_max).c_str(), 1);
  zbcclConfig_t config = ZBCCL_CONFIG_INITIALIZER;
  config.host_wait = static_cast<int32_t>(wait);
  if (parent == nullptr) return Communicator::from_environment(&config);
  Buffer<std::byte> shared(sizeof(zbcclUniqueId));
  zbcclUniqueId id = {};
  if (parent->rank() == 0) check(zbcclGetUniqueId(&id));
  std::memcpy(shared.data(), &id, sizeof id);
  parent->broadcast(shared.span(), 0);
  std::memcpy(&id, shared.data(), sizeof id);
  return Communicator::from_id(parent->size(), parent->rank(), id, &config);
}

plan::Fit fit_of(uint64_t one_shot_max, uint64_t stream_min) {
  return {1, 0, one_shot_max, stream_min};
}

// One way to do something at one size.
struct Way {
  Variant variant;
  std::function<void()> call;
  std::function<void()> after;  // not timed
  int calls = 0;
  double us = 0;
};

class Measurer {
 public:
  Measurer(Communicator& comm, const MeasureOptions& options, size_t largest)
      : comm_(comm), options_(options), input_(largest, true), output_(largest, true) {}

  double meeting(Communicator& comm) {
    Way way;
    way.call = [&comm] { comm.barrier(); };
    measure({&way});
    return way.us;
  }

  Curve copies(const std::vector<size_t>& sizes) {
    std::vector<Point> points;
    points.reserve(sizes.size());
    for (const size_t bytes : sizes) {
      Way way = way_of(Op::kAllReduce, bytes);
      way.call = [this, bytes] { std::memcpy(output_.data(), input_.data(), bytes); };
      measure({&way});
      points.push_back({bytes, way.us});
    }
    return Curve(std::move(points));
  }

  // The same operation on two communicators, in turn.
  void compare(Op op, const std::vector<size_t>& sizes, bool reads, Communicator& first,
               Communicator& second, Curve& first_times, Curve& second_times) {
    std::vector<Point> first_points;
    std::vector<Point> second_points;
    for (const size_t bytes : sizes) {
      Way a = way_on(first, op, bytes, reads);
      Way b = way_on(second, op, bytes, reads);
      measure({&a, &b});
      first_points.push_back({bytes, a.us});
      second_points.push_back({bytes, b.us});
    }
    first_times = Curve(std::move(first_points));
    second_times = Curve(std::move(second_points));
  }

 private:
  Way way_of(Op op, size_t bytes) const {
    Way way;
    Variant& variant = way.variant;
    variant.spec.op = op;
    variant.rank = comm_.rank();
    variant.ranks = comm_.size();
    variant.element = zbcclTypeSize(variant.spec.type);
    variant.shape = shape_of(op, bytes, variant.element, variant.rank, variant.ranks);
    variant.buffers = {input_.data(), output_.data()};
    return way;
  }

  Way way_on(Communicator& comm, Op op, size_t bytes, bool reads) const {
    Way way = way_of(op, bytes);
    const Variant variant = way.variant;
    way.call = [&comm, variant, reads] {
      call(comm, variant.spec, variant.buffers, variant.shape, variant.rank, variant.ranks);
      if (reads) read_output(variant);
    };
    return way;
  }

  void run(Way& way, Series& series, int calls) {
    if (options_.steady) {
      series.run_batch(comm_, calls, way.call);
      return;
    }
    const Variant& variant = way.variant;
    const bool moves = variant.shape.larger() > 0;
    series.run_apart(
        comm_, calls,
        [&] {
          if (moves) write_input(variant);
        },
        way.call,
        [&] {
          if (moves) read_output(variant);
        });
  }

  // Collective.
  void measure(const std::vector<Way*>& ways) {
    std::vector<Series> series;
    series.reserve(ways.size());
    for (Way* way : ways) {
      way->calls = calls_for(*way);
      series.emplace_back(way->calls);
    }
    for (int round = 0; round < kRounds; ++round) {
      for (size_t i = 0; i < ways.size(); ++i) {
        const int calls = ways[i]->calls;
        run(*ways[i], series[i], calls * (round + 1) / kRounds - calls * round / kRounds);
      }
    }
    for (size_t i = 0; i < ways.size(); ++i) ways[i]->us = series[i].timing(comm_).p50;
  }

  // Collective: as many as fit, on every rank the same.
  int calls_for(Way& way) {
    constexpr int kTrials = 5;
    std::vector<double> seconds;
    for (int i = 0; i < kTrials; ++i) {
      const auto begin = Clock::now();
      if (way.variant.shape.larger() > 0 && !options_.steady) write_input(way.variant);
      way.call();
      seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    }
    std::sort(seconds.begin(), seconds.end());
    Buffer<int64_t> agreed(1);
    agreed[0] =
        std::clamp(static_cast<int>(options_.seconds / std::max(seconds[kTrials / 2], 1e-9)),
                   kMinCalls, kMaxCalls);
    comm_.broadcast(agreed.span(), 0);
    return static_cast<int>(agreed[0]);
  }

  Communicator& comm_;
  const MeasureOptions& options_;
  Memory input_;
  Memory output_;
};

// From `first` to `last`, each `factor` times the one before.
std::vector<size_t> sizes(size_t first, size_t last, size_t factor) {
  std::vector<size_t> list;
  for (size_t bytes = first; bytes <= last; bytes *= factor) list.push_back(bytes);
  return list;
}

void check_algorithm(Communicator& comm, const Memory& memory, size_t bytes, const char* expected) {
  comm.all_reduce(memory.data(), memory.data(), bytes / sizeof(float), zbcclFloat32);
  if (std::strcmp(comm.last_algorithm(), expected) == 0) return;
  throw std::runtime_error(fmt::format(
      "an all_reduce of {} bytes took {} where {} was asked for; the library and this command do "
      "not fit together",
      bytes, comm.last_algorithm(), expected));
}

}  // namespace

Measured measure_rank(const MeasureOptions& options, const std::string& folder) {
  Communicator spinning = forced(nullptr, Wait::kSpin, fit_of(1, kNever), folder);
  Communicator sleeping = forced(&spinning, Wait::kSleep, fit_of(1, kNever), folder);
  Measured result;
  result.ranks = spinning.size();
  const int cores = static_cast<int>(topology::usable_cpus().size());
  {
    Measurer measurer(sleeping, options, 1);
    // What rank 0 finds, since a choice of their own would send the ranks to different places.
    Buffer<double> meetings(2);
    meetings[0] = measurer.meeting(spinning);
    meetings[1] = measurer.meeting(sleeping);
    sleeping.broadcast(meetings.span(), 0);
    result.meeting_spin = meetings[0];
    result.meeting_sleep = meetings[1];
  }
  result.wait = result.ranks <= cores ? "spin" : "sleep";
  result.faster_wait = choose_wait(result.meeting_spin, result.meeting_sleep, result.ranks, cores);
  const Wait wait = result.wait == "sleep" ? Wait::kSleep : Wait::kSpin;
  // From here on all ranks wait as the library makes them.
  Communicator& base = wait == Wait::kSleep ? sleeping : spinning;
  Communicator one = forced(&base, wait, fit_of(kLargestOneShot, kNever), folder);
  Communicator two = forced(&base, wait, fit_of(1, kNever), folder);
  Communicator past = forced(&base, wait, fit_of(1, 1), folder);
  bind_to_core(base);  // the library has seen by now where it may run
  // Two buffers of this size for each rank.
  const size_t largest = (result.ranks > kManyRanks ? 16 : 64) * kMega;
  Measurer measurer(base, options, largest);
  {
    const Memory memory(kLargestOneShot, true);
    check_algorithm(one, memory, kLargestOneShot, "one_shot");
    check_algorithm(two, memory, kLargestOneShot, "two_shot");
  }
  result.copy = measurer.copies(sizes(256, largest, 4));
  measurer.compare(Op::kAllReduce, sizes(256, kLargestOneShot, 4), false, one, two, result.one_shot,
                   result.two_shot);
  measurer.compare(Op::kAllReduce, sizes(512, kLargestOneShot, 4), false, one, two,
                   result.one_shot_held, result.two_shot_held);
  measurer.compare(Op::kAllGather, sizes(256 * kKilo, largest, 4), true, two, past, result.cached,
                   result.streamed);
  measurer.compare(Op::kAllGather, sizes(512 * kKilo, largest, 4), true, two, past,
                   result.cached_held, result.streamed_held);
  base.barrier();
  return result;
}

// ---- between the ranks and the command

namespace {

using nlohmann::ordered_json;

struct Field {
  const char* name;
  Curve Measured::*curve;
};
constexpr Field kCurves[] = {{"copy", &Measured::copy},
                             {"one_shot", &Measured::one_shot},
                             {"two_shot", &Measured::two_shot},
                             {"one_shot_held", &Measured::one_shot_held},
                             {"two_shot_held", &Measured::two_shot_held},
                             {"cached", &Measured::cached},
                             {"streamed", &Measured::streamed},
                             {"cached_held", &Measured::cached_held},
                             {"streamed_held", &Measured::streamed_held}};

}  // namespace

std::string to_json(const Measured& measured) {
  ordered_json json = {{"ranks", measured.ranks},
                       {"meeting_spin", measured.meeting_spin},
                       {"meeting_sleep", measured.meeting_sleep},
                       {"wait", measured.wait},
                       {"faster_wait", measured.faster_wait}};
  for (const Field& field : kCurves) {
    json[field.name] = ordered_json::array();
    for (const Point& point : (measured.*field.curve).points()) {
      json[field.name].push_back({point.bytes, point.us});
    }
  }
  return json.dump();
}

Measured parse_measured(const std::string& text) {
  const ordered_json json = ordered_json::parse(text);
  Measured measured;
  measured.ranks = json.at("ranks").get<int>();
  measured.meeting_spin = json.at("meeting_spin").get<double>();
  measured.meeting_sleep = json.at("meeting_sleep").get<double>();
  measured.wait = json.at("wait").get<std::string>();
  measured.faster_wait = json.at("faster_wait").get<std::string>();
  for (const Field& field : kCurves) {
    std::vector<Point> points;
    for (const ordered_json& point : json.at(field.name)) {
      points.push_back({point.at(0).get<size_t>(), point.at(1).get<double>()});
    }
    measured.*field.curve = Curve(std::move(points));
  }
  return measured;
}

}  // namespace zbccl::tools
