#include <ATen/ATen.h>
#include <unistd.h>

#include "common/audio/audio_file.hpp"
#include "common/audio/front_end.hpp"
#include "common/audio/resampler.hpp"
#include "common/base/codes.hpp"
#include "common/checkpoint/import.hpp"
#include "common/checkpoint/onnx.hpp"
#include "common/checkpoint/torch_zip.hpp"
#include "common/tensor/torch_bridge.hpp"
#include "services/tokenizer/model/speech_tokenizer.hpp"
#include "tests/goldens_test/report.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::goldens {
namespace fs = std::filesystem;
using tokenizer::SpeechTokenizer;

namespace {

using tensor::to_values;

at::Tensor matrix(const audio::Features& f) { return tensor::from_values(f.values, {f.frames, f.bins}); }

/// Equal ids, or the runner-up where the reference's own margin is below `margin`.
void compare_ids(Report& report, const std::string& what, const std::vector<std::int32_t>& got,
                 const checkpoint::TensorMap& t, const std::string& key, double margin) {
  const auto want = ints_of(tensor_of(t, key));
  if (got.size() != want.size()) return report.fail(what, fmt::format("{} ids, expected {}", got.size(), want.size()));
  if (want.empty()) return;
  const auto runner_up = ints_of(tensor_of(t, key + "_runner_up"));
  const auto distance = tensor_of(t, key + "_dist").to(at::kDouble);
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double gap =
        (distance[static_cast<std::int64_t>(i)][1] - distance[static_cast<std::int64_t>(i)][0]).item<double>();
    if (got[i] != want[i] && !(gap < margin && got[i] == runner_up[i]))
      return report.fail(what, fmt::format("id {} is {}, expected {} (margin {:.2g})", i, got[i], want[i], gap));
  }
}

void compare_containers(Report& report, const fs::path& ckpt) {
  report.begin("containers", "model.pt, .onnx and .safetensors");
  auto same = [&](const checkpoint::TensorMap& a, const checkpoint::TensorMap& b, const std::string& what) {
    report.equal(what + " count", a.size() == b.size(), fmt::format("{} and {} tensors", a.size(), b.size()));
    for (const auto& [name, tensor] : a) {
      const auto found = b.find(name);
      if (found == b.end()) {
        report.fail(what, "'" + name + "' is missing");
        continue;
      }
      report.equal(what + " " + name,
                   tensor.shape == found->second.shape && tensor.bytes.size() == found->second.bytes.size() &&
                       std::equal(tensor.bytes.begin(), tensor.bytes.end(), found->second.bytes.begin()));
    }
  };
  for (const auto& entry : fs::recursive_directory_iterator(ckpt)) {
    const auto pt = entry.path();
    if (pt.extension() != ".pt" || !fs::exists(fs::path(pt).replace_extension(".safetensors"))) continue;
    auto torch = checkpoint::read_torch_file(pt);
    if (!torch) {
      report.fail(pt.filename(), torch.error().message);
      continue;
    }
    same(*torch, load_tensors(fs::path(pt).replace_extension(".safetensors")), "model.pt");
  }
  const auto onnx = ckpt / "speech_tokenizer_v1.onnx";
  if (fs::exists(onnx) && fs::exists(ckpt / "speech_tokenizer_v1.safetensors")) {
    auto graph = checkpoint::read_onnx(onnx);
    if (!graph) return report.fail("onnx", graph.error().message);
    auto weights = checkpoint::semantic_weights_of(*graph, onnx.string());
    if (!weights) return report.fail("onnx", weights.error().message);
    same(weights->tensors, load_tensors(ckpt / "speech_tokenizer_v1.safetensors"), "onnx");
  }
}

void front_end_tables(Report& report, const fs::path& file) {
  report.begin("frontend_tables", file.filename());
  const auto t = load_tensors(file);
  report.near("kaldi_mel_80x256", audio::kaldi_mel_filters(), tensor_of(t, "kaldi_mel_80x256"), {1e-5});
  report.near("whisper_mel_128x201", audio::slaney_mel_filters(128, 16000, 400), tensor_of(t, "whisper_mel_128x201"),
              {1e-6});
}

