#include "calibrate/device_fit.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "plan/explain.h"

namespace zbccl::tools {
namespace {

using nlohmann::ordered_json;

constexpr double kMiB = 1 << 20;
constexpr double kNoise = 0.02;  // by what measuring twice differs
constexpr uint64_t kNever = uint64_t{1} << 40;

// From one way to the next larger one: up to `field`, or from it on.
struct Rung {
  const char* algorithm;
  const char* field;  // null behind the last one
  bool at_most;
};
struct Ladder {
  const char* operation;
  bool few_blocks;
  std::vector<Rung> rungs;
};
// As choose() in src/plan/device_plan.cc goes.
const std::vector<Ladder>& ladders() {
  static const std::vector<Ladder> all = {
      {"all_reduce",
       false,
       {{"one_shot", "one_shot_max", true},
        {"two_shot", "two_shot_max", true},
        {"two_shot_direct", "two_shot_direct_max", true},
        {"chunked", "pull_push_min", false},
        {"pull_push", nullptr, false}}},
      // pull_push with sums that are passed on as they are made, or by a second kernel.
      {"all_reduce", false, {{"one_kernel", "spread_min", false}, {"two_kernels", nullptr, false}}},
      {"reduce_scatter", false, {{"one_shot", "scatter_shot_max", true}, {"pull", nullptr, false}}},
      {"all_gather", false, {{"inline", "inline_max", true}, {"push", nullptr, false}}},
      {"all_gather", true, {{"push", "bulk_min", false}, {"push_bulk", nullptr, false}}},
      {"broadcast",
       false,
       {{"push", "relay_min", false}, {"relay", "chain_min", false}, {"chain", nullptr, false}}},
      {"all_reduce_rms_norm",
       false,
       {{"one_shot", "norm_one_shot_max", true},
        {"two_shot_direct", "norm_direct_max", true},
        {"pull_push", nullptr, false}}},
  };
  return all;
}

plan::DeviceCall call_of(const DeviceMeasured& measured, const DeviceSweep& sweep, size_t bytes) {
  plan::Question question;
  question.operation = *parse_operation(sweep.operation);
  question.bytes = bytes;
  question.nranks = measured.ranks;
  question.max_blocks = sweep.max_blocks;
  return plan::device_call(question, plan::device_tuning(measured.ranks, plan::kMostLanding));
}

// By what the plan compares with its limits: the buffer, or a block of it.
Curve by_compared(const DeviceMeasured& measured, const DeviceSweep& sweep, const Curve& times) {
  std::vector<Point> points = times.points();
  for (Point& point : points) point.bytes = call_of(measured, sweep, point.bytes).bytes;
  return Curve(std::move(points));
}

const DeviceSweep::Way* way_of(const DeviceSweep& sweep, std::string_view algorithm) {
  const auto way = std::find_if(sweep.ways.begin(), sweep.ways.end(),
                                [&](const auto& it) { return it.algorithm == algorithm; });
  return way == sweep.ways.end() ? nullptr : &*way;
}

// One way up to the threshold, then what is behind it.
Curve joined(const Curve& first, const Curve& rest, uint64_t threshold) {
  std::vector<Point> points = rest.points();
  for (size_t i = 0; i < std::min(points.size(), first.points().size()); ++i) {
    if (first.points()[i].bytes <= threshold) points[i] = first.points()[i];
  }
  return Curve(std::move(points));
}

// A way that is measured, and what the plan asks before it takes the one behind.
struct Place {
  const Rung* rung;
  Curve times;
  Curve held;
  uint64_t upto = kNever;
};

FittedValue fit_rung(const Rung& rung, Place& place, const Curve& rest,
                     const std::string& rest_name) {
  const Threshold found = fit_threshold(place.times, rest, rung.algorithm, rest_name, kNoise);
  FittedValue value;
  value.field = plan::find_field(rung.field);
  value.why = found.why;
  // Where it is the faster one at every size that it serves, it is taken for those.
  const bool always = found.open && place.times.points().size() >= rest.points().size();
  place.upto = always ? kNever : found.bytes;
  value.value = rung.at_most ? found.bytes : always ? kNever : found.bytes + 1;
  return value;
}

std::vector<HeldOut> hold_out_ladder(const std::vector<Place>& places) {
  std::vector<HeldOut> results;
  for (size_t i = 0;; ++i) {
    HeldOut held;
    for (const Place& place : places) {
      if (i >= place.held.points().size()) continue;
      const Point& point = place.held.points()[i];
      held.bytes = point.bytes;
      held.best_us = held.best_us == 0 ? point.us : std::min(held.best_us, point.us);
      if (!held.chosen.empty() || point.bytes > place.upto) continue;
      held.chosen = place.rung->algorithm;
      held.predicted_us = place.times.at(point.bytes);
      held.measured_us = point.us;
    }
    if (held.best_us == 0) return results;
    if (!held.chosen.empty()) results.push_back(std::move(held));
  }
}

FittedLadder fit_ladder(const DeviceMeasured& measured, const DeviceSweep& sweep,
                        const Ladder& ladder) {
  std::vector<Place> places;
  for (const Rung& rung : ladder.rungs) {
    const DeviceSweep::Way* const way = way_of(sweep, rung.algorithm);
    if (way == nullptr || way->times.points().empty()) continue;
    places.push_back(
        {&rung, by_compared(measured, sweep, way->times), by_compared(measured, sweep, way->held)});
  }
  FittedLadder fitted;
  if (places.size() < 2) return fitted;
  fitted.sweep = &sweep;
  Curve rest = places.back().times;
  std::string rest_name = places.back().rung->algorithm;
  for (size_t i = places.size() - 1; i-- > 0;) {
    Place& place = places[i];
    fitted.values.insert(fitted.values.begin(), fit_rung(*place.rung, place, rest, rest_name));
    rest = joined(place.times, rest, place.upto);
    rest_name = "the next";
  }
  fitted.held = hold_out_ladder(places);
  return fitted;
}

ordered_json to_json(const Curve& curve) {
  ordered_json points = ordered_json::array();
  for (const Point& point : curve.points()) points.push_back({point.bytes, point.us});
  return points;
}

Curve parse_curve(const ordered_json& json) {
  std::vector<Point> points;
  for (const ordered_json& point : json) {
    points.push_back({point.at(0).get<size_t>(), point.at(1).get<double>()});
  }
  return Curve(std::move(points));
}

}  // namespace

uint64_t choose_blocks(const Curve& times) {
  double best = 0;
  for (const Point& point : times.points()) best = best == 0 ? point.us : std::min(best, point.us);
  for (const Point& point : times.points()) {
    if (point.us <= best * (1 + kNoise)) return point.bytes;
  }
  return 0;
}

std::vector<FittedLadder> fit_ladders(const DeviceMeasured& measured) {
  std::vector<FittedLadder> fitted;
  for (const DeviceSweep& sweep : measured.sweeps) {
    for (const Ladder& ladder : ladders()) {
      if (sweep.operation != ladder.operation) continue;
      if ((sweep.max_blocks > 0) != ladder.few_blocks) continue;
      FittedLadder one = fit_ladder(measured, sweep, ladder);
      if (one.sweep != nullptr) fitted.push_back(std::move(one));
    }
  }
  return fitted;
}

plan::Line fit_line(const std::vector<std::pair<double, double>>& mib_and_us) {
  // Of (fixed + slope * x - y) / y: weights of 1 / y².
  double w = 0;
  double wx = 0;
  double wxx = 0;
  double wy = 0;
  double wxy = 0;
  for (const auto& [x, y] : mib_and_us) {
    const double weight = 1 / (y * y);
    w += weight;
    wx += weight * x;
    wxx += weight * x * x;
    wy += weight * y;
    wxy += weight * x * y;
  }
  const double determinant = w * wxx - wx * wx;
  plan::Line line;
  if (w == 0) return line;
  if (determinant > 1e-12 * w * wxx) {
    line.us_per_mib = (w * wxy - wx * wy) / determinant;
    line.fixed_us = (wy - line.us_per_mib * wx) / w;
  } else {
    line.fixed_us = wy / w;
  }
  if (line.us_per_mib < 0) return {wy / w, 0};
  if (line.fixed_us < 0) return {0, wxy / wxx};
  return line;
}

std::vector<plan::DeviceCost> fit_costs(const DeviceMeasured& measured) {
  std::vector<plan::DeviceCost> costs;
  for (const DeviceSweep& sweep : measured.sweeps) {
    if (sweep.max_blocks > 0) continue;
    for (const DeviceSweep::Way& way : sweep.ways) {
      const auto algorithm = plan::parse_device_algorithm(way.algorithm);
      if (!algorithm || way.times.points().size() < 2) continue;
      std::vector<std::pair<double, double>> points;
      for (const Point& point : way.times.points()) {
        const auto bytes = plan::traffic(*algorithm, call_of(measured, sweep, point.bytes));
        points.emplace_back(static_cast<double>(bytes) / kMiB, point.us);
      }
      costs.push_back({*parse_operation(sweep.operation), *algorithm, fit_line(points)});
    }
  }
  return costs;
}

std::string to_json(const DeviceMeasured& measured) {
  ordered_json json = {{"ranks", measured.ranks},
                       {"gpu", measured.gpu},
                       {"grids", ordered_json::array()},
                       {"sweeps", ordered_json::array()}};
  for (const GridSweep& grid : measured.grids) {
    json["grids"].push_back({{"field", grid.field},
                             {"operation", grid.operation},
                             {"bytes", grid.bytes},
                             {"times", to_json(grid.times)}});
  }
  for (const DeviceSweep& sweep : measured.sweeps) {
    ordered_json ways = ordered_json::array();
    for (const DeviceSweep::Way& way : sweep.ways) {
      ways.push_back({{"algorithm", way.algorithm},
                      {"times", to_json(way.times)},
                      {"held", to_json(way.held)}});
    }
    json["sweeps"].push_back(
        {{"operation", sweep.operation}, {"max_blocks", sweep.max_blocks}, {"ways", ways}});
  }
  return json.dump();
}

DeviceMeasured parse_device_measured(const std::string& text) {
  const ordered_json json = ordered_json::parse(text);
  DeviceMeasured measured;
  measured.ranks = json.at("ranks").get<int>();
  measured.gpu = json.at("gpu").get<std::string>();
  for (const ordered_json& grid : json.at("grids")) {
    measured.grids.push_back({grid.at("field").get<std::string>(),
                              grid.at("operation").get<std::string>(),
                              grid.at("bytes").get<size_t>(), parse_curve(grid.at("times"))});
  }
  for (const ordered_json& one : json.at("sweeps")) {
    DeviceSweep sweep;
    sweep.operation = one.at("operation").get<std::string>();
    sweep.max_blocks = one.at("max_blocks").get<int>();
    for (const ordered_json& way : one.at("ways")) {
      sweep.ways.push_back({way.at("algorithm").get<std::string>(), parse_curve(way.at("times")),
                            parse_curve(way.at("held"))});
    }
    measured.sweeps.push_back(std::move(sweep));
  }
  return measured;
}

}  // namespace zbccl::tools
