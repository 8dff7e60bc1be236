#include "services/gateway/zmq_clients.hpp"

namespace parlando::gateway {
using namespace protocol;

namespace {

constexpr std::string_view kRole = "client";
constexpr milliseconds kElsewhere{100}, kLater{2000};  // when a client may try again

std::string_view text_of(const Bytes& bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }
Bytes bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

/// What a WebSocket would be closed with, as an error. RFC 6455, 7.4.1
Errc code_of(std::uint16_t close) {
  constexpr std::uint16_t kNormal = 1000, kGoingAway = 1001, kPolicy = 1008, kTryLater = 1013;
  switch (close) {
    case kNormal:
      return Errc::cancelled;
    case kGoingAway:
      return Errc::unavailable;
    case kPolicy:
      return Errc::invalid_argument;
    case kTryLater:
      return Errc::overloaded;
    default:
      return Errc::internal;
  }
}

milliseconds retry_of(Errc code) {
  if (code == Errc::unavailable) return kElsewhere;
  return code == Errc::overloaded ? kLater : milliseconds(0);
}

}  // namespace

template <class T>
void ZmqClients::send(const Key& key, const Envelope& head, T body) {
  wire_.send(key.peer, pack(std::move(body), head));
}

// ------------------------------------------------------------------------------------------------ from the link

bool ZmqClients::on_peer(const transport::Peer& peer, transport::PeerState state, Time now) {
  if (!peer.caller) return false;
  if (state != transport::PeerState::down) {
    peers_[peer.instance].role = peer.role;
    return true;
  }
  for (auto it = streams_.lower_bound({peer.instance, {}}); it != streams_.end() && it->first.peer == peer.instance;) {
    counters_.lost += it->second.id != 0;
    forget(it->first, it->second, true, now);
    ready_.erase(it->first);
    owed_.erase(it->first);
    it = streams_.erase(it);
  }
  peers_.erase(peer.instance);
  return true;
}

bool ZmqClients::on_message(const std::string& name, Message& message, Time now) {
  const auto peer = peers_.find(name);
  if (peer == peers_.end()) return false;
  const Key key{name, message.head.key()};
  const auto found = streams_.find(key);
  if (message.head.type == MessageType::close) {
    if (found == streams_.end()) return true;
    const auto body = read<Close>(message);
    forget(key, found->second, body && body->detached, now);
    ready_.erase(key);
    owed_.erase(key);
    streams_.erase(found);
    return true;
  }
  if (found == streams_.end()) begin(key, peer->second, message.head, now);
  auto& stream = found == streams_.end() ? streams_.at(key) : found->second;
  if (stream.id == 0) return true;  // it was on its way when the stream ended
  if (stream.paused || !stream.waiting.empty())
    put_by(key, stream, std::move(message), now);
  else
    take(key, stream, message, now);
  return true;
}

bool ZmqClients::on_refused(const std::string& peer, const Envelope& head, const Error& error, Time now) {
  if (!peers_.contains(peer)) return false;
  const Key key{peer, head.key()};
  const auto found = streams_.find(key);
  if (found == streams_.end() || error.code == Errc::unavailable) return true;  // it is down: that is told, too
  auto& stream = found->second;
  if (stream.id == 0) {
    if (head.type == MessageType::error) owed_.insert(key);
    return true;
  }
  ++counters_.slow;
  end(key, stream, error.code, "the client takes what it is told too slowly: " + error.message, now);
  return true;
}

void ZmqClients::on_tick() {
  for (const auto& key : std::exchange(owed_, {})) {
    const auto& stream = streams_.at(key);
    send(key, stream.head, stream.last_word);
  }
}

// ------------------------------------------------------------------------------------------------ what clients say

/// A conversation, or the refusal of one; the entry stays in either case until the client closes the stream.
void ZmqClients::begin(const Key& key, Peer& peer, const Envelope& head, Time now) {
  auto& stream = streams_[key];
  stream.head = head;
  stream.head.turn = {};
  stream.head.epoch = {};
  const auto refuse = [&](Errc code, const std::string& why) {
    ++counters_.refused;
    end(key, stream, code, why, now);
  };
  if (peer.role != kRole)
    return refuse(Errc::invalid_argument,
                  fmt::format("a {} has nothing to ask of a gateway, a {} does", cut(peer.role, 40), kRole));
  if (by_id_.size() >= limits_.streams_max)
    return refuse(Errc::overloaded,
                  fmt::format("{} conversations are open, at most {} are kept", by_id_.size(), limits_.streams_max));
  if (peer.open >= limits_.per_peer_max)
    return refuse(Errc::overloaded, fmt::format("{} conversations of this client are open, at most {} are kept",
                                                peer.open, limits_.per_peer_max));
  ++counters_.opened;
  ++peer.open;
  stream.id = kOurs | ++last_;
  by_id_.emplace(stream.id, key);
  sessions_.client_opened(stream.id, now);
}

void ZmqClients::take(const Key& key, Stream& stream, const Message& message, Time now) {
  const auto refuse = [&](Errc code, const std::string& why) {
    ++counters_.malformed;
    end(key, stream, code, why, now);
  };
  if (message.head.type == MessageType::audio) return sessions_.client_audio(stream.id, text_of(message.payload), now);
  if (message.head.type != MessageType::event)
    return refuse(Errc::invalid_argument,
                  fmt::format("clients send event, audio and close, this is {}", to_string(message.head.type)));
  if (message.payload.size() > Event::kClientEventBytesMax)
    return refuse(Errc::bad_frame, fmt::format("an event of {} bytes, at most {} are taken of a client",
                                               message.payload.size(), Event::kClientEventBytesMax));
  sessions_.client_text(stream.id, text_of(message.payload), now);
}

/// A client that follows its window cannot have more here than that allows; bytes have a limit of their own.
void ZmqClients::put_by(const Key& key, Stream& stream, Message message, Time now) {
  ++counters_.put_by;
  stream.waiting_bytes += message.bytes();
  if (stream.waiting_bytes > limits_.waiting_bytes_max)
    return end(key, stream, Errc::overloaded,
               fmt::format("{} bytes wait until the client may be read again, at most {} are kept",
                           stream.waiting_bytes, limits_.waiting_bytes_max),
               now);
  stream.waiting.push_back(std::move(message));
  wire_.put_by();
}

bool ZmqClients::go_on(Time now) {
  bool any = false;
  for (const auto& key : std::exchange(ready_, {})) {
    const auto found = streams_.find(key);
    if (found == streams_.end()) continue;
    auto& stream = found->second;
    // One at a time: what it does may pause the client again, and that is among the actions to come.
    if (stream.paused || stream.waiting.empty()) continue;
    const auto message = std::move(stream.waiting.front());
    stream.waiting.pop_front();
    stream.waiting_bytes -= message.bytes();
    wire_.worked_on(key.peer, message.head);
    take(key, stream, message, now);
    if (!stream.waiting.empty()) ready_.insert(key);
    any = true;
  }
  return any;
}

// ------------------------------------------------------------------------------------------------ what clients are
// told

/// The conversation is over; its stream is known until it is closed.
void ZmqClients::forget(const Key& key, Stream& stream, bool lost, Time now) {
  for (const auto& message : stream.waiting) wire_.worked_on(key.peer, message.head);
  stream.waiting.clear();
  stream.waiting_bytes = 0;
  if (stream.id == 0) return;
  const auto id = std::exchange(stream.id, 0);
  by_id_.erase(id);
  if (const auto peer = peers_.find(key.peer); peer != peers_.end()) --peer->second.open;
  lost ? sessions_.client_lost(id, now) : sessions_.client_closed(id, now);
}

void ZmqClients::end(const Key& key, Stream& stream, Errc code, const std::string& why, Time now) {
  forget(key, stream, false, now);
  stream.last_word = {std::string(to_string(code)), why, retry_of(code).count()};
  send(key, stream.head, stream.last_word);
}

void ZmqClients::say(const Key& key, Stream& stream, std::string event) {
  send(key, stream.head, Event{bytes_of(event)});
}

void ZmqClients::sound(const Key& key, Stream& stream, const ToClient& action) {
  if (action.turn != stream.turn) stream.samples = 0;
  stream.turn = action.turn;
  // A message holds several seconds at most; what a controller said in one piece may be longer.
  constexpr std::size_t kBytesMax = 64u << 10;
  auto head = stream.head;
  head.turn = action.turn;
  for (std::size_t at = 0; at < action.data.size(); at += kBytesMax) {
    const auto part = std::string_view(action.data).substr(at, kBytesMax);
    send(key, head, Speech{0, stream.samples, kSpeechRate, false, bytes_of(part)});
    stream.samples += static_cast<std::int64_t>(part.size() / kSampleBytes);
  }
}

bool ZmqClients::act_on(ToClient& action, Time now) {
  if (!is_ours(action.client)) return false;
  const auto found = by_id_.find(action.client);
  if (found == by_id_.end()) return true;
  const auto key = found->second;
  auto& stream = streams_.at(key);
  switch (action.kind) {
    case ToClient::Kind::event:
      say(key, stream, std::move(action.data));
      break;
    case ToClient::Kind::sound:
      sound(key, stream, action);
      break;
    case ToClient::Kind::close:
      end(key, stream, code_of(action.code), action.data, now);
      break;
    case ToClient::Kind::pause:
      stream.paused = true;
      break;
    case ToClient::Kind::resume:
      stream.paused = false;
      if (!stream.waiting.empty()) ready_.insert(key);
      break;
  }
  return true;
}

}  // namespace parlando::gateway
