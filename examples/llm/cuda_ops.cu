#include <algorithm>
#include <cfloat>

#include "cuda_ops.h"

namespace llm::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr unsigned kAll = 0xFFFFFFFFU;

__device__ float value_of(Bfloat16 v) {
  return __uint_as_float(static_cast<unsigned>(v.bits) << 16);
}

__device__ float warp_sum(float v) {
  for (int step = kWarp / 2; step > 0; step /= 2) v += __shfl_xor_sync(kAll, v, step);
  return v;
}

__device__ float warp_max(float v) {
  for (int step = kWarp / 2; step > 0; step /= 2) v = fmaxf(v, __shfl_xor_sync(kAll, v, step));
  return v;
}

// The same on every lane.
__device__ float dot(const Bfloat16* w, const float* x, int count) {
  float sum = 0;
  for (int i = threadIdx.x % kWarp; i < count; i += kWarp) sum += value_of(w[i]) * x[i];
  return warp_sum(sum);
}

__device__ int warp_of_grid() { return (blockIdx.x * kThreads + threadIdx.x) / kWarp; }

__global__ void embed_kernel(const uint8_t* tokens, DeviceMatrix embedding, float* stream) {
  const size_t row = static_cast<size_t>(tokens[blockIdx.x]) * embedding.columns;
  for (int i = threadIdx.x; i < embedding.columns; i += kThreads) {
    stream[static_cast<size_t>(blockIdx.x) * embedding.columns + i] =
        value_of(embedding.values[row + i]);
  }
}

// A warp for each element of y.
__global__ void matmul_kernel(DeviceMatrix w, const float* x, float* y, int stride) {
  const int r = warp_of_grid();
  if (r >= w.rows) return;
  const size_t t = blockIdx.y;
  const float sum =
      dot(w.values + static_cast<size_t>(r) * w.columns, x + t * w.columns, w.columns);
  if (threadIdx.x % kWarp == 0) y[t * stride + r] = sum;
}

// A block for each token.
__global__ void rms_norm_kernel(const float* x, const float* weight, float eps, float* y, int dim) {
  __shared__ float sums[kWarps];
  const float* const in = x + static_cast<size_t>(blockIdx.x) * dim;
  float* const out = y + static_cast<size_t>(blockIdx.x) * dim;
  float squares = 0;
  for (int i = threadIdx.x; i < dim; i += kThreads) squares += in[i] * in[i];
  squares = warp_sum(squares);
  if (threadIdx.x % kWarp == 0) sums[threadIdx.x / kWarp] = squares;
  __syncthreads();
  float total = 0;
  for (const float sum : sums) total += sum;
  const float scale = 1.0F / sqrtf(total / static_cast<float>(dim) + eps);
  for (int i = threadIdx.x; i < dim; i += kThreads) out[i] = in[i] * scale * weight[i];
}

__global__ void add_kernel(const float* x, float* y, size_t count) {
  const size_t i = static_cast<size_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) y[i] += x[i];
}

__device__ void rotate(float* head, const DeviceRotary& rotary, int position, int half, int i) {
  const float cos = rotary.cos[static_cast<size_t>(position) * half + i];
  const float sin = rotary.sin[static_cast<size_t>(position) * half + i];
  const float a = head[i];
  const float b = head[i + half];
  head[i] = a * cos - b * sin;
  head[i + half] = b * cos + a * sin;
}

// A block for each token, a thread for each pair.
__global__ void rotate_and_keep_kernel(float* q, float* k, const float* v, DeviceRotary rotary,
                                       DeviceCache cache, int heads, int head_dim, int first) {
  const int t = blockIdx.x;
  const int position = first + t;
  const int half = head_dim / 2;
  for (int n = threadIdx.x; n < heads * half; n += kThreads) {
    rotate(q + (static_cast<size_t>(t) * heads + n / half) * head_dim, rotary, position, half,
           n % half);
  }
  for (int n = threadIdx.x; n < cache.heads * half; n += kThreads) {
    const int head = n / half;
    const int i = n % half;
    const size_t from = (static_cast<size_t>(t) * cache.heads + head) * head_dim;
    const size_t to = (static_cast<size_t>(head) * cache.positions + position) * head_dim;
    rotate(k + from, rotary, position, half, i);
    for (const int at : {i, i + half}) {
      cache.keys[to + at] = k[from + at];
      cache.values[to + at] = v[from + at];
    }
  }
}

__device__ float block_reduce(float v, bool largest, float* shared) {
  v = largest ? warp_max(v) : warp_sum(v);
  __syncthreads();  // whoever still reads the last result
  if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp] = v;
  __syncthreads();
  float all = shared[0];
  for (int w = 1; w < kWarps; ++w) all = largest ? fmaxf(all, shared[w]) : all + shared[w];
  return all;
}

