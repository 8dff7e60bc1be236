#include "services/tokenizer/model/semantic.hpp"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>

#include "common/audio/front_end.hpp"
#include "common/tensor/torch_bridge.hpp"
#include "common/tensor/weights.hpp"

namespace parlando::tokenizer {

std::int64_t semantic_count(std::int64_t samples) {
  std::int64_t total = 0;
  for (std::int64_t at = 0; at < samples; at += kPieceSamples) {
    const auto n = std::min(kPieceSamples, samples - at);
    if (n >= kPieceSamplesMin) total += ((n / 160 + 1) / 2 + 1) / 2;
  }
  return total;
}

SemanticEncoder::SemanticEncoder(checkpoint::TensorMap tensors, int heads, const std::string& source) : heads_(heads) {
  tensor::Weights w(std::move(tensors), source);
  const auto shape = w.shape_of("encoder.conv1.weight");
  if (shape.size() != 3) raise(Errc::checkpoint_mismatch, "{}: 'encoder.conv1.weight' is missing", source);
  width_ = shape[0];
  if (heads <= 0 || width_ % heads != 0)
    raise(Errc::checkpoint_mismatch, "{}: {} heads do not divide the width {}", source, heads, width_);
  conv1_w_ = w.take("encoder.conv1.weight", {width_, 128, 3}), conv1_b_ = w.take("encoder.conv1.bias", {width_});
  conv2_w_ = w.take("encoder.conv2.weight", {width_, width_, 3}), conv2_b_ = w.take("encoder.conv2.bias", {width_});
  positions_ = w.take("encoder.positional_embedding", {-1, width_});
  const auto codebook = w.take("quantizer._codebook.embed", {-1, width_});
  for (int n = 0; n == 0 || w.has(fmt::format("encoder.blocks.{}.attn_ln.weight", n)); ++n) {
    const auto at = fmt::format("encoder.blocks.{}.", n);
    Block b;
    b.attn_ln_w = w.take(at + "attn_ln.weight", {width_}), b.attn_ln_b = w.take(at + "attn_ln.bias", {width_});
    b.mlp_ln_w = w.take(at + "mlp_ln.weight", {width_}), b.mlp_ln_b = w.take(at + "mlp_ln.bias", {width_});
    const auto q = w.take(at + "attn.query.weight", {width_, width_}),
               k = w.take(at + "attn.key.weight", {width_, width_}),
               v = w.take(at + "attn.value.weight", {width_, width_});
    const auto qb = w.take(at + "attn.query.bias", {width_}), vb = w.take(at + "attn.value.bias", {width_});
    if (q.defined() && k.defined() && v.defined() && qb.defined() && vb.defined())
      b.qkv = nn::PackedLinear(at::cat({q, k, v}), at::cat({qb, at::zeros({width_}), vb}));
    auto packed = [&](const std::string& name, std::int64_t out, std::int64_t from) {
      return nn::PackedLinear(w.take(at + name + ".weight", {out, from}), w.take(at + name + ".bias", {out}));
    };
    b.out = packed("attn.out", width_, width_);
    const auto inner = w.shape_of(at + "mlp.0.weight");
    const std::int64_t hidden = inner.empty() ? -1 : inner[0];
    b.w0 = packed("mlp.0", hidden, width_), b.w2 = packed("mlp.2", width_, hidden);
    blocks_.push_back(std::move(b));
  }
  w.finish();
  codebook_t_ = codebook.t().contiguous();
  codebook_norms_ = codebook.pow(2).sum(1);
}

at::Tensor SemanticEncoder::embed(const Piece& piece, const Trace& trace) const {
  // Both convolutions read one column before a row's own two; in front of the piece there are zeros.
  auto convolve = [&](const at::Tensor& x, const at::Tensor& w, const at::Tensor& b) {
    return at::gelu(piece.first_row == 0 ? at::conv1d(x, w, b, 2, 1)
                                         : at::conv1d(at::constant_pad_nd(x, {0, 1}), w, b, 2));
  };
  auto x = convolve(piece.mel.t().unsqueeze(0), conv1_w_, conv1_b_);
  if (trace) trace("s3_conv1", x[0]);
  x = convolve(x, conv2_w_, conv2_b_).transpose(1, 2);
  if (trace) trace("s3_conv2", x[0]);
  const auto rows = x.size(1);
  if (piece.first_row + rows > positions_.size(0))
    raise(Errc::invalid_argument, "a piece of {} rows is longer than the {} positions of the checkpoint",
          piece.first_row + rows, positions_.size(0));
  x = x + positions_.narrow(0, piece.first_row, rows);
  if (trace) trace("s3_embed", x[0]);
  return x;
}

std::vector<at::Tensor> SemanticEncoder::run(const std::vector<Piece>& pieces, const Past& past,
                                             const Trace& trace) const {
  std::vector<at::Tensor> parts;
  for (const auto& piece : pieces) parts.push_back(embed(piece, trace));
  std::vector<std::int64_t> first{0};
  for (const auto& part : parts) first.push_back(first.back() + part.size(1));
  auto x = at::cat(parts, 1);
  const auto all = first.back(), d = width_ / heads_;
  for (std::size_t n = 0; n < blocks_.size(); ++n) {
    const auto& b = blocks_[n];
    const auto qkv = b.qkv(at::layer_norm(x, {width_}, b.attn_ln_w, b.attn_ln_b, 1e-5)).view({1, all, 3, heads_, d});
    for (std::size_t i = 0; i < parts.size(); ++i) {
      const auto rows = first[i + 1] - first[i];
      const auto own = qkv.narrow(1, first[i], rows).permute({2, 0, 3, 1, 4});
      at::Tensor k = own[1], v = own[2];
      if (past) past(i, n, k, v);
      parts[i] = at::scaled_dot_product_attention(own[0], k, v).transpose(1, 2).reshape({1, rows, width_});
    }
    x = x + b.out(at::cat(parts, 1));
    x = x + b.w2(at::gelu(b.w0(at::layer_norm(x, {width_}, b.mlp_ln_w, b.mlp_ln_b, 1e-5))));
    if (trace) trace(fmt::format("s3_block{}", n), x[0]);
  }
  for (std::size_t i = 0; i < parts.size(); ++i) parts[i] = x[0].narrow(0, first[i], first[i + 1] - first[i]);
  return parts;
}

at::Tensor SemanticEncoder::encode(const at::Tensor& mel, const Trace& trace) const {
  const c10::InferenceMode guard;
  return run({{mel, 0}}, {}, trace)[0];
}

at::Tensor SemanticEncoder::extend(SemanticState& state, const at::Tensor& mel, std::int64_t settle) const {
  return extend({{&state, mel, settle}})[0];
}

std::vector<at::Tensor> SemanticEncoder::extend(const std::vector<Growth>& growths) const {
  const c10::InferenceMode guard;
  const auto layers = static_cast<std::int64_t>(blocks_.size());
  std::vector<Piece> pieces;
  std::vector<at::Tensor> settled(growths.size());
  for (std::size_t i = 0; i < growths.size(); ++i) {
    const auto& g = growths[i];
    pieces.push_back({g.mel, g.state->rows});
    if (g.settle > 0) settled[i] = at::empty({layers, 2, heads_, g.settle, width_ / heads_});
  }
  auto out = run(pieces,
                 [&](std::size_t piece, std::size_t layer, at::Tensor& k, at::Tensor& v) {
                   const auto& g = growths[piece];
                   const auto at = static_cast<std::int64_t>(layer);
                   if (g.settle > 0)
                     settled[piece][at][0].copy_(k[0].narrow(1, 0, g.settle)),
                         settled[piece][at][1].copy_(v[0].narrow(1, 0, g.settle));
                   if (g.state->blocks.empty()) return;
                   std::vector<at::Tensor> keys, values;
                   for (const auto& block : g.state->blocks)
                     keys.push_back(block[at][0]), values.push_back(block[at][1]);
                   keys.push_back(k[0]), values.push_back(v[0]);
                   k = at::cat(keys, 1).unsqueeze(0), v = at::cat(values, 1).unsqueeze(0);
                 },
                 {});
  for (std::size_t i = 0; i < growths.size(); ++i) {
    if (growths[i].settle == 0) continue;
    auto& state = *growths[i].state;
    state.rows += growths[i].settle;
    state.blocks.push_back(std::move(settled[i]));
    std::int64_t held = 0;
    for (const auto& block : state.blocks) held += block.size(3);
    auto first = state.blocks.begin();
    while (held - first->size(3) >= kSemanticLookBackRows) held -= first++->size(3);
    state.blocks.erase(state.blocks.begin(), first);
  }
  return out;
}

std::vector<std::int32_t> SemanticEncoder::quantise(const at::Tensor& hidden) const {
  const c10::InferenceMode guard;
  if (hidden.size(0) == 0) return {};
  const auto h = hidden / hidden.norm(2, 1, true).clamp_min(1e-12);
  const auto ids = (2 * at::matmul(h, codebook_t_) - codebook_norms_).argmax(1).to(at::kInt).contiguous();
  return {ids.data_ptr<std::int32_t>(), ids.data_ptr<std::int32_t>() + ids.numel()};
}

std::vector<std::int32_t> SemanticEncoder::ids(std::span<const float> wave) const {
  const c10::InferenceMode guard;
  std::vector<std::int32_t> out;
  for (std::size_t at = 0; at < wave.size(); at += kPieceSamples) {
    const auto piece = wave.subspan(at, std::min<std::size_t>(kPieceSamples, wave.size() - at));
    if (static_cast<std::int64_t>(piece.size()) < kPieceSamplesMin) continue;
    const auto mel = audio::whisper_log_mel(piece);
    const auto part = quantise(encode(tensor::from_values(mel.values, {mel.frames, mel.bins})));
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

}  // namespace parlando::tokenizer
