/// What a spoken turn takes in the prompt as the codes that were heard, and as the text that the history has in their
/// place. `lm_engine_test --run_test=history_tokens --log_level=message` prints it.
#include <array>
#include <boost/test/unit_test.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "services/llm/model/prompts.hpp"

namespace parlando::llm {
namespace {
using nlohmann::json;
namespace fs = std::filesystem;

constexpr std::int64_t kGroupSamples = 1920, kGroupCodes = 5;  // at 16 kHz: 41.7 codes a second
constexpr std::int64_t kAround = 16000 * (300 + 200) / 1000;   // in front of speech and behind it, as it is tokenised

struct Turn {
  std::int64_t samples;
  std::string text;
};

std::vector<Turn> dialogues() {
  std::ifstream in(fs::path(PARLANDO_SOURCE_DIR) / "models/nano/dialogues/dialogues.json");
  std::vector<Turn> out;
  const auto all = json::parse(in);
  for (const auto& snippet : all["snippets"]) {
    auto text = snippet["text"].get<std::string>();
    for (auto bar = text.find("| "); bar != std::string::npos; bar = text.find("| ")) text.erase(bar, 2);
    const auto begin = snippet["begin_sample"].get<std::int64_t>(), end = snippet["end_sample"].get<std::int64_t>();
    out.push_back({end - begin + kAround, std::move(text)});
  }
  return out;
}

/// Whole recordings.
std::vector<Turn> questions() {
  const auto folder = fs::path(PARLANDO_SOURCE_DIR) / "models/nano/questions";
  std::ifstream in(folder / "questions.json");
  std::vector<Turn> out;
  const auto all = json::parse(in);
  for (const auto& [file, text] : all.items()) {
    std::ifstream wav(folder / file, std::ios::binary);
    std::array<unsigned char, 44> head{};
    wav.read(reinterpret_cast<char*>(head.data()), head.size());
    const auto number = [&](std::size_t at) {
      return static_cast<std::int64_t>(head[at] | head[at + 1] << 8 | head[at + 2] << 16 |
                                       static_cast<std::int64_t>(head[at + 3]) << 24);
    };
    BOOST_REQUIRE(number(24) > 0);
    const auto samples = (static_cast<std::int64_t>(fs::file_size(folder / file)) - 44) / 2;
    out.push_back({samples * 16000 / number(24), text.get<std::string>()});
  }
  return out;
}

struct Figures {
  double codes = 0, tokens = 0, seconds = 0;
  double ratio() const { return codes / tokens; }
};

/// Of the turns alone: what stands around a message is the same for both.
Figures measure(const std::vector<Turn>& turns, const std::shared_ptr<const TextTokenizer>& tokenizer) {
  const PromptBuilder prompts(tokenizer, true);
  const auto size = [&](Message message) {
    const std::vector<Message> one{std::move(message)};
    return static_cast<double>(prompts.chat_offline(one).size());
  };
  const auto around = size({"user", std::vector<std::int32_t>{}});
  Figures out;
  for (const auto& turn : turns) {
    const auto groups = (turn.samples + kGroupSamples - 1) / kGroupSamples;
    out.codes += size({"user", std::vector<std::int32_t>(static_cast<std::size_t>(groups * kGroupCodes), 7)}) - around;
    out.tokens += size({"user", turn.text}) - around;
    out.seconds += static_cast<double>(turn.samples) / 16000;
  }
  return out;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(history_tokens)

/// Nano's vocabulary has 2334 pieces, 1.4 for a word; its synthetic speakers say 2.7 words a second. People are slower
/// and the official vocabulary has 65536 pieces, so this is the least.
BOOST_AUTO_TEST_CASE(text_in_place_of_sound_makes_the_history_shorter) {
  const auto tokenizer = TextTokenizer::load(fs::path(PARLANDO_SOURCE_DIR) / "models/nano/Step-Audio-Chat");
  BOOST_REQUIRE(tokenizer.has_value());
  const auto spoken = measure(questions(), *tokenizer), fast = measure(dialogues(), *tokenizer);
  for (const auto& [name, f] : {std::pair{"questions", spoken}, std::pair{"dialogues", fast}})
    BOOST_TEST_MESSAGE(fmt::format("{}: {:.1f} s, {} codes, {} tokens of text, {:.1f} : 1", name, f.seconds, f.codes,
                                   f.tokens, f.ratio()));
  BOOST_TEST(spoken.codes / spoken.seconds > 41.6);
  BOOST_TEST(spoken.ratio() >= 13);
  BOOST_TEST(fast.ratio() >= 12.5);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::llm
