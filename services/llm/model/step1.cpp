#include "services/llm/model/step1.hpp"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <cstring>

#include "common/checkpoint/safetensors.hpp"
#include "common/tensor/weights.hpp"
#include "kernels/rows/rows.hpp"
#include "kernels/team/team.hpp"
#include "kernels/vector/isa.hpp"

namespace parlando::llm {

namespace fs = std::filesystem;
using kernels::LinearInput;
using kernels::PackedMatrix;
using kernels::PackedShape;
using kernels::Team;

namespace {
constexpr std::int64_t kInt4Group = 32;
constexpr const char* kFormatKey = "parlando_weights";  // in the metadata of a packed checkpoint
constexpr std::int64_t kRowsAtOnce = 256;               // of a matrix that is packed; a multiple of 16
static_assert(kRowsAtOnce % kernels::kPanelRows == 0);
constexpr std::chrono::seconds kReduceMax{
    30};                                     // ranks are at the same place within this; who is dead is noticed sooner
constexpr double kNumbersPerNanosecond = 2;  // of activations, in what is done to rows between products

PackedShape shape_of(WeightFormat format, std::int64_t rows, std::int64_t columns) {
  return {format, rows, columns, kInt4Group};
}

/// Packs matrices of a file, a few rows at a time. The rows on their way lie in memory of their own, which goes back as
/// a whole: in the heap, between what stays, they would leave holes as large as the weights.
class Packer {
 public:
  /// @param parts  one below the other, in the types that the file has
  PackedMatrix operator()(const std::vector<at::Tensor>& parts, WeightFormat format) {
    std::int64_t rows = 0;
    for (const auto& part : parts) {
      if (!part.defined()) return {};  // reported by the loader
      rows += part.size(0);
    }
    const auto columns = parts.front().size(1);
    const auto floats = static_cast<std::size_t>(kRowsAtOnce * columns);
    if (memory_.size() < floats * sizeof(float)) memory_ = kernels::LargeMemory(floats * sizeof(float));
    auto* held = reinterpret_cast<float*>(memory_.data());
    const auto all = at::from_blob(held, {kRowsAtOnce, columns}, at::TensorOptions(at::kFloat));
    auto shape = shape_of(format, rows, columns);
    // Where the processor widens them: without such an instruction that takes longer than it takes to read floats.
    shape.halves = format == WeightFormat::f32 && kernels::isa() != kernels::Isa::plain &&
                   std::ranges::all_of(parts, [](const auto& part) { return part.scalar_type() == at::kHalf; });
    PackedMatrix out(shape);
    std::int64_t first = 0, count = 0;
    for (const auto& part : parts)
      for (std::int64_t r = 0, n = 0; r < part.size(0); r += n) {
        n = std::min(kRowsAtOnce - count, part.size(0) - r);
        all.narrow(0, count, n).copy_(part.narrow(0, r, n));
        count += n;
        if (count < kRowsAtOnce && first + count < rows) continue;
        kernels::pack_rows(out.shape(), held, first, count, out.bytes().data());
        first += count, count = 0;
      }
    return out;
  }

