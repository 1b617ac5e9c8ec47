#include "calibrate/fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace zbccl::tools {
namespace {

double log_of(double value) { return std::log(std::max(value, 1e-9)); }

// Where the curves cross between two sizes, by logarithms: at the lower one where they are equal
// there, within what measuring twice differs by; the geometric middle where they do not cross.
uint64_t crossing(const Curve& first, const Curve& second, size_t low, size_t high) {
  const double at_low = log_of(first.at(low)) - log_of(second.at(low));
  const double at_high = log_of(first.at(high)) - log_of(second.at(high));
  double part = 0.5;
  if (at_high > 0) part = at_low < 0 ? at_low / (at_low - at_high) : 0;
  const double bytes =
      std::exp(log_of(static_cast<double>(low)) +
               part * (log_of(static_cast<double>(high)) - log_of(static_cast<double>(low))));
  return static_cast<uint64_t>(bytes);
}

std::string size_text(uint64_t bytes) {
  for (const auto& [unit, letter] : {std::pair{1ULL << 20, 'M'}, std::pair{1ULL << 10, 'K'}}) {
    if (bytes >= unit && bytes % unit == 0) return fmt::format("{}{}", bytes / unit, letter);
  }
  return fmt::format("{}", bytes);
}

}  // namespace

double Curve::at(size_t bytes) const {
  if (points_.empty()) return 0;
  if (points_.size() == 1) return points_.front().us;
  const auto above = std::find_if(points_.begin() + 1, points_.end() - 1,
                                  [&](const Point& point) { return point.bytes >= bytes; });
  const Point& a = *(above - 1);
  const Point& b = *above;
  const double x = log_of(static_cast<double>(bytes));
  const double xa = log_of(static_cast<double>(a.bytes));
  const double xb = log_of(static_cast<double>(b.bytes));
  const double part = (x - xa) / (xb - xa);
  return std::exp(log_of(a.us) + part * (log_of(b.us) - log_of(a.us)));
}

Threshold fit_threshold(const Curve& first, const Curve& second, const std::string& first_name,
                        const std::string& second_name, double margin) {
  const auto& a = first.points();
  const auto& b = second.points();
  const double handicap = std::log1p(margin);
  const size_t sizes = std::min(a.size(), b.size());
  if (sizes == 0) return {};
  size_t best = 0;  // so many sizes take the first way
  double least = std::numeric_limits<double>::infinity();
  for (size_t taken = 0; taken <= sizes; ++taken) {
    double sum = 0;
    for (size_t i = 0; i < sizes; ++i)
      sum += i < taken ? log_of(a[i].us) : log_of(b[i].us) + handicap;
    if (sum < least) {
      least = sum;
      best = taken;
    }
  }
  if (best == 0) {
    return {1, false,
            fmt::format("{} is slower from {} on ({:.3g} against {:.3g} us)", first_name,
                        size_text(a[0].bytes), a[0].us, b[0].us)};
  }
  const Point& last = a[best - 1];
  if (best == sizes) {
    return {last.bytes, true,
            fmt::format("{} is faster up to {}, the largest size tried ({:.4g} against {:.4g} us)",
                        first_name, size_text(last.bytes), last.us, b[sizes - 1].us)};
  }
  return {crossing(first, second, last.bytes, a[best].bytes), false,
          fmt::format("{} {:.4g} against {} {:.4g} us at {}, {:.4g} against {:.4g} at {}",
                      first_name, last.us, second_name, b[best - 1].us, size_text(last.bytes),
                      a[best].us, b[best].us, size_text(a[best].bytes))};
}

plan::HostCost fit_host_cost(const Curve& copy, double meeting_us) {
  constexpr double kMiB = 1 << 20;
  constexpr size_t kCached = 256 << 10;  // in the cache of every core that is worth the name
  plan::HostCost cost;
  cost.meeting_us = meeting_us;
  const auto& points = copy.points();
  if (points.size() < 2) return cost;
  // A copy reads its bytes and writes as many.
  const auto touched = [&](const Point& point) {
    return 2 * static_cast<double>(point.bytes) / kMiB;
  };
  const Point& first = points.front();
  const Point& last = points.back();
  const Point& before = points[points.size() - 2];
  cost.call_us = first.us;
  cost.memory_us_per_mib = std::max((last.us - before.us) / (touched(last) - touched(before)), 0.0);
  const double cached = copy.at(kCached) / touched({kCached, 0});
  cost.cached_us_per_mib = std::min(cached, cost.memory_us_per_mib);
  const double gained = cost.memory_us_per_mib * touched(last) - last.us;
  if (cost.memory_us_per_mib > cost.cached_us_per_mib) {
    cost.cached_mib = std::max(gained / (cost.memory_us_per_mib - cost.cached_us_per_mib), 0.0);
  }
  return cost;
}

std::string choose_wait(double spinning_us, double sleeping_us, int ranks, int cores) {
  constexpr double kClearly = 1.2;
  if (ranks <= cores) return sleeping_us * kClearly < spinning_us ? "sleep" : "spin";
  return spinning_us * kClearly < sleeping_us ? "spin" : "sleep";
}

std::vector<HeldOut> hold_out(const Threshold& threshold, const Curve& first, const Curve& second,
                              const Curve& first_held, const Curve& second_held,
                              const std::string& first_name, const std::string& second_name) {
  std::vector<HeldOut> results;
  const size_t sizes = std::min(first_held.points().size(), second_held.points().size());
  results.reserve(sizes);
  for (size_t i = 0; i < sizes; ++i) {
    const Point& a = first_held.points()[i];
    const Point& b = second_held.points()[i];
    const bool takes_first = a.bytes <= threshold.bytes || threshold.open;
    results.push_back({a.bytes, takes_first ? first_name : second_name,
                       takes_first ? first.at(a.bytes) : second.at(a.bytes),
                       takes_first ? a.us : b.us, std::min(a.us, b.us)});
  }
  return results;
}

}  // namespace zbccl::tools
