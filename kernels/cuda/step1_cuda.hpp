#pragma once
/// C interface of libparlando_cuda.so: the Step-1 forward pass on one GPU over a paged cache. The library is opened
/// with dlopen where a device exists; no executable links it. All pointers are host memory unless said; every function
/// answers 0 or an error that `parlando_cuda_error` puts into words. One caller thread per model.
#include <cstddef>
#include <cstdint>

extern "C" {

struct ParlandoCudaConfig {
  std::int64_t hidden, inner, heads, groups, layers, vocabulary, blocks, block_size;
  float norm_eps;
  int bf16;  ///< 1 = bf16 weights and activations, 0 = fp32 (TF32 off)
  int device;
};

/// Tensors of a layer; `embedding`, `final_norm` and `head` belong to no layer.
enum ParlandoCudaTensor : int {
  kCudaInputNorm = 0,
  kCudaQkv,
  kCudaOut,
  kCudaPostNorm,
  kCudaGateUp,
  kCudaDown,
  kCudaEmbedding,
  kCudaFinalNorm,
  kCudaHead
};

int parlando_cuda_devices();
const char* parlando_cuda_error();
void* parlando_cuda_create(const ParlandoCudaConfig* config, const float* slopes);
int parlando_cuda_upload(void* model, int layer, int tensor, const void* data, std::size_t bytes);
/// A ragged batch: token t has id ids[t], stands at positions[t] of sequence rows[t]; row r of `tables` [sequences,
/// table_width] lists that sequence's blocks. Keys and values are written to the cache; logits [count, vocabulary] fp32
/// of the tokens in `wanted` come back.
int parlando_cuda_forward(void* model, const std::int32_t* ids, const std::int32_t* positions, const std::int32_t* rows,
                          int tokens, const std::int32_t* tables, int sequences, int table_width,
                          const std::int32_t* wanted, int count, float* logits);
void parlando_cuda_destroy(void* model);
}