void resampling(Report& report, const fs::path& file, const nlohmann::json& pairs) {
  const auto t = load_tensors(file);
  for (const auto& [pair, info] : pairs.items()) {
    report.begin("resample", pair);
    const int from = std::stoi(pair.substr(0, pair.find('_'))), to = std::stoi(pair.substr(pair.find('_') + 1));
    const auto in = to_values(tensor_of(t, pair + ".in"));
    report.near("out", audio::resample(in, from, to), tensor_of(t, pair + ".out"), {2e-5});
    const auto kernel = audio::make_resample_kernel(from, to);
    report.near("kernel", kernel.values, tensor_of(t, pair + ".kernel"), {1e-7});
    report.equal("kernel width", kernel.width == info.at("kernel_width").get<int>());
    audio::StreamResampler stream(from, to);
    std::vector<float> pieces;
    for (std::size_t at = 0, n = 1; at < in.size(); at += n, n = n * 7 % 331 + 1) {
      const auto part = stream.push(std::span(in).subspan(at, std::min(n, in.size() - at)));
      pieces.insert(pieces.end(), part.begin(), part.end());
    }
    const auto rest = stream.finish();
    pieces.insert(pieces.end(), rest.begin(), rest.end());
    report.near("streamed", pieces, tensor_of(t, pair + ".out"), {2e-5});
  }
}

void debug_windows(Report& report, const SpeechTokenizer& tok, const checkpoint::TensorMap& t) {
  const auto& encoder = *tok.linguistic();
  auto state = encoder.start();
  for (int c = 0; t.contains(fmt::format("chunk{}.feats", c)); ++c) {
    const auto prefix = fmt::format("chunk{}.", c);
    std::map<std::string, at::Tensor> seen;
    const auto out = encoder.step({&state}, {tensor_of(t, prefix + "feats")},
                                  [&](const std::string& name, const at::Tensor& x) { seen[name] = x[0]; });
    const auto window = tensor_of(t, prefix + "enc_out_window");
    report.near(prefix + "enc_out_window", out[0], window.narrow(0, window.size(0) - out[0].size(0), out[0].size(0)),
                {1e-3});
    for (std::int64_t l = 0; l < encoder.layers(); ++l) {
      if (const auto key = fmt::format("{}layer{}.out", prefix, l); t.contains(key)) {
        const auto want = tensor_of(t, key);
        report.near(key, seen[fmt::format("layer{}.out", l)].narrow(0, 0, want.size(-2)),
                    want.reshape({want.size(-2), want.size(-1)}), {1e-3});
      }
      for (const auto& [name, cache] : {std::pair{"cache_k", &state.keys[l]}, {"cache_v", &state.values[l]}})
        if (const auto key = fmt::format("{}layer{}.{}", prefix, l, name); t.contains(key)) {
          const auto want = tensor_of(t, key);
          const auto flat =
              want.reshape({want.size(-3), want.size(-2), want.size(-1)}).transpose(0, 1).reshape({want.size(-2), -1});
          report.near(key, *cache, flat, {1e-3});
        }
    }
  }
}

