// The same exchange by another library's calls, in the same run.
#pragma once

#include <memory>

#include "measure/gloo_module.h"
#include "moe_perf/expected.h"
#include "moe_perf/shape.h"

namespace zbccl::tools {

// One rank's part of a batch.
struct MoeInputs {
  const void* tokens = nullptr;    // [tokens, hidden]
  const int64_t* topk = nullptr;   // [tokens, topk]
  const float* weights = nullptr;  // [tokens, topk]
  const void* results = nullptr;   // what the experts give, where a dispatch put the rows
  void* combined = nullptr;        // [tokens, hidden], written by a combine
};

// One rank's membership. One thread; every call is collective.
class MoeComparison {
 public:
  virtual ~MoeComparison() = default;
  // `cached`: dispatch() is to reuse the counts of a first one and to move rows only. The inputs
  // stay valid until the next prepare().
  virtual void prepare(const MoeShape& shape, const MoeInputs& inputs, bool cached) = 0;
  virtual void dispatch() = 0;
  // After a dispatch(). Expert layouts: a rank's results for one token are added up before they
  // travel.
  virtual void combine() = 0;
  // Of the last dispatch().
  virtual Dispatched outputs() const = 0;
};

// What the module exports, under kMoeComparisonSymbol.
using OpenMoeComparison = MoeComparison* (*)(const CompareGroup& group);
inline constexpr const char* kMoeComparisonSymbol = "zbccl_open_moe_comparison";

}  // namespace zbccl::tools
