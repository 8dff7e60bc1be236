#include "services/llm/model/prompts.hpp"

#include <nlohmann/json.hpp>

#include "common/base/codes.hpp"

namespace parlando::llm {

const TtsPrompts& TtsPrompts::official() {
  // The texts are part of how the official model was trained (Step-Audio, tts.py); they are data, not wording of ours.
  static const TtsPrompts prompts{
      R"~(作为一名卓越的声优演员，你的任务是根据文本中（）或()括号内标注的情感、语种或方言、音乐哼唱、语音调整等标签，以丰富细腻的情感和自然顺畅的语调来朗读文本。
# 情感标签涵盖了多种情绪状态，包括但不限于：
- "高兴1"
- "高兴2"
- "生气1"
- "生气2"
- "悲伤1"
- "撒娇1"

# 语种或方言标签包含多种语言或方言，包括但不限于：
- "中文"
- "英文"
- "韩语"
- "日语"
- "四川话"
- "粤语"
- "广东话"

# 音乐哼唱标签包含多种类型歌曲哼唱，包括但不限于：
- "RAP"
- "哼唱"

# 语音调整标签，包括但不限于：
- "慢速1"
- "慢速2"
- "快速1"
- "快速2"

请在朗读时，使用[{}]的声音，根据这些情感标签的指示，调整你的情感、语气、语调和哼唱节奏，以确保文本的情感和意义得到准确而生动的传达，如果没有()或（）括号，则根据文本语义内容自由演绎。)~",
      R"~(作为一名卓越的声优演员，你的任务是根据文本中（）或()括号内标注的情感、语种或方言、音乐哼唱、语音调整等标签，以丰富细腻的情感和自然顺畅的语调来朗读文本。
# 情感标签涵盖了多种情绪状态，包括但不限于：
- "高兴1"
- "高兴2"
- "生气1"
- "生气2"
- "悲伤1"
- "撒娇1"

# 语种或方言标签包含多种语言或方言，包括但不限于：
- "中文"
- "英文"
- "韩语"
- "日语"
- "四川话"
- "粤语"
- "广东话"

# 音乐哼唱标签包含多种类型歌曲哼唱，包括但不限于：
- "RAP"
- "哼唱"

# 语音调整标签，包括但不限于：
- "慢速1"
- "慢速2"
- "快速1"
- "快速2"

请在朗读时，根据这些情感标签的指示，调整你的情感、语气、语调和哼唱节奏，以确保文本的情感和意义得到准确而生动的传达，如果没有()或（）括号，则根据文本语义内容自由演绎。)~",
      R"~(请参考对话历史里的音色，用RAP方式将文本内容大声说唱出来。)~",
      R"~(请参考对话历史里的音色，用哼唱的方式将文本内容大声唱出来。)~"};
  return prompts;
}

/// Collects trusted text, untrusted text, single tokens and codes; encodes each section between added tokens as one
/// piece of text.
class PromptBuilder::Writer {
 public:
  Writer(const TextTokenizer& tokenizer, bool safe) : tokenizer_(tokenizer), safe_(safe) {}
  void trusted(std::string_view text) {
    for (std::size_t i = 0; i < text.size();) {
      if (const auto added = tokenizer_.added_at(text.substr(i))) {
        token(added->id);
        i += added->bytes;
      } else {
        section_ += text[i++];
      }
    }
  }
  void untrusted(std::string_view text) {
    if (safe_)
      section_ += text;
    else
      trusted(text);
  }
  void token(std::int32_t id) {
    flush();
    ids_.push_back(id);
    first_ = false;
  }
  void codes(const std::vector<std::int32_t>& codes) {
    for (const auto code : codes) token(tokenizer_.audio_base() + code);
  }
  std::vector<std::int32_t> take() {
    flush();
    return std::move(ids_);
  }
  std::vector<std::int32_t>& ids() { return ids_; }

