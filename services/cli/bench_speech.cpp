#include "services/cli/bench_speech.hpp"

#include <time.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>

#include "services/llm/llm_core.hpp"
#include "services/tokenizer/tokenizer_core.hpp"
#include "services/tts/model/flow.hpp"
#include "services/tts/tts_core.hpp"

namespace parlando::cli {
using nlohmann::json;
using protocol::MessageType;

namespace {

constexpr const char* kSentences[] = {"the sky is blue and the grass is green.", "it is a sunny day in paris.",
                                      "i have set a timer for five minutes."};
constexpr SessionId kSession{0, 7};

double ms_since(Time start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

/// What this thread has computed: with one thread, the time on a core that nobody else uses.
double cpu_ms() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return 1e3 * static_cast<double>(now.tv_sec) + 1e-6 * static_cast<double>(now.tv_nsec);
}

/// tts with the services that it calls, and a caller.
class SpeechServices {
 public:
  static Result<SpeechServices> make(const std::filesystem::path& model_path, int threads) {
    SpeechServices out;
    PARLANDO_TRY(out.llm_,
                 llm::LlmCore::make({.threads = threads, .model = (model_path / "Step-Audio-TTS-3B").string()}));
    PARLANDO_TRY(out.tokenizer_, tokenizer::TokenizerCore::make(
                                     {.threads = threads, .model = (model_path / "Step-Audio-Tokenizer").string()}));
    PARLANDO_TRY(out.tts_,
                 tts::TtsCore::make({.threads = threads, .model = (model_path / "Step-Audio-TTS-3B").string()}));
    out.llm_->add_metrics(*out.metrics_);
    out.tokenizer_->add_metrics(*out.metrics_);
    out.tts_->add_metrics(*out.metrics_);
    const auto now = std::chrono::steady_clock::now();
    out.tts_->on_peer({.instance = "llm-tts", .role = "llm-tts"}, transport::PeerState::up, now);
    out.tts_->on_peer({.instance = "tokenizer", .role = "tokenizer"}, transport::PeerState::up, now);
    for (int i = 0; i < 1000 && !out.tts_->why_not_ready().empty(); ++i) out.turn();
    if (const auto why = out.tts_->why_not_ready(); !why.empty()) return fail(Errc::not_ready, "tts: {}", why);
    return out;
  }

  struct Spoken {
    double first_audio_ms = 0;   ///< until the first sound
    double first_audio_cpu = 0;  ///< the same, counted in `cpu_ms`, as is:
    double codes_cpu = 0;        ///< until the language model had given what the first chunk needs
    double whole_ms = 0;
    double ahead_ms = 1e9;  ///< least time by which a chunk came before the sound until then had played
    double audio_ms = 0;
  };
  Result<Spoken> speak(const std::string& text, std::uint64_t seed) {
    Spoken out;
    protocol::Envelope head;
    head.session = kSession;
    head.stream = {++stream_};
    const auto start = std::chrono::steady_clock::now();
    const auto cpu_start = cpu_ms();
    tell("bench", *tts_, head, protocol::Speak{.text = text, .seed = seed});
    for (;;) {
      turn();
      for (auto& m : std::exchange(heard_, {})) {
        if (m.head.type == MessageType::error) {
          PARLANDO_TRY(const auto error, protocol::read<protocol::ErrorMessage>(m));
          return fail(errc_of(error.code), "{}", error.message);
        }
        PARLANDO_TRY(const auto speech, protocol::read<protocol::Speech>(m));
        const auto at = ms_since(start);
        if (out.first_audio_ms == 0) {
          out.first_audio_ms = at;
          out.first_audio_cpu = cpu_ms() - cpu_start;
          out.codes_cpu = codes_cpu_ - cpu_start;
        } else {
          out.ahead_ms = std::min(out.ahead_ms, out.first_audio_ms + out.audio_ms - at);
        }
        out.audio_ms += 1000.0 * static_cast<double>(speech.payload.size() / sizeof(std::int16_t)) / speech.rate;
        if (!speech.last) continue;
        out.whole_ms = at;
        tell("bench", *tts_, head, protocol::Close{});
        while (turn()) {
        }
        return out;
      }
    }
  }

