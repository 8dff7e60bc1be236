#include <algorithm>
#include <map>
#include <set>

#include "common/base/assert.hpp"
#include "common/transport/mesh.hpp"
#include "tests/fuzz/targets.hpp"

namespace parlando::fuzz {
namespace {
using namespace protocol;
using transport::Mesh;

/// Reads the input as a script; what is missing at its end is zero.
struct Script {
  std::span<const std::byte> rest;
  std::uint8_t byte() {
    if (rest.empty()) return 0;
    const auto out = std::to_integer<std::uint8_t>(rest.front());
    rest = rest.subspan(1);
    return out;
  }
  /// Small numbers mostly, the largest one sometimes.
  std::uint64_t number() {
    const auto b = byte();
    return b == 255 ? ~0ull : b;
  }
  std::span<const std::byte> bytes() {
    const std::size_t wanted = byte();
    const auto n = std::min(wanted, rest.size());
    const auto out = rest.first(n);
    rest = rest.subspan(n);
    return out;
  }
  std::string text() {
    const auto b = bytes();
    return {reinterpret_cast<const char*>(b.data()), b.size()};
  }
};

/// One mesh, four routes that call it (0…3) and three that it calls (10…12), in the hands of the script.
struct Play {
  Mesh mesh;
  Time now{std::chrono::hours(1)};
  std::map<Mesh::Route, Hello> asked;            ///< the last HELLO that we said on a route
  std::map<Mesh::Route, std::uint64_t> numbers;  ///< of what was said to us
  std::set<Mesh::Route> full;
  std::vector<std::pair<std::string, Envelope>> unhandled;
  std::uint64_t call_route = 10;

  static transport::MeshOptions options() {
    transport::MeshOptions o;
    o.instance = "controller-1";
    o.role = "controller";
    o.link.window_messages = 4;
    o.link.stream_bytes_max = 4096;
    o.link.link_bytes_max = 16384;
    o.link.streams_max = 8;
    o.peers_max = 4;
    o.sessions_max = 8;
    o.resume = milliseconds(2000);
    o.seed = 1;
    return o;
  }
  Play() : mesh(options()) {
    for (; call_route < 13; ++call_route) mesh.connected(call_route, "vad", now);
  }

  void hear(Mesh::Route route, const Frames& f) {
    const std::span<const std::byte> frames[] = {f.envelope, std::as_bytes(std::span(f.body)), f.payload};
    mesh.receive(route, frames, {}, now);
  }
  Envelope head(Script& s) {
    Envelope e;
    e.session = {1, s.byte() % 3u};
    e.stream = {s.byte() % 32u};
    e.epoch = {s.byte() % 4u};
    return e;
  }
  Message data(Script& s) {
    static constexpr MessageType kTypes[] = {MessageType::audio,
                                             MessageType::close,
                                             MessageType::error,
                                             MessageType::flush,
                                             static_cast<MessageType>(120),
                                             MessageType::close,
                                             MessageType::generate,
                                             MessageType::cancel};
    Message m;
    m.head = head(s);
    m.head.type = kTypes[s.byte() % std::size(kTypes)];
    m.head.remaining_ms = s.byte() % 3u * 100;
    if (m.head.type == MessageType::audio) m.payload.resize(s.byte());
    return m;
  }
  void flush() {
    mesh.flush(now, [this](Mesh::Route route, const Frames& f) {
      if (full.contains(route)) return false;
      const std::span<const std::byte> frames[] = {f.envelope, std::as_bytes(std::span(f.body)), f.payload};
      auto said = decode(frames, now);
      PARLANDO_ASSERT(said.has_value(), "nothing leaves that cannot arrive");
      auto& first = said->messages.front();
      if (first.head.type != MessageType::hello) return true;
      auto h = read<Hello>(first);
      PARLANDO_ASSERT(h.has_value(), "our own HELLO can be read");
      asked[route] = *h;
      return true;
    });
    for (const auto old : mesh.take_reconnects()) mesh.reconnected(old, call_route++, now);
    for (auto& event : mesh.take())
      if (event.delivery) unhandled.emplace_back(event.delivery->peer, event.delivery->message.head);
    PARLANDO_ASSERT(mesh.kept_bytes() < 7 * 3 * 16384, "what is kept is bounded");
    PARLANDO_ASSERT(mesh.peers().size() <= 7, "peers are bounded");
    PARLANDO_ASSERT(mesh.streams() <= 7 * 16, "streams are bounded");
  }
  Mesh::Route route(Script& s) {
    const auto r = s.byte() % 7u;
    return r < 4 ? r : call_route - 1 - (r - 4);
  }

