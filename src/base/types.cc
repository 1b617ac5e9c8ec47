#include "base/types.h"

#include <array>

namespace zbccl {
namespace {

struct TypeInfo {
  const char* name;
  size_t size;
  bool is_float;
};

constexpr std::array<TypeInfo, kNumDataTypes> kTypes = {{{"f32", 4, true},
                                                         {"f64", 8, true},
                                                         {"f16", 2, true},
                                                         {"bf16", 2, true},
                                                         {"e4m3", 1, true},
                                                         {"e5m2", 1, true},
                                                         {"i8", 1, false},
                                                         {"u8", 1, false},
                                                         {"i32", 4, false},
                                                         {"u32", 4, false},
                                                         {"i64", 8, false},
                                                         {"u64", 8, false},
                                                         {"i16", 2, false},
                                                         {"u16", 2, false}}};
constexpr std::array<const char*, kNumRedOps> kOps = {"sum", "prod", "min", "max", "avg"};

}  // namespace

size_t type_size(DataType type) { return kTypes[static_cast<size_t>(type)].size; }
const char* type_name(DataType type) { return kTypes[static_cast<size_t>(type)].name; }
const char* op_name(RedOp op) { return kOps[static_cast<size_t>(op)]; }
const char* operation_name(Operation operation) {
  static constexpr std::array<const char*, kNumOperations> kNames = {
      "none",      "init",    "all_reduce", "all_gather", "reduce_scatter",
      "broadcast", "barrier", "send",       "recv"};
  const auto index = static_cast<size_t>(operation);
  return index < kNames.size() ? kNames[index] : "unknown";
}

bool is_float(DataType type) { return kTypes[static_cast<size_t>(type)].is_float; }

std::optional<DataType> parse_type(std::string_view name) {
  for (size_t i = 0; i < kTypes.size(); ++i) {
    if (name == kTypes[i].name) return static_cast<DataType>(i);
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
