// Ranks of a zbccl job meet in gloo, over TCP on the loopback. Part of the module that holds gloo.
#pragma once

#include <gloo/context.h>

#include <chrono>
#include <memory>

#include "measure/gloo_module.h"

namespace zbccl::tools {

inline constexpr std::chrono::seconds kGlooTimeout{120};

// Collective. Throws where gloo cannot connect the ranks.
std::shared_ptr<gloo::Context> join_gloo(const CompareGroup& group);

}  // namespace zbccl::tools
