#pragma once
/// One request to a server of somebody else, from a thread that may wait: connected, sent, read and closed. HTTP/1.0,
/// so that an answer comes in one piece. No TLS: what is asked stands beside the engine, or behind a proxy that has it.
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "common/base/result.hpp"

namespace parlando::http {

struct Url {
  std::string host, target;  ///< the target begins with a slash
  std::uint16_t port = 80;
  /// @error Errc::invalid_argument: it is no http://host[:port][/path]
  static Result<Url> parse(std::string_view text);
};

}  // namespace parlando::http

struct addrinfo;

namespace parlando::http {

/// As ::getaddrinfo, which knows no limit: it is called on a thread of its own, that is left behind when it takes too
/// long.
using Resolver = std::function<int(const char* host, const char* port, const addrinfo* hints, addrinfo** list)>;

/// Begins a thread that nobody waits for. @throws std::system_error as std::thread does
using Spawner = std::function<void(std::function<void()> run)>;

struct PostLimits {
  std::chrono::milliseconds time_max{30'000};  ///< for all of it
  std::size_t answer_bytes_max = 64 << 10;     ///< of the answer's body
  int give_up = -1;                            ///< a descriptor: can be read when nobody wants the answer any more
  Resolver resolver = {};                      ///< empty: the system's
  Spawner spawner = {};                        ///< of the threads that resolve; empty: the system's
};

struct PostAnswer {
  int status = 0;
  std::string body;
};

/// @error Errc::unavailable (no connection, or it broke), Errc::deadline_exceeded, Errc::overloaded (too long, or too
/// many look-ups of names hang),
/// Errc::bad_format (no HTTP)
Result<PostAnswer> post(const Url& url, std::string_view body, std::string_view type, const PostLimits& limits);
/// The same without a body.
Result<PostAnswer> get(const Url& url, const PostLimits& limits);

}  // namespace parlando::http
