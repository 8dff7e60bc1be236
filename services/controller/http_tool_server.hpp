#pragma once
/// A tool server behind HTTP: each call is a POST of {name, arguments, session, turn, id}, its answer the result (JSON,
/// or text). A few threads ask; what waits for them, an answer's size and its time are bounded.
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "common/base/clock.hpp"
#include "common/http/post.hpp"
#include "services/controller/tool_server.hpp"

namespace parlando::controller {

class HttpToolServer final : public ToolServer {
 public:
  struct Limits {
    int threads = 4;
    std::size_t waiting_max = 64;
    std::size_t session_max = 8;  ///< of one session, those that are being made included
    http::PostLimits post = {};
  };
  HttpToolServer(http::Url url, Limits limits);
  /// The calls under way are given up.
  ~HttpToolServer() override;
  bool ask(Ask ask) override;
  void forget(SessionId session, const std::string& id) override;
  std::vector<Answer> take() override;
  int descriptor() const override { return wake_; }

 private:
  struct Waiting {
    Ask ask;
    Time until;
  };
  void run();
  std::optional<Waiting> next();
  nlohmann::json result_of(const Waiting& call) const;
  http::Url url_;
  Limits limits_;
  int wake_, give_up_;
  std::mutex mutex_;  ///< of what follows
  std::condition_variable more_;
  bool ends_ = false;
  std::deque<Waiting> waiting_;
  std::map<SessionId, std::size_t> calls_;  ///< of each session, waiting or being made
  std::map<SessionId, int> made_;           ///< of these, being made
  std::vector<Answer> answers_;
  std::vector<std::thread> threads_;
};

}  // namespace parlando::controller
