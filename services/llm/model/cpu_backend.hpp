#pragma once
/// Plans on the processor of this process.
#include "services/llm/model/backend.hpp"
#include "services/llm/model/step1.hpp"

namespace parlando::llm {

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
