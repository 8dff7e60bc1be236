#include "services/cli/ws_load.hpp"

#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

#include "services/cli/bench_setting.hpp"
#include "services/cli/ws_client.hpp"

namespace parlando::cli {
using nlohmann::json;
using std::chrono::milliseconds;

namespace {

constexpr milliseconds kFrameTime{20};
constexpr int kNoiseFrames = 64;
constexpr int kNoiseLevel = 3;     // of 32768: a quiet room
constexpr int kFloodFrames = 100;  // in one block
constexpr double kOpenSecondsMax = 60;
constexpr milliseconds kGoodbyeMax{2000};  // for all clients together
/// No session comes to this turn: the controller acknowledges a Cancel of it and changes nothing.
constexpr std::uint32_t kNoTurn = 1'000'000'000;

}  // namespace

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
    noise_.push_back(ws_frame(pcm, 2, random()));
  }
  for (int n = 0; n < kFloodFrames; ++n) flood_ += noise_[static_cast<std::size_t>(n % kNoiseFrames)];
}

/// Without a close frame the engine keeps the session, so that its client may come back.
void WsLoad::say_goodbye(Client& client) {
  if (client.socket && client.flood_at == 0) client.socket->finish();  // in the middle of a frame nothing can be said
}

WsLoad::~WsLoad() {
  for (const auto& client : clients_) say_goodbye(*client);
  const auto until = Clock::now() + kGoodbyeMax;
  for (const auto& client : clients_)
    if (client->socket)
      client->socket->close(
          static_cast<int>(std::max<std::int64_t>(0, std::chrono::ceil<milliseconds>(until - Clock::now()).count())));
  ::close(epoll_);
}

// ------------------------------------------------------------------------------------------------ opening

/// Opening blocks; what follows does not.
Result<void> WsLoad::open(Client& client) {
  PARLANDO_TRY(client.socket, WsSocket::open({false, "127.0.0.1", port_, "/v1/dialogue"}));
  epoll_event wanted{};
  wanted.events = EPOLLIN;
  wanted.data.ptr = &client;
  ::epoll_ctl(epoll_, EPOLL_CTL_ADD, client.socket->fd(), &wanted);
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
  say_next(client);
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

Result<void> WsLoad::run_turns(std::int64_t turns, double seconds_max, const std::function<bool()>& goes_on) {
  const auto until =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds_max));
  while (turns_ < turns) {
    if (lost_ > 0) return fail(Errc::unavailable, "a session was lost after {} turns: {}", turns_, first_reason_);
    if (Clock::now() >= until)
      return fail(Errc::deadline_exceeded, "{} of {} turns within {:.0f} s", turns_, turns, seconds_max);
    if (goes_on && !goes_on()) return fail(Errc::cancelled, "stopped after {} of {} turns", turns_, turns);
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
    if (client.socket && (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) readable(client);
    if (client.socket && (events[i].events & EPOLLOUT) != 0) writable(client);
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
    send(client, frame);
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
  if (!client.socket) return;
  if (const auto done = client.socket->send(message, binary); !done) return lose(client, done.error().message);
  if (client.socket->wants_write()) watch(client, true);
}

void WsLoad::send(Client& client, std::string_view frame) {
  if (!client.socket) return;
  if (const auto done = client.socket->send_frames(frame); !done) return lose(client, done.error().message);
  if (client.socket->wants_write()) watch(client, true);
}

void WsLoad::writable(Client& client) {
  if (const auto done = client.socket->write(); !done) return lose(client, done.error().message);
  if (client.socket->wants_write()) return;
  if (!client.plan.flood || !client.opened || quiet_) return watch(client, false);
  const auto sent = client.socket->send_some(std::string_view(flood_).substr(client.flood_at));
  if (!sent) return lose(client, sent.error().message);
  figures_.flood_bytes += static_cast<std::int64_t>(*sent);
  client.flood_at = (client.flood_at + *sent) % flood_.size();
}

void WsLoad::watch(Client& client, bool write) {
  if (!client.socket || client.writing == write) return;
  client.writing = write;
  epoll_event wanted{};
  wanted.events = write ? EPOLLIN | EPOLLOUT : EPOLLIN;
  wanted.data.ptr = &client;
  ::epoll_ctl(epoll_, EPOLL_CTL_MOD, client.socket->fd(), &wanted);
}

// ------------------------------------------------------------------------------------------------ what comes

void WsLoad::readable(Client& client) {
  const auto read = client.socket->read();
  while (client.socket && !client.again) {
    const auto message = client.socket->next();
    if (!message) break;
    if (!message->binary) {
      event(client, message->payload);
      continue;
    }
    figures_.audio_bytes += static_cast<std::int64_t>(message->payload.size());
    if (client.uttered_at != Clock::time_point{})
      figures_.synthesis.push_back(ms_between(std::exchange(client.uttered_at, {}), Clock::now()));
    if (!client.plan.utterances.empty()) hear(client, message->payload.size());
  }
  if (client.socket && client.again) return open_again(client);
  if (!read) lose(client, read.error().message);
}

/// Another session of the same client, over another socket.
void WsLoad::open_again(Client& client) {
  client.again = client.opened = false;
  say_goodbye(client);
  client.socket.reset();
  if (const auto done = open(client); !done) lose(client, done.error().message);
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
    if (client.detected_at != Clock::time_point{})
      figures_.silenced.push_back(std::max(0.0, ms_between(client.detected_at, client.held_at)));
  } else if (type == "release") {
    // The loudspeaker has stood still.
    if (client.held_at != Clock::time_point{}) client.play_lag += ms_between(client.held_at, Clock::now()) / 1e3;
    client.held_at = {};
  } else if (type == "interrupted") {
    client.held_at = {};
    ++figures_.interruptions;
    if (std::exchange(client.murmurs, false)) {
      ++figures_.murmurs_took;
      const auto& list = client.plan.utterances;
      figures_.took.push_back(list[(client.utterance + (client.speaking ? 0 : list.size() - 1)) % list.size()].text);
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

void WsLoad::say_next(Client& client) {
  const bool utters = !client.plan.utters.empty();
  const auto& list = utters ? client.plan.utters : client.plan.texts;
  if (list.empty()) return;
  client.uttered_at = utters ? Clock::now() : Clock::time_point{};
  queue(client, json{{"type", utters ? "utter" : "text"}, {"text", list[client.text]}}.dump(), false);
  client.text = (client.text + 1) % list.size();
}

void WsLoad::lose(Client& client, const std::string& why) {
  if (client.lost) return;
  client.lost = true;
  ++lost_;
  if (first_reason_.empty()) first_reason_ = why;
  client.socket.reset();
}

}  // namespace parlando::cli
