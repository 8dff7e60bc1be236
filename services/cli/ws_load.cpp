#include "services/cli/ws_load.hpp"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "common/base/assert.hpp"

namespace parlando::cli {
using nlohmann::json;
using std::chrono::milliseconds;

namespace {

constexpr milliseconds kFrameTime{20};
constexpr std::size_t kFrameSamples = 320;
constexpr int kNoiseFrames = 64;
constexpr int kNoiseLevel = 3;               // of 32768: a quiet room
constexpr int kFloodFrames = 100;            // in one block
constexpr std::size_t kUnsentMax = 1 << 20;  // a client that is so far behind is lost
constexpr double kOpenSecondsMax = 60;
constexpr milliseconds kBeforeSpeech{700};  // behind an answer that has been heard
constexpr milliseconds kIntoAnswer{300};    // before it is spoken over
constexpr milliseconds kLoudspeaker{200};   // its buffer
constexpr double kSilentSecondsMax = 20;    // behind speech: then something is wrong
constexpr double kRestSecondsMax = 5;       // behind one that was cut off: its rest may be answered or not
constexpr milliseconds kGoodbyeMax{2000};   // for all clients together
/// No session comes to this turn: the controller acknowledges a Cancel of it and changes nothing.
constexpr std::uint32_t kNoTurn = 1'000'000'000;

double cpu_of_thread() {
  rusage usage{};
  ::getrusage(RUSAGE_THREAD, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double ms_between(std::chrono::steady_clock::time_point from, std::chrono::steady_clock::time_point to) {
  return std::chrono::duration<double, std::milli>(to - from).count();
}

/// RFC 6455 §5.2, as a client sends it.
std::string frame_of(std::string_view payload, std::uint8_t opcode, std::uint32_t key) {
  std::string out;
  out.push_back(static_cast<char>(0x80 | opcode));
  const auto size = payload.size();
  if (size < 126) {
    out.push_back(static_cast<char>(0x80 | size));
  } else {
    PARLANDO_ASSERT(size < 65536, "a load's messages are short");
    out.push_back(static_cast<char>(0x80 | 126));
    out.push_back(static_cast<char>(size >> 8));
    out.push_back(static_cast<char>(size & 0xff));
  }
  char mask[4];
  for (int i = 0; i < 4; ++i) mask[i] = static_cast<char>(key >> (8 * i));
  out.append(mask, 4);
  for (std::size_t i = 0; i < size; ++i) out.push_back(static_cast<char>(payload[i] ^ mask[i % 4]));
  return out;
}

}  // namespace

struct WsLoad::Client {
  // Of one who speaks.
  std::size_t utterance = 0, said_bytes = 0;
  bool speaking = false, answered = false;
  Clock::time_point speak_at{}, speech_end{}, first_audio{}, last_audio{}, held_at{}, voice_at{};
  double heard_seconds = 0, play_lag = 0;
  int spoken_turns = 0, rate = 22050;
  TurnFigure figure;
  bool open_figure = false;   ///< of the utterance said last: no turn has ended since
  bool awaits_end = false;    ///< it was said, and `speech_ended` has not come
  int turns_under_way = 0;    ///< whose speech has ended
  Clock::time_point quiet{};  ///< since then nothing happens any more
  bool over_answer = false;   ///< what is said now is said over an answer
  bool murmurs = false;       ///< … and shall not take the turn
  bool cut_off = false;       ///< what is said now was taken for over
  ClientPlan plan;
  int fd = -1;
  bool opened = false, lost = false, writing = false;
  bool again = false;  ///< wants another session
  std::string in, out;
  std::size_t flood_at = 0;
  Clock::time_point next_frame{}, next_ask{}, asked_at{};
  std::uint32_t asks = 0;
  bool asking = false;
  std::size_t text = 0;
  int turns = 0;
};

WsLoad::WsLoad(int port)
    : port_(port), epoll_(::epoll_create1(EPOLL_CLOEXEC)), since_(Clock::now()), cpu_since_(cpu_of_thread()) {
  std::mt19937 random(1);
  std::uniform_int_distribution<int> level(-kNoiseLevel, kNoiseLevel);
  for (int n = 0; n < kNoiseFrames; ++n) {
    std::string pcm(2 * kFrameSamples, '\0');
    for (std::size_t i = 0; i < kFrameSamples; ++i) {
      const auto sample = static_cast<std::uint16_t>(level(random));
      pcm[2 * i] = static_cast<char>(sample & 0xff);
      pcm[2 * i + 1] = static_cast<char>(sample >> 8);
    }
    noise_.push_back(frame_of(pcm, 2, random()));
  }
  for (int n = 0; n < kFloodFrames; ++n) flood_ += noise_[static_cast<std::size_t>(n % kNoiseFrames)];
}

/// Without a close frame the engine keeps the session, so that its client may come back.
void WsLoad::say_goodbye(Client& client) {
  if (client.fd < 0 || client.flood_at > 0) return;  // in the middle of a frame nothing can be said
  const auto frame = frame_of(std::string_view("\x03\xe8", 2), 8, 0);
  send(client, frame.data(), frame.size());
  if (client.fd >= 0 && client.out.empty()) ::shutdown(client.fd, SHUT_WR);
}

WsLoad::~WsLoad() {
  for (const auto& client : clients_) say_goodbye(*client);
  // What is closed with something unread resets the connection.
  const auto until = Clock::now() + kGoodbyeMax;
  for (const auto& client : clients_) {
    if (client->fd < 0) continue;
    pollfd item{client->fd, POLLIN, 0};
    char part[65536];
    while (Clock::now() < until) {
      const auto wait = std::chrono::ceil<milliseconds>(until - Clock::now()).count();
      if (::poll(&item, 1, static_cast<int>(wait)) <= 0 || ::recv(client->fd, part, sizeof part, MSG_DONTWAIT) <= 0)
        break;
    }
    ::close(client->fd);
  }
  ::close(epoll_);
}

// ------------------------------------------------------------------------------------------------ opening

/// The handshake blocks; what follows does not.
Result<void> WsLoad::open(Client& client) {
  client.fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<std::uint16_t>(port_));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const timeval patience{10, 0};
  const int one = 1;
  ::setsockopt(client.fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  ::setsockopt(client.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (::connect(client.fd, reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0)
    return fail(Errc::unavailable, "nothing listens at port {}", port_);
  const auto request = fmt::format(
      "GET /v1/dialogue HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
      "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
      port_);
  if (::send(client.fd, request.data(), request.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request.size()))
    return fail(Errc::unavailable, "the connection was closed before the handshake");
  std::size_t end;
  while ((end = client.in.find("\r\n\r\n")) == std::string::npos) {
    char part[2048];
    const auto got = ::recv(client.fd, part, sizeof part, 0);
    if (got <= 0) return fail(Errc::unavailable, "the connection was closed during the handshake");
    client.in.append(part, static_cast<std::size_t>(got));
  }
  if (client.in.compare(0, 12, "HTTP/1.1 101") != 0)
    return fail(Errc::unavailable, "the handshake was answered '{}'", client.in.substr(0, client.in.find('\r')));
  client.in.erase(0, end + 4);
  // From here on nothing waits: every send and recv says so.
  epoll_event wanted{};
  wanted.events = EPOLLIN;
  wanted.data.ptr = &client;
  ::epoll_ctl(epoll_, EPOLL_CTL_ADD, client.fd, &wanted);
  client.writing = false;
  json open{{"type", "open"}, {"speak", client.plan.speak}};
  if (client.plan.lead_ms > 0) open["lead_ms"] = client.plan.lead_ms;
  if (client.plan.semantic) open["detection"] = {{"type", "semantic"}, {"eagerness", "auto"}};
  queue(client, open.dump(), false);
  return {};
}

Result<void> WsLoad::add(int count, const ClientPlan& plan) {
  const auto first = clients_.size();
  const auto wanted = opened_ + count;
  for (int n = 0; n < count; ++n) {
    clients_.push_back(std::make_unique<Client>());
    clients_.back()->plan = plan;
    PARLANDO_DO(open(*clients_.back()));
    pass(Clock::now());
  }
  const auto until =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(kOpenSecondsMax));
  while (opened_ < wanted && lost_ == 0 && Clock::now() < until) pass(Clock::now() + milliseconds(20));
  if (opened_ < wanted)
    return fail(Errc::unavailable, "{} of {} sessions were opened: {}", count - (wanted - opened_), count,
                first_reason_.empty() ? "the others had no answer" : first_reason_);
  // Each at its own place within the 20 ms, as clients that know nothing of each other.
  const auto now = Clock::now();
  for (std::size_t n = first; n < clients_.size(); ++n)
    start(*clients_[n], now + (n - first) * std::chrono::duration_cast<Clock::duration>(kFrameTime) / count);
  return {};
}

void WsLoad::start(Client& client, Clock::time_point at) {
  if (client.plan.flood) watch(client, true);
  if (!client.plan.texts.empty()) say_next(client);
  client.speak_at = at + kBeforeSpeech;
  if (!client.plan.sound && client.plan.utterances.empty()) return;
  client.next_frame = at + kFrameTime;
  // The first question comes at a place of its own within the period, behind the frame of that moment.
  client.next_ask = client.next_frame + client.plan.ask_every * (clients_.size() % 97) / 97;
  schedule(client, client.next_frame);
}

void WsLoad::schedule(Client& client, Clock::time_point at) {
  due_.push_back({at, &client});
  std::push_heap(due_.begin(), due_.end(), std::greater<>());
}

// ------------------------------------------------------------------------------------------------ running

void WsLoad::run(double seconds) {
  const auto until = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  while (Clock::now() < until) pass(until);
}

Result<void> WsLoad::run_turns(std::int64_t turns, double seconds_max) {
  const auto until =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds_max));
  while (turns_ < turns) {
    if (lost_ > 0) return fail(Errc::unavailable, "a session was lost after {} turns: {}", turns_, first_reason_);
    if (Clock::now() >= until)
      return fail(Errc::deadline_exceeded, "{} of {} turns within {:.0f} s", turns_, turns, seconds_max);
    pass(until);
  }
  return {};
}

std::int64_t WsLoad::settle(double seconds_max) {
  quiet_ = true;
  const auto waiting = [&] {
    return std::count_if(clients_.begin(), clients_.end(), [](const auto& c) { return c->asking && !c->lost; });
  };
  const auto until =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds_max));
  while (waiting() > 0 && Clock::now() < until) pass(until);
  quiet_ = false;
  return waiting();
}

