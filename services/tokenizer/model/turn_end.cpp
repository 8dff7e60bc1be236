#include "services/tokenizer/model/turn_end.hpp"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <cmath>

#include "common/tensor/weights.hpp"

namespace parlando::tokenizer {

namespace {
constexpr std::int64_t kTaps = 5, kLastRows = 8;
constexpr double kLogSecondsScale = 0.5;  // lengths of 0.5…10 s come to 0.2…1.2
}  // namespace

TurnEnd::TurnEnd(checkpoint::TensorMap tensors, std::int64_t width, const std::string& source) {
  tensor::Weights w(std::move(tensors), source);
  const auto in = w.shape_of("in.weight"), attend = w.shape_of("attend.weight"), hidden = w.shape_of("hidden.weight");
  inner_ = in.size() == 2 ? in[0] : -1;
  heads_ = attend.size() == 2 ? attend[0] : -1;
  const std::int64_t wide = hidden.size() == 2 ? hidden[0] : -1;
  const std::int64_t pooled = inner_ < 0 || heads_ < 0 ? -1 : (heads_ + 2) * inner_ + 1;
  in_w_ = w.take("in.weight", {inner_, width}), in_b_ = w.take("in.bias", {inner_});
  place_ = w.take("place", {kRows, inner_});
  conv_w_ = w.take("conv.weight", {inner_, inner_, kTaps}), conv_b_ = w.take("conv.bias", {inner_});
  attend_ = w.take("attend.weight", {heads_, inner_});
  hidden_w_ = w.take("hidden.weight", {wide, pooled}), hidden_b_ = w.take("hidden.bias", {wide});
  out_w_ = w.take("out.weight", {1, wide}), out_b_ = w.take("out.bias", {1});
  w.finish();
}

double TurnEnd::completeness(const at::Tensor& states, double seconds) const {
  const c10::InferenceMode guard;
  if (!states.defined() || states.size(0) == 0) return 0;
  const auto rows = std::min(states.size(0), kRows);
  auto h = at::relu(at::linear(states.narrow(0, states.size(0) - rows, rows), in_w_, in_b_) +
                    place_.narrow(0, kRows - rows, rows));
  h = h + at::relu(at::conv1d(h.t().unsqueeze(0), conv_w_, conv_b_, 1, kTaps / 2)[0].t());
  const auto share = at::softmax(at::matmul(attend_, h.t()), 1);  // [heads, rows]
  const auto last = std::min(rows, kLastRows);
  const auto all = at::cat({at::matmul(share, h).flatten(), h.mean(0), h.narrow(0, rows - last, last).mean(0),
                            at::full({1}, kLogSecondsScale * std::log1p(std::max(0.0, seconds)))});
  const auto logit = at::linear(at::relu(at::linear(all, hidden_w_, hidden_b_)), out_w_, out_b_);
  return 1 / (1 + std::exp(-logit.item<double>()));
}

at::Tensor latest_rows(const at::Tensor& before, const at::Tensor& rows) {
  const auto all = !before.defined() ? rows : !rows.defined() ? before : at::cat({before, rows});
  if (!all.defined()) return all;
  const auto kept = std::min(all.size(0), TurnEnd::kRows);
  return all.narrow(0, all.size(0) - kept, kept).clone();
}

}  // namespace parlando::tokenizer
