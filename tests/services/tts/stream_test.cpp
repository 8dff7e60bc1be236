#define BOOST_TEST_MODULE speech_stream
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "common/audio/audio_file.hpp"
#include "common/audio/front_end.hpp"
#include "services/tokenizer/model/live.hpp"
#include "services/tts/model/effects.hpp"
#include "services/tts/model/speech_decoder.hpp"
#include "services/tts/model/voices.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::tts {
namespace {

const std::filesystem::path kRoot = PARLANDO_SOURCE_DIR;

std::shared_ptr<const SpeechDecoder> decoder() {
  static const auto loaded =
      SpeechDecoder::load(kRoot / "tests/goldens/vocoder/models/CosyVoice-300M-25Hz", at::kFloat);
  BOOST_REQUIRE_MESSAGE(loaded.has_value(), (loaded ? std::string() : loaded.error().message));
  return *loaded;
}

std::vector<std::int32_t> codes(int groups) {
  std::mt19937 random(5);
  std::vector<std::int32_t> out;
  for (int g = 0; g < groups; ++g)
    for (int i = 0; i < 5; ++i)
      out.push_back(static_cast<std::int32_t>(i < 2 ? random() % 1024 : 1024 + random() % 4096));
  return out;
}

VoicePrompt prompt() {
  VoicePrompt p;
  p.codes = codes(4);
  p.mel = at::randn({1, 40, 80}) * 0.5 - 5;
  p.embedding = at::randn({1, 192});
  return p;
}

std::vector<float> stream(const std::vector<std::int32_t>& all, const VoicePrompt& voice,
                          const std::function<std::size_t()>& next, SpeechStream::Options options = {}) {
  SpeechStream s(decoder(), voice, options);
  std::vector<float> out;
  for (std::size_t at = 0; at < all.size();) {
    const auto n = std::min(next(), all.size() - at);
    const auto part = s.push(std::span(all).subspan(at, n));
    BOOST_REQUIRE(part.has_value());
    out.insert(out.end(), part->begin(), part->end());
    at += n;
  }
  const auto rest = s.finish();
  BOOST_REQUIRE(rest.has_value());
  out.insert(out.end(), rest->begin(), rest->end());
  return out;
}

/// The shipped model, its voice and what was said in three recordings.
struct Nano {
  std::shared_ptr<const SpeechDecoder> decoder;
  VoicePrompt prompt;
  std::vector<std::vector<std::int32_t>> spoken;
  static const Nano& get() {
    static const Nano nano;
    return nano;
  }

 private:
  Nano() {
    const auto models = kRoot / "models/nano";
    const auto tok = tokenizer::SpeechTokenizer::load(models / "Step-Audio-Tokenizer");
    const auto loaded = SpeechDecoder::load(models / "Step-Audio-TTS-3B/CosyVoice-300M-25Hz", at::kFloat);
    BOOST_REQUIRE((tok && loaded));
    decoder = *loaded;
    const auto voices =
        *Voices::load(models / "Step-Audio-TTS-3B/speakers", decoder->speaker(),
                      [&](std::span<const float> wave, int rate) { return (*tok)->codes(wave, rate, {}); });
    prompt = (*voices->get("Clara"))->prompt;
    for (const char* name : {"capital_of_france.wav", "set_a_timer.wav", "weather_in_paris.wav"}) {
      const auto recording = *audio::read_audio(models / "questions" / name);
      spoken.push_back(*(*tok)->codes(recording.wave, recording.rate, {}));
    }
  }
};

}  // namespace

