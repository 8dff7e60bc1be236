#include "services/llm/chat.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "common/base/codes.hpp"
#include "common/base/nesting.hpp"

namespace parlando::llm {

namespace {

constexpr std::size_t kCallsPerRoundMax = 16;
constexpr int kCallDepthMax = 14;  // it travels on inside of other messages
constexpr std::int64_t kTranscriptTokensMax = 512;

/// How many bytes at the end of a text may be the beginning of one of these.
std::size_t begun_at_end(std::string_view text, const std::vector<std::string>& ends) {
  std::size_t most = 0;
  for (const auto& end : ends)
    for (auto size = std::min(text.size(), end.size() - 1); size > most; --size)
      if (text.ends_with(std::string_view(end).substr(0, size))) most = size;
  return most;
}

}  // namespace

Chat::Chat(std::shared_ptr<LmEngine> engine, std::shared_ptr<const TextTokenizer> text, std::string name,
           Options options)
    : engine_(std::move(engine)), tokenizer_(std::move(text)), name_(std::move(name)), options_(options) {}

Result<std::unique_ptr<Chat>> Chat::open(std::shared_ptr<LmEngine> engine, std::shared_ptr<const TextTokenizer> text,
                                         std::string name, std::vector<Message> messages, Options options) {
  PARLANDO_DO(engine->open(name));
  std::unique_ptr<Chat> chat(new Chat(std::move(engine), std::move(text), std::move(name), options));
  chat->messages_ = std::move(messages);
  // Sections between control tokens are encoded apart: what follows the end of the system prompt does not change it.
  std::int64_t operators = 0;
  if (options.operator_system && !chat->messages_.empty()) {
    const auto ids = PromptBuilder(chat->tokenizer_, true).chat_offline(std::span(chat->messages_).first(1));
    operators = std::find(ids.rbegin(), ids.rend(), chat->tokenizer_->specials().eot).base() - ids.begin();
  }
  chat->engine_->share(chat->name_, {operators, options.session});
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

Result<std::vector<ChatEvent>> Chat::reply(Wanted wanted, Priority priority) {
  PARLANDO_DO(expect_no_reply());
  priority_ = priority;
  if (wanted == Wanted::as_it_stands) {
    if (said_) return fail(Errc::invalid_argument, "the history is to be answered, and something was said");
    transcribed_ = true;
    return generate();
  }
  const bool transcribes = engine_->model().config().reply_format == "transcript_first";
  only_transcript_ = wanted == Wanted::transcript;
  if (only_transcript_ && !(spoken_ && transcribes))
    return fail(Errc::unsupported, "there is no transcript: {}",
                spoken_ ? "the model answers directly" : "nothing was spoken");
  if (!said_ || (spoken_ && codes_.empty())) return fail(Errc::no_speech, "nothing was said in this turn");
  if (spoken_) messages_.push_back({"user", codes_});
  transcribed_ = !(spoken_ && transcribes);
  return generate();
}

Result<std::vector<ChatEvent>> Chat::generate() {
  const auto& config = engine_->model().config();
  auto wanted = PromptBuilder(tokenizer_, true).chat_offline(messages_);
  const auto left = config.length_max - static_cast<std::int64_t>(wanted.size());
  if (left < 8)
    return fail(Errc::invalid_argument, "the conversation has {} tokens, the model takes {}", wanted.size(),
                config.length_max);
  const auto room =
      std::min(only_transcript_ ? std::max(options_.tokens_max, kTranscriptTokensMax) : options_.tokens_max, left);
  decoder_.emplace(tokenizer_);
  pending_.clear();
  calls_.clear();
  calling_ = false;
  const auto prompt_tokens = static_cast<std::int64_t>(wanted.size());
  const auto queued = std::mismatch(ids_.begin(), ids_.end(), wanted.begin(), wanted.end()).first - ids_.begin();
  if (round_ == 0) usage_.prompt_tokens = prompt_tokens, usage_.cached_tokens = queued;
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
      e.past = e.kind == ChatEvent::Kind::tool_call && !known_.empty();
      out.push_back(std::move(e));
    }
    if (event.finish != Finish::none || over_) return out;
  }
  PARLANDO_TRY(const auto length, sync(wanted));
  if (round_ == 0)
    usage_.cached_tokens = std::min(prompt_tokens, std::max<std::int64_t>(queued, engine_->computed(name_)));
  PARLANDO_DO(engine_->generate(name_, length, {options_.sampling, room - said, {config.eos}, priority_}));
  return out;
}

Result<std::vector<ChatEvent>> Chat::tool_result(const std::string& result) {
  if (open_calls_ == 0) return fail(Errc::invalid_argument, "no tool call waits for a result");
  messages_.push_back({"tool", result});
  if (--open_calls_ > 0) return std::vector<ChatEvent>();
  ++round_;
  return generate();
}

