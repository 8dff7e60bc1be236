#pragma once
/// Plans on the processor of this process.
#include "services/llm/model/backend.hpp"
#include "services/llm/model/step1.hpp"

namespace parlando::llm {

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