BOOST_AUTO_TEST_CASE(any_packets_of_codes_give_the_same_wave_and_the_same_number_of_samples) {
  at::manual_seed(1);
  const auto voice = prompt();
  const auto all = codes(17);
  const auto whole = stream(all, voice, [&] { return all.size(); });
  // Frames of n tokens by absolute position: no drift from chunking.
  const auto frames = static_cast<std::size_t>(
      std::floor(static_cast<double>(all.size()) * 22050 / (256 * decoder()->flow().token_rate())));
  BOOST_TEST(whole.size() == frames * 256);
  for (const unsigned seed : {1u, 2u, 3u}) {
    std::mt19937 random(seed);
    BOOST_TEST_CONTEXT("seed " << seed) {
      const auto pieces = stream(all, voice, [&] { return 1 + random() % 23; });
      BOOST_REQUIRE(pieces.size() == whole.size());
      for (std::size_t i = 0; i < whole.size(); ++i) BOOST_REQUIRE(std::abs(pieces[i] - whole[i]) < 1e-5f);
    }
  }
}

/// Largest step of a wave from sample `from` to `to`.
float slew(const std::vector<float>& wave, std::size_t from, std::size_t to) {
  float out = 0;
  for (auto i = std::max<std::size_t>(1, from); i < std::min(to, wave.size()); ++i)
    out = std::max(out, std::abs(wave[i] - wave[i - 1]));
  return out;
}

/// The largest step where chunks join, as a share of the largest one within 10 ms of that, the join left out.
double worst_join(const std::vector<float>& wave, const std::vector<std::size_t>& joins) {
  constexpr std::size_t kAround = 220, kFade = HiftStream::kFadeSamples;
  double out = 0;
  for (const auto join : joins) {
    const auto at = slew(wave, join, join + kFade + 1);
    const auto around =
        std::max(slew(wave, join - kAround, join), slew(wave, join + kFade + 1, join + kFade + kAround));
    out = std::max(out, static_cast<double>(at / std::max(around, 1e-3f)));
  }
  return out;
}

BOOST_AUTO_TEST_CASE(chunk_edges_make_no_click) {
  const auto& nano = Nano::get();
  double seams = 0, cuts = 0;
  for (const auto& spoken : nano.spoken) {
    for (const std::uint64_t seed : {3u, 4u}) {
      SpeechStream s(nano.decoder, nano.prompt, {.hop_groups_max = 3, .seed = seed});
      auto wave = *s.push(spoken);
      std::vector<std::size_t> joins;
      const auto join = [&](const std::vector<float>& part) {
        joins.push_back(wave.size());
        wave.insert(wave.end(), part.begin(), part.end());
      };
      while (s.pending()) join(*s.push({}));
      join(*s.finish());
      BOOST_REQUIRE(joins.size() >= 4u);
      seams = std::max(seams, worst_join(wave, joins));
      // Chunks that do not belong together are told from those that do: every other one upside down.
      auto cut = wave;
      for (std::size_t n = 0; n < joins.size(); n += 2)
        for (auto i = joins[n]; i < (n + 1 < joins.size() ? joins[n + 1] : cut.size()); ++i) cut[i] = -cut[i];
      cuts = std::max(cuts, worst_join(cut, joins));
    }
  }
  BOOST_TEST_MESSAGE("largest step at a join, of that beside it: " << seams << "; of chunks turned over: " << cuts);
  BOOST_TEST(seams < 1.5);
  BOOST_TEST(cuts > 2 * seams);
}

