/// A session that another controller has led before. The store knows which turns were committed and which inputs they
/// have answered; the gateway knows what the client was told, and what the former owner has decided about the turn
/// under way. Nothing of that is found out anew: turns that the client was not told are told from their records, inputs
/// that are settled are not taken again, and the turn under way is what it was decided to be.
#include <algorithm>
#include <numeric>

#include "common/base/nesting.hpp"
#include "common/base/pcm.hpp"
#include "common/protocol/openings.hpp"
#include "services/controller/json_text.hpp"
#include "services/controller/session.hpp"

namespace parlando::controller {
using namespace protocol;
using nlohmann::json;
using Stage = Turn::Stage;

namespace {

constexpr int kListDepthMax = 32;

std::vector<json> list_in(const JsonText& list) {
  if (nested_deeper_than(list.text, kListDepthMax)) return {};
  const auto parsed = json::parse(list.text, nullptr, false);
  return parsed.is_array() ? parsed.get<std::vector<json>>() : std::vector<json>();
}

/// What the former controller had told, as the gateway saw it.
void take_over(Turn& turn, const Open& open) {
  turn.ids = from_bytes<std::int32_t>(open.payload);
  turn.transcript.told_bytes = open.transcript_bytes;
  turn.reply.told_bytes = open.reply_bytes;
  turn.samples = open.turn_samples;
  turn.told.tool_calls = open.tool_calls;
  turn.told.tool_results = list_in(open.tool_results);
  for (const auto& id : list_in(open.call_ids))
    turn.told.call_ids.push_back(id.is_string() ? id.get<std::string>() : "");
  turn.told.pieces = open.pieces;
  turn.told.piece_samples = open.piece_samples;
  const auto before = open.turn_samples - open.piece_samples;
  for (const auto& length : list_in(open.piece_lengths))
    turn.told.lengths.push_back(length.is_number_integer() ? length.get<std::int64_t>() : -1);
  if (std::any_of(turn.told.lengths.begin(), turn.told.lengths.end(), [](auto length) { return length < 0; }) ||
      std::accumulate(turn.told.lengths.begin(), turn.told.lengths.end(), std::int64_t{0}) != before)
    turn.told.lengths.clear();
  (open.pieces > 0 ? turn.told.whole_samples : turn.skip) = before;
  turn.told.anything = open.transcript_bytes + open.reply_bytes + open.tool_calls + open.turn_samples > 0;
}

std::uint64_t number_in(const json& record, const char* key) {
  const auto found = record.find(key);
  return found != record.end() && found->is_number_unsigned() ? found->get<std::uint64_t>() : 0;
}

/// What is named there was said at the same opening of the session, as its inputs' numbers are: those of different
/// openings, and their positions of sound, have nothing to do with each other.
bool is_of_opening(std::uint64_t first_input, const json& record) {
  return protocol::opening_of(number_in(record, "last_input")) == protocol::opening_of(first_input);
}

std::vector<std::uint64_t> inputs_in(const json& record) {
  std::vector<std::uint64_t> out;
  const auto found = record.find("inputs");
  if (found == record.end() || !found->is_array()) return out;
  for (const auto& input : *found)
    if (input.is_number_unsigned()) out.push_back(input.get<std::uint64_t>());
  return out;
}

}  // namespace

void Session::adopt(Time now) {
  const auto turn = static_cast<std::int64_t>(open_.open_turn.value);
  if (turn != 0) around_.tally.adoptions.add();
  sound_from_ = open_.sound_from;
  const bool knows = open_.turn_told >= 0;
  for (auto& past : ledger_.take_claimed()) {
    if (is_of_opening(open_.first_input, past.record)) {
      for (const auto input : inputs_in(past.record))
        if (input > input_) settled_.insert(input);
      sound_from_ = std::max(sound_from_, static_cast<std::int64_t>(number_in(past.record, "sound_end")));
    }
    const bool untold = knows ? past.turn > open_.turn_told : past.turn == turn;
    if (untold && !past.record.contains("items_only")) untold_.push_back(std::move(past));
  }
  // It came to nothing, of which the client was not told, and something else has its number: a record of items, or an
  // utterance that was noted in the place of the answer that was decided.
  const auto asked = open_.decided.of_turn == open_.open_turn ? open_.decided.answers_input : 0;
  const auto is_it = [&](const Past& past) {
    const auto inputs = inputs_in(past.record);
    const bool answers = asked == 0 || !past.record.contains("inputs") || std::ranges::count(inputs, asked) > 0;
    return past.turn == turn && answers;
  };
  const bool is_over = turn != 0 && turn <= ledger_.turns();
  if (is_over && std::none_of(untold_.begin(), untold_.end(), is_it)) {
    auto to = client_head();
    to.turn = std::exchange(open_.open_turn, {});
    const bool is_lost = asked != 0 && asked < open_.first_input && !settled_.contains(asked);
    tell(to, Cancelled{to.turn, is_lost ? JsonText{json::array({asked}).dump()} : JsonText{}});
  }
  if (!untold_.empty() && untold_.back().record.contains("noted"))
    retold_note_ = {static_cast<std::uint32_t>(untold_.back().turn)};
  if (!untold_.empty()) return finish_next_stored(now);
  if (is_over) return;  // what was told of it counts for no other
  if (turn != 0 && !open_.inputs_kept)
    return fail_turn({Errc::unavailable, "the turn went with its controller: what was said must be said again"}, now);
  // A turn before it was told and is lost: under its own number nobody can go on with it (the gateway says so), and it
  // begins again.
  if (turn == ledger_.turns() + 1) take_over(turn_, open_);
  if (static_cast<std::int64_t>(open_.decided.of_turn.value) > ledger_.turns()) decided_ = open_.decided;
  if (decided_) turn_.settings_until = decided_->settings_input;
  if (turn != 0 || decided_) turn_.deadline = now + std::chrono::seconds(around_.config.reply_seconds_max);
  if (decided_ && (answers_lost_input() || !is_said_again())) give_up_decision(now);
}

// ------------------------------------------------------------------------------------------------ stored turns

/// A turn is in the store, but the client was not told all of it: the rest is made from the record, and nothing is
/// stored again. One after the other, as they would have been told.
void Session::finish_next_stored(Time now) {
  if (untold_.empty() || over_) return;
  const auto past = std::move(untold_.front());
  untold_.pop_front();
  turn_.id = {static_cast<std::uint32_t>(past.turn)};
  ear_ = std::exchange(turn_.sound, {});  // it is none of this turn's
  if (turn_.id == open_.open_turn) take_over(turn_, open_);
  turn_.deadline = now + std::chrono::seconds(around_.config.reply_seconds_max);
  finish_stored(past, now);
}

void Session::finish_stored(const Past& past, Time now) {
  const auto& record = past.record;
  turn_.id = {static_cast<std::uint32_t>(past.turn)};
  turn_.durable = true;
  turn_.stage = Stage::thinking;
  turn_.ended_at = now;
  turn_.ids.clear();
  if (record.contains("seed") && record["seed"].is_number_integer()) turn_.seed = record["seed"].get<std::uint64_t>();
  turn_.inputs = inputs_in(record);
  // Records of a former build do not name their inputs. The gateway says these again, now or later; they must not
  // become another turn.
  if (!record.contains("inputs")) {
    stored_input_ = stored_items_ = number_in(record, "last_input");
    if (record.contains("items_until")) stored_items_ = number_in(record, "items_until");
  }
  turn_.responds = record.contains("responds");
  if (record.contains("given")) turn_.given = text_in(record, "assistant");
  if (const auto noted = record.find("noted"); noted != record.end() && noted->is_object()) {
    turn_.notes = true;
    turn_.begin_sample = noted->value("first_sample", std::int64_t{0});
    turn_.end_sample = noted->value("end_sample", std::int64_t{0});
  }
  if (record.contains("typed") && record["typed"] == true) turn_.typed = text_in(record, "user");
  if (turn_.typed)
    turn_.transcript.text = *turn_.typed;
  else
    on_transcript({TextKind::transcript, 0, text_in(record, "user"), {}}, now);
  for (const auto& stored : record.value("tool_calls", json::array())) {
    ToolCall call{text_in(stored, "name"), stored.value("arguments", json()), stored.value("result", json())};
    call.id = text_in(stored, "id");
    // The output of a client's tool is said again as well.
    call.is_clients = call.is_answered = call.is_settled = true;
    turn_.tool_calls.push_back(std::move(call));
    const auto index = static_cast<std::int64_t>(turn_.tool_calls.size()) - 1;
    if (index >= turn_.told.tool_calls) tell(Text{TextKind::tool_call, index, text_of(stored), {}});
  }
  turn_.calls_told = turn_.tool_calls.size();
  on_reply({TextKind::text, 0, text_in(record, "assistant"), {}}, now);
  on_text_done({}, now);
}

// ------------------------------------------------------------------------------------------------ decisions

/// The gateway keeps what is certain of the turn under way, for whoever may have to go on with it.
void Session::tell_decided() {
  Decided out;
  out.of_turn = turn_.id;
  out.answers_input = turn_.answers_input;
  out.begin_input = turn_.begin_input;
  out.settings_input = turn_.settings_input;
  if (turn_.answers_input != 0) {
    if (voice_ && voice_->waits) out.begin_sample = voice_->begin;
  } else {
    out.begin_sample = turn_.begin_sample;
    if (turn_.stage == Stage::thinking) {
      out.end_input = turn_.end_input;
      out.end_sample = turn_.end_sample;
      out.sound_end = turn_.sound.end_sample();
    }
  }
  tell(std::move(out));
}

std::optional<TurnFacts> Session::take_decision(std::uint64_t input) {
  if (!is_decided(input)) return std::nullopt;
  return std::exchange(decided_, std::nullopt);
}

/// Sound has come, or the flush, while the turn is not yet what it was decided to be.
void Session::go_by_decision(Time now) {
  if (decided_->answers_input != 0) return;  // that comes
  const auto facts = *decided_;
  if (turn_.stage == Stage::listening) {
    if (turn_.sound.is_empty() || turn_.sound.first_sample() > facts.begin_sample) return give_up_decision(now);
    if (turn_.sound.end_sample() <= facts.begin_sample) return;
    begin_hearing(facts.begin_sample, now, facts.begin_input);
    if (turn_.stage != Stage::hearing) return;  // no turn may begin now
    if (facts.end_sample < 0) {
      decided_.reset();
      return want(Role::vad, now);
    }
  }
  if (turn_.sound.end_sample() < facts.sound_end || input_ < facts.end_input) return;
  decided_.reset();
  turn_.end_input = facts.end_input;
  if (facts.end_input != 0) turn_.inputs.push_back(facts.end_input);
  end_speech(facts.end_sample, facts.sound_end, now);
}

/// The former owner was about to answer what only a gateway before this one had: nobody says it again.
bool Session::answers_lost_input() const {
  return decided_ && decided_->answers_input != 0 && decided_->answers_input < open_.first_input;
}

/// What it would take is not kept any more.
void Session::give_up_decision(Time now) {
  const bool is_asked = answers_lost_input();
  if (is_asked) turn_.inputs.push_back(decided_->answers_input);
  decided_.reset();
  if ((turn_.told.anything || is_asked) && turn_.stage == Stage::listening)
    return fail_turn({Errc::unavailable, "the turn went with its controller: what was said must be said again"}, now);
  if (turn_.stage == Stage::hearing || !turn_.sound.is_empty()) want(Role::vad, now);
}

}  // namespace parlando::controller
