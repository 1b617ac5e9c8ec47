// What measured times say about thresholds. Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "plan/cost.h"

namespace zbccl::tools {

struct Point {
  size_t bytes = 0;
  double us = 0;
};

// Times of one way to do something, by ascending size.
class Curve {
 public:
  Curve() = default;
  explicit Curve(std::vector<Point> points) : points_(std::move(points)) {}

  const std::vector<Point>& points() const { return points_; }
  // On the straight line between the two nearest sizes where both are drawn by their logarithms;
  // outside them, on the nearest line. 0 without points.
  double at(size_t bytes) const;

 private:
  std::vector<Point> points_;
};

struct Threshold {
  // Sizes up to it take the first way, larger ones the second: 1 where the first is never worth it,
  // the largest size measured where it always is (`open`).
  uint64_t bytes = 1;
  bool open = false;
  std::string why;
};

// The threshold that loses least over the sizes that both curves have: the logarithms of the times
// are added up, so that no size counts more than another. Between the two sizes next to it, it lies
// where the curves cross. The second way has to be faster by `margin` (0.05: 5 %), which is what
// measuring twice differs by, or the first one is kept.
Threshold fit_threshold(const Curve& first, const Curve& second, const std::string& first_name,
                        const std::string& second_name, double margin);

// How long bytes take that every rank copies at once, and a meeting.
plan::HostCost fit_host_cost(const Curve& copy, double meeting_us);

// "spin" or "sleep" from the times of one meeting: spinning where every rank has a core and
// sleeping elsewhere, unless the other one is clearly faster.
std::string choose_wait(double spinning_us, double sleeping_us, int ranks, int cores);

// One size that was not used for the fit.
struct HeldOut {
  size_t bytes = 0;
  std::string chosen;
  double predicted_us = 0;
  double measured_us = 0;  // of what is chosen
  double best_us = 0;      // of the better one
};
std::vector<HeldOut> hold_out(const Threshold& threshold, const Curve& first, const Curve& second,
                              const Curve& first_held, const Curve& second_held,
                              const std::string& first_name, const std::string& second_name);

}  // namespace zbccl::tools
