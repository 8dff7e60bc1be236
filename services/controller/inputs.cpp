/// What a client says beside utterances: how the conversation is led, items, corrections, answers that are asked for or
/// given. What belongs to the next turn waits for it; what is not stored yet is needed from the gateway.
#include "common/telemetry/log.hpp"
#include "services/controller/session.hpp"

namespace parlando::controller {
using namespace protocol;
using nlohmann::json;
using Stage = Turn::Stage;

namespace {

constexpr milliseconds kStoreAfter{5000};  // items that no turn takes up are stored on their own
/// Sound that came all at once, as behind a hand-over: the vad may not have found yet what was said in it.
constexpr milliseconds kBurst{300};

bool is_an_answer(MessageType type) {
  return type == MessageType::respond || type == MessageType::utter || type == MessageType::say;
}

}  // namespace

/// An input of a turn that is stored already, said again: only what is no turn of its own still counts.
void Session::skip_stored(Message message, Time now) {
  switch (message.head.type) {
    case MessageType::item:
    case MessageType::tool_output:
      if (input_ <= stored_items_) return;
      break;
    case MessageType::configure:
    case MessageType::truncate:
    case MessageType::forget:
      break;
    default:
      return;
  }
  take(input_, std::move(message), now);
}

void Session::take(std::uint64_t input, Message message, Time now) {
  taken_ = input;
  switch (message.head.type) {
    case MessageType::flush:
      return read_input<Flush>(message, [&](const Flush& f) { on_flush(f, now); });
    case MessageType::say:
      return read_input<Say>(message, [&](const Say& s) { on_say(s, now); });
    case MessageType::cancel:
      return read_input<Cancel>(message, [&](const Cancel& c) { on_cancel(c, now); });
    case MessageType::configure:
      return read_input<Configure>(message, [&](Configure c) { on_configure(std::move(c), now); });
    case MessageType::item:
      return read_input<Item>(message, [&](const Item& i) { on_item(i, input); });
    case MessageType::respond:
      return read_input<Respond>(message, [&](const Respond& r) { on_respond(r, input, now); });
    case MessageType::tool_output:
      return read_input<ToolOutput>(message, [&](const ToolOutput& t) { on_tool_output(t, input, now); });
    case MessageType::utter:
      return read_input<Utter>(message, [&](const Utter& u) { on_utter(u, input, now); });
    case MessageType::truncate:
      return read_input<Truncate>(message, [&](const Truncate& t) { on_truncate(t, now); });
    case MessageType::forget:
      return read_input<Forget>(message, [&](const Forget& f) { on_forget(f); });
    default:
      --input_;
      taken_ = 0;
      refuse_input(
          {Errc::unsupported, fmt::format("a controller takes no {} from a client", to_string(message.head.type))});
  }
}

// ------------------------------------------------------------------------------------------------ what has to wait

/// It belongs behind a turn that is only understood, or whose end is being looked for.
bool Session::must_wait(MessageType type, Time now) const {
  if (decided_ && type != MessageType::flush) return true;
  // A former owner has finished that answer, or would have.
  if (is_an_answer(type) && is_said_again() && is_answering()) return true;
  if (is_an_answer(type) && may_be_dropped()) return true;
  const bool ends = turn_.sealed || (turn_.notes && is_answering());
  // A second flush of what is said behind an utterance whose end is being looked for is the next one's.
  if (type == MessageType::flush)
    return (is_answering() && (turn_.notes || lead_->is_manual())) ||
           (turn_.sealed && lead_->is_manual() && !ear_.is_empty());
  if (!is_an_answer(type)) return false;
  if (ends) return turn_.lead == nullptr || !turn_.lead->settings.answers || turn_.notes;
  const auto& turn = trial_ ? trial_->turn : turn_;
  const bool hears = turn.stage == Stage::listening || turn.stage == Stage::hearing;
  if (!hears || lead_->is_manual()) return false;
  // The client has an answer that nobody spoke for: the former owner has given it first.
  const bool begun = turn.told.anything || !turn.ids.empty();
  if (begun && turn.transcript.told_bytes == 0) return false;
  const auto& sound = turn.sound;
  return sound.end_sample() - sound.first_sample_since(now - kBurst) > input_samples(kBurst + kBurst / 2);
}

bool Session::waits(std::uint64_t input, Message& message, Time now) {
  const bool orders = message.head.type == MessageType::flush || is_an_answer(message.head.type);
  if (is_decided(input)) return false;
  if (!orders || (later_.empty() && !must_wait(message.head.type, now))) return false;
  if (later_.size() >= kLaterMax) {
    refuse_input({Errc::overloaded, fmt::format("{} inputs wait for the end of a turn", later_.size())});
    return true;
  }
  if (message.head.type == MessageType::flush) {
    // "At what was sent" means now.
    if (auto flush = read<Flush>(message); flush) {
      if (flush->end_sample < 0) flush->end_sample = heard_samples_;
      message = pack(*flush, message.head);
    }
  }
  later_.push_back({input, std::move(message)});
  return true;
}

void Session::take_later(Time now) {
  while (!later_.empty() && !over_ && !turn_.sealed && !is_answering() && !decided_ &&
         !must_wait(later_.front().message.head.type, now)) {
    auto later = std::move(later_.front());
    later_.pop_front();
    take(later.input, std::move(later.message), now);
  }
}

/// The earliest input that another owner would need besides those of the turn under way; 0: none.
std::uint64_t Session::needed_input() const {
  auto first = items_.first_input();
  const auto need = [&](std::uint64_t input) {
    if (input != 0 && (first == 0 || input < first)) first = input;
  };
  if (!turn_.before.empty()) need(turn_.before.front().input);
  if (storing_) need(storing_->input);
  if (!later_.empty()) need(later_.front().input);
  if (is_answering() && !turn_.durable) {
    need(turn_.sound.first_input());
    need(turn_.answers_input);
  }
  for (const auto& [id, output] : early_outputs_) need(output.first);
  return first;
}

// ------------------------------------------------------------------------------------------------ how it is led

void Session::on_configure(Settings settings, Time now) {
  auto lead = lead_by(std::move(settings), around_.config, around_.personas);
  if (!lead) return refuse_input(lead.error());
  const auto before = lead_->vad(judged_), after = (*lead)->vad(judged_);
  lead_ = *std::move(lead);
  configured_ = taken_;
  const bool begins = turn_.stage == Stage::listening && !turn_.sealed;
  const bool free = turn_.settings_until ? !is_answering() && configured_ <= *turn_.settings_until : begins;
  if (free) {
    turn_.lead = lead_;
    turn_.settings_input = configured_;
    if (turn_.stage == Stage::hearing) turn_.notes = !lead_->settings.answers;
  }
  const bool same = before.threshold_permille == after.threshold_permille && before.silence_ms == after.silence_ms;
  if (same || (!free && !is_answering()) || !call(Role::vad).is_wanted()) return;
  hear_again(now);  // what it has heard belongs to the next turn
}

// ------------------------------------------------------------------------------------------------ items

void Session::on_item(const Item& item, std::uint64_t input) {
  if (const auto good = items_.add(item, input); !good) refuse_input(good.error());
}

/// @param input  that asks for it; 0: nobody has
void Session::correct(std::uint64_t input, json change) {
  Correction correction{input, std::move(change)};
  summaries_.correct(correction.change, ledger_.history(), head());
  if (items_.correct(correction)) ledger_.correct(correction);
}

void Session::on_truncate(const Truncate& truncate, Time now) {
  const bool under_way = is_answering() && truncate.turn == turn_.id;
  if (under_way && turn_.notes) return;
  const bool of_last = !under_way && last_ && truncate.turn == last_->id;
  if (!under_way && !of_last) {
    if (truncate.turn.value == 0 || truncate.turn.value > ledger_.turns())
      return refuse_input({Errc::not_found, fmt::format("there is no turn {}", truncate.turn.value)});
    const auto stored = stored_turn(truncate.turn);
    const auto heard = stored.heard_text(truncate.samples);
    if (heard.size() < stored.reply.text.size()) correct(taken_, {{"turn", truncate.turn.value}, {"heard", heard}});
    return;
  }
  const auto& turn = under_way ? turn_ : *last_;
  if (truncate.samples >= turn.samples && turn.is_complete()) return;
  const auto samples = std::min(truncate.samples, turn.samples);
  const auto heard = turn.heard_text(samples);
  if (!under_way || turn_.stage == Stage::closing || turn_.durable) {
    if (turn.remember) correct(taken_, {{"turn", truncate.turn.value}, {"heard", heard}});
    return;
  }
  if (voice_) {  // nothing is left that it is over: it is the next turn
    voice_->taken = true;
    voice_->holds = false;
  }
  turn_.inputs.push_back(taken_);
  tell(Interrupted{truncate.turn, samples, heard});
  end_answer(samples, heard, now);
}

void Session::on_forget(const Forget& forget) {
  if (!forget.item.empty()) {
    if (items_.forget(forget.item)) return;
    correct(taken_, {{"item", forget.item}});
  } else {
    if (forget.turn.value == 0 || forget.turn.value > turn_.id.value || (forget.turn == turn_.id && !is_answering()))
      return refuse_input({Errc::not_found, fmt::format("there is no turn {}", forget.turn.value)});
    const auto part = names_of<TurnPart>()[static_cast<std::size_t>(forget.part)];
    correct(taken_, {{"turn", forget.turn.value}, {"part", part}});
  }
}

/// Items that wait without a turn are stored on their own, so that the gateway can let go what came since.
void Session::store_items(Time now) {
  // In a trial nothing is told: what it holds back may be dropped.
  if (storing_ && !trial_ && ledger_.durable() >= storing_->turn) {
    storing_.reset();
    checkpoint(past_input(), 0);
  }
  if (items_.is_empty() || !open_.stored) {
    items_since_ = Time::max();
    items_due_ = false;
    return;
  }
  if (items_since_ == Time::max()) items_since_ = now;
  const bool free = turn_.stage == Stage::listening && !turn_.sealed && !voice_ && later_.empty();
  if (!free || (now - items_since_ < kStoreAfter && !items_due_) || ledger_.waiting() > 0) return;
  Turn turn;
  turn.id = turn_.id;
  turn.lead = lead_;
  turn.seed = turn_.seed;
  turn.typed = "";
  turn.last_input = input_;
  turn.history_from = first_told(ledger_.history(), around_.config.history_bytes_max);
  const auto first = items_.first_input();
  turn.before = items_.take_before(input_ + 1);
  turn.corrections = items_.take_corrections();
  auto record = turn.record();
  record["items_only"] = true;
  write_corrections(record, turn.corrections);
  summaries_.write(record, ledger_.history());
  storing_ = Storing{turn.id.value, first, std::move(turn.before), std::move(turn.corrections)};
  items_since_ = Time::max();
  items_due_ = false;
  around_.tally.items_stored.add();
  ledger_.commit(turn_.id.value, std::move(record), now);
  turn_.id = {static_cast<std::uint32_t>(ledger_.turns() + 1)};
  turn_.seed = mix_seed(open_.seed, turn_.id.value);
}

/// The store will never take the record of items: they wait on. A turn that has begun since keeps its number, behind a
/// record that holds nothing.
void Session::settle_items(Time now) {
  auto storing = *std::exchange(storing_, std::nullopt);
  items_.give_back(std::move(storing.items));
  for (auto& correction : storing.corrections) items_.correct(std::move(correction));
  items_since_ = now;
  if (turn_.stage != Stage::listening || turn_.sealed) {
    Turn nothing;
    nothing.typed = "";
    nothing.history_from = turn_.history_from;
    auto record = nothing.record();
    record["items_only"] = true;
    return ledger_.replace_lost(storing.turn, std::move(record), now);
  }
  turn_.id = {static_cast<std::uint32_t>(ledger_.turns() + 1)};
  turn_.seed = mix_seed(open_.seed, turn_.id.value);
}

// ------------------------------------------------------------------------------------------------ answers

/// What is being said is the next turn's: the client wants an answer first.
void Session::set_sound_aside() {
  const auto facts = take_decision(taken_);
  const auto begin = turn_.stage == Stage::hearing ? turn_.begin_sample : facts ? facts->begin_sample : -1;
  if (around_.config.barge_in_ms == 0) call(Role::vad).end(head());  // nobody listens over an answer
  if (begin < 0) {
    ear_ = std::exchange(turn_.sound, {});
    return;
  }
  Voice voice;
  voice.over = turn_.id;
  voice.begin = begin;
  voice.holds = false;
  voice.waits = true;
  if (turn_.lead->is_manual() && turn_.end_sample >= 0) voice.end = turn_.end_sample;
  auto sound = std::move(turn_.sound);
  for (const auto role : {Role::tokenizer, Role::chat}) call(role).end(head());
  items_.give_back(std::move(turn_.before));
  Turn fresh;
  fresh.id = turn_.id;
  fresh.seed = turn_.seed;
  fresh.lead = lead_;
  // What the client has of a turn that was taken over is of the answer.
  fresh.settings_input = configured_;
  fresh.told = turn_.told;
  fresh.ids = turn_.ids;
  fresh.transcript = turn_.transcript;
  fresh.reply = turn_.reply;
  fresh.samples = turn_.samples;
  fresh.skip = turn_.skip;
  turn_ = std::move(fresh);
  ear_ = std::move(sound);
  voice_ = voice;
}

void Session::on_respond(const Respond& respond, std::uint64_t input, Time now) {
  drop_trial();
  if (turn_.sealed || is_answering()) return refuse_input({Errc::invalid_argument, "a turn is under way"});
  auto settings = changed(lead_->settings, respond.settings);
  if (!settings) return refuse_input(settings.error());
  auto lead = lead_by(*std::move(settings), around_.config, around_.personas);
  if (!lead) return refuse_input(lead.error());
  if (!may_begin(taken_, now)) return;
  set_sound_aside();
  turn_.lead = *std::move(lead);
  turn_.typed = "";
  turn_.responds = true;
  turn_.remember = respond.remember;
  begin_answer(input, now);
  want(Role::chat, now);
}

void Session::on_utter(const Utter& utter, std::uint64_t input, Time now) {
  drop_trial();
  if (turn_.sealed || is_answering()) return refuse_input({Errc::invalid_argument, "a turn is under way"});
  if (utter.text.empty()) return refuse_input({Errc::invalid_argument, "the text is empty"});
  if (!may_begin(taken_, now)) return;
  set_sound_aside();
  turn_.typed = "";
  turn_.given = utter.text;
  begin_answer(input, now);
  on_reply({TextKind::text, 0, utter.text, {}}, now);
  on_text_done(R"({"finish":"stop"})", now);
}

}  // namespace parlando::controller