/// Behind frames whose part is known the rest of a window is computed as it is within the whole.
BOOST_AUTO_TEST_CASE(a_window_behind_its_own_beginning_is_the_rest_of_it) {
  const c10::InferenceMode guard;
  for (const bool nano : {false, true}) {
    const auto& flow = nano ? Nano::get().decoder->flow() : decoder()->flow();
    for (const auto& [frames, before] : {std::pair{90, 40}, {91, 40}, {90, 2}, {41, 40}}) {
      at::manual_seed(2);
      const auto z = at::randn({1, 80, frames}), mu = at::randn({1, 80, frames}), speaker = at::randn({1, 80}),
                 cond = at::randn({1, 80, frames});
      const auto whole = flow.solve(z, mu, speaker, cond);
      FlowPast past;
      BOOST_TEST(at::equal(flow.solve(z, mu, speaker, cond, before, past), whole));
      const auto rest = [n = before, count = frames - before](const at::Tensor& x) { return x.narrow(2, n, count); };
      const auto got = flow.solve_behind(past, rest(z), rest(mu), speaker, rest(cond));
      const auto error = (got - rest(whole)).abs().max().item<double>();
      BOOST_TEST_MESSAGE(before << " of " << frames << " frames known: largest difference " << error);
      BOOST_TEST(error < 0.005);  // keys and values are kept in bf16
    }
    FlowPast past;
    const auto x = at::zeros({1, 80, 9});
    BOOST_CHECK_THROW(flow.solve(x, x, at::zeros({1, 80}), x, 3, past), Failure);
  }
}

/// In bf16 the estimator is what it is in fp32, up to that type's rounding, in one piece and behind a past.
BOOST_AUTO_TEST_CASE(in_bf16_the_flow_is_what_it_is_in_fp32) {
  const c10::InferenceMode guard;
  for (const char* folder :
       {"tests/goldens/vocoder/models/CosyVoice-300M-25Hz", "models/nano/Step-Audio-TTS-3B/CosyVoice-300M-25Hz"}) {
    const auto full = *SpeechDecoder::load(kRoot / folder, at::kFloat),
               half = *SpeechDecoder::load(kRoot / folder, at::kBFloat16);
    BOOST_TEST(half->flow().stride() == full->flow().stride());
    for (const auto& [frames, before] : {std::pair{90, 40}, {91, 40}, {41, 2}}) {
      at::manual_seed(2);
      const auto z = at::randn({1, 80, frames}), mu = at::randn({1, 80, frames}), speaker = at::randn({1, 80}),
                 cond = at::randn({1, 80, frames});
      const auto want = full->flow().solve(z, mu, speaker, cond);
      FlowPast past;
      const auto got = half->flow().solve(z, mu, speaker, cond, before, past);
      BOOST_TEST(at::equal(got, half->flow().solve(z, mu, speaker, cond)));
      const auto error = (got - want).abs();
      BOOST_TEST_MESSAGE(frames << " frames: mean difference " << error.mean().item<double>() << ", largest "
                                << error.max().item<double>() << " of " << want.abs().mean().item<double>());
      BOOST_TEST(error.mean().item<double>() < 0.01);
      BOOST_TEST(error.max().item<double>() < 0.1);
      BOOST_TEST(error.max().item<double>() > 0.0);
      const auto rest = [n = before, count = frames - before](const at::Tensor& x) { return x.narrow(2, n, count); };
      const auto behind = half->flow().solve_behind(past, rest(z), rest(mu), speaker, rest(cond));
      const auto apart = (behind - rest(got)).abs().max().item<double>();
      BOOST_TEST_MESSAGE(before << " of " << frames << " frames known: largest difference " << apart);
      BOOST_TEST(apart < 0.04);  // sums in another order fall to other sides of a border of bf16
    }
  }
}

/// What the estimator computes at official size, in multiplications for each step: its products for each frame and, in
/// attention, for each pair of frames (docs/vocoder.md §12).
double work(std::int64_t frames, std::int64_t pairs) {
  return 0.0862e9 * static_cast<double>(frames) + 45056.0 * static_cast<double>(pairs);
}

