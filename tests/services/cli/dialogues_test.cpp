#define BOOST_TEST_MODULE dialogues
#include "services/cli/dialogues.hpp"

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "common/audio/audio_file.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::cli {
namespace {
namespace fs = std::filesystem;
using nlohmann::json;

const fs::path kFolder = fs::path(PARLANDO_SOURCE_DIR) / "models/nano/dialogues";

double level(std::span<const float> wave) {
  double sum = 0;
  for (const float x : wave) sum += x * x;
  return wave.empty() ? 0 : std::sqrt(sum / static_cast<double>(wave.size()));
}

/// The labels of one recording are what is heard in it.
void check_sound(const json& label, const Utterance& said) {
  const auto recording = *audio::read_audio(kFolder / label["file"].get<std::string>());
  const std::span wave(recording.wave);
  const auto part = [&](std::int64_t from, std::int64_t to) {
    return wave.subspan(static_cast<std::size_t>(from), static_cast<std::size_t>(to - from));
  };
  const auto all = static_cast<std::int64_t>(wave.size());
  BOOST_TEST(said.pcm.size() == 2 * wave.size());
  float peak = 0;
  for (const float x : wave) peak = std::max(peak, std::abs(x));
  const auto quiet = [&](std::int64_t from, std::int64_t to) { return level(part(from, to)) <= 0.02 * peak; };
  BOOST_TEST((quiet(0, said.begin_sample) && quiet(said.end_sample, all)));
  // A part is measured by its own loudest sample, which may be a fifth of the file's.
  const auto heard = [&](std::int64_t from) { return level(part(from, from + 160)) > 0.2 * 0.02 * peak; };
  BOOST_TEST((heard(said.begin_sample) && heard(said.end_sample - 320)));  // the last 10 ms are faded out
  BOOST_TEST(said.pauses == static_cast<int>(label["pauses"].size()));
  for (const auto& pause : label["pauses"]) {
    const std::int64_t begin = pause["begin_sample"], end = pause["end_sample"];
    BOOST_TEST((begin > said.begin_sample && end < said.end_sample && !pause["is_end"].get<bool>()));
    BOOST_TEST((end - begin >= 4800 && end - begin <= 14400));
    BOOST_TEST(quiet(begin, end));
    BOOST_TEST((heard(begin - 320) && heard(end)));
  }
}

json one_snippet() {
  return {{"kind", "plain"},     {"text", "x"},       {"file", "a.wav"},
          {"begin_sample", 100}, {"end_sample", 900}, {"pauses", json::array()}};
}

Result<std::vector<Utterance>> read_with(const std::function<void(json&)>& change) {
  const TemporaryDirectory folder;
  BOOST_REQUIRE(audio::write_wav(folder.path() / "a.wav", std::vector<float>(1000, 0.1f), 16000).has_value());
  BOOST_REQUIRE(audio::write_wav(folder.path() / "b.wav", std::vector<float>(1000, 0.1f), 8000).has_value());
  json all{{"rate", 16000}, {"snippets", {one_snippet()}}};
  change(all);
  std::ofstream(folder.path() / "dialogues.json") << all.dump();
  return read_dialogues(folder.path());
}

}  // namespace

BOOST_AUTO_TEST_CASE(the_labels_of_the_bundled_dialogues_are_what_is_heard) {
  const auto said = read_dialogues(kFolder);
  BOOST_REQUIRE_MESSAGE(said.has_value(), said.error().message);
  std::ifstream file(kFolder / "dialogues.json");
  const auto labels = json::parse(file);
  std::size_t at = 0;
  int murmurs = 0;
  for (const auto& snippet : labels["snippets"]) {
    BOOST_TEST_CONTEXT(snippet["file"].get<std::string>()) {
      BOOST_REQUIRE(at < said->size());
      BOOST_TEST((*said)[at].into_answer.count() < 0);
      check_sound(snippet, (*said)[at++]);
      const auto kind = snippet["kind"].get<std::string>();
      BOOST_TEST(snippet["pauses"].empty() == (kind != "pause" && kind != "correction"));
      if (!snippet.contains("over")) continue;
      BOOST_REQUIRE(at < said->size());
      BOOST_TEST((*said)[at].takes_turn == (kind == "interruption"));
      BOOST_TEST((*said)[at].into_answer.count() >= 300);
      murmurs += !(*said)[at].takes_turn;
      check_sound(snippet["over"], (*said)[at++]);
    }
  }
  BOOST_TEST(at == said->size());
  BOOST_TEST(at == 50u);
  BOOST_TEST(murmurs == 10);
}

