#include <array>

#include "multirank/collective_case.h"

namespace zbccl::test {
namespace {

struct Shape {
  size_t count;
  size_t offset;
};
// Nothing, one element, odd, unaligned and odd, a power of two.
constexpr std::array kShapes = {Shape{0, 0}, Shape{1, 3}, Shape{37, 0}, Shape{1003, 1},
                                Shape{2048, 0}};
constexpr std::array kMemories = {Memory::kRegistered, Memory::kPlain, Memory::kAlternate};

constexpr std::array<const char*, kNumOperations> kNames = {
    "all_reduce", "reduce_scatter", "reduce_scatter_v", "reduce",
    "all_gather", "all_gather_v",   "broadcast",        "gather",
    "scatter",    "all_to_all",     "all_to_all_v",     "send_recv"};

const char* memory_name(Memory memory) {
  switch (memory) {
    case Memory::kRegistered: return "registered";
    case Memory::kPlain: return "plain";
    case Memory::kAlternate: return "alternate";
  }
  return "unknown";
}

// Sets what varies along with the table's order instead of multiplying its length.
void add(std::vector<Case>& cases, Case test, int ranks) {
  const uint64_t variation = mix(cases.size());
  test.async = variation % 4 == 0;
  test.root = static_cast<int>((variation >> 8) % static_cast<uint64_t>(ranks));
  test.gaps = (variation >> 16) % 2 == 0;
  cases.push_back(test);
}

int num_operators(Operation operation) {
  return reduces(operation) ? static_cast<int>(zbcclNumOps) : 1;
}

}  // namespace

bool reduces(Operation operation) { return operation <= Operation::kReduce; }

bool has_root(Operation operation) {
  return operation == Operation::kReduce || operation == Operation::kBroadcast ||
         operation == Operation::kGather || operation == Operation::kScatter;
}

bool has_in_place(Operation operation) {
  return operation != Operation::kSendRecv && operation != Operation::kAllToAllV;
}

std::string Case::name() const {
  std::string text = kNames[static_cast<size_t>(operation)];
  text += std::string(" ") + zbcclTypeName(type);
  if (reduces()) text += std::string(" ") + zbcclOpName(op);
  text += " count " + std::to_string(count) + " offset " + std::to_string(offset);
  text += in_place ? " in place " : " out of place ";
  text += memory_name(memory);
  if (has_root(operation)) text += " root " + std::to_string(root);
  if (gaps) text += " gaps";
  return text + (fill == Fill::kSpecial ? " special values" : "") + (async ? " async" : "");
}

std::vector<Case> small_cases(int ranks) {
  std::vector<Case> cases;
  for (int t = 0; t < zbcclNumTypes; ++t) {
    for (const Shape& shape : kShapes) {
      for (Memory memory : kMemories) {
        for (Case test : every_operation(memory, shape.count, ranks)) {
          test.type = static_cast<zbcclDataType_t>(t);
          test.offset = shape.offset;
          for (int op = 0; op < num_operators(test.operation); ++op) {
            test.op = static_cast<zbcclRedOp_t>(op);
            add(cases, test, ranks);
          }
        }
      }
    }
  }
  return cases;
}

std::vector<Case> threshold_cases(size_t bytes, int ranks) {
  std::vector<Case> cases;
  for (zbcclDataType_t type : {zbcclFloat32, zbcclBfloat16, zbcclUint8}) {
    for (int o = 0; reduces(operation_at(o)); ++o) {
      const bool divided = operation_at(o) == Operation::kReduceScatter ||
                           operation_at(o) == Operation::kReduceScatterV;
      const size_t count = bytes / element_size(type) / (divided ? static_cast<size_t>(ranks) : 1);
      for (size_t around : {count - 1, count, count + 1}) {
        for (Memory memory : kMemories) {
          add(cases,
              {.operation = operation_at(o),
               .type = type,
               .count = around,
               .offset = cases.size() % 3,
               .in_place = cases.size() % 2 == 0,
               .memory = memory},
              ranks);
        }
      }
    }
  }
  return cases;
}

std::vector<Case> large_cases(int ranks) {
  std::vector<Case> cases;
  constexpr size_t kBytes = size_t{1} << 20;
  const Case kinds[] = {
      {.type = zbcclFloat32, .memory = Memory::kRegistered},
      {.type = zbcclFloat32, .in_place = true, .memory = Memory::kPlain},
      {.type = zbcclBfloat16, .in_place = true, .memory = Memory::kRegistered},
      {.type = zbcclBfloat16, .memory = Memory::kAlternate},
  };
  for (Case test : kinds) {
    const size_t count = kBytes / element_size(test.type) + 3;
    const bool in_place = test.in_place;
    test.offset = 1;
    for (int o = 0; o < kNumOperations; ++o) {
      test.operation = operation_at(o);
      test.in_place = in_place && has_in_place(test.operation);
      const bool whole = test.operation == Operation::kAllReduce ||
                         test.operation == Operation::kReduce ||
                         test.operation == Operation::kBroadcast;
      test.count = whole ? count : count / static_cast<size_t>(ranks) + 1;
      add(cases, test, ranks);
    }
  }
  return cases;
}

std::vector<Case> every_operation(Memory memory, size_t count, int ranks) {
  std::vector<Case> cases;
  for (int o = 0; o < kNumOperations; ++o) {
    for (bool in_place : {false, true}) {
      if (in_place && !has_in_place(operation_at(o))) continue;
      add(cases,
          {.operation = operation_at(o), .count = count, .in_place = in_place, .memory = memory},
          ranks);
    }
  }
  return cases;
}

}  // namespace zbccl::test
