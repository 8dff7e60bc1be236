#pragma once
/// A small HTTP and WebSocket server (Boost.Beast in the source files) for metrics and health of every service and for
/// the gateway. It makes no thread: its owner drives it, either by `wait()` from a loop of its own or by
/// `run_thread()`. All callbacks run on the driving thread, and never inside `send`, `close`, `pause`, `resume` or
/// `drop_queued`, so a callback may call any of them.
///
/// A WebSocket is reported by `opened`, then `message` in order, then `closed`, the first and the last exactly once.
/// The server drops no message: a socket that is not paused is read as fast as its messages are taken, and a paused one
/// fills TCP's window instead. One message of one socket is read per turn, so a client that floods does not delay
/// another by more than one message.
#include <poll.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::http {

struct Request {
  std::string method;  ///< "GET" for a HEAD request too: the server leaves the body of the answer out
  std::string target, body;
  /// Of this request, for an answer that is given later; never that of a WebSocket, but for the upgrade that opens one.
  std::uint64_t id = 0;
  std::vector<std::pair<std::string, std::string>> headers = {};  ///< as they came
  /// Its body's place in Limits::bodies_bytes_max, which is free when the last copy goes: whoever keeps the body longer
  /// than its connection keeps this, too. Goes on the driving thread. Null: the body is small.
  std::shared_ptr<void> counted = nullptr;

  std::string_view path() const { return std::string_view(target).substr(0, target.find('?')); }
  /// @param name  in any case. @return the first value; empty when there is none
  std::string_view header(std::string_view name) const;
};

struct Response {
  int status = 200;
  std::string type = "text/plain; charset=utf-8";
  std::string body;
  /// Sent instead of `body` when it is set, and not copied: for files that many clients ask for.
  std::shared_ptr<const std::string> shared_body = nullptr;
  /// Further headers; a 405 without `Allow` gets "GET, HEAD".
  std::vector<std::pair<std::string, std::string>> headers = {};
  /// There is no answer yet: `respond`, or `begin`, `write` and `finish`, follow. The rest of this is not looked at.
  bool later = false;

  static Response given_later() {
    Response out;
    out.later = true;
    return out;
  }
};

/// What a request may be, as far as its header tells.
struct Admission {
  std::size_t body_bytes_max;  ///< at first Limits::body_bytes_max, which it cannot exceed
  /// Whose memory its body, or the messages of its WebSocket, count as: see Limits::bodies_bytes_per_client_max. At
  /// first the client's address; empty: nobody's.
  std::string share;
};

/// What is asked of requests besides their answer. All of it is optional.
struct RequestHandlers {
  /// With the header alone: before the body is read, and before a WebSocket is opened.
  /// @return an answer that refuses it
  std::function<std::optional<Response>(const Request&, Admission&)> admit;
  /// The client of a request that is being answered later has gone, or has not taken its answer in time. Nothing that
  /// is said of it counts any more. Not after `respond` and `finish`. Likewise an upgrade that was admitted and does
  /// not become an open WebSocket.
  std::function<void(std::uint64_t id)> gone;
  /// Gives the server's own refusals (400, 403, 404, 413, 431, 500, 503) another form. The header may be incomplete.
  std::function<Response(const Request&, Response)> shape;
};

