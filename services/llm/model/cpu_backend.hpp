#pragma once
/// Plans on the processor of this process.
#include "services/llm/model/backend.hpp"
#include "services/llm/model/step1.hpp"

namespace parlando::llm {

/// The pieces of a plan that was checked, as a pass takes them; they point into the plan.
std::vector<Step1::Piece> pieces_of(const StepPlan& plan);
/// Logits of the rows of a pass that a plan draws behind, in memory of this thread until it asks for others.
/// @return [draws, vocabulary] of the part that the model has
std::span<const float> drawn_logits(const Step1& model, const StepPlan& plan, const at::Tensor& hidden);
/// The ids behind the rows that a plan draws behind. @param logits  [draws, vocabulary]
std::vector<Drawn> draw(const StepPlan& plan, std::span<const float> logits);

class CpuBackend : public Backend {
 public:
  /// @throws std::bad_alloc
  CpuBackend(std::shared_ptr<const Step1> model, std::int64_t blocks);
  std::int64_t blocks() const override { return store_.blocks(); }
  Result<std::vector<Drawn>> run(const StepPlan& plan) override;

 private:
  std::shared_ptr<const Step1> model_;
  KvStore store_;
};

}  // namespace parlando::llm
