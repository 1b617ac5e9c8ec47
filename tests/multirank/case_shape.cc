#include "multirank/case_shape.h"

#include <algorithm>

namespace zbccl::test {
namespace {

// What rank `from` has for rank `to`: uneven, and nothing for about one pair in four.
size_t uneven(const Case& test, uint64_t seed, int from, int to) {
  const uint64_t h = seed_of(seed, static_cast<uint64_t>(from), static_cast<uint64_t>(to));
  return h % 4 == 0 ? 0 : (h >> 8) % (2 * test.count + 1);
}

// Blocks with room between them, laid out from the last rank to the first.
std::vector<size_t> offsets_of(const Case& test, const std::vector<size_t>& counts, size_t gap) {
  std::vector<size_t> offsets(counts.size());
  size_t next = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    const size_t r = test.gaps ? counts.size() - 1 - i : i;
    if (test.gaps) next += 1 + gap % 5 + i % 3;
    offsets[r] = next;
    next += counts[r];
  }
  return offsets;
}

size_t extent_of(const std::vector<size_t>& counts, const std::vector<size_t>& offsets) {
  size_t end = 0;
  for (size_t r = 0; r < counts.size(); ++r) {
    if (counts[r] > 0) end = std::max(end, offsets[r] + counts[r]);
  }
  return end;
}

class Shaper {
 public:
  Shaper(const Case& test, int rank, int ranks, uint64_t seed)
      : test_(test), rank_(rank), ranks_(ranks), seed_(seed) {}

  CaseShape make() {
    const size_t c = test_.count;
    const auto n = static_cast<size_t>(ranks_);
    const size_t mine = static_cast<size_t>(rank_) * c;
    const bool is_root = rank_ == test_.root;
    switch (test_.operation) {
      case Operation::kAllReduce: whole(c, {0, c, Piece::kEveryRank, 0}); break;
      case Operation::kReduce:
        shape_.in_count = c;
        if (is_root) whole(c, {0, c, Piece::kEveryRank, 0});
        break;
      case Operation::kBroadcast:
        whole(c, {0, c, test_.root, 0});
        shape_.in_count = is_root ? c : 0;
        break;
      case Operation::kSendRecv: whole(c, {0, c, (rank_ + ranks_ - 1) % ranks_, 0}); break;
      case Operation::kReduceScatter:
        shape_ = {c * n, c, {{0, c, Piece::kEveryRank, mine}}, 0, mine};
        break;
      case Operation::kAllGather: shape_ = {c, c * n, blocks(0), mine, 0}; break;
      case Operation::kGather:
        shape_.in_count = c;
        if (is_root) shape_ = {c, c * n, blocks(0), mine, 0};
        break;
      case Operation::kScatter:
        shape_ = {is_root ? c * n : 0, c, {{0, c, test_.root, mine}}, 0, is_root ? mine : 0};
        break;
      case Operation::kAllToAll: shape_ = {c * n, c * n, blocks(mine)}; break;
      case Operation::kAllGatherV: gather_v(); break;
      case Operation::kReduceScatterV: reduce_scatter_v(); break;
      case Operation::kAllToAllV: all_to_all_v(); break;
    }
    return shape_;
  }

 private:
  void whole(size_t count, Piece piece) {
    shape_.in_count = count;
    shape_.out_count = count;
    shape_.pieces = {piece};
  }

  // Every rank's elements [from, from + count), one behind the other.
  std::vector<Piece> blocks(size_t from) const {
    std::vector<Piece> pieces;
    for (int r = 0; r < ranks_; ++r) {
      pieces.push_back({static_cast<size_t>(r) * test_.count, test_.count, r, from});
    }
    return pieces;
  }

  // The counts that all ranks give alike.
  std::vector<size_t> common_counts() const {
    std::vector<size_t> counts;
    for (int r = 0; r < ranks_; ++r) counts.push_back(uneven(test_, seed_, r, 0));
    return counts;
  }

  void gather_v() {
    const auto me = static_cast<size_t>(rank_);
    shape_.recv_counts = common_counts();
    const auto offsets = offsets_of(test_, shape_.recv_counts, me);
    if (test_.gaps) shape_.recv_offsets = offsets;
    shape_.in_count = shape_.recv_counts[me];
    shape_.out_count = extent_of(shape_.recv_counts, offsets);
    shape_.in_place_send = offsets[me];
    for (int r = 0; r < ranks_; ++r) {
      const auto i = static_cast<size_t>(r);
      shape_.pieces.push_back({offsets[i], shape_.recv_counts[i], r, 0});
    }
  }

  void reduce_scatter_v() {
    const auto me = static_cast<size_t>(rank_);
    shape_.send_counts = common_counts();
    const auto offsets = offsets_of({}, shape_.send_counts, 0);
    shape_.in_count = extent_of(shape_.send_counts, offsets);
    shape_.out_count = shape_.send_counts[me];
    shape_.in_place_recv = offsets[me];
    shape_.pieces = {{0, shape_.out_count, Piece::kEveryRank, offsets[me]}};
  }

  std::vector<size_t> sent_by(int rank) const {
    std::vector<size_t> counts;
    for (int r = 0; r < ranks_; ++r) counts.push_back(uneven(test_, seed_, rank, r));
    return counts;
  }

  void all_to_all_v() {
    const auto me = static_cast<size_t>(rank_);
    shape_.send_counts = sent_by(rank_);
    const auto from = offsets_of(test_, shape_.send_counts, me);
    for (int r = 0; r < ranks_; ++r) shape_.recv_counts.push_back(uneven(test_, seed_, r, rank_));
    const auto to = offsets_of(test_, shape_.recv_counts, me + 1);
    if (test_.gaps) {
      shape_.send_offsets = from;
      shape_.recv_offsets = to;
    }
    shape_.in_count = extent_of(shape_.send_counts, from);
    shape_.out_count = extent_of(shape_.recv_counts, to);
    for (int r = 0; r < ranks_; ++r) {
      const auto i = static_cast<size_t>(r);
      const auto theirs = offsets_of(test_, sent_by(r), i);
      shape_.pieces.push_back({to[i], shape_.recv_counts[i], r, theirs[me]});
    }
  }

  const Case& test_;
  int rank_;
  int ranks_;
  uint64_t seed_;
  CaseShape shape_;
};

}  // namespace

CaseShape shape_of(const Case& test, int rank, int ranks, uint64_t seed) {
  return Shaper(test, rank, ranks, seed).make();
}

}  // namespace zbccl::test
