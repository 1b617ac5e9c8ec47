// Where the model runs.
#pragma once

#include <memory>
#include <string>

#include "model.h"
#include "weights.h"

namespace llm {

enum class Device { kHost, kCuda };

// The job that the environment describes, with this rank's GPU for kCuda. Throws Error where there
// is none, or where this build has no engine for GPUs.
Parallel join(Device device);
// For at most `max_batch` tokens at a time; `weights` and `parallel` outlive it.
std::unique_ptr<Model> make_engine(Device device, const Weights& weights, Parallel& parallel,
                                   int max_batch);
// "this machine's processors", or the name of this rank's GPU.
std::string describe(Device device);

}  // namespace llm