 private:
  template <class T>
  void tell(const std::string& from, service::Core& to, const protocol::Envelope& head, T body) {
    to.on_message(from, protocol::pack(std::move(body), head), std::chrono::steady_clock::now());
  }
  /// One unit of work, of whoever stands nearer to the sound. @return whether there was any
  bool turn() {
    const auto now = std::chrono::steady_clock::now();
    tts_->on_tick(now);
    carry();
    bool more = tts_->work(now);
    carry();
    if (more) return true;
    for (auto* core : {llm_.get(), tokenizer_.get()}) {
      more = core->work(now) || more;
      if (carry()) return true;
    }
    return more;
  }
  /// Messages to whom they are for. @return whether there were any
  bool carry() {
    bool any = false;
    const std::pair<const char*, service::Core*> all[] = {
        {"tts", tts_.get()}, {"llm-tts", llm_.get()}, {"tokenizer", tokenizer_.get()}};
    for (const auto& [from, core] : all) {
      for (auto& out : core->take()) {
        any = true;
        if (from == std::string_view("llm-tts")) codes_cpu_ = cpu_ms();
        const auto to =
            std::find_if(std::begin(all), std::end(all), [&](const auto& c) { return out.peer == c.first; });
        if (to == std::end(all))
          heard_.push_back(std::move(out.message));
        else
          to->second->on_message(from, std::move(out.message), std::chrono::steady_clock::now());
      }
    }
    return any;
  }
  std::unique_ptr<telemetry::Metrics> metrics_ = std::make_unique<telemetry::Metrics>();
  std::unique_ptr<service::Core> llm_, tokenizer_, tts_;
  std::vector<protocol::Message> heard_;  ///< by the caller
  double codes_cpu_ = 0;                  ///< when the latest codes came
  std::uint32_t stream_ = 0;
};

json spread_of(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return {{"median", values[values.size() / 2]}, {"low", values.front()}, {"high", values.back()}};
}

}  // namespace

Result<json> bench_first_audio(const std::filesystem::path& model_path, int threads, int runs) {
  PARLANDO_TRY(auto services, SpeechServices::make(model_path, threads));
  PARLANDO_DO(services.speak(kSentences[0], 1));
  std::map<std::string, std::vector<double>> all;
  for (int run = 0; run < std::max(5, runs); ++run) {
    for (const auto* sentence : kSentences) {
      PARLANDO_TRY(const auto s, services.speak(sentence, static_cast<std::uint64_t>(run) + 2));
      all["first_audio_ms"].push_back(s.first_audio_ms);
      all["first_audio_cpu_ms"].push_back(s.first_audio_cpu);
      all["codes_of_first_chunk_cpu_ms"].push_back(s.codes_cpu);
      all["decoding_of_first_chunk_cpu_ms"].push_back(s.first_audio_cpu - s.codes_cpu);
      all["sentence_ms"].push_back(s.whole_ms);
      all["sentence_audio_ms"].push_back(s.audio_ms);
      if (s.ahead_ms < 1e9) all["ahead_of_playback_ms"].push_back(s.ahead_ms);
    }
  }
  json out;
  fmt::print("speech, {} sentences {} times, {} thread(s), fp32\n", std::size(kSentences), std::max(5, runs), threads);
  const auto line = [&](const char* key, const char* what) {
    if (all[key].empty()) return;
    out[key] = spread_of(all[key]);
    fmt::print("  {:<52} {:8.1f} ms ({:.1f}…{:.1f})\n", what, out[key]["median"].get<double>(),
               out[key]["low"].get<double>(), out[key]["high"].get<double>());
  };
  line("first_audio_ms", "text → first audio");
  line("first_audio_cpu_ms", "  the same in processor time");
  line("codes_of_first_chunk_cpu_ms", "    of which codes of the first chunk");
  line("decoding_of_first_chunk_cpu_ms", "    of which their decoding");
  line("sentence_ms", "text → last audio");
  line("sentence_audio_ms", "  of speech");
  line("ahead_of_playback_ms", "least lead of a chunk over playback");
  return out;
}

}  // namespace parlando::cli
