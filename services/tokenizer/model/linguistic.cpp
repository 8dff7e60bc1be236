#include "services/tokenizer/model/linguistic.hpp"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>

#include "common/tensor/torch_bridge.hpp"
#include "common/tensor/weights.hpp"

namespace parlando::tokenizer {

namespace {
constexpr double kNormEps = 1e-12;
constexpr int kBins = 80, kInputs = kStack * kBins;

at::Tensor norm(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b) {
  return at::layer_norm(x, {x.size(-1)}, w, b, kNormEps);
}
/// Depthwise convolution inside each window plus the value itself: [batch, rows, width], taps [K, width], zeros outside
/// the window. A dozen rows of small work: a general convolution spends more on its set-up.
at::Tensor fsmn_memory(const at::Tensor& value, const at::Tensor& taps) {
  const auto v = value.contiguous();
  auto out = v.clone();
  const auto batch = v.size(0), rows = v.size(1), width = v.size(2), count = taps.size(0), left = (count - 1) / 2;
  const float *from = v.data_ptr<float>(), *w = taps.data_ptr<float>();
  float* to = out.data_ptr<float>();
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t t = 0; t < rows; ++t)
      for (std::int64_t k = std::max<std::int64_t>(0, left - t); k < std::min(count, rows + left - t); ++k) {
        const float *x = from + (b * rows + t + k - left) * width, *tap = w + k * width;
        float* y = to + (b * rows + t) * width;
        for (std::int64_t c = 0; c < width; ++c) y[c] += x[c] * tap[c];
      }
  return out;
}
}  // namespace

std::int64_t linguistic_count(std::int64_t samples) {
  const std::int64_t q = samples / kChunkSamples, r = samples % kChunkSamples;
  return 4 * q + (r < 880 ? 0 : ((r - 400) / 160 + 1 + 5) / 6);
}

LinguisticEncoder::LinguisticEncoder(checkpoint::TensorMap tensors, int heads, const std::string& source)
    : heads_(heads) {
  tensor::Weights w(std::move(tensors), source);
  inputs_ = kInputs;
  const auto centroid_shape = w.shape_of("kmeans.centroids");
  if (centroid_shape.size() != 2) raise(Errc::checkpoint_mismatch, "{}: 'kmeans.centroids' is missing", source);
  width_ = centroid_shape[1];
  if (heads <= 0 || width_ % heads != 0)
    raise(Errc::checkpoint_mismatch, "{}: {} attention heads do not divide the width {}", source, heads, width_);
  shift_ = w.take("cmvn.shift", {kInputs});
  rescale_ = w.take("cmvn.rescale", {kInputs});
  centroids_ = w.take("kmeans.centroids", {-1, width_});
  for (std::int64_t l = 0;; ++l) {
    const std::string at = l == 0 ? "encoder.encoders0.0." : fmt::format("encoder.encoders.{}.", l - 1);
    if (l > 0 && !w.has(at + "norm1.weight")) break;
    const std::int64_t in = l == 0 ? inputs_ : width_;
    const auto hidden = w.shape_of(at + "feed_forward.w_1.weight");
    const std::int64_t inner = hidden.empty() ? -1 : hidden[0];
    Layer layer;
    layer.norm1_w = w.take(at + "norm1.weight", {in}), layer.norm1_b = w.take(at + "norm1.bias", {in});
    auto packed = [&](const std::string& name, std::int64_t out, std::int64_t from) {
      return nn::PackedLinear(w.take(at + name + ".weight", {out, from}), w.take(at + name + ".bias", {out}));
    };
    layer.qkv = packed("self_attn.linear_q_k_v", 3 * width_, in),
    layer.out = packed("self_attn.linear_out", width_, width_);
    layer.w1 = packed("feed_forward.w_1", inner, width_), layer.w2 = packed("feed_forward.w_2", width_, inner);
    layer.fsmn = w.take(at + "self_attn.fsmn_block.weight", {width_, 1, -1});
    if (layer.fsmn.defined())
      layer.fsmn = layer.fsmn.view({width_, -1}).t().contiguous();  // [taps, width]: channels side by side
    layer.norm2_w = w.take(at + "norm2.weight", {width_}), layer.norm2_b = w.take(at + "norm2.bias", {width_});
    layer.residual = in == width_;
    layers_.push_back(std::move(layer));
  }
  after_w_ = w.take("encoder.after_norm.weight", {width_}), after_b_ = w.take("encoder.after_norm.bias", {width_});
  w.finish();
  centroid_norms_ = centroids_.pow(2).sum(1);
}

LinguisticState LinguisticEncoder::start() const {
  LinguisticState state;
  state.keys.assign(layers_.size(), at::zeros({0, width_}));
  state.values.assign(layers_.size(), at::zeros({0, width_}));
  state.overlap = at::zeros({kOverlapRows, inputs_});
  return state;
}

void LinguisticEncoder::normalise(at::Tensor& stacked) const { stacked.add_(shift_).mul_(rescale_); }

