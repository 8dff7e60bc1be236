#pragma once
/// A small HTTP and WebSocket server (Boost.Beast in the source file): metrics and health of every service, the gateway's page and sockets.
/// Runs on one thread of its own; callbacks run there and hand over.
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "common/base/result.hpp"

namespace parlando::http {

struct Request {
  std::string method, target, body;
};
struct Response {
  int status = 200;
  std::string type = "text/plain; charset=utf-8", body;
};

struct Limits {
  std::size_t body_bytes_max = 1 << 20, message_bytes_max = 64 << 10;  ///< of a request; of one WebSocket message
  int connections_max = 256;
  int header_seconds_max = 5, idle_seconds_max = 60;
  std::size_t unsent_bytes_max = 4 << 20;  ///< of one WebSocket; beyond it the connection is closed
};

/// Events of WebSockets, by connection number.
struct SocketHandlers {
  std::string path;  ///< upgrade requests elsewhere are refused
  std::function<void(std::uint64_t id)> opened, closed;
  std::function<void(std::uint64_t id, std::string data, bool binary)> message;
};

class Server {
 public:
  /// @param address  host:port; port 0 takes a free one. @error Errc::io naming the address and the reason
  static Result<std::unique_ptr<Server>> start(const std::string& address, std::function<Response(const Request&)> handle, SocketHandlers sockets,
                                               Limits limits);
  ~Server();
  int port() const;
  /// From any thread. A connection that is too far behind is closed.
  void send(std::uint64_t id, std::string data, bool binary);
  void close(std::uint64_t id);
  std::size_t sockets() const;

  struct Impl;

 private:
  Server() = default;
  std::shared_ptr<Impl> impl_;
};

}  // namespace parlando::http
