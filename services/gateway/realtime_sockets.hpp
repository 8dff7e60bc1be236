#pragma once
/// The sockets of `/v1/realtime`: gives each translator (`realtime.hpp`) its conversations in Sessions, and carries
/// what they say to each other. What a conversation does not take yet waits here, and its socket is not read meanwhile.
///
/// A translator that was asked for as resumable outlives its socket for a minute: what it tells is kept, and who brings
/// its token goes on behind the last event that arrived.
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>

#include "services/gateway/helper.hpp"
#include "services/gateway/realtime.hpp"
#include "services/gateway/sessions.hpp"
#include "services/gateway/sound_due.hpp"

namespace parlando::gateway {

/// What is done to a socket.
struct RealtimeWire {
  /// @param sound_due  of sound: when it has to be on its way, or is dropped
  std::function<void(std::uint64_t socket, std::string event, std::optional<Time> sound_due)> send;
  std::function<void(std::uint64_t socket, std::uint16_t code, std::string reason)> close;
  std::function<void(std::uint64_t socket, bool read)> read;
  // All of these are optional.
  std::function<void(Helper::Work, Helper::Then failed)> help = {};  ///< reads large messages elsewhere
  /// Memory for them, and for resumable sockets. @param share  whose it is; empty: nobody's
  std::function<bool(std::size_t bytes, const std::string& share)> reserve = {};
  std::function<void(std::size_t bytes, const std::string& share)> release = {};
  // What follows counts sessions of a key. A session has the number of its first socket, wherever it goes on.
  /// A conversation beside the socket's own is one, too. Why it may not be; else `side_over` follows.
  std::function<std::optional<RealtimeError>(std::uint64_t session)> admit_side = {};
  std::function<void(std::uint64_t session)> side_over = {};
  std::function<void(std::uint64_t session)> over = {};  ///< nothing is left of it
};

/// What a socket was opened with.
struct RealtimeUpgrade {
  std::string target;           ///< with its query
  std::int64_t expires_at = 0;  ///< Unix time
  std::string session = {};     ///< JSON of a `session`, which a client secret brings; empty: none
  std::string owner = {};       ///< whose key it is
  std::string share = {};       ///< whose memory its large messages are
  bool beta = false;            ///< it speaks the names of the beta
};

struct RealtimeCounters {
  std::uint64_t errors = 0;                    ///< events that were answered by an `error`
  std::uint64_t resumed = 0, not_resumed = 0;  ///< tokens that were good, and others
};

class RealtimeSockets {
 public:
  static constexpr std::size_t kKeptBytesMax = 1u << 20;  ///< events of a resumable socket: the last 15 s of sound
  static constexpr std::chrono::seconds kResumeTime{60};  ///< after the loss of its socket
  static constexpr std::size_t kLargeBytes = 256u << 10;  ///< messages that are read elsewhere

  /// @param sessions  outlives it
  RealtimeSockets(Sessions& sessions, RealtimeWire wire) : sessions_(sessions), wire_(std::move(wire)) {}

  void opened(std::uint64_t socket, const RealtimeUpgrade& upgrade, Time now);
  bool has(std::uint64_t socket) const { return by_wire_.contains(socket); }
  /// Is this client of Sessions one of ours, its socket open or lost?
  bool owns(ClientId client) const { return sockets_.contains(client); }
  void message(std::uint64_t socket, std::string_view data, bool binary, Time now);
  void closed(std::uint64_t socket, Time now);
  /// Its connection broke: a resumable one waits.
  void lost(std::uint64_t socket, Time now);
  void on_tick(Time now);

  /// What Sessions want done with a client. @return false: it is none of these
  bool act_on(ToClient& action, Time now);
  /// Tells conversations more of what waits for them, once all that Sessions want done is done. @return false: nothing
  /// waits that they would take
  bool feed_more(Time now);

  std::size_t size() const { return sockets_.size(); }
  const RealtimeCounters& counters() const { return counters_; }

 private:
  struct Talk {
    ClientId client = 0;
    bool paused = false;
    std::deque<ToTalk> waiting;
  };
  /// A message that is read elsewhere, and then taken as its conversation takes it.
  struct Large {
    std::shared_ptr<const Realtime::Append> append;  ///< null: it is being read
    std::size_t at = 0, reserved = 0;
  };
  /// What a resumable socket needs.
  struct Kept {
    ResumeToken token;
    std::deque<RealtimeEvent> events;
    std::size_t bytes = 0;
    std::uint64_t dropped = 0;  ///< number of the last event that is not kept any more
    Time lost_at = Time::max();
  };
  struct Socket {
    Socket(std::uint64_t number, RealtimeOptions options) : id(number), wire(number), translator(std::move(options)) {}
    const std::uint64_t id;  ///< of its first socket, and of its conversation in Sessions
    std::uint64_t wire;      ///< the socket that it has now; 0: lost
    Realtime translator;
    std::map<int, Talk> talks;
    SoundDue due;
    std::optional<Large> large;
    std::optional<Kept> kept;
    std::string owner, share;
    bool beta = false;
    bool unread = false;  ///< it is read no further for now
    bool closing = false;
  };
  Socket* find(std::uint64_t wire);
  void resume(std::uint64_t wire, const std::string& token, const std::string& after, const std::string& owner,
              Time now);
  void keep(Socket& socket, Time now);
  void read_large(Socket& socket, std::string_view data);
  void was_read(std::uint64_t id, std::shared_ptr<const Realtime::Append> append, const std::string& text,
                std::size_t reserved, const std::string& share, Time now);
  void was_not_read(std::uint64_t id, std::size_t reserved, const std::string& share, Time now);
  void feed_large(Socket& socket);
  void drop(Socket& socket, Time now);
  void pump(Socket& socket, Time now);
  void tell(Socket& socket, RealtimeEvent event, Time now);
  void begin(Socket& socket, int talk, Time now);
  void end(Socket& socket, int talk, Time now);
  void feed(Socket& socket, Talk& talk, Time now);
  void review(Socket& socket);
  bool reserve(std::size_t bytes, const std::string& share) { return !wire_.reserve || wire_.reserve(bytes, share); }
  void release(std::size_t bytes, const std::string& share) {
    if (wire_.release) wire_.release(bytes, share);
  }

  Sessions& sessions_;
  RealtimeWire wire_;
  std::map<std::uint64_t, std::unique_ptr<Socket>> sockets_;           ///< by the number of their first socket
  std::unordered_map<std::uint64_t, std::uint64_t> by_wire_;           ///< open sockets, to that number
  std::map<std::string, std::uint64_t> by_token_;                      ///< SHA-256 of tokens, to that number
  std::unordered_map<ClientId, std::pair<std::uint64_t, int>> talks_;  ///< socket and number of each conversation
  std::set<std::uint64_t> hungry_;                                     ///< sockets with conversations that take more
  std::uint64_t sides_ = 0;
  RealtimeCounters counters_;
};

}  // namespace parlando::gateway
