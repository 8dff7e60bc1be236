#include "services/llm/chat.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "common/base/codes.hpp"

namespace parlando::llm {

Chat::Chat(std::shared_ptr<LmEngine> engine, std::shared_ptr<const TextTokenizer> text, std::string name,
           Options options)
    : engine_(std::move(engine)), tokenizer_(std::move(text)), name_(std::move(name)), options_(options) {}

Result<std::unique_ptr<Chat>> Chat::open(std::shared_ptr<LmEngine> engine, std::shared_ptr<const TextTokenizer> text,
                                         std::string name, std::vector<Message> messages, Options options) {
  PARLANDO_DO(engine->open(name));
  std::unique_ptr<Chat> chat(new Chat(std::move(engine), std::move(text), std::move(name), options));
  chat->messages_ = std::move(messages);
  return chat;
}

Result<std::unique_ptr<Chat>> Chat::fork(std::string name) const {
  PARLANDO_DO(expect_no_reply());
  PARLANDO_DO(engine_->fork(name_, static_cast<std::int64_t>(ids_.size()), name));
  std::unique_ptr<Chat> copy(new Chat(engine_, tokenizer_, std::move(name), options_));
  copy->messages_ = messages_;
  copy->codes_ = codes_;
  copy->ids_ = ids_;
  copy->known_ = known_;
  copy->spoken_ = spoken_;
  copy->said_ = said_;
  return copy;
}

/// Makes the sequence hold exactly `wanted`; the cache keeps the common beginning.
Result<std::int64_t> Chat::sync(std::span<const std::int32_t> wanted) {
  const auto shared = static_cast<std::int64_t>(
      std::mismatch(ids_.begin(), ids_.end(), wanted.begin(), wanted.end()).first - ids_.begin());
  PARLANDO_DO(engine_->truncate(name_, shared));
  ids_.assign(wanted.begin(), wanted.begin() + shared);
  PARLANDO_TRY(const auto length, engine_->append(name_, shared, wanted.subspan(static_cast<std::size_t>(shared))));
  ids_.assign(wanted.begin(), wanted.end());
  return length;
}

/// What comes once the reply has begun would end it without a word, or be answered a second time.
Result<void> Chat::expect_no_reply() const {
  if (decoder_) return fail(Errc::invalid_argument, "the reply has begun already");
  return {};
}

Result<void> Chat::hear(std::int64_t first_group, std::span<const std::int32_t> codes) {
  PARLANDO_DO(expect_no_reply());
  const auto groups = static_cast<std::int64_t>(codes_.size()) / kCodesPerGroup;
  if (first_group < 0 || first_group > groups || codes.size() % kCodesPerGroup != 0)
    return fail(Errc::position_mismatch, "{} codes from group {}, {} groups are known", codes.size(), first_group,
                groups);
  const auto at = static_cast<std::size_t>(first_group) * kCodesPerGroup;
  if (const auto bad = std::find_if(codes.begin(), codes.end(), [](std::int32_t c) { return c < 0 || c >= kCodes; });
      bad != codes.end())
    return fail(Errc::token_out_of_range, "code {} is outside 0…{}", *bad, kCodes - 1);
  codes_.resize(at);
  codes_.insert(codes_.end(), codes.begin(), codes.end());
  spoken_ = said_ = true;
  if (codes_.empty()) return {};
  auto messages = messages_;
  messages.push_back({"user", codes_});
  auto prompt = PromptBuilder(tokenizer_, true).chat_offline(messages);
  // Text cannot form audio tokens, so the last one is the last code: what follows it is not known to follow yet.
  const auto last = std::find(prompt.rbegin(), prompt.rend(), tokenizer_->audio_base() + codes_.back());
  prompt.resize(static_cast<std::size_t>(prompt.rend() - last));
  PARLANDO_TRY(const auto length, sync(prompt));
  (void)length;
  return {};
}

Result<void> Chat::say(std::string text) {
  PARLANDO_DO(expect_no_reply());
  if (text.empty()) return fail(Errc::invalid_argument, "the text is empty");
  messages_.push_back({"user", std::move(text)});
  spoken_ = false, said_ = true;
  return {};
}

Result<void> Chat::go_on(std::vector<std::int32_t> ids) {
  PARLANDO_DO(expect_no_reply());
  const auto vocabulary = engine_->model().config().vocabulary;
  for (const auto id : ids)
    if (id < 0 || id >= vocabulary)
      return fail(Errc::token_out_of_range, "token id {} is outside the vocabulary of {}", id, vocabulary);
  known_.assign(ids.begin(), ids.end());
  return {};
}

Result<std::vector<ChatEvent>> Chat::reply() {
  PARLANDO_DO(expect_no_reply());
  if (!said_ || (spoken_ && codes_.empty())) return fail(Errc::no_speech, "nothing was said in this turn");
  if (spoken_) messages_.push_back({"user", codes_});
  transcribed_ = !(spoken_ && engine_->model().config().reply_format == "transcript_first");
  return generate();
}

Result<std::vector<ChatEvent>> Chat::generate() {
  const auto& config = engine_->model().config();
  auto wanted = PromptBuilder(tokenizer_, true).chat_offline(messages_);
  const auto left = config.length_max - static_cast<std::int64_t>(wanted.size());
  if (left < 8)
    return fail(Errc::invalid_argument, "the conversation has {} tokens, the model takes {}", wanted.size(),
                config.length_max);
  const auto room = std::min(options_.tokens_max, left);
  decoder_.emplace(tokenizer_);
  pending_.clear();
  call_.clear();
  calling_ = waiting_for_tool_ = false;
  // What another replica has said of this round is said again, from its ids.
  std::vector<ChatEvent> out;
  std::int64_t said = 0;
  while (!known_.empty()) {
    const auto id = known_.front();
    known_.pop_front();
    wanted.push_back(id);
    ++said;
    // The engine ends a generation in the same places.
    const TokenEvent event{name_, id, id == config.eos ? Finish::stop : said == room ? Finish::length : Finish::none};
    PARLANDO_TRY(auto events, interpret(event));
    // Their ids are known to the caller; only what follows is news.
    untold_.clear();
    for (auto& e : events) {
      e.ids.clear();
      out.push_back(std::move(e));
    }
    if (event.finish != Finish::none) return out;
  }
  PARLANDO_TRY(const auto length, sync(wanted));
  PARLANDO_DO(engine_->generate(name_, length, {options_.sampling, room - said, {config.eos}}));
  return out;
}

Result<std::vector<ChatEvent>> Chat::tool_result(const std::string& result) {
  if (!std::exchange(waiting_for_tool_, false)) return fail(Errc::invalid_argument, "no tool call waits for a result");
  messages_.push_back({"assistant", "<|CALL_START|>" + call_ + "<|CALL_END|>"});
  messages_.push_back({"tool", result});
  ++round_;
  return generate();
}

Result<std::vector<ChatEvent>> Chat::on(const TokenEvent& event) {
  if (event.error) return tl::make_unexpected(*event.error);
  if (event.id >= 0) ids_.push_back(event.id);
  return interpret(event);
}

/// What a token means; the sequence is not touched.
Result<std::vector<ChatEvent>> Chat::interpret(const TokenEvent& event) {
  using Kind = ChatEvent::Kind;
  const auto& config = engine_->model().config();
  const auto& special = tokenizer_->specials();
  std::vector<ChatEvent> out;
  bool fallback = false;
  if (event.id >= 0) {
    untold_.push_back(event.id);
    if (event.id == special.call_start)
      calling_ = true;
    else if (event.id == special.call_end)
      calling_ = false;
    else if (event.id != config.eos)
      (calling_ ? call_ : pending_) += decoder_->push(event.id);
  }
  const bool done = event.finish != Finish::none;
  if (done) pending_ += decoder_->finish();
  if (!transcribed_) {
    const auto cut = pending_.find('\n');
    if (cut == std::string::npos && !done) return out;
    const auto transcript = pending_.substr(0, cut);
    pending_ = cut != std::string::npos ? pending_.substr(cut + 1) : std::string();
    transcribed_ = true;
    messages_.back().content = transcript;  // history and the tool round see the text, as the context manager will
    out.push_back({Kind::transcript, transcript});
    out.back().ids = std::exchange(untold_, {});
  }
  const bool call = done && config.tool_calls && !call_.empty() && round_ < options_.tool_rounds_max;
  const auto tell_text = [&] {
    if (pending_.empty()) return;
    const auto at = static_cast<std::int64_t>(reply_.size());
    reply_ += pending_;
    out.push_back({Kind::text, std::exchange(pending_, {}), at, std::exchange(untold_, {}), fallback});
  };
  if (call) {
    const auto request = nlohmann::json::parse(call_, nullptr, false);
    if (request.is_object() && request.contains("name") && request["name"].is_string()) {
      tell_text();
      waiting_for_tool_ = true;
      out.push_back(
          {Kind::tool_call, nlohmann::json{{"name", request["name"]},
                                           {"arguments", request.value("arguments", nlohmann::json::object())}}
                                .dump()});
      out.back().at = round_;
      out.back().ids = std::exchange(untold_, {});
      return out;
    }
    if (pending_.empty()) pending_ = config.fallback_replies.bad_call, fallback = !pending_.empty();
  }
  if (done && reply_.empty() && pending_.empty()) {
    pending_ = config.fallback_replies.no_reply;
    fallback = !pending_.empty();
  }
  tell_text();
  if (done) out.push_back({Kind::done, reply_, static_cast<std::int64_t>(reply_.size()), std::exchange(untold_, {})});
  return out;
}

}  // namespace parlando::llm
