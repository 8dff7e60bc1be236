#pragma once
/// Messages over ZeroMQ: one ROUTER for callers, one DEALER per replica that is called, one thread that owns all sockets.
/// `inproc`, `ipc` and `tcp`; CURVE where keys are given. HELLO agrees on the version, heartbeats find dead and hung peers. architecture.md §4,
/// reliability.md §1. ZeroMQ stays in the source file.
#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "common/base/clock.hpp"
#include "common/transport/transport.hpp"

namespace parlando::transport {

/// Everything `inproc` endpoints have in common; one per process is enough.
class ZmqContext {
 public:
  ZmqContext();
  ~ZmqContext();
  ZmqContext(const ZmqContext&) = delete;
  ZmqContext& operator=(const ZmqContext&) = delete;
  void* handle() const { return handle_; }

 private:
  void* handle_;
};

/// Of the ZeroMQ library in use, and whether it has CURVE: "4.3.4, CURVE".
std::string zmq_version();

/// Z85 keys of 40 characters. A connection whose key is not in `allowed` is refused and counted.
struct CurveKeys {
  std::string public_key, secret_key;
  std::vector<std::string> allowed;  ///< callers' public keys; for the listening side
  std::string server_key;            ///< public key of the services called; for the connecting side
  /// A fresh pair. @error Errc::unsupported when this ZeroMQ was built without CURVE
  static Result<CurveKeys> generate();
  /// Reads one key from a file with 40 characters. @error Errc::not_found, Errc::bad_format naming the file
  static Result<std::string> read_key(const std::string& file);
};

/// What the working thread tells the socket thread, and heartbeats tell callers.
struct Progress {
  std::atomic<std::uint64_t> steps{0};  ///< grows with every unit of work
  std::atomic<bool> busy{false};        ///< a unit is under way
  std::atomic<std::int64_t> step_limit_ms{2000};
  std::atomic<std::int64_t> load{0}, slots{0};
};

struct ZmqOptions {
  Peer self;
  std::string bind;                                          ///< empty: nothing listens; tcp may end in :*
  std::vector<std::pair<std::string, std::string>> connect;  ///< role, endpoint
  std::optional<CurveKeys> curve;                            ///< tcp only
  milliseconds heartbeat{100};
  int misses_max = 3;
  std::size_t queue_messages_max = 4096;  ///< of messages on their way to the socket thread
  int high_water_messages = 512;          ///< per connection, ZeroMQ's own
  std::shared_ptr<const Progress> progress;
};

struct ZmqCounters {
  std::atomic<std::uint64_t> received{0}, sent{0}, malformed{0}, unknown_type{0}, version_refused{0}, keys_refused{0}, dropped_full{0}, unroutable{0},
      peers_gone{0}, peers_hung{0};
};

class ZmqTransport final : public Transport {
 public:
  /// Binds and starts the socket thread. Handlers run on it. @error Errc::io naming the endpoint and the reason
  static Result<std::unique_ptr<ZmqTransport>> start(std::shared_ptr<ZmqContext> context, ZmqOptions options, Handlers handlers);
  ~ZmqTransport() override;
  Result<void> send(const std::string& peer, protocol::Message message) override;
  /// Where it listens, with the port the system chose.
  const std::string& endpoint() const { return endpoint_; }
  const ZmqCounters& counters() const { return counters_; }

 private:
  class Loop;
  ZmqTransport() = default;
  std::unique_ptr<Loop> loop_;
  std::string endpoint_;
  ZmqCounters counters_;
};

}  // namespace parlando::transport
