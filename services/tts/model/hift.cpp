#include "services/tts/model/hift.hpp"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>

#include "common/tensor/torch_bridge.hpp"
#include "common/tensor/weights.hpp"
#include "kernels/team/team.hpp"

namespace parlando::tts {

namespace {
constexpr std::int64_t kSamplesPerFrame = 256, kFft = 16, kFftHop = 4, kBins = kFft / 2 + 1;
constexpr std::int64_t kTapsMax = 64, kDilationMax = 64;  // a checkpoint that asks for more is damaged
constexpr std::int64_t kPositionsPerTask = 512;           // of a convolution, for a thread

std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 30, x *= 0xbf58476d1ce4e5b9ull;
  x ^= x >> 27, x *= 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}
double unit(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter) {
  const auto x = mix(mix(seed + 0x9e3779b97f4a7c15ull * (stream + 1)) + 0x9e3779b97f4a7c15ull * (counter + 1));
  return (static_cast<double>(x >> 11) + 0.5) * 0x1.0p-53;
}
}  // namespace

void fill_normal(std::uint64_t seed, std::uint64_t stream, std::int64_t first, std::span<float> out) {
  // Two neighbours, the first at an even place, share what they are made of.
  for (std::size_t i = 0; i < out.size();) {
    const auto at = static_cast<std::uint64_t>(first) + i;
    const double radius = std::sqrt(-2.0 * std::log(unit(seed, stream, at & ~1ull))),
                 angle = 2.0 * std::numbers::pi * unit(seed, stream, at | 1ull);
    if (at % 2 == 0) out[i++] = static_cast<float>(radius * std::cos(angle));
    if (i < out.size()) out[i++] = static_cast<float>(radius * std::sin(angle));
  }
}

std::array<float, kHarmonics> SourceNoise::phase() const {
  std::array<float, kHarmonics> out{};
  for (int h = 1; h < kHarmonics; ++h)
    out[h] = static_cast<float>((2.0 * unit(seed_, 99, static_cast<std::uint64_t>(h)) - 1.0) * std::numbers::pi);
  return out;
}

at::Tensor SourceNoise::noise(std::int64_t first, std::int64_t samples) const {
  auto out = at::empty({kHarmonics, samples});
  for (int h = 0; h < kHarmonics; ++h)
    fill_normal(seed_, 100 + static_cast<std::uint64_t>(h), first,
                {out.data_ptr<float>() + h * samples, static_cast<std::size_t>(samples)});
  return out;
}

