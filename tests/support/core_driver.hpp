#pragma once
/// Talks to a core without a host: typed messages in, typed messages out, time by hand.
#include <optional>
#include <utility>
#include <vector>

#include "common/protocol/messages.hpp"
#include "common/service/core.hpp"

namespace parlando {

class CoreDriver {
 public:
  /// What a core said.
  struct Heard {
    std::string peer;
    protocol::Message message;
    protocol::MessageType type() const { return message.head.type; }
    std::uint32_t stream() const { return message.head.stream.value; }
    template <protocol::WireMessage T>
    bool is() const {
      return type() == T::kType;
    }
    /// Its fields; those of an empty message when it is of another type or cannot be read, which `is` tells.
    template <protocol::WireMessage T>
    T read() const {
      auto copy = message;
      auto body = is<T>() ? protocol::read<T>(copy) : fail(Errc::unknown_type, "another type");
      return body ? *std::move(body) : T{};
    }
    /// Of an error; empty for other messages.
    std::string code() const {
      return is<protocol::ErrorMessage>() ? read<protocol::ErrorMessage>().code : std::string();
    }
    std::string why() const {
      return is<protocol::ErrorMessage>() ? read<protocol::ErrorMessage>().message : std::string();
    }
  };
  static constexpr SessionId kSession{0, 7};

  explicit CoreDriver(service::Core& core) : core_(core) {}

  template <protocol::WireMessage T>
  void tell(const std::string& peer, std::uint32_t stream, T body, SessionId session = kSession,
            Time deadline = Time::max()) {
    protocol::Envelope head;
    head.session = session;
    head.stream = {stream};
    auto message = protocol::pack(std::move(body), head);
    message.deadline = deadline;
    core_.on_message(peer, std::move(message), now);
    collect();
  }
  void peer(const transport::Peer& peer, transport::PeerState state) {
    core_.on_peer(peer, state, now);
    collect();
  }
  /// A replica that the core calls: linked, ready, with room.
  void replica(const std::string& instance, const std::string& role,
               transport::PeerState state = transport::PeerState::up) {
    peer({.instance = instance, .role = role}, state);
  }
  /// Somebody who calls the core.
  void caller(const std::string& instance, transport::PeerState state) {
    peer({.instance = instance, .role = "controller", .caller = true}, state);
  }
  /// The link did not take what the core said.
  void refuse(const Heard& said, const Error& error) {
    core_.on_refused(said.peer, said.message.head, error, now);
    collect();
  }
  /// Time goes on and the host's tick comes. @param by  moves the clock
  void tick(milliseconds by) {
    now += by;
    core_.on_tick(now);
    collect();
  }
  /// Units of work until there is none left, at most `most`.
  void work(int most = 2000) {
    for (bool more = true; more && most > 0; --most) {
      more = core_.work(now);
      collect();
    }
  }
  /// What was said since the last call, in order; only messages of one type where it is given.
  std::vector<Heard> take(std::optional<protocol::MessageType> type = {}) {
    std::vector<Heard> out;
    for (auto& h : std::exchange(heard_, {}))
      if (!type || h.type() == *type) out.push_back(std::move(h));
    return out;
  }

  Time now{std::chrono::hours(1)};

 private:
  void collect() {
    for (auto& out : core_.take()) heard_.push_back({out.peer, std::move(out.message)});
  }
  service::Core& core_;
  std::vector<Heard> heard_;
};

}  // namespace parlando
