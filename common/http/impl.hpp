#pragma once
/// What the parts of the server share. Included by the sources of this folder only. One thread at a time, so nothing is
/// locked.
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <deque>
#include <thread>
#include <unordered_map>

#include "common/http/guards.hpp"
#include "common/http/server.hpp"

namespace parlando::http {
namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;
// Concrete executors: the type-erased default of Asio costs a virtual call and a copy at every step of an operation.
using Executor = asio::io_context::executor_type;
using TcpSocket = asio::basic_stream_socket<tcp, Executor>;
using Acceptor = asio::basic_socket_acceptor<tcp, Executor>;
using Timer = asio::basic_waitable_timer<Clock, asio::wait_traits<Clock>, Executor>;
using Descriptor = asio::posix::basic_stream_descriptor<Executor>;

class Tls;

/// A connection in the server's table: an HTTP exchange or a WebSocket. Pending operations keep it alive after it left
/// the table.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  virtual ~Connection() = default;
  virtual void sweep(Clock::time_point now) = 0;  ///< checks deadlines, a few times a second
  virtual void cut() = 0;                         ///< closes the descriptor and leaves the table
};
class Socket;

/// What counts against Limits::bodies_bytes_max, and whose it is.
class Budget {
 public:
  explicit Budget(const Limits& limits)
      : bytes_max_(limits.bodies_bytes_max), share_max_(limits.bodies_bytes_per_client_max) {}
  bool take(std::size_t bytes, const std::string& share);
  void give(std::size_t bytes, const std::string& share);
  std::size_t taken() const { return taken_; }

 private:
  const std::size_t bytes_max_, share_max_;
  std::size_t taken_ = 0;
  std::unordered_map<std::string, std::size_t> shares_;  ///< who holds nothing is not in it
};

/// A request that is answered later.
class Answering {
 public:
  virtual ~Answering() = default;
  virtual void respond(Response response) = 0;
  virtual bool begin(Response head) = 0;
  virtual bool write(std::string_view part) = 0;
  virtual bool finish() = 0;
  virtual void abort() = 0;
  virtual std::size_t unsent_bytes() const = 0;
};

struct Server::Impl {
  explicit Impl(Limits l);
  ~Impl();

  // Driving.
  int wait(std::span<pollfd> fds, std::chrono::milliseconds timeout);
  void stop_waiting();
  void turn();
  void watch(std::span<const pollfd> fds);
  /// Called by every handler that a client can cause: ends the turn when it was long.
  void count_step();
  template <class F>
  void run_handlers(F&& f);
  /// Runs now on the driving thread, else there.
  template <class F>
  void on_driver(F&& f);

  // Connections.
  struct Listener {
    explicit Listener(asio::io_context& io) : acceptor(io.get_executor()), timer(io.get_executor()) {}
    Acceptor acceptor;
    Timer timer;  ///< until it is asked again after a failure
    int port = 0;
  };
  Result<void> listen(const std::string& address);
  bool allows_host(std::string_view host) const;
  void accept(Listener& at);
  void admit(TcpSocket socket);
  void start_exchange(std::uint64_t id, TcpSocket socket);
  void leave(std::uint64_t id);  ///< the connection has ended
  void arm_sweep();
  void stop_accepting();
  Socket* find(std::uint64_t id) const;
  Answering* find_request(std::uint64_t id) const;
  /// Calls a callback. @return false when it threw
  template <class F>
  bool guarded(F&& f);

  asio::io_context io{1};
  asio::executor_work_guard<Executor> work{io.get_executor()};
  std::deque<Listener> listeners;  ///< the first is the one that `port` tells
  Timer sweep_timer{io.get_executor()};
  Handle handle;
  SocketHandlers handlers;
  RequestHandlers request_handlers;
  Limits limits;
  std::vector<HostRule> hosts;  ///< of each listener
  Counters counters;
  bool accepting = true, stopping = false, sweeping = false;
  Clock::time_point now = Clock::now();  ///< of the last sweep: exact enough for idleness, and free
  Clock::duration sweep_period;

  struct Entry {
    std::shared_ptr<Connection> connection;
    std::string address;  ///< what connections_per_address_max counts
  };
  std::uint64_t next_id = 1;
  std::unordered_map<std::uint64_t, Entry> connections;
  std::unordered_map<std::string, int> per_address;
  std::unordered_map<std::uint64_t, Socket*>
      open;  ///< WebSockets whose handshake is done; they are in `connections` too
  std::atomic<std::size_t> open_count{0};
  std::unordered_map<std::uint64_t, Answering*> answering;  ///< requests, by their own numbers
  std::size_t requests_open = 0;                            ///< those whose answer is still being sent, too
  std::shared_ptr<Budget> budget;                           ///< whoever keeps a body may outlive the server
  std::shared_ptr<Tls> tls;                                 ///< null: connections are plain

  bool in_turn = false, stop = false;
  int steps = 0;
  int watch_fd = -1;  ///< an epoll descriptor that holds the caller's descriptors, and is itself watched by Asio
  Descriptor watcher{io.get_executor()};
  std::vector<int> watched;
  bool watch_armed = false, watch_fired = false;
  std::thread thread;
  std::atomic<bool> threaded{false}, quit{false};
};

template <class F>
bool Server::Impl::guarded(F&& f) {
  if (stopping) return true;
  try {
    f();
    return true;
  } catch (...) {  // `Failure` is no std::exception
    counters.callback_errors.add();
    return false;
  }
}

template <class F>
void Server::Impl::on_driver(F&& f) {
  if (!threaded || io.get_executor().running_in_this_thread()) return f();
  asio::post(io, std::forward<F>(f));
}

}  // namespace parlando::http