/// Several sessions in one batch, packets of any size: the same ids as each alone.
void batched_sessions(Report& report, const SpeechTokenizer& tok, const std::vector<std::vector<float>>& waves) {
  report.begin("batched_sessions", fmt::format("{} sessions", waves.size()));
  const auto& encoder = *tok.linguistic();
  std::vector<tokenizer::LinguisticFrontEnd> fronts(waves.size());
  std::vector<tokenizer::LinguisticState> states(waves.size(), encoder.start());
  std::vector<std::vector<std::int32_t>> ids(waves.size());
  std::vector<std::size_t> at(waves.size(), 0);
  std::vector<bool> done(waves.size(), false);
  for (bool any = true; any;) {
    any = false;
    std::vector<std::vector<float>> rows(waves.size());
    for (std::size_t s = 0; s < waves.size(); ++s) {
      if (done[s]) continue;
      any = true;
      const auto packet = std::min<std::size_t>(3000 + 977 * s, waves[s].size() - at[s]);
      rows[s] = packet > 0 ? fronts[s].push(std::span(waves[s]).subspan(at[s], packet)) : fronts[s].finish();
      done[s] = packet == 0;
      at[s] += packet;
    }
    while (true) {
      std::vector<tokenizer::LinguisticState*> batch;
      std::vector<at::Tensor> fresh;
      std::vector<std::size_t> who;
      for (std::size_t s = 0; s < waves.size(); ++s) {
        const auto n = std::min<std::int64_t>(4, static_cast<std::int64_t>(rows[s].size()) / 560);
        if (n == 0) continue;
        auto x = at::empty({n, 560});
        std::copy_n(rows[s].begin(), n * 560, x.data_ptr<float>());
        rows[s].erase(rows[s].begin(), rows[s].begin() + n * 560);
        encoder.normalise(x);
        batch.push_back(&states[s]), fresh.push_back(x), who.push_back(s);
      }
      if (batch.empty()) break;
      const auto out = encoder.step(batch, fresh);
      for (std::size_t b = 0; b < who.size(); ++b) {
        const auto part = encoder.quantise(out[b]);
        ids[who[b]].insert(ids[who[b]].end(), part.begin(), part.end());
      }
    }
  }
  for (std::size_t s = 0; s < waves.size(); ++s)
    report.equal(fmt::format("session {}", s), ids[s] == encoder.quantise(encoder.encode(encoder.features(waves[s]))));
}

}  // namespace