  void step(Script& s) {
    const auto op = s.byte() % 16;
    const auto at = route(s);
    switch (op) {
      case 0: {  // a caller's HELLO
        Hello h;
        const auto who = s.byte();
        h.instance = who == 255 ? s.text() : "gateway-" + std::to_string(who % 3);
        h.role = "gateway";
        h.version_min = s.byte() % 3u;
        h.version_max = 1 + s.byte() % 2u;
        h.incarnation = s.number();
        h.call = s.byte() % 2u;
        h.attempt = s.number();
        h.fresh = s.byte() % 2 != 0;
        h.received = s.number();
        h.window_messages = 1 + s.byte();
        numbers[at] = 0;
        return hear(at, encode(pack(std::move(h))));
      }
      case 1: {  // a callee's answer, most of it as it should be
        auto h = asked[at];
        const auto who = s.byte();
        h.instance = who == 255 ? s.text() : "vad-" + std::to_string(who % 3);
        h.role = who % 16 == 9 ? "tts" : "vad";
        h.answer = true;
        const auto wrong = s.byte();
        if (wrong & 1) h.incarnation = s.number();
        if (wrong & 2) h.received = s.number();
        if (wrong & 4) h.attempt = s.number();
        if (h.fresh) numbers[at] = 0;
        return hear(at, encode(pack(std::move(h))));
      }
      case 2:
        return hear(at, encode(pack(Heartbeat{s.byte() % 2 != 0, s.byte() % 2 != 0, 1, s.number()})));
      case 3: {
        HeartbeatReply r;
        r.busy = s.byte() % 2 != 0;
        r.slots = s.byte() % 2;
        r.progress = s.byte() % 4u;
        r.step_limit_ms = 1 + s.byte();
        r.sent = s.number();
        return hear(at, encode(pack(std::move(r))));
      }
      case 4: {
        auto w = pack(Window{s.number()});
        const auto records = s.bytes();
        w.payload.assign(records.begin(), records.end());
        return hear(at, encode(w));
      }
      case 5: {
        auto m = data(s);
        m.head.sequence = s.byte() % 8 == 0 ? s.number() : ++numbers[at];
        return hear(at, encode(m));
      }
      case 6: {
        std::vector<Message> all;
        for (int n = 1 + s.byte() % 8; n > 0; --n) all.push_back(data(s));
        all.front().head.sequence = s.byte() % 8 == 0 ? s.number() : numbers[at] + 1;
        numbers[at] += all.size();
        std::vector<const Message*> together;
        for (const auto& m : all) together.push_back(&m);
        return hear(at, encode_batch(together));
      }
      case 7: {
        const auto envelope = s.bytes();
        const auto body = s.bytes();
        const std::span<const std::byte> frames[] = {envelope, body, s.bytes()};
        return mesh.receive(at, std::span(frames).first(s.byte() % 4u), {}, now);
      }
      case 8:
        now += milliseconds(s.byte() * 20);
        return mesh.tick(now);
      case 9:
        for (int n = 1 + s.byte() % 8; n > 0 && !unhandled.empty(); --n) {
          const auto [peer, envelope] = unhandled.front();
          unhandled.erase(unhandled.begin());
          mesh.handled(peer, envelope);
          if (s.byte() % 2) (void)mesh.send(peer, pack(Text{.text = "answer"}, envelope));
        }
        return;
      case 10: {
        auto m = data(s);
        const auto peers = mesh.peers();
        if (!peers.empty()) (void)mesh.send(peers[s.byte() % peers.size()].instance, std::move(m));
        return;
      }
      case 11:
        if (s.byte() % 2)
          full.insert(at);
        else
          full.erase(at);
        return mesh.writable(at);
      case 12:
        return hear(at, s.byte() % 2 ? encode(pack(Resync{}))
                                     : encode(pack(Refused{s.byte() % 2 ? "not_ready" : "overloaded", "no"})));
      case 13:
        mesh.set_status({s.byte() % 2 != 0, s.byte() % 2 != 0, false, s.byte() % 2, 0, 0, milliseconds(s.byte())});
        return;
      case 14:
        if (at < 10) return;
        mesh.disconnected(at);
        return mesh.connected(call_route++, "vad", now);
      default: {  // any type, any body
        Message m;
        m.head = head(s);
        m.head.type = static_cast<MessageType>(s.byte());
        m.head.sequence = s.byte() % 2 ? ++numbers[at] : 0;
        m.body = s.text();
        return hear(at, encode(m));
      }
    }
  }
};

}  // namespace

void run_mesh(std::span<const std::byte> in) {
  Play play;
  Script script{in};
  while (!script.rest.empty()) {
    play.step(script);
    play.flush();
  }
}

}  // namespace parlando::fuzz
