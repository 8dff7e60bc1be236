#pragma once
/// Plans on a group of ranks of one host: each holds its part of the weights and of the keys and values. Rank 0 leads:
/// it has the scheduler, says each plan to the others and draws; they run what they are told. A group is one failure
/// unit: whatever goes wrong at one rank breaks it for all, and then it is built anew with everything it knew.
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "common/parallel/communicator.hpp"
#include "services/llm/model/backend.hpp"
#include "services/llm/model/step1.hpp"

namespace parlando::llm {

/// A rank's own part.
class RankPart {
 public:
  /// @throws std::bad_alloc
  RankPart(std::shared_ptr<const Step1> part, std::int64_t blocks);
  std::int64_t blocks() const { return store_.blocks(); }
  /// @return of rank 0 one for each draw, of others none. @error the group is broken behind any
  Result<std::vector<Drawn>> run(const StepPlan& plan, parallel::Communicator& group);
  /// As a rank that does not lead: runs plans until the group ends. @return why it did
  std::string follow(parallel::Communicator& group);

 private:
  /// Of the vocabulary each rank tells candidates alone.
  Result<std::vector<Drawn>> draw(const StepPlan& plan, std::span<const float> logits, parallel::Communicator& group);
  std::shared_ptr<const Step1> part_;
  KvStore store_;
  std::vector<Candidates> own_;  ///< of each draw; keeps its memory
};

class RankBackend : public Backend {
 public:
  struct Options {
    std::filesystem::path directory;
    WeightFormat format = WeightFormat::f32;
    int ranks = 1, threads = 1;  ///< threads: of each rank
    std::int64_t blocks = 0;
    /// Program that is started for every rank but the first, as `PROGRAM --rank …`; empty: threads of this process.
    std::string program;
    /// Where the parts of threads come from in the place of the directory; called by each rank in its own thread.
    std::function<Result<std::shared_ptr<const Step1>>(int rank)> part = {};
  };
  /// Loads all parts side by side. @error as `Step1::load`; Errc::invalid_argument when the sizes do not divide
  static Result<std::unique_ptr<RankBackend>> start(const Options& options);
  ~RankBackend() override;
  std::int64_t blocks() const override { return part_->blocks(); }
  const std::shared_ptr<const Step1>& part() const { return model_; }
  /// @error Errc::unavailable when the group is broken, now and from now on
  Result<std::vector<Drawn>> run(const StepPlan& plan) override;
  /// Why the group is broken; empty while it is not.
  std::string broken() const { return group_->broken(); }
  /// Processes of the other ranks.
  const std::vector<int>& processes() const { return processes_; }

 private:
  RankBackend() = default;
  void watch(const std::stop_token& stop);
  std::shared_ptr<const Step1> model_;
  std::unique_ptr<RankPart> part_;
  std::unique_ptr<parallel::Communicator> group_;
  std::vector<std::jthread> threads_;
  std::vector<int> processes_;
  std::vector<char> ended_;  ///< of these; `watch_` has seen it
  std::jthread watch_;
};

/// Whether a command line is that of a rank: `PROGRAM --rank R --region FD --model DIR --format F --threads N
/// --blocks N --leader PID`.
bool is_rank(int argc, char** argv);
/// Runs it. @return the exit code: 0 when the leader has ended it
int run_rank(int argc, char** argv);

}  // namespace parlando::llm