bool run_tokenizer(const fs::path& folder) {
  Report report("tokenizer");
  const auto manifest = load_json(folder / "manifest.json");
  const TemporaryDirectory temporary;
  if (auto done = checkpoint::import_directory(folder / "ckpt", temporary.path()); !done) throw Failure{done.error()};
  auto loaded = SpeechTokenizer::load(temporary.path());
  if (!loaded) throw Failure{loaded.error()};
  const SpeechTokenizer& tok = **loaded;
  compare_containers(report, folder / "ckpt");
  if (fs::exists(folder / "frontend_tables.safetensors"))
    front_end_tables(report, folder / "frontend_tables.safetensors");
  resampling(report, folder / "resample.safetensors", manifest.at("resample"));
  std::vector<std::vector<float>> waves;
  for (const auto& [name, info] : manifest.at("cases").items()) {
    const bool light = info.value("light", false);
    report.begin(light ? "light" : "case", name);
    const auto t = load_tensors(folder / info.at("file").get<std::string>());
    for (const auto& [tensor, shape] : info.at("tensors").items())
      if (!t.contains(tensor)) report.fail(tensor, "listed in the manifest, missing in the file");
    auto recording = audio::read_audio(folder / info.at("wav").get<std::string>());
    if (!recording) throw Failure{recording.error()};
    auto wave16 = audio::resample(recording->wave, recording->rate, 16000);
    report.equal("n_samples_16k", wave16.size() == info.at("n_samples_16k").get<std::size_t>());
    if (t.contains("wav16k")) report.near("wav16k", wave16, tensor_of(t, "wav16k"), {2e-5});
    tokenizer::Preprocess options{info.at("trim").get<bool>(), info.at("energy_norm").get<bool>()};
    auto ready = tok.preprocess(recording->wave, recording->rate, options);
    if (!ready) throw Failure{ready.error()};
    report.equal("n_samples_pre", ready->size() == info.at("n_samples_pre").get<std::size_t>());
    if (options.trim && info.contains("librosa_trim_index")) {
      auto normal = wave16;
      if (options.energy_norm) audio::peak_normalise(normal);
      const auto trimmed = audio::trim_silence(normal);
      report.equal("trim index", trimmed.start == info["librosa_trim_index"][0].get<std::size_t>() &&
                                     trimmed.end == info["librosa_trim_index"][1].get<std::size_t>());
    }
    if (t.contains("wav_pre")) {
      report.near("wav_pre", *ready, tensor_of(t, "wav_pre"), {2e-5});
      *ready = to_values(
          tensor_of(t, "wav_pre"));  // each stage from the golden input, so that one error does not hide the next
    }
    if (t.contains("fbank")) {
      const auto want = tensor_of(t, "fbank");
      audio::Fbank fbank(audio::FbankWindow::hamming, 32768.0f);
      const auto got = matrix(fbank(*ready));
      if (got.size(0) < want.size(0))
        report.fail("fbank", "too few frames");
      else
        report.near("fbank", got.narrow(0, 0, want.size(0)), want, {1e-2, 0, 1e-4});
    }
    const auto features = tok.linguistic()->features(*ready);
    if (t.contains("feats")) report.near("feats", features, tensor_of(t, "feats"), {2e-3});
    if (t.contains("enc_out")) {
      report.near("enc_out", tok.linguistic()->encode(features), tensor_of(t, "enc_out"), {1e-3});
      report.near("enc_out from golden feats", tok.linguistic()->encode(tensor_of(t, "feats")), tensor_of(t, "enc_out"),
                  {1e-4});
      compare_ids(report, "vq02 from golden enc_out", tok.linguistic()->quantise(tensor_of(t, "enc_out")), t, "vq02",
                  1e-3);
    }
    const auto ids = tok.encode(*ready);
    if (!ids) throw Failure{ids.error()};
    compare_ids(report, "vq02", ids->linguistic, t, "vq02", 1e-3);
    compare_ids(report, "vq06", ids->semantic, t, "vq06", 1e-4);
    report.equal("linguistic_count", tokenizer::linguistic_count(static_cast<std::int64_t>(ready->size())) ==
                                         static_cast<std::int64_t>(ids->linguistic.size()));
    report.equal("semantic_count", tokenizer::semantic_count(static_cast<std::int64_t>(ready->size())) ==
                                       static_cast<std::int64_t>(ids->semantic.size()));
    const auto want_tokens = ints_of(tensor_of(t, "tokens"));
    auto codes = interleave(ints_of(tensor_of(t, "vq02")), ints_of(tensor_of(t, "vq06")));
    if (!codes) throw Failure{codes.error()};
    for (auto& code : *codes) code += 65536;
    report.equal("tokens", *codes == want_tokens);
    if (t.contains("mel")) {
      const auto piece =
          std::span<const float>(*ready).first(std::min<std::size_t>(ready->size(), tokenizer::kPieceSamples));
      report.near("mel", matrix(audio::whisper_log_mel(piece)).t(), tensor_of(t, "mel"), {5e-4});
      std::map<std::string, at::Tensor> seen;
      const auto hidden = tok.semantic().encode(tensor_of(t, "mel").t().contiguous(),
                                                [&](const std::string& n, const at::Tensor& x) { seen[n] = x; });
      if (t.contains("s3_hidden")) report.near("s3_hidden from golden mel", hidden, tensor_of(t, "s3_hidden"), {1e-4});
      for (const auto& [stage, x] : seen)
        if (t.contains(stage)) report.near(stage, x, tensor_of(t, stage), {1e-3});
    }
    for (const auto& [packet, samples] : info.at("packets").items()) {
      tokenizer::LinguisticStream stream(tok.linguistic());
      std::vector<std::int32_t> all, per_call;
      const auto size = samples.get<std::size_t>();
      for (std::size_t at = 0; at < ready->size(); at += size) {
        auto part = stream.push(std::span<const float>(*ready).subspan(at, std::min(size, ready->size() - at)));
        if (at + size >= ready->size()) {
          const auto tail = stream.finish();
          part.insert(part.end(), tail.begin(), tail.end());
        }
        per_call.push_back(static_cast<std::int32_t>(part.size()));
        all.insert(all.end(), part.begin(), part.end());
      }
      report.equal("stream." + packet + ".ids", all == ids->linguistic);
      report.equal("stream." + packet + ".ids_per_call",
                   per_call == ints_of(tensor_of(t, "stream." + packet + ".ids_per_call")));
    }
    if (t.contains("chunk0.feats")) debug_windows(report, tok, t);
    if (!ids->linguistic.empty() && waves.size() < 5) waves.push_back(*ready);
  }
  if (waves.size() > 1) batched_sessions(report, tok, waves);
  return report.print();
}

}  // namespace parlando::goldens