BOOST_AUTO_TEST_CASE(a_label_that_does_not_fit_its_recording_is_named) {
  BOOST_TEST(read_with([](json&) {}).has_value());
  const std::pair<std::function<void(json&)>, const char*> bad[] = {
      {[](json& s) { s["snippets"] = json::array(); }, "snippets"},
      {[](json& s) { s["snippets"][0].erase("file"); }, "file"},
      {[](json& s) { s["snippets"][0]["file"] = "../a.wav"; }, "../a.wav"},
      {[](json& s) { s["snippets"][0]["file"] = "none.wav"; }, "none.wav"},
      {[](json& s) { s["snippets"][0]["file"] = "b.wav"; }, "8000"},
      {[](json& s) { s["snippets"][0]["end_sample"] = 1001; }, "1001"},
      {[](json& s) { s["snippets"][0]["begin_sample"] = 900; }, "end_sample"},
      {[](json& s) { s["snippets"][0]["begin_sample"] = "0"; }, "begin_sample"},
      {[](json& s) {
         s["snippets"][0]["pauses"] = {{{"begin_sample", 50}, {"end_sample", 60}}};
       },
       "begin_sample is 50"},
      {[](json& s) { s["snippets"][0]["pauses"] = 7; }, "dialogues.json"},
      {[](json& s) { s["snippets"][0] = 7; }, "snippet 1"},
      {[](json& s) { s["snippets"][0]["over"] = one_snippet(); }, "after_ms"},
      {[](json& s) {
         s["snippets"][0]["over"] = one_snippet();
         s["snippets"][0]["over"]["after_ms"] = 300;
       },
       "takes_turn"},
  };
  for (const auto& [change, word] : bad) {
    const auto read = read_with(change);
    BOOST_REQUIRE_MESSAGE(!read.has_value(), word);
    BOOST_TEST(read.error().message.find(word) != std::string::npos, word << ": " << read.error().message);
  }
}

/// The sound itself stays: only silence is cut or repeated, and labels move with it.
BOOST_AUTO_TEST_CASE(dialogues_that_are_drawn_anew_say_the_same_with_other_pauses) {
  const auto once = *read_dialogues(kFolder);
  const auto again = redrawn(once, 1), same = redrawn(once, 1), other = redrawn(once, 2);
  BOOST_REQUIRE((again.size() == once.size() && other.size() == once.size()));
  std::size_t changed = 0, differ = 0;
  for (std::size_t n = 0; n < once.size(); ++n) {
    BOOST_TEST(again[n].pcm == same[n].pcm);
    differ += again[n].pcm != other[n].pcm;
    BOOST_TEST((again[n].into_answer.count() < 0) == (once[n].into_answer.count() < 0));
    BOOST_TEST(again[n].takes_turn == once[n].takes_turn);
    if (once[n].into_answer.count() >= 0) {
      BOOST_TEST((again[n].into_answer.count() >= 300 && again[n].into_answer.count() <= 700));
      continue;  // it may be another one
    }
    BOOST_TEST(again[n].begin_sample == once[n].begin_sample);
    BOOST_REQUIRE(again[n].silences.size() == once[n].silences.size());
    BOOST_TEST(again[n].pauses == once[n].pauses);
    std::string left = once[n].pcm, right = again[n].pcm;
    for (auto k = once[n].silences.size(); k-- > 0;) {
      const auto [a, b] = once[n].silences[k];
      const auto [c, d] = again[n].silences[k];
      BOOST_TEST((d - c >= 4800 && d - c <= 14400));
      changed += b - a != d - c;
      left.erase(static_cast<std::size_t>(2 * a), static_cast<std::size_t>(2 * (b - a)));
      right.erase(static_cast<std::size_t>(2 * c), static_cast<std::size_t>(2 * (d - c)));
    }
    BOOST_TEST((left == right));
    BOOST_TEST(once[n].pcm.size() / 2 - static_cast<std::size_t>(once[n].end_sample) ==
               again[n].pcm.size() / 2 - static_cast<std::size_t>(again[n].end_sample));
  }
  BOOST_TEST(changed >= 10u);
  BOOST_TEST(differ >= 10u);
}

}  // namespace parlando::cli
