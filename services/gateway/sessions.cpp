#include "services/gateway/sessions.hpp"

#include "common/protocol/openings.hpp"
#include "common/protocol/settings.hpp"
#include "common/telemetry/log.hpp"
#include "services/gateway/voice_id.hpp"

namespace parlando::gateway {

namespace {

constexpr int kStrikesMax = 3;                                     // malformed messages before a socket is closed
constexpr std::size_t kAudioBytesMax = 32u << 10;                  // of a message, as between services
constexpr std::uint64_t kSeedMask = (std::uint64_t{1} << 53) - 1;  // what JavaScript reads exactly
constexpr int kOpeningUnused = 34;                                 // 30 bits: numbers of inputs fit into an i64
constexpr std::uint16_t kNormal = 1000, kGoingAway = 1001, kPolicy = 1008;

/// Something is to come of it.
bool asks(const Input& input) {
  return std::holds_alternative<protocol::Say>(input) || std::holds_alternative<protocol::Flush>(input) ||
         std::holds_alternative<protocol::Respond>(input) || std::holds_alternative<protocol::Utter>(input);
}

}  // namespace

void Sessions::note_start(Time now) {
  if (!started_) started_ = now;
}

Client* Sessions::find(ClientId id) {
  const auto found = clients_.find(id);
  return found == clients_.end() ? nullptr : &found->second;
}

Client* Sessions::find(SessionId id) {
  const auto found = by_session_.find(id);
  return found == by_session_.end() ? nullptr : find(found->second);
}

// ------------------------------------------------------------------------------------------------ sockets

void Sessions::client_opened(ClientId id, Time now, ClientTraits traits) {
  note_start(now);
  auto& client = clients_.emplace(id, Client(id, config_.upload, now)).first->second;
  client.traits = std::move(traits);
  if (draining_since_) close(client, kGoingAway, "the gateway is going away");
}

void Sessions::client_closed(ClientId id, Time) { forget(id, false); }
void Sessions::client_lost(ClientId id, Time) { forget(id, true); }

void Sessions::forget(ClientId id, bool detached) {
  auto* client = find(id);
  if (client == nullptr) return;
  end_attempt(*client);
  end_session(*client, detached);
  clients_.erase(id);
}

void Sessions::say(Client& client, std::string event) {
  if (!client.closing) to_clients_.push_back({ToClient::Kind::event, client.id, std::move(event)});
}

void Sessions::close(Client& client, std::uint16_t code, std::string reason) {
  if (client.closing) return;
  end_attempt(client);
  give_up_sound(client);
  end_session(client, code == kGoingAway);  // another gateway may go on
  client.closing = true;
  to_clients_.push_back({ToClient::Kind::close, client.id, std::move(reason), code});
}

void Sessions::end_session(Client& client, bool detached) {
  if (!client.session) return;
  leave(*client.session, {.detached = detached});
  counters_.dropped_input_samples += client.session->log.dropped_samples();
  by_session_.erase(client.session->id);
  sound_due_.erase({client.session->sound_due, client.id});
  client.session.reset();
}

void Sessions::complain(Client& client, const Error& error, Time) {
  ++counters_.refused;
  say(client, error_event(to_string(error.code), error.message));
  if (!is_malformed(error.code)) return;
  if (++client.strikes >= kStrikesMax) close(client, kPolicy, "too many malformed messages");
}

/// @param once  of a stream of sound one complaint is enough
void Sessions::complain_not_open(Client& client, bool once) {
  ++counters_.refused;
  if (once && client.told_not_open) return;
  client.told_not_open = client.told_not_open || once;
  say(client, error_event(to_string(Errc::not_ready), "no session is open: send {\"type\":\"open\"} first"));
}

// ------------------------------------------------------------------------------------------------ what clients say

void Sessions::client_text(ClientId id, std::string_view text, Time now) {
  auto* client = find(id);
  if (client == nullptr || client->closing) return;
  client->upload.take(text.size(), now);
  auto message = read_client_message(text);
  if (!message)
    complain(*client, message.error(), now);
  else if (auto* wanted = std::get_if<OpenOptions>(&*message))
    open(*client, std::move(*wanted), now);
  else if (auto* lost = std::get_if<ResumeOptions>(&*message))
    resume(*client, std::move(*lost), now);
  else if (auto* wish = std::get_if<EraseOptions>(&*message))
    erase(*client, std::move(*wish), now);
  else if (!client->session)
    complain_not_open(*client, false);
  else if (const auto* change = std::get_if<SettingsChange>(&*message))
    configure(*client, *change, now);
  else if (const auto* asked = std::get_if<protocol::Respond>(&*message))
    respond(*client, *asked, now);
  else if (std::holds_alternative<protocol::Flush>(*message))
    input(*client, protocol::Flush{client->session->position_samples});
  else
    std::visit(
        [&](auto& body) {
          if constexpr (std::is_same_v<std::decay_t<decltype(body)>, protocol::Cancel>)
            cancel(*client, body, now);
          else if constexpr (std::is_constructible_v<Input, decltype(body)>)
            input(*client, std::move(body));
        },
        *message);
  review_pause(*client, now);
}

void Sessions::client_audio(ClientId id, std::string_view pcm, Time now) {
  auto* client = find(id);
  if (client == nullptr || client->closing) return;
  client->upload.take(pcm.size(), now);
  if (pcm.size() % kSampleBytes != 0 || pcm.size() > kAudioBytesMax) {
    complain(*client,
             {Errc::bad_frame, fmt::format("an audio message of {} bytes, expected an even number up to {}", pcm.size(),
                                           kAudioBytesMax)},
             now);
  } else if (!client->session) {
    complain_not_open(*client, true);
  } else if (!pcm.empty()) {
    ++counters_.audio_frames;
    const auto bytes = std::as_bytes(std::span(pcm));
    input(*client, protocol::Audio{client->session->position_samples, {bytes.begin(), bytes.end()}});
  }
  review_pause(*client, now);
}

void Sessions::open(Client& client, OpenOptions options, Time now) {
  if (client.session) return complain(client, {Errc::invalid_argument, "a session is open already"}, now);
  if (client.attempt) return complain(client, {Errc::invalid_argument, "a session is being resumed"}, now);
  if (const auto allowed = check_voice(client, options.speaker); !allowed)
    return complain(client, allowed.error(), now);
  if (options.session && !config_.tokens.is_right(options.token, *options.session, client.traits.owner))
    return complain(client, {Errc::not_found, "nothing is stored of a session with this token"}, now);
  const auto high = random_();
  const auto id = options.session.value_or(SessionId{high, random_()});
  // Whoever comes last with the token has it.
  if (auto* holder = options.session ? find(id) : nullptr)
    fail(*holder, {std::string(to_string(Errc::not_found)), "the session goes on at another connection"});
  // Its records name what was said at former openings, to gateways that nobody knows of any more: each opening has the
  // upper half of its numbers to itself. Positions begin anew with it.
  const auto opening = options.session ? 1 + (random_() >> kOpeningUnused) : 0;
  client.session = std::make_unique<Session>(id, std::move(options), config_.inputs, config_.playout,
                                             protocol::first_input_of(opening));
  auto& session = *client.session;
  session.seed = session.options.seed.value_or(random_() & kSeedMask);
  session.trace = random_();
  session.token = ResumeToken::make(random_);
  session.give_up = now + (session.options.session ? config_.resume_wait : config_.open_wait);
  by_session_[id] = client.id;
  client.told_not_open = false;
  place(client, now);
}

/// A voice that somebody has made is his; to others there is none of this name.
Result<void> Sessions::check_voice(const Client& client, const std::string& speaker) {
  if (may_use_voice(speaker, client.traits.owner)) return {};
  return parlando::fail(Errc::not_found, "there is no voice '{}'", speaker.substr(0, 60));
}

/// What is named changes; the conversation is told all of it, so that a repetition does no harm.
void Sessions::configure(Client& client, const SettingsChange& change, Time now) {
  auto& settings = client.session->options;
  auto wanted = static_cast<protocol::Settings>(settings);
  if (const auto changed = protocol::apply(change.changes, wanted); !changed)
    return complain(client, changed.error(), now);
  if (const auto allowed = check_voice(client, wanted.speaker); !allowed) return complain(client, allowed.error(), now);
  static_cast<protocol::Settings&>(settings) = std::move(wanted);
  protocol::Configure whole;
  static_cast<protocol::Settings&>(whole) = settings;
  input(client, std::move(whole));
}

void Sessions::respond(Client& client, const protocol::Respond& asked, Time now) {
  auto settings = static_cast<protocol::Settings>(client.session->options);
  const auto applied = protocol::apply(asked.settings, settings);
  const auto allowed = applied ? check_voice(client, settings.speaker) : applied;
  allowed ? input(client, asked) : complain(client, allowed.error(), now);
}

/// Of an answer that is complete and still heard the controller is told how far, so that the history ends there.
void Sessions::cancel(Client& client, protocol::Cancel cancel, Time now) {
  auto& session = *client.session;
  if (cancel.turn.value == 0) cancel.turn = session.turn_to_cancel();
  if (session.playout && cancel.turn.value != 0)
    if (const auto heard = played(session, cancel.turn, now); !heard.over) tell_played(session, heard);
  input(client, cancel);
}

/// Numbers an input and hands it on, if there is somebody to hand it to.
void Sessions::input(Client& client, Input input) {
  auto& session = *client.session;
  if (const auto* audio = std::get_if<protocol::Audio>(&input))
    session.position_samples += static_cast<std::int64_t>(audio->payload.size() / kSampleBytes);
  else if (asks(input))
    ++session.requests;
  session.log.add(std::move(input), session.trace);
  pump(session);
}

// ------------------------------------------------------------------------------------------------ reading slower

void Sessions::pause(Client& client, Pause why, bool on) {
  if (client.is_paused(why) == on) return;
  const bool was = client.paused != 0;
  client.paused ^= static_cast<unsigned>(why);
  const bool is = client.paused != 0;
  if (was == is || client.closing) return;
  counters_.paused += is;
  to_clients_.push_back({is ? ToClient::Kind::pause : ToClient::Kind::resume, client.id, {}});
}

void Sessions::review_pause(Client& client, Time now) {
  if (client.closing) return;
  const bool too_fast = client.is_paused(Pause::rate) ? !client.upload.may_resume(now) : client.upload.is_over();
  const bool keeps_up =
      client.traits.of_file && client.session && client.session->log.audio_samples() < config_.file_ahead_samples;
  pause(client, Pause::rate, too_fast && !keeps_up);
  pause(client, Pause::log, client.session && client.session->log.is_full());
  pause(client, Pause::link, client.session && client.session->is_stuck());
}

// ------------------------------------------------------------------------------------------------ time

/// A connection whose time is over ends between two turns; one that never stands still is cut in the middle of one.
/// @return whether it has ended
bool Sessions::review_age(Client& client, Time now) {
  const auto over = now - client.since - config_.session_max;
  const bool busy = client.session && client.session->is_busy();
  if (over <= Time::duration(0) || (busy && over <= config_.session_grace)) return false;
  auto why = fmt::format("a connection lasts at most {} s", config_.session_max.count());
  if (busy) why += fmt::format(", and a turn that is under way then {} s more", config_.session_grace.count());
  say(client, error_event(to_string(Errc::deadline_exceeded), why));
  close(client, kNormal, busy ? "the connection's time is over, in a turn" : "the connection's time is over");
  return true;
}

void Sessions::on_tick(Time now) {
  note_start(now);
  play(now);
  for (auto& [id, client] : clients_) {
    if (client.closing) continue;
    if (review_age(client, now)) continue;
    if (client.session) review(client, now);
    if (client.attempt) review_attempt(client, now);
    review_pause(client, now);
  }
  review_erasures(now);
  if (draining_since_) drain(now);
}

bool Sessions::drain(Time now) {
  if (!draining_since_) draining_since_ = now;
  const bool over = now - *draining_since_ >= config_.drain_max;
  for (auto& [id, client] : clients_)
    if (over || !client.session || !client.session->is_busy()) close(client, kGoingAway, "the gateway is going away");
  return clients_.empty();
}

SessionsCounters Sessions::counters() const {
  auto out = counters_;
  for (const auto& [id, client] : clients_)
    if (client.session) {
      out.dropped_input_samples += client.session->log.dropped_samples();
      if (client.session->playout) out.held_samples += client.session->playout->held_samples();
    }
  return out;
}

}  // namespace parlando::gateway
