// What a case's call reads and writes, element by element: worked out from the operation's
// definition in zbccl.h alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "multirank/collective_case.h"

namespace zbccl::test {

// A run of elements of one rank's output.
struct Piece {
  static constexpr int kEveryRank = -1;
  size_t to = 0;  // first element in the output
  size_t count = 0;
  int source = 0;   // the rank whose input it is, or kEveryRank: reduced over all
  size_t from = 0;  // first element in the source's input
};

struct CaseShape {
  size_t in_count = 0;   // elements of this rank's input
  size_t out_count = 0;  // from the output's first element to its last
  // Of the output; whatever lies between them stays as it was.
  std::vector<Piece> pieces;
  // In place: where input and output lie in their common memory.
  size_t in_place_send = 0;
  size_t in_place_recv = 0;
  // What the forms with per-rank sizes are given; offsets may be empty.
  std::vector<size_t> send_counts, send_offsets, recv_counts, recv_offsets;
};

// `seed` decides per-rank sizes and is the same on every rank.
CaseShape shape_of(const Case& test, int rank, int ranks, uint64_t seed);

}  // namespace zbccl::test
