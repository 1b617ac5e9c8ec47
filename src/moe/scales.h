// Where the scales of rows lie in a matrix with strides, in units of four bytes. Value.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zbccl::moe {

struct ScaleMatrix {
  int64_t per_row = 0;  // scales of a row
  int64_t row = 0;      // strides
  int64_t scale = 0;
  int64_t expert = 0;    // ExpertMasked only
  int64_t capacity = 0;  // rows of an expert; 0: not ExpertMasked

  // `strides`: of rows and scales; both 0: contiguous.
  static ScaleMatrix plain(const int64_t (&strides)[2], int64_t per_row) {
    if (strides[0] == 0 && strides[1] == 0) return {per_row, per_row, 1};
    return {per_row, strides[0], strides[1]};
  }
  // `strides`: of experts, rows and scales; all 0: contiguous.
  static ScaleMatrix of_output(const int64_t (&strides)[3], int64_t per_row, int64_t capacity) {
    if (strides[0] == 0 && strides[1] == 0 && strides[2] == 0) {
      return {per_row, per_row, 1, capacity * per_row, capacity};
    }
    return {per_row, strides[1], strides[2], strides[0], capacity};
  }
  int64_t offset(int64_t at) const {
    return capacity == 0 ? at * row : at / capacity * expert + at % capacity * row;
  }
  // Of `rows` rows, from the first to behind the last.
  int64_t extent(int64_t rows) const {
    if (rows == 0 || per_row == 0) return 0;
    const int64_t last_row =
        capacity == 0 ? (rows - 1) * row : (rows - 1) / capacity * expert + (capacity - 1) * row;
    return last_row + (per_row - 1) * scale + 1;
  }
};

}  // namespace zbccl::moe
