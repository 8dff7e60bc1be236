#include "services/tts/model/bf16_estimator.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>

#include "common/base/result.hpp"
#include "kernels/frames/frames.hpp"

namespace parlando::tts {

namespace {
constexpr float kEpsilon = 1e-5f;

std::uint16_t* bits(const at::Tensor& x) { return reinterpret_cast<std::uint16_t*>(x.data_ptr<at::BFloat16>()); }

std::vector<float> values(const at::Tensor& x) {
  if (!x.defined()) return {};
  const auto from = x.to(at::kFloat).contiguous();
  return {from.data_ptr<float>(), from.data_ptr<float>() + from.numel()};
}

/// [out, in, taps] as rows of neighbouring frames.
at::Tensor by_frames(const at::Tensor& w) { return w.defined() ? w.permute({0, 2, 1}).flatten(1) : w; }
}  // namespace

Bf16Estimator::Product Bf16Estimator::product(const at::Tensor& w, const at::Tensor& b) {
  if (!w.defined()) return {};  // reported by the loader
  kernels::PackedShape shape;
  shape.format = kernels::WeightFormat::bf16;
  shape.rows = w.size(0), shape.columns = kernels::gemm_columns(w.size(1));
  const auto from = at::constant_pad_nd(w.to(at::kFloat), {0, shape.columns - w.size(1)}).contiguous();
  Product out{kernels::PackedMatrix(shape), values(b)};
  kernels::pack_rows(shape, from.data_ptr<float>(), 0, shape.rows, out.w.bytes().data());
  return out;
}

void Bf16Estimator::Product::operator()(kernels::Team& team, const std::uint16_t* x, std::int64_t count,
                                        std::int64_t stride, kernels::GemmOut out) const {
  out.bias = bias.empty() ? nullptr : bias.data();
  kernels::gemm_bf16(team, w.shape(), w.bytes().data(), x, count, stride, out);
}

Bf16Estimator::Frames::Frames(std::int64_t batches, std::int64_t frames, std::int64_t width)
    : batch(batches),
      size(frames),
      channels(width),
      data(static_cast<std::size_t>(batches * (frames + 2) * width + kernels::kGemmColumns)) {}

std::uint16_t* Bf16Estimator::Frames::row(std::int64_t b, std::int64_t frame) {
  return data.data() + (b * (size + 2) + frame + 1) * channels;
}

Bf16Estimator::Bf16Estimator(tensor::Weights& w, const std::string& prefix, std::int64_t heads, std::int64_t dim,
                             std::int64_t inputs)
    : heads_(heads), dim_(dim), inputs_(inputs) {
  const auto norm_of = [&](const std::string& name, std::int64_t n) {
    return Norm{values(w.take(name + ".weight", {n})), values(w.take(name + ".bias", {n}))};
  };
  const auto size_of = [&](const std::string& name, std::size_t d) {
    const auto shape = w.shape_of(name);
    return d < shape.size() ? shape[d] : -1;
  };
  const auto linear = [&](const std::string& name, std::int64_t out, std::int64_t in) {
    const auto weight = w.take(name + ".weight", {out, in});
    auto made = product(weight, w.take(name + ".bias", {out}));
    w.drop(name + ".weight");
    return made;
  };
  const auto convolution = [&](const std::string& name, std::int64_t out, std::int64_t in, std::int64_t taps) {
    const auto weight = w.take(name + ".weight", {out, in, taps});
    auto made = product(by_frames(weight), w.take(name + ".bias", {out}));
    w.drop(name + ".weight");
    return made;
  };
  const auto stage_of = [&](const std::string& at, bool has_conv, bool first) {
    Stage s;
    const auto block = at + ".0.block1.block.0", res = at + ".0.res_conv";
    const auto out = size_of(block + ".weight", 0), in = size_of(block + ".weight", 1),
               time = size_of(at + ".0.mlp.1.weight", 1);
    if (out % kNormGroups != 0 || (first && in <= inputs))
      raise(Errc::checkpoint_mismatch, "{} has {} channels of {}", at, out, in);
    s.time = nn::Linear(w.take(at + ".0.mlp.1.weight", {out, time}), w.take(at + ".0.mlp.1.bias", {out}));
    if (first) {  // the other inputs are the same in every step; so is their bias
      const auto conv_w = w.take(block + ".weight", {out, in, 3}), res_w = w.take(res + ".weight", {out, in, 1});
      if (conv_w.defined() && res_w.defined()) {
        s.conv1 = product(by_frames(conv_w.narrow(1, 0, inputs)), {});
        s.res = product(by_frames(res_w.narrow(1, 0, inputs)), {});
      }
    } else {
      s.conv1 = convolution(block, out, in, 3), s.res = convolution(res, out, in, 1);
    }
    s.conv2 = convolution(at + ".0.block2.block.0", out, out, 3);
    s.norm1 = norm_of(at + ".0.block1.block.1", out), s.norm2 = norm_of(at + ".0.block2.block.1", out);
    const auto inner = heads * dim;
    for (int n = 0; w.has(fmt::format("{}.1.{}.norm1.weight", at, n)); ++n) {
      const auto t = fmt::format("{}.1.{}.", at, n);
      const auto hidden = size_of(t + "ff.net.0.proj.weight", 0);
      s.transformers.push_back({norm_of(t + "norm1", out), norm_of(t + "norm3", out),
                                product(w.stack({{t + "attn1.to_q.weight", {inner, out}},
                                                 {t + "attn1.to_k.weight", {inner, out}},
                                                 {t + "attn1.to_v.weight", {inner, out}}}),
                                        {}),
                                linear(t + "attn1.to_out.0", out, inner), linear(t + "ff.net.0.proj", hidden, out),
                                linear(t + "ff.net.2", out, hidden)});
    }
    if (!has_conv) return s;
    s.resamples = w.has(at + ".2.conv.weight");
    if (!s.resamples) {
      s.conv = convolution(at + ".2", out, out, 3);
    } else if (at.find("down") != std::string::npos) {
      s.conv = convolution(at + ".2.conv", out, out, 3);
    } else {
      const auto weight = w.take(at + ".2.conv.weight", {out, out, 4}), bias = w.take(at + ".2.conv.bias", {out});
      if (weight.defined() && bias.defined()) {
        const auto taps = weight.permute({1, 2, 0});  // [out, taps, in]
        const auto pair = [&](std::int64_t a, std::int64_t b) {
          return product(at::cat({taps.select(1, a), taps.select(1, b)}, 1), bias);
        };
        s.even = pair(3, 1), s.odd = pair(2, 0);
      }
    }
    return s;
  };
  const auto stages = [&](const std::string& kind, bool has_conv) {
    std::vector<Stage> out;
    for (int n = 0; w.has(fmt::format("{}{}.{}.0.mlp.1.weight", prefix, kind, n)); ++n)
      out.push_back(stage_of(fmt::format("{}{}.{}", prefix, kind, n), has_conv, n == 0 && kind == "down_blocks"));
    return out;
  };
  down_ = stages("down_blocks", true), mid_ = stages("mid_blocks", false), up_ = stages("up_blocks", true);
  if (down_.empty() || up_.size() != down_.size())
    raise(Errc::checkpoint_mismatch, "{}: {} down and {} up blocks", prefix, down_.size(), up_.size());
  for (const auto& s : down_) stride_ *= s.resamples ? 2 : 1;
  const auto last = size_of(prefix + "final_block.block.0.weight", 0);
  final_conv_ = convolution(prefix + "final_block.block.0", last, last, 3);
  final_norm_ = norm_of(prefix + "final_block.block.1", last);
  final_proj_ = convolution(prefix + "final_proj", inputs, last, 1);
}

/// The frame in front of x: kept for later windows, or what it was in an earlier one.
void Bf16Estimator::before(Frames& x, PastStep* past) {
  if (past == nullptr) return;
  const auto bytes = static_cast<std::size_t>(x.channels) * sizeof(std::uint16_t);
  const bool known = past->known != nullptr;
  const auto part = known ? past->take() : at::empty({x.batch, x.channels}, at::kBFloat16);
  for (std::int64_t b = 0; b < x.batch; ++b) {
    auto* kept = bits(part) + b * x.channels;
    if (known)
      std::memcpy(x.row(b, -1), kept, bytes);
    else
      std::memcpy(kept, x.row(b, past->frames - 1), bytes);
  }
  if (!known) past->made.push_back(part);
}

/// @param y  [batch, size, channels]   @param shift  [batch, channels] or null
void Bf16Estimator::normed(kernels::Team& team, const float* y, std::int64_t batch, std::int64_t size, const Norm& norm,
                           PastStep* past, const float* shift, const float* add, float* to, Frames* rounded) const {
  const auto channels = static_cast<std::int64_t>(norm.w.size());
  const bool known = past != nullptr && past->known != nullptr;
  at::Tensor part;
  if (past != nullptr) part = known ? past->take() : at::empty({batch, kNormGroups, 3}, at::kDouble);
  team.run(batch, 1, [&](std::int64_t first, std::int64_t last) {
    for (auto b = first; b < last; ++b) {
      const auto at = b * size * channels;
      kernels::Moments moments[kNormGroups];
      kernels::frames_moments(y + at, size, channels, kNormGroups, moments);
      auto* kept =
          past == nullptr ? nullptr : reinterpret_cast<kernels::Moments*>(part.data_ptr<double>()) + b * kNormGroups;
      if (known)
        for (int g = 0; g < kNormGroups; ++g) moments[g] = kernels::together(kept[g], moments[g]);
      else if (past != nullptr)
        kernels::frames_moments(y + at, past->frames, channels, kNormGroups, kept);
      kernels::frames_norm_mish(y + at, size, channels, kNormGroups, moments, norm.w.data(), norm.b.data(), kEpsilon,
                                shift == nullptr ? nullptr : shift + b * channels, add == nullptr ? nullptr : add + at,
                                to == nullptr ? nullptr : to + at, rounded == nullptr ? nullptr : rounded->row(b, 0));
    }
  });
  if (past != nullptr && !known) past->made.push_back(part);
}

void Bf16Estimator::transform(kernels::Team& team, std::vector<float>& x, std::int64_t batch, std::int64_t size,
                              const Transformer& t, PastStep* past) const {
  const auto rows = batch * size, channels = static_cast<std::int64_t>(t.norm1.w.size()), inner = heads_ * dim_,
             hidden = t.ff1.w.shape().rows;
  const auto slack = kernels::kGemmColumns;
  std::vector<std::uint16_t> in(static_cast<std::size_t>(rows * channels + slack));
  const auto norm = [&](const Norm& n) {
    team.run(rows, 64, [&](std::int64_t first, std::int64_t last) {
      kernels::frames_norm(x.data() + first * channels, last - first, channels, n.w.data(), n.b.data(), kEpsilon,
                           in.data() + first * channels);
    });
  };
  norm(t.norm1);
  const auto all = at::empty({batch, size, 3, heads_, dim_}, at::kBFloat16);
  t.qkv(team, in.data(), rows, channels, {.rounded = bits(all), .stride = 3 * inner});
  const auto qkv = all.permute({2, 0, 3, 1, 4});
  auto k = qkv[1], v = qkv[2];
  if (past != nullptr && past->known != nullptr) {
    const auto kv = past->take();
    k = at::cat({kv[0], k}, 2), v = at::cat({kv[1], v}, 2);
  } else if (past != nullptr) {
    past->made.push_back(qkv.narrow(0, 1, 2).narrow(3, 0, past->frames).contiguous());
  }
  auto seen = at::empty({rows * inner + slack}, at::kBFloat16);
  seen.narrow(0, rows * inner, slack).zero_();
  seen.narrow(0, 0, rows * inner)
      .view({batch, size, heads_, dim_})
      .copy_(at::scaled_dot_product_attention(qkv[0], k, v).transpose(1, 2));
  t.out(team, bits(seen), rows, inner, {.add = x.data(), .y = x.data(), .stride = channels});
  norm(t.norm3);
  std::vector<std::uint16_t> wide(static_cast<std::size_t>(rows * hidden + slack));
  t.ff1(team, in.data(), rows, channels, {.gelu = true, .rounded = wide.data(), .stride = hidden});
  t.ff2(team, wide.data(), rows, hidden, {.add = x.data(), .y = x.data(), .stride = channels});
}

/// @param conv, res  [batch, size, channels], added to what the first products make of the input; null: nothing
std::vector<float> Bf16Estimator::stage(kernels::Team& team, Frames& in, const Stage& s, const at::Tensor& time,
                                        PastStep* past, const float* conv, const float* res) const {
  const auto batch = in.batch, size = in.size, channels = s.conv2.w.shape().rows;
  const auto each = size * channels;
  std::vector<float> y(static_cast<std::size_t>(batch * each)), passed(y.size());
  before(in, past);
  for (std::int64_t b = 0; b < batch; ++b) {
    s.conv1(team, in.row(b, -1), size, in.channels,
            {.add = conv == nullptr ? nullptr : conv + b * each, .y = y.data() + b * each, .stride = channels});
    s.res(team, in.row(b, 0), size, in.channels,
          {.add = res == nullptr ? nullptr : res + b * each, .y = passed.data() + b * each, .stride = channels});
  }
  const auto shift = s.time(time).contiguous();
  Frames narrow(batch, size, channels);
  normed(team, y.data(), batch, size, s.norm1, past, shift.data_ptr<float>(), nullptr, nullptr, &narrow);
  before(narrow, past);
  for (std::int64_t b = 0; b < batch; ++b)
    s.conv2(team, narrow.row(b, -1), size, channels, {.y = y.data() + b * each, .stride = channels});
  std::vector<float> x(y.size());
  normed(team, y.data(), batch, size, s.norm2, past, nullptr, passed.data(), x.data(), nullptr);
  for (const auto& t : s.transformers) transform(team, x, batch, size, t, past);
  return x;
}

at::Tensor Bf16Estimator::operator()(const at::Tensor& x_in, const at::Tensor& conv, const at::Tensor& res,
                                     const at::Tensor& time, PastStep* past) const {
  auto& team = kernels::Team::of_this_thread();
  const auto batch = x_in.size(0), size = x_in.size(2);
  const auto first = x_in.transpose(1, 2).contiguous(), other = conv.contiguous(), passed = res.contiguous();
  Frames in(batch, size, inputs_);
  for (std::int64_t b = 0; b < batch; ++b)
    kernels::frames_round(first.data_ptr<float>() + b * size * inputs_, size, inputs_, in.row(b, 0), inputs_);
  std::vector<Frames> skips;
  for (std::size_t n = 0; n < down_.size(); ++n) {
    const auto& s = down_[n];
    const auto x = stage(team, in, s, time, past, n == 0 ? other.data_ptr<float>() : nullptr,
                         n == 0 ? passed.data_ptr<float>() : nullptr);
    const auto channels = s.conv2.w.shape().rows;
    auto& skip = skips.emplace_back(batch, in.size, channels);
    for (std::int64_t b = 0; b < batch; ++b)
      kernels::frames_round(x.data() + b * in.size * channels, in.size, channels, skip.row(b, 0), channels);
    before(skip, past);
    Frames out(batch, s.resamples ? (in.size + 1) / 2 : in.size, channels);
    for (std::int64_t b = 0; b < batch; ++b)
      s.conv(team, skip.row(b, -1), out.size, (s.resamples ? 2 : 1) * channels,
             {.rounded = out.row(b, 0), .stride = channels});
    if (past != nullptr && s.resamples) past->frames /= 2;
    in = std::move(out);
  }
  for (const auto& s : mid_) {
    const auto x = stage(team, in, s, time, past, nullptr, nullptr);
    Frames out(batch, in.size, s.conv2.w.shape().rows);
    for (std::int64_t b = 0; b < batch; ++b)
      kernels::frames_round(x.data() + b * in.size * out.channels, in.size, out.channels, out.row(b, 0), out.channels);
    in = std::move(out);
  }
  for (const auto& s : up_) {
    auto skip = std::move(skips.back());
    skips.pop_back();
    // What is longer than the skip by the frame that halving an odd number has made is left out.
    Frames both(batch, skip.size, in.channels + skip.channels);
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t f = 0; f < skip.size; ++f) {
        std::copy_n(in.row(b, f), in.channels, both.row(b, f));
        std::copy_n(skip.row(b, f), skip.channels, both.row(b, f) + in.channels);
      }
    const auto x = stage(team, both, s, time, past, nullptr, nullptr);
    const auto channels = s.conv2.w.shape().rows, frames = both.size;
    Frames made(batch, frames, channels);
    for (std::int64_t b = 0; b < batch; ++b)
      kernels::frames_round(x.data() + b * frames * channels, frames, channels, made.row(b, 0), channels);
    before(made, past);
    Frames out(batch, s.resamples ? 2 * frames : frames, channels);
    for (std::int64_t b = 0; b < batch; ++b) {
      if (!s.resamples) {
        s.conv(team, made.row(b, -1), frames, channels, {.rounded = out.row(b, 0), .stride = channels});
        continue;
      }
      s.even(team, made.row(b, -1), frames, channels, {.rounded = out.row(b, 0), .stride = 2 * channels});
      s.odd(team, made.row(b, 0), frames, channels, {.rounded = out.row(b, 1), .stride = 2 * channels});
    }
    if (past != nullptr && s.resamples) past->frames *= 2;
    in = std::move(out);
  }
  before(in, past);
  const auto channels = final_conv_.w.shape().rows;
  std::vector<float> y(static_cast<std::size_t>(batch * in.size * channels));
  for (std::int64_t b = 0; b < batch; ++b)
    final_conv_(team, in.row(b, -1), in.size, in.channels,
                {.y = y.data() + b * in.size * channels, .stride = channels});
  Frames last(batch, in.size, channels);
  normed(team, y.data(), batch, in.size, final_norm_, past, nullptr, nullptr, nullptr, &last);
  const auto out = at::empty({batch, in.size, inputs_});
  for (std::int64_t b = 0; b < batch; ++b)
    final_proj_(team, last.row(b, 0), in.size, channels,
                {.y = out.data_ptr<float>() + b * in.size * inputs_, .stride = inputs_});
  return out.transpose(1, 2);
}

}  // namespace parlando::tts
