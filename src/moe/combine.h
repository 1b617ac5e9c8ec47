// One combine: every rank reads the rows of its tokens where the experts' ranks have them, and adds
// them up in FP32 in a fixed order. Two meetings. One thread; made for one call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "moe/handle.h"
#include "moe/peer_array.h"
#include "moe/shapes.h"

namespace zbccl::moe {

class Combiner {
 public:
  Combiner(collectives::Context& context, const zbcclMoeCombine_t& call, Handle& handle);
  Status run(const Status& local, Milliseconds timeout);

 private:
  // A row of a token: where it is, and its slot, or, RankMajor, the number of its stop.
  struct Term {
    int32_t rank;
    int32_t row;
    int32_t slot;
  };
  struct Peer {
    bool opened = false;
    const std::byte* y = nullptr;  // null: not reached by plain loads
    transport::RemoteBuffer remote;
    size_t stride = 0;
    PeerArray weights;
    std::vector<memory::AttachedPiece> pieces;
  };

  Status open();
  Status show(const Status& local, Milliseconds timeout);
  Status check_weights() const;
  Status open_peer(int rank, Peer& peer);
  void list_terms(int64_t token);
  Status add_tokens(int64_t first, int64_t end);
  Status place_rows();
  void add_token(int64_t token, size_t first_term, size_t end_term);
  void add_by_rank(int64_t token, size_t first_term, size_t end_term);
  void add_weights(int64_t token, size_t first_term, size_t end_term);
  void sum(const void* const* rows, const float* weights, size_t count, int64_t token) const;

  collectives::Context& context_;
  transport::Team& team_;
  const zbcclMoeCombine_t& call_;
  Handle& handle_;
  Board& board_;
  const bool by_expert_;
  const size_t topk_;
  CombineShape shape_;
  transport::LocalBuffer y_;
  transport::LocalBuffer weights_;
  std::vector<Peer> peers_;
  // Of the tokens that are added up together.
  std::vector<Term> terms_;
  std::vector<const void*> rows_;  // of each term
  std::vector<size_t> ends_;       // of each token's terms
  // Of one token.
  std::vector<const void*> group_rows_;
  std::vector<float> group_weights_;
  std::vector<std::byte> partial_sums_;
};

}  // namespace zbccl::moe
