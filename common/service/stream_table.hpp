#pragma once
/// The streams that a service works on: one entry from the opening message to Close, the caller's death or the
/// service's own end. Bounded: opening above the limit is refused with Errc::overloaded. A plain class.
#include <algorithm>
#include <map>
#include <string>
#include <tuple>

#include "common/protocol/messages.hpp"

namespace parlando::service {

/// Whose stream it is.
struct CallerStream {
  std::string peer;
  StreamKey key;
  auto operator<=>(const CallerStream&) const = default;
};

template <class T>
class StreamTable {
 public:
  explicit StreamTable(std::size_t streams_max) : streams_max_(streams_max) {}

  static CallerStream key_of(const std::string& peer, const protocol::Envelope& head) { return {peer, head.key()}; }

  /// @error Errc::overloaded above the limit, Errc::invalid_argument when the stream is open already
  Result<T*> open(const CallerStream& key, T value) {
    if (entries_.contains(key)) return fail(Errc::invalid_argument, "stream {} is open already", key.key.stream.value);
    if (entries_.size() >= streams_max_)
      return fail(Errc::overloaded, "{} streams are open, at most {} are served", entries_.size(), streams_max_);
    return &entries_.emplace(key, std::move(value)).first->second;
  }
  T* find(const CallerStream& key) {
    const auto found = entries_.find(key);
    return found == entries_.end() ? nullptr : &found->second;
  }
  /// @error Errc::not_found naming the stream
  Result<T*> at(const CallerStream& key) {
    auto* found = find(key);
    if (found == nullptr) return fail(Errc::not_found, "stream {} is not open", key.key.stream.value);
    return found;
  }
  bool erase(const CallerStream& key) { return entries_.erase(key) > 0; }
  /// The caller is gone, and everything it had asked for. @param each  called for every entry first
  template <class F>
  void erase_peer(const std::string& peer, F&& each) {
    for (auto it = entries_.begin(); it != entries_.end();) {
      if (it->first.peer != peer) {
        ++it;
        continue;
      }
      each(it->first, it->second);
      it = entries_.erase(it);
    }
  }
  void erase_peer(const std::string& peer) {
    erase_peer(peer, [](const CallerStream&, T&) {});
  }
  std::size_t size() const { return entries_.size(); }
  std::size_t room() const { return streams_max_ - std::min(streams_max_, entries_.size()); }
  auto begin() { return entries_.begin(); }
  auto end() { return entries_.end(); }
  auto begin() const { return entries_.begin(); }
  auto end() const { return entries_.end(); }

 private:
  std::size_t streams_max_;
  std::map<CallerStream, T> entries_;
};

}  // namespace parlando::service