Hift::Hift(checkpoint::TensorMap tensors, const nlohmann::json& config, const std::string& source) {
  bool prefixed = !tensors.empty();
  for (const auto& [name, tensor] : tensors) prefixed = prefixed && name.starts_with("generator.");
  if (prefixed) {
    checkpoint::TensorMap plain;
    for (auto& [name, tensor] : tensors) plain.emplace(name.substr(10), std::move(tensor));
    tensors = std::move(plain);
  }
  tensor::Weights w(std::move(tensors), source);
  const auto& h = config.at("hift");
  alpha_ = h.at("nsf_alpha").get<double>(), sigma_ = h.at("nsf_sigma").get<double>(),
  voiced_threshold_ = h.at("nsf_voiced_threshold").get<float>();
  slope_ = h.at("lrelu_slope").get<double>(), limit_ = h.at("audio_limit").get<double>(),
  sample_rate_ = h.at("sampling_rate").get<double>();
  rates_ = h.at("upsample_rates").get<std::vector<std::int64_t>>();
  kernels_ = h.at("resblock_kernel_sizes").get<std::vector<std::int64_t>>();
  const auto dilations = h.at("resblock_dilation_sizes").get<std::vector<std::vector<std::int64_t>>>();
  const auto source_kernels = h.at("source_resblock_kernel_sizes").get<std::vector<std::int64_t>>();
  const auto source_dilations = h.at("source_resblock_dilation_sizes").get<std::vector<std::vector<std::int64_t>>>();
  std::int64_t product = kFftHop;
  for (const auto r : rates_) product *= r;
  if (product != kSamplesPerFrame || h.at("istft_params").at("n_fft") != kFft ||
      h.at("istft_params").at("hop_len") != kFftHop || h.at("nb_harmonics") != kHarmonics - 1)
    raise(Errc::unsupported, "{}: {} samples per frame or another inverse STFT than 16/4 is not supported", source,
          product);

  auto plain = [&](const std::string& name, std::int64_t bias) {
    return Conv{w.take(name + ".weight", std::vector<std::int64_t>(w.shape_of(name + ".weight").size(), -1)),
                w.take(name + ".bias", {bias})};
  };
  // w = g · v / ‖v‖, the norm over all axes but the first (for transposed convolutions that is the input channel).
  auto normed = [&](const std::string& name, std::vector<std::int64_t> shape, std::int64_t bias) {
    Conv out;
    for (const auto& [g, v] :
         {std::pair{name + ".weight_g", name + ".weight_v"},
          {name + ".parametrizations.weight.original0", name + ".parametrizations.weight.original1"}}) {
      if (!w.has(g)) continue;
      const auto gain = w.take(g, {-1, 1, 1}), direction = w.take(v, shape);
      if (gain.defined() && direction.defined()) out.w = gain * direction / direction.pow(2).sum({1, 2}, true).sqrt();
    }
    if (!out.w.defined()) out.w = w.take(name + ".weight", shape);
    out.b = w.take(name + ".bias", {bias});
    return out;
  };
  auto resblock = [&](const std::string& name, std::int64_t channels, std::int64_t taps,
                      const std::vector<std::int64_t>& ds) {
    if (taps < 1 || taps % 2 == 0 || taps > kTapsMax)
      raise(Errc::unsupported, "{}: {} has a kernel of {}, expected an odd one up to {}", source, name, taps, kTapsMax);
    for (const auto d : ds)
      if (d < 1 || d > kDilationMax)
        raise(Errc::unsupported, "{}: {} has a dilation of {}, expected 1…{}", source, name, d, kDilationMax);
    ResBlock r;
    r.dilations = ds;
    auto packed = [&](const std::string& conv) {
      const auto c = normed(conv, {channels, channels, taps}, channels);
      if (!c.w.defined() || !c.b.defined()) return kernels::PackedFilter();
      const auto weights = c.w.contiguous(), bias = c.b.contiguous();
      kernels::PackedFilter out(weights.data_ptr<float>(), bias.data_ptr<float>(), channels, channels, taps);
      for (const auto* part : {".weight", ".weight_v", ".parametrizations.weight.original1"}) w.drop(conv + part);
      return out;
    };
    auto alpha = [&](int which, std::size_t n) {
      const auto a = w.take(fmt::format("{}.activations{}.{}.alpha", name, which, n), {channels});
      return a.defined() ? tensor::to_values(a) : std::vector<float>();
    };
    for (std::size_t n = 0; n < ds.size(); ++n) {
      r.convs1.push_back(packed(fmt::format("{}.convs1.{}", name, n)));
      r.convs2.push_back(packed(fmt::format("{}.convs2.{}", name, n)));
      r.alpha1.push_back(alpha(1, n)), r.alpha2.push_back(alpha(2, n));
    }
    return r;
  };
  const auto base = h.at("base_channels").get<std::int64_t>();
  const auto classifier = w.shape_of("f0_predictor.classifier.weight");
  const std::int64_t cond = classifier.size() == 2 ? classifier[1] : -1;
  for (int n = 0; n < 5; ++n)
    condnet_.push_back(normed(fmt::format("f0_predictor.condnet.{}", 2 * n), {cond, n == 0 ? 80 : cond, 3}, cond));
  classifier_ = plain("f0_predictor.classifier", 1);
  merge_ = plain("m_source.l_linear", 1);
  conv_pre_ = normed("conv_pre", {base, 80, 7}, base);
  for (std::size_t i = 0; i < rates_.size(); ++i) {
    const auto in = base >> i, out = base >> (i + 1);
    ups_.push_back(normed(fmt::format("ups.{}", i), {in, out, 2 * rates_[i]}, out));
    source_downs_.push_back(plain(fmt::format("source_downs.{}", i), out));
    source_blocks_.push_back(
        resblock(fmt::format("source_resblocks.{}", i), out, source_kernels.at(i), source_dilations.at(i)));
    for (std::size_t j = 0; j < kernels_.size(); ++j)
      blocks_.push_back(
          resblock(fmt::format("resblocks.{}", i * kernels_.size() + j), out, kernels_[j], dilations.at(j)));
  }
  conv_post_ = normed("conv_post", {2 * kBins, base >> rates_.size(), 7}, 2 * kBins);
  w.finish();
  window_ = at::hann_window(kFft);
}

