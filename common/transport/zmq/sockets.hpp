#pragma once
/// Carries a Mesh over ZeroMQ: one ROUTER for callers, one DEALER per endpoint that is called, all on the owner's
/// thread. `inproc`, `ipc` and `tcp`; CURVE where keys are given. No numbered message is lost here: a full connection
/// keeps its frames in the mesh until it takes more; a word of the link that finds it full is said again later. ZeroMQ
/// stays in the source file.
#include <poll.h>

#include <memory>
#include <span>

#include "common/transport/directory.hpp"
#include "common/transport/mesh.hpp"
#include "common/transport/zmq/curve.hpp"

namespace parlando::transport {

/// Everything `inproc` endpoints have in common, and the one place that decides about keys; one per process is enough.
class ZmqContext {
 public:
  ZmqContext();
  ~ZmqContext();
  ZmqContext(const ZmqContext&) = delete;
  ZmqContext& operator=(const ZmqContext&) = delete;
  void* handle() const { return handle_; }
  curve::ZapServer& zap() { return *zap_; }

 private:
  void* handle_;
  std::unique_ptr<curve::ZapServer> zap_;
};

/// Of the ZeroMQ library in use, and whether it has CURVE: "4.3.4, CURVE".
std::string zmq_version();

/// Keys of one service; for `tcp` only.
struct SocketKeys {
  curve::KeyPair own;
  std::shared_ptr<curve::KeyTable> callers;        ///< who may call; needed to listen
  std::map<std::string, std::string> server_keys;  ///< role -> public key of the services called
};

struct SocketOptions {
  std::string bind;            ///< empty: nothing listens; tcp may end in :*
  Directory::Sources connect;  ///< role -> sources of its replicas
  std::optional<SocketKeys> keys;
  bool plain_tcp = false;          ///< tcp without keys is meant; else such endpoints are refused
  int high_water_messages = 512;   ///< per connection, ZeroMQ's own
  std::size_t callers_max = 8192;  ///< routes remembered, garbage senders included
};

struct SocketCounters {
  std::uint64_t full = 0;         ///< sends that had to wait
  std::uint64_t unroutable = 0;   ///< sends to a caller whose connection is gone
  std::uint64_t errors = 0;       ///< operations of ZeroMQ that failed otherwise
  std::uint64_t connections = 0;  ///< made, those made anew included
  std::uint64_t oversized = 0;    ///< messages of more than three frames
};

/// One thread at a time.
class Sockets {
 public:
  /// Binds, and begins to connect. @error Errc::io naming the endpoint and the reason, Errc::invalid_argument naming a
  /// source
  static Result<std::unique_ptr<Sockets>> open(std::shared_ptr<ZmqContext> context, SocketOptions options, Mesh& mesh,
                                               Time now);
  ~Sockets();
  /// Where it listens, with the port the system chose.
  const std::string& endpoint() const { return endpoint_; }

  /// Takes in what has arrived, some of each socket in turn. @return whether more waits: do not sleep
  bool read(Time now);
  /// After `flush`: asks the sockets that were written to, which costs less than a poll that does not wait.
  /// @return whether there was something, so that another pass is due
  bool look_again(Time now);
  /// Hands out what the mesh has to say, follows the directory, makes connections of suspect peers anew.
  void flush(Time now);
  /// To be polled for reading between `flush` and `read`; call `flush` and `read` until they have nothing to do before
  /// sleeping.
  std::span<const pollfd> descriptors();
  /// What poll said of `descriptors`, in the same order.
  void readable(std::span<const pollfd> polled);
  /// No socket was used since it last said that nothing waits: it is safe to sleep.
  bool idle() const;
  /// When the directory wants to be looked at.
  Time due() const;
  const SocketCounters& counters() const { return counters_; }
  const DirectoryCounters& directory() const;

 private:
  struct Impl;
  Sockets() = default;
  std::unique_ptr<Impl> impl_;
  std::string endpoint_;
  SocketCounters counters_;
};

}  // namespace parlando::transport
