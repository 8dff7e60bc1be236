#pragma once
/// Who owns a session: one table per service across all its callers. A higher epoch fences the lower ones, so that a
/// controller that was stopped and replaced says nothing when it wakes. A plain class.
#include <list>
#include <string>
#include <unordered_map>
#include <utility>

#include "common/base/clock.hpp"
#include "common/base/ids.hpp"

namespace parlando::transport {

class Owners {
 public:
  /// @param sessions_max  the least recently heard session is forgotten above it: its former owners are not fenced here
  /// any more
  explicit Owners(std::size_t sessions_max = 65536, std::chrono::seconds idle_max = std::chrono::minutes(10))
      : sessions_max_(sessions_max), idle_max_(idle_max) {}
  enum class Verdict { same, raised, stale };
  struct Judgement {
    Verdict verdict;
    std::string former;  ///< with `raised`: the peer that was the owner; empty when there was none
    Epoch known;         ///< highest epoch
  };
  /// @param epoch  0 (not granted yet) is neither fenced nor remembered
  Judgement judge(const std::string& peer, SessionId session, Epoch epoch, Time now);
  std::size_t sessions() const { return entries_.size(); }

 private:
  struct Entry {
    SessionId session;
    Epoch epoch;
    std::string peer;
    Time heard;
  };
  std::size_t sessions_max_;
  std::chrono::seconds idle_max_;
  std::list<Entry> order_;  ///< least recently heard first
  std::unordered_map<SessionId, std::list<Entry>::iterator> entries_;
};

}  // namespace parlando::transport