at::Tensor Hift::f0(const at::Tensor& mel) const {
  const c10::InferenceMode guard;
  auto x = mel;
  for (const auto& conv : condnet_) x = at::elu(at::conv1d(x, conv.w, conv.b, 1, 1));
  return at::linear(x.transpose(1, 2), classifier_.w, classifier_.b).squeeze(-1).abs();
}

at::Tensor Hift::source(const at::Tensor& f0, std::span<const float> phase, const at::Tensor& noise,
                        SourceState& state) const {
  const c10::InferenceMode guard;
  const auto frames = f0.size(0), samples = frames * kSamplesPerFrame;
  const auto pitch = f0.contiguous(), random = noise.contiguous();
  const float* hz = pitch.data_ptr<float>();
  const float* z = random.data_ptr<float>();
  const auto weight = merge_.w.contiguous();
  const float* merge = weight.data_ptr<float>();
  auto out = at::full({1, 1, samples}, merge_.b.item<float>());
  float* to = out.data_ptr<float>();
  for (int h = 0; h < kHarmonics; ++h) {
    double cycles = state.cycles[h];
    const double offset = h == 0 ? 0.0 : phase[h];
    for (std::int64_t f = 0; f < frames; ++f) {
      // The reference's sum of h·f0/rate in double; one turn is one cycle.
      const double step = static_cast<double>(hz[f] * static_cast<float>(h + 1)) / sample_rate_;
      const bool voiced = hz[f] > voiced_threshold_;
      const float amplitude = voiced ? static_cast<float>(sigma_) : static_cast<float>(alpha_ / 3);
      for (std::int64_t n = f * kSamplesPerFrame; n < (f + 1) * kSamplesPerFrame; ++n) {
        cycles += step;
        cycles -= std::floor(cycles);
        const auto sine =
            voiced ? static_cast<float>(alpha_) *
                         std::sin(static_cast<float>(2.0 * std::numbers::pi * cycles) + static_cast<float>(offset))
                   : 0.0f;
        to[n] += merge[h] * (sine + amplitude * z[h * samples + n]);
      }
    }
    state.cycles[h] = cycles;
  }
  return out.tanh_();
}

at::Tensor Hift::run(const ResBlock& r, const at::Tensor& x) const {
  const auto channels = x.size(1), size = x.size(2);
  // Rows with silence on both sides, for the widest of the convolutions.
  std::int64_t margin = 0;
  for (std::size_t n = 0; n < r.dilations.size(); ++n)
    margin = std::max({margin, (r.convs1[n].taps - 1) * r.dilations[n] / 2, (r.convs2[n].taps - 1) / 2});
  const auto stride = size + 2 * margin;
  auto active = at::zeros({channels * stride + kernels::kConvolutionSlack}), between = at::empty({channels, size});
  auto out = x.contiguous().clone();
  float *const a = active.data_ptr<float>() + margin, *const y = between.data_ptr<float>(),
               *const o = out.data_ptr<float>();
  auto step = [&](const float* in, const std::vector<float>& alpha, const kernels::PackedFilter& filter,
                  std::int64_t dilation, const float* to_add, float* to) {
    for (std::int64_t c = 0; c < channels; ++c)
      kernels::snake(in + c * size, alpha[static_cast<std::size_t>(c)], size, a + c * stride);
    const auto reach = (filter.taps - 1) * dilation / 2;
    kernels::Team::of_this_thread().run(size, kPositionsPerTask, [&](std::int64_t from, std::int64_t until) {
      kernels::convolve(filter, a + from - reach, stride, dilation, until - from,
                        to_add == nullptr ? nullptr : to_add + from, to + from, size);
    });
  };
  for (std::size_t n = 0; n < r.convs1.size(); ++n) {
    step(o, r.alpha1[n], r.convs1[n], r.dilations[n], nullptr, y);
    step(y, r.alpha2[n], r.convs2[n], 1, o, o);
  }
  return out;
}

