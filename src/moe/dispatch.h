// One dispatch: every rank reads the rows that it gets straight from its peers' x to where they
// belong, quantized on the way where asked. Two meetings, and nothing in between. One thread; made
// for one call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "moe/handle.h"
#include "moe/peer_array.h"
#include "moe/shapes.h"

namespace zbccl::moe {

class Dispatcher {
 public:
  Dispatcher(collectives::Context& context, const zbcclMoeDispatch_t& call, Handle& handle);
  Status run(const Status& local, Milliseconds timeout);

 private:
  struct Source;
  struct Move {
    uint32_t token;
    int64_t row;
  };
  struct Repeat {
    int64_t from;
    int64_t row;
  };

  Status open();
  Status show(const Status& local, Milliseconds timeout);
  Status check_weights() const;
  Status receive(int rank);
  Status open_source(int rank, Source& source);
  void copy_rows(const Source& source, const Handle::Section& section);
  void list_moves(const Handle::Section& section);
  Status make_moves(Source& source);
  Status fetch_rows(Source& source);
  Status fetch_and_quantize(Source& source);
  void repeat_rows();
  void quantize(const std::byte* row, int64_t to);
  void copy_scales(const Source& source, const Handle::Section& section);
  void write_notes(const Source& source, const Handle::Section& section);
  void write_topk(const Source& source, uint32_t token, int64_t row);
  void fill_gaps();
  void fill_gap(int64_t begin, int64_t end);

  // The token of an item of a list.
  uint32_t token_of(uint32_t item) const { return by_expert_ ? item / topk_ : item; }
  std::byte* recv_row(int64_t row) const {
    return static_cast<std::byte*>(call_.recv_x) + static_cast<size_t>(row) * shape_.recv_stride;
  }
  uint32_t* recv_scales(int64_t row) const {
    return static_cast<uint32_t*>(call_.recv_scales) + shape_.out_scales.offset(row);
  }
  void write_scales(int64_t row, const uint32_t* values) const {
    uint32_t* const to = recv_scales(row);
    for (int64_t i = 0; i < shape_.out_scales.per_row; ++i)
      to[i * shape_.out_scales.scale] = values[i];
  }

  collectives::Context& context_;
  transport::Team& team_;
  const zbcclMoeDispatch_t& call_;
  Handle& handle_;
  Board& board_;
  const bool by_expert_;
  const uint32_t topk_;
  const bool quantizes_;
  DispatchShape shape_;
  bool streams_ = false;  // the output is larger than what caches keep
  transport::LocalBuffer x_;
  transport::LocalBuffer scales_;
  transport::LocalBuffer weights_;
  std::vector<float> row_scales_;  // of the row that is quantized
  std::vector<uint32_t> packed_scales_;
  // Of one source whose rows are quantized or fetched, which each is once: rows for the other
  // experts of its token are copies of the first.
  std::vector<Move> moves_;
  std::vector<Repeat> repeats_;
  std::vector<int64_t> first_rows_;  // of each token; -1: none yet
  std::vector<memory::AttachedPiece> pieces_;
};

}  // namespace zbccl::moe
