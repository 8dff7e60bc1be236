#pragma once
/// The sockets of `/v1/realtime`: gives each translator (`realtime.hpp`) its conversations in Sessions, and carries
/// what they say to each other. What a conversation does not take yet waits here, and its socket is not read meanwhile.
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>

#include "services/gateway/realtime.hpp"
#include "services/gateway/sessions.hpp"

namespace parlando::gateway {

/// What is done to a socket.
struct RealtimeWire {
  std::function<void(std::uint64_t socket, std::string event)> send;
  std::function<void(std::uint64_t socket, std::uint16_t code, std::string reason)> close;
  std::function<void(std::uint64_t socket, bool read)> read;
};

/// `model` and `intent` of a request's target; whatever else it has is no concern of ours.
RealtimeOptions realtime_options(std::string_view target);

class RealtimeSockets {
 public:
  /// @param sessions  outlives it
  RealtimeSockets(Sessions& sessions, RealtimeWire wire) : sessions_(sessions), wire_(std::move(wire)) {}

  /// @param expires_at  Unix time
  void opened(std::uint64_t socket, std::string_view target, std::int64_t expires_at, Time now);
  bool has(std::uint64_t socket) const { return sockets_.contains(socket); }
  void message(std::uint64_t socket, std::string_view data, bool binary, Time now);
  void closed(std::uint64_t socket, Time now);

  /// What Sessions want done with a client. @return false: it is none of these
  bool act_on(ToClient& action, Time now);
  /// Tells conversations more of what waits for them, once all that Sessions want done is done. @return false: nothing
  /// waits that they would take
  bool feed_more(Time now);

  std::size_t size() const { return sockets_.size(); }
  std::uint64_t errors() const { return errors_; }  ///< events that were answered by an `error`

 private:
  struct Talk {
    ClientId client = 0;
    bool paused = false;
    std::deque<ToTalk> waiting;
  };
  struct Socket {
    explicit Socket(RealtimeOptions options) : translator(std::move(options)) {}
    Realtime translator;
    std::map<int, Talk> talks;
    bool unread = false;  ///< it is read no further for now
    bool closing = false;
  };
  void pump(std::uint64_t id, Socket& socket, Time now);
  void begin(std::uint64_t id, Socket& socket, int talk, Time now);
  void end(Socket& socket, int talk, Time now);
  void feed(std::uint64_t id, Talk& talk, Time now);
  void review(std::uint64_t id, Socket& socket);

  Sessions& sessions_;
  RealtimeWire wire_;
  std::map<std::uint64_t, Socket> sockets_;
  std::unordered_map<ClientId, std::pair<std::uint64_t, int>> talks_;  ///< socket and number of each conversation
  std::set<std::uint64_t> hungry_;                                     ///< sockets with conversations that take more
  std::uint64_t sides_ = 0, errors_ = 0;
};

}  // namespace parlando::gateway
