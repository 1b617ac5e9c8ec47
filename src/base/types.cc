#include "base/types.h"

#include <array>

namespace zbccl {
namespace {

struct TypeInfo {
  const char* name;
  bool is_float;
};

constexpr std::array<TypeInfo, kNumDataTypes> kTypes = {{{"f32", true},
                                                         {"f64", true},
                                                         {"f16", true},
                                                         {"bf16", true},
                                                         {"e4m3", true},
                                                         {"e5m2", true},
                                                         {"i8", false},
                                                         {"u8", false},
                                                         {"i32", false},
                                                         {"u32", false},
                                                         {"i64", false},
                                                         {"u64", false},
                                                         {"i16", false},
                                                         {"u16", false}}};
constexpr std::array<const char*, kNumRedOps> kOps = {"sum", "prod", "min", "max", "avg"};

}  // namespace

const char* type_name(DataType type) { return kTypes[static_cast<size_t>(type)].name; }
const char* op_name(RedOp op) { return kOps[static_cast<size_t>(op)]; }
const char* operation_name(Operation operation) {
  static constexpr std::array<const char*, kNumOperations> kNames = {"none",
                                                                     "init",
                                                                     "all_reduce",
                                                                     "all_gather",
                                                                     "reduce_scatter",
                                                                     "broadcast",
                                                                     "barrier",
                                                                     "send",
                                                                     "recv",
                                                                     "reduce",
                                                                     "gather",
                                                                     "scatter",
                                                                     "all_to_all",
                                                                     "all_gather_v",
                                                                     "reduce_scatter_v",
                                                                     "all_to_all_v",
                                                                     "all_reduce_rms_norm",
                                                                     "all_reduce_quantized",
                                                                     "moe_create",
                                                                     "moe_route",
                                                                     "moe_dispatch",
                                                                     "moe_combine"};
  const auto index = static_cast<size_t>(operation);
  return index < kNames.size() ? kNames[index] : "unknown";
}

bool is_float(DataType type) { return kTypes[static_cast<size_t>(type)].is_float; }

bool reduces(Operation operation) {
  return operation == Operation::kAllReduce || operation == Operation::kReduce ||
         operation == Operation::kReduceScatter || operation == Operation::kReduceScatterV;
}

bool has_root(Operation operation) {
  return operation == Operation::kBroadcast || operation == Operation::kReduce ||
         operation == Operation::kGather || operation == Operation::kScatter;
}

bool is_moe(Operation operation) {
  return operation >= Operation::kMoeCreate && operation <= Operation::kMoeCombine;
}

bool has_blocks(Operation operation) {
  return operation == Operation::kAllGatherV || operation == Operation::kReduceScatterV ||
         operation == Operation::kAllToAllV;
}

std::optional<DataType> parse_type(std::string_view name) {
  for (size_t i = 0; i < kTypes.size(); ++i) {
    if (name == kTypes[i].name) return static_cast<DataType>(i);
  }
  return std::nullopt;
}

std::optional<Operation> parse_operation(std::string_view name) {
  for (int i = 0; i < kNumOperations; ++i) {
    if (name == operation_name(static_cast<Operation>(i))) return static_cast<Operation>(i);
  }
  return std::nullopt;
}

std::optional<RedOp> parse_op(std::string_view name) {
  for (size_t i = 0; i < kOps.size(); ++i) {
    if (name == kOps[i]) return static_cast<RedOp>(i);
  }
  return std::nullopt;
}

}  // namespace zbccl