 private:
  kernels::LargeMemory memory_;
};

std::vector<float> floats(const at::Tensor& w) {
  if (!w.defined()) return {};
  const auto flat = w.to(at::kFloat).contiguous();
  return {flat.data_ptr<float>(), flat.data_ptr<float>() + flat.numel()};
}
}  // namespace

Result<std::shared_ptr<const Step1>> Step1::load(const fs::path& directory, WeightFormat format, int rank, int ranks,
                                                 const Packed& packed) try {
  PARLANDO_TRY(auto config, Step1Config::load(directory / "config.json"));
  PARLANDO_TRY(auto shard, Shard::plan(config, rank, ranks));
  PARLANDO_TRY(auto file, checkpoint::read_safetensors_model(directory));
  if (const auto own = file.metadata.find(kFormatKey); own != file.metadata.end()) {
    return load_packed(std::move(config), std::move(shard), ranks, std::move(file.tensors), directory.string(),
                       own->second);
  }
  // Of what is not packed.
  const auto type = format == WeightFormat::f32 || (format != WeightFormat::bf16 && config.dtype == "float32")
                        ? at::kFloat
                        : at::kBFloat16;
  tensor::Weights w(std::move(file.tensors), directory.string(), type);
  std::shared_ptr<Step1> m(new Step1);
  m->config_ = config, m->shard_ = shard, m->ranks_ = ranks, m->format_ = format;
  const auto H = config.hidden, I = config.inner, KV = config.groups * config.dim(), V = config.vocabulary;
  const auto vocabulary = shard.vocabulary_rows;
  Packer pack;
  struct Part {
    std::string name;
    std::int64_t rows, columns;
    int dimension;
    Range range;
  };
  // Weights are rounded once, from what the file holds.
  auto matrix = [&](const std::string& name, const std::vector<Part>& parts, WeightFormat as) {
    std::vector<at::Tensor> views;
    for (const auto& part : parts) {
      auto view = w.exactly(part.name, {part.rows, part.columns});
      views.push_back(view.defined() ? view.narrow(part.dimension, part.range.first, part.range.count()) : view);
    }
    auto out = pack(views, as);
    if (packed && std::ranges::all_of(views, &at::Tensor::defined)) packed(name, views, out);
    for (const auto& part : parts) w.drop(part.name);
    return out;
  };
  m->embedding_ = ranks == 1
                      ? w.take("model.embed_tokens.weight", {V, H})
                      : w.take_slice("model.embed_tokens.weight", {V, H}, 0, vocabulary.first, vocabulary.count());
  if (m->embedding_.defined()) m->embedding_ = m->embedding_.to(m->type());
  for (std::int64_t l = 0; l < config.layers; ++l) {
    const auto at = fmt::format("model.layers.{}.", l);
    PackedLayer layer;
    layer.input_norm = floats(w.take(at + "input_layernorm.weight", {H}));
    layer.post_norm = floats(w.take(at + "post_attention_layernorm.weight", {H}));
    layer.qkv = matrix(at + "qkv",
                       {{at + "self_attn.q_proj.weight", H, H, 0, shard.q_rows},
                        {at + "self_attn.k_proj.weight", KV, H, 0, shard.kv_rows},
                        {at + "self_attn.v_proj.weight", KV, H, 0, shard.kv_rows}},
                       format);
    layer.gate_up = matrix(at + "gate_up",
                           {{at + "mlp.gate_proj.weight", I, H, 0, shard.inner_rows},
                            {at + "mlp.up_proj.weight", I, H, 0, shard.inner_rows}},
                           format);
    layer.out = matrix(at + "out", {{at + "self_attn.o_proj.weight", H, H, 1, shard.q_rows}}, format);
    layer.down = matrix(at + "down", {{at + "mlp.down_proj.weight", H, I, 1, shard.inner_rows}}, format);
    m->layers_.push_back(std::move(layer));
  }
  m->final_norm_ = floats(w.take("model.norm.weight", {H}));
  if (w.has("lm_head.weight"))
    m->head_ = matrix("lm_head", {{"lm_head.weight", V, H, 0, vocabulary}}, head_format(format));
  else {
    m->head_ = pack({m->embedding_}, head_format(format));
    if (packed && m->embedding_.defined()) packed("lm_head", {&m->embedding_, 1}, m->head_);
  }
  w.finish();
  return m;
} catch (const Failure& failure) {
  return tl::make_unexpected(failure.error);
} catch (const std::exception& e) {
  return fail(Errc::internal, "loading '{}' failed: {}", directory.string(), e.what());
}

namespace {
constexpr WeightFormat kFormats[] = {WeightFormat::f32, WeightFormat::bf16, WeightFormat::int8, WeightFormat::int4};
}

/// A rank's part of a matrix: some rows, one range below the other, of some columns.
struct Cut {
  PackedShape whole;
  std::vector<Range> rows;
  Range columns;
  PackedShape shape() const {
    auto out = whole;
    out.rows = 0, out.columns = columns.count();
    for (const auto& range : rows) out.rows += range.count();
    return out;
  }
  /// The same with the columns that lie together with its own.
  Cut as_packed() const {
    const auto together = kernels::columns_together(whole);
    const auto last = (columns.last + together - 1) / together * together;
    return {whole, rows, {columns.first / together * together, std::min(whole.columns, last)}};
  }
};

/// Calls f(name, matrix, cut) for every packed matrix, in any order.
template <class M, class F>
void Step1::each_matrix(M& m, F&& f) {
  const auto& s = m.shard_;
  const auto H = m.config_.hidden, I = m.config_.inner, KV = m.config_.groups * m.config_.dim(),
             V = m.config_.vocabulary;
  const auto below = [](const Range& range, std::int64_t rows) { return Range{range.first + rows, range.last + rows}; };
  for (std::size_t l = 0; l < m.layers_.size(); ++l) {
    auto& layer = m.layers_[l];
    const auto at = fmt::format("model.layers.{}.", l);
    f(at + "qkv.packed", layer.qkv,
      Cut{shape_of(m.format_, H + 2 * KV, H), {s.q_rows, below(s.kv_rows, H), below(s.kv_rows, H + KV)}, {0, H}});
    f(at + "out.packed", layer.out, Cut{shape_of(m.format_, H, H), {{0, H}}, s.q_rows});
    f(at + "gate_up.packed", layer.gate_up,
      Cut{shape_of(m.format_, 2 * I, H), {s.inner_rows, below(s.inner_rows, I)}, {0, H}});
    f(at + "down.packed", layer.down, Cut{shape_of(m.format_, H, I), {{0, H}}, s.inner_rows});
  }
  f(std::string("lm_head.packed"), m.head_, Cut{shape_of(head_format(m.format_), V, H), {s.vocabulary_rows}, {0, H}});
}

template <class M, class F>
void Step1::each_norm(M& m, F&& f) {
  for (std::size_t l = 0; l < m.layers_.size(); ++l) {
    const auto at = fmt::format("model.layers.{}.", l);
    f(at + "input_layernorm.weight", m.layers_[l].input_norm);
    f(at + "post_attention_layernorm.weight", m.layers_[l].post_norm);
  }
  f(std::string("model.norm.weight"), m.final_norm_);
}

Result<void> Step1::save(const fs::path& directory) const {
  if (ranks_ != 1) return fail(Errc::unsupported, "weights of one of {} ranks are not a checkpoint", ranks_);
  checkpoint::TensorMap tensors;
  each_matrix(*this, [&](const std::string& name, const PackedMatrix& matrix, const Cut&) {
    const auto bytes = matrix.bytes();
    tensors[name] = {checkpoint::Dtype::u8, {static_cast<std::int64_t>(bytes.size())}, bytes, nullptr};
  });
  each_norm(*this, [&](const std::string& name, const std::vector<float>& norm) {
    tensors[name] = checkpoint::make_f32({static_cast<std::int64_t>(norm.size())}, norm);
  });
  const auto rows = embedding_.contiguous();
  tensors["model.embed_tokens.weight"] = {type() == at::kFloat ? checkpoint::Dtype::f32 : checkpoint::Dtype::bf16,
                                          {rows.size(0), rows.size(1)},
                                          {static_cast<const std::byte*>(rows.data_ptr()), rows.nbytes()},
                                          nullptr};
  return checkpoint::write_safetensors(directory / "model.safetensors", tensors, {{kFormatKey, name(format_)}});
}

Result<std::shared_ptr<const Step1>> Step1::load_packed(Step1Config config, Shard shard, int ranks,
                                                        checkpoint::TensorMap tensors, const std::string& source,
                                                        const std::string& format) {
  const auto found = std::find_if(std::begin(kFormats), std::end(kFormats), [&](auto f) { return name(f) == format; });
  if (found == std::end(kFormats))
    return fail(Errc::checkpoint_mismatch, "'{}' is packed as '{}', expected f32, bf16, int8 or int4", source, format);
  std::shared_ptr<Step1> m(new Step1);
  m->config_ = std::move(config), m->shard_ = std::move(shard), m->ranks_ = ranks, m->format_ = *found;
  m->layers_.resize(static_cast<std::size_t>(m->config_.layers));
  const auto H = m->config_.hidden, V = m->config_.vocabulary;
  // Plain tensors are checked as those of any checkpoint; the packed ones by their size.
  tensor::Weights w(std::move(tensors), source, m->type());
  each_matrix(*m, [&](const std::string& name, PackedMatrix& matrix, Cut own) {
    // How floats lie is told by how many bytes there are.
    auto halves = own.whole;
    halves.halves = halves.format == WeightFormat::f32;
    if (w.shape_of(name) == checkpoint::Shape{halves.bytes()}) own.whole = halves;
    const auto cut = own.as_packed();
    const auto bytes = w.take(name, {cut.whole.bytes()});
    if (!bytes.defined()) return;
    if (bytes.scalar_type() != at::kByte)
      raise(Errc::checkpoint_mismatch, "{}: '{}' is no sequence of bytes", source, name);
    matrix = PackedMatrix(cut.shape());
    std::int64_t at = 0;
    for (const auto& rows : cut.rows) {
      kernels::copy_part(cut.whole, static_cast<const std::byte*>(bytes.data_ptr()), rows.first, rows.count(),
                         cut.columns.first, matrix.shape(), at, matrix.bytes().data());
      at += rows.count();
    }
    w.drop(name);
    const auto before = own.columns.first - cut.columns.first;
    if (&matrix == &m->layers_.front().out) m->beside_.out = before;
    if (&matrix == &m->layers_.front().down) m->beside_.down = before;
  });
  const auto& vocabulary = m->shard_.vocabulary_rows;
  m->embedding_ = ranks == 1
                      ? w.take("model.embed_tokens.weight", {V, H})
                      : w.take_slice("model.embed_tokens.weight", {V, H}, 0, vocabulary.first, vocabulary.count());
  each_norm(*m, [&](const std::string& name, std::vector<float>& norm) { norm = floats(w.exactly(name, {H})); });
  w.finish();
  return m;
}

Result<std::shared_ptr<const Step1>> Step1::random(const Step1Config& config, WeightFormat format, std::uint64_t seed,
                                                   int rank, int ranks) try {
  PARLANDO_TRY(const auto shard, Shard::plan(config, rank, ranks));
  std::shared_ptr<Step1> m(new Step1);
  m->config_ = config, m->shard_ = shard, m->ranks_ = ranks, m->format_ = format;
  m->layers_.resize(static_cast<std::size_t>(config.layers));
  const auto H = config.hidden, V = shard.vocabulary_rows.count();
  at::manual_seed(seed);
  // Some random panels repeated: filling billions of values one by one would take minutes and measure nothing.
  each_matrix(*m, [&](const std::string&, PackedMatrix& matrix, const Cut& cut) {
    const auto shape = cut.shape();
    matrix = PackedMatrix(shape);
    constexpr std::int64_t kPanels = 4;
    const auto rows = std::min(shape.rows, kPanels * kernels::kPanelRows);
    const auto pattern = at::randn({rows, shape.columns}).mul_(0.02);
    kernels::pack_rows(shape, pattern.data_ptr<float>(), 0, rows, matrix.bytes().data());
    const auto bytes = shape.panel_bytes();
    for (auto p = kPanels; p < shape.panels(); ++p)
      std::memcpy(matrix.bytes().data() + p * bytes, matrix.bytes().data() + p % kPanels * bytes,
                  static_cast<std::size_t>(bytes));
  });
  each_norm(*m, [&](const std::string&, std::vector<float>& norm) { norm.assign(static_cast<std::size_t>(H), 1.0f); });
  m->embedding_ = at::empty({V, H}, m->type());
  const auto pattern = at::randn({std::min<std::int64_t>(V, 64), H}).mul_(0.02).to(m->type());
  for (std::int64_t r = 0; r < V; r += pattern.size(0)) {
    const auto n = std::min(pattern.size(0), V - r);
    m->embedding_.narrow(0, r, n).copy_(pattern.narrow(0, 0, n));
  }
  return m;
} catch (const std::exception& e) {
  return fail(Errc::internal, "random weights could not be made: {}", e.what());
}

kernels::KvLayout Step1::cache_layout() const {
  return {type() == at::kBFloat16, shard_.kv_groups.count(), config_.dim()};
}

std::unique_ptr<KvPool> Step1::make_pool(std::int64_t tokens) const {
  return std::make_unique<KvPool>(config_.layers, (tokens + kBlockTokens - 1) / kBlockTokens, cache_layout());
}

std::int64_t Step1::decode_bytes() const {
  std::int64_t total = 0;
  each_matrix(*this, [&](const std::string&, const PackedMatrix& matrix, const Cut&) {
    total += static_cast<std::int64_t>(matrix.bytes().size());
  });
  each_norm(*this, [&](const std::string&, const std::vector<float>& norm) {
    total += static_cast<std::int64_t>(norm.size() * sizeof(float));
  });
  return total;
}

std::int64_t Step1::weight_bytes() const { return decode_bytes() + static_cast<std::int64_t>(embedding_.nbytes()); }

std::int64_t Step1::cache_bytes() const {
  const auto layout = cache_layout();
  return config_.layers * (layout.key_bytes() + layout.value_bytes()) / kBlockTokens;
}

namespace {
/// In the type of the activations; integers stand for numbers that bf16 lacks.
at::Tensor as_used(const at::Tensor& x, WeightFormat format) {
  return format == WeightFormat::bf16 ? x.to(at::kBFloat16) : x;
}
}  // namespace

at::Tensor Step1::unpacked(const PackedMatrix& matrix) const {
  const auto& shape = matrix.shape();
  auto out = at::empty({shape.rows, shape.columns});
  kernels::unpack(shape, matrix.bytes().data(), out.data_ptr<float>());
  return as_used(out, format_);
}

Step1::Layer Step1::layer(std::int64_t index) const {
  const auto& l = layers_[static_cast<std::size_t>(index)];
  auto norm = [&](const std::vector<float>& v) { return as_used(at::tensor(v), format_); };
  return {norm(l.input_norm), unpacked(l.qkv),     unpacked(l.out),
          norm(l.post_norm),  unpacked(l.gate_up), unpacked(l.down)};
}

at::Tensor Step1::final_norm() const { return as_used(at::tensor(final_norm_), format_); }

namespace {
/// What a pass works in. Of a thread, which keeps it: a step allocates nothing.
struct Work {
  std::vector<float> x, y, qkv, attended, gate_up, gated;
  LinearInput input;
  std::vector<kernels::PagedAttention> attention;
  float* sized(std::vector<float>& v, std::int64_t size) {
    v.resize(static_cast<std::size_t>(size));
    return v.data();
  }
};
}  // namespace

Result<at::Tensor> Step1::forward(KvPool& pool, std::span<Chunk> chunks, const Trace& trace) const try {
  const c10::InferenceMode guard;
  if (ranks_ != 1)
    return fail(Errc::unsupported, "a part of a model on {} ranks runs plans (`RankBackend`) only", ranks_);
  std::int64_t total = 0;
  for (const auto& chunk : chunks) {
    const auto n = static_cast<std::int64_t>(chunk.ids.size());
    if (chunk.sequence->length() + n > config_.length_max)
      return fail(Errc::invalid_argument, "the sequence would have {} tokens, the model takes {}",
                  chunk.sequence->length() + n, config_.length_max);
    for (const auto id : chunk.ids)
      if (id < 0 || id >= config_.vocabulary)
        return fail(Errc::token_out_of_range, "token id {} is outside the vocabulary of {}", id, config_.vocabulary);
    total += n;
  }
  if (total == 0) return at::empty({total, config_.hidden});
  std::vector<KvPool::Want> wants;
  for (const auto& chunk : chunks) wants.push_back({chunk.sequence, static_cast<std::int64_t>(chunk.ids.size())});
  // Whatever fails below, the sequences keep their length and no room behind it.
  struct Room {
    KvPool& pool;
    std::span<const KvPool::Want> wants;
    bool used = false;
    ~Room() {
      for (const auto& want : wants)
        if (!used) pool.unreserve(*want.sequence);
    }
  } room{pool, wants};
  PARLANDO_DO(pool.reserve(wants));
  std::vector<Piece> pieces;
  for (const auto& chunk : chunks) pieces.push_back({chunk.ids, chunk.sequence->length(), chunk.sequence->blocks()});
  PARLANDO_TRY(auto hidden, pass(pool.store(), pieces, trace));
  for (const auto& want : wants) pool.commit(*want.sequence, want.count);
  room.used = true;
  return hidden;
} catch (const std::exception& e) {
  return fail(Errc::internal, "the forward pass failed: {}", e.what());
}

Result<at::Tensor> Step1::pass(KvStore& store, std::span<const Piece> pieces, const Trace& trace,
                               parallel::Communicator* group) const try {
  const c10::InferenceMode guard;
  if (ranks_ != (group == nullptr ? 1 : group->size()))
    return fail(Errc::invalid_argument, "a pass of a model on {} ranks in a group of {}", ranks_,
                group == nullptr ? 1 : group->size());
  std::int64_t total = 0;
  for (const auto& piece : pieces) total += static_cast<std::int64_t>(piece.ids.size());
  const auto N = shard_.query_heads.count(), G = shard_.kv_groups.count(), D = config_.dim(), H = config_.hidden,
             I = shard_.inner_rows.count(), q_rows = N * D, kv_rows = G * D, qkv_rows = q_rows + 2 * kv_rows;
  // Rows of what `out` and `down` multiply, and where a rank's own columns begin in them.
  const auto out_columns = layers_.front().out.shape().columns, down_columns = layers_.front().down.shape().columns;
  auto hidden = at::empty({total, H});
  if (total == 0) return hidden;
  auto& team = Team::of_this_thread();
  const bool round = format_ == WeightFormat::bf16, halves = type() == at::kBFloat16;
  const auto eps = static_cast<float>(config_.norm_eps);
  thread_local Work work;
  float *x = work.sized(work.x, total * H), *y = work.sized(work.y, total * H),
        *qkv = work.sized(work.qkv, total * qkv_rows),
        *attended = work.sized(work.attended, total * out_columns) + beside_.out,
        *gate_up = work.sized(work.gate_up, total * 2 * I),
        *gated = work.sized(work.gated, total * down_columns) + beside_.down;
  if (out_columns != q_rows) std::ranges::fill(work.attended, 0.0f);
  if (down_columns != I) std::ranges::fill(work.gated, 0.0f);
  const auto cost_of_rows = kernels::Cost::of(0, static_cast<double>(total * (H + 2 * I)), kNumbersPerNanosecond);
  auto rows = [&](auto&& each) {
    team.run(total, cost_of_rows, [&](std::int64_t first, std::int64_t last) {
      for (auto t = first; t < last; ++t) each(t);
    });
  };
  auto product = [&](const PackedMatrix& w, const float* from, std::int64_t stride, float* to) {
    work.input.set(team, w.shape(), from, total, stride);
    kernels::linear(team, w, work.input, to);
  };
  // What the ranks have computed of the same rows: added in their order, so that all have the same bits.
  auto sum = [&](float* values) -> Result<void> {
    if (group == nullptr) return {};
    return group->all_reduce({values, static_cast<std::size_t>(total * H)}, SteadyClock().now() + kReduceMax);
  };
  auto tell = [&](int stage, float* state) {
    if (trace) trace(stage, at::from_blob(state, {total, H}).clone());
  };

  std::int64_t t = 0;
  const auto& own = shard_.vocabulary_rows;
  for (const auto& piece : pieces)
    for (const auto id : piece.ids) {
      float* row = x + t++ * H;
      if (id < own.first || id >= own.last)
        std::fill(row, row + H, 0.0f);
      else if (halves)
        kernels::widen_bf16(static_cast<const std::uint16_t*>(embedding_.data_ptr()) + (id - own.first) * H, H, row);
      else
        std::memcpy(row, embedding_.data_ptr<float>() + (id - own.first) * H,
                    static_cast<std::size_t>(H) * sizeof(float));
    }
  PARLANDO_DO(sum(x));
  tell(0, x);
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    const auto& layer = layers_[l];
    const auto index = static_cast<std::int64_t>(l);
    rows([&](std::int64_t r) { kernels::rms_norm(x + r * H, layer.input_norm.data(), eps, H, round, y + r * H); });
    product(layer.qkv, y, H, qkv);
    // The cache rounds keys and values; what is multiplied with them is rounded as they are.
    if (halves) rows([&](std::int64_t r) { kernels::round_to_bf16(qkv + r * qkv_rows, round ? qkv_rows : q_rows); });
    work.attention.clear();
    std::int64_t at = 0;
    for (const auto& piece : pieces) {
      const auto n = static_cast<std::int64_t>(piece.ids.size());
      if (n == 0) continue;
      float* q = qkv + at * qkv_rows;
      store.write(piece.blocks, index, piece.first, n, q + q_rows, q + q_rows + kv_rows, qkv_rows);
      work.attention.push_back({q, attended + at * out_columns, qkv_rows, out_columns, n, piece.first,
                                store.keys(index), store.values(index), piece.blocks.data(), N, shard_.slopes.data()});
      at += n;
    }
    kernels::paged_attention(team, store.layout(), work.attention);
    if (round) rows([&](std::int64_t r) { kernels::round_to_bf16(attended + r * out_columns, q_rows); });
    product(layer.out, attended - beside_.out, out_columns, y);
    PARLANDO_DO(sum(y));
    rows([&](std::int64_t r) {
      if (round) kernels::round_to_bf16(y + r * H, H);
      kernels::add_to(x + r * H, y + r * H, H, round);
      kernels::rms_norm(x + r * H, layer.post_norm.data(), eps, H, round, y + r * H);
    });
    product(layer.gate_up, y, H, gate_up);
    rows([&](std::int64_t r) {
      float* gate = gate_up + r * 2 * I;
      if (round) kernels::round_to_bf16(gate, 2 * I);
      kernels::swiglu(gate, gate + I, I, round, gated + r * down_columns);
    });
    product(layer.down, gated - beside_.down, down_columns, y);
    PARLANDO_DO(sum(y));
    rows([&](std::int64_t r) {
      if (round) kernels::round_to_bf16(y + r * H, H);
      kernels::add_to(x + r * H, y + r * H, H, round);
    });
    tell(static_cast<int>(l) + 1, x);
  }
  float* out = hidden.data_ptr<float>();
  rows([&](std::int64_t r) { kernels::rms_norm(x + r * H, final_norm_.data(), eps, H, round, out + r * H); });
  tell(static_cast<int>(layers_.size()) + 1, out);
  return hidden;
} catch (const std::exception& e) {
  return fail(Errc::internal, "the forward pass failed: {}", e.what());
}

void Step1::logits(const float* rows, std::int64_t count, float* out) const {
  auto& team = Team::of_this_thread();
  thread_local LinearInput input;
  input.set(team, head_.shape(), rows, count, config_.hidden);
  kernels::linear(team, head_, input, out);
  if (format_ == WeightFormat::bf16) kernels::round_to_bf16(out, count * head_.shape().rows);
}

at::Tensor Step1::logits(const at::Tensor& hidden) const {
  const c10::InferenceMode guard;
  const auto rows = hidden.to(at::kFloat).contiguous();
  auto out = at::empty({rows.size(0), head_.shape().rows});
  logits(rows.data_ptr<float>(), rows.size(0), out.data_ptr<float>());
  return out;
}

}  // namespace parlando::llm