/// Ten seconds with a prompt of four: how often the estimator sees a frame, against once for each offline.
BOOST_AUTO_TEST_CASE(streaming_ten_seconds_computes_half_as_much_again_as_offline) {
  at::manual_seed(1);
  VoicePrompt voice;
  voice.codes = codes(33);
  voice.mel = at::randn({1, 344, 80}) * 0.5 - 5;
  voice.embedding = at::randn({1, 192});
  const auto all = codes(83);
  SpeechStream s(decoder(), voice, {});
  std::vector<double> groups;
  for (auto from = s.frames(); s.push(groups.empty() ? all : std::vector<std::int32_t>{}).has_value();) {
    groups.push_back(std::round(static_cast<double>(s.frames() - from) / 10.336));
    from = s.frames();
    // The first window has the prompt, one group and two to look ahead.
    if (groups.size() == 1) BOOST_TEST(s.evaluated_frames() == 344 + 31);
    if (!s.pending()) break;
  }
  BOOST_TEST(groups == (std::vector<double>{1, 2, 5, 13, 32}), boost::test_tools::per_element());
  BOOST_TEST(s.past_bytes() > 0);
  BOOST_REQUIRE(s.finish().has_value());
  BOOST_TEST(s.past_bytes() == 0);
  const auto offline = 344 + decoder()->flow().frames_of(static_cast<std::int64_t>(all.size()));
  const auto ratio = static_cast<double>(s.evaluated_frames()) / static_cast<double>(offline);
  BOOST_TEST_MESSAGE("frames evaluated: " << s.evaluated_frames() << ", offline " << offline << ": " << ratio);
  BOOST_TEST(ratio < 1.45);
  const auto products = work(s.evaluated_frames(), s.evaluated_pairs()) / work(offline, offline * offline);
  BOOST_TEST_MESSAGE("in multiplications: " << products);
  BOOST_TEST(products < 1.25);
}

/// What is kept of prompts has a bound; a stream that gets nothing of it makes the same sound, with more work.
BOOST_AUTO_TEST_CASE(without_memory_for_the_prompt_the_sound_is_the_same) {
  at::manual_seed(1);
  const auto voice = prompt();
  const auto all = codes(17);
  const auto run = [&](SpeechStream& s) {
    auto wave = *s.push(all);
    const auto rest = *s.finish();
    wave.insert(wave.end(), rest.begin(), rest.end());
    return wave;
  };
  SpeechStream free(decoder(), voice, {});
  const auto want = run(free);
  for (const std::int64_t bytes : {0, 1 << 30}) {
    const auto memory = std::make_shared<PastMemory>(bytes);
    {
      SpeechStream s(decoder(), voice, {.memory = memory});
      BOOST_REQUIRE(s.push(std::span(all).first(15)).has_value());
      BOOST_TEST(memory->left() == bytes - s.past_bytes());
      BOOST_TEST((s.past_bytes() > 0) == (bytes > 0));
    }
    BOOST_TEST(memory->left() == bytes);
    SpeechStream s(decoder(), voice, {.memory = memory});
    BOOST_TEST((run(s) == want));
    BOOST_TEST((s.evaluated_frames() > free.evaluated_frames()) == (bytes == 0));
    BOOST_TEST(memory->left() == bytes);
  }
}

/// A voice may have a recording of 30 s.
BOOST_AUTO_TEST_CASE(four_seconds_of_a_long_prompt_are_used) {
  at::manual_seed(1);
  VoicePrompt voice;
  voice.codes = codes(250);
  voice.mel = at::randn({1, 2583, 80}) * 0.5 - 5;
  voice.embedding = at::randn({1, 192});
  const SpeechStream::Options options;
  const auto all = codes(options.first_hop_groups + options.lookahead_groups);
  SpeechStream s(decoder(), voice, options);
  const auto wave = s.push(all);
  BOOST_REQUIRE(wave.has_value());
  BOOST_TEST(!wave->empty());
  BOOST_TEST(s.evaluated_frames() <= 344 + decoder()->flow().frames_of(static_cast<std::int64_t>(all.size())));
  BOOST_TEST(s.evaluated_frames() >= 330);
  // It is the end of it: what stands before makes no difference, what stands there does.
  auto other = voice;
  other.mel = voice.mel.clone();
  other.mel.narrow(1, 0, 2583 - 344).fill_(-9);
  for (std::size_t i = 0; i < 1000; ++i) other.codes[i] = 7;
  BOOST_TEST((*SpeechStream(decoder(), other, options).push(all) == *wave));
  other.mel.narrow(1, 2583 - 300, 300).fill_(-9);
  BOOST_TEST((*SpeechStream(decoder(), other, options).push(all) != *wave));
}