 private:
  void flush() {
    if (section_.empty()) return;
    tokenizer_.encode_section(section_, first_, ids_);
    section_.clear();
    first_ = false;
  }
  const TextTokenizer& tokenizer_;
  bool safe_, first_ = true;
  std::string section_;
  std::vector<std::int32_t> ids_;
};

namespace {
std::string role_of(const Message& message) { return message.role == "user" ? "human" : message.role; }
bool is_untrusted(const Message& message) { return message.role != "system"; }
/// What a client puts in the middle of a conversation is no system prompt of ours, whatever it is called.
bool is_untrusted(const Message& message, std::span<const Message> messages) {
  return is_untrusted(message) || !message.own || &message != messages.data();
}
}  // namespace

std::string PromptBuilder::chat_offline_text(std::span<const Message> messages) const {
  std::string out;
  for (const auto& message : messages) {
    out += "<|BOT|>" + role_of(message) + "\n";
    if (const auto* text = std::get_if<std::string>(&message.content))
      out += *text + "<|EOT|>";
    else if (const auto* codes = std::get_if<std::vector<std::int32_t>>(&message.content))
      out += to_token_string(*codes) + "<|EOT|>";
  }
  if (!out.ends_with("<|BOT|>assistant\n")) out += "<|BOT|>assistant\n";
  return out;
}

std::vector<std::int32_t> PromptBuilder::chat_offline(std::span<const Message> messages) const {
  Writer writer(*tokenizer_, safe_);
  if (tokenizer_->adds_bos()) writer.ids().push_back(tokenizer_->bos());
  bool open = false;  // the text ends with exactly the assistant's marker
  for (const auto& message : messages) {
    writer.trusted("<|BOT|>" + role_of(message) + "\n");
    open = message.role == "assistant";
    if (const auto* text = std::get_if<std::string>(&message.content)) {
      if (is_untrusted(message, messages))
        writer.untrusted(*text);
      else
        writer.trusted(*text);
      writer.trusted("<|EOT|>");
      open = false;
    } else if (const auto* codes = std::get_if<std::vector<std::int32_t>>(&message.content)) {
      writer.codes(*codes);
      writer.trusted("<|EOT|>");
      open = false;
    }
  }
  if (!open) writer.trusted("<|BOT|>assistant\n");
  return writer.take();
}

std::vector<std::int32_t> PromptBuilder::chat_server(std::span<const Message> messages,
                                                     bool add_generation_prompt) const {
  Writer writer(*tokenizer_, safe_);
  if (!messages.empty() && messages[0].role == "system") writer.trusted("<s>");
  for (std::size_t i = 0; i < messages.size(); ++i) {
    const auto& message = messages[i];
    writer.trusted("<|BOT|> " + role_of(message) + "\n");
    if (const auto* text = std::get_if<std::string>(&message.content)) {
      if (is_untrusted(message))
        writer.untrusted(*text);
      else
        writer.trusted(*text);
    } else if (const auto* codes = std::get_if<std::vector<std::int32_t>>(&message.content)) {
      writer.codes(*codes);
    }
    if (!(i + 1 == messages.size() && message.role == "assistant")) writer.trusted("<|EOT|>");
  }
  if (add_generation_prompt) writer.trusted("<|BOT|> assistant\n");
  return writer.take();
}

