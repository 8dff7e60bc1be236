#include <ATen/ATen.h>

#include <fstream>

#include "common/audio/front_end.hpp"
#include "common/audio/resampler.hpp"
#include "common/base/speech_tags.hpp"
#include "common/checkpoint/import.hpp"
#include "common/checkpoint/onnx.hpp"
#include "common/checkpoint/torch_zip.hpp"
#include "common/tensor/torch_bridge.hpp"
#include "services/tts/model/speech_decoder.hpp"
#include "tests/goldens_test/report.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::goldens {
namespace fs = std::filesystem;
using namespace tts;
using nlohmann::json;

namespace {

using tensor::to_values;

class Vocoder {
 public:
  Vocoder(const fs::path& folder, const json& manifest) : folder_(folder), manifest_(manifest) {}

  const SpeechDecoder& model(const std::string& key, at::ScalarType dtype = at::kFloat) {
    auto& slot = models_[key + (dtype == at::kFloat ? "" : " in bf16")];
    if (!slot) {
      const auto directory = folder_ / manifest_.at("models").at(key).at("dir").get<std::string>();
      const auto imported = temporary_.path() / key;
      if (auto done = checkpoint::import_directory(directory, imported); !done) throw Failure{done.error()};
      auto loaded = SpeechDecoder::load(imported, dtype);
      if (!loaded) throw Failure{loaded.error()};
      slot = *loaded;
    }
    return *slot;
  }
  std::shared_ptr<const SpeechDecoder> shared(const std::string& key) {
    model(key);
    return models_[key];
  }

  void containers(Report& report) {
    for (const auto& [key, info] : manifest_.at("models").items()) {
      report.begin("containers", key);
      const auto directory = folder_ / info.at("dir").get<std::string>();
      for (const auto& file : info.at("files"))
        if (!fs::exists(directory / file.get<std::string>()))
          report.fail(file.get<std::string>(), "listed in the manifest, missing");
      for (const char* part : {"flow", "hift"}) {
        const auto pt = directory / (std::string(part) + ".pt"),
                   safe = directory / (std::string(part) + ".safetensors");
        if (!fs::exists(pt) || !fs::exists(safe)) continue;
        const auto torch = checkpoint::read_torch_file(pt);
        if (!torch) {
          report.fail(part, torch.error().message);
          continue;
        }
        const auto want = load_tensors(safe);
        report.equal(std::string(part) + " count", torch->size() == want.size());
        for (const auto& [name, tensor] : want) {
          const auto found = torch->find(name);
          report.equal(name, found != torch->end() && found->second.shape == tensor.shape &&
                                 std::equal(found->second.bytes.begin(), found->second.bytes.end(),
                                            tensor.bytes.begin(), tensor.bytes.end()));
        }
      }
      if (fs::exists(directory / "cosyvoice.yaml") && fs::exists(directory / "config.json")) {
        const TemporaryDirectory only_yaml;
        fs::copy_file(directory / "cosyvoice.yaml", only_yaml.path() / "cosyvoice.yaml");
        const auto yaml = checkpoint::read_vocoder_config(only_yaml.path());
        if (!yaml) {
          report.fail("cosyvoice.yaml", yaml.error().message);
          continue;
        }
        const auto config = load_json(directory / "config.json");
        for (const char* part : {"flow", "hift"})
          for (const auto& [name, value] : config.at(part).items()) {
            if (!value.is_object()) {
              report.equal(name, yaml->at(part).contains(name) && yaml->at(part)[name] == value);
              continue;
            }
            for (const auto& [inner, x] : value.items())
              if (yaml->at(part).contains(name) && yaml->at(part)[name].contains(inner))
                report.equal(name + "." + inner, yaml->at(part)[name][inner] == x);
          }
      }
    }
  }

  void run(Report& report, const json& c) {
    run(report, c, at::kFloat);
    // What the reference computed in bf16 holds for both types of the estimator.
    const auto& params = c.at("params");
    if (params.value("dtype", "") == "bf16" && c.at("model").is_string()) run(report, c, at::kBFloat16);
  }