BOOST_AUTO_TEST_CASE(one_chunk_equals_the_offline_result) {
  at::manual_seed(1);
  const auto voice = prompt();
  const auto all = codes(6);
  SpeechStream::Options options;
  options.first_hop_groups = 100, options.hop_groups_max = 100, options.seed = 9;
  const auto streamed = stream(
      all, voice, [&] { return all.size(); }, options);
  const auto offline = decoder()->synthesise(all, voice, 9);
  BOOST_REQUIRE(offline.has_value());
  BOOST_REQUIRE(streamed.size() == offline->size());
  double signal = 0, noise = 0;
  for (std::size_t i = 0; i < streamed.size(); ++i)
    signal += std::pow((*offline)[i], 2), noise += std::pow((*offline)[i] - streamed[i], 2);
  BOOST_TEST(10 * std::log10(signal / std::max(noise, 1e-20)) > 45.0);
}

/// Chunks of one group at first sound like chunks of three: as near to the offline result.
BOOST_AUTO_TEST_CASE(a_short_first_chunk_costs_no_quality) {
  const auto& nano = Nano::get();
  double sum[2] = {}, most[2] = {};
  for (const auto& spoken : nano.spoken) {
    const auto offline = audio::prompt_mel(*nano.decoder->synthesise(spoken, nano.prompt, 3));
    for (const int first : {1, 3}) {
      SpeechStream s(nano.decoder, nano.prompt, {.first_hop_groups = first, .seed = 3});
      auto wave = *s.push(spoken);
      const auto rest = *s.finish();
      wave.insert(wave.end(), rest.begin(), rest.end());
      const auto mel = audio::prompt_mel(wave);
      // The first 0.6 s, where the chunks differ most.
      const auto values = static_cast<std::size_t>(std::min<std::int64_t>({52, mel.frames, offline.frames}) * mel.bins);
      double distance = 0;
      for (std::size_t i = 0; i < values; ++i) distance += std::abs(mel.values[i] - offline.values[i]);
      distance /= static_cast<double>(values);
      BOOST_TEST_MESSAGE("first chunk of " << first << " groups: log-mel distance " << distance);
      sum[first == 1 ? 0 : 1] += distance;
      most[first == 1 ? 0 : 1] = std::max(most[first == 1 ? 0 : 1], distance);
    }
  }
  BOOST_TEST(sum[0] < 1.15 * sum[1]);
  BOOST_TEST(most[0] < 1.3 * most[1]);
}

/// Twelve seconds of speech, streamed as the service streams them, against the same sentence as a whole: what streaming
/// costs. Two offline results of different seeds are 0.48 apart.
BOOST_AUTO_TEST_CASE(twelve_seconds_are_streamed_near_the_offline_result) {
  const auto& nano = Nano::get();
  std::vector<std::int32_t> spoken;
  while (spoken.size() < 500)
    for (const auto& some : nano.spoken) spoken.insert(spoken.end(), some.begin(), some.end());
  spoken.resize(500);
  const auto offline = audio::prompt_mel(*nano.decoder->synthesise(spoken, nano.prompt, 3));
  const auto distance = [&](int context) {
    SpeechStream::Options options{.seed = 3};
    if (context > 0) options.context_groups = context;
    SpeechStream s(nano.decoder, nano.prompt, options);
    auto wave = *s.push(spoken);
    while (s.pending()) {
      const auto more = *s.push({});
      wave.insert(wave.end(), more.begin(), more.end());
    }
    const auto rest = *s.finish();
    wave.insert(wave.end(), rest.begin(), rest.end());
    const auto mel = audio::prompt_mel(wave);
    BOOST_TEST(mel.frames == offline.frames);
    const auto values = static_cast<std::size_t>(std::min(mel.frames, offline.frames) * mel.bins);
    double sum = 0;
    for (std::size_t i = 0; i < values; ++i) sum += std::abs(mel.values[i] - offline.values[i]);
    return sum / static_cast<double>(values);
  };
  const double shipped = distance(0), without = distance(1);
  BOOST_TEST_MESSAGE("log-mel distance to offline: " << shipped << ", with one group of context " << without);
  BOOST_TEST(shipped <= 0.45);
  BOOST_TEST(without > shipped);  // it is measured at all
}

