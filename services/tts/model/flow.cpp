#include "services/tts/model/flow.hpp"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "common/base/codes.hpp"
#include "common/tensor/weights.hpp"
#include "kernels/rows/rows.hpp"

namespace parlando::tts {

namespace {
constexpr std::int64_t kMomentNumbers = 3;
static_assert(sizeof(kernels::Moments) == kMomentNumbers * sizeof(double));

/// A convolution of three frames at every other one. @param before  the frame in front of x, or undefined
at::Tensor halved(const at::Tensor& x, const at::Tensor& before, const at::Tensor& w, const at::Tensor& b) {
  if (!before.defined()) return at::conv1d(x, w, b, 2, 1);
  return at::conv1d(at::constant_pad_nd(at::cat({before, x}, 2), {0, 1}), w, b, 2);
}

/// Its counterpart: two frames for one.
at::Tensor doubled(const at::Tensor& x, const at::Tensor& before, const at::Tensor& w, const at::Tensor& b) {
  if (!before.defined()) return at::conv_transpose1d(x, w, b, 2, 1);
  return at::conv_transpose1d(at::cat({before, x}, 2), w, b, 2, 1).narrow(2, 2, 2 * x.size(2));
}
}  // namespace

std::int64_t mel_frames(std::int64_t tokens, double rate) {
  return static_cast<std::int64_t>(static_cast<double>(tokens) / rate * 22050 / 256);
}

Schedule flow_schedule(int steps, ScheduleType type) {
  const auto dtype = type == ScheduleType::bf16 ? at::kBFloat16 : at::kFloat;
  const auto span = 1 - at::cos(at::linspace(0, 1, steps + 1, at::TensorOptions(dtype)) * 0.5 * M_PI);
  auto value = [](const at::Tensor& t) { return t.to(at::kFloat).item<float>(); };
  Schedule out;
  for (int i = 0; i <= steps; ++i) out.span.push_back(value(span[i]));
  auto t = span[0], dt = span[1] - span[0];
  for (int k = 1; k <= steps; ++k) {
    out.t.push_back(value(t)), out.dt.push_back(value(dt));
    t = t + dt;
    if (k < steps) dt = span[k + 1] - t;
  }
  return out;
}

at::Tensor Flow::norm(const at::Tensor& x, const Norm& n) { return at::layer_norm(x, {x.size(-1)}, n.w, n.b, 1e-5); }

Flow::Flow(checkpoint::TensorMap tensors, const nlohmann::json& config, const std::string& source,
           at::ScalarType dtype) {
  tensor::Weights w(std::move(tensors), source);
  const auto& flow = config.at("flow");
  rate_ = flow.at("input_frame_rate").get<double>();
  if (!(rate_ > 1 && rate_ < 1000)) raise(Errc::bad_format, "{}: input_frame_rate is {}", source, rate_);
  cfg_rate_ = flow.at("cfm").at("inference_cfg_rate").get<double>();
  steps_ = flow.at("cfm").value("n_timesteps", kFlowSteps);
  if (steps_ < 1 || steps_ > 100) raise(Errc::bad_format, "{}: cfm.n_timesteps is {}, expected 1…100", source, steps_);
  encoder_heads_ = flow.at("encoder").at("attention_heads").get<std::int64_t>();
  heads_ = flow.at("estimator").at("num_heads").get<std::int64_t>();
  dim_ = flow.at("estimator").at("attention_head_dim").get<std::int64_t>();
  auto size = [&](const std::string& name, int d) {
    const auto s = w.shape_of(name);
    return static_cast<int>(s.size()) > d ? s[static_cast<std::size_t>(d)] : -1;
  };
  auto linear = [&](const std::string& name, std::vector<std::int64_t> shape, bool bias = true) {
    const auto rows = shape[0];
    const auto weight = w.take(name + ".weight", std::move(shape));
    nn::Linear out(weight, bias ? w.take(name + ".bias", {rows}) : at::Tensor());
    w.drop(name + ".weight");
    return out;
  };
  auto convolution = [&](const std::string& name, std::vector<std::int64_t> shape) {
    const auto rows = shape[0];
    const auto weight = w.take(name + ".weight", std::move(shape));
    nn::Convolution out(weight, w.take(name + ".bias", {rows}));
    w.drop(name + ".weight");
    return out;
  };
  auto norm_of = [&](const std::string& name, std::int64_t n) {
    return Norm{w.take(name + ".weight", {n}), w.take(name + ".bias", {n})};
  };

  vocabulary_ = size("input_embedding.weight", 0);
  const auto inputs = size("input_embedding.weight", 1);
  single_ = rate_ < 40 || (flow.value("single_codebook", false));
  embedding_ = w.take("input_embedding.weight", {-1, -1});
  width_ = size("encoder.embed.out.0.weight", 0);
  embed_ = linear("encoder.embed.out.0", {width_, inputs});
  embed_norm_ = norm_of("encoder.embed.out.1", width_);
  const auto d = width_ / encoder_heads_;
  for (int l = 0; l == 0 || w.has(fmt::format("encoder.encoders.{}.norm_mha.weight", l)); ++l) {
    const auto at = fmt::format("encoder.encoders.{}.", l), a = at + "self_attn.";
    EncoderLayer e;
    using Part = tensor::Weights::Part;
    const auto qkv =
        w.stack({Part{a + "linear_q.weight", {width_, width_}}, Part{a + "linear_k.weight", {width_, width_}},
                 Part{a + "linear_v.weight", {width_, width_}}});
    e.qkv = {qkv, w.stack({Part{a + "linear_q.bias", {width_}}, Part{a + "linear_k.bias", {width_}},
                           Part{a + "linear_v.bias", {width_}}})};
    e.out = linear(a + "linear_out", {width_, width_});
    e.pos = {w.take(a + "linear_pos.weight", {width_, width_}), {}};
    e.u = w.take(a + "pos_bias_u", {encoder_heads_, d}), e.v = w.take(a + "pos_bias_v", {encoder_heads_, d});
    e.norm_mha = norm_of(at + "norm_mha", width_), e.norm_ff = norm_of(at + "norm_ff", width_);
    const auto hidden = size(at + "feed_forward.w_1.weight", 0);
    e.w1 = linear(at + "feed_forward.w_1", {hidden, width_}), e.w2 = linear(at + "feed_forward.w_2", {width_, hidden});
    encoder_.push_back(std::move(e));
  }
  after_norm_ = norm_of("encoder.after_norm", width_);
  encoder_proj_ = linear("encoder_proj", {kMelBins, width_});
  for (int n = 0; n < 4; ++n) {
    regulator_conv_.push_back(convolution(fmt::format("length_regulator.model.{}", 3 * n), {kMelBins, kMelBins, 3}));
    regulator_norm_.push_back(norm_of(fmt::format("length_regulator.model.{}", 3 * n + 1), kMelBins));
  }
  regulator_conv_.push_back(convolution("length_regulator.model.12", {kMelBins, kMelBins, 1}));
  speaker_ = linear("spk_embed_affine_layer", {kMelBins, config.value("spk_embed_dim", std::int64_t{192})});

  const std::string e = "decoder.estimator.";
  const auto time = size(e + "time_mlp.linear_1.weight", 0);
  time_inputs_ = size(e + "time_mlp.linear_1.weight", 1);
  time1_ = linear(e + "time_mlp.linear_1", {time, time_inputs_}),
  time2_ = linear(e + "time_mlp.linear_2", {time, time});
  const auto fix = [&](const std::string& at) {
    const auto conv = at + ".0.block1.block.0", res = at + ".0.res_conv";
    const auto out = size(conv + ".weight", 0), in = size(conv + ".weight", 1);
    const auto conv_w = w.take(conv + ".weight", {out, in, 3}), res_w = w.take(res + ".weight", {out, in, 1}),
               conv_b = w.take(conv + ".bias", {out}), res_b = w.take(res + ".bias", {out});
    if (!conv_w.defined() || !res_w.defined()) return;
    if (in <= kMelBins)
      raise(Errc::checkpoint_mismatch, "{}: {} reads {} channels, expected more than {}", source, conv, in, kMelBins);
    fixed_conv_ = {conv_w.narrow(1, kMelBins, in - kMelBins), conv_b};
    fixed_res_ = {res_w.narrow(1, kMelBins, in - kMelBins), res_b};
  };
  if (dtype == at::kBFloat16) {
    bf16_ = std::make_shared<Bf16Estimator>(w, e, heads_, dim_, kMelBins);
    stride_ = bf16_->stride();
    fix(e + "down_blocks.0");
    w.finish();
    return;
  }
  auto block_of = [&](const std::string& at, std::int64_t in, std::int64_t out) {
    if (out > 0 && out % kNormGroups != 0)
      raise(Errc::checkpoint_mismatch, "{}: {} has {} channels, expected a multiple of {}", source, at, out,
            kNormGroups);
    return Block{convolution(at + ".block.0", {out, in, 3}), norm_of(at + ".block.1", out)};
  };
  auto stage_of = [&](const std::string& at, bool has_conv, bool transposed, bool first) {
    Stage s;
    const auto out = size(at + ".0.block1.block.0.weight", 0), in = size(at + ".0.block1.block.0.weight", 1);
    s.resnet.mlp = linear(at + ".0.mlp.1", {out, time}), s.resnet.block2 = block_of(at + ".0.block2", out, out);
    if (first) {
      // A convolution of channels side by side is the sum of those of its parts: what is the same in every step of the
      // solver is convolved once.
      fix(at);
      const auto conv_w = w.take(at + ".0.block1.block.0.weight", {out, in, 3}),
                 res_w = w.take(at + ".0.res_conv.weight", {out, in, 1});
      if (conv_w.defined() && res_w.defined()) {
        s.resnet.block1 = {{conv_w.narrow(1, 0, kMelBins), {}}, norm_of(at + ".0.block1.block.1", out)};
        s.resnet.res = {res_w.narrow(1, 0, kMelBins), {}};
      }
    } else {
      s.resnet.block1 = block_of(at + ".0.block1", in, out),
      s.resnet.res = convolution(at + ".0.res_conv", {out, in, 1});
    }
    const auto inner = heads_ * dim_;
    for (int n = 0; w.has(fmt::format("{}.1.{}.norm1.weight", at, n)); ++n) {
      const auto t = fmt::format("{}.1.{}.", at, n);
      Transformer x;
      x.norm1 = norm_of(t + "norm1", out), x.norm3 = norm_of(t + "norm3", out);
      x.qkv = {w.stack({{t + "attn1.to_q.weight", {inner, out}},
                        {t + "attn1.to_k.weight", {inner, out}},
                        {t + "attn1.to_v.weight", {inner, out}}}),
               {}};
      x.out = linear(t + "attn1.to_out.0", {out, inner});
      const auto hidden = size(t + "ff.net.0.proj.weight", 0);
      x.ff1 = linear(t + "ff.net.0.proj", {hidden, out}), x.ff2 = linear(t + "ff.net.2", {out, hidden});
      s.transformers.push_back(std::move(x));
    }
    if (has_conv) {
      if (w.has(at + ".2.conv.weight"))
        s.resample = {w.take(at + ".2.conv.weight", {out, out, transposed ? 4 : 3}),
                      w.take(at + ".2.conv.bias", {out})};
      else
        s.conv = convolution(at + ".2", {out, out, 3});
    }
    return s;
  };
  auto stages = [&](const std::string& kind, bool has_conv, bool transposed) {
    std::vector<Stage> out;
    for (int n = 0; w.has(fmt::format("{}{}.{}.0.mlp.1.weight", e, kind, n)); ++n)
      out.push_back(
          stage_of(fmt::format("{}{}.{}", e, kind, n), has_conv, transposed, n == 0 && has_conv && !transposed));
    return out;
  };
  down_ = stages("down_blocks", true, false), mid_ = stages("mid_blocks", false, false),
  up_ = stages("up_blocks", true, true);
  if (down_.empty() || up_.size() != down_.size())
    raise(Errc::checkpoint_mismatch, "{}: {} down and {} up blocks", source, down_.size(), up_.size());
  for (const auto& s : down_) stride_ *= s.resample.w.defined() ? 2 : 1;
  const auto last = size(e + "final_block.block.0.weight", 0);
  final_block_ = block_of(e + "final_block", last, last);
  final_proj_ = convolution(e + "final_proj", {kMelBins, last, 1});
  w.finish();
}

at::Tensor Flow::encode(const at::Tensor& tokens, const Trace& trace) const {
  const c10::InferenceMode guard;
  const auto T = tokens.size(0), d = width_ / encoder_heads_;
  auto x = at::embedding(embedding_, tokens.clamp_min(0)).unsqueeze(0);
  x = norm(embed_(x), embed_norm_) * std::sqrt(static_cast<double>(width_));
  if (trace) trace("embed", x);
  // Relative positions T−1 … −(T−1): sine at even, cosine at odd columns.
  const auto r = at::arange(T - 1, -T, -1, at::kFloat).unsqueeze(1);
  const auto omega = at::exp(at::arange(0, width_, 2, at::kFloat) *
                             static_cast<float>(-std::log(10000.0) / static_cast<double>(width_)));
  const auto table = at::stack({(r * omega).sin(), (r * omega).cos()}, 2).view({2 * T - 1, width_});
  for (std::size_t l = 0; l < encoder_.size(); ++l) {
    const auto& e = encoder_[l];
    const auto qkv = e.qkv(norm(x, e.norm_mha)).view({T, 3, encoder_heads_, d});
    const auto q = qkv.select(1, 0), k = qkv.select(1, 1).permute({1, 2, 0}), v = qkv.select(1, 2).transpose(0, 1);
    const auto p = e.pos(table).view({2 * T - 1, encoder_heads_, d}).permute({1, 2, 0});
    const auto plain = at::matmul((q + e.u).transpose(0, 1), k);
    // Column of i − j in a table that runs downwards from T−1 is T−1−i+j: row i is the slice that starts at T−1−i.
    const auto all = at::matmul((q + e.v).transpose(0, 1), p).contiguous();
    const auto shifted =
        all.as_strided({encoder_heads_, T, T}, {T * (2 * T - 1), 2 * T - 2, 1}, all.storage_offset() + T - 1);
    const auto weights = at::softmax((plain + shifted) / std::sqrt(static_cast<double>(d)), -1);
    x = x + e.out(at::matmul(weights, v).transpose(0, 1).reshape({1, T, width_}));
    x = x + e.w2(at::silu(e.w1(norm(x, e.norm_ff))));
    if (trace) trace(fmt::format("layer{}", l), x);
  }
  x = norm(x, after_norm_);
  if (trace) trace("encoder", x);
  return encoder_proj_(x)[0].to(at::kFloat);
}

at::Tensor Flow::stretch(const at::Tensor& h, std::int64_t frames) {
  const c10::InferenceMode guard;
  if (frames <= 0 || h.size(0) == 0) return at::zeros({1, kMelBins, std::max<std::int64_t>(0, frames)});
  return at::upsample_linear1d(h.t().unsqueeze(0), {frames}, false);
}

at::Tensor Flow::stretch_v1(const at::Tensor& h, std::int64_t frames) const {
  const auto tokens = h.size(0);
  if (tokens <= 40) return stretch(h, frames);
  const auto edge = static_cast<std::int64_t>(20 / rate_ * 22050 / 256);
  return at::cat({stretch(h.narrow(0, 0, 20), edge), stretch(h.narrow(0, 20, tokens - 40), frames - 2 * edge),
                  stretch(h.narrow(0, tokens - 20, 20), edge)},
                 2);
}

at::Tensor Flow::regulate(const at::Tensor& stretched) const {
  const c10::InferenceMode guard;
  auto x = stretched;
  for (std::size_t n = 0; n < 4; ++n) x = activated(regulator_conv_[n](x), 1, regulator_norm_[n]);
  return regulator_conv_[4](x).to(at::kFloat);
}

at::Tensor Flow::speaker(const at::Tensor& embedding) const {
  const c10::InferenceMode guard;
  const auto e = embedding / embedding.norm(2, 1, true).clamp_min(1e-12);
  return speaker_(e).to(at::kFloat);
}

at::Tensor Flow::activated(const at::Tensor& x, std::int64_t groups, const Norm& n, PastStep* past) {
  const auto in = x.contiguous(), w = n.w.contiguous(), b = n.b.contiguous();
  auto out = at::empty_like(in);
  const auto each = in.size(1) * in.size(2);
  const bool known = past != nullptr && past->known != nullptr;
  at::Tensor moments;  // [batch, groups, the three numbers]
  if (past != nullptr) moments = known ? past->take() : at::empty({in.size(0), groups, kMomentNumbers}, at::kDouble);
  for (std::int64_t k = 0; k < in.size(0); ++k) {
    const auto* from = in.data_ptr<float>() + k * each;
    auto* before = past == nullptr ? nullptr : reinterpret_cast<kernels::Moments*>(moments[k].data_ptr<double>());
    if (past != nullptr && !known) kernels::group_moments(from, in.size(1), in.size(2), past->frames, groups, before);
    kernels::group_norm_mish(from, in.size(1), in.size(2), groups, w.data_ptr<float>(), b.data_ptr<float>(), 1e-5f,
                             out.data_ptr<float>() + k * each, known ? before : nullptr);
  }
  if (past != nullptr && !known) past->made.push_back(moments);
  return out;
}

/// The frame in front of x, where it is not computed again; undefined: x begins with the window.
at::Tensor Flow::before(const at::Tensor& x, PastStep* past) {
  if (past == nullptr) return {};
  if (past->known != nullptr) return past->take();
  past->made.push_back(x.narrow(2, past->frames - 1, 1).clone());
  return {};
}

at::Tensor Flow::block(const at::Tensor& x, const Block& b, PastStep* past) const {
  return activated(b.conv(x, before(x, past)), kNormGroups, b.norm, past);
}

/// @param qkv  [3, batch, heads, frames, dim]
at::Tensor Flow::attended(const at::Tensor& qkv, PastStep* past) const {
  auto k = qkv[1], v = qkv[2];
  if (past != nullptr && past->known != nullptr) {
    const auto kv = past->take().to(qkv.scalar_type());
    k = at::cat({kv[0], k}, 2), v = at::cat({kv[1], v}, 2);
  } else if (past != nullptr) {
    past->made.push_back(qkv.narrow(0, 1, 2).narrow(3, 0, past->frames).to(at::kBFloat16).contiguous());
  }
  return at::scaled_dot_product_attention(qkv[0], k, v);
}

at::Tensor Flow::stage(at::Tensor x, const Stage& s, const at::Tensor& time, const Trace& trace,
                       const std::string& name, PastStep* past, const Fixed* inputs) const {
  const auto& r = s.resnet;
  auto narrow = r.block1.conv(x, before(x, past)), passed = r.res(x);
  if (inputs != nullptr) narrow = narrow + inputs->conv, passed = passed + inputs->res;
  x = block(activated(narrow, kNormGroups, r.block1.norm, past) + r.mlp(time).unsqueeze(2), r.block2, past) + passed;
  if (trace) trace(name + "_resnet", x);
  if (s.transformers.empty()) return x;
  x = x.transpose(1, 2).contiguous();
  const auto B = x.size(0), F = x.size(1);
  int n = 0;
  for (const auto& t : s.transformers) {
    const auto qkv = t.qkv(norm(x, t.norm1)).view({B, F, 3, heads_, dim_}).permute({2, 0, 3, 1, 4});
    x = x + t.out(attended(qkv, past).transpose(1, 2).reshape({B, F, heads_ * dim_}));
    x = x + t.ff2(at::gelu(t.ff1(norm(x, t.norm3))));
    if (trace) trace(fmt::format("{}_tf{}", name, n++), x);
  }
  return x.transpose(1, 2);
}

at::Tensor Flow::estimate(const at::Tensor& x_in, const at::Tensor& mu, const at::Tensor& t, const at::Tensor& spk,
                          const at::Tensor& cond, const Trace& trace) const {
  const c10::InferenceMode guard;
  return velocity(x_in, fixed(fixed_inputs(mu, spk, cond)), t, trace);
}

at::Tensor Flow::fixed_inputs(const at::Tensor& mu, const at::Tensor& spk, const at::Tensor& cond) const {
  return at::cat({mu, spk.unsqueeze(2).expand({-1, -1, mu.size(2)}), cond}, 1);
}

Flow::Fixed Flow::fixed(const at::Tensor& inputs, const at::Tensor& before) const {
  const auto conv = fixed_conv_(inputs, before), res = fixed_res_(inputs);
  if (!bf16_) return {conv, res};
  return {conv.transpose(1, 2).contiguous(), res.transpose(1, 2).contiguous()};
}

at::Tensor Flow::velocity(const at::Tensor& x_in, const Fixed& inputs, const at::Tensor& t, const Trace& trace,
                          PastStep* past) const {
  const auto half = time_inputs_ / 2;
  const auto f =
      at::exp(at::arange(half, at::kFloat) * static_cast<float>(-std::log(10000.0) / static_cast<double>(half - 1)));
  const auto angle = 1000.0 * t.to(at::kFloat).unsqueeze(1) * f.unsqueeze(0);
  const auto embedded = at::cat({angle.sin(), angle.cos()}, 1);
  const auto raw = time2_(at::silu(time1_(embedded)));
  if (trace) trace("time_mlp", raw);
  const auto time = at::mish(raw);  // every resnet starts with the same activation of it
  if (bf16_) return (*bf16_)(x_in, inputs.conv, inputs.res, time, past);
  auto x = x_in;
  std::vector<at::Tensor> skips;
  int n = 0;
  for (const auto& s : down_) {
    x = stage(x, s, time, trace, fmt::format("down{}", n), past, n == 0 ? &inputs : nullptr);
    skips.push_back(x);
    const auto left = before(x, past);
    x = s.resample.w.defined() ? halved(x, left, s.resample.w, s.resample.b) : s.conv(x, left);
    if (past != nullptr && s.resample.w.defined()) past->frames /= 2;
    if (trace) trace(fmt::format("down{}_out", n), x);
    ++n;
  }
  for (std::size_t m = 0; m < mid_.size(); ++m) x = stage(x, mid_[m], time, trace, fmt::format("mid{}", m), past);
  if (trace) trace("mid_last", x.transpose(1, 2));
  n = 0;
  for (const auto& s : up_) {
    const auto skip = skips.back();
    skips.pop_back();
    x = stage(at::cat({x.narrow(2, 0, skip.size(2)), skip}, 1), s, time, trace, fmt::format("up{}", n), past);
    const auto left = before(x, past);
    x = s.resample.w.defined() ? doubled(x, left, s.resample.w, s.resample.b) : s.conv(x, left);
    if (past != nullptr && s.resample.w.defined()) past->frames *= 2;
    if (trace) trace(fmt::format("up{}_out", n), x);
    ++n;
  }
  x = block(x, final_block_, past);
  if (trace) trace("final_block", x);
  return final_proj_(x).to(at::kFloat);
}

at::Tensor Flow::solve(const at::Tensor& z, const at::Tensor& mu, const at::Tensor& spk, const at::Tensor& cond,
                       const Trace& trace) const {
  return integrate(z, mu, spk, cond, trace, nullptr, nullptr);
}

at::Tensor Flow::solve(const at::Tensor& z, const at::Tensor& mu, const at::Tensor& spk, const at::Tensor& cond,
                       std::int64_t frames, FlowPast& past) const {
  if (frames < stride_ || frames % stride_ != 0 || frames > z.size(2))
    raise(Errc::invalid_argument, "what stands before a window has {} frames, expected a multiple of {}", frames,
          stride_);
  past = {};
  past.frames = frames;
  return integrate(z, mu, spk, cond, {}, &past, nullptr);
}

at::Tensor Flow::solve_behind(const FlowPast& past, const at::Tensor& z, const at::Tensor& mu, const at::Tensor& spk,
                              const at::Tensor& cond) const {
  return integrate(z, mu, spk, cond, {}, nullptr, &past);
}

at::Tensor Flow::integrate(const at::Tensor& z, const at::Tensor& mu, const at::Tensor& spk, const at::Tensor& cond,
                           const Trace& trace, FlowPast* made, const FlowPast* known) const {
  const c10::InferenceMode guard;
  const auto schedule = flow_schedule(steps_, ScheduleType::fp32);
  const bool guided = cfg_rate_ > 0;
  auto pair = [&](const at::Tensor& a) { return guided ? at::cat({a, at::zeros_like(a)}) : a; };
  const auto same = fixed_inputs(pair(mu), pair(spk), pair(cond));
  const auto inputs = fixed(same, known != nullptr ? known->fixed : at::Tensor());
  if (made != nullptr) made->fixed = same.narrow(2, made->frames - 1, 1).clone();
  auto x = z;
  for (int k = 0; k < steps_; ++k) {
    if (trace) trace("x_step", x);
    const auto t = at::full({guided ? 2 : 1}, schedule.t[static_cast<std::size_t>(k)]);
    PastStep past;
    if (made != nullptr) past.frames = made->frames;
    if (known != nullptr) past.frames = known->frames, past.known = &known->steps[static_cast<std::size_t>(k)];
    auto v =
        velocity(guided ? at::cat({x, x}) : x, inputs, t, {}, made != nullptr || known != nullptr ? &past : nullptr);
    if (made != nullptr) made->steps.push_back(std::move(past.made));
    if (trace && k == 0) trace("v_first", v);
    if (guided) v = (1 + cfg_rate_) * v.narrow(0, 0, 1) - cfg_rate_ * v.narrow(0, 1, 1);
    x = x + schedule.dt[static_cast<std::size_t>(k)] * v;
  }
  return x;
}

at::Tensor Flow::mel(const at::Tensor& tokens, const at::Tensor& prompt_tokens, const at::Tensor& prompt_mel,
                     const at::Tensor& embedding, const at::Tensor& z) const {
  const c10::InferenceMode guard;
  const auto P = prompt_tokens.size(0), T = tokens.size(0), F1 = prompt_mel.size(1), F2 = frames_of(T);
  const auto h = encode(at::cat({prompt_tokens, tokens}));
  const auto mu = regulate(at::cat({stretch(h.narrow(0, 0, P), F1), stretch(h.narrow(0, P, T), F2)}, 2));
  auto cond = at::zeros_like(mu);
  cond.narrow(2, 0, F1).copy_(prompt_mel.transpose(1, 2));
  return solve(z, mu, speaker(embedding), cond).narrow(2, F1, F2);
}

std::vector<std::int64_t> Flow::usable(const std::vector<std::int32_t>& codes, std::int64_t* dropped) const {
  std::vector<std::int64_t> out;
  for (const auto code : codes) {
    const std::int64_t token = single_ ? code - kLinguisticCodes : code;
    if (token >= 0 && token < vocabulary_)
      out.push_back(token);
    else if (dropped != nullptr && !(single_ && code >= 0 && code < kLinguisticCodes))
      ++*dropped;
  }
  return out;
}

}  // namespace parlando::tts
