/// Round trip of a 20 ms PCM frame (640 bytes) per kind of endpoint, beside a bare ZeroMQ ping-pong of the same frames, interleaved.
/// `bench_transport [RUNS] [PINGS]`: one line per kind with the medians over the runs of p50 and p99. Ours is measured at the Transport interface.
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <thread>
#include <zmq.hpp>

#include "common/transport/zmq_transport.hpp"

using namespace parlando;
using namespace parlando::transport;
using Micros = std::vector<double>;

namespace {

double micros_since(Time start) { return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count(); }
double quantile(Micros v, double q) {
  std::sort(v.begin(), v.end());
  return v.empty() ? 0 : v[std::min(v.size() - 1, static_cast<std::size_t>(q * static_cast<double>(v.size())))];
}

protocol::Message frame() {
  protocol::Message m;
  m.head.type = protocol::MessageType::audio, m.head.session = {1, 1}, m.head.stream = 1;
  m.body = "{}";
  m.payload.assign(640, std::byte{1});
  return m;
}

/// The same three frames, sent by two threads that do nothing else.
Micros bare(const std::string& bind, int pings) {
  zmq::context_t context(1);
  zmq::socket_t router(context, zmq::socket_type::router);
  router.bind(bind);
  const auto endpoint = router.get(zmq::sockopt::last_endpoint);
  std::thread server([&] {
    for (int n = 0; n < pings + 200; ++n) {
      zmq::message_t parts[4];
      for (auto& p : parts) (void)router.recv(p);
      for (int i = 0; i < 4; ++i) router.send(parts[i], i < 3 ? zmq::send_flags::sndmore : zmq::send_flags::none);
    }
  });
  zmq::socket_t dealer(context, zmq::socket_type::dealer);
  dealer.connect(endpoint);
  const auto f = *protocol::encode(frame());
  Micros out;
  for (int n = 0; n < pings + 200; ++n) {
    const auto start = std::chrono::steady_clock::now();
    dealer.send(zmq::buffer(f.envelope), zmq::send_flags::sndmore), dealer.send(zmq::buffer(f.body), zmq::send_flags::sndmore),
        dealer.send(zmq::buffer(f.payload), zmq::send_flags::none);
    zmq::message_t part;
    do (void)dealer.recv(part);
    while (part.more());
    if (n >= 200) out.push_back(micros_since(start));
  }
  server.join();
  return out;
}

Micros ours(const std::string& bind, int pings) {
  auto context = std::make_shared<ZmqContext>();
  std::unique_ptr<ZmqTransport> server, client;
  std::mutex mutex;
  std::condition_variable done;
  bool ready = false, finished = false;
  Micros out;
  Time start;
  int n = 0;
  std::atomic<ZmqTransport*> to_server{nullptr}, to_client{nullptr};
  server =
      *ZmqTransport::start(context, {.self = {"s", "vad"}, .bind = bind},
                           {[&](const std::string& from, protocol::Message m) { (void)to_server.load()->send(from, std::move(m)); }, [](const Peer&, bool) {}});
  to_server = server.get();
  auto ping = [&] {
    start = std::chrono::steady_clock::now();
    (void)to_client.load()->send("s", frame());
  };
  client = *ZmqTransport::start(context, {.self = {"c", "controller"}, .connect = {{"vad", server->endpoint()}}},
                                {[&](const std::string&, protocol::Message) {
                                   if (++n > 200) out.push_back(micros_since(start));
                                   if (n < pings + 200) return ping();
                                   const std::lock_guard lock(mutex);
                                   finished = true, done.notify_all();
                                 },
                                 [&](const Peer&, bool up) {
                                   const std::lock_guard lock(mutex);
                                   ready = up, done.notify_all();
                                 }});
  to_client = client.get();
  std::unique_lock lock(mutex);
  done.wait(lock, [&] { return ready; });
  lock.unlock();
  ping();
  lock.lock();
  done.wait(lock, [&] { return finished; });
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  const int runs = argc > 1 ? std::atoi(argv[1]) : 9, pings = argc > 2 ? std::atoi(argv[2]) : 3000;
  std::printf("%d runs of %d round trips of 640 bytes; median over the runs (lowest…highest), microseconds\n", runs, pings);
  for (const std::string kind : {"inproc", "ipc", "tcp"}) {
    Micros p50[2], p99[2];
    for (int r = 0; r < runs; ++r)
      for (int which = 0; which < 2; ++which) {
        const auto bind = kind == "tcp"   ? std::string("tcp://127.0.0.1:*")
                          : kind == "ipc" ? "ipc:///tmp/parlando-bench-" + std::to_string(::getpid()) + "-" + std::to_string(2 * r + which)
                                          : "inproc://bench";
        const auto v = which == 0 ? bare(bind, pings) : ours(bind, pings);
        p50[which].push_back(quantile(v, 0.5)), p99[which].push_back(quantile(v, 0.99));
      }
    auto text = [](const Micros& v) {
      char b[80];
      std::snprintf(b, sizeof b, "%7.1f (%.1f…%.1f)", quantile(v, 0.5), quantile(v, 0), quantile(v, 1));
      return std::string(b);
    };
    std::printf("%-7s p50  bare %s   parlando %s   ratio %.2f\n%-7s p99  bare %s   parlando %s   ratio %.2f\n", kind.c_str(), text(p50[0]).c_str(),
                text(p50[1]).c_str(), quantile(p50[1], 0.5) / quantile(p50[0], 0.5), "", text(p99[0]).c_str(), text(p99[1]).c_str(),
                quantile(p99[1], 0.5) / quantile(p99[0], 0.5));
  }
}