BOOST_AUTO_TEST_CASE(codes_that_the_flow_cannot_read_are_dropped_and_counted) {
  SpeechStream s(decoder(), prompt(), {});
  const std::vector<std::int32_t> bad = {-65000, 5120, 9999};
  BOOST_REQUIRE(s.push(bad).has_value());
  BOOST_TEST(s.dropped() == 3);
  BOOST_TEST(s.finish()->empty());
}

BOOST_AUTO_TEST_CASE(speed_and_volume_change_length_and_level) {
  std::vector<float> wave(22050);
  for (std::size_t i = 0; i < wave.size(); ++i) wave[i] = 0.2f * std::sin(0.06f * static_cast<float>(i));
  const auto fast = apply_effects(wave, 22050, 1.25, 1), loud = apply_effects(wave, 22050, 1, 2);
  BOOST_REQUIRE((fast && loud));
  BOOST_TEST(std::abs(static_cast<double>(fast->size()) - 22050 / 1.25) < 300);
  BOOST_TEST(loud->size() == wave.size());
  BOOST_TEST(std::abs((*loud)[5000] - 2 * wave[5000]) < 1e-4);
  BOOST_TEST(!apply_effects(wave, 22050, 3, 1).has_value());
}

BOOST_AUTO_TEST_CASE(effects_on_a_stream_depend_on_the_sound_alone) {
  std::vector<float> wave(30000);
  for (std::size_t i = 0; i < wave.size(); ++i) wave[i] = 0.2f * std::sin(0.06f * static_cast<float>(i));
  std::mt19937 random(11);
  for (const double speed : {0.25, 0.8, 1.0, 1.25, 4.0}) {
    const auto whole = (*EffectStream::make(22050, speed, 2))->push(wave, true);
    BOOST_REQUIRE(whole.has_value());
    BOOST_TEST(std::abs(static_cast<double>(whole->size()) - 30000 / speed) < 2);
    for (int round = 0; round < 4; ++round) {
      const auto stream = *EffectStream::make(22050, speed, 2);
      std::vector<float> parts;
      for (std::size_t at = 0, count = 0; at < wave.size(); at += count) {
        count = std::min<std::size_t>(random() % (round == 0 ? 100 : 9000), wave.size() - at);
        const auto more = stream->push(std::span(wave).subspan(at, count), false);
        parts.insert(parts.end(), more->begin(), more->end());
      }
      const auto rest = stream->push({}, true);
      parts.insert(parts.end(), rest->begin(), rest->end());
      BOOST_TEST((parts == *whole), "speed " << speed << ", round " << round);
    }
  }
  BOOST_TEST(EffectStream::make(22050, 5, 1).error().message == "speed is 5, expected 0.25…4");
  BOOST_TEST(!EffectStream::make(22050, 1, 0.01).has_value());
}