 private:
  void run(Report& report, const json& c, at::ScalarType dtype) {
    const auto kind = c.at("kind").get<std::string>(), name = c.at("name").get<std::string>();
    report.begin(kind + (dtype == at::kFloat ? "" : " bf16"), name);
    const auto t = load_tensors(folder_ / c.at("file").get<std::string>());
    for (const auto& [tensor, info] : c.at("tensors").items())
      if (!t.contains(tensor)) report.fail(tensor, "listed in the manifest, missing in the file");
    const auto& tol = c.at("tol");
    const auto& params = c.at("params");
    const auto key = c.at("model").is_string() ? c["model"].get<std::string>() : std::string();
    auto in = [&](const std::string& n) { return tensor_of(t, "in." + n); };
    const bool bf16 = params.value("dtype", "") == "bf16";
    auto tolerance = [&](const std::string& tensor) {
      Tolerance out{tol.value("atol", 0.0), tol.value("rtol", 0.0)};
      if (tensor.starts_with("mel") && tol.contains("mel_atol"))
        out = {tol["mel_atol"].get<double>(), tol.value("rtol", 0.0)};
      if (bf16 && kind != "schedule")
        out.mean = tol.contains("mel_mean_abs") ? tol["mel_mean_abs"].get<double>() : tol.value("mean_abs", 0.03);
      if (tensor.starts_with("wav") && tol.contains("min_snr_db")) out.snr_db = tol["min_snr_db"].get<double>();
      return out;
    };
    std::set<std::string> compared;
    auto out = [&](const std::string& n, const at::Tensor& got) {
      if (!t.contains("out." + n)) return;
      compared.insert(n);
      const auto want = tensor_of(t, "out." + n);
      report.near(n, got.numel() == want.numel() ? got.reshape(want.sizes()) : got, want, tolerance(n));
    };
    auto vector_out = [&](const std::string& n, const std::vector<float>& got) {
      out(n, tensor::from_values(got, {static_cast<std::int64_t>(got.size())}));
    };
    auto features = [](const audio::Features& f) { return tensor::from_values(f.values, {f.frames, f.bins}); };
    const auto trace = [&](const std::string& n, const at::Tensor& x) { out(n, x); };
    auto phase_of = [&](const at::Tensor& p) {
      std::array<float, kHarmonics> a{};
      const auto v = to_values(p);
      std::copy(v.begin(), v.end(), a.begin());
      return a;
    };

    if (kind == "resample") {
      vector_out("wav",
                 audio::resample(to_values(in("wav")), params.at("orig").get<int>(), params.at("new").get<int>()));
    } else if (kind == "mel") {
      const auto mel = audio::prompt_mel(to_values(in("wav")));
      out("feat", features(mel));
      if (t.contains("out.len")) {
        compared.insert("len");
        report.equal("len", ints_of(tensor_of(t, "out.len"))[0] == mel.frames);
      }
    } else if (kind == "fbank") {
      audio::Fbank fbank(audio::FbankWindow::povey, 1.0f);
      out("fbank", features(fbank(to_values(in("wav")))));
    } else if (kind == "speaker") {
      audio::Fbank fbank(audio::FbankWindow::povey, 1.0f);
      const auto frames = features(fbank(to_values(in("wav"))));
      out("fbank", frames);
      const auto centred = (frames - frames.mean(0, true)).unsqueeze(0);
      out("fbank_cmn", centred);
      // Both containers of the same network: torch names with all activations, and the exported graph.
      const auto directory = folder_ / manifest_.at("models").at(key).at("dir").get<std::string>();
      const CamPlus torch(load_tensors(directory / "campplus.safetensors"), "campplus.safetensors");
      out("embedding", torch.embed(centred, trace));
      const auto& imported = *model(key).speaker();
      out("embedding_onnx", imported.embed(centred));
      const auto whole = imported(to_values(in("wav")));
      if (!whole)
        report.fail("embedding", whole.error().message);
      else
        out("embedding", *whole);
    } else if (kind == "prompt") {
      const auto wave = to_values(in("wav"));
      const auto rate = params.at("sample_rate").get<int>();
      vector_out("wav16", audio::resample(wave, rate, 16000));
      vector_out("wav22", audio::resample(wave, rate, kMelRate));
      const auto prompt = make_prompt(wave, rate, *model(key).speaker());
      if (!prompt) return report.fail("prompt", prompt.error().message);
      out("speech_feat", prompt->mel), out("embedding", prompt->embedding);
    } else if (kind == "flow_encoder") {
      out("proj", model(key).flow().encode(in("token")[0], trace).unsqueeze(0));
    } else if (kind == "length_regulator" || kind == "length_regulator_v1") {
      const auto h = in("h")[0];
      const auto t1 = params.at("token_len1").get<std::int64_t>(), t2 = params.at("token_len2").get<std::int64_t>();
      const auto f1 = params.at("mel_len1").get<std::int64_t>(), f2 = params.at("mel_len2").get<std::int64_t>();
      const auto& flow = model(key).flow();
      const auto second = h.narrow(0, t1, t2);
      at::Tensor stretched;
      if (kind == "length_regulator") {
        stretched = Flow::stretch(second, f2);
      } else {  // the case carries its own token rate
        const auto rate = params.at("input_frame_rate").get<double>();
        const auto edge = static_cast<std::int64_t>(20 / rate * 22050 / 256);
        stretched = t2 > 40 ? at::cat({Flow::stretch(second.narrow(0, 0, 20), edge),
                                       Flow::stretch(second.narrow(0, 20, t2 - 40), f2 - 2 * edge),
                                       Flow::stretch(second.narrow(0, t2 - 20, 20), edge)},
                                      2)
                            : Flow::stretch(second, f2);
      }
      out("mu",
          flow.regulate(at::cat({Flow::stretch(h.narrow(0, 0, t1), f1), stretched}, 2)).transpose(1, 2).contiguous());
    } else if (kind == "mel_len") {
      for (const auto& row : params.at("rows"))
        report.equal(row.dump(), mel_frames(row.at("tokens").get<std::int64_t>(), row.at("rate").get<double>()) ==
                                     row.at("mel").get<std::int64_t>());
    } else if (kind == "schedule") {
      const auto s = flow_schedule(params.at("n_timesteps").get<int>(), bf16 ? ScheduleType::bf16 : ScheduleType::fp32);
      vector_out("t_span", s.span), vector_out("t", s.t), vector_out("dt", s.dt);
    } else if (kind == "estimator") {
      const auto dump = bf16 ? Flow::Trace{} : Flow::Trace(trace);
      out("y", model(key, dtype).flow().estimate(in("x"), in("mu"), in("t"), in("spks"), in("cond"), dump));
    } else if (kind == "cfm") {
      std::vector<at::Tensor> steps;
      const auto x = model(key).flow().solve(in("z"), in("mu"), in("spks"), in("cond"),
                                             [&](const std::string& n, const at::Tensor& v) {
                                               if (n == "x_step")
                                                 steps.push_back(v[0].clone());
                                               else
                                                 out(n, v);
                                             });
      out("x_steps", at::stack(steps)), out("x", x);
    } else if (kind == "flow" || kind == "tokens2wav") {
      const auto& m = model(key, dtype);
      const auto mel = m.flow().mel(in("token")[0], in("prompt_token")[0], in("prompt_feat"), in("embedding"), in("z"));
      out("mel", mel);
      if (kind == "tokens2wav" && !bf16)
        out("wav", (*m.hift())(mel, to_values(in("phase")), in("noise")[0]).wave);
      else
        compared.insert("wav");  // the README: waveforms of bf16 cases are not comparable
    } else if (kind == "f0") {
      out("f0", model(key).hift()->f0(in("mel")));
    } else if (kind == "source") {
      Hift::SourceState state;
      const auto& hift = *model(key).hift();
      out("source", hift.source(in("f0")[0], to_values(in("phase")), in("noise")[0], state));
      out("uv", (in("f0")[0] > hift.voiced_threshold()).repeat_interleave(kHop).to(at::kFloat));
      compared.insert(
          "sine");  // an intermediate that the fused kernel never materialises; `source` is its sum through l_linear
    } else if (kind == "hift_decode") {
      out("wav", model(key).hift()->decode(in("mel"), in("source"), trace));
    } else if (kind == "hift") {
      const auto w = (*model(key).hift())(in("mel"), to_values(in("phase")), in("noise")[0]);
      out("wav", w.wave), out("source", w.source);
    } else if (kind == "hift_cache") {
      const auto w = (*model(key).hift())(in("mel"), to_values(in("phase")), in("noise")[0], in("cache_source"));
      out("wav", w.wave), out("source", w.source);
    } else if (kind == "hift_tiled") {
      const auto mel = in("mel");
      const auto tile = in("noise_tile");
      const auto period = params.at("noise_period").get<std::int64_t>();
      auto noise = [tile, period](std::int64_t first, std::int64_t n) {
        return tile.index_select(1, at::arange(first, first + n).remainder(period));
      };
      const auto w = (*model(key).hift())(mel, to_values(in("phase")), noise(0, mel.size(2) * kHop));
      out("wav", w.wave), out("source", w.source);
      // Any chunking gives the same wave.
      for (const std::int64_t hop : {1, 2, 5, 13, 31}) {
        HiftStream stream(model(key).hift(), phase_of(in("phase")), noise);
        std::vector<float> joined;
        for (std::int64_t f = 0; f < mel.size(2); f += hop) {
          const auto part = stream.push(mel[0].narrow(1, f, std::min(hop, mel.size(2) - f)));
          joined.insert(joined.end(), part.begin(), part.end());
        }
        const auto rest = stream.finish();
        joined.insert(joined.end(), rest.begin(), rest.end());
        // F0 of another window differs in its last bits, and the phase adds that up: the case's own tolerance applies.
        report.near(fmt::format("chunks of {} against the reference", hop), joined, tensor_of(t, "out.wav").view({-1}),
                    tolerance("wav"));
        report.near(fmt::format("chunks of {} against the whole", hop), joined, w.wave,
                    {tolerance("wav").absolute, tolerance("wav").relative, -1, 50});
      }
    } else if (kind == "hift_clip") {
      auto copy = std::make_shared<Hift>(
          load_tensors(folder_ / manifest_.at("models").at(key).at("dir").get<std::string>() / "hift.safetensors"),
          *checkpoint::read_vocoder_config(folder_ / manifest_.at("models").at(key).at("dir").get<std::string>()),
          "hift");
      auto bias = copy->conv_post_bias().clone();
      bias.narrow(0, 0, params.at("channels").get<std::int64_t>()).add_(params.at("conv_post_bias_add").get<double>());
      copy->conv_post_bias() = bias;
      const auto wave = t.contains("in.source") ? copy->decode(in("mel"), in("source"))
                                                : (*copy)(in("mel"), to_values(in("phase")), in("noise")[0]).wave;
      out("wav", wave);
      report.equal("limit", wave.abs().max().item<double>() <= tol.at("max_abs").get<double>());
    } else if (kind == "stream") {
      stream(report, c, key, in, out);
    } else if (kind == "fade") {
      out("y", fade_in_out(in("fade_in"), in("fade_out"), in("window")));
    } else if (kind == "glue") {
      for (const auto& row : params.at("rows")) {
        const auto text = row.at("text").get<std::string>();
        report.equal(text + " instruction", leading_tag(text) == row.at("instruction").get<std::string>());
        for (const bool clone : {false, true}) {
          const auto mode = tts_mode(text, "Tingting", clone);
          report.equal(text + " model", (mode.vocoder == parlando::Vocoder::music
                                             ? "CosyVoice-300M-25Hz-Music"
                                             : "CosyVoice-300M-25Hz") == row.at("model").get<std::string>());
          const auto prompt = mode.system_prompt == "with_speaker"      ? "sys_prompt_with_spk"
                              : mode.system_prompt == "without_speaker" ? "sys_prompt_wo_spk"
                              : mode.system_prompt == "rap"             ? "sys_prompt_for_rap"
                                                                        : "sys_prompt_for_vocal";
          report.equal(text + " prompt",
                       row.at(clone ? "sys_prompt_clone" : "sys_prompt_tts").get<std::string>() == prompt, prompt);
          if (!clone) report.equal(text + " speaker", mode.speaker_key == row.at("tts_speaker_key").get<std::string>());
        }
      }
    } else {
      raise(Errc::unsupported, "case '{}' has the unknown kind '{}'", name, kind);
    }
    for (const auto& [tensor, info] : c.at("tensors").items())
      if (tensor.starts_with("out.") && !compared.contains(tensor.substr(4)))
        report.fail(tensor, "no value was computed for it");
  }