at::Tensor Hift::decode(const at::Tensor& mel, const at::Tensor& source, const Trace& trace) const {
  const c10::InferenceMode guard;
  const auto spectrum = at::view_as_real(
      at::stft(source.view({1, -1}), kFft, kFftHop, kFft, window_, true, "reflect", false, true, true));
  const auto real = spectrum.select(-1, 0), imag = spectrum.select(-1, 1);
  if (trace) trace("stft_real", real), trace("stft_imag", imag);
  const auto st = at::cat({real, imag}, 1);
  auto x = at::conv1d(mel, conv_pre_.w, conv_pre_.b, 1, 3);
  if (trace) trace("conv_pre", x);
  for (std::size_t i = 0; i < rates_.size(); ++i) {
    const auto u = rates_[i];
    x = at::conv_transpose1d(at::leaky_relu(x, slope_), ups_[i].w, ups_[i].b, u, u / 2);
    if (trace) trace(fmt::format("ups{}", i), x);
    std::int64_t stride = 1;
    for (std::size_t j = i + 1; j < rates_.size(); ++j) stride *= rates_[j];
    if (i + 1 == rates_.size()) x = at::reflection_pad1d(x, {1, 0});
    auto si = at::conv1d(st, source_downs_[i].w, source_downs_[i].b, stride, stride == 1 ? 0 : stride / 2);
    si = run(source_blocks_[i], si);
    if (trace) trace(fmt::format("src{}", i), si);
    x = x + si;
    at::Tensor sum;
    for (std::size_t j = 0; j < kernels_.size(); ++j) {
      auto y = run(blocks_[i * kernels_.size() + j], x);
      sum = j == 0 ? y : sum + y;
    }
    x = sum / static_cast<double>(kernels_.size());
  }
  x = at::conv1d(at::leaky_relu(x, 0.01), conv_post_.w, conv_post_.b, 1, 3);
  auto magnitude = at::exp(x.narrow(1, 0, kBins));
  const auto phase = at::sin(x.narrow(1, kBins, kBins));
  if (trace) trace("magnitude", magnitude), trace("phase", phase);
  magnitude = magnitude.clamp_max(100.0);
  const auto complex = at::complex((magnitude * phase.cos()).contiguous(), (magnitude * phase.sin()).contiguous());
  return at::istft(complex, kFft, kFftHop, kFft, window_, true).clamp(-limit_, limit_)[0];
}

Hift::Wave Hift::operator()(const at::Tensor& mel, std::span<const float> phase, const at::Tensor& noise,
                            const at::Tensor& cache) const {
  const c10::InferenceMode guard;
  SourceState state;
  auto s = source(f0(mel)[0], phase, noise, state);
  if (cache.defined() && cache.numel() > 0) s.narrow(2, 0, cache.numel()).copy_(cache.view({1, 1, -1}));
  return {decode(mel, s), s};
}

at::Tensor HiftStream::source_of(const at::Tensor& mel, std::int64_t count, Hift::SourceState& state) const {
  const auto from = std::max(first_, voiced_ - kF0Context);
  const auto f0 = hift_->f0(mel.narrow(1, from - first_, mel.size(1) - (from - first_)).unsqueeze(0))[0].narrow(
      0, voiced_ - from, count);
  return hift_->source(f0, phase_, noise_(voiced_ * kSamplesPerFrame, count * kSamplesPerFrame), state)[0][0];
}

