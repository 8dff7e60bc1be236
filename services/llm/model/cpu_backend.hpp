#pragma once
/// Plans on the processor of this process.
#include "services/llm/model/backend.hpp"
#include "services/llm/model/step1.hpp"

namespace parlando::llm {

/// The pieces of a plan that was checked, as a pass takes them; they point into the plan.
std::vector<Step1::Piece> pieces_of(const StepPlan& plan);
/// Of the rows of a pass those that a plan draws behind. @return [draws, H]
at::Tensor drawn_rows(const StepPlan& plan, const at::Tensor& hidden);
/// The ids behind the rows that a plan draws behind. @param logits  [draws, vocabulary], fp32
std::vector<Drawn> draw(const StepPlan& plan, const at::Tensor& logits);

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
