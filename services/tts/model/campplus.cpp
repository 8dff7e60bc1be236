#include "services/tts/model/campplus.hpp"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "common/audio/front_end.hpp"
#include "common/tensor/torch_bridge.hpp"
#include "common/tensor/weights.hpp"

namespace parlando::tts {

CamPlus::CamPlus(checkpoint::TensorMap tensors, const std::string& source) {
  tensor::Weights w(std::move(tensors), source);
  const bool folded = w.has("head.conv1.bias");
  auto any = [&](const std::string& name) {
    return w.take(name, std::vector<std::int64_t>(w.shape_of(name).size(), -1));
  };
  auto affine = [&](const std::string& name, bool weights = true) -> Affine {
    if (folded) return {any(name + ".scale"), any(name + ".shift")};
    const auto mean = any(name + ".running_mean"), var = any(name + ".running_var");
    if (!mean.defined() || !var.defined()) return {};
    auto scale = at::rsqrt(var.to(at::kDouble) + 1e-5);
    if (weights) {
      const auto gain = any(name + ".weight");
      if (gain.defined()) scale = scale * gain;
    }
    auto shift = -mean * scale;
    if (weights) {
      const auto bias = any(name + ".bias");
      if (bias.defined()) shift = shift + bias;
    }
    return {scale.to(at::kFloat), shift.to(at::kFloat)};
  };
  // A convolution without bias and the batch norm behind it become one convolution with bias.
  auto conv = [&](const std::string& name, const std::string& norm, bool bias = false) -> Conv {
    Conv c{any(name + ".weight"), {}};
    if (folded || bias) c.b = any(name + ".bias");
    if (!folded && !norm.empty()) {
      const auto a = affine(norm);
      if (c.w.defined() && a.scale.defined()) {
        auto shape = std::vector<std::int64_t>(static_cast<std::size_t>(c.w.dim()), 1);
        shape[0] = -1;
        c.w = c.w * a.scale.view(shape);
        c.b = a.shift;
      }
    }
    return c;
  };
  head1_ = conv("head.conv1", "head.bn1");
  for (const char* layer : {"head.layer1.", "head.layer2."})
    for (int n = 0; n < 2; ++n) {
      const auto at = fmt::format("{}{}.", layer, n);
      Residual r{conv(at + "conv1", at + "bn1"), conv(at + "conv2", at + "bn2"), {}};
      if (n == 0) r.shortcut = conv(at + "shortcut.0", at + "shortcut.1");
      residuals_.push_back(std::move(r));
    }
  head2_ = conv("head.conv2", "head.bn2");
  tdnn_ = conv("xvector.tdnn.linear", "xvector.tdnn.nonlinear.batchnorm");
  for (int b = 1; b <= 3; ++b) {
    Stage stage;
    for (int n = 1; w.has(fmt::format("xvector.block{}.tdnnd{}.linear1.weight", b, n)); ++n) {
      const auto at = fmt::format("xvector.block{}.tdnnd{}.", b, n);
      Dense d;
      d.norm = affine(folded ? at + "nonlinear1" : at + "nonlinear1.batchnorm");
      d.linear1 = conv(at + "linear1", at + "nonlinear2.batchnorm");
      d.local = conv(at + "cam_layer.linear_local", "");
      d.context1 = conv(at + "cam_layer.linear1", "", true), d.context2 = conv(at + "cam_layer.linear2", "", true);
      d.dilation = b == 1 ? 1 : 2;
      stage.layers.push_back(std::move(d));
    }
    if (stage.layers.empty()) raise(Errc::checkpoint_mismatch, "{}: 'xvector.block{}' has no layers", source, b);
    const auto t = fmt::format("xvector.transit{}.", b);
    stage.norm = affine(folded ? t + "nonlinear" : t + "nonlinear.batchnorm");
    stage.transit = conv(t + "linear", "");
    stages_.push_back(std::move(stage));
  }
  if (!folded) out_ = affine("xvector.out_nonlinear.batchnorm");  // an export folds it into the last transit
  dense_ = conv("xvector.dense.linear", "");
  last_ = affine(folded ? "xvector.dense.nonlinear" : "xvector.dense.nonlinear.batchnorm", false);
  w.finish();
}

at::Tensor CamPlus::embed(const at::Tensor& fbank, const Trace& trace) const {
  const c10::InferenceMode guard;
  auto apply = [](const at::Tensor& x, const Affine& a) {
    return x * a.scale.view({1, -1, 1}) + a.shift.view({1, -1, 1});
  };
  auto conv2d = [](const at::Tensor& x, const Conv& c, std::int64_t stride, std::int64_t pad) {
    return at::conv2d(x, c.w, c.b, {stride, 1}, {pad, pad});
  };
  auto x = at::relu(conv2d(fbank.transpose(1, 2).unsqueeze(1), head1_, 1, 1));
  for (const auto& r : residuals_) {
    const std::int64_t stride = r.shortcut.w.defined() ? 2 : 1;
    const auto y = conv2d(at::relu(conv2d(x, r.conv1, stride, 1)), r.conv2, 1, 1);
    x = at::relu(y + (r.shortcut.w.defined() ? conv2d(x, r.shortcut, 2, 0) : x));
  }
  x = at::relu(conv2d(x, head2_, 2, 1)).flatten(1, 2);
  if (trace) trace("head", x);
  x = at::relu(at::conv1d(x, tdnn_.w, tdnn_.b, 2, 2));
  if (trace) trace("tdnn", x);
  int n = 1;
  for (const auto& stage : stages_) {
    for (const auto& d : stage.layers) {
      const auto u = at::relu(at::conv1d(at::relu(apply(x, d.norm)), d.linear1.w, d.linear1.b));
      const auto local = at::conv1d(u, d.local.w, d.local.b, 1, d.dilation, d.dilation);
      const auto segment =
          at::avg_pool1d(u, {100}, {100}, {0}, true).repeat_interleave(100, -1).narrow(2, 0, u.size(2));
      const auto context = u.mean(-1, true) + segment;
      const auto gate = at::sigmoid(
          at::conv1d(at::relu(at::conv1d(context, d.context1.w, d.context1.b)), d.context2.w, d.context2.b));
      x = at::cat({x, local * gate}, 1);
    }
    if (trace) trace(fmt::format("block{}", n), x);
    x = at::conv1d(at::relu(apply(x, stage.norm)), stage.transit.w, stage.transit.b);
    if (trace) trace(fmt::format("transit{}", n++), x);
  }
  x = at::relu(out_.scale.defined() ? apply(x, out_) : x);
  const auto stats = at::cat({x.mean(-1), x.std(-1, true)}, 1);
  if (trace) trace("stats", stats);
  return apply(at::conv1d(stats.unsqueeze(-1), dense_.w, dense_.b), last_).squeeze(-1);
}

Result<at::Tensor> CamPlus::operator()(std::span<const float> wave) const try {
  const c10::InferenceMode guard;
  audio::Fbank fbank(audio::FbankWindow::povey, 1.0f);
  const auto frames = fbank(wave);
  if (frames.frames < 4)
    return fail(Errc::invalid_argument,
                "a voice prompt of {} samples at 16 kHz is too short, at least 880 (0.05 s) are needed", wave.size());
  const auto x = tensor::from_values(frames.values, {1, frames.frames, frames.bins});
  return embed(x - x.mean(1, true));
} catch (const std::exception& e) {
  return fail(Errc::internal, "the speaker encoder failed: {}", e.what());
}

}  // namespace parlando::tts
