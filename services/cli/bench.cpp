#include "services/cli/bench.hpp"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <functional>
#include <nlohmann/json.hpp>

#include "common/base/codes.hpp"
#include "common/base/mapped_file.hpp"
#include "common/checkpoint/safetensors.hpp"
#include "common/nn/threads.hpp"
#include "kernels/team/pool.hpp"
#include "services/cli/bench_lm.hpp"
#include "services/cli/bench_speech.hpp"
#include "services/cli/random_weights.hpp"
#include "services/tokenizer/model/live.hpp"
#include "services/tts/model/speech_decoder.hpp"

namespace parlando::cli {
using nlohmann::json;

std::int64_t peak_memory_bytes() {
  struct rusage usage {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

namespace {

struct Spread {
  double median = 0, low = 0, high = 0;
  double cpu = 0;  ///< median of the processor time, which neighbours on the machine change less
};

/// Of this process, all threads.
double cpu_seconds() {
  struct timespec t {};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

template <class F>
Spread measure(int runs, F&& work) {
  work();  // warm-up
  std::vector<double> seconds, cpu;
  for (int i = 0; i < std::max(5, runs); ++i) {
    const auto start = std::chrono::steady_clock::now();
    const auto cpu_start = cpu_seconds();
    work();
    cpu.push_back(cpu_seconds() - cpu_start);
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(seconds.begin(), seconds.end());
  std::sort(cpu.begin(), cpu.end());
  return {seconds[seconds.size() / 2], seconds.front(), seconds.back(), cpu[cpu.size() / 2]};
}

json spread_json(const Spread& s, double scale = 1) {
  return {{"median", s.median * scale}, {"low", s.low * scale}, {"high", s.high * scale}};
}

Result<json> config_of(const std::filesystem::path& path) {
  PARLANDO_TRY(const auto text, read_file(path, 1u << 20));
  auto out = json::parse(text, nullptr, false);
  if (!out.is_object()) return fail(Errc::bad_json, "'{}' is not a JSON object", path.string());
  return out;
}

std::vector<float> speechlike(double seconds, int rate) {
  std::vector<float> wave(static_cast<std::size_t>(seconds * rate));
  for (std::size_t i = 0; i < wave.size(); ++i) {
    const double t = static_cast<double>(i) / rate;
    wave[i] = static_cast<float>(0.3 * std::sin(2 * M_PI * (120 + 30 * std::sin(3 * t)) * t) *
                                     (0.6 + 0.4 * std::sin(17 * t)) +
                                 0.1 * std::sin(2 * M_PI * 1700 * t));
  }
  return wave;
}

/// Streams of the same length, a block of each at a time: one after the other and side by side, in turn. Their speech
/// differs.  @return per second of speech of one stream
Result<json> bench_side_by_side(const BenchOptions& o, const std::shared_ptr<const tokenizer::SpeechTokenizer>& tok) {
  constexpr std::size_t kPacket = 7680, kShift = 1001;
  const auto n = static_cast<std::size_t>(o.sessions);
  const auto samples = static_cast<std::size_t>(o.seconds * 16000);
  const auto all = speechlike(o.seconds + static_cast<double>(n * kShift) / 16000, 16000);
  std::optional<Error> error;
  auto conversation = [&](bool together) {
    using Live = tokenizer::LiveTokenizer;
    std::vector<Live> streams(n, Live(tok, {}));
    for (std::size_t at = 0; at < samples; at += kPacket) {
      std::vector<Live::Reading> readings;
      std::vector<Live*> behind;
      for (std::size_t i = 0; i < n; ++i) {
        streams[i].add(std::span(all).subspan(i * kShift + at, std::min(kPacket, samples - at)));
        if (streams[i].is_behind()) behind.push_back(&streams[i]), readings.push_back(streams[i].block());
      }
      std::vector<Live::Work> work;
      for (std::size_t i = 0; i < behind.size(); ++i) work.push_back({behind[i], &readings[i]});
      for (std::size_t i = 0; i < work.size(); i += together ? work.size() : 1)
        Live::read(std::span(work).subspan(i, together ? work.size() : 1));
      for (std::size_t i = 0; i < behind.size(); ++i)
        if (const auto done = behind[i]->take_block(std::move(readings[i])); !done) error = done.error();
    }
  };
  std::vector<double> cpu[2], wall[2];
  for (int run = 0; run <= std::max(5, o.runs); ++run)
    for (const int together : {0, 1}) {
      const auto start = std::chrono::steady_clock::now();
      const auto cpu_start = cpu_seconds();
      conversation(together == 1);
      if (run == 0) continue;  // warm-up
      const auto speech = o.seconds * o.sessions;
      cpu[together].push_back((cpu_seconds() - cpu_start) / speech);
      wall[together].push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() /
                               speech);
    }
  if (error) return tl::make_unexpected(*error);
  json out{{"sessions", o.sessions}};
  const char* names[] = {"one after the other", "side by side"};
  const char* keys[] = {"alone", "together"};
  double least[2];
  for (const int i : {0, 1}) {
    std::sort(cpu[i].begin(), cpu[i].end());
    std::sort(wall[i].begin(), wall[i].end());
    const Spread s{wall[i][wall[i].size() / 2], wall[i].front(), wall[i].back(), cpu[i][cpu[i].size() / 2]};
    least[i] = cpu[i].front();
    fmt::print(
        "  {:<44} {:8.4f} of processor time per second of speech (least {:.4f}), of time {:.4f} ({:.4f}…{:.4f})\n",
        fmt::format("{} streams {}", o.sessions, names[i]), s.cpu, cpu[i].front(), s.median, s.low, s.high);
    out[keys[i]] = {{"cpu", s.cpu}, {"cpu_least", cpu[i].front()}, {"wall", spread_json(s)}};
  }
  fmt::print("  {:<44} {:8.2f} × less processor time (least against least)\n", "side by side", least[0] / least[1]);
  return out;
}

Result<json> bench_tokenizer(const BenchOptions& o) {
  std::shared_ptr<const tokenizer::SpeechTokenizer> tok;
  if (!o.random_weights.empty()) {
    PARLANDO_TRY(const auto c, config_of(o.random_weights));
    tok = std::make_shared<tokenizer::SpeechTokenizer>(
        std::make_shared<tokenizer::LinguisticEncoder>(random_linguistic(c.at("linguistic")),
                                                       c.at("linguistic").at("heads").get<int>(),
                                                       "random linguistic weights"),
        std::make_shared<tokenizer::SemanticEncoder>(
            random_semantic(c.at("semantic")), c.at("semantic").at("heads").get<int>(), "random semantic weights"));
  } else {
    PARLANDO_TRY(tok, tokenizer::SpeechTokenizer::load(o.model_path / "Step-Audio-Tokenizer"));
  }
  if (o.sessions > 0) {
    fmt::print("tokenizer, {:.1f} s of audio, {} thread(s), fp32\n", o.seconds, o.threads);
    PARLANDO_TRY(auto side_by_side, bench_side_by_side(o, tok));
    return json{{"bench", "tokenizer"},
                {"seconds", o.seconds},
                {"threads", o.threads},
                {"side_by_side", std::move(side_by_side)}};
  }
  const auto wave = speechlike(o.seconds, 16000);
  auto packets = [&](auto&& take) {
    for (std::size_t at = 0; at < wave.size(); at += 320)
      take(std::span(wave).subspan(at, std::min<std::size_t>(320, wave.size() - at)));
  };
  const auto stream = measure(o.runs, [&] {
    tokenizer::LinguisticStream s(tok->linguistic());
    packets([&](std::span<const float> packet) { s.push(packet); });
    s.finish();
  });
  const auto offline = measure(
      o.runs, [&] { tok->linguistic()->quantise(tok->linguistic()->encode(tok->linguistic()->features(wave))); });
  const auto pass = measure(o.runs, [&] { tok->semantic().ids(wave); });
  std::optional<Error> error;
  std::vector<double> ends;
  const auto live = measure(o.runs, [&] {
    tokenizer::LiveTokenizer s(tok, {});
    packets([&](std::span<const float> packet) {
      if (const auto done = s.push(packet); !done) error = done.error();
    });
    const auto start = std::chrono::steady_clock::now();
    if (const auto done = s.stable(wave.size()); !done) error = done.error();
    ends.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  });
  if (error) return tl::make_unexpected(*error);
  std::sort(ends.begin(), ends.end());
  const Spread end{ends[ends.size() / 2], ends.front(), ends.back(), 0};
  fmt::print("tokenizer, {:.1f} s of audio, {} thread(s), fp32\n", o.seconds, o.threads);
  auto line = [&](const char* what, const Spread& s) {
    fmt::print("  {:<44} {:8.1f} ms ({:.1f}…{:.1f})   real-time factor {:.3f}, of processor time {:.3f}\n", what,
               1e3 * s.median, 1e3 * s.low, 1e3 * s.high, s.median / o.seconds, s.cpu / o.seconds);
  };
  line("linguistic, streamed in 20 ms packets", stream), line("linguistic, whole utterance in parallel", offline),
      line("semantic, whole utterance", pass), line("`stable`: both, while it is spoken", live);
  fmt::print("  {:<44} {:8.1f} ms ({:.1f}…{:.1f})\n", "of which behind the end", 1e3 * end.median, 1e3 * end.low,
             1e3 * end.high);
  json completeness;
  if (tok->knows_completeness()) {
    PARLANDO_TRY(const auto ids, tok->encode(wave));
    constexpr int kTimes = 100;
    const auto s = measure(o.runs, [&] {
      for (int i = 0; i < kTimes; ++i) tok->completeness(ids.states, wave);
    });
    fmt::print("  {:<44} {:8.2f} ms ({:.2f}…{:.2f})\n", "how complete it sounds, an attempt", 1e3 * s.median / kTimes,
               1e3 * s.low / kTimes, 1e3 * s.high / kTimes);
    completeness = spread_json(s, 1.0 / kTimes);
  }
  return json{{"bench", "tokenizer"},
              {"seconds", o.seconds},
              {"threads", o.threads},
              {"real_time_factor", live.median / o.seconds},
              {"cpu_real_time_factor", live.cpu / o.seconds},
              {"exact_real_time_factor", (offline.median + pass.median) / o.seconds},
              {"linguistic_stream_s", spread_json(stream)},
              {"linguistic_offline_s", spread_json(offline)},
              {"semantic_s", spread_json(pass)},
              {"live_s", spread_json(live)},
              {"live_end_s", spread_json(end)},
              {"completeness_s", completeness}};
}

struct Decoder {
  std::shared_ptr<const tts::Flow> flow;
  std::shared_ptr<const tts::Hift> hift;
  double flow_operations_per_frame = 0,
         hift_operations_per_frame = 0;  ///< multiplications and additions of the convolutions and linear layers
};

/// Operations of a network: every weight is multiplied and added once per row it is applied to. Attention scores are
/// not counted.
double operations(const checkpoint::TensorMap& tensors, const std::function<double(const std::string& name)>& rows) {
  double sum = 0;
  for (const auto& [name, t] : tensors)
    if (t.shape.size() > 1 && (name.ends_with("weight") || name.ends_with("weight_v")) &&
        name.find("embedding") == std::string::npos)
      sum += 2 * static_cast<double>(t.elements()) * rows(name);
  return sum;
}

void count_operations(Decoder& d, const checkpoint::TensorMap& flow, const checkpoint::TensorMap& hift,
                      const json& config) {
  const auto& f = config.at("flow");
  const double tokens =
      f.at("input_frame_rate").get<double>() / (static_cast<double>(tts::kMelRate) / tts::kHop);  // per mel frame
  const auto levels = static_cast<int>(f.at("estimator").at("channels").size());
  const double calls = 10.0 * (f.at("cfm").value("inference_cfg_rate", 0.7) > 0 ? 2 : 1);
  d.flow_operations_per_frame = operations(flow, [&](const std::string& name) {
    if (name.starts_with("encoder")) return tokens;
    if (name.starts_with("length_regulator")) return 1.0;
    if (!name.starts_with("decoder.estimator.") || name.find("time_mlp") != std::string::npos ||
        name.find(".mlp.1.") != std::string::npos)
      return 0.0;   // once per call, not per frame
    int level = 0;  // the U-Net halves the frames once per level below the first
    if (const auto at = name.find("down_blocks."); at != std::string::npos)
      level = name[at + 12] - '0';
    else if (name.find("mid_blocks.") != std::string::npos)
      level = levels - 1;
    else if (const auto up = name.find("up_blocks."); up != std::string::npos)
      level = levels - 1 - (name[up + 10] - '0');
    return calls / (1 << level);
  });
  const auto rates = config.at("hift").at("upsample_rates").get<std::vector<int>>();
  const auto per_level = config.at("hift").at("resblock_kernel_sizes").size();
  auto frames_at = [&](std::size_t level) {
    double n = 1;
    for (std::size_t i = 0; i < level; ++i) n *= rates[i];
    return n;
  };
  auto index_of = [](const std::string& name) {
    return static_cast<std::size_t>(std::stoi(name.substr(name.find('.') + 1)));
  };
  d.hift_operations_per_frame = operations(hift, [&](const std::string& name) {
    if (name.starts_with("ups.")) return frames_at(index_of(name));
    if (name.starts_with("resblocks.")) return frames_at(index_of(name) / per_level + 1);
    if (name.starts_with("source_")) return frames_at(index_of(name) + 1);
    if (name.starts_with("conv_post")) return frames_at(rates.size());
    return 1.0;  // F0 predictor, conv_pre
  });
}

/// Multiply-add rate of a 1024 × 1024 × 1024 matrix product with the threads in use: what libtorch's own GEMM reaches
/// here.
double gemm_rate(int threads) {
  at::set_num_threads(threads);
  const auto a = at::randn({1024, 1024}), b = at::randn({1024, 1024});
  const auto seconds = measure(9, [&] { at::mm(a, b); }).median;
  at::set_num_threads(1);
  return 2.0 * 1024 * 1024 * 1024 / seconds;
}

Result<Decoder> decoder_of(const BenchOptions& o) {
  const auto dtype = o.bf16 ? at::kBFloat16 : at::kFloat;
  if (o.random_weights.empty()) {
    PARLANDO_TRY(const auto loaded,
                 tts::SpeechDecoder::load(o.model_path / "Step-Audio-TTS-3B/CosyVoice-300M-25Hz", dtype));
    const auto folder = o.model_path / "Step-Audio-TTS-3B/CosyVoice-300M-25Hz";
    Decoder out{std::shared_ptr<const tts::Flow>(loaded, &loaded->flow()), loaded->hift()};
    PARLANDO_TRY(const auto flow, checkpoint::read_safetensors(folder / "flow.safetensors"));
    PARLANDO_TRY(const auto hift, checkpoint::read_safetensors(folder / "hift.safetensors"));
    PARLANDO_TRY(const auto c, config_of(folder / "config.json"));
    count_operations(out, flow.tensors, hift.tensors, c);
    return out;
  }
  PARLANDO_TRY(const auto c, config_of(o.random_weights));
  auto flow = random_flow(c), hift = random_hift(c);
  Decoder out;
  count_operations(out, flow, hift, c);
  out.flow = std::make_shared<tts::Flow>(std::move(flow), c, "random flow weights", dtype),
  out.hift = std::make_shared<tts::Hift>(std::move(hift), c, "random vocoder weights");
  return out;
}

Result<json> bench_decoder(const BenchOptions& o) {
  const bool with_flow = o.name != "vocoder", with_hift = o.name != "flow";
  PARLANDO_TRY(const auto decoder, decoder_of(o));
  const auto tokens_count = static_cast<std::int64_t>(std::llround(o.seconds * decoder.flow->token_rate() / 5) * 5);
  const auto frames = decoder.flow->frames_of(tokens_count);
  const auto tokens = at::arange(tokens_count).remainder(decoder.flow->vocabulary());
  const auto prompt_count =
      static_cast<std::int64_t>(std::llround(o.prompt_seconds * decoder.flow->token_rate() / 5) * 5);
  const auto prompt_frames = decoder.flow->frames_of(prompt_count);
  const auto embedding = at::ones({1, 192}), prompt = at::arange(prompt_count).remainder(decoder.flow->vocabulary()),
             prompt_mel = at::randn({1, prompt_frames, 80}) - 5, z = tts::flow_noise(1, 0, 0, prompt_frames + frames);
  at::Tensor mel = at::randn({1, 80, frames}) - 5;
  const tts::SourceNoise noise(1);
  const auto source_noise = noise.noise(0, frames * tts::kHop);
  const auto phase = noise.phase();
  json out{{"bench", o.name},
           {"seconds", o.seconds},
           {"threads", o.threads},
           {"prompt_seconds", o.prompt_seconds},
           {"bf16", o.bf16}};
  const double audio = static_cast<double>(frames * tts::kHop) / tts::kMelRate;
  fmt::print("decoder, {:.2f} s of speech, {} thread(s), {}\n", audio, o.threads,
             o.bf16 ? "estimator of the flow in bf16" : "fp32");
  Spread flow, hift;
  const double gemm = gemm_rate(o.threads);
  auto share = [&](const char* key, double per_frame, std::int64_t count, const Spread& s) {
    const double rate = per_frame * static_cast<double>(count) / s.median;
    fmt::print("{:30}{:.1f} of {:.1f} GFLOP/s of a 1024³ matrix product: {:.0f} %\n", "", rate / 1e9, gemm / 1e9,
               100 * rate / gemm);
    out[key] = rate / gemm;
  };
  if (with_flow) {
    flow = measure(o.runs, [&] { mel = decoder.flow->mel(tokens, prompt, prompt_mel, embedding, z); });
    fmt::print("  flow, prompt of {:4.1f} s      {:9.1f} ms ({:.1f}…{:.1f})   real-time factor {:.3f}\n",
               static_cast<double>(prompt_frames * tts::kHop) / tts::kMelRate, 1e3 * flow.median, 1e3 * flow.low,
               1e3 * flow.high, flow.median / audio);
    out["flow_s"] = spread_json(flow);
    share("flow_gemm_share", decoder.flow_operations_per_frame, prompt_frames + frames, flow);
  }
  if (with_hift) {
    hift = measure(o.runs, [&] { (*decoder.hift)(mel, phase, source_noise); });
    fmt::print("  vocoder                     {:9.1f} ms ({:.1f}…{:.1f})   real-time factor {:.3f}\n",
               1e3 * hift.median, 1e3 * hift.low, 1e3 * hift.high, hift.median / audio);
    out["vocoder_s"] = spread_json(hift);
    share("vocoder_gemm_share", decoder.hift_operations_per_frame, frames, hift);
  }
  fmt::print("  peak memory {:.2f} GB\n", static_cast<double>(peak_memory_bytes()) / 1e9);
  out["peak_bytes"] = peak_memory_bytes();
  if (o.name == "tts" && o.random_weights.empty()) {
    PARLANDO_TRY(const auto speech, bench_first_audio(o.model_path, o.threads, o.runs));
    out.update(speech);
  }
  return out;
}

Result<json> bench_speaker(const BenchOptions& o) {
  std::shared_ptr<const tts::CamPlus> net;
  if (o.random_weights.empty()) {
    PARLANDO_TRY(const auto loaded,
                 tts::SpeechDecoder::load(o.model_path / "Step-Audio-TTS-3B/CosyVoice-300M-25Hz", at::kFloat));
    net = loaded->speaker();
    if (!net) return fail(Errc::not_found, "'{}' has no speaker encoder", o.model_path.string());
  } else {
    PARLANDO_TRY(const auto c, config_of(o.random_weights));
    net = std::make_shared<tts::CamPlus>(random_campplus(c), "random speaker encoder");
  }
  const auto wave = speechlike(o.seconds, 16000);
  std::string error;
  const auto s = measure(o.runs, [&] {
    if (const auto done = (*net)(wave); !done) error = done.error().message;
  });
  if (!error.empty()) return fail(Errc::internal, "{}", error);
  fmt::print(
      "speaker encoder, {:.1f} s of audio, {} thread(s), fp32\n  embedding   {:9.1f} ms ({:.1f}…{:.1f})   real-time "
      "factor {:.3f}\n",
      o.seconds, o.threads, 1e3 * s.median, 1e3 * s.low, 1e3 * s.high, s.median / o.seconds);
  return json{{"bench", "speaker"}, {"embedding_s", spread_json(s)}, {"real_time_factor", s.median / o.seconds}};
}

}  // namespace

Result<json> run_bench(const BenchOptions& o) try {
  const c10::InferenceMode guard;
  auto& pool = kernels::Pool::of_process();
  if (o.threads > pool.cores()) pool.set_cores(o.threads);  // whoever measures says how many
  nn::use_threads(o.threads);
  if (o.name == "tokenizer") return bench_tokenizer(o);
  if (o.name == "lm") return bench_lm(o);
  if (o.name == "speaker") return bench_speaker(o);
  if (o.name == "flow" || o.name == "vocoder" || o.name == "tts") return bench_decoder(o);
  return fail(Errc::invalid_argument,
              "there is no benchmark '{}'; the benchmarks are tokenizer, lm, flow, vocoder, tts, speaker", o.name);
} catch (const Failure& failure) {
  return tl::make_unexpected(failure.error);
} catch (const std::exception& e) {
  return fail(Errc::internal, "the benchmark failed: {}", e.what());
}

}  // namespace parlando::cli
