#include "services/cli/task_accuracy.hpp"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "common/audio/audio_file.hpp"
#include "common/base/mapped_file.hpp"
#include "services/llm/chat.hpp"
#include "services/llm/llm_core.hpp"
#include "services/tokenizer/model/speech_tokenizer.hpp"

namespace parlando::cli {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {
constexpr double kSecondsMax = 30;
constexpr std::int64_t kTokensMax = 128;  // of a transcript

/// Letters and digits of each word, small.
std::vector<std::string> words_of(const std::string& text) {
  std::vector<std::string> out(1);
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isspace(byte) != 0)
      out.emplace_back();
    else if (std::isalnum(byte) != 0 || byte >= 0x80 || c == '\'')
      out.back() += static_cast<char>(std::tolower(byte));
  }
  std::erase(out, "");
  return out;
}

Result<LabelledCodes> codes_of(const fs::path& folder, const json& label, const tokenizer::SpeechTokenizer& ears) {
  const auto name = label.at("file").get<std::string>();
  if (fs::path(name).filename() != name) return fail(Errc::bad_json, "'{}' is no file name", name);
  PARLANDO_TRY(const auto recording, audio::read_audio(folder / name, kSecondsMax));
  const auto size = static_cast<std::int64_t>(recording.wave.size());
  const auto first = std::max<std::int64_t>(0, label.at("begin_sample").get<std::int64_t>() - recording.rate * 3 / 10),
             last = std::min(size, label.at("end_sample").get<std::int64_t>() + recording.rate / 5);
  if (first >= last) return fail(Errc::bad_json, "'{}' has no speech between its labels", name);
  LabelledCodes out{label.at("text").get<std::string>(), {}};
  PARLANDO_TRY(
      out.codes,
      ears.codes(
          std::span(recording.wave).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(last - first)),
          recording.rate, {}));
  return out;
}

Result<std::string> transcript(const llm::LlmModel& model, const LabelledCodes& of) {
  llm::Chat::Options options;
  options.sampling = llm::Sampling::greedy();
  options.tokens_max = kTokensMax;
  PARLANDO_TRY(const auto chat, llm::Chat::open(model.engine, model.text, "recording",
                                                {{"system", model.chat_prompt, true}}, std::move(options)));
  PARLANDO_DO(chat->hear(0, of.codes));
  PARLANDO_TRY(auto events, chat->reply(llm::Chat::Wanted::transcript));
  std::string out;
  for (bool done = false; !done;) {
    for (const auto& event : events) {
      if (event.kind == llm::ChatEvent::Kind::transcript) out = event.text;
      done |= event.kind == llm::ChatEvent::Kind::done;
    }
    events.clear();
    if (done) break;
    if (model.engine->idle()) return fail(Errc::internal, "a transcript has not ended");
    for (const auto& token : model.engine->step()) {
      PARLANDO_TRY(auto told, chat->on(token));
      events.insert(events.end(), std::make_move_iterator(told.begin()), std::make_move_iterator(told.end()));
    }
  }
  return out;
}
}  // namespace

bool is_judged(const fs::path& checkpoint) {
  const auto config = llm::Step1Config::load(checkpoint / "config.json");
  // One for speech reads voices and decodes codes.
  return config && config->reply_format == "transcript_first" &&
         !fs::is_directory(checkpoint / "CosyVoice-300M-25Hz") && fs::exists(checkpoint / "tokenizer.model") &&
         fs::is_directory(checkpoint.parent_path() / kTokenizer);
}

Result<std::vector<LabelledCodes>> labelled_codes(const fs::path& dialogues, const fs::path& tokenizer, int most) try {
  PARLANDO_TRY(const auto text, read_file(dialogues / "dialogues.json", 4u << 20));
  PARLANDO_TRY(const auto ears, tokenizer::SpeechTokenizer::load(tokenizer));
  const auto all = json::parse(text);
  std::vector<LabelledCodes> out;
  const auto add = [&](const json& label) -> Result<void> {
    if (static_cast<int>(out.size()) >= most || words_of(label.at("text").get<std::string>()).empty()) return {};
    PARLANDO_TRY(auto one, codes_of(dialogues, label, *ears));
    out.push_back(std::move(one));
    return {};
  };
  for (const auto& snippet : all.at("snippets")) {
    PARLANDO_DO(add(snippet));
    if (snippet.contains("over")) PARLANDO_DO(add(snippet["over"]));
  }
  return out;
} catch (const json::exception& e) {
  return fail(Errc::bad_json, "'{}/dialogues.json': {}", dialogues.string(), e.what());
}

Result<std::vector<std::string>> transcripts_of(const std::shared_ptr<const llm::Step1>& model,
                                                const fs::path& directory,
                                                const std::vector<LabelledCodes>& recordings) {
  llm::LlmModel whole;
  whole.engine = std::make_shared<llm::LmEngine>(model, llm::LmEngine::Limits{.cache_tokens = 4096});
  PARLANDO_DO(whole.read_words(directory));
  std::vector<std::string> out;
  for (const auto& recording : recordings) {
    PARLANDO_TRY(auto words, transcript(whole, recording));
    out.push_back(std::move(words));
  }
  return out;
}

std::pair<std::int64_t, std::int64_t> word_errors(const std::string& got, const std::string& want) {
  const auto a = words_of(got), b = words_of(want);
  std::vector<std::int64_t> row(b.size() + 1);
  for (std::size_t j = 0; j < row.size(); ++j) row[j] = static_cast<std::int64_t>(j);
  for (std::size_t i = 0; i < a.size(); ++i) {
    auto diagonal = std::exchange(row[0], static_cast<std::int64_t>(i) + 1);
    for (std::size_t j = 0; j < b.size(); ++j)
      diagonal = std::exchange(row[j + 1], std::min({diagonal + (a[i] == b[j] ? 0 : 1), row[j] + 1, row[j + 1] + 1}));
  }
  return {row.back(), static_cast<std::int64_t>(b.size())};
}

json judged(const std::vector<LabelledCodes>& recordings, const std::vector<std::string>& source,
            const std::vector<std::string>& packed) {
  std::int64_t words = 0, same = 0;
  const auto of = [&](const std::vector<std::string>& texts) {
    std::int64_t errors = 0, exact = 0;
    words = 0;
    for (std::size_t n = 0; n < recordings.size(); ++n) {
      const auto [wrong, all] = word_errors(texts[n], recordings[n].text);
      errors += wrong, words += all, exact += wrong == 0;
    }
    return json{{"word_errors", errors},
                {"word_error_rate", words == 0 ? 0.0 : static_cast<double>(errors) / static_cast<double>(words)},
                {"exact", exact}};
  };
  for (std::size_t n = 0; n < recordings.size(); ++n) same += source[n] == packed[n];
  json out = {{"recordings", recordings.size()}, {"source", of(source)}, {"packed", of(packed)}, {"same", same}};
  out["words"] = words;
  return out;
}

}  // namespace parlando::cli