LoadFigures WsLoad::take() {
  const auto now = Clock::now();
  const auto cpu = cpu_of_thread();
  figures_.seconds = std::chrono::duration<double>(now - since_).count();
  figures_.cpu_seconds = cpu - cpu_since_;
  since_ = now;
  cpu_since_ = cpu;
  return std::exchange(figures_, {});
}

/// Waits until something is due or arrives, and does it.
void WsLoad::pass(Clock::time_point until) {
  const auto now = Clock::now();
  if (!due_.empty()) until = std::min(until, due_.front().at);
  timespec timeout{};
  if (until > now) {
    const auto wait = std::chrono::duration_cast<std::chrono::nanoseconds>(until - now).count();
    timeout = {wait / 1'000'000'000, wait % 1'000'000'000};
  }
  epoll_event events[64];
  const int count = ::epoll_pwait2(epoll_, events, 64, &timeout, nullptr);
  for (int i = 0; i < count; ++i) {
    auto& client = *static_cast<Client*>(events[i].data.ptr);
    if (client.fd >= 0 && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) readable(client);
    if (client.fd >= 0 && (events[i].events & EPOLLOUT) != 0) writable(client);
  }
  for (auto time = Clock::now(); !due_.empty() && due_.front().at <= time;) {
    std::pop_heap(due_.begin(), due_.end(), std::greater<>());
    auto& client = *due_.back().client;
    due_.pop_back();
    if (!client.lost) act(client, time);
  }
}

