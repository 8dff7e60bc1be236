#include "common/transport/mesh.hpp"

#include <algorithm>

#include "common/base/assert.hpp"
#include "common/base/random_id.hpp"

namespace parlando::transport {
using namespace protocol;

namespace {
constexpr milliseconds kHelloAgain{50};  // between two HELLOs that something missing asks for
constexpr milliseconds kPutOff{500};     // before another HELLO when one was refused
constexpr milliseconds kReconnect{
    1000};  // a connection that nothing arrives on is made anew after this, and then as often
constexpr int kReconnectSpread_ms = 250;  // so that the callers of a service that was away do not come in step

std::uint32_t hash32(std::string_view text) {
  std::uint32_t h = 0x811c9dc5u;
  for (const char c : text) h = (h ^ static_cast<unsigned char>(c)) * 0x01000193u;
  return h;
}
/// Instances are named after their service and end in eight random digits; a key is bound to the name.
bool is_of_name(std::string_view instance, std::string_view name) {
  constexpr std::size_t kDigits = 8;
  if (instance == name) return true;
  if (instance.size() != name.size() + 1 + kDigits || !instance.starts_with(name) || instance[name.size()] != '-')
    return false;
  return instance.substr(name.size() + 1).find_first_not_of("0123456789abcdef") == std::string_view::npos;
}
/// Is the mark of a message one of an earlier link with the same peer? Marks of other peers say nothing: envelopes are
/// copied.
bool is_of_former(std::uint64_t mark, std::uint64_t present) {
  return mark != 0 && mark != present && mark >> 32 == present >> 32;
}
}  // namespace

std::string_view to_string(PeerState state) {
  switch (state) {
    case PeerState::up:
      return "up";
    case PeerState::changed:
      return "changed";
    case PeerState::suspect:
      return "suspect";
    case PeerState::down:
      return "down";
  }
  return "unknown";
}

/// What we know of one peer.
struct Mesh::Side {
  Time unreachable_since = Time::max();  ///< of a caller: its connection is closed
  double hurries = 0;                    ///< times that sound may leave at once
  Time hurry_at{};
  bool call = false;        ///< we make the connection
  std::string wanted_role;  ///< of a call
  Peer peer;
  Route route = 0;                               ///< current connection; 0: none
  std::uint64_t call_id = 0;                     ///< Hello::call
  std::uint64_t attempt = 0, first_attempt = 0;  ///< HELLOs said (heard); the first whose answer counts
  std::uint64_t mark = 0;                        ///< Envelope::link
  std::unique_ptr<Link> link;                    ///< from the first HELLO to the reset
  std::uint64_t incarnation = 0;
  bool linked = false;    ///< both ends have agreed on this connection
  bool awaiting = false;  ///< an answer to our HELLO
  bool suspect = false, hung = false, blocked = false, dirty = false;
  bool retired = false;         ///< its endpoint is named no more: it drains, whatever it says itself
  bool says_draining = false;   ///< what it says itself
  std::int64_t told_slots = 0;  ///< of the peer, with the latest event
  Time retired_at{};
  bool missing = false;                  ///< something was lost on a living connection; until both have agreed again
  std::optional<Frames> pending_window;  ///< could not leave yet
  Time heard{}, said_hello{}, beaten{}, progressed{}, suspect_since{}, reconnect_at{}, hello_at{},
      sound_since = Time::max(), asked{};
  std::uint64_t progress = 0;
};

Mesh::Mesh(MeshOptions options)
    : options_(std::move(options)),
      owners_(options_.sessions_max),
      random_(options_.seed != 0 ? options_.seed : random_u64()) {}
Mesh::~Mesh() = default;

// ------------------------------------------------------------------------------------------------ words

template <class T>
void Mesh::say(Route route, T message) {
  control_.emplace_back(route, encode(pack(std::move(message)), kVersionMin));
}

/// One word a flush is enough for a connection on which everything is wrong.
void Mesh::refuse(Route route, Errc code, const std::string& why) {
  if (argued_.insert(route).second) say(route, Refused{std::string(to_string(code)), why});
}

Hello Mesh::describe(const Side& side) const {
  Hello h;
  h.role = options_.role;
  h.instance = options_.instance;
  h.version_min = kVersionMin;
  h.version_max = kVersion;
  h.incarnation = side.incarnation;
  h.call = side.call_id;
  h.attempt = side.attempt;
  h.answer = !side.call;
  h.fresh = side.link == nullptr;
  h.received = side.link ? side.link->received() : 0;
  h.window_messages = options_.link.window_messages;
  h.ready = status_.ready;
  h.draining = status_.draining;
  h.slots = std::max<std::int64_t>(0, status_.slots);
  return h;
}

/// @param again  an answer to an earlier one is as good: nothing has changed but the time
void Mesh::hello(Side& side, Time now, bool again) {
  side.linked = false;
  side.awaiting = true;
  side.said_hello = now;
  ++side.attempt;
  if (!again) side.first_attempt = side.attempt;
  say(side.route, describe(side));
}

/// Something was lost though the connection lives: both say what they have received, and what follows is sent again.
void Mesh::missing(Side& side, Time now) {
  side.missing = true;
  if (now - side.asked < kHelloAgain) return;  // the next beat asks
  side.asked = now;
  ++counters_.resyncs;
  if (side.call)
    hello(side, now);
  else
    say(side.route, Resync{});
}

/// The other end does not want this HELLO now.
void Mesh::put_off(Side& side, Time now) {
  ++counters_.hello_refused;
  side.awaiting = false;
  side.hello_at = now + kPutOff;
}

Mesh::Side* Mesh::find(Route route) {
  if (const auto call = calls_.find(route); call != calls_.end()) return call->second.get();
  const auto caller = caller_routes_.find(route);
  return caller == caller_routes_.end() ? nullptr : caller->second;
}

HeartbeatReply Mesh::reply() const {
  HeartbeatReply r;
  r.ready = status_.ready;
  r.draining = status_.draining;
  r.busy = status_.busy;
  r.slots = std::max<std::int64_t>(0, status_.slots);
  r.load = std::max<std::int64_t>(0, status_.load);
  r.progress = status_.progress;
  r.step_limit_ms = static_cast<std::uint32_t>(std::max<std::int64_t>(1, status_.step_limit.count()));
  return r;
}

void Mesh::set_status(const Status& status) {
  const bool tell =
      status.ready != status_.ready || status.draining != status_.draining || (status.slots > 0) != (status_.slots > 0);
  status_ = status;
  if (!tell) return;
  for (auto& [instance, side] : callers_) {
    if (!side->linked) continue;
    auto r = reply();
    r.sent = side->link->sent();
    say(side->route, r);
  }
}

// ------------------------------------------------------------------------------------------------ connections

void Mesh::connected(Route route, const std::string& role, Time now) {
  auto side = std::make_unique<Side>();
  side->call = true;
  side->wanted_role = role;
  side->route = route;
  side->incarnation = random_();
  side->call_id = random_();
  side->heard = now;
  side->reconnect_at = now + kReconnect;
  hello(*side, now);
  calls_[route] = std::move(side);
}

void Mesh::reconnected(Route old, Route fresh, Time now) {
  auto node = calls_.extract(old);
  if (node.empty()) return;
  node.key() = fresh;
  auto& side = *node.mapped();
  side.route = fresh;
  side.blocked = false;
  side.hello_at = {};
  calls_.insert(std::move(node));
  hello(side, now);
}

void Mesh::disconnected(Route route) {
  const auto found = calls_.find(route);
  if (found == calls_.end()) return;
  reset(*found->second);
  std::erase(dirty_, found->second.get());
  calls_.erase(found);
}

void Mesh::retire(Route route, Time now) {
  const auto found = calls_.find(route);
  if (found == calls_.end()) return;
  auto& side = *found->second;
  side.retired = true;
  side.retired_at = now;
  describe_peer(side, side.peer.ready, side.says_draining, side.peer.slots);
}

void Mesh::reinstate(Route route) {
  const auto found = calls_.find(route);
  if (found == calls_.end()) return;
  auto& side = *found->second;
  side.retired = false;
  describe_peer(side, side.peer.ready, side.says_draining, side.peer.slots);
}

/// Nothing is left on a retired call, or nobody is.
bool Mesh::is_over(const Side& side, Time now) const {
  if (!side.retired) return false;
  if (!side.link) return true;
  if (side.suspect && !side.hung) return now - side.suspect_since >= options_.gone;
  // Whoever began a stream before it heard of this has done so within a beat.
  return now - side.retired_at >= options_.heartbeat && side.link->streams() == 0 && !side.link->has_output();
}

std::vector<Mesh::Route> Mesh::take_finished() { return std::exchange(finished_, {}); }

std::vector<Mesh::Route> Mesh::take_reconnects() { return std::exchange(reconnects_, {}); }

void Mesh::writable(Route route) {
  auto* side = find(route);
  if (side == nullptr || !side->blocked) return;
  side->blocked = false;
  mark(*side);
}

void Mesh::mark(Side& side) {
  if (side.dirty) return;
  side.dirty = true;
  dirty_.push_back(&side);
}

// ------------------------------------------------------------------------------------------------ states of a peer

void Mesh::raise_event(Side& side, PeerState state) {
  side.told_slots = side.peer.slots;
  events_.push_back({{}, PeerEvent{side.peer, state}});
}

/// Forgets the link; what follows is another incarnation. Down at our end; the other end learns of it by its HELLO.
void Mesh::reset(Side& side) {
  if (side.link) {
    counters_.links += side.link->counters();
    ++counters_.peers_down;
    side.link.reset();
    by_instance_.erase(side.peer.instance);
    raise_event(side, PeerState::down);
  }
  side.incarnation = random_();
  side.awaiting = false;
  side.first_attempt = side.attempt + 1;
  side.linked = side.suspect = side.hung = side.blocked = side.missing = false;
  side.pending_window.reset();
  side.sound_since = Time::max();
}

void Mesh::forget_caller(Side& side) {
  reset(side);
  caller_routes_.erase(side.route);
  std::erase(dirty_, &side);
  callers_.erase(std::string(side.peer.instance));  // a copy: the key must outlive the side
}

void Mesh::suspect(Side& side, Time now) {
  if (side.suspect || !side.link) return;
  side.suspect = true;
  side.suspect_since = now;
  ++counters_.peers_suspect;
  raise_event(side, PeerState::suspect);
}

void Mesh::heard(Side& side, Time now) {
  side.heard = now;
  side.unreachable_since = Time::max();
  if (!side.suspect || side.hung || !side.linked) return;
  side.suspect = false;
  ++counters_.resumed;
  raise_event(side, PeerState::up);
}

void Mesh::make_link(Side& side, Peer peer, std::uint32_t window_messages) {
  side.peer = std::move(peer);
  side.says_draining = side.peer.draining;
  side.peer.draining = side.peer.draining || side.retired;
  side.link = std::make_unique<Link>(side.call, options_.link, window_messages);
  side.mark = std::uint64_t{hash32(side.peer.instance)} << 32 | ++links_;
  side.progress = 0;
  by_instance_[side.peer.instance] = &side;
}

/// Both ends have agreed on this connection.
void Mesh::link_up(Side& side, Time now) {
  side.linked = true;
  side.unreachable_since = Time::max();
  side.awaiting = side.blocked = side.missing = false;
  side.heard = side.progressed = now;
  side.pending_window.reset();
  if (side.link->has_output() || side.link->window_due()) mark(side);
}

void Mesh::describe_peer(Side& side, bool ready, bool draining, std::int64_t slots) {
  auto& p = side.peer;
  side.says_draining = draining;
  draining = draining || side.retired;
  // Whoever counts places knows them to a factor of two, and is told of no more than the logarithm of their changes.
  const auto known = side.told_slots;
  const bool moved = (known > 0) != (slots > 0) || slots > 2 * known || 2 * slots < known;
  const bool tell = p.ready != ready || p.draining != draining || moved;
  p.ready = ready;
  p.draining = draining;
  p.slots = slots;
  if (tell && side.link && !side.suspect) raise_event(side, PeerState::changed);
}

// ------------------------------------------------------------------------------------------------ HELLO

Result<Peer> Mesh::read_hello(Message& message, Hello& h, bool caller, KeyOwner key) {
  PARLANDO_TRY(h, read<Hello>(message));
  if (h.instance.empty() || h.role.empty()) return fail(Errc::bad_json, "hello: role and instance must not be empty");
  if (!key.role.empty() && key.role != h.role)
    return fail(Errc::invalid_argument, "hello: the key is one of role {}, the message says {}", key.role, h.role);
  if (!key.instance.empty() && !is_of_name(h.instance, key.instance))
    return fail(Errc::invalid_argument, "hello: the key is one of instance {}, the message says {}", key.instance,
                h.instance);
  const auto low = std::max<std::uint32_t>(h.version_min, kVersionMin),
             high = std::min<std::uint32_t>(h.version_max, kVersion);
  if (low > high) {
    ++counters_.version_refused;
    return fail(Errc::bad_version, "the peer speaks versions {} to {}, we {} to {}", h.version_min, h.version_max,
                kVersionMin, kVersion);
  }
  Peer peer{h.instance, h.role, static_cast<std::uint16_t>(high), caller, h.ready, h.draining, h.slots};
  return peer;
}

void Mesh::hello_of_caller(Route route, Message& message, KeyOwner key, Time now) {
  Hello h;
  auto peer = read_hello(message, h, true, key);
  if (!peer) {
    ++counters_.hello_refused;
    return refuse(route, peer.error().code, peer.error().message);
  }
  if (h.answer) {  // of a connection that we had made and given up
    ++counters_.hello_late;
    return;
  }
  // Two services that call each other would share one link's name; no role of ours does.
  if (const auto known = by_instance_.find(h.instance); known != by_instance_.end() && known->second->call) {
    ++counters_.hello_refused;
    return refuse(route, Errc::invalid_argument, fmt::format("'{}' is called by us already", h.instance));
  }
  auto found = callers_.find(h.instance);
  if (found != callers_.end()) {
    auto& side = *found->second;
    if (side.call_id == h.call && h.attempt != 0 && h.attempt <= side.attempt) {
      ++counters_.hello_late;  // from a connection that has been replaced
      return;
    }
    if (side.call_id != h.call && side.route != route && side.linked && !side.suspect) {
      // Two endpoints lead here. The second waits; it is taken when the first falls silent.
      ++counters_.hello_refused;
      return refuse(route, Errc::invalid_argument, fmt::format("'{}' is linked over another connection", h.instance));
    }
  }
  // The route may have belonged to another instance: a connection speaks for one.
  if (const auto bound = caller_routes_.find(route);
      bound != caller_routes_.end() && bound->second->peer.instance != h.instance) {
    bound->second->linked = false;
    bound->second->route = 0;
    caller_routes_.erase(bound);
  }
  if (found != callers_.end()) {
    auto& side = *found->second;
    if (side.link && side.incarnation == h.incarnation && side.link->resume(h.received)) {
      if (side.route != route) {
        caller_routes_.erase(side.route);
        side.route = route;
        caller_routes_[route] = &side;
      }
      side.call_id = h.call;
      side.attempt = h.attempt;
      link_up(side, now);
      describe_peer(side, h.ready, h.draining, h.slots);
      heard(side, now);
      return say(route, describe(side));
    }
    ++counters_.resets;
    forget_caller(side);
  }
  if (!h.fresh) {  // it remembers a link that we do not: it must begin anew, too
    Side stranger;
    stranger.call_id = h.call;
    stranger.attempt = h.attempt;
    auto answer = describe(stranger);
    answer.incarnation = 0;
    return say(route, answer);
  }
  if (callers_.size() >= options_.peers_max) {
    ++counters_.hello_refused;
    return refuse(route, Errc::overloaded,
                  fmt::format("{} callers are connected, at most {} are served", callers_.size(), options_.peers_max));
  }
  auto& side = *(callers_[h.instance] = std::make_unique<Side>());
  side.route = route;
  side.incarnation = h.incarnation;
  side.call_id = h.call;
  side.attempt = h.attempt;
  make_link(side, *std::move(peer), h.window_messages);
  caller_routes_[route] = &side;
  link_up(side, now);
  raise_event(side, PeerState::up);
  say(route, describe(side));
}

void Mesh::hello_of_callee(Side& side, Message& message, KeyOwner key, Time now) {
  Hello h;
  auto peer = read_hello(message, h, false, key);
  // An answer that came twice, or to a HELLO on a connection that has been replaced.
  if (!side.awaiting || (peer && (!h.answer || h.attempt < side.first_attempt || h.attempt > side.attempt))) {
    ++counters_.hello_late;
    return;
  }
  const bool other = side.link && peer && side.peer.instance != h.instance;
  if (peer && peer->role != side.wanted_role)
    peer = fail(Errc::invalid_argument, "'{}' is a {}, a {} is wanted", h.instance, h.role, side.wanted_role);
  if (!peer) {
    if (other) {  // whoever it is, the former process is gone
      ++counters_.resets;
      reset(side);
    }
    return put_off(side, now);
  }
  if (other || h.incarnation != side.incarnation || (side.link && !side.link->resume(h.received))) {
    // Another process answers, or it has forgotten us, or we contradict each other: both begin anew.
    const bool had = side.link != nullptr;
    counters_.resets += had;
    reset(side);
    side.heard = now;
    if (had) hello(side, now);  // else with the next beat: one that never agrees is not asked in a circle
    return;
  }
  const bool fresh = side.link == nullptr;
  if (fresh) {
    if (const auto known = by_instance_.find(h.instance); known != by_instance_.end()) {
      // It calls us: no role of ours does that. Or another call leads there, and the callee has taken this one in its
      // place.
      if (!known->second->call) return put_off(side, now);
      ++counters_.resets;
      reset(*known->second);
    }
    make_link(side, *std::move(peer), h.window_messages);
  }
  link_up(side, now);
  if (fresh) {
    raise_event(side, PeerState::up);
    return;
  }
  describe_peer(side, h.ready, h.draining, h.slots);
  heard(side, now);
}

// ------------------------------------------------------------------------------------------------ what arrives

void Mesh::receive(Route route, std::span<const std::span<const std::byte>> frames, std::string_view key_role, Time now,
                   std::string_view key_instance) {
  const KeyOwner key{key_role, key_instance};
  ++counters_.frames_in;
  auto decoded = decode(frames, now);
  auto* side = find(route);
  // Whatever arrives shows that the connection is one.
  if (side != nullptr && side->call)
    side->reconnect_at = now + kReconnect + milliseconds(random_() % kReconnectSpread_ms);
  if (!decoded) {
    const auto code = decoded.error().code;
    if (code == Errc::unknown_type) {  // a later version's word between links: nothing is numbered by it
      ++counters_.unknown_words;
      return;
    }
    ++(code == Errc::bad_version ? counters_.version_refused : counters_.malformed);
    if (side == nullptr || !side->call) refuse(route, code, decoded.error().message);
    // It may have been a message, or what a message waits for.
    if (side != nullptr && side->linked) missing(*side, now);
    return;
  }
  auto& first = decoded->messages.front();
  const bool link_word = !decoded->batch && !first.unknown && is_control(first.head.type);
  if (link_word && first.head.type == MessageType::hello) {
    if (side != nullptr && side->call) return hello_of_callee(*side, first, key, now);
    return hello_of_caller(route, first, key, now);
  }
  if (side == nullptr) {
    // Two that both do not know a connection must not argue about it.
    if (link_word && first.head.type == MessageType::refused) return;
    return refuse(route, Errc::not_ready, "HELLO comes first");
  }
  if (link_word) return control(*side, first, now);
  if (!side->link || !side->linked) return;  // it comes again when both have agreed
  heard(*side, now);
  deliver(*side, *std::move(decoded), now);
}

void Mesh::control(Side& side, Message& message, Time now) {
  switch (message.head.type) {
    case MessageType::heartbeat: {
      if (side.call || !side.linked) return;
      const auto h = read<Heartbeat>(message);
      if (!h) {
        ++counters_.malformed;
        return;
      }
      describe_peer(side, h->ready, h->draining, h->slots);
      heard(side, now);
      if (h->sent > side.link->received()) missing(side, now);
      auto r = reply();
      r.sent = side.link->sent();
      return say(side.route, r);
    }
    case MessageType::heartbeat_reply: {
      if (!side.call || !side.linked) return;
      const auto r = read<HeartbeatReply>(message);
      if (!r) {
        ++counters_.malformed;
        return;
      }
      if (r->progress != side.progress || !r->busy) {
        side.progress = r->progress;
        side.progressed = now;
        side.hung = false;
      }
      describe_peer(side, r->ready, r->draining, r->slots);
      heard(side, now);
      if (r->sent > side.link->received()) missing(side, now);
      if (r->busy && !side.hung && now - side.progressed > milliseconds(r->step_limit_ms)) {
        side.hung = true;
        ++counters_.peers_hung;
        suspect(side, now);
      }
      return;
    }
    case MessageType::window:
      if (!side.link || !side.linked) return;
      heard(side, now);
      side.link->on_window(message);
      if (side.link->has_output()) mark(side);
      return;
    case MessageType::refused: {
      // It does not know this connection (any more).
      const auto r = read<Refused>(message);
      if (!side.call) return;
      if (!r || r->code != to_string(Errc::not_ready)) {
        if (!side.linked) return put_off(side, now);
        return missing(side, now);  // it could not read something
      }
      if (side.linked) missing(side, now);
      return;
    }
    case MessageType::resync:
      if (side.call && side.linked) missing(side, now);
      return;
    default:
      return;
  }
}

void Mesh::deliver(Side& side, Decoded decoded, Time now) {
  auto arrival = side.link->receive(std::move(decoded));
  mark(side);
  if (arrival.violation) {
    ++counters_.resets;
    const auto route = side.route;
    if (side.call) {
      reset(side);
      return hello(side, now);
    }
    forget_caller(side);
    return refuse(route, Errc::not_ready, "the link was reset: too many streams were open");
  }
  if (arrival.gap) missing(side, now);
  for (auto& message : arrival.messages) {
    if (!side.call && message.head.type != MessageType::close) {
      const auto judged = owners_.judge(side.peer.instance, message.head.session, message.head.epoch, now);
      if (judged.verdict == Owners::Verdict::stale) {
        ++counters_.stale;
        auto head = message.head;
        side.link->handled(head);
        head.epoch = judged.known;
        side.link->refuse(head, Errc::stale_epoch,
                          fmt::format("the session has epoch {}, the message comes from {}", judged.known.value,
                                      message.head.epoch.value));
        continue;
      }
      if (judged.verdict == Owners::Verdict::raised && !judged.former.empty()) fence(side, message.head);
    }
    message.head.link = side.mark;
    events_.push_back({Delivery{side.peer.instance, std::move(message)}, {}});
  }
}

/// The session has a new owner: the streams that any other caller has of it end here as if they had been closed.
void Mesh::fence(const Side& owner, const Envelope& raised) {
  const auto why = fmt::format("the session has gone to '{}' under epoch {}", owner.peer.instance, raised.epoch.value);
  for (auto& [instance, side] : callers_) {
    if (side.get() == &owner || !side->link) continue;
    for (const auto& key : side->link->fence(raised.session, why)) {
      Envelope head;
      head.session = key.session;
      head.stream = key.stream;
      head.link = side->mark;
      events_.push_back({Delivery{instance, pack(Close{}, head)}, {}});
    }
    if (side->link->has_output()) mark(*side);
  }
}

std::vector<Mesh::Event> Mesh::take() { return std::exchange(events_, {}); }

// ------------------------------------------------------------------------------------------------ what leaves

Result<void> Mesh::send(const std::string& peer, Message message) {
  const auto found = by_instance_.find(peer);
  if (found == by_instance_.end())
    return fail(Errc::unavailable, "'{}' is not linked to '{}'", options_.instance, peer);
  auto& side = *found->second;
  if (is_of_former(message.head.link, side.mark))
    return fail(Errc::cancelled, "the link that the request came on is gone");
  PARLANDO_DO(side.link->send(std::move(message)));
  if (side.link->has_output()) mark(side);
  return {};
}

void Mesh::handled(const std::string& peer, const Envelope& head) {
  const auto found = by_instance_.find(peer);
  if (found == by_instance_.end() || is_of_former(head.link, found->second->mark)) return;
  found->second->link->handled(head);
  mark(*found->second);
}

/// Few frames leave at once, so that one conversation does not wait for company that never comes; beyond a rate they
/// travel together.
bool Mesh::may_hurry(Side& side, Time now) {
  constexpr double kBurst = 32;
  const auto passed = std::chrono::duration<double>(now - side.hurry_at).count();
  side.hurry_at = now;
  side.hurries = std::min(kBurst, side.hurries + passed * options_.hurry_per_second);
  if (side.hurries < 1) return false;
  --side.hurries;
  return true;
}

void Mesh::flush_side(Side& side, Time now, bool windows, const Out& out) {
  if (!side.link || !side.linked || side.blocked) return;  // marked again when that changes
  auto& link = *side.link;
  if (!side.pending_window && (windows || link.window_urgent())) side.pending_window = link.window(side.peer.version);
  if (side.pending_window) {
    if (!out(side.route, *side.pending_window)) {
      side.blocked = true;
      return;
    }
    ++counters_.frames_out;
    side.pending_window.reset();
  }
  while (link.has_output()) {
    if (link.output_may_wait() && link.output_messages() < kBatchMessagesMax && !may_hurry(side, now)) {
      if (side.sound_since == Time::max()) side.sound_since = now;
      if (now - side.sound_since < options_.batch) {
        next_batch_ = std::min(next_batch_, side.sound_since + options_.batch);
        return mark(side);
      }
    }
    const auto frames = link.next(now, side.peer.version);
    if (!out(side.route, *frames)) {
      link.put_back();
      side.blocked = true;
      return;
    }
    ++counters_.frames_out;
  }
  side.sound_since = Time::max();
  if (!link.window_due()) return;
  if (next_window_ == Time::max()) next_window_ = now + options_.tick;
  mark(side);
}

void Mesh::flush(Time now, const Out& out) {
  argued_.clear();
  for (const auto& [route, frames] : std::exchange(control_, {}))
    if (out(route, frames))
      ++counters_.frames_out;
    else
      ++counters_.unroutable;  // all of these are said again by themselves
  const bool windows = now >= next_window_;
  if (windows) next_window_ = Time::max();
  next_batch_ = Time::max();
  for (auto* side : std::exchange(dirty_, {})) {
    side->dirty = false;
    flush_side(*side, now, windows, out);
  }
}

// ------------------------------------------------------------------------------------------------ time

void Mesh::beat(Side& side, Time now, milliseconds silence_max) {
  if (side.link && !side.suspect && now - side.heard > silence_max) suspect(side, now);
  if (side.missing && side.linked) missing(side, now);
  if (!side.call) return;  // when it has been away too long, `tick` forgets it
  if (side.suspect && now - side.suspect_since > options_.resume) {
    ++counters_.resets;
    reset(side);
  }
  if (now >= side.reconnect_at) {
    side.reconnect_at = now + kReconnect + milliseconds(random_() % kReconnectSpread_ms);
    reconnects_.push_back(side.route);
    return;
  }
  if (!side.linked) {
    if (now >= side.hello_at && now - side.said_hello >= options_.heartbeat) hello(side, now, true);
    return;
  }
  if (now - side.beaten < options_.heartbeat - options_.heartbeat / 4) return;
  side.beaten = now;
  say(side.route,
      Heartbeat{status_.ready, status_.draining, std::max<std::int64_t>(0, status_.slots), side.link->sent()});
}

void Mesh::tick(Time now) {
  if (now < next_beat_) return;
  // When we stood still ourselves, nobody else was silent meanwhile.
  if (last_tick_ != Time{} && now - last_tick_ > 2 * options_.heartbeat) {
    const auto stood = now - last_tick_;
    const auto later = [&](Time& time) { time = std::min(now, time + stood); };
    const auto excuse = [&](Side& side) {
      later(side.heard);
      later(side.progressed);
      later(side.suspect_since);
    };
    for (auto& [route, side] : calls_) excuse(*side);
    for (auto& [instance, side] : callers_) excuse(*side);
  }
  last_tick_ = now;
  next_beat_ = now + options_.heartbeat;
  const auto silence_max = options_.heartbeat * options_.misses_max + options_.heartbeat / 2;
  for (auto& [route, side] : calls_)
    if (is_over(*side, now))
      finished_.push_back(route);
    else
      beat(*side, now, silence_max);
  for (const auto route : finished_) disconnected(route);
  std::vector<Side*> gone;
  for (auto& [instance, side] : callers_) {
    beat(*side, now, silence_max);
    if (!side->suspect) continue;
    const bool dead = side->unreachable_since != Time::max() && now - side->unreachable_since >= options_.gone;
    if (dead || now - side->suspect_since > options_.resume) {
      gone.push_back(side.get());
      continue;
    }
    // Whether its connection is still there shows only when something is said on it.
    auto r = reply();
    r.sent = side->link->sent();
    say(side->route, r);
  }
  for (auto* side : gone) forget_caller(*side);
}

void Mesh::unreachable(Route route, Time now) {
  const auto caller = caller_routes_.find(route);
  if (caller != caller_routes_.end())
    caller->second->unreachable_since = std::min(caller->second->unreachable_since, now);
}

Time Mesh::due(Time now) const {
  if (!control_.empty() || !reconnects_.empty() || !finished_.empty()) return now;
  return std::min({next_beat_, next_window_, next_batch_});
}

// ------------------------------------------------------------------------------------------------ what is known

bool Mesh::is_up(const std::string& instance) const {
  const auto found = by_instance_.find(instance);
  return found != by_instance_.end() && !found->second->suspect;
}

std::vector<Peer> Mesh::peers() const {
  std::vector<Peer> out;
  for (const auto& [instance, side] : by_instance_) out.push_back(side->peer);
  return out;
}

std::size_t Mesh::streams() const {
  std::size_t out = 0;
  for (const auto& [instance, side] : by_instance_) out += side->link->streams();
  return out;
}

std::size_t Mesh::kept_bytes() const {
  std::size_t out = 0;
  for (const auto& [instance, side] : by_instance_) out += side->link->kept_bytes();
  return out;
}

MeshCounters Mesh::counters() const {
  auto out = counters_;
  for (const auto& [instance, side] : by_instance_) out.links += side->link->counters();
  return out;
}

}  // namespace parlando::transport
