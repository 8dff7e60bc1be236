#include "services/gateway/realtime_sockets.hpp"

#include "common/base/random_id.hpp"
#include "services/gateway/realtime_beta.hpp"
#include "services/gateway/realtime_query.hpp"

namespace parlando::gateway {

namespace {

// Conversations beside that of a socket have numbers that no socket has.
constexpr ClientId kSide = ClientId{1} << 63;
constexpr int kPrefixBytes = 8;
constexpr int kMessagesAtOnce = 8;
constexpr std::size_t kSliceBytes = 64u << 10;  // of a large append, told to a conversation at a time
constexpr std::uint16_t kGoingAway = 1001, kPolicy = 1008, kInternal = 1011, kTryLater = 1013;

/// Of an event's id; 0: of none.
std::uint64_t number_of(const std::string& event_id) {
  constexpr std::size_t kDigits = 8;
  if (event_id.size() < kDigits) return 0;
  const auto digits = event_id.substr(event_id.size() - kDigits);
  if (digits.find_first_not_of("0123456789abcdef") != std::string::npos) return 0;
  return std::strtoull(digits.c_str(), nullptr, 16);
}

}  // namespace

RealtimeSockets::Socket* RealtimeSockets::find(std::uint64_t wire) {
  const auto found = by_wire_.find(wire);
  return found == by_wire_.end() ? nullptr : sockets_.at(found->second).get();
}

void RealtimeSockets::opened(std::uint64_t id, const RealtimeUpgrade& upgrade, Time now) {
  const auto asked = resume_fields(upgrade.target);
  if (!asked.token.empty()) return resume(id, asked.token, asked.after, upgrade.owner, now);
  auto options = realtime_options(upgrade.target);
  options.expires_at = upgrade.expires_at;
  options.session = upgrade.session;
  if (!upgrade.session.empty())
    options.transcription = nlohmann::json::parse(upgrade.session, nullptr, false).value("type", "") == "transcription";
  options.id_prefix = random_hex(kPrefixBytes);
  options.admit_side = [this, id]() -> std::optional<RealtimeError> {
    const auto found = sockets_.find(id);
    if (!wire_.admit_side || found == sockets_.end()) return {};
    return wire_.admit_side(id);
  };
  auto& socket = *sockets_.emplace(id, std::make_unique<Socket>(id, std::move(options))).first->second;
  by_wire_[id] = id;
  socket.beta = upgrade.beta;
  socket.owner = upgrade.owner;
  socket.share = upgrade.share;
  socket.translator.start();
  if (asked.resumable && reserve(kKeptBytesMax, {})) keep(socket, now);
  pump(socket, now);
}

// ------------------------------------------------------------------------------------------------ resuming

/// Its client gets a token, which is good once.
void RealtimeSockets::keep(Socket& socket, Time) {
  const bool again = socket.kept.has_value();
  if (!again) socket.kept.emplace();
  socket.kept->lost_at = Time::max();
  socket.kept->token = ResumeToken::make(random_u64);
  by_token_[socket.kept->token.digest] = socket.id;
  socket.translator.tell_extension(again ? "parlando.session.resumed" : "parlando.session.resumable",
                                   {{"resume_token", socket.kept->token.text}, {"seconds", kResumeTime.count()}});
  socket.kept->token.text.clear();
}

void RealtimeSockets::resume(std::uint64_t wire, const std::string& token, const std::string& after,
                             const std::string& owner, Time now) {
  const auto known = by_token_.find(digest_of(token));
  auto* socket = known == by_token_.end() ? nullptr : sockets_.at(known->second).get();
  const auto number = number_of(after);
  const bool good = socket != nullptr && socket->owner == owner && !socket->closing && number >= socket->kept->dropped;
  if (!good) {
    ++counters_.not_resumed;
    RealtimeEvents none("none");
    none.send(
        RealtimeError{"session_not_found", "No session waits for this token, or not from this event on.", "resume"},
        {});
    for (auto& event : none.take()) wire_.send(wire, std::move(event.text), {});
    return wire_.close(wire, kPolicy, "no session waits for this token");
  }
  ++counters_.resumed;
  by_token_.erase(known);
  // The server may not know yet that the former one is lost.
  if (socket->wire != 0) {
    by_wire_.erase(socket->wire);
    wire_.close(socket->wire, kGoingAway, "the session goes on at another socket");
  }
  socket->wire = wire;
  by_wire_[wire] = socket->id;
  if (socket->unread) wire_.read(wire, false);
  socket->due = {};
  for (const auto& event : socket->kept->events)
    if (event.number > number) tell(*socket, event, now);
  keep(*socket, now);
  pump(*socket, now);
}

void RealtimeSockets::lost(std::uint64_t wire, Time now) {
  auto* socket = find(wire);
  if (socket == nullptr) return;
  if (!socket->kept || socket->closing) return closed(wire, now);
  by_wire_.erase(wire);
  socket->wire = 0;
  socket->kept->lost_at = now;
}

void RealtimeSockets::on_tick(Time now) {
  std::vector<Socket*> over;
  for (const auto& [id, socket] : sockets_)
    if (socket->wire == 0 && (socket->closing || now - socket->kept->lost_at > kResumeTime))
      over.push_back(socket.get());
  for (auto* socket : over) drop(*socket, now);
}

void RealtimeSockets::closed(std::uint64_t wire, Time now) {
  if (auto* socket = find(wire)) drop(*socket, now);
}

void RealtimeSockets::drop(Socket& socket, Time now) {
  while (!socket.talks.empty()) end(socket, socket.talks.begin()->first, now);
  if (socket.large && socket.large->append)
    release(socket.large->reserved, socket.share);  // what is being read releases itself
  if (socket.kept) {
    release(kKeptBytesMax, {});
    by_token_.erase(socket.kept->token.digest);
  }
  by_wire_.erase(socket.wire);
  const auto id = socket.id;
  sockets_.erase(id);
  if (wire_.over) wire_.over(id);
}

// ------------------------------------------------------------------------------------------------ both ways

void RealtimeSockets::message(std::uint64_t wire, std::string_view data, bool binary, Time now) {
  auto* socket = find(wire);
  if (socket == nullptr || socket->closing) return;
  if (!binary && data.size() > kLargeBytes && wire_.help) return read_large(*socket, data);
  if (socket->beta && !binary)
    socket->translator.client_message(from_beta(data), binary);
  else
    socket->translator.client_message(data, binary);
  pump(*socket, now);
}

void RealtimeSockets::read_large(Socket& socket, std::string_view data) {
  const auto bytes = 2 * data.size();  // its text, and what is made of it
  if (!reserve(bytes, socket.share)) {
    socket.closing = true;
    return wire_.close(socket.wire, kTryLater, "too many large messages are being received");
  }
  socket.large = Large{{}, 0, bytes};
  review(socket);
  const auto id = socket.id;
  auto read = [this, id, text = std::make_shared<std::string>(data), bytes, share = socket.share]() -> Helper::Then {
    std::shared_ptr<const Realtime::Append> append;
    if (auto read = Realtime::read_append(*text)) {
      append = std::make_shared<const Realtime::Append>(*std::move(read));
      text->clear();
      text->shrink_to_fit();
    }
    return [this, id, append, text, bytes, share](Time now) { was_read(id, append, *text, bytes, share, now); };
  };
  wire_.help(std::move(read),
             [this, id, bytes, share = socket.share](Time now) { was_not_read(id, bytes, share, now); });
}

/// Reading it threw: there was no memory for it.
void RealtimeSockets::was_not_read(std::uint64_t id, std::size_t reserved, const std::string& share, Time now) {
  release(reserved, share);
  const auto found = sockets_.find(id);
  if (found == sockets_.end()) return;
  auto& socket = *found->second;
  socket.large.reset();
  if (!std::exchange(socket.closing, true) && socket.wire != 0)
    wire_.close(socket.wire, kInternal, "a message could not be read");
  pump(socket, now);
}

void RealtimeSockets::was_read(std::uint64_t id, std::shared_ptr<const Realtime::Append> append,
                               const std::string& text, std::size_t reserved, const std::string& share, Time now) {
  const auto found = sockets_.find(id);
  if (found == sockets_.end()) return release(reserved, share);
  auto& socket = *found->second;
  if (append) {
    socket.large->append = std::move(append);
  } else {
    socket.large.reset();
    release(reserved, share);
    if (!socket.closing) socket.translator.client_message(socket.beta ? from_beta(text) : text, false);
  }
  pump(socket, now);
}

/// As much as the conversation takes: it pauses when it has enough.
void RealtimeSockets::feed_large(Socket& socket) {
  const auto main = socket.talks.find(0);
  if (!socket.large || !socket.large->append) return;
  if (main != socket.talks.end() && (main->second.paused || !main->second.waiting.empty())) return;
  auto& large = *socket.large;
  const auto all = large.append->sound ? large.append->sound->size() : 0;
  const auto count = socket.translator.takes_packets() ? all : std::min(kSliceBytes, all - large.at);
  socket.translator.take_append(*large.append, large.at, count);
  large.at += count;
  if (large.at < all && !socket.closing) {
    hungry_.insert(socket.id);
    return;
  }
  release(large.reserved, socket.share);
  socket.large.reset();
}

void RealtimeSockets::begin(Socket& socket, int talk, Time now) {
  const auto client = talk == 0 ? socket.id : kSide | ++sides_;
  socket.talks[talk].client = client;
  talks_[client] = {socket.id, talk};
  sessions_.client_opened(client, now, {.owner = socket.owner});
}

void RealtimeSockets::end(Socket& socket, int talk, Time now) {
  const auto found = socket.talks.find(talk);
  if (found == socket.talks.end()) return;
  const auto client = found->second.client;
  talks_.erase(client);
  socket.talks.erase(found);
  sessions_.client_closed(client, now);
  if (talk != 0 && wire_.side_over) wire_.side_over(socket.id);
}

/// Tells a conversation what waits for it, a few messages: between them it is seen whether it takes more.
void RealtimeSockets::feed(Socket& socket, Talk& talk, Time now) {
  for (int i = 0; i < kMessagesAtOnce && !talk.paused && !talk.waiting.empty(); ++i) {
    const auto next = std::move(talk.waiting.front());
    talk.waiting.pop_front();
    next.kind == ToTalk::Kind::sound ? sessions_.client_audio(talk.client, next.data, now)
                                     : sessions_.client_text(talk.client, next.data, now);
  }
  if (!talk.paused && !talk.waiting.empty()) hungry_.insert(socket.id);
}

bool RealtimeSockets::feed_more(Time now) {
  const auto hungry = std::exchange(hungry_, {});
  for (const auto id : hungry)
    if (const auto found = sockets_.find(id); found != sockets_.end()) pump(*found->second, now);
  return !hungry.empty();
}

void RealtimeSockets::tell(Socket& socket, RealtimeEvent event, Time now) {
  if (socket.wire == 0) return;
  const auto due = event.sound.count() > 0 ? std::optional(socket.due.next(event.sound, now)) : std::nullopt;
  if (!socket.beta) return wire_.send(socket.wire, std::move(event.text), due);
  if (auto text = to_beta(event); !text.empty()) wire_.send(socket.wire, std::move(text), due);
}

void RealtimeSockets::pump(Socket& socket, Time now) {
  feed_large(socket);
  for (auto& message : socket.translator.take_for_talks()) {
    const int talk = message.talk;
    if (message.kind == ToTalk::Kind::begin)
      begin(socket, talk, now);
    else if (message.kind == ToTalk::Kind::end)
      end(socket, talk, now);
    else if (const auto found = socket.talks.find(talk); found != socket.talks.end())
      found->second.waiting.push_back(std::move(message));
  }
  for (auto& [number, talk] : socket.talks) feed(socket, talk, now);
  for (auto& event : socket.translator.take_for_client()) {
    counters_.errors += event.text.find(R"("type":"error"})") != std::string::npos;
    if (socket.kept) {
      auto& kept = *socket.kept;
      kept.events.push_back(event);
      kept.bytes += event.text.size();
      for (; kept.bytes > kKeptBytesMax; kept.events.pop_front()) {
        kept.bytes -= kept.events.front().text.size();
        kept.dropped = kept.events.front().number;
      }
    }
    tell(socket, std::move(event), now);
  }
  if (const auto& ending = socket.translator.ending(); ending && !std::exchange(socket.closing, true))
    if (socket.wire != 0) wire_.close(socket.wire, ending->code, ending->reason);
  review(socket);
}

/// What waits for a conversation is bounded by not reading more.
void RealtimeSockets::review(Socket& socket) {
  const auto main = socket.talks.find(0);
  const bool wait = socket.large.has_value() ||
                    (main != socket.talks.end() && (main->second.paused || !main->second.waiting.empty()));
  if (std::exchange(socket.unread, wait) != wait && socket.wire != 0) wire_.read(socket.wire, !wait);
}

bool RealtimeSockets::act_on(ToClient& action, Time now) {
  const auto found = talks_.find(action.client);
  if (found == talks_.end()) return (action.client & kSide) != 0;  // of one that has ended
  const auto [id, number] = found->second;
  auto& socket = *sockets_.at(id);
  auto& talk = socket.talks.at(number);
  switch (action.kind) {
    case ToClient::Kind::event:
      socket.translator.talk_event(number, action.data);
      break;
    case ToClient::Kind::sound:
      socket.translator.talk_sound(number, action.turn.value, action.data);
      break;
    case ToClient::Kind::pause:
      talk.paused = true;
      break;
    case ToClient::Kind::resume:
      talk.paused = false;
      break;
    case ToClient::Kind::close:
      socket.translator.talk_closed(number, action.code, action.data);
      if (number != 0) end(socket, number, now);
      break;
  }
  pump(socket, now);
  return true;
}

}  // namespace parlando::gateway
