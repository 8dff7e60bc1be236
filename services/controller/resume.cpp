/// A session whose client is lost, and what the client is told when it is back. The session is the same object all the
/// time: a turn under way goes on, and of its sound only positions are kept. What the client lacks is told from the
/// turn's texts and made again from its pieces.
#include <algorithm>

#include "common/base/pcm.hpp"
#include "common/base/secret.hpp"
#include "common/telemetry/log.hpp"
#include "services/controller/json_text.hpp"
#include "services/controller/session.hpp"
#include "services/controller/trace.hpp"

namespace parlando::controller {
using namespace protocol;
using nlohmann::json;
using Stage = Turn::Stage;

namespace {

/// Results of the first calls of a turn, as the gateway would hand them to another controller.
JsonText results_of(const Turn& turn, std::int64_t count) {
  auto list = json::array();
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    if (i < turn.tool_calls.size())
      list.push_back(turn.tool_calls[i].result);
    else if (i < turn.told.tool_results.size())
      list.push_back(turn.told.tool_results[i]);
  }
  return {text_of(list)};
}

/// And their names.
JsonText ids_of(const Turn& turn, std::int64_t count) {
  auto list = json::array();
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    if (i < turn.tool_calls.size())
      list.push_back(turn.tool_calls[i].id);
    else if (i < turn.told.call_ids.size())
      list.push_back(turn.told.call_ids[i]);
  }
  return {text_of(list)};
}

std::int64_t size_of(const json& record, const char* key) {
  const auto found = record.find(key);
  const bool text = found != record.end() && found->is_string();
  return text ? static_cast<std::int64_t>(found->get_ref<const std::string&>().size()) : 0;
}

}  // namespace

void Session::detach(Time now) {
  drop_trial();
  // What it has told of a voice that is dropped it tells nobody again, and what comes next may lie anywhere.
  if (voice_ || (turn_.stage != Stage::hearing && !turn_.sealed)) call(Role::vad).end(head());
  const bool waits_for_voice = voice_ && turn_.stage == Stage::listening && turn_.sealed;
  voice_.reset();
  forget_flush();
  if (waits_for_voice) want(Role::vad, now);  // it ends a turn now, and interrupts nothing
  playing_ = playing_last_ = {};
  telemetry::log(telemetry::Level::info, "controller keeps a session for its client session={} turn={} open={}",
                 id_.text(), turn_.id.value, turn_.is_open());
  summaries_.give_up(head());
  had_turn_ = turn_.id;
  had_ = told_of(turn_);
  client_ = {};
  detached_ = true;
  open_.last_input = std::min(open_.last_input, input_);  // nobody says the rest again
  // A turn that was just taken over waits for its inputs, and these went with the gateway.
  if (!turn_.is_open() && turn_.deadline != Time::max())
    fail_turn({Errc::unavailable, "the turn went with its gateway: what was said must be said again"}, now);
}

/// A gateway that did not hear our answer asks once more with the token that it has made for the client already.
bool Session::is_resumed_by(const Attach& attach) const {
  const bool first = equal_secrets(open_.token_digest, attach.token_digest);
  const bool again = equal_secrets(open_.token_digest, attach.next_digest);
  return !open_.token_digest.empty() && (first || again);
}

Session::Had Session::told_of(const Turn& turn) {
  const auto calls = std::max(static_cast<std::int64_t>(turn.tool_calls.size()), turn.told.tool_calls);
  return {turn.transcript.told_bytes, turn.reply.told_bytes, calls, turn.samples};
}

Session::Had Session::clamp(const Attach& claim, const Had& told) {
  const auto one = [](std::int64_t said, std::int64_t most) { return said < 0 ? most : std::min(said, most); };
  return {one(claim.transcript_bytes, told.transcript_bytes), one(claim.reply_bytes, told.reply_bytes),
          one(claim.tool_calls, told.tool_calls), std::min(claim.samples, told.samples)};
}

void Session::attach(ClientStream client, const Attach& claim, Time now) {
  client_ = std::move(client);
  detached_ = false;
  open_.token_digest = claim.next_digest;
  told_checkpoint_ = {input_, 0, 0, ledger_.waiting() > 0};  // the gateway has none of the inputs so far
  const auto held = std::exchange(held_, {});
  const bool under_way = turn_.is_open();
  // The number of a turn that was told and forgotten is that of the one under way.
  const bool of_last = last_ && claim.turn == last_->id && !(under_way && claim.turn == turn_.id);
  Had had;
  if (claim.turn == turn_.id) {
    if (under_way && had_turn_ == turn_.id) had = clamp(claim, had_);
  } else if (!under_way && of_last) {
    for (auto& c : calls_) c.end(head());
    turn_ = *std::move(last_);
    had = clamp(claim, told_of(turn_));
  } else if (!under_way && begin_stored(claim, now)) {
    return settle(now);
  }
  // The end of a turn that another one has followed is told without its sound.
  const bool late_end = under_way && of_last;
  if (turn_.is_open()) turn_.rewind(had.samples);
  telemetry::log(telemetry::Level::info, "controller has the client back session={} turn={} samples={} of turn {}",
                 id_.text(), turn_.id.value, had.samples, claim.turn.value);
  say_attached(had, turn_.is_open() && !late_end);
  if (late_end) {
    report(*last_, ledger_.durable() < static_cast<std::int64_t>(last_->id.value), trace_of(trace_, last_->stages));
    tell(Text{TextKind::text, 0, {}, to_bytes(std::span<const std::int32_t>(turn_.ids))});
  }
  last_.reset();
  for (auto message : held) {
    message.head.stream = client_.stream;
    message.head.link = client_.link;
    around_.outlet.post(client_.gateway, std::move(message));
  }
  if (turn_.is_open()) tell_rest(had, now);
  settle(now);
}

