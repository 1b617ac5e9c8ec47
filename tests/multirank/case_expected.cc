#include "multirank/case_expected.h"

#include <vector>

#include "support/reference.h"

namespace zbccl::test {

uint64_t input_seed(uint64_t case_seed, int rank) {
  return seed_of(case_seed, static_cast<uint64_t>(rank));
}

void write_expected(const Case& test, const CaseShape& shape, int ranks, uint64_t case_seed,
                    std::byte* output) {
  const size_t size = element_size(test.type);
  for (const Piece& piece : shape.pieces) {
    std::byte* const to = output + piece.to * size;
    const auto input = [&](int rank, void* at) {
      fill(at, piece.count, test.type, test.fill, input_seed(case_seed, rank), piece.from);
    };
    if (piece.source != Piece::kEveryRank) {
      input(piece.source, to);
      continue;
    }
    std::vector<std::vector<std::byte>> inputs(static_cast<size_t>(ranks));
    std::vector<const void*> pointers;
    for (int r = 0; r < ranks; ++r) {
      auto& one = inputs[static_cast<size_t>(r)];
      one.resize(piece.count * size);
      input(r, one.data());
      pointers.push_back(one.data());
    }
    reference_reduce(pointers, to, piece.count, test.type, test.op);
  }
}

}  // namespace zbccl::test
