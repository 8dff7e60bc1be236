#pragma once
/// One WebSocket from its handshake to its end. Included by the sources of this folder only: it brings Boost.Beast.
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/beast/websocket.hpp>
#include <deque>
#include <optional>

#include "common/http/stream.hpp"

namespace parlando::http {
namespace bhttp = beast::http;
namespace ws = beast::websocket;

class Socket final : public Connection {
 public:
  using UpgradeRequest = bhttp::request<bhttp::string_body>;
  /// @param path  of the server's handlers, which outlive it
  /// @param share  whose memory its messages are
  Socket(Server::Impl& server, std::uint64_t id, Stream stream, const SocketPath& path, std::string share);
  ~Socket() override;
  void start(UpgradeRequest request);
  bool send(std::string data, bool binary, std::uint32_t tag, std::optional<Due> due);
  void close(CloseCode code, std::string_view reason, CloseMode mode);
  void pause();
  void resume();
  std::size_t drop_queued(const std::function<bool(std::uint32_t)>& drop);
  std::size_t unsent_bytes() const { return unsent_; }
  void sweep(Clock::time_point now) override;
  void cut() override { cut(false); }
  /// @param lost  the peer broke the connection
  void cut(bool lost);

 private:
  enum class State { handshake, open, flushing, closing, ended };
  struct Frame {
    std::string data;
    bool binary;
    std::uint32_t tag;
    std::optional<Due> due;
  };
  std::shared_ptr<Socket> self() { return std::static_pointer_cast<Socket>(shared_from_this()); }
  void read();
  void on_read(error_code ec, std::size_t bytes);
  void deliver();
  bool count_memory();
  void write();
  void on_write(error_code ec);
  bool comes_too_slowly(Clock::time_point now) const;
  void begin_close();
  void drop_all();
  template <class F>
  std::size_t drop_frames(F goes);
  bool makes_room(std::size_t bytes_max);
  void review_late(Clock::time_point now);
  void close_slow();
  void agree_to_protocol();
  void tell_opened();
  void tell_slow();
  int tcp_state();

  Server::Impl& server_;
  const std::uint64_t id_;
  const SocketPath& path_;
  const std::string share_;
  std::optional<ws::stream<Stream, false>> ws_;  // without compression
  UpgradeRequest request_;
  beast::flat_buffer buffer_;
  std::deque<Frame> queue_;  // the front one is being written while `writing_`
  std::size_t unsent_ = 0;
  std::size_t counted_ = 0;  // of the buffer, against bodies_bytes_max
  State state_ = State::handshake;
  bool reading_ = false, delivering_ = false, writing_ = false, paused_ = false;
  bool slow_ = false, telling_slow_ = false, pinged_ = false, ping_pending_ = false, opened_ = false;
  bool said_goodbye_ = false;  // the peer's close frame came, whatever became of the answer
  ws::close_reason reason_;
  Clock::time_point heard_;                         // the last frame, or part of one, came then
  Clock::time_point part_;                          // the last part of a message came then
  std::optional<Clock::time_point> message_until_;  // of a message that has come in part: more has to come before
  std::optional<Clock::time_point> deadline_;       // of handshake, flush or close
  std::optional<Clock::time_point> gone_since_;     // paused, and the peer has ended its side
};

}  // namespace parlando::http