std::vector<std::int32_t> PromptBuilder::tts(const Tts& request, std::optional<bool> inner_bos,
                                             std::size_t* voice_ids) const {
  const auto& special = tokenizer_->specials();
  const bool bos = inner_bos.value_or(tokenizer_->adds_bos());
  std::vector<std::int32_t> out{tokenizer_->bos()};
  auto encoded = [&](const std::string& text, TextTokenizer::Specials specials) {
    auto ids = tokenizer_->encode(text, specials);
    if (bos) ids.insert(ids.begin(), tokenizer_->bos());
    return ids;
  };
  auto add = [&](const std::vector<std::int32_t>& ids) { out.insert(out.end(), ids.begin(), ids.end()); };
  const auto user = safe_ ? TextTokenizer::Specials::text : TextTokenizer::Specials::parse;
  auto cut = [&](const std::string& text) {
    const auto ids = encoded("\n" + text, user);
    const auto skip = encoded("\n", user).size();
    return std::vector<std::int32_t>(ids.begin() + static_cast<std::ptrdiff_t>(std::min(skip, ids.size())), ids.end());
  };
  const auto parse = TextTokenizer::Specials::parse;
  // One text, of which the name alone is not ours: a special token spelled in it stays text.
  auto system = [&] {
    Writer writer(*tokenizer_, safe_);
    if (bos) writer.ids().push_back(tokenizer_->bos());
    const auto hole = request.speaker ? request.system.find("{}") : std::string::npos;
    writer.trusted("system\n" + request.system.substr(0, hole));
    if (hole != std::string::npos) writer.untrusted(*request.speaker), writer.trusted(request.system.substr(hole + 2));
    return writer.take();
  };
  out.push_back(special.bot), add(system()), out.push_back(special.eot);
  out.push_back(special.bot), add(encoded("human\n", parse)), add(cut(request.prompt_text)), out.push_back(special.eot);
  out.push_back(special.bot), add(encoded("assistant\n", parse));
  for (const auto code : request.prompt_codes) out.push_back(tokenizer_->audio_base() + code);
  out.push_back(special.eot);
  out.push_back(special.bot), add(encoded("human\n", parse));
  if (voice_ids != nullptr) *voice_ids = out.size();
  add(cut(request.text)), out.push_back(special.eot);
  out.push_back(special.bot), add(encoded("assistant\n", parse));
  return out;
}

namespace {
/// A code outside its range would become some other token: a negative one a control token.
Result<std::vector<std::int32_t>> codes_of(const nlohmann::json& list) {
  std::vector<std::int32_t> out;
  for (const auto& code : list) {
    if (!code.is_number_integer())
      return fail(Errc::invalid_argument, "code {} is {}, expected a whole number", out.size(),
                  code.dump().substr(0, 40));
    const bool inside = code.is_number_unsigned() ? code.get<std::uint64_t>() < kCodes
                                                  : code.get<std::int64_t>() >= 0 && code.get<std::int64_t>() < kCodes;
    if (!inside)
      return fail(Errc::token_out_of_range, "code {} is {}, outside 0…{}", out.size(), code.dump(), kCodes - 1);
    out.push_back(code.get<std::int32_t>());
  }
  return out;
}
}  // namespace

Result<std::vector<Message>> PromptBuilder::messages_of(const nlohmann::json& messages) {
  if (!messages.is_array()) return fail(Errc::invalid_argument, "messages must be a list");
  std::vector<Message> out;
  for (const auto& entry : messages) {
    if (!entry.is_object() || !entry.contains("role") || !entry["role"].is_string())
      return fail(Errc::invalid_argument, "message {} has no role", out.size());
    Message message{entry["role"].get<std::string>(), std::monostate{}};
    const auto content = entry.contains("content") ? entry["content"] : nlohmann::json(nullptr);
    if (content.is_string()) {
      message.content = content.get<std::string>();
    } else if (content.is_object()) {
      const auto type =
          content.contains("type") && content["type"].is_string() ? content["type"].get<std::string>() : std::string();
      if (type == "text" && content.contains("text") && content["text"].is_string()) {
        message.content = content["text"].get<std::string>();
      } else if (type == "audio" && content.contains("codes") && content["codes"].is_array()) {
        PARLANDO_TRY(message.content, codes_of(content["codes"]));
      } else {
        continue;  // the official code drops a dict of another type without a word
      }
    } else if (!content.is_null()) {
      return fail(Errc::invalid_argument, "unsupported content type '{}' of message {}", content.type_name(),
                  out.size());
    }
    out.push_back(std::move(message));
  }
  return out;
}

}  // namespace parlando::llm
