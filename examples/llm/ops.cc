#include "ops.h"

#include <algorithm>
#include <cmath>

// One function, compiled for several generations of processors and chosen when the program is
// loaded. Sanitizers instrument what runs before they are ready, so they get the plain form.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define LLM_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LLM_CLONES
#endif
#define LLM_INLINE inline __attribute__((always_inline))

namespace llm {
namespace {

// Partial sums of one dot product, added pairwise at the end. Fixed, so that the order of
// summation does not follow the width of the machine's registers.
constexpr int kLanes = 16;

LLM_INLINE float fold(float (&lanes)[kLanes]) {
  for (int step = kLanes / 2; step > 0; step /= 2) {
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  }
  return lanes[0];
}

// One row of a matrix against `kTokens` rows of x, `columns` apart.
template <int kTokens>
LLM_INLINE void dot_row(const Bfloat16* w, const float* x, int columns, float (&sums)[kTokens]) {
  float lanes[kTokens][kLanes] = {};
  int i = 0;
  for (; i + kLanes <= columns; i += kLanes) {
    for (int t = 0; t < kTokens; ++t) {
      for (int l = 0; l < kLanes; ++l) {
        lanes[t][l] += to_float(w[i + l]) * x[t * columns + i + l];
      }
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    float sum = fold(lanes[t]);
    for (int k = i; k < columns; ++k) sum += to_float(w[k]) * x[t * columns + k];
    sums[t] = sum;
  }
}

template <int kTokens>
LLM_INLINE void multiply_block(const Bfloat16* w, const float* x, float* y, int rows, int columns) {
  for (int r = 0; r < rows; ++r) {
    float sums[kTokens];
    dot_row<kTokens>(w + static_cast<size_t>(r) * columns, x, columns, sums);
    for (int t = 0; t < kTokens; ++t) y[static_cast<size_t>(t) * rows + r] = sums[t];
  }
}

LLM_CLONES void multiply_one(const Bfloat16* w, const float* x, float* y, int rows, int columns) {
  multiply_block<1>(w, x, y, rows, columns);
}

LLM_CLONES void multiply_four(const Bfloat16* w, const float* x, float* y, int rows, int columns) {
  multiply_block<4>(w, x, y, rows, columns);
}

LLM_INLINE float dot(const float* a, const float* b, int count) {
  float lanes[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) lanes[l] += a[i + l] * b[i + l];
  }
  float sum = fold(lanes);
  for (; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

LLM_INLINE void add_scaled_to(const float* x, float factor, float* y, int count) {
  for (int i = 0; i < count; ++i) y[i] += factor * x[i];
}

LLM_CLONES float sum_of_squares(const float* x, int count) { return dot(x, x, count); }

LLM_CLONES void score_keys(const float* query, const float* keys, int length, int head_dim,
                           float scale, float* scores) {
  for (int j = 0; j < length; ++j) {
    scores[j] = dot(query, keys + static_cast<size_t>(j) * head_dim, head_dim) * scale;
  }
}

LLM_CLONES void mix_values(const float* values, const float* weights, int length, int head_dim,
                           float* out) {
  for (int j = 0; j < length; ++j) {
    add_scaled_to(values + static_cast<size_t>(j) * head_dim, weights[j], out, head_dim);
  }
}

}  // namespace

void matmul(const Matrix& w, std::span<const float> x, std::span<float> y, int tokens) {
  const Bfloat16* values = w.values.data();
  int t = 0;
  for (; t + 4 <= tokens; t += 4) {
    multiply_four(values, x.data() + static_cast<size_t>(t) * w.columns,
                  y.data() + static_cast<size_t>(t) * w.rows, w.rows, w.columns);
  }
  for (; t < tokens; ++t) {
    multiply_one(values, x.data() + static_cast<size_t>(t) * w.columns,
                 y.data() + static_cast<size_t>(t) * w.rows, w.rows, w.columns);
  }
}

void rms_norm(std::span<const float> x, std::span<const float> weight, double eps,
              std::span<float> y, int tokens) {
  const int dim = static_cast<int>(weight.size());
  for (int t = 0; t < tokens; ++t) {
    const float* in = x.data() + static_cast<size_t>(t) * dim;
    float* out = y.data() + static_cast<size_t>(t) * dim;
    const float mean = sum_of_squares(in, dim) / static_cast<float>(dim);
    const float scale = 1.0f / std::sqrt(mean + static_cast<float>(eps));
    for (int i = 0; i < dim; ++i) out[i] = in[i] * scale * weight[i];
  }
}

LLM_CLONES void add_scaled(std::span<const float> x, float factor, std::span<float> y) {
  add_scaled_to(x.data(), factor, y.data(), static_cast<int>(x.size()));
}

void swiglu(std::span<float> gate, std::span<const float> up) {
  for (size_t i = 0; i < gate.size(); ++i) {
    gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
  }
}

void softmax(std::span<float> values) {
  const float largest = *std::max_element(values.begin(), values.end());
  float sum = 0;
  for (float& value : values) {
    value = std::exp(value - largest);
    sum += value;
  }
  for (float& value : values) value /= sum;
}

void attend(std::span<const float> query, const float* keys, const float* values, int length,
            std::span<float> scores, std::span<float> out) {
  const int head_dim = static_cast<int>(query.size());
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  score_keys(query.data(), keys, length, head_dim, scale, scores.data());
  softmax(scores.first(static_cast<size_t>(length)));
  std::fill(out.begin(), out.end(), 0.0f);
  mix_values(values, scores.data(), length, head_dim, out.data());
}

Rotary::Rotary(int head_dim, double base, int positions) : half_(head_dim / 2) {
  for (int position = 0; position < positions; ++position) {
    for (int i = 0; i < half_; ++i) {
      const double angle = position / std::pow(base, 2.0 * i / head_dim);
      cos_.push_back(static_cast<float>(std::cos(angle)));
      sin_.push_back(static_cast<float>(std::sin(angle)));
    }
  }
}

void Rotary::rotate(std::span<float> head, int position) const {
  const float* cos = cos_.data() + static_cast<size_t>(position) * half_;
  const float* sin = sin_.data() + static_cast<size_t>(position) * half_;
  for (int i = 0; i < half_; ++i) {
    const float a = head[i];
    const float b = head[i + half_];
    head[i] = a * cos[i] - b * sin[i];
    head[i + half_] = b * cos[i] + a * sin[i];
  }
}

void route(std::span<const float> logits, int count, std::span<Route> routes) {
  for (int n = 0; n < count; ++n) {
    int best = -1;
    for (int e = 0; e < static_cast<int>(logits.size()); ++e) {
      const bool taken = std::any_of(routes.begin(), routes.begin() + n,
                                     [e](const Route& route) { return route.expert == e; });
      if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
    }
    routes[n] = {best, logits[best]};
  }
  const float largest = routes[0].weight;
  float sum = 0;
  for (int n = 0; n < count; ++n) {
    routes[n].weight = std::exp(routes[n].weight - largest);
    sum += routes[n].weight;
  }
  for (int n = 0; n < count; ++n) routes[n].weight /= sum;
}

}  // namespace llm
