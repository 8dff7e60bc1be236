#pragma once
/// All services of an engine in this process: `parlando serve`, and what `talk`, `tts`, `clone` and `chat` start for
/// themselves.
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "common/service/definition.hpp"

namespace parlando::cli {

class Engine {
 public:
  /// Loads the models side by side, then starts the services in their order.
  /// @param threads  that each of them computes with while it loads
  /// @param absent  roles that nobody will ask for: nothing is loaded, and a stand-in refuses whatever comes
  /// @error of the first service that cannot be made
  static Result<std::unique_ptr<Engine>> start(const std::vector<service::Instance>& instances, int threads,
                                               const std::set<std::string>& absent = {});
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Every service says so; `why`: the first that does not.
  bool ready(std::string* why) const;
  /// No new sessions from now on. @return true when nothing is under way any more
  bool drain();
  /// The gateway; null when there is none.
  const service::Host* front() const { return front_; }

 private:
  Engine() = default;
  service::Runtime runtime_;
  std::vector<std::unique_ptr<service::Host>> hosts_;
  const service::Host* front_ = nullptr;
};

}  // namespace parlando::cli
