// Which part of the model a rank computes. Sizes need not divide: parts differ by
// at most one.
#pragma once

#include "config.h"

namespace llm {

struct Range {
  int begin = 0;
  int end = 0;
  int size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

// Part `index` of [0, total) cut into `parts`; the first total % parts of them get one more.
Range part(int total, int parts, int index);

// How the experts lie on the ranks.
enum class Experts {
  kSliced,  // tensor-parallel: a slice of every one on every rank
  kWhole    // expert-parallel: each whole on one rank
};

struct Shard {
  int rank = 0;
  int size = 1;
  Range heads;     // query heads
  Range kv_heads;  // those that the query heads read; two ranks may both hold one
  Experts experts_split = Experts::kSliced;
  Range experts;  // those that lie here
  Range hidden;   // of each of them
  Range vocab;
  int vocab_stride = 0;  // the largest rank's vocab part: an all-gather moves equal counts
};

// Throws Error where a rank would be left without a head or a slice of the experts. A rank may be
// left without a whole expert.
Shard make_shard(const Config& config, int size, int rank, Experts experts = Experts::kSliced);

}  // namespace llm