/// A turn that this controller did not lead itself, but has found in the store: its rest is made from the record.
bool Session::begin_stored(const Attach& claim, Time now) {
  const auto& latest = ledger_.latest();
  const auto turn = static_cast<std::int64_t>(claim.turn.value);
  if (turn == 0 || turn != ledger_.turns() || !latest || latest->turn != turn) return false;
  if (latest->record.contains("items_only")) return false;  // nobody was told of it
  next_turn(now);
  const auto& record = latest->record;
  const auto calls = record.value("tool_calls", json::array());
  auto results = json::array();
  for (const auto& c : calls) results.push_back(c.value("result", json()));
  const auto count = static_cast<std::int64_t>(calls.size());
  auto had = clamp(claim, {size_of(record, "user"), size_of(record, "assistant"), count, claim.samples});
  turn_.id = claim.turn;
  turn_.durable = true;
  turn_.stage = Stage::thinking;
  turn_.transcript.told_bytes = had.transcript_bytes;
  turn_.reply.told_bytes = had.reply_bytes;
  turn_.told.tool_calls = had.tool_calls;
  turn_.told.tool_results = results.get<std::vector<json>>();
  turn_.samples = turn_.skip = had.samples;
  turn_.deadline = now + std::chrono::seconds(around_.config.reply_seconds_max);
  say_attached(had, true);
  finish_stored(Past(*latest), now);
  return true;
}

/// @param in_turn  the client goes on within the turn under way
void Session::say_attached(const Had& had, bool in_turn) {
  Attached out;
  static_cast<Settings&>(out) = lead_->settings;
  out.plays = open_.plays;
  out.seed = open_.seed;
  out.first_input = input_ + 1;
  out.turns = ledger_.turns();
  out.degraded = ledger_.is_degraded();
  // Before it has heard any: behind the sound of turns that are over, which is not heard again.
  out.position_samples = std::max(heard_samples_, sound_from_);
  if (in_turn) {
    const auto undone = std::find_if(turn_.pieces.begin(), turn_.pieces.end(), [](const Piece& p) { return !p.done; });
    const auto whole = undone - turn_.pieces.begin();
    out.open_turn = turn_.id;
    out.transcript_bytes = had.transcript_bytes;
    out.reply_bytes = had.reply_bytes;
    out.tool_calls = had.tool_calls;
    out.tool_results = results_of(turn_, had.tool_calls);
    out.call_ids = ids_of(turn_, had.tool_calls);
    out.pieces = std::max<std::int64_t>(whole, turn_.told.pieces);
    if (undone != turn_.pieces.end()) out.piece_samples = undone->samples;
    if (whole < turn_.told.pieces || turn_.pieces.empty()) out.piece_samples = turn_.told.piece_samples;
    out.turn_samples = turn_.samples;
    auto lengths = json::array();
    const bool is_known = static_cast<std::int64_t>(turn_.told.lengths.size()) == turn_.told.pieces;
    if (is_known && out.pieces <= static_cast<std::int64_t>(turn_.pieces.size()))
      for (std::int64_t i = 0; i < out.pieces; ++i)
        lengths.push_back(turn_.pieces[static_cast<std::size_t>(i)].samples);
    out.piece_lengths.text = lengths.dump();
    out.payload = to_bytes(std::span<const std::int32_t>(turn_.ids));
  }
  tell(std::move(out));
}

/// What the client lacks of the turn under way; what is still to come follows by itself.
void Session::tell_rest(const Had& had, Time now) {
  if (!turn_.typed) tell_rest_of(TextKind::transcript, turn_.transcript, had.transcript_bytes);
  const auto calls = static_cast<std::int64_t>(turn_.calls_told);
  for (auto i = had.tool_calls; i < calls; ++i)
    tell(Text{TextKind::tool_call, i, text_of(to_json(turn_.tool_calls[static_cast<std::size_t>(i)])), {}});
  turn_.told.tool_calls = std::max(had.tool_calls, calls);
  tell_rest_of(TextKind::text, turn_.reply, had.reply_bytes);
  const auto clients = std::count_if(turn_.tool_calls.begin(), turn_.tool_calls.end(),
                                     [](const ToolCall& c) { return c.is_clients && !c.is_answered; });
  if (turn_.is_waiting() && clients > 0) tell(Waiting{turn_.id, clients});
  turn_.told.anything = had.transcript_bytes + had.reply_bytes + had.tool_calls + had.samples > 0;
  if (std::all_of(turn_.pieces.begin(), turn_.pieces.end(), [](const Piece& p) { return p.done; })) return;
  if (turn_.stage == Stage::closing) turn_.stage = Stage::thinking;
  if (turn_.committing) turn_.deadline = now + std::chrono::seconds(around_.config.reply_seconds_max);
  call(Role::tts).end(head());
  want(Role::tts, now);
}

void Session::tell_rest_of(TextKind kind, TextTrack& track, std::int64_t had_bytes) {
  const auto size = static_cast<std::int64_t>(track.text.size());
  auto at = std::min(had_bytes, size);
  const auto byte = [&] { return static_cast<unsigned char>(track.text[static_cast<std::size_t>(at)]); };
  while (at < size && (byte() & 0xc0) == 0x80) ++at;  // within a character
  track.told_bytes = std::max(had_bytes, size);
  if (at < size) tell(Text{kind, at, track.text.substr(static_cast<std::size_t>(at)), {}});
}

}  // namespace parlando::controller
