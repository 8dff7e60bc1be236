#pragma once
/// The Step-1 language model (Step-Audio-Chat, Step-Audio-TTS-3B, nano) on a CPU: ragged batches over a paged cache.
/// Source: docs/lm.md §2–§3. fp32, or bf16 weights and activations with fp32 attention, norms and sums.
#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>

#include "common/checkpoint/tensor_data.hpp"
#include "services/llm/model/config.hpp"
#include "services/llm/model/kv_cache.hpp"

namespace parlando::llm {

class Step1 {
 public:
  /// @param directory  official safetensors, single or sharded with index, plus config.json
  /// @param rank, ranks  loads only this rank's part. Forward passes need ranks == 1 for now.
  static Result<std::shared_ptr<const Step1>> load(const std::filesystem::path& directory, at::ScalarType dtype,
                                                   int rank = 0, int ranks = 1);
  /// Random weights of the given shape, to measure memory and speed.
  static Result<std::shared_ptr<const Step1>> random(const Step1Config& config, at::ScalarType dtype,
                                                     std::uint64_t seed);

  const Step1Config& config() const { return config_; }
  const Shard& shard() const { return shard_; }
  std::unique_ptr<KvPool> make_pool(std::int64_t tokens) const;

  /// Tokens of one sequence, appended at its end. A sequence stands in a batch once.
  struct Chunk {
    KvPool::Sequence* sequence = nullptr;
    std::span<const std::int32_t> ids;
  };
  using Trace = std::function<void(
      int stage, const at::Tensor&)>;  ///< 0 = embeddings, i = after layer i, layers+1 = after the final norm

  /// Runs all chunks as one ragged batch and advances the sequences. @return hidden rows after the final norm,
  /// concatenated [Σ ids, H]
  /// @error Errc::token_out_of_range, Errc::overloaded (cache full), Errc::invalid_argument (sequence too long),
  /// Errc::internal (something threw);
  ///        lengths, contents and reserved room are as before then
  Result<at::Tensor> forward(KvPool& pool, std::span<Chunk> chunks, const Trace& trace = {}) const;
  /// [n, H] -> fp32 [n, V]
  at::Tensor logits(const at::Tensor& hidden) const;

  std::int64_t weight_bytes() const;
  /// Bytes of weights read by one decode step.
  std::int64_t decode_bytes() const;

  struct Layer {
    at::Tensor input_norm, qkv, out, post_norm, gate_up, down;
  };
  const std::vector<Layer>& layers() const { return layers_; }
  const at::Tensor& embedding() const { return embedding_; }
  const at::Tensor& head() const { return head_; }
  const at::Tensor& final_norm() const { return final_norm_; }

 private:
  Step1() = default;
  at::Tensor linear(const at::Tensor& x, const at::Tensor& w) const;
  at::Tensor norm(const at::Tensor& x, const at::Tensor& w) const;

  Step1Config config_;
  Shard shard_;
  int ranks_ = 1;
  at::ScalarType dtype_ = at::kFloat;
  at::Tensor embedding_, head_, final_norm_;
  std::vector<Layer> layers_;
};

}  // namespace parlando::llm
