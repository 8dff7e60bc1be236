#include "services/controller/summary.hpp"

#include "common/base/nesting.hpp"
#include "common/base/pcm.hpp"
#include "common/telemetry/log.hpp"
#include "services/controller/json_text.hpp"

namespace parlando::controller {
using namespace protocol;
using nlohmann::json;
using transport::PeerState;

namespace {

constexpr std::chrono::seconds kSummaryTimeMax{30};
constexpr std::int64_t kSlotsLeft = 2;  // of a model: the last one is for somebody who waits
constexpr int kSummaryFiguresDepthMax = 32;
/// A token has three bytes or more; one that needs more of them is too long.
constexpr int kBytesPerToken = 3;

/// Without white space at its ends.
std::string trimmed(const std::string& text) {
  constexpr auto kSpace = " \t\r\n";
  const auto first = text.find_first_not_of(kSpace);
  return first == std::string::npos ? std::string() : text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

bool was_cut(const std::string& figures) {
  const auto done =
      nested_deeper_than(figures, kSummaryFiguresDepthMax) ? json() : json::parse(figures, nullptr, false);
  return done.is_object() && text_in(done, "finish") == "length";
}

}  // namespace

void Summaries::begin(const std::deque<Past>& history, std::int64_t turns, std::uint64_t seed, const Envelope& head,
                      Time now) {
  if (config_->summary != "model" || is_busy() || turns <= tried_behind_) return;
  tried_behind_ = turns;
  const auto wanted = to_summarise(history, config_->history_turns, config_->history_bytes_max);
  if (!wanted || (made_ && made_->until >= wanted->until)) return;
  if (fleet_->slots(Role::chat) < kSlotsLeft) return;  // behind a later turn, perhaps
  if (!call_.begin(now)) return call_.end(head);
  making_ = {wanted->until, {}};
  deadline_ = now + kSummaryTimeMax;
  OpenChat chat;
  chat.system = config_->summary_prompt;
  chat.operator_system = true;
  chat.seed = seed;
  chat.tool_choice = "none";
  chat.tokens_max = std::max(1, config_->summary_bytes_max / kBytesPerToken);
  const auto text = text_of(json::array({{{"role", "user"}, {"content", wanted->text}}}));
  chat.payload = to_bytes(std::span<const char>(text));
  call_.send(head, std::move(chat), deadline_);
  call_.send(head, Generate{false, true, true}, deadline_);
}

void Summaries::end(SummaryEnd how, const Envelope& head) {
  if (!is_busy()) return;
  call_.end(head);
  making_ = {};
  tally_->summaries[static_cast<std::size_t>(how)].add();
}

void Summaries::give_up(const Envelope& head) { end(SummaryEnd::given_up, head); }

void Summaries::correct(const json& change, const std::deque<Past>& history, const Envelope& head) {
  if (made_ && is_about(change, made_->until, history)) made_.reset();
  if (is_busy() && is_about(change, making_.until, history)) give_up(head);
}

void Summaries::write(json& record, const std::deque<Past>& history) const {
  auto summary = config_->summary == "model" ? summary_of(history) : std::nullopt;
  if (made_ && (!summary || summary->until < made_->until)) summary = made_;
  if (summary) write_summary(record, *summary);
}

void Summaries::on_message(Message message, const Envelope& head) {
  if (message.head.type != MessageType::text) return fail(head);
  const auto text = read<Text>(message);
  if (!text) return fail(head);
  const auto most = static_cast<std::size_t>(config_->summary_bytes_max);
  if (text->kind == TextKind::text) {
    making_.text += text->text;
    // What is white space at its ends is not counted, and is little.
    if (making_.text.size() > 2 * most) end(SummaryEnd::too_long, head);
    return;
  }
  if (text->kind != TextKind::done) return fail(head);
  making_.text = trimmed(making_.text);
  if (making_.text.empty()) return end(SummaryEnd::empty, head);
  if (making_.text.size() > most || was_cut(text->text)) return end(SummaryEnd::too_long, head);
  telemetry::log(telemetry::Level::info, "controller has a summary session={} until={} bytes={}", head.session.text(),
                 making_.until, making_.text.size());
  made_ = std::move(making_);
  end(SummaryEnd::made, head);
}

/// Where nothing is free any more somebody may wait for the place.
void Summaries::on_peer(const std::string& instance, PeerState state, const Envelope& head) {
  if (!is_busy()) return;
  const bool lost = state == PeerState::down || state == PeerState::suspect;
  if (lost && instance == call_.replica()) return fail(head);
  if (fleet_->slots(Role::chat) == 0) give_up(head);
}

void Summaries::tick(const Envelope& head, Time now) {
  if (is_busy() && now >= deadline_) fail(head);
}

}  // namespace parlando::controller
