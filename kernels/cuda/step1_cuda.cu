#include "kernels/cuda/step1_cuda.hpp"

#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace {

thread_local char g_error[512] = "";

int failed(const char* what, const char* why) {
  std::snprintf(g_error, sizeof g_error, "%s: %s", what, why);
  return 1;
}

#define CUDA_OK(call)                                                                                \
  do {                                                                                               \
    if (const cudaError_t e = (call); e != cudaSuccess) return failed(#call, cudaGetErrorString(e)); \
  } while (0)
#define CUBLAS_OK(call)                                                                                              \
  do {                                                                                                               \
    if (const cublasStatus_t e = (call); e != CUBLAS_STATUS_SUCCESS) return failed(#call, cublasGetStatusString(e)); \
  } while (0)

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
__device__ inline T narrow(float x);
template <>
__device__ inline float narrow<float>(float x) {
  return x;
}
template <>
__device__ inline __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
/// x rounded to the activation type, as a float.
template <class T>
__device__ inline float rounded(float x) {
  return widen(narrow<T>(x));
}

template <class T>
__global__ void gather_rows(const T* table, const std::int32_t* ids, T* out, int width) {
  for (int c = threadIdx.x; c < width; c += blockDim.x)
    out[static_cast<std::size_t>(blockIdx.x) * width + c] =
        table[static_cast<std::size_t>(ids[blockIdx.x]) * width + c];
}

__device__ float block_sum(float v) {
  __shared__ float part[32];
  for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
  __syncthreads();
  v = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.0f;
  if (threadIdx.x < 32) {
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    if (threadIdx.x == 0) part[0] = v;
  }
  __syncthreads();
  v = part[0];
  __syncthreads();
  return v;
}

// The factor is rounded to the activation type, then each product: the order of the reference.
template <class T>
__global__ void rms_norm(const T* x, const T* weight, T* out, int width, float eps) {
  const T* row = x + static_cast<std::size_t>(blockIdx.x) * width;
  float sum = 0;
  for (int c = threadIdx.x; c < width; c += blockDim.x) sum += widen(row[c]) * widen(row[c]);
  const float r = rounded<T>(rsqrtf(block_sum(sum) / width + eps));
  for (int c = threadIdx.x; c < width; c += blockDim.x)
    out[static_cast<std::size_t>(blockIdx.x) * width + c] = narrow<T>(rounded<T>(widen(row[c]) * r) * widen(weight[c]));
}

template <class T>
__global__ void add_rows(T* x, const T* y, std::size_t count) {
  const std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) x[i] = narrow<T>(widen(x[i]) + widen(y[i]));
}

template <class T>
__global__ void silu_product(const T* gate_up, T* out, int inner) {
  const T* row = gate_up + static_cast<std::size_t>(blockIdx.x) * 2 * inner;
  for (int c = threadIdx.x; c < inner; c += blockDim.x) {
    const float g = widen(row[c]);
    out[static_cast<std::size_t>(blockIdx.x) * inner + c] =
        narrow<T>(rounded<T>(g / (1.0f + expf(-g))) * widen(row[inner + c]));
  }
}

/// Copies K and V of each token from its qkv row into its page.
template <class T>
__global__ void write_cache(const T* qkv, T* keys, T* values, const std::int32_t* positions, const std::int32_t* rows,
                            const std::int32_t* tables, int table_width, int block_size, int q_width, int kv_width) {
  const int t = blockIdx.x, position = positions[t];
  const std::size_t slot =
      static_cast<std::size_t>(tables[rows[t] * table_width + position / block_size]) * block_size +
      position % block_size;
  const T* row = qkv + static_cast<std::size_t>(t) * (q_width + 2 * kv_width) + q_width;
  for (int c = threadIdx.x; c < kv_width; c += blockDim.x) {
    keys[slot * kv_width + c] = row[c];
    values[slot * kv_width + c] = row[kv_width + c];
  }
}

/// One block per (token, query head). Each warp walks every n-th position with a running maximum (online softmax) and
/// its own sum of values in registers (dim ≤ 256); the warps' results are merged at the end. Bias from the distance,
/// all sums in fp32.
constexpr int kWarps = 4, kPerLane = 8;
template <class T>
__global__ void attend(const T* qkv, const T* keys, const T* values, T* out, const std::int32_t* positions,
                       const std::int32_t* rows, const std::int32_t* tables, int table_width, int block_size,
                       const float* slopes, int heads, int groups, int dim) {
  const int t = blockIdx.x, h = blockIdx.y, g = h / (heads / groups), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int q_width = heads * dim, kv_width = groups * dim, position = positions[t];
  const std::int32_t* table = tables + static_cast<std::size_t>(rows[t]) * table_width;
  const float scale = rsqrtf(static_cast<float>(dim)), slope = slopes[h];
  float q[kPerLane], sum_v[kPerLane], top = -INFINITY, sum = 0;
  for (int i = 0; i < kPerLane; ++i) {
    const int c = i * 32 + lane;
    q[i] = c < dim ? widen(qkv[static_cast<std::size_t>(t) * (q_width + 2 * kv_width) + h * dim + c]) : 0.0f;
    sum_v[i] = 0;
  }
  for (int j = warp; j <= position; j += kWarps) {
    const std::size_t base =
        ((static_cast<std::size_t>(table[j / block_size]) * block_size + j % block_size) * groups + g) * dim;
    float s = 0;
    for (int i = 0; i < kPerLane; ++i)
      if (const int c = i * 32 + lane; c < dim) s += q[i] * widen(keys[base + c]);
    for (int o = 16; o > 0; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
    s = s * scale - slope * sqrtf(static_cast<float>(position - j));
    const float next = fmaxf(top, s), keep = expf(top - next), p = expf(s - next);
    sum = sum * keep + p;
    for (int i = 0; i < kPerLane; ++i)
      if (const int c = i * 32 + lane; c < dim) sum_v[i] = sum_v[i] * keep + p * widen(values[base + c]);
    top = next;
  }
  __shared__ float tops[kWarps], sums[kWarps], parts[kWarps][kPerLane * 32];
  if (lane == 0) tops[warp] = top, sums[warp] = sum;
  for (int i = 0; i < kPerLane; ++i) parts[warp][i * 32 + lane] = sum_v[i];
  __syncthreads();
  float all = tops[0];
  for (int w = 1; w < kWarps; ++w) all = fmaxf(all, tops[w]);
  float total = 0;
  for (int w = 0; w < kWarps; ++w) total += sums[w] * expf(tops[w] - all);
  for (int c = threadIdx.x; c < dim; c += blockDim.x) {
    float v = 0;
    for (int w = 0; w < kWarps; ++w) v += parts[w][c] * expf(tops[w] - all);
    out[static_cast<std::size_t>(t) * q_width + h * dim + c] = narrow<T>(v / total);
  }
}

struct Layer {
  void *input_norm = nullptr, *qkv = nullptr, *out = nullptr, *post_norm = nullptr, *gate_up = nullptr, *down = nullptr,
       *keys = nullptr, *values = nullptr;
};

struct Model {
  ParlandoCudaConfig c{};
  std::vector<Layer> layers;
  void *embedding = nullptr, *final_norm = nullptr, *head = nullptr;
  float* slopes = nullptr;
  cublasHandle_t blas = nullptr;
  cudaStream_t stream = nullptr;
  std::vector<void*> owned;
  // Work space for `capacity` tokens.
  int capacity = 0, table_capacity = 0;
  void *x = nullptr, *y = nullptr, *wide = nullptr, *narrow_buffer = nullptr;
  float* logits = nullptr;
  std::int32_t *ids = nullptr, *positions = nullptr, *rows = nullptr, *tables = nullptr, *wanted = nullptr;
  std::size_t element() const { return c.bf16 ? 2 : 4; }
};

int allocate(Model& m, void** to, std::size_t bytes) {
  CUDA_OK(cudaMalloc(to, bytes ? bytes : 1));
  m.owned.push_back(*to);
  return 0;
}

/// out [tokens, rows] = in [tokens, columns] · Wᵀ; weights are [rows, columns].
int product(Model& m, const void* w, const void* in, void* out, int tokens, int rows, int columns,
            bool fp32_out = false) {
  const float one = 1, zero = 0;
  const auto type = m.c.bf16 ? CUDA_R_16BF : CUDA_R_32F;
  CUBLAS_OK(cublasGemmEx(m.blas, CUBLAS_OP_T, CUBLAS_OP_N, rows, tokens, columns, &one, w, type, columns, in, type,
                         columns, &zero, out, fp32_out ? CUDA_R_32F : type, rows,
                         m.c.bf16 ? CUBLAS_COMPUTE_32F : CUBLAS_COMPUTE_32F_PEDANTIC, CUBLAS_GEMM_DEFAULT));
  return 0;
}

int reserve(Model& m, int tokens, int table_entries, int count) {
  const auto& c = m.c;
  const int want = tokens > count ? tokens : count;
  if (want > m.capacity) {
    const auto n = static_cast<std::size_t>(want), e = m.element();
    const auto wide = static_cast<std::size_t>(2 * c.inner > c.hidden + 2 * c.groups * (c.hidden / c.heads)
                                                   ? 2 * c.inner
                                                   : c.hidden + 2 * c.groups * (c.hidden / c.heads));
    const auto narrow_width = static_cast<std::size_t>(c.inner > c.hidden ? c.inner : c.hidden);
    if (allocate(m, &m.x, n * c.hidden * e) || allocate(m, &m.y, n * c.hidden * e) ||
        allocate(m, &m.wide, n * wide * e) || allocate(m, &m.narrow_buffer, n * narrow_width * e) ||
        allocate(m, reinterpret_cast<void**>(&m.logits), n * c.vocabulary * 4) ||
        allocate(m, reinterpret_cast<void**>(&m.ids), n * 4) ||
        allocate(m, reinterpret_cast<void**>(&m.positions), n * 4) ||
        allocate(m, reinterpret_cast<void**>(&m.rows), n * 4) ||
        allocate(m, reinterpret_cast<void**>(&m.wanted), n * 4))
      return 1;
    m.capacity = want;
  }
  if (table_entries > m.table_capacity) {
    if (allocate(m, reinterpret_cast<void**>(&m.tables), static_cast<std::size_t>(table_entries) * 4)) return 1;
    m.table_capacity = table_entries;
  }
  return 0;
}

template <class T>
int forward(Model& m, int tokens, int table_width, int count) {
  const auto& c = m.c;
  const int H = static_cast<int>(c.hidden), I = static_cast<int>(c.inner), D = static_cast<int>(c.hidden / c.heads),
            KV = static_cast<int>(c.groups) * D, threads = 256;
  auto *x = static_cast<T*>(m.x), *y = static_cast<T*>(m.y), *wide = static_cast<T*>(m.wide),
       *small = static_cast<T*>(m.narrow_buffer);
  const auto elements = static_cast<std::size_t>(tokens) * H;
  const auto blocks = static_cast<unsigned>((elements + threads - 1) / threads);
  gather_rows<T><<<tokens, threads, 0, m.stream>>>(static_cast<const T*>(m.embedding), m.ids, x, H);
  for (auto& l : m.layers) {
    rms_norm<T><<<tokens, threads, 0, m.stream>>>(x, static_cast<const T*>(l.input_norm), y, H, c.norm_eps);
    if (product(m, l.qkv, y, wide, tokens, H + 2 * KV, H)) return 1;
    write_cache<T><<<tokens, threads, 0, m.stream>>>(wide, static_cast<T*>(l.keys), static_cast<T*>(l.values),
                                                     m.positions, m.rows, m.tables, table_width,
                                                     static_cast<int>(c.block_size), H, KV);
    attend<T><<<dim3(tokens, static_cast<unsigned>(c.heads)), 32 * kWarps, 0, m.stream>>>(
        wide, static_cast<const T*>(l.keys), static_cast<const T*>(l.values), small, m.positions, m.rows, m.tables,
        table_width, static_cast<int>(c.block_size), m.slopes, static_cast<int>(c.heads), static_cast<int>(c.groups),
        D);
    if (product(m, l.out, small, y, tokens, H, H)) return 1;
    add_rows<T><<<blocks, threads, 0, m.stream>>>(x, y, elements);
    rms_norm<T><<<tokens, threads, 0, m.stream>>>(x, static_cast<const T*>(l.post_norm), y, H, c.norm_eps);
    if (product(m, l.gate_up, y, wide, tokens, 2 * I, H)) return 1;
    silu_product<T><<<tokens, threads, 0, m.stream>>>(wide, small, I);
    if (product(m, l.down, small, y, tokens, H, I)) return 1;
    add_rows<T><<<blocks, threads, 0, m.stream>>>(x, y, elements);
  }
  if (count > 0) {
    gather_rows<T><<<count, threads, 0, m.stream>>>(x, m.wanted, y, H);
    rms_norm<T><<<count, threads, 0, m.stream>>>(y, static_cast<const T*>(m.final_norm), small, H, c.norm_eps);
    if (product(m, m.head, small, m.logits, count, static_cast<int>(c.vocabulary), H, true)) return 1;
  }
  CUDA_OK(cudaGetLastError());
  return 0;
}

int create(Model& m, const float* slopes) {
  const auto& c = m.c;
  if (c.hidden <= 0 || c.heads <= 0 || c.groups <= 0 || c.hidden % c.heads != 0 || c.heads % c.groups != 0 ||
      c.hidden / c.heads > 32 * kPerLane || c.blocks <= 0 || c.block_size <= 0)
    return failed("configuration", "sizes do not fit (head size up to 256)");
  CUDA_OK(cudaSetDevice(c.device));
  CUDA_OK(cudaStreamCreate(&m.stream));
  CUBLAS_OK(cublasCreate(&m.blas));
  CUBLAS_OK(cublasSetStream(m.blas, m.stream));
  if (allocate(m, reinterpret_cast<void**>(&m.slopes), static_cast<std::size_t>(c.heads) * 4)) return 1;
  CUDA_OK(cudaMemcpy(m.slopes, slopes, static_cast<std::size_t>(c.heads) * 4, cudaMemcpyHostToDevice));
  const auto cache = static_cast<std::size_t>(c.blocks) * c.block_size * c.groups * (c.hidden / c.heads) * m.element();
  m.layers.resize(static_cast<std::size_t>(c.layers));
  for (auto& l : m.layers)
    if (allocate(m, &l.keys, cache) || allocate(m, &l.values, cache)) return 1;
  return 0;
}

}  // namespace

extern "C" {

int parlando_cuda_devices() {
  int n = 0;
  return cudaGetDeviceCount(&n) == cudaSuccess ? n : 0;
}

const char* parlando_cuda_error() { return g_error; }

void parlando_cuda_destroy(void* handle) {
  auto* m = static_cast<Model*>(handle);
  if (m == nullptr) return;
  for (void* p : m->owned) cudaFree(p);
  if (m->blas != nullptr) cublasDestroy(m->blas);
  if (m->stream != nullptr) cudaStreamDestroy(m->stream);
  delete m;
}

void* parlando_cuda_create(const ParlandoCudaConfig* config, const float* slopes) {
  auto* m = new Model;
  m->c = *config;
  if (create(*m, slopes) != 0) {
    parlando_cuda_destroy(m);
    return nullptr;
  }
  return m;
}

int parlando_cuda_upload(void* handle, int layer, int tensor, const void* data, std::size_t bytes) {
  auto& m = *static_cast<Model*>(handle);
  const auto& c = m.c;
  const auto e = m.element(), kv = static_cast<std::size_t>(c.groups * (c.hidden / c.heads));
  if (tensor < kCudaEmbedding && (layer < 0 || layer >= c.layers)) return failed("upload", "there is no such layer");
  void** to = nullptr;
  std::size_t want = 0;
  const auto H = static_cast<std::size_t>(c.hidden), I = static_cast<std::size_t>(c.inner),
             V = static_cast<std::size_t>(c.vocabulary);
  auto slot = [&](void*& pointer, std::size_t elements) { to = &pointer, want = elements * e; };
  switch (tensor) {
    case kCudaInputNorm:
      slot(m.layers[layer].input_norm, H);
      break;
    case kCudaQkv:
      slot(m.layers[layer].qkv, (H + 2 * kv) * H);
      break;
    case kCudaOut:
      slot(m.layers[layer].out, H * H);
      break;
    case kCudaPostNorm:
      slot(m.layers[layer].post_norm, H);
      break;
    case kCudaGateUp:
      slot(m.layers[layer].gate_up, 2 * I * H);
      break;
    case kCudaDown:
      slot(m.layers[layer].down, H * I);
      break;
    case kCudaEmbedding:
      slot(m.embedding, V * H);
      break;
    case kCudaFinalNorm:
      slot(m.final_norm, H);
      break;
    case kCudaHead:
      slot(m.head, V * H);
      break;
    default:
      return failed("upload", "there is no such tensor");
  }
  if (bytes != want) return failed("upload", "the tensor has another size than the configuration says");
  if (*to == nullptr && allocate(m, to, want)) return 1;
  CUDA_OK(cudaMemcpy(*to, data, want, cudaMemcpyHostToDevice));
  return 0;
}

int parlando_cuda_forward(void* handle, const std::int32_t* ids, const std::int32_t* positions,
                          const std::int32_t* rows, int tokens, const std::int32_t* tables, int sequences,
                          int table_width, const std::int32_t* wanted, int count, float* logits) {
  auto& m = *static_cast<Model*>(handle);
  if (tokens <= 0 || sequences <= 0 || table_width <= 0 || count < 0) return failed("forward", "the batch is empty");
  CUDA_OK(cudaSetDevice(m.c.device));
  if (reserve(m, tokens, sequences * table_width, count)) return 1;
  const auto n = static_cast<std::size_t>(tokens) * 4;
  CUDA_OK(cudaMemcpyAsync(m.ids, ids, n, cudaMemcpyHostToDevice, m.stream));
  CUDA_OK(cudaMemcpyAsync(m.positions, positions, n, cudaMemcpyHostToDevice, m.stream));
  CUDA_OK(cudaMemcpyAsync(m.rows, rows, n, cudaMemcpyHostToDevice, m.stream));
  CUDA_OK(cudaMemcpyAsync(m.tables, tables, static_cast<std::size_t>(sequences) * table_width * 4,
                          cudaMemcpyHostToDevice, m.stream));
  if (count > 0)
    CUDA_OK(cudaMemcpyAsync(m.wanted, wanted, static_cast<std::size_t>(count) * 4, cudaMemcpyHostToDevice, m.stream));
  if (m.c.bf16 ? forward<__nv_bfloat16>(m, tokens, table_width, count) : forward<float>(m, tokens, table_width, count))
    return 1;
  if (count > 0)
    CUDA_OK(cudaMemcpyAsync(logits, m.logits, static_cast<std::size_t>(count) * m.c.vocabulary * 4,
                            cudaMemcpyDeviceToHost, m.stream));
  CUDA_OK(cudaStreamSynchronize(m.stream));
  return 0;
}

}  // extern "C"
