#pragma once
/// A tool server behind HTTP: each call is a POST of {name, arguments, session, turn, id}, its answer the result (JSON,
/// or text). A few threads ask; what waits for them, an answer's size and its time are bounded.
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "common/http/post.hpp"
#include "services/controller/tool_server.hpp"

namespace parlando::controller {

class HttpToolServer final : public ToolServer {
 public:
  struct Limits {
    int threads = 4;
    std::size_t waiting_max = 64;
    http::PostLimits post = {};
  };
  HttpToolServer(http::Url url, Limits limits);
  /// The calls under way are given up.
  ~HttpToolServer() override;
  bool ask(Ask ask) override;
  std::vector<Answer> take() override;
  int descriptor() const override { return wake_; }

 private:
  void run();
  nlohmann::json result_of(const Ask& ask) const;
  http::Url url_;
  Limits limits_;
  int wake_, give_up_;
  std::mutex mutex_;  ///< of what follows
  std::condition_variable more_;
  bool ends_ = false;
  std::deque<Ask> waiting_;
  std::vector<Answer> answers_;
  std::vector<std::thread> threads_;
};

}  // namespace parlando::controller