/// The frame that is due, and perhaps the question behind it.
void WsLoad::act(Client& client, Clock::time_point now) {
  if (!quiet_ && !client.plan.utterances.empty()) {
    talk(client, now);
  } else if (!quiet_) {
    figures_.late.push_back(ms_between(client.next_frame, now));
    ++figures_.frames;
    const auto& frame = noise_[static_cast<std::size_t>(figures_.frames) % noise_.size()];
    send(client, frame.data(), frame.size());
  }
  if (client.plan.ask_every.count() > 0 && now >= client.next_ask && !client.asking && !client.lost && !quiet_) {
    client.next_ask = now + client.plan.ask_every;
    client.asking = true;
    client.asked_at = Clock::now();
    queue(client, json{{"type", "cancel"}, {"turn", kNoTurn + ++client.asks}}.dump(), false);
  }
  client.next_frame += kFrameTime;
  schedule(client, client.next_frame);
}

void WsLoad::queue(Client& client, std::string_view message, bool binary) {
  const auto frame = frame_of(message, binary ? 2 : 1, 0x5ca1ab1e);
  send(client, frame.data(), frame.size());
}

void WsLoad::send(Client& client, const char* data, std::size_t size) {
  if (client.fd < 0) return;
  std::size_t done = 0;
  if (client.out.empty()) {
    const auto sent = ::send(client.fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN && errno != EINTR)
      return lose(client, fmt::format("sending failed: {}", ::strerror(errno)));
    done = sent < 0 ? 0 : static_cast<std::size_t>(sent);
  }
  if (done == size) return;
  client.out.append(data + done, size - done);
  if (client.out.size() > kUnsentMax) return lose(client, "the server does not read");
  watch(client, true);
}

