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
constexpr std::array kMovers = {Operation::kAllGather, Operation::kBroadcast, Operation::kSendRecv};

const char* operation_name(Operation operation) {
  switch (operation) {
    case Operation::kAllReduce: return "all_reduce";
    case Operation::kReduceScatter: return "reduce_scatter";
    case Operation::kAllGather: return "all_gather";
    case Operation::kBroadcast: return "broadcast";
    case Operation::kSendRecv: return "send_recv";
  }
  return "unknown";
}

const char* memory_name(Memory memory) {
  switch (memory) {
    case Memory::kRegistered: return "registered";
    case Memory::kPlain: return "plain";
    case Memory::kAlternate: return "alternate";
  }
  return "unknown";
}

bool has_in_place(Operation operation) { return operation != Operation::kSendRecv; }

// Sets what varies along with the table's order instead of multiplying its length.
void add(std::vector<Case>& cases, Case test, int ranks) {
  const uint64_t variation = mix(cases.size());
  test.async = variation % 4 == 0;
  test.root = static_cast<int>((variation >> 8) % static_cast<uint64_t>(ranks));
  cases.push_back(test);
}

}  // namespace

std::string Case::name() const {
  std::string text = std::string(operation_name(operation)) + " " + zbcclTypeName(type);
  if (reduces()) text += std::string(" ") + zbcclOpName(op);
  text += " count " + std::to_string(count) + " offset " + std::to_string(offset);
  text += in_place ? " in place " : " out of place ";
  text += memory_name(memory);
  if (operation == Operation::kBroadcast) text += " root " + std::to_string(root);
  return text + (fill == Fill::kSpecial ? " special values" : "") + (async ? " async" : "");
}

std::vector<Case> small_cases(int ranks) {
  std::vector<Case> cases;
  for (int t = 0; t < zbcclNumTypes; ++t) {
    const auto type = static_cast<zbcclDataType_t>(t);
    for (const Shape& shape : kShapes) {
      for (Memory memory : kMemories) {
        for (bool in_place : {false, true}) {
          Case test{.type = type,
                    .count = shape.count,
                    .offset = shape.offset,
                    .in_place = in_place,
                    .memory = memory};
          for (Operation operation : {Operation::kAllReduce, Operation::kReduceScatter}) {
            test.operation = operation;
            for (int op = 0; op < zbcclNumOps; ++op) {
              test.op = static_cast<zbcclRedOp_t>(op);
              add(cases, test, ranks);
            }
          }
          for (Operation operation : kMovers) {
            if (in_place && !has_in_place(operation)) continue;
            test.operation = operation;
            add(cases, test, ranks);
          }
        }
      }
    }
  }
  return cases;
}

std::vector<Case> large_cases(int ranks) {
  std::vector<Case> cases;
  constexpr size_t kBytes = size_t{4} << 20;
  const Case kinds[] = {
      {.type = zbcclFloat32, .memory = Memory::kRegistered},
      {.type = zbcclFloat32, .in_place = true, .memory = Memory::kPlain},
      {.type = zbcclBfloat16, .in_place = true, .memory = Memory::kRegistered},
      {.type = zbcclBfloat16, .memory = Memory::kAlternate},
  };
  for (Case test : kinds) {
    const size_t count = kBytes / element_size(test.type) + 3;
    test.offset = 1;
    test.operation = Operation::kAllReduce;
    test.count = count;
    add(cases, test, ranks);
    test.operation = Operation::kReduceScatter;
    test.count = count / static_cast<size_t>(ranks) + 1;
    add(cases, test, ranks);
    test.operation = Operation::kAllGather;
    add(cases, test, ranks);
    test.operation = Operation::kBroadcast;
    test.count = count;
    add(cases, test, ranks);
    test.operation = Operation::kSendRecv;
    test.in_place = false;
    add(cases, test, ranks);
  }
  return cases;
}

}  // namespace zbccl::test