at::Tensor LinguisticEncoder::features(std::span<const float> wave) const {
  const c10::InferenceMode guard;
  LinguisticFrontEnd front;
  auto rows = front.push(wave);
  const auto tail = front.finish();
  rows.insert(rows.end(), tail.begin(), tail.end());
  auto out = tensor::from_values(rows, {static_cast<std::int64_t>(rows.size()) / kInputs, kInputs});
  normalise(out);
  return out;
}

at::Tensor LinguisticEncoder::positioned(const at::Tensor& feats, std::int64_t first_position) const {
  const std::int64_t half = inputs_ / 2;
  const auto p = at::arange(first_position, first_position + feats.size(0), at::kFloat).unsqueeze(1);
  const auto inv =
      at::exp(at::arange(half, at::kFloat) * static_cast<float>(-std::log(10000.0) / static_cast<double>(half - 1)))
          .unsqueeze(0);
  const auto angle = p * inv;
  return feats * std::sqrt(static_cast<double>(width_)) + at::cat({angle.sin(), angle.cos()}, 1);
}

at::Tensor LinguisticEncoder::run(at::Tensor x, const at::Tensor& rows, const at::Tensor& cached,
                                  const LookBack& look_back, const Trace& trace) const {
  const std::int64_t batch = x.size(0), window = x.size(1), d = width_ / heads_;
  const auto mask = at::cat({cached, rows}, 1).view({batch, 1, 1, -1});
  const auto keep = rows.unsqueeze(-1).to(at::kFloat);
  auto split = [&](const at::Tensor& t) { return t.reshape({batch, t.size(1), heads_, d}).transpose(1, 2); };
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    const Layer& layer = layers_[l];
    const auto qkv = layer.qkv(norm(x, layer.norm1_w, layer.norm1_b)).chunk(3, -1);
    const auto &k = qkv[1], &v = qkv[2];
    at::Tensor old_k, old_v;
    look_back(l, k, v, old_k, old_v);
    const auto value = v * keep;
    const auto memory = fsmn_memory(value, layer.fsmn);
    auto y = at::scaled_dot_product_attention(split(qkv[0]), split(at::cat({old_k, k}, 1)),
                                              split(at::cat({old_v, v}, 1)), mask);
    y = layer.out(y.transpose(1, 2).reshape({batch, window, width_})) + memory;
    x = layer.residual ? x + y : y;
    x = x + layer.w2(at::relu(layer.w1(norm(x, layer.norm2_w, layer.norm2_b))));
    if (trace) trace(fmt::format("layer{}.out", l), x);
  }
  return norm(x, after_w_, after_b_);
}

std::vector<at::Tensor> LinguisticEncoder::step(const std::vector<LinguisticState*>& states,
                                                const std::vector<at::Tensor>& fresh, const Trace& trace) const {
  const c10::InferenceMode guard;
  std::vector<std::int64_t> count;  // windows of each session
  std::vector<at::Tensor> window, rows, cached;
  for (std::size_t b = 0; b < states.size(); ++b) {
    auto& state = *states[b];
    const auto n = fresh[b].size(0), windows = (n + kNewRows - 1) / kNewRows, pad = windows * kNewRows - n,
               held = state.keys[0].size(0);
    const auto x = at::cat({state.overlap, positioned(fresh[b], state.position)});
    window.push_back(at::constant_pad_nd(x, {0, 0, 0, pad}).unfold(0, kWindowRows, kNewRows).transpose(1, 2));
    rows.push_back(at::ones({windows, kWindowRows}, at::kBool));
    if (pad > 0) rows.back()[windows - 1].narrow(0, kWindowRows - pad, pad).fill_(false);
    cached.push_back(at::ones({windows, kLookBackRows}, at::kBool));
    for (std::int64_t c = 0; c < windows && held + kNewRows * c < kLookBackRows; ++c)
      cached.back()[c].narrow(0, 0, kLookBackRows - held - kNewRows * c).fill_(false);
    state.overlap = x.narrow(0, n, kOverlapRows).clone();
    state.position += n;
    count.push_back(windows);
  }
  // The look-back of a window are the rows that its session holds and the first four of its windows before, all of the
  // same layer.
  auto look_back = [&](const at::Tensor& now, std::size_t layer, std::vector<at::Tensor> LinguisticState::*caches) {
    std::vector<at::Tensor> old;
    std::int64_t at = 0;
    for (std::size_t b = 0; b < states.size(); at += count[b++]) {
      auto& cache = (states[b]->*caches)[layer];
      const auto held = cache.size(0), n = fresh[b].size(0);
      const auto all = at::cat({at::zeros({kLookBackRows - held, width_}), cache,
                                now.narrow(0, at, count[b]).narrow(1, 0, kNewRows).reshape({-1, width_})});
      old.push_back(all.narrow(0, 0, kLookBackRows + kNewRows * (count[b] - 1))
                        .unfold(0, kLookBackRows, kNewRows)
                        .transpose(1, 2));
      const auto kept = std::min<std::int64_t>(held + n, kLookBackRows);
      cache = all.narrow(0, kLookBackRows + n - kept, kept).clone();
    }
    return at::cat(old);
  };
  const auto hidden =
      run(
          at::cat(window), at::cat(rows), at::cat(cached),
          [&](std::size_t layer, const at::Tensor& k, const at::Tensor& v, at::Tensor& old_k, at::Tensor& old_v) {
            old_k = look_back(k, layer, &LinguisticState::keys);
            old_v = look_back(v, layer, &LinguisticState::values);
          },
          trace)
          .narrow(1, kOverlapRows, kNewRows);
  std::vector<at::Tensor> out;
  std::int64_t at = 0;
  for (std::size_t b = 0; b < states.size(); at += count[b++])
    out.push_back(hidden.narrow(0, at, count[b]).reshape({-1, width_}).narrow(0, 0, fresh[b].size(0)));
  return out;
}