// A block for each query head and token; scores of all positions in shared memory.
__global__ void attend_kernel(const float* q, DeviceCache cache, HeadMap map, int head_dim,
                              int first, float* out) {
  extern __shared__ float scores[];
  __shared__ float partial[kWarps];
  const int h = blockIdx.x;
  const int t = blockIdx.y;
  const int length = first + t + 1;
  const int kv = (map.first_head + h) / map.queries_per_kv - map.first_kv;
  const size_t row = (static_cast<size_t>(t) * gridDim.x + h) * head_dim;
  const float* const keys = cache.keys + static_cast<size_t>(kv) * cache.positions * head_dim;
  const float* const values = cache.values + static_cast<size_t>(kv) * cache.positions * head_dim;
  const float scale = 1.0F / sqrtf(static_cast<float>(head_dim));
  float largest = -FLT_MAX;
  for (int j = threadIdx.x / kWarp; j < length; j += kWarps) {
    float sum = 0;
    for (int i = threadIdx.x % kWarp; i < head_dim; i += kWarp) {
      sum += q[row + i] * keys[static_cast<size_t>(j) * head_dim + i];
    }
    sum = warp_sum(sum) * scale;
    if (threadIdx.x % kWarp == 0) scores[j] = sum;
    largest = fmaxf(largest, sum);
  }
  largest = block_reduce(largest, true, partial);
  float total = 0;
  for (int j = threadIdx.x; j < length; j += kThreads) {
    scores[j] = expf(scores[j] - largest);
    total += scores[j];
  }
  total = block_reduce(total, false, partial);
  for (int i = threadIdx.x; i < head_dim; i += kThreads) {
    float sum = 0;
    for (int j = 0; j < length; ++j) {
      sum += scores[j] / total * values[static_cast<size_t>(j) * head_dim + i];
    }
    out[row + i] = sum;
  }
}

// A thread for each token.
__global__ void route_kernel(const float* logits, int experts, int used, Route* routes,
                             int tokens) {
  const int t = blockIdx.x * kThreads + threadIdx.x;
  if (t >= tokens) return;
  const float* const mine = logits + static_cast<size_t>(t) * experts;
  Route* const to = routes + static_cast<size_t>(t) * used;
  for (int n = 0; n < used; ++n) {
    int best = -1;
    for (int e = 0; e < experts; ++e) {
      bool taken = false;
      for (int m = 0; m < n; ++m) taken = taken || to[m].expert == e;
      if (!taken && (best < 0 || mine[e] > mine[best])) best = e;
    }
    to[n] = {best, mine[best]};
  }
  const float largest = to[0].weight;
  float sum = 0;
  for (int n = 0; n < used; ++n) {
    to[n].weight = expf(to[n].weight - largest);
    sum += to[n].weight;
  }
  for (int n = 0; n < used; ++n) to[n].weight /= sum;
}

// A warp for each hidden unit of a route.
__global__ void gates_kernel(const DeviceExpert* experts, const Route* routes, int used, int width,
                             int dim, const float* x, float* hidden) {
  const int r = warp_of_grid();
  if (r >= width) return;
  const size_t i = blockIdx.y;
  const DeviceExpert& expert = experts[routes[i].expert];
  const float* const in = x + i / used * dim;
  const size_t row = static_cast<size_t>(r) * dim;
  const float gate = dot(expert.gate.values + row, in, dim);
  const float up = dot(expert.up.values + row, in, dim);
  if (threadIdx.x % kWarp == 0) hidden[i * width + r] = gate / (1.0F + expf(-gate)) * up;
}

// A warp for each element of the output.
__global__ void downs_kernel(const DeviceExpert* experts, const Route* routes, int used, int width,
                             int dim, const float* hidden, float* out) {
  const int r = warp_of_grid();
  if (r >= dim) return;
  const size_t t = blockIdx.y;
  float sum = 0;
  int last = -1;
  for (int n = 0; n < used; ++n) {
    int next = -1;  // the route with the least expert above the last one
    for (int m = 0; m < used; ++m) {
      const int expert = routes[t * used + m].expert;
      if (expert > last && (next < 0 || expert < routes[t * used + next].expert)) next = m;
    }
    const Route& route = routes[t * used + next];
    last = route.expert;
    sum += route.weight * dot(experts[route.expert].down.values + static_cast<size_t>(r) * width,
                              hidden + (t * used + next) * width, width);
  }
  if (threadIdx.x % kWarp == 0) out[t * dim + r] = sum;
}

__global__ void split_routes_kernel(const Route* routes, int32_t* experts, float* weights,
                                    int count) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= count) return;
  experts[i] = routes[i].expert;
  weights[i] = routes[i].weight;
}

// A warp for each hidden unit of a row; blockIdx.z is the expert.
__global__ void gates_of_rows_kernel(const DeviceExpert* experts, Arrived rows, int width, int dim,
                                     const float* x, float* hidden) {
  const int r = warp_of_grid();
  const int row = blockIdx.y;
  const int e = blockIdx.z;
  if (r >= width || row >= rows.counts[e]) return;
  const DeviceExpert& expert = experts[e];
  const size_t at = static_cast<size_t>(e) * rows.capacity + row;
  const size_t of_unit = static_cast<size_t>(r) * dim;
  const float gate = dot(expert.gate.values + of_unit, x + at * dim, dim);
  const float up = dot(expert.up.values + of_unit, x + at * dim, dim);
  if (threadIdx.x % kWarp == 0) hidden[at * width + r] = gate / (1.0F + expf(-gate)) * up;
}