struct Limits {
  using Time = std::chrono::milliseconds;
  std::size_t header_bytes_max = 16 << 10;  ///< of a request's header; more is answered by 431
  std::size_t body_bytes_max = 1 << 20;     ///< of a request's body; more is answered by 413
  /// Of all bodies and WebSocket messages above 64 KiB that are being received or worked on, and of what `reserve` has
  /// taken. A request beyond it is answered by 503, a socket closed with 1013.
  std::size_t bodies_bytes_max = 256u << 20;
  /// Of these, what one client may hold (Admission::share). 0: no limit. Addresses have none where
  /// connections_per_address_max is 0.
  std::size_t bodies_bytes_per_client_max = 128u << 20;
  std::size_t message_bytes_max = 64 << 10;  ///< of one WebSocket message; more closes with 1009
  int connections_max = 256;                 ///< in all; further ones are answered by 503 and closed
  /// From one IPv4 address or one IPv6 /64 network; further ones are answered by 429. 0: no limit (behind a proxy).
  int connections_per_address_max = 64;
  Time header_time_max{5'000};  ///< from the connection, or from a later request's first byte, to the end of the header
  /// From the end of the header to the end of the body; and between two parts of a WebSocket message.
  Time body_time_max{30'000};
  Time idle_time_max{60'000};   ///< between requests; of a WebSocket: without any frame. It is pinged after half of it
  Time close_time_max{1'000};   ///< of a closing handshake; then the connection is cut
  Time flush_time_max{5'000};   ///< of what CloseMode::flush sends before the handshake
  Time gone_time_max{5'000};    ///< a paused socket whose peer has ended its side is kept so long for its last messages
  Time stall_time_max{30'000};  ///< a streamed answer of which the client takes nothing for so long is cut
  Time socket_stall_time_max{5'000};  ///< likewise a WebSocket, as one whose peer is lost
  Time accept_retry_time{100};        ///< without accepting, when the process or the system has no descriptors left
  std::size_t unsent_bytes_soft = 128 << 10;  ///< of one WebSocket; above it `slow(true)`, below its half `slow(false)`
  /// Of one WebSocket; above it the oldest sound that may be dropped goes, and without any the socket is closed with
  /// 1013.
  std::size_t unsent_bytes_max = 2 << 20;
  std::size_t stream_unsent_bytes_max = 16 << 20;  ///< of one streamed answer; above it the connection is cut
  /// Bytes of one WebSocket that the system may hold unsent beside ours (TCP_NOTSENT_LOWAT). They cannot be taken back
  /// by `drop_queued`, so this bounds what is still heard after an interruption. 0: the system's default, megabytes.
  std::size_t system_unsent_bytes_max = 16 << 10;
  /// Values of the Host header that are served, "name" (any port) or "name:port"; "*" serves all. Empty, the default:
  /// on a loopback address localhost, 127.0.0.1, [::1] and the address itself, with the port; elsewhere localhost and
  /// every numeric address, because DNS rebinding needs a name.
  std::vector<std::string> hosts = {};
  /// Values of the Origin header that may open a WebSocket besides the page's own ("https://example.org"); "*": all.
  std::vector<std::string> origins = {};
};

/// Counts up. Written by the driving thread, read from any.
class Counter {
 public:
  void add(std::uint64_t count = 1) { value_.store(value() + count, std::memory_order_relaxed); }
  std::uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

struct Counters {
  Counter accepted;         ///< connections that passed the limits
  Counter refused_full;     ///< connections above connections_max
  Counter refused_address;  ///< connections above connections_per_address_max
  Counter refused_origin;   ///< upgrades answered by 403
  Counter refused_host;     ///< requests answered by 403 or 400 for their Host
  Counter accept_backoffs;  ///< waits of accept_retry_time
  Counter closed_slow;      ///< sockets above unsent_bytes_max, with sound that is late, or that take nothing
  Counter dropped_late;     ///< messages of sound that a slow client did not get
  Counter closed_idle;      ///< connections cut for header, body, response or idle time
  Counter refused_bodies;   ///< requests and messages above bodies_bytes_max
  Counter cut_streams;      ///< answers whose client was too slow
  Counter closed_forced;    ///< sockets cut because they did not finish flush or handshake in time
  Counter protocol_errors;  ///< malformed requests, frames and TLS records; messages and requests that are too large
  Counter callback_errors;  ///< exceptions thrown by callbacks; their connection was closed with 500 or 1011
};

/// Where WebSockets may be opened.
struct SocketPath {
  std::string path;                   ///< of the target, without its query
  std::size_t message_bytes_max = 0;  ///< instead of that of Limits; 0: the same
  std::size_t unsent_bytes_max = 0;   ///< likewise
  std::string protocol = {};          ///< a subprotocol that is agreed to when the client offers it
};

/// The request that a WebSocket was opened with.
struct Upgrade {
  std::string path, target;                                  ///< the target with its query
  std::vector<std::pair<std::string, std::string>> headers;  ///< names as the client wrote them
  std::string share = {};                                    ///< of its Admission
};

/// Events of WebSockets, by connection number. Numbers are never reused.
struct SocketHandlers {
  std::vector<SocketPath> paths;  ///< upgrade requests elsewhere are answered by 404
  std::function<void(std::uint64_t id, const Upgrade& upgrade)> opened;
  std::function<void(std::uint64_t id)> closed;
  /// @param data  valid during the call only
  std::function<void(std::uint64_t id, std::string_view data, bool binary)> message;
  std::function<void(std::uint64_t id, bool slow)> slow = {};  ///< optional; see Limits::unsent_bytes_soft
  /// Optional; just before `closed` when the peer was lost: its end of the connection broke without a close frame.
  std::function<void(std::uint64_t id)> lost = {};
};

/// Codes of RFC 6455 that the engine uses.
enum class CloseCode : std::uint16_t {
  normal = 1000,
  going_away = 1001,  ///< the server is draining
  policy = 1008,
  internal = 1011,
  try_later = 1013,
};
/// When a message of sound has to be on its way.
struct Due {
  std::chrono::steady_clock::time_point by;
  bool may_drop = false;  ///< a later one is dropped; else the socket is closed with 1013
};
enum class CloseMode {
  flush,  ///< what is queued is sent first
  now,    ///< what is queued is dropped, but for the frame that is being written
};

class Server {
 public:
  using Handle = std::function<Response(Request&)>;  ///< may take the body
  /// @param address  numeric host or localhost, and port: "127.0.0.1:7860", "[::1]:80"; port 0 takes a free one
  /// @error Errc::invalid_argument for a malformed address, Errc::io when it cannot be listened on
  static Result<std::unique_ptr<Server>> start(const std::string& address, Handle handle, SocketHandlers sockets,
                                               Limits limits);
  /// The same at another address. Before the first `wait` or `run_thread`, as is `set_requests`.
  /// @return the port. @error as `start`
  Result<int> also_listen(const std::string& address);
  void set_requests(RequestHandlers requests);
  /// Every connection speaks TLS, 1.2 or newer. Likewise before the first `wait`, and again when the files have
  /// changed: later connections get what they hold then. @param certificate  PEM, with its chain. @param key  PEM
  /// @error Errc::io, Errc::bad_format, naming the file; what was used before stays
  Result<void> use_tls(const std::string& certificate, const std::string& key);
  /// Cuts all connections and calls no callback; a thread of `run_thread` has ended. Not from a callback.
  ~Server();

  /// Serves until one of `fds` is ready for POLLIN (revents as poll(2) sets them), the time is over (negative: none),
  /// or `stop_waiting` was called. Errors and hang-ups count as ready. That a number means another file by now is
  /// noticed at the next wait. @return how many of `fds` are ready
  int wait(std::span<pollfd> fds, std::chrono::milliseconds timeout);
  /// Makes the running `wait`, or else the next one, return after the current callback. Driving thread.
  void stop_waiting();
  /// Serves on a thread of its own from now on; `wait` is not used then.
  void run_thread();

  /// The following four are called on the driving thread, and after `run_thread` from any thread.
  /// @param tag  for drop_queued
  /// @return false when the socket is unknown or closing: the data was not taken. Always true after `run_thread`
  bool send(std::uint64_t id, std::string data, bool binary, std::uint32_t tag = 0, std::optional<Due> due = {});
  /// WebSocket handshake with a time limit. No further message is delivered; `closed` follows. A later call with
  /// CloseMode::now shortens a flush. @param reason  up to 123 bytes are sent
  void close(std::uint64_t id, CloseCode code = CloseCode::normal, std::string reason = {},
             CloseMode mode = CloseMode::flush);
  /// Stops reading; the read that is outstanding may still deliver a message. A paused socket is not cut for idleness.
  void pause(std::uint64_t id);
  void resume(std::uint64_t id);

  /// Runs `f` on the driving thread, soon. From any thread; what is still waiting when the server goes is dropped.
  void post(std::function<void()> f);

  /// The rest, but for `counters`, `sockets` and `port`, is for the driving thread alone.
  /// Counts memory of the caller's against Limits::bodies_bytes_max until it is released.
  /// @param share  whose it is; empty: nobody's. @return false: it is too much
  bool reserve(std::size_t bytes, const std::string& share = {});
  void release(std::size_t bytes, const std::string& share = {});
  std::size_t reserved_bytes() const;  ///< all that counts against Limits::bodies_bytes_max now
  /// Drops queued binary frames whose tag `drop` wants to go, but for one that is being written. @return how many
  std::size_t drop_queued(std::uint64_t id, const std::function<bool(std::uint32_t tag)>& drop);
  /// Given to `send` and not yet to the system; 0 for an unknown socket.
  std::size_t unsent_bytes(std::uint64_t id) const;
  /// An answer to a request whose handler said `later`; from the handler itself, too.
  /// @return false: the request is unknown, its client has gone, or it was answered
  bool respond(std::uint64_t request, Response response);
  /// The same in parts: the head of `response` (its body, if there is any, is the first part), parts as they come, and
  /// the end. HTTP/1.1 clients get chunks. Above Limits::stream_unsent_bytes_max the connection is cut.
  bool begin(std::uint64_t request, Response response);
  bool write(std::uint64_t request, std::string_view part);
  bool finish(std::uint64_t request);
  /// The answer cannot be finished: the connection ends, so that the client knows. Without `gone`.
  void abort(std::uint64_t request);
  /// Of `begin`, `write` and `finish`, what the system has not taken; 0 for an unknown request.
  std::size_t unsent_answer_bytes(std::uint64_t request) const;
  /// Requests that wait for their answer, or whose answer is on its way.
  std::size_t requests() const;
  /// For draining: closes the listener, and answers from now on end their connection. From any thread after
  /// `run_thread`.
  void stop_accepting();

  int port() const;
  std::size_t sockets() const;      ///< open WebSockets, those that are closing included
  std::size_t connections() const;  ///< what connections_max counts, WebSockets among them
  const Counters& counters() const;

  struct Impl;

 private:
  Server() = default;
  std::unique_ptr<Impl> impl_;
};

}  // namespace parlando::http
