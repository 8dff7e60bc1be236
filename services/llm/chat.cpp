#include "services/llm/chat.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "common/base/codes.hpp"

namespace parlando::llm {

namespace {
constexpr std::int32_t kCallStart = 5, kCallEnd = 6, kEot = 3;
}

Chat::Chat(std::shared_ptr<LmEngine> engine, std::shared_ptr<const TextTokenizer> text, std::string name, Options options)
    : engine_(std::move(engine)), tokenizer_(std::move(text)), name_(std::move(name)), options_(options) {}

Result<std::unique_ptr<Chat>> Chat::open(std::shared_ptr<LmEngine> engine, std::shared_ptr<const TextTokenizer> text, std::string name,
                                         std::vector<Message> messages, Options options) {
  PARLANDO_DO(engine->open(name));
  std::unique_ptr<Chat> chat(new Chat(std::move(engine), std::move(text), std::move(name), options));
  chat->messages_ = std::move(messages);
  return chat;
}

/// Makes the sequence hold exactly `wanted`; the cache keeps the common beginning.
Result<std::int64_t> Chat::sync(std::span<const std::int32_t> wanted) {
  const auto shared = static_cast<std::int64_t>(std::mismatch(ids_.begin(), ids_.end(), wanted.begin(), wanted.end()).first - ids_.begin());
  PARLANDO_DO(engine_->truncate(name_, shared));
  ids_.assign(wanted.begin(), wanted.begin() + shared);
  PARLANDO_TRY(const auto length, engine_->append(name_, shared, wanted.subspan(static_cast<std::size_t>(shared))));
  ids_.assign(wanted.begin(), wanted.end());
  return length;
}

Result<void> Chat::hear(std::int64_t first_group, std::span<const std::int32_t> codes) {
  const auto at = static_cast<std::size_t>(std::max<std::int64_t>(0, first_group)) * kCodesPerGroup;
  if (first_group < 0 || at > codes_.size() || codes.size() % kCodesPerGroup != 0)
    return fail(Errc::position_mismatch, "{} codes from group {}, {} groups are known", codes.size(), first_group, codes_.size() / kCodesPerGroup);
  if (const auto bad = std::find_if(codes.begin(), codes.end(), [](std::int32_t c) { return c < 0 || c >= kCodes; }); bad != codes.end())
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
  if (text.empty()) return fail(Errc::invalid_argument, "the text is empty");
  messages_.push_back({"user", std::move(text)});
  spoken_ = false, said_ = true;
  return {};
}

Result<void> Chat::reply() {
  if (!said_ || (spoken_ && codes_.empty())) return fail(Errc::no_speech, "nothing was said in this turn");
  if (spoken_) messages_.push_back({"user", codes_});
  transcribed_ = !(spoken_ && engine_->model().config().reply_format == "transcript_first");
  return generate();
}

Result<void> Chat::generate() {
  const auto prompt = PromptBuilder(tokenizer_, true).chat_offline(messages_);
  const auto room = engine_->model().config().length_max - static_cast<std::int64_t>(prompt.size());
  if (room < 8) return fail(Errc::invalid_argument, "the conversation has {} tokens, the model takes {}", prompt.size(), engine_->model().config().length_max);
  PARLANDO_TRY(const auto length, sync(prompt));
  decoder_.emplace(tokenizer_);
  pending_.clear(), reply_.clear(), call_.clear(), calling_ = false, waiting_for_tool_ = false;
  return engine_->generate(name_, length, {options_.sampling, std::min(options_.tokens_max, room)});
}

Result<void> Chat::tool_result(const std::string& result) {
  if (!std::exchange(waiting_for_tool_, false)) return fail(Errc::invalid_argument, "no tool call waits for a result");
  messages_.push_back({"assistant", "<|CALL_START|>" + call_ + "<|CALL_END|>"});
  messages_.push_back({"tool", result});
  ++round_;
  return generate();
}

Result<std::vector<ChatEvent>> Chat::on(const TokenEvent& event) {
  using Kind = ChatEvent::Kind;
  if (event.finish == Finish::error) return fail(Errc::internal, "{}", event.error);
  std::vector<ChatEvent> out;
  if (event.id >= 0) {
    ids_.push_back(event.id);
    if (event.id == kCallStart)
      calling_ = true;
    else if (event.id == kCallEnd)
      calling_ = false;
    else if (event.id != kEot)
      (calling_ ? call_ : pending_) += decoder_->push(event.id);
  }
  const bool done = event.finish != Finish::none;
  if (done) pending_ += decoder_->finish();
  if (!transcribed_) {
    const auto cut = pending_.find('\n');
    if (cut == std::string::npos && !done) return out;
    const auto transcript = pending_.substr(0, cut);
    pending_ = cut != std::string::npos ? pending_.substr(cut + 1) : call_.empty() ? "please repeat." : "";  // a transcript without a reply
    transcribed_ = true;
    messages_.back().content = transcript;  // history and the tool round see the text, as the context manager will
    out.push_back({Kind::transcript, transcript});
  }
  const bool call = done && engine_->model().config().tool_calls && !call_.empty() && round_ < options_.tool_rounds_max;
  if (call) {
    const auto request = nlohmann::json::parse(call_, nullptr, false);
    if (request.is_object() && request.contains("name") && request["name"].is_string()) {
      waiting_for_tool_ = true;
      out.push_back({Kind::tool_call, nlohmann::json{{"name", request["name"]}, {"arguments", request.value("arguments", nlohmann::json::object())}}.dump()});
      pending_.clear();
      return out;
    }
    if (pending_.empty()) pending_ = "i did not understand.";
  }
  if (!pending_.empty()) {
    reply_ += pending_;
    out.push_back({Kind::text, std::exchange(pending_, {})});
  }
  if (done) out.push_back({Kind::done, reply_});
  return out;
}

}  // namespace parlando::llm
