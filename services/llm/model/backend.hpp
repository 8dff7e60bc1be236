#pragma once
/// What runs plans: one process with all weights (`cpu_backend.hpp`), or a group of ranks. The scheduler holds the
/// ledger, a backend the keys and values that its blocks stand for.
#include "services/llm/model/step_plan.hpp"

namespace parlando::llm {

/// What came of one draw of a plan.
struct Drawn {
  std::int32_t id = -1;
  std::optional<Error> error = {};  ///< Errc::internal: logits that are no numbers; Errc::invalid_argument: no id left
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::int64_t blocks() const = 0;
  /// Copies, computes, draws: plans in the order in which they were made. @return one for each draw
  /// @error when the pass failed as a whole; what the blocks that it writes hold is unknown then
  virtual Result<std::vector<Drawn>> run(const StepPlan& plan) = 0;
};

}  // namespace parlando::llm