void HiftStream::extend_source(const at::Tensor& mel, std::int64_t until) {
  if (until <= voiced_) return;
  const auto part = source_of(mel, until - voiced_, state_);
  source_ = source_.defined() ? at::cat({source_, part}) : part;
  voiced_ = until;
}

std::vector<float> HiftStream::advance(const at::Tensor& mel, const at::Tensor& provisional, bool now) {
  const c10::InferenceMode guard;
  if (mel.defined() && mel.size(1) > 0) {
    mel_ = mel_.defined() ? at::cat({mel_, mel}, 1) : mel.clone();
    frames_ += mel.size(1);
  }
  if (!mel_.defined()) return {};
  const bool guess = now && provisional.defined() && provisional.size(1) > 0;
  const auto context = guess ? at::cat({mel_, provisional}, 1) : mel_;
  // F0 of a frame is final when its right neighbours are known; in low-latency mode the guess stands in for them.
  const auto known = now ? frames_ : frames_ - kF0Context;
  extend_source(context, known);
  if (!now) return emit(voiced_ - kContext, mel_, source_, voiced_, false);
  auto source = source_;
  auto available = voiced_;
  if (guess) {  // right context of the decoder: the guess with a throw-away continuation of the source
    auto state = state_;
    source = at::cat({source_, source_of(context, provisional.size(1), state)});
    available += provisional.size(1);
  }
  return emit(voiced_, context, source, available, false);
}

std::vector<float> HiftStream::emit(std::int64_t until, const at::Tensor& mel, const at::Tensor& source,
                                    std::int64_t available, bool final) {
  const bool fading = !tail_.empty();
  if (until <= emitted_ && !(final && fading)) return {};
  const bool low_latency = until == voiced_ && !final;
  const auto from = std::max(first_, emitted_ - kContext - (fading ? 1 : 0)),
             to = std::min(available, until + kContext);
  const auto wave =
      hift_
          ->decode(
              mel.narrow(1, from - first_, to - from).unsqueeze(0),
              source.narrow(0, (from - first_) * kSamplesPerFrame, (to - from) * kSamplesPerFrame).view({1, 1, -1}))
          .contiguous();
  const float* samples = wave.data_ptr<float>();
  const auto held = static_cast<std::int64_t>(tail_.size());
  const auto begin = (emitted_ - from) * kSamplesPerFrame - held, end = (until - from) * kSamplesPerFrame;
  std::vector<float> out(samples + begin, samples + end);
  for (std::int64_t i = 0; i < held; ++i) {
    const float mix = static_cast<float>(i + 1) / static_cast<float>(held + 1);
    out[static_cast<std::size_t>(i)] =
        mix * out[static_cast<std::size_t>(i)] + (1 - mix) * tail_[static_cast<std::size_t>(i)];
  }
  tail_.clear();
  if (low_latency) {
    const auto keep = std::min<std::size_t>(static_cast<std::size_t>(kFadeSamples), out.size());
    tail_.assign(out.end() - static_cast<std::ptrdiff_t>(keep), out.end());
    out.resize(out.size() - keep);
  }
  emitted_ = until;
  const auto drop = std::max<std::int64_t>(0, emitted_ - kContext - kF0Context - 1 - first_);
  if (drop > 0) {
    mel_ = mel_.narrow(1, drop, mel_.size(1) - drop).clone();
    source_ = source_.narrow(0, drop * kSamplesPerFrame, source_.size(0) - drop * kSamplesPerFrame).clone();
    first_ += drop;
  }
  return out;
}

std::vector<float> HiftStream::finish() {
  const c10::InferenceMode guard;
  std::vector<float> out;
  if (mel_.defined()) {
    extend_source(mel_, frames_);
    out = emit(frames_, mel_, source_, frames_, true);
  }
  mel_ = source_ = at::Tensor();
  first_ = frames_ = voiced_ = emitted_ = 0;
  state_ = {};
  tail_.clear();
  return out;
}

}  // namespace parlando::tts