BOOST_AUTO_TEST_CASE(live_tokens_end_as_the_exact_ones_where_nothing_was_frozen_wrongly) {
  const auto tok = tokenizer::SpeechTokenizer::load(kRoot / "models/nano/Step-Audio-Tokenizer");
  BOOST_REQUIRE(tok.has_value());
  std::vector<float> wave(16000 * 2);
  std::mt19937 random(3);
  for (std::size_t i = 0; i < wave.size(); ++i)
    wave[i] = 0.3f * std::sin(0.05f * static_cast<float>(i) * (1 + 0.2f * std::sin(0.0007f * static_cast<float>(i)))) +
              0.01f * static_cast<float>(random() % 100) / 100;
  tokenizer::LiveTokenizer live(*tok, {});
  std::vector<std::int32_t> seen;
  std::int64_t frozen = 0;
  for (std::size_t at = 0; at < wave.size(); at += 800) {
    const auto update = live.push(std::span(wave).subspan(at, 800));
    BOOST_REQUIRE(update.has_value());
    if (!*update) continue;
    // Frozen groups never change: what was told final before must be told again.
    BOOST_TEST((*update)->first_group == frozen);
    BOOST_TEST((*update)->final_groups >= frozen);
    seen.resize(static_cast<std::size_t>(5 * frozen));
    seen.insert(seen.end(), (*update)->codes.begin(), (*update)->codes.end());
    frozen = (*update)->final_groups;
  }
  const auto exact = live.exact(wave.size()), stable = live.stable(wave.size());
  BOOST_REQUIRE((exact && stable));
  BOOST_TEST(stable->codes.size() == exact->codes.size());
  BOOST_TEST(std::equal(stable->codes.begin(), stable->codes.begin() + 5 * frozen, seen.begin()));
}

BOOST_AUTO_TEST_CASE(a_tag_selects_the_entry_of_the_voice_in_that_style_where_there_is_one) {
  const TemporaryDirectory folder;
  std::ofstream(folder.path() / "speakers_info.json")
      << R"({"A": "hello", "A高兴1": "hello", "A哼唱": "la", "B": "hi"})";
  const auto voices = *Voices::load(folder.path(), nullptr, {});
  auto entry = [&](const char* text, const char* speaker) { return voices->entry(tts_mode(text, speaker, false)); };
  BOOST_TEST(entry("hello", "A") == "A");
  BOOST_TEST(entry("(高兴1)hello", "A") == "A高兴1");
  BOOST_TEST(entry("(快速1)hello", "A") == "A");  // no such entry: the plain voice reads the tag
  BOOST_TEST(entry("(高兴1)hello", "B") == "B");
  BOOST_TEST(entry("(哼唱)la", "A") == "A哼唱");
  BOOST_TEST(entry("(哼唱)la", "B") ==
             "B哼唱");  // music needs its entry, as in the official code: `get` says which voices there are
  BOOST_TEST((voices->get("B哼唱").error().code == Errc::not_found));
  BOOST_TEST(entry("(高兴1)hello", "") == "");
}

BOOST_AUTO_TEST_CASE(the_configuration_sets_the_steps_of_the_flow) {
  BOOST_TEST(decoder()->flow().steps() == kFlowSteps);
  const TemporaryDirectory folder;
  const auto from = kRoot / "tests/goldens/vocoder/models/CosyVoice-300M-25Hz";
  std::filesystem::copy(from, folder.path(), std::filesystem::copy_options::recursive);
  for (const int steps : {3, 0}) {
    auto config = nlohmann::json::parse(std::ifstream(from / "config.json"));
    config["flow"]["cfm"]["n_timesteps"] = steps;
    std::ofstream(folder.path() / "config.json") << config;
    const auto loaded = SpeechDecoder::load(folder.path(), at::kFloat);
    if (steps == 0) {
      BOOST_REQUIRE(!loaded.has_value());
      BOOST_TEST((loaded.error().code == Errc::bad_format));
      BOOST_TEST(loaded.error().message.find("n_timesteps is 0") != std::string::npos);
    } else {
      BOOST_REQUIRE(loaded.has_value());
      BOOST_TEST((*loaded)->flow().steps() == steps);
    }
  }
}

}  // namespace parlando::tts
