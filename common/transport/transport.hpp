#pragma once
/// Carries messages between services: over ZeroMQ (`zmq_transport.hpp`) or simulated (`sim_transport.hpp`), with one interface.
/// A transport promises little: a message may be lost, doubled or late. `channels.hpp` makes delivery idempotent on top of it.
#include <functional>
#include <string>

#include "common/protocol/codec.hpp"

namespace parlando::transport {

/// Another instance, as its HELLO names it.
struct Peer {
  std::string instance;       ///< unique per process start; the routing id
  std::string role;           ///< vad, tokenizer, llm-chat, …
  std::uint16_t version = 1;  ///< protocol version both sides know
  bool caller = false;        ///< it connected to us; else we connected to it
  bool operator==(const Peer&) const = default;
};

/// Called on the transport's own thread; they hand over and return.
struct Handlers {
  std::function<void(const std::string& peer, protocol::Message)> message;
  std::function<void(const Peer&, bool up)> peer;  ///< up after HELLO; down when it is gone or hung
};

class Transport {
 public:
  virtual ~Transport() = default;
  /// Hands a message to the peer's connection; from any thread.
  /// @error Errc::unavailable when no such peer is up, Errc::overloaded when the outgoing queue is full
  virtual Result<void> send(const std::string& peer, protocol::Message message) = 0;
};

}  // namespace parlando::transport
