#pragma once
/// Who executes the calls of the model when neither the engine nor the client does. The controller asks and goes on;
/// the answers come back through a mailbox that wakes its thread.
#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "common/base/ids.hpp"

namespace parlando::controller {

class ToolServer {
 public:
  struct Ask {
    SessionId session;
    TurnId turn;
    std::string id, name;
    nlohmann::json arguments;
    std::chrono::milliseconds budget = std::chrono::hours(1);  ///< from now on: then nobody waits for it any more
  };
  struct Answer {
    SessionId session;
    std::string id;
    nlohmann::json result;  ///< {error} when there is none
  };
  virtual ~ToolServer() = default;
  /// Never waits. @return false: too many wait already, of all sessions or of this one
  virtual bool ask(Ask ask) = 0;
  /// Nobody wants this answer any more: a call that waits is not made.
  virtual void forget(SessionId /*session*/, const std::string& /*id*/) {}
  /// What has been answered since the last time.
  virtual std::vector<Answer> take() = 0;
  /// Can be read when something can be taken; -1: it is only asked.
  virtual int descriptor() const { return -1; }
};

}  // namespace parlando::controller
