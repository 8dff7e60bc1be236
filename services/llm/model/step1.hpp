#pragma once
/// The Step-1 language model (Step-Audio-Chat, Step-Audio-TTS-3B, nano) on a CPU: ragged batches over a paged cache.
/// Source: docs/lm.md §2–§3. Weights are packed when they are loaded (`kernels/linear`). In fp32, everything is; in
/// bf16, so are activations, each rounded where the reference rounds it, with fp32 attention, norms and sums; int8 and
/// int4 have fp32 activations, a head in int8, and embeddings and a cache in bf16.
#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>

#include "common/checkpoint/tensor_data.hpp"
#include "common/parallel/communicator.hpp"
#include "kernels/linear/packed_matrix.hpp"
#include "services/llm/model/config.hpp"
#include "services/llm/model/kv_cache.hpp"

namespace parlando::llm {

using kernels::WeightFormat;
/// Of the head of a model in `format`: what comes after it feels the head most, it has 8 bits where the rest has 4.
constexpr WeightFormat head_format(WeightFormat format) {
  return format == WeightFormat::int4 ? WeightFormat::int8 : format;
}

class Step1 {
 public:
  /// @param directory  official safetensors, single or sharded with index, or what `save` wrote, plus config.json
  /// @param format  of the weights in memory; packed ones keep theirs
  /// @param rank, ranks  loads only this rank's part, whose passes need the group (`Group`); of packed ones, too, bit
  /// by bit as they lie
  /// @param packed  is told each matrix that was packed, by its name ("model.layers.0.qkv", "lm_head"), with the rows
  /// of the file that went into it; of a checkpoint that is packed already, none
  using Packed =
      std::function<void(const std::string& name, std::span<const at::Tensor> rows, const kernels::PackedMatrix& as)>;
  static Result<std::shared_ptr<const Step1>> load(const std::filesystem::path& directory, WeightFormat format,
                                                   int rank = 0, int ranks = 1, const Packed& packed = {});
  static Result<std::shared_ptr<const Step1>> load(const std::filesystem::path& directory, at::ScalarType dtype,
                                                   int rank = 0, int ranks = 1) {
    return load(directory, dtype == at::kBFloat16 ? WeightFormat::bf16 : WeightFormat::f32, rank, ranks);
  }
  /// Random weights of the given shape, or of a rank's part of it, to measure memory and speed.
  static Result<std::shared_ptr<const Step1>> random(const Step1Config& config, WeightFormat format, std::uint64_t seed,
                                                     int rank = 0, int ranks = 1);
  /// Writes the packed weights as `model.safetensors` into a directory; the caller brings config.json.
  /// @error Errc::io
  Result<void> save(const std::filesystem::path& directory) const;

  const Step1Config& config() const { return config_; }
  const Shard& shard() const { return shard_; }
  int ranks() const { return ranks_; }
  WeightFormat format() const { return format_; }
  std::unique_ptr<KvPool> make_pool(std::int64_t tokens) const;
  kernels::KvLayout cache_layout() const;

  /// Tokens of one sequence, appended at its end. A sequence stands in a batch once.
  struct Chunk {
    KvPool::Sequence* sequence = nullptr;
    std::span<const std::int32_t> ids;
  };
  using Trace = std::function<void(
      int stage, const at::Tensor&)>;  ///< 0 = embeddings, i = after layer i, layers+1 = after the final norm

  /// Runs all chunks as one ragged batch and advances the sequences. @return hidden rows after the final norm,
  /// concatenated, fp32 [Σ ids, H]
  /// @error Errc::token_out_of_range, Errc::overloaded (cache full), Errc::invalid_argument (sequence too long),
  /// Errc::internal (something threw);
  ///        lengths, contents and reserved room are as before then
  Result<at::Tensor> forward(KvPool& pool, std::span<Chunk> chunks, const Trace& trace = {}) const;
  /// Tokens of one sequence behind what is computed of it.
  struct Piece {
    std::span<const std::int32_t> ids;
    std::int64_t first = 0;                ///< position of the first one
    std::span<const std::int32_t> blocks;  ///< of all positions up to the last one; those written are nobody else's
  };
  /// The same over blocks that somebody else keeps count of. Callers have checked ids, positions and blocks.
  /// @param group  of a rank among several: all of them run the same pass; sums are exchanged twice a layer, in float
  /// @error those of `parallel::Communicator`, behind which the group is broken
  Result<at::Tensor> pass(KvStore& store, std::span<const Piece> pieces, const Trace& trace = {},
                          parallel::Communicator* group = nullptr) const;
  /// [n, H] -> fp32 [n, V]; of a rank only its part of the vocabulary, `shard().vocabulary_rows`
  at::Tensor logits(const at::Tensor& hidden) const;
  /// The same of [count, H] rows. @param out  [count, V]
  void logits(const float* rows, std::int64_t count, float* out) const;

  std::int64_t weight_bytes() const;
  /// Bytes of weights read by one decode step.
  std::int64_t decode_bytes() const;
  /// Bytes of keys and values of one token.
  std::int64_t cache_bytes() const;

  /// A layer as plain matrices [out, in] in the type of the activations: what the packed weights stand for, made anew.
  /// Of a rank its part; see `beside` for the columns of `out` and `down`.
  struct Layer {
    at::Tensor input_norm, qkv, out, post_norm, gate_up, down;
  };
  Layer layer(std::int64_t index) const;
  /// Columns that a rank's `out` and `down` have before its own, since they lie together with these in a packed file;
  /// behind its own there may be some, too. They are multiplied by zeros.
  struct Beside {
    std::int64_t out = 0, down = 0;
  };
  Beside beside() const { return beside_; }
  std::int64_t layers() const { return static_cast<std::int64_t>(layers_.size()); }
  const at::Tensor& embedding() const { return embedding_; }
  at::Tensor head() const { return unpacked(head_); }
  at::Tensor final_norm() const;
  const kernels::PackedMatrix& packed_head() const { return head_; }

 private:
  struct PackedLayer {
    std::vector<float> input_norm, post_norm;
    kernels::PackedMatrix qkv, out, gate_up, down;
  };
  Step1() = default;
  static Result<std::shared_ptr<const Step1>> load_packed(Step1Config config, Shard shard, int ranks,
                                                          checkpoint::TensorMap tensors, const std::string& source,
                                                          const std::string& format);
  template <class M, class F>
  static void each_matrix(M& m, F&& f);
  template <class M, class F>
  static void each_norm(M& m, F&& f);
  at::Tensor unpacked(const kernels::PackedMatrix& matrix) const;
  at::ScalarType type() const { return format_ == WeightFormat::f32 ? at::kFloat : at::kBFloat16; }

  Step1Config config_;
  Shard shard_;
  int ranks_ = 1;  ///< that share the model
  Beside beside_;
  WeightFormat format_ = WeightFormat::f32;
  at::Tensor embedding_;
  std::vector<float> final_norm_;
  kernels::PackedMatrix head_;
  std::vector<PackedLayer> layers_;
};

}  // namespace parlando::llm