  template <class In, class Out>
  void stream(Report& report, const json& c, const std::string& key, In&& in, Out&& out) {
    const auto& p = c.at("params");
    SpeechStreamV1::Options o;
    o.token_hop = p.at("token_hop_len"), o.token_overlap = p.at("token_overlap_len"),
    o.mel_overlap = p.at("mel_overlap_len"), o.flow_cache_tail = p.at("flow_cache_tail");
    o.mel_cache = p.at("mel_cache_len"), o.source_cache = p.at("source_cache_len");
    auto decoder = shared(key);
    // The case may carry another token rate than the checkpoint's configuration.
    const auto rate = p.at("input_frame_rate").template get<double>();
    if (std::abs(rate - decoder->flow().token_rate()) > 1e-9) {
      const auto directory = folder_ / manifest_.at("models").at(key).at("dir").get<std::string>();
      const auto changed = temporary_.path() / fmt::format("{}-{}", key, rate);
      if (auto done = checkpoint::import_directory(directory, changed); !done) throw Failure{done.error()};
      auto config = load_json(changed / "config.json");
      config["flow"]["input_frame_rate"] = rate;
      config["flow"]["single_codebook"] = decoder->flow().single_codebook();
      std::ofstream(changed / "config.json") << config;
      auto loaded = SpeechDecoder::load(changed, at::kFloat);
      if (!loaded) throw Failure{loaded.error()};
      decoder = *loaded;
    }
    const auto z_tile = in("z_tile"), noise_tile = in("noise_tile"), phases = in("phase_table");
    SpeechStreamV1::Noise noise;
    noise.flow = [z_tile](int i, std::int64_t frames) {
      return z_tile.index_select(1, (at::arange(frames) + 37 * i).remainder(256)).unsqueeze(0);
    };
    noise.phase = [phases](int i) {
      std::array<float, kHarmonics> a{};
      const auto v = to_values(phases[i]);
      std::copy(v.begin(), v.end(), a.begin());
      return a;
    };
    noise.source = [noise_tile](int i, std::int64_t samples) {
      return noise_tile.index_select(1, (at::arange(samples) + 911 * i).remainder(5120));
    };
    VoicePrompt prompt;
    prompt.mel = in("prompt_feat"), prompt.embedding = in("embedding");
    for (const auto id : ints_of(in("prompt_token")))
      prompt.codes.push_back(id + (decoder->flow().single_codebook() ? 1024 : 0));
    SpeechStreamV1 stream(decoder, prompt, o, noise);
    const auto tokens = in("token")[0].contiguous();
    const auto chunks =
        stream.push({tokens.template data_ptr<std::int64_t>(), static_cast<std::size_t>(tokens.numel())}, true,
                    [&](const std::string& n, const at::Tensor& x) { out(n, x); });
    if (!chunks) return report.fail("stream", chunks.error().message);
    report.equal("chunks", chunks->size() == p.at("chunks").template get<std::size_t>());
  }

  fs::path folder_;
  json manifest_;
  TemporaryDirectory temporary_;
  std::map<std::string, std::shared_ptr<const SpeechDecoder>> models_;
};

}  // namespace

bool run_vocoder(const fs::path& folder) {
  Report report("vocoder");
  const auto manifest = load_json(folder / "manifest.json");
  Vocoder vocoder(folder, manifest);
  vocoder.containers(report);
  for (const auto& c : manifest.at("cases")) vocoder.run(report, c);
  return report.print();
}

}  // namespace parlando::goldens
