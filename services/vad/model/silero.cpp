#include "services/vad/model/silero.hpp"

#include <algorithm>
#include <cmath>

#include "common/checkpoint/safetensors.hpp"
#include "kernels/gemv/gemv.hpp"

namespace parlando::vad {

Result<std::shared_ptr<const SileroWeights>> SileroWeights::load(const std::filesystem::path& file) {
  PARLANDO_TRY(const auto data, checkpoint::read_safetensors(file));
  auto take = [&](const std::string& name, checkpoint::Shape shape) -> Result<std::vector<float>> {
    const auto found = data.tensors.find(name);
    if (found == data.tensors.end())
      return fail(Errc::checkpoint_mismatch, "'{}' lacks the tensor '{}'", file.string(), name);
    if (found->second.shape != shape)
      return fail(Errc::checkpoint_mismatch, "'{}': '{}' has shape {}, expected {}", file.string(), name,
                  checkpoint::to_string(found->second.shape), checkpoint::to_string(shape));
    return checkpoint::to_f32(found->second);
  };
  auto out = std::make_shared<SileroWeights>();
  PARLANDO_TRY(out->basis, take("model.stft.forward_basis_buffer", {258, 1, 256}));
  constexpr int kShape[4][3] = {{129, 128, 1}, {128, 64, 2}, {64, 64, 2}, {64, 128, 1}};
  for (int n = 0; n < 4; ++n) {
    auto& conv = out->encoder[n];
    conv.inputs = kShape[n][0], conv.outputs = kShape[n][1], conv.stride = kShape[n][2];
    PARLANDO_TRY(const auto weight,
                 take(fmt::format("model.encoder.{}.reparam_conv.weight", n), {conv.outputs, conv.inputs, 3}));
    conv.weight.resize(weight.size());
    for (int o = 0; o < conv.outputs; ++o)
      for (int i = 0; i < conv.inputs; ++i)
        for (int k = 0; k < 3; ++k) conv.weight[(o * 3 + k) * conv.inputs + i] = weight[(o * conv.inputs + i) * 3 + k];
    PARLANDO_TRY(conv.bias, take(fmt::format("model.encoder.{}.reparam_conv.bias", n), {conv.outputs}));
  }
  PARLANDO_TRY(const auto ih, take("model.decoder.rnn.weight_ih", {512, 128}));
  PARLANDO_TRY(const auto hh, take("model.decoder.rnn.weight_hh", {512, 128}));
  PARLANDO_TRY(const auto bias_ih, take("model.decoder.rnn.bias_ih", {512}));
  PARLANDO_TRY(const auto bias_hh, take("model.decoder.rnn.bias_hh", {512}));
  out->lstm.resize(512 * 256);
  out->lstm_bias.resize(512);
  for (int r = 0; r < 512; ++r) {
    std::copy_n(ih.data() + r * 128, 128, out->lstm.data() + r * 256);
    std::copy_n(hh.data() + r * 128, 128, out->lstm.data() + r * 256 + 128);
    out->lstm_bias[r] = bias_ih[r] + bias_hh[r];
  }
  PARLANDO_TRY(out->out, take("model.decoder.decoder.2.weight", {1, 128, 1}));
  PARLANDO_TRY(const auto out_bias, take("model.decoder.decoder.2.bias", {1}));
  out->out_bias = out_bias[0];
  return out;
}

void Silero::reset() {
  context_.fill(0);
  hidden_.fill(0);
  cell_.fill(0);
}

float Silero::operator()(std::span<const float, kFrameSamples> frame) {
  const auto& w = *weights_;
  constexpr int kPadded = kContextSamples + kFrameSamples + 64, kColumns = 4;
  float padded[kPadded];
  std::copy(context_.begin(), context_.end(), padded);
  std::copy(frame.begin(), frame.end(), padded + kContextSamples);
  for (int i = 0; i < 64; ++i)
    padded[kContextSamples + kFrameSamples + i] = padded[kContextSamples + kFrameSamples - 2 - i];
  std::copy_n(frame.end() - kContextSamples, kContextSamples, context_.begin());

  // Columns are stored one after another with a zero column on each side, so that a kernel of three reads 3·channels in
  // a row.
  float a[(kColumns + 2) * 129] = {}, b[(kColumns + 2) * 128] = {}, spectrum[258];
  for (int c = 0; c < kColumns; ++c) {
    kernels::gemv_f32(w.basis.data(), 258, 256, padded + 128 * c, nullptr, spectrum);
    for (int k = 0; k < 129; ++k)
      a[(c + 1) * 129 + k] = std::sqrt(spectrum[k] * spectrum[k] + spectrum[129 + k] * spectrum[129 + k]);
  }
  float *in = a, *out = b;
  int columns = kColumns;
  for (const auto& conv : w.encoder) {
    const int next = (columns - 1) / conv.stride + 1;
    for (int c = 0; c < next; ++c) {
      float* to = out + (c + 1) * conv.outputs;
      kernels::gemv_f32(conv.weight.data(), conv.outputs, 3 * conv.inputs, in + c * conv.stride * conv.inputs,
                        conv.bias.data(), to);
      for (int o = 0; o < conv.outputs; ++o) to[o] = std::max(0.0f, to[o]);
    }
    std::fill_n(out, conv.outputs, 0.0f);
    std::fill_n(out + (next + 1) * conv.outputs, conv.outputs, 0.0f);
    std::swap(in, out);
    columns = next;
  }
  float joined[256], gates[512];
  std::copy_n(in + kStateSize, kStateSize, joined);
  std::copy(hidden_.begin(), hidden_.end(), joined + kStateSize);
  kernels::gemv_f32(w.lstm.data(), 512, 256, joined, w.lstm_bias.data(), gates);
  auto sigmoid = [](float x) { return 1.0f / (1.0f + std::exp(-x)); };
  float sum = w.out_bias;
  for (int i = 0; i < kStateSize; ++i) {
    cell_[i] = sigmoid(gates[128 + i]) * cell_[i] + sigmoid(gates[i]) * std::tanh(gates[256 + i]);
    hidden_[i] = sigmoid(gates[384 + i]) * std::tanh(cell_[i]);
    sum += w.out[i] * std::max(0.0f, hidden_[i]);
  }
  return sigmoid(sum);
}

}  // namespace parlando::vad