void WsLoad::writable(Client& client) {
  if (!client.out.empty()) {
    const auto sent = ::send(client.fd, client.out.data(), client.out.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN && errno != EINTR)
      return lose(client, fmt::format("sending failed: {}", ::strerror(errno)));
    if (sent > 0) client.out.erase(0, static_cast<std::size_t>(sent));
    if (!client.out.empty()) return;
  }
  if (!client.plan.flood || !client.opened || quiet_) return watch(client, false);
  const auto sent =
      ::send(client.fd, flood_.data() + client.flood_at, flood_.size() - client.flood_at, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent < 0 && errno != EAGAIN && errno != EINTR)
    return lose(client, fmt::format("sending failed: {}", ::strerror(errno)));
  if (sent <= 0) return;
  figures_.flood_bytes += sent;
  client.flood_at = (client.flood_at + static_cast<std::size_t>(sent)) % flood_.size();
}

void WsLoad::watch(Client& client, bool write) {
  if (client.fd < 0 || client.writing == write) return;
  client.writing = write;
  epoll_event wanted{};
  wanted.events = write ? EPOLLIN | EPOLLOUT : EPOLLIN;
  wanted.data.ptr = &client;
  ::epoll_ctl(epoll_, EPOLL_CTL_MOD, client.fd, &wanted);
}

// ------------------------------------------------------------------------------------------------ what comes

void WsLoad::readable(Client& client) {
  char part[65536];
  const auto got = ::recv(client.fd, part, sizeof part, MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) return lose(client, "the server closed the connection");
  client.in.append(part, static_cast<std::size_t>(got));
  std::size_t at = 0;
  while (client.fd >= 0 && !client.again && take_frame(client, at)) {
  }
  if (client.fd >= 0) client.in.erase(0, at);
  if (client.fd >= 0 && client.again) open_again(client);
}

/// Another session of the same client, over another socket.
void WsLoad::open_again(Client& client) {
  client.again = client.opened = false;
  say_goodbye(client);
  ::close(client.fd);
  client.fd = -1;
  client.in.clear();
  client.out.clear();
  if (const auto done = open(client); !done) lose(client, done.error().message);
}

/// One frame from `at` on. @return false when it is not complete
bool WsLoad::take_frame(Client& client, std::size_t& at) {
  const auto left = client.in.size() - at;
  if (left < 2) return false;
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(client.in[at + i]); };
  std::size_t size = byte(1) & 127;
  std::size_t head = 2;
  if (size >= 126) {
    head = size == 126 ? 4 : 10;
    if (left < head) return false;
    size = 0;
    for (std::size_t i = 2; i < head; ++i) size = size << 8 | byte(i);
  }
  if (left < head + size) return false;
  const int opcode = byte(0) & 15;
  const auto payload = client.in.substr(at + head, size);
  at += head + size;
  if (opcode == 9) {
    const auto pong = frame_of(payload, 10, 0);
    send(client, pong.data(), pong.size());
  } else if (opcode == 8) {
    lose(client, fmt::format("the server closed: {}", payload.size() > 2 ? payload.substr(2) : "no reason"));
  } else if (opcode == 2) {
    figures_.audio_bytes += static_cast<std::int64_t>(size);
    if (!client.plan.utterances.empty()) hear(client, size);
  } else if (opcode == 1) {
    event(client, payload);
  }
  return true;
}

