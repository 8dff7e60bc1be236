#pragma once
/// The streams that a service ended last by itself, with an error: what their callers had sent meanwhile is no fault
/// and gets no second answer. An entry goes with Close or the caller. Bounded: the oldest is forgotten, and then what
/// still comes on it is answered as that of any unknown stream. Its room is made at once, so that a stream can be added
/// where there is no memory. A plain class.
#include <algorithm>
#include <string>
#include <vector>

#include "common/service/stream_table.hpp"

namespace parlando::service {

class EndedStreams {
 public:
  static constexpr std::size_t kKept = 256;
  EndedStreams() { keys_.reserve(kKept); }
  void add(CallerStream key) noexcept {
    if (contains(key)) return;
    if (keys_.size() == kKept) keys_.erase(keys_.begin());
    keys_.push_back(std::move(key));
  }
  bool contains(const CallerStream& key) const { return std::find(keys_.begin(), keys_.end(), key) != keys_.end(); }
  void erase(const CallerStream& key) { std::erase(keys_, key); }
  void erase_peer(const std::string& peer) {
    std::erase_if(keys_, [&](const CallerStream& key) { return key.peer == peer; });
  }
  std::size_t size() const { return keys_.size(); }

 private:
  std::vector<CallerStream> keys_;  ///< the oldest first
};

}  // namespace parlando::service
