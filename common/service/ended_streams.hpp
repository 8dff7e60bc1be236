#pragma once
/// The streams that a service ended last by itself, with an error: what their callers had sent meanwhile is no fault
/// and gets no second answer. An entry goes with Close or the caller. Bounded: the oldest is forgotten, and then what
/// still comes on it is answered as that of any unknown stream. A plain class.
#include <algorithm>
#include <deque>
#include <string>

#include "common/service/stream_table.hpp"

namespace parlando::service {

class EndedStreams {
 public:
  static constexpr std::size_t kKept = 256;
  void add(const CallerStream& key) {
    if (contains(key)) return;
    if (keys_.size() == kKept) keys_.pop_front();
    keys_.push_back(key);
  }
  bool contains(const CallerStream& key) const { return std::find(keys_.begin(), keys_.end(), key) != keys_.end(); }
  void erase(const CallerStream& key) { std::erase(keys_, key); }
  void erase_peer(const std::string& peer) {
    std::erase_if(keys_, [&](const CallerStream& key) { return key.peer == peer; });
  }
  std::size_t size() const { return keys_.size(); }

 private:
  std::deque<CallerStream> keys_;
};

}  // namespace parlando::service