void WsLoad::event(Client& client, std::string_view text) {
  const auto body = json::parse(text, nullptr, false);
  const auto type = body.is_object() ? body.value("type", std::string()) : std::string();
  if (type == "opened") {
    client.rate = body.value("rate", client.rate);
    client.opened = true;
    ++opened_;
    if (client.turns > 0) {  // another session of the same client
      client.turns = 0;
      say_next(client);
    }
  } else if (type == "error") {
    lose(client, body.dump());
  } else if (type == "cancelled") {
    if (client.asking && body.value("turn", std::uint32_t{0}) == kNoTurn + client.asks) {
      client.asking = false;
      figures_.round_trips.push_back(ms_between(client.asked_at, Clock::now()));
    } else if (!client.plan.utterances.empty()) {
      end_turn(client, "{}");
    }
  } else if (type == "hold") {
    client.held_at = Clock::now();
    if (client.over_answer) figures_.held.push_back(ms_between(client.voice_at, client.held_at));
    figures_.silenced.push_back(0);
  } else if (type == "release") {
    client.held_at = {};
  } else if (type == "interrupted") {
    client.held_at = {};
    ++figures_.interruptions;
    if (std::exchange(client.murmurs, false)) {
      ++figures_.murmurs_took;
      client.speech_end = {};  // what is heard now answers a murmur
    }
  } else if (type == "speech_ended" && !client.plan.utterances.empty()) {
    hear_end(client);
  } else if (type == "turn" && !client.plan.utterances.empty()) {
    end_turn(client, body.dump());
  } else if (type == "turn") {
    ++turns_;
    ++figures_.turns;
    ++client.turns;
    client.again = client.plan.turns_per_session > 0 && client.turns >= client.plan.turns_per_session;
    if (!client.again) say_next(client);
  }
}

/// The frame of this moment: of what is being said, or of the quiet room.
void WsLoad::talk(Client& client, Clock::time_point now) {
  figures_.late.push_back(ms_between(client.next_frame, now));
  ++figures_.frames;
  if (!client.speaking && may_speak(client, now)) {
    const auto& next = client.plan.utterances[client.utterance % client.plan.utterances.size()];
    client.speaking = true;
    client.said_bytes = 0;
    client.speak_at = {};
    client.murmurs = !next.takes_turn;
    client.cut_off = false;
    if (next.takes_turn) client.speech_end = {};
    if (client.over_answer) client.voice_at = now + std::chrono::microseconds(next.begin_sample * 1000 / 16);
  }
  const auto& said = client.plan.utterances[client.utterance % client.plan.utterances.size()];
  if (!client.speaking) {
    const bool lost = client.speech_end != Clock::time_point{} && !client.answered &&
                      ms_between(client.speech_end, now) > 1e3 * kSilentSecondsMax;
    if (lost) lose(client, "a question was not answered");
    const auto& frame = noise_[static_cast<std::size_t>(figures_.frames) % noise_.size()];
    return send(client, frame.data(), frame.size());
  }
  auto pcm = said.pcm.substr(client.said_bytes, 2 * kFrameSamples);
  client.said_bytes += pcm.size();
  pcm.resize(2 * kFrameSamples);
  queue(client, pcm, true);
  const auto end = static_cast<std::int64_t>(client.said_bytes / 2);
  if (said.takes_turn && client.speech_end == Clock::time_point{} && end >= said.end_sample) {
    // The frame leaves when its last sample has been said.
    client.speech_end = now - std::chrono::microseconds((end - said.end_sample) * 1000 / 16);
    client.answered = false;
    client.figure = {};
    client.figure.interrupted = std::exchange(client.over_answer, false);
    client.figure.cut_off = std::exchange(client.cut_off, false);
    client.open_figure = client.awaits_end = true;
    client.heard_seconds = client.play_lag = 0;
    figures_.pauses += said.pauses;
  }
  if (client.said_bytes < said.pcm.size()) return;
  client.speaking = false;
  client.quiet = std::max(client.quiet, now);
  if (!said.takes_turn) {
    client.over_answer = false;
    ++figures_.murmurs;
  }
  ++client.utterance;
}

