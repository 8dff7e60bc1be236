#include "services/llm/model/cpu_backend.hpp"

#include <ATen/ATen.h>

namespace parlando::llm {

namespace {
constexpr std::size_t kLogitsKept = 4u << 20;  // 16 MB: 56 draws of the largest vocabulary
}

std::vector<Step1::Piece> pieces_of(const StepPlan& plan) {
  std::vector<Step1::Piece> pieces;
  std::size_t id = 0, block = 0;
  for (const auto& piece : plan.pieces) {
    const auto count = static_cast<std::size_t>(piece.count), blocks = static_cast<std::size_t>(piece.blocks);
    pieces.push_back(
        {std::span(plan.ids).subspan(id, count), piece.first, std::span(plan.tables).subspan(block, blocks)});
    id += count, block += blocks;
  }
  return pieces;
}

std::span<const float> drawn_logits(const Step1& model, const StepPlan& plan, const at::Tensor& hidden) {
  thread_local std::vector<float> rows, logits;
  const auto* all = hidden.data_ptr<float>();
  const auto size = model.config().hidden;
  rows.clear();
  for (const auto& draw : plan.draws) rows.insert(rows.end(), all + draw.row * size, all + (draw.row + 1) * size);
  const auto count = plan.draws.size() * static_cast<std::size_t>(model.shard().vocabulary_rows.count());
  // What a step of very many draws took is given back by the next one.
  if (count <= kLogitsKept && logits.capacity() > kLogitsKept) std::vector<float>().swap(logits);
  logits.resize(count);
  model.logits(rows.data(), static_cast<std::int64_t>(plan.draws.size()), logits.data());
  return logits;
}

std::vector<Drawn> draw(const StepPlan& plan, std::span<const float> logits) {
  std::vector<Drawn> out;
  const auto size = logits.size() / plan.draws.size();
  const float* row = logits.data();
  auto history = plan.histories.begin();
  for (const auto& draw : plan.draws) {
    auto drawn = sample({row, size}, {history, static_cast<std::size_t>(draw.history)}, draw.sampling, draw.position);
    out.push_back(drawn ? Drawn{*drawn} : Drawn{-1, drawn.error()});
    row += size, history += draw.history;
  }
  return out;
}

CpuBackend::CpuBackend(std::shared_ptr<const Step1> model, std::int64_t blocks)
    : model_(std::move(model)), store_(model_->config().layers, blocks, model_->cache_layout()) {}

Result<std::vector<Drawn>> CpuBackend::run(const StepPlan& plan) try {
  PARLANDO_DO(plan.check(model_->config(), store_.blocks()));
  store_.copy(plan.copies);
  const auto pieces = pieces_of(plan);
  PARLANDO_TRY(const auto hidden, model_->pass(store_, pieces));
  if (plan.draws.empty()) return std::vector<Drawn>();
  return draw(plan, drawn_logits(*model_, plan, hidden));
} catch (const std::exception& e) {
  return fail(Errc::internal, "a plan could not be run: {}", e.what());
}

}  // namespace parlando::llm
