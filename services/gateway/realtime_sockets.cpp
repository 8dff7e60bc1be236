#include "services/gateway/realtime_sockets.hpp"

#include "common/base/random_id.hpp"

namespace parlando::gateway {

namespace {

// Conversations beside that of a socket have numbers that no socket has.
constexpr ClientId kSide = ClientId{1} << 63;
constexpr std::size_t kModelMax = 200;
constexpr int kPrefixBytes = 8;
constexpr int kMessagesAtOnce = 8;

int hex_digit(char c) {
  return c >= '0' && c <= '9'   ? c - '0'
         : c >= 'a' && c <= 'f' ? c - 'a' + 10
         : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                : -1;
}

/// Of a query: "%20" and "+" are characters again.
std::string decoded(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool escaped =
        text[i] == '%' && i + 2 < text.size() && hex_digit(text[i + 1]) >= 0 && hex_digit(text[i + 2]) >= 0;
    if (escaped) {
      out += static_cast<char>(hex_digit(text[i + 1]) * 16 + hex_digit(text[i + 2]));
      i += 2;
    } else {
      out += text[i] == '+' ? ' ' : text[i];
    }
  }
  return out;
}

}  // namespace

RealtimeOptions realtime_options(std::string_view target) {
  RealtimeOptions out;
  const auto query = target.find('?');
  auto rest = query == std::string_view::npos ? std::string_view() : target.substr(query + 1);
  while (!rest.empty()) {
    const auto pair = rest.substr(0, rest.find('&'));
    rest.remove_prefix(std::min(pair.size() + 1, rest.size()));
    const auto name = pair.substr(0, pair.find('='));
    const auto value = decoded(pair.substr(std::min(name.size() + 1, pair.size())));
    if (name == "model" && !value.empty()) out.model = value.substr(0, kModelMax);
    if (name == "intent") out.transcription = value == "transcription";
  }
  return out;
}

void RealtimeSockets::opened(std::uint64_t id, std::string_view target, std::int64_t expires_at, Time now) {
  auto options = realtime_options(target);
  options.expires_at = expires_at;
  options.id_prefix = random_hex(kPrefixBytes);
  auto& socket = sockets_.try_emplace(id, std::move(options)).first->second;
  socket.translator.start();
  pump(id, socket, now);
}

void RealtimeSockets::message(std::uint64_t id, std::string_view data, bool binary, Time now) {
  const auto found = sockets_.find(id);
  if (found == sockets_.end() || found->second.closing) return;
  found->second.translator.client_message(data, binary);
  pump(id, found->second, now);
}

void RealtimeSockets::closed(std::uint64_t id, Time now) {
  const auto found = sockets_.find(id);
  if (found == sockets_.end()) return;
  while (!found->second.talks.empty()) end(found->second, found->second.talks.begin()->first, now);
  sockets_.erase(found);
}

void RealtimeSockets::begin(std::uint64_t id, Socket& socket, int talk, Time now) {
  const auto client = talk == 0 ? id : kSide | ++sides_;
  socket.talks[talk].client = client;
  talks_[client] = {id, talk};
  sessions_.client_opened(client, now);
}

void RealtimeSockets::end(Socket& socket, int talk, Time now) {
  const auto found = socket.talks.find(talk);
  if (found == socket.talks.end()) return;
  const auto client = found->second.client;
  talks_.erase(client);
  socket.talks.erase(found);
  sessions_.client_closed(client, now);
}

/// Tells a conversation what waits for it, a few messages: between them it is seen whether it takes more.
void RealtimeSockets::feed(std::uint64_t id, Talk& talk, Time now) {
  for (int i = 0; i < kMessagesAtOnce && !talk.paused && !talk.waiting.empty(); ++i) {
    const auto next = std::move(talk.waiting.front());
    talk.waiting.pop_front();
    next.kind == ToTalk::Kind::sound ? sessions_.client_audio(talk.client, next.data, now)
                                     : sessions_.client_text(talk.client, next.data, now);
  }
  if (!talk.paused && !talk.waiting.empty()) hungry_.insert(id);
}

bool RealtimeSockets::feed_more(Time now) {
  const auto hungry = std::exchange(hungry_, {});
  for (const auto id : hungry)
    if (const auto found = sockets_.find(id); found != sockets_.end()) pump(id, found->second, now);
  return !hungry.empty();
}

void RealtimeSockets::pump(std::uint64_t id, Socket& socket, Time now) {
  for (auto& message : socket.translator.take_for_talks()) {
    const int talk = message.talk;
    if (message.kind == ToTalk::Kind::begin)
      begin(id, socket, talk, now);
    else if (message.kind == ToTalk::Kind::end)
      end(socket, talk, now);
    else if (const auto found = socket.talks.find(talk); found != socket.talks.end())
      found->second.waiting.push_back(std::move(message));
  }
  for (auto& [number, talk] : socket.talks) feed(id, talk, now);
  for (auto& event : socket.translator.take_for_client()) {
    errors_ += event.find(R"("type":"error"})") != std::string::npos;
    wire_.send(id, std::move(event));
  }
  if (const auto& ending = socket.translator.ending(); ending && !std::exchange(socket.closing, true))
    wire_.close(id, ending->code, ending->reason);
  review(id, socket);
}

/// What waits for a conversation is bounded by not reading more.
void RealtimeSockets::review(std::uint64_t id, Socket& socket) {
  const auto main = socket.talks.find(0);
  const bool wait = main != socket.talks.end() && (main->second.paused || !main->second.waiting.empty());
  if (std::exchange(socket.unread, wait) != wait) wire_.read(id, !wait);
}

bool RealtimeSockets::act_on(ToClient& action, Time now) {
  const auto found = talks_.find(action.client);
  if (found == talks_.end()) return (action.client & kSide) != 0;  // of one that has ended
  const auto [id, number] = found->second;
  auto& socket = sockets_.at(id);
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
  pump(id, socket, now);
  return true;
}

}  // namespace parlando::gateway
