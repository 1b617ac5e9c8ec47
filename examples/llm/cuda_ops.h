// The arithmetic of the model on one GPU: what ops.h does, as kernels that are enqueued on a
// stream. Matrices are bf16, everything else is FP32, in device memory. Sums run in an order that
// depends on the sizes alone, which is not that of the CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ops.h"

namespace llm::cuda {

// Row-major [rows, columns].
struct DeviceMatrix {
  const Bfloat16* values = nullptr;
  int rows = 0;
  int columns = 0;
};
struct DeviceExpert {
  DeviceMatrix gate, up, down;
};
// The keys or values of one layer: [heads, positions, head_dim].
struct DeviceCache {
  float* keys = nullptr;
  float* values = nullptr;
  int heads = 0;
  int positions = 0;
};
// cos and sin, [positions, head_dim / 2].
struct DeviceRotary {
  const float* cos = nullptr;
  const float* sin = nullptr;
};

// stream[t, :] = embedding[tokens[t], :]
void embed(const uint8_t* tokens, const DeviceMatrix& embedding, float* stream, int count,
           cudaStream_t on);
// y[t, r] = sum over i of w[r, i] * x[t, i]; rows of y are `stride` apart.
void matmul(const DeviceMatrix& w, const float* x, float* y, int stride, int tokens,
            cudaStream_t on);
void rms_norm(const float* x, const float* weight, float eps, float* y, int dim, int tokens,
              cudaStream_t on);
// y += x
void add(const float* x, float* y, size_t count, cudaStream_t on);

// Turns the keys k [tokens, cache.heads, head_dim] and the queries q [tokens, heads, head_dim] of
// the positions from `first` on, and puts keys and values v into the cache.
void rotate_and_keep(float* q, float* k, const float* v, const DeviceRotary& rotary,
                     const DeviceCache& cache, int heads, int head_dim, int first, int tokens,
                     cudaStream_t on);
// Every query against the keys up to its own position. Query head h of this rank reads key/value
// head (first_head + h) / queries_per_kv - first_kv of the cache.
struct HeadMap {
  int first_head = 0;
  int queries_per_kv = 1;
  int first_kv = 0;
};
void attend(const float* q, const DeviceCache& cache, const HeadMap& map, int heads, int head_dim,
            int first, int tokens, float* out, cudaStream_t on);

// As llm::route, for each token.
void route(const float* logits, int experts, int used, Route* routes, int tokens, cudaStream_t on);
// hidden[i, :] = silu(gate x) * (up x) for the i-th of tokens * used routes.
void run_gates(const DeviceExpert* experts, const Route* routes, int used, int width, int dim,
               const float* x, float* hidden, int tokens, cudaStream_t on);
// out[t, :] = the weighted sum of down hidden over the routes of t, by ascending expert.
void run_downs(const DeviceExpert* experts, const Route* routes, int used, int width, int dim,
               const float* hidden, float* out, int tokens, cudaStream_t on);

// Experts and weights of `count` routes apart, as zbccl takes them.
void split_routes(const Route* routes, int32_t* experts, float* weights, int count,
                  cudaStream_t on);
// Rows that came for whole experts: of each of `experts` the first counts[e] of `capacity` rows,
// `most` of them at most.
struct Arrived {
  const int32_t* counts = nullptr;
  int experts = 0;
  int capacity = 0;
  int most = 0;
};
// hidden[e, i, :] = silu(gate x) * (up x), and out[e, i, :] = down hidden, for the rows that came.
void run_gates_of_rows(const DeviceExpert* experts, const Arrived& rows, int width, int dim,
                       const float* x, float* hidden, cudaStream_t on);
void run_downs_of_rows(const DeviceExpert* experts, const Arrived& rows, int width, int dim,
                       const float* hidden, float* out, cudaStream_t on);

}  // namespace llm::cuda