/// Time for the next one: an answer is spoken over, or nothing is under way and the last answer has been heard.
bool WsLoad::may_speak(Client& client, Clock::time_point now) {
  if (client.speak_at != Clock::time_point{}) return now >= client.speak_at;
  if (client.awaits_end && client.figure.cut_off && ms_between(client.speech_end, now) > 1e3 * kRestSecondsMax) {
    client.awaits_end = false;
    client.speech_end = {};
    close_figure(client);
  }
  if (client.awaits_end || client.turns_under_way > 0 || client.held_at != Clock::time_point{}) return false;
  if (now < client.quiet + kLoudspeaker + kBeforeSpeech) return false;
  // An answer without sound is not spoken over.
  for (std::size_t n = 0; n < client.plan.utterances.size(); ++n) {
    if (client.plan.utterances[client.utterance % client.plan.utterances.size()].into_answer.count() < 0) return true;
    ++client.utterance;
  }
  return false;
}

/// The engine takes what was said for over.
void WsLoad::hear_end(Client& client) {
  const auto now = Clock::now();
  client.quiet = std::max(client.quiet, now);
  ++client.turns_under_way;
  const auto& said = client.plan.utterances[client.utterance % client.plan.utterances.size()];
  if (client.speaking && said.takes_turn && client.speech_end == Clock::time_point{}) {
    if (client.said_bytes / 2 <= static_cast<std::size_t>(said.begin_sample)) return;  // that of a murmur before
    ++figures_.cut_off;
    client.cut_off = true;
    return;
  }
  if (!std::exchange(client.awaits_end, false)) return;
  client.figure.end_told = ms_between(client.speech_end, now);
}

void WsLoad::hear(Client& client, std::size_t bytes) {
  const auto now = Clock::now();
  if (client.held_at != Clock::time_point{}) figures_.silenced.back() = ms_between(client.held_at, now);
  if (client.speech_end == Clock::time_point{}) return;  // of the answer before
  if (!std::exchange(client.answered, true)) {
    client.first_audio = now;
    client.figure.first_audio = ms_between(client.speech_end, now);
    const auto next = client.utterance + (client.speaking ? 1 : 0);
    const auto into_answer = client.plan.utterances[next % client.plan.utterances.size()].into_answer;
    const bool interrupts = client.plan.interrupts_every > 0 && client.spoken_turns % client.plan.interrupts_every == 0;
    if (interrupts || into_answer.count() >= 0) {
      client.speak_at = now + (interrupts ? kIntoAnswer : into_answer);
      client.over_answer = true;
    }
  }
  const double late = ms_between(client.first_audio + kLoudspeaker, now) / 1e3 - client.heard_seconds - client.play_lag;
  if (late > 0 && client.held_at == Clock::time_point{}) {
    ++client.figure.underruns;
    client.play_lag += late;
  }
  client.heard_seconds += static_cast<double>(bytes) / 2 / client.rate;
  client.last_audio = now;
}

void WsLoad::end_turn(Client& client, const std::string& text) {
  client.turns_under_way = std::max(0, client.turns_under_way - 1);
  // The rest of the sound is in the loudspeaker.
  const auto heard = std::chrono::duration<double>(client.heard_seconds + client.play_lag);
  client.quiet =
      std::max({client.quiet, Clock::now(), client.first_audio + std::chrono::duration_cast<Clock::duration>(heard)});
  if (!client.open_figure) return;  // of the first part of one that was cut off, or of a murmur
  const auto body = json::parse(text);
  const auto stage = [&](const char* name) {
    return body.contains("stages") ? body["stages"].value(name, std::nan("")) : std::nan("");
  };
  auto& figure = client.figure;
  figure.decision = stage("decision_ms");
  figure.engine_audio = stage("first_audio_ms");
  figure.trial = stage("trial_ms");
  figure.interrupted = figure.interrupted || body.value("interrupted", false);
  close_figure(client);
}

void WsLoad::close_figure(Client& client) {
  if (!std::exchange(client.open_figure, false)) return;
  figures_.spoken.push_back(client.figure);
  ++turns_;
  ++figures_.turns;
  ++client.spoken_turns;
}

void WsLoad::say_next(Client& client) {
  if (client.plan.texts.empty()) return;
  queue(client, json{{"type", "text"}, {"text", client.plan.texts[client.text]}}.dump(), false);
  client.text = (client.text + 1) % client.plan.texts.size();
}

void WsLoad::lose(Client& client, const std::string& why) {
  if (client.lost) return;
  client.lost = true;
  ++lost_;
  if (first_reason_.empty()) first_reason_ = why;
  if (client.fd >= 0) ::close(client.fd);
  client.fd = -1;
}

}  // namespace parlando::cli
