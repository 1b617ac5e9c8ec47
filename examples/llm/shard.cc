#include "shard.h"

#include <algorithm>

#include "error.h"

namespace llm {

Range part(int total, int parts, int index) {
  const int base = total / parts;
  const int larger = total % parts;
  const int begin = index * base + std::min(index, larger);
  return {begin, begin + base + (index < larger ? 1 : 0)};
}

Shard make_shard(const Config& config, int size, int rank, Experts experts) {
  const bool sliced = experts == Experts::kSliced;
  const int heads = std::min(config.heads, config.vocab);
  const int most = sliced ? std::min(heads, config.expert_hidden) : heads;
  if (size < 1 || size > most) {
    fail("this model can be split over 1 to {} ranks, not {}", most, size);
  }
  Shard shard;
  shard.rank = rank;
  shard.size = size;
  shard.experts_split = experts;
  shard.heads = part(config.heads, size, rank);
  const int group = config.queries_per_kv_head();
  shard.kv_heads = {shard.heads.begin / group, (shard.heads.end + group - 1) / group};
  const Range every_expert = {0, config.experts};
  const Range all_hidden = {0, config.expert_hidden};
  shard.experts = sliced ? every_expert : part(config.experts, size, rank);
  shard.hidden = sliced ? part(config.expert_hidden, size, rank) : all_hidden;
  shard.vocab = part(config.vocab, size, rank);
  shard.vocab_stride = part(config.vocab, size, 0).size();
  return shard;
}

}  // namespace llm