// A warp for each element of a row's result.
__global__ void downs_of_rows_kernel(const DeviceExpert* experts, Arrived rows, int width, int dim,
                                     const float* hidden, float* out) {
  const int r = warp_of_grid();
  const int row = blockIdx.y;
  const int e = blockIdx.z;
  if (r >= dim || row >= rows.counts[e]) return;
  const size_t at = static_cast<size_t>(e) * rows.capacity + row;
  const float sum =
      dot(experts[e].down.values + static_cast<size_t>(r) * width, hidden + at * width, width);
  if (threadIdx.x % kWarp == 0) out[at * dim + r] = sum;
}

unsigned blocks_of_warps(int warps) { return static_cast<unsigned>((warps + kWarps - 1) / kWarps); }
unsigned count_of(int n) { return static_cast<unsigned>(n); }

}  // namespace

void embed(const uint8_t* tokens, const DeviceMatrix& embedding, float* stream, int count,
           cudaStream_t on) {
  embed_kernel<<<count_of(count), kThreads, 0, on>>>(tokens, embedding, stream);
}

void matmul(const DeviceMatrix& w, const float* x, float* y, int stride, int tokens,
            cudaStream_t on) {
  const dim3 grid(blocks_of_warps(w.rows), count_of(tokens));
  matmul_kernel<<<grid, kThreads, 0, on>>>(w, x, y, stride);
}

void rms_norm(const float* x, const float* weight, float eps, float* y, int dim, int tokens,
              cudaStream_t on) {
  rms_norm_kernel<<<count_of(tokens), kThreads, 0, on>>>(x, weight, eps, y, dim);
}

void add(const float* x, float* y, size_t count, cudaStream_t on) {
  const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  add_kernel<<<blocks, kThreads, 0, on>>>(x, y, count);
}

void rotate_and_keep(float* q, float* k, const float* v, const DeviceRotary& rotary,
                     const DeviceCache& cache, int heads, int head_dim, int first, int tokens,
                     cudaStream_t on) {
  rotate_and_keep_kernel<<<count_of(tokens), kThreads, 0, on>>>(q, k, v, rotary, cache, heads,
                                                                head_dim, first);
}

void attend(const float* q, const DeviceCache& cache, const HeadMap& map, int heads, int head_dim,
            int first, int tokens, float* out, cudaStream_t on) {
  const dim3 grid(count_of(heads), count_of(tokens));
  const size_t shared = static_cast<size_t>(first + tokens) * sizeof(float);
  attend_kernel<<<grid, kThreads, shared, on>>>(q, cache, map, head_dim, first, out);
}

void route(const float* logits, int experts, int used, Route* routes, int tokens, cudaStream_t on) {
  const auto blocks = count_of((tokens + kThreads - 1) / kThreads);
  route_kernel<<<blocks, kThreads, 0, on>>>(logits, experts, used, routes, tokens);
}

void run_gates(const DeviceExpert* experts, const Route* routes, int used, int width, int dim,
               const float* x, float* hidden, int tokens, cudaStream_t on) {
  const dim3 grid(blocks_of_warps(width), count_of(tokens * used));
  gates_kernel<<<grid, kThreads, 0, on>>>(experts, routes, used, width, dim, x, hidden);
}

void run_downs(const DeviceExpert* experts, const Route* routes, int used, int width, int dim,
               const float* hidden, float* out, int tokens, cudaStream_t on) {
  const dim3 grid(blocks_of_warps(dim), count_of(tokens));
  downs_kernel<<<grid, kThreads, 0, on>>>(experts, routes, used, width, dim, hidden, out);
}

void split_routes(const Route* routes, int32_t* experts, float* weights, int count,
                  cudaStream_t on) {
  if (count == 0) return;
  const auto blocks = count_of((count + kThreads - 1) / kThreads);
  split_routes_kernel<<<blocks, kThreads, 0, on>>>(routes, experts, weights, count);
}

void run_gates_of_rows(const DeviceExpert* experts, const Arrived& rows, int width, int dim,
                       const float* x, float* hidden, cudaStream_t on) {
  if (rows.experts == 0) return;
  const dim3 grid(blocks_of_warps(width), count_of(rows.most), count_of(rows.experts));
  gates_of_rows_kernel<<<grid, kThreads, 0, on>>>(experts, rows, width, dim, x, hidden);
}

void run_downs_of_rows(const DeviceExpert* experts, const Arrived& rows, int width, int dim,
                       const float* hidden, float* out, cudaStream_t on) {
  if (rows.experts == 0) return;
  const dim3 grid(blocks_of_warps(dim), count_of(rows.most), count_of(rows.experts));
  downs_of_rows_kernel<<<grid, kThreads, 0, on>>>(experts, rows, width, dim, hidden, out);
}

}  // namespace llm::cuda