Result<std::vector<ChatEvent>> Chat::on(const TokenEvent& event) {
  if (event.error) return tl::make_unexpected(*event.error);
  if (over_) return std::vector<ChatEvent>();  // it was under way when the reply had ended
  if (event.id >= 0) ids_.push_back(event.id);
  auto out = interpret(event);
  if (over_ && event.finish == Finish::none) engine_->cancel(name_);
  return out;
}

/// What may be told of the text that has come: up to one that ends the reply, and not what may be the beginning of one.
std::string Chat::take_told(bool done) {
  if (!transcribed_ || options_.stop.empty()) return std::exchange(pending_, {});
  auto end = std::string::npos;
  for (const auto& stop : options_.stop) end = std::min(end, pending_.find(stop));
  if (end != std::string::npos) {
    stopped_ = true;
    return std::exchange(pending_, {}).substr(0, end);
  }
  const auto held = done ? 0 : begun_at_end(pending_, options_.stop);
  auto told = pending_.substr(0, pending_.size() - held);
  pending_.erase(0, told.size());
  return told;
}

/// The calls of the round as JSON {name, arguments}: one in each block, or a list of them. Empty when one is no call.
std::vector<std::string> Chat::read_calls() const {
  std::vector<std::string> out;
  for (const auto& block : calls_) {
    auto parsed =
        nested_deeper_than(block, kCallDepthMax) ? nlohmann::json() : nlohmann::json::parse(block, nullptr, false);
    if (parsed.is_object()) parsed = nlohmann::json::array({parsed});
    if (!parsed.is_array() || parsed.empty()) return {};
    for (const auto& call : parsed) {
      if (!call.is_object() || !call.contains("name") || !call["name"].is_string()) return {};
      if (out.size() == kCallsPerRoundMax) return out;
      out.push_back(
          nlohmann::json{{"name", call["name"]}, {"arguments", call.value("arguments", nlohmann::json::object())}}.dump(
              -1, ' ', false, nlohmann::json::error_handler_t::replace));
    }
  }
  return out;
}

/// What a token means; the sequence is not touched.
Result<std::vector<ChatEvent>> Chat::interpret(const TokenEvent& event) {
  using Kind = ChatEvent::Kind;
  const auto& config = engine_->model().config();
  const auto& special = tokenizer_->specials();
  std::vector<ChatEvent> out;
  bool fallback = false;
  if (event.id >= 0) {
    ++usage_.output_tokens;
    untold_.push_back(event.id);
    if (event.id == special.call_start) {
      calling_ = true;
      calls_.emplace_back();
    } else if (event.id == special.call_end) {
      calling_ = false;
    } else if (event.id != config.eos) {
      (calling_ ? calls_.back() : pending_) += decoder_->push(event.id);
    }
  }
  bool done = event.finish != Finish::none;
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
  if (only_transcript_) {
    pending_.clear();
    stopped_ = true;
  }
  auto told = take_told(done);
  done = done || stopped_;
  const auto tell_text = [&](std::string text) {
    if (text.empty()) return;
    const auto at = static_cast<std::int64_t>(reply_.size());
    reply_ += text;
    out.push_back({Kind::text, std::move(text), at, std::exchange(untold_, {}), fallback});
  };
  if (done) std::erase(calls_, std::string());
  const bool may_call = config.tool_calls && options_.calls_tools && round_ < options_.tool_rounds_max;
  if (done && !stopped_ && may_call && !calls_.empty()) {
    if (auto calls = read_calls(); !calls.empty()) {
      tell_text(std::move(told));
      std::string written;
      for (const auto& block : calls_) written += "<|CALL_START|>" + block + "<|CALL_END|>";
      messages_.push_back({"assistant", std::move(written)});
      open_calls_ = calls.size();
      for (auto left = static_cast<int>(calls.size()); auto& call : calls) {
        out.push_back({Kind::tool_call, std::move(call), calls_told_++, std::exchange(untold_, {})});
        out.back().left = --left;
      }
      return out;
    }
    if (told.empty()) told = config.fallback_replies.bad_call, fallback = !told.empty();
  }
  if (done && !stopped_ && reply_.empty() && told.empty()) {
    told = config.fallback_replies.no_reply;
    fallback = !told.empty();
  }
  tell_text(std::move(told));
  if (!done) return out;
  over_ = true;
  known_.clear();
  usage_.finish = stopped_ ? Finish::stop : event.finish;
  out.push_back({Kind::done, reply_, static_cast<std::int64_t>(reply_.size()), std::exchange(untold_, {})});
  return out;
}

}  // namespace parlando::llm