at::Tensor LinguisticEncoder::encode(const at::Tensor& features) const {
  if (features.size(0) == 0) return at::zeros({0, width_});
  auto state = start();
  return step({&state}, {features})[0];
}

std::vector<std::int32_t> LinguisticEncoder::quantise(const at::Tensor& hidden) const {
  const c10::InferenceMode guard;
  if (hidden.size(0) == 0) return {};
  const auto ids = (centroid_norms_ - 2 * at::matmul(hidden, centroids_.t())).argmin(1).to(at::kInt).contiguous();
  return {ids.data_ptr<std::int32_t>(), ids.data_ptr<std::int32_t>() + ids.numel()};
}

void LinguisticFrontEnd::take_frames(std::size_t usable) {
  const auto frames = fbank_({samples_.data(), usable});
  frames_.insert(frames_.end(), frames.values.begin(), frames.values.end());
  frames_total_ += frames.frames;
  const auto used = static_cast<std::ptrdiff_t>(frames.frames) * audio::Fbank::kShift;
  samples_.erase(samples_.begin(), samples_.begin() + used);
  sample_first_ += used;
}

std::vector<float> LinguisticFrontEnd::stack(std::int64_t until, bool final) {
  std::vector<float> out;
  for (; emitted_ < until; ++emitted_)
    for (int k = 0; k < kStack; ++k) {
      // Padded index 6i + k; three copies of frame 0 stand in front, copies of the last frame behind.
      auto frame = std::max<std::int64_t>(0, kSkip * emitted_ + k - kStack / 2);
      if (final) frame = std::min(frame, frames_total_ - 1);
      const auto* row = frames_.data() + static_cast<std::size_t>(frame - frames_first_) * kBins;
      out.insert(out.end(), row, row + kBins);
    }
  const auto need = std::clamp<std::int64_t>(kSkip * emitted_ - kStack / 2, frames_first_,
                                             std::max(frames_first_, frames_total_ - 1));
  frames_.erase(frames_.begin(), frames_.begin() + static_cast<std::ptrdiff_t>((need - frames_first_) * kBins));
  frames_first_ = need;
  return out;
}

std::vector<float> LinguisticFrontEnd::push(std::span<const float> wave) {
  samples_.insert(samples_.end(), wave.begin(), wave.end());
  received_ += static_cast<std::int64_t>(wave.size());
  const auto chunks = received_ / kChunkSamples;
  if (chunks == chunks_done_) return {};
  chunks_done_ = chunks;
  take_frames(static_cast<std::size_t>(chunks * kChunkSamples - sample_first_));
  return stack(4 * chunks, false);
}

std::vector<float> LinguisticFrontEnd::finish() {
  std::vector<float> out;
  const auto total = linguistic_count(received_);
  if (total > emitted_) {
    take_frames(samples_.size());
    out = stack(total, true);
  }
  *this = LinguisticFrontEnd();
  return out;
}

std::vector<std::int32_t> LinguisticStream::encode(const std::vector<float>& rows) {
  std::vector<std::int32_t> ids;
  const auto count = static_cast<std::int64_t>(rows.size()) / kInputs;
  for (std::int64_t at = 0; at < count; at += kNewRows) {
    const auto n = std::min<std::int64_t>(kNewRows, count - at);
    auto fresh = tensor::from_values(
        std::span(rows).subspan(static_cast<std::size_t>(at * kInputs), static_cast<std::size_t>(n * kInputs)),
        {n, kInputs});
    encoder_->normalise(fresh);
    const auto part = encoder_->quantise(encoder_->step({&state_}, {fresh})[0]);
    ids.insert(ids.end(), part.begin(), part.end());
  }
  return ids;
}

std::vector<std::int32_t> LinguisticStream::push(std::span<const float> wave) {
  const c10::InferenceMode guard;
  return encode(front_end_.push(wave));
}

std::vector<std::int32_t> LinguisticStream::finish() {
  const c10::InferenceMode guard;
  auto ids = encode(front_end_.finish());
  state_ = encoder_->start();
  return ids;
}

}  // namespace parlando::tokenizer
