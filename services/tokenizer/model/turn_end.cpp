#include "services/tokenizer/model/turn_end.hpp"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>

#include "common/base/result.hpp"
#include "common/tensor/torch_bridge.hpp"
#include "common/tensor/weights.hpp"
#include "services/tokenizer/model/prosody.hpp"

namespace parlando::tokenizer {

namespace {
constexpr std::int64_t kNetsMax = 16, kGates = 3;
constexpr double kLogSecondsScale = 0.5;  // lengths of 0.5…10 s come to 0.2…1.2
}  // namespace

TurnEnd::TurnEnd(checkpoint::TensorMap tensors, std::int64_t width, const std::string& source) {
  std::int64_t count = 0;
  const auto is_of_next = [&](const auto& t) { return t.first.starts_with(fmt::format("nets.{}.", count)); };
  while (count <= kNetsMax && std::any_of(tensors.begin(), tensors.end(), is_of_next)) ++count;
  if (count < 1 || count > kNetsMax)
    raise(Errc::checkpoint_mismatch, "'{}' holds {} networks (nets.0.…), expected 1 to {}", source, count, kNetsMax);
  tensor::Weights w(std::move(tensors), source);
  for (std::int64_t n = 0; n < count; ++n) {
    const auto name = [&](const char* of) { return fmt::format("nets.{}.{}", n, of); };
    const auto rows = [&](const char* of) {
      const auto shape = w.shape_of(name(of));
      return shape.size() == 2 ? shape[0] : -1;
    };
    const auto inner = rows("in.weight"), gates = rows("gru.weight_hh_l0"), hidden = rows("hidden.weight");
    const auto memory = gates < 0 ? -1 : gates / kGates;
    const auto last = memory < 0 ? -1 : memory + 1;
    Net net;
    net.in_w = w.take(name("in.weight"), {inner, width + kProsodyWidth});
    net.in_b = w.take(name("in.bias"), {inner});
    net.gru.push_back(w.take(name("gru.weight_ih_l0"), {gates, inner}));
    net.gru.push_back(w.take(name("gru.weight_hh_l0"), {gates, memory}));
    net.gru.push_back(w.take(name("gru.bias_ih_l0"), {gates}));
    net.gru.push_back(w.take(name("gru.bias_hh_l0"), {gates}));
    net.hidden_w = w.take(name("hidden.weight"), {hidden, last});
    net.hidden_b = w.take(name("hidden.bias"), {hidden});
    net.out_w = w.take(name("out.weight"), {1, hidden});
    net.out_b = w.take(name("out.bias"), {1});
    nets_.push_back(std::move(net));
  }
  w.finish();
}

at::Tensor TurnEnd::seen(const at::Tensor& states, std::span<const float> wave) {
  if (!states.defined() || states.size(0) == 0) return {};
  const auto rows = std::min(states.size(0), kRows);
  const auto prosody = tensor::from_values(prosody_of(wave, rows), {rows, kProsodyWidth});
  return at::cat({states.narrow(0, states.size(0) - rows, rows), prosody}, 1);
}

double TurnEnd::completeness(const at::Tensor& seen, double seconds) const {
  const c10::InferenceMode guard;
  if (!seen.defined() || seen.size(0) == 0) return 0;
  const auto rows = std::min(seen.size(0), kRows);
  const auto latest = seen.narrow(0, seen.size(0) - rows, rows);
  const auto length = at::full({1}, kLogSecondsScale * std::log1p(std::max(0.0, seconds)));
  double sum = 0;
  for (const auto& net : nets_) {
    // What was before the utterance is nothing, and the memory goes through that, too.
    const auto h = at::constant_pad_nd(at::relu(at::linear(latest, net.in_w, net.in_b)), {0, 0, kRows - rows, 0});
    const auto memory = at::zeros({1, 1, net.gru[1].size(1)});
    const auto last = std::get<1>(at::gru(h.unsqueeze(1), memory, net.gru, true, 1, 0.0, false, false, false));
    const auto all = at::cat({last.flatten(), length});
    sum += at::linear(at::relu(at::linear(all, net.hidden_w, net.hidden_b)), net.out_w, net.out_b).item<double>();
  }
  return 1 / (1 + std::exp(-sum / static_cast<double>(nets_.size())));
}

at::Tensor latest_rows(const at::Tensor& before, const at::Tensor& rows) {
  const auto all = !before.defined() ? rows : !rows.defined() ? before : at::cat({before, rows});
  if (!all.defined()) return all;
  const auto kept = std::min(all.size(0), TurnEnd::kRows);
  return all.narrow(0, all.size(0) - kept, kept).clone();
}

}  // namespace parlando::tokenizer
