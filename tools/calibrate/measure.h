// Measures on this machine, between real ranks, what thresholds are fitted to.
#pragma once

#include <string>
#include <vector>
#include <zbccl/zbccl.hpp>

#include "calibrate/fit.h"

namespace zbccl::tools {

// Of one number of ranks; times are medians over calls of the slowest rank, in microseconds.
struct Measured {
  int ranks = 0;
  double meeting_spin = 0;
  double meeting_sleep = 0;
  std::string wait;  // "spin" where every rank has a core, else "sleep": as the library decides
  std::string faster_wait;  // what the meetings say
  Curve copy;               // every rank copies so many bytes at once
  Curve one_shot;           // all_reduce, f32, sum
  Curve two_shot;
  Curve one_shot_held;  // at sizes in between, which the fit does not see
  Curve two_shot_held;
  // all_gather by output, and reading all of it, since stores past the cache leave that to the
  // reader.
  Curve cached;
  Curve streamed;
  Curve cached_held;
  Curve streamed_held;
};

struct MeasureOptions {
  bool steady = false;    // inputs stay as they are, else each call gets them anew
  double seconds = 0.05;  // for each size and way
};

// Collective over the job that this process is a rank of; the result is right on rank 0. `folder`
// is for this rank's files.
Measured measure_rank(const MeasureOptions& options, const std::string& folder);

std::string to_json(const Measured& measured);
Measured parse_measured(const std::string& text);

}  // namespace zbccl::tools
