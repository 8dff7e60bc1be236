#include "services/tts/model/speech_decoder.hpp"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "common/audio/front_end.hpp"
#include "common/audio/resampler.hpp"
#include "common/base/codes.hpp"
#include "common/checkpoint/import.hpp"
#include "common/checkpoint/safetensors.hpp"
#include "common/tensor/torch_bridge.hpp"

namespace parlando::tts {

namespace {
at::Tensor tokens_of(const std::vector<std::int64_t>& ids) { return at::tensor(ids, at::kLong); }
at::Tensor hamming(std::int64_t n) {  // numpy's, symmetric
  auto out = at::empty({n}, at::kDouble);
  for (std::int64_t i = 0; i < n; ++i)
    out.data_ptr<double>()[i] =
        0.54 - 0.46 * std::cos(2.0 * M_PI * static_cast<double>(i) / static_cast<double>(n - 1));
  return out.to(at::kFloat);
}
}  // namespace

Result<VoicePrompt> make_prompt(std::span<const float> wave, int rate, const CamPlus& speaker) {
  if (rate < 16000)
    return fail(Errc::invalid_argument, "a voice prompt at {} Hz cannot be used, at least 16000 Hz is needed", rate);
  const auto wave16 = audio::resample(wave, rate, 16000), wave22 = audio::resample(wave, rate, kMelRate);
  const auto mel = audio::prompt_mel(wave22);
  if (mel.frames < 1)
    return fail(Errc::invalid_argument, "a voice prompt of {:.3f} s is too short, at least 0.05 s is needed",
                static_cast<double>(wave.size()) / rate);
  VoicePrompt out;
  out.mel = tensor::from_values(mel.values, {1, mel.frames, mel.bins});
  PARLANDO_TRY(out.embedding, speaker(wave16));
  return out;
}

Result<std::shared_ptr<const SpeechDecoder>> SpeechDecoder::load(const std::filesystem::path& directory,
                                                                 at::ScalarType dtype) try {
  if (!std::filesystem::is_directory(directory))
    return fail(Errc::not_found,
                "'{}' is not a directory; a vocoder directory holds config.json, flow.safetensors, hift.safetensors",
                directory.string());
  PARLANDO_TRY(const auto config, checkpoint::read_vocoder_config(directory));
  PARLANDO_TRY(auto flow, checkpoint::read_safetensors(directory / "flow.safetensors"));
  PARLANDO_TRY(auto hift, checkpoint::read_safetensors(directory / "hift.safetensors"));
  auto out = std::make_shared<SpeechDecoder>();
  out->flow_ =
      std::make_shared<Flow>(std::move(flow.tensors), config, (directory / "flow.safetensors").string(), dtype);
  out->hift_ = std::make_shared<Hift>(std::move(hift.tensors), config, (directory / "hift.safetensors").string());
  if (std::filesystem::exists(directory / "campplus.safetensors")) {
    PARLANDO_TRY(auto speaker, checkpoint::read_safetensors(directory / "campplus.safetensors"));
    out->speaker_ =
        std::make_shared<CamPlus>(std::move(speaker.tensors), (directory / "campplus.safetensors").string());
  }
  return out;
} catch (const Failure& failure) {
  return tl::make_unexpected(failure.error);
} catch (const nlohmann::json::exception& e) {
  return fail(Errc::bad_format, "configuration of '{}': {}", directory.string(), e.what());
} catch (const std::exception& e) {
  return fail(Errc::internal, "loading '{}' failed: {}", directory.string(), e.what());
}

at::Tensor flow_noise(std::uint64_t seed, std::uint64_t stream, std::int64_t first, std::int64_t frames) {
  auto out = at::empty({1, kMelBins, frames});
  for (std::int64_t c = 0; c < kMelBins; ++c)
    fill_normal(seed, 1000 * (stream + 1) + static_cast<std::uint64_t>(c), first,
                {out.data_ptr<float>() + c * frames, static_cast<std::size_t>(frames)});
  return out;
}

at::Tensor fade_in_out(const at::Tensor& fresh, const at::Tensor& old, const at::Tensor& window) {
  const auto k = window.size(0) / 2;
  auto out = fresh.clone();
  out.narrow(-1, 0, k).copy_(fresh.narrow(-1, 0, k) * window.narrow(0, 0, k) +
                             old.narrow(-1, old.size(-1) - k, k) * window.narrow(0, k, k));
  return out;
}

Result<std::vector<float>> SpeechDecoder::synthesise(const std::vector<std::int32_t>& codes, const VoicePrompt& prompt,
                                                     std::uint64_t seed) const try {
  const c10::InferenceMode guard;
  const auto tokens = flow_->usable(codes), prompt_tokens = flow_->usable(prompt.codes);
  const auto frames = flow_->frames_of(static_cast<std::int64_t>(tokens.size())), prompt_frames = prompt.mel.size(1);
  if (frames == 0) return std::vector<float>{};
  const auto z = at::cat({flow_noise(seed, 1, 0, prompt_frames), flow_noise(seed, 0, 0, frames)}, 2);
  const auto mel = flow_->mel(tokens_of(tokens), tokens_of(prompt_tokens), prompt.mel, prompt.embedding, z);
  const SourceNoise noise(seed);
  return tensor::to_values((*hift_)(mel, noise.phase(), noise.noise(0, frames * kHop)).wave);
} catch (const std::exception& e) {
  return fail(Errc::internal, "synthesis of {} codes failed: {}", codes.size(), e.what());
}

SpeechStream::SpeechStream(std::shared_ptr<const SpeechDecoder> decoder, VoicePrompt prompt, Options options)
    : decoder_(std::move(decoder)),
      prompt_(std::move(prompt)),
      options_(options),
      vocoder_(
          decoder_->hift(), SourceNoise(options.seed).phase(),
          [noise = SourceNoise(options.seed)](std::int64_t first, std::int64_t n) { return noise.noise(first, n); }),
      hop_groups_(options.first_hop_groups) {
  const c10::InferenceMode guard;
  const auto& flow = decoder_->flow();
  per_group_ = flow.single_codebook() ? kSemanticPerGroup : kCodesPerGroup;
  speaker_ = flow.speaker(prompt_.embedding);
  prompt_tokens_ = tokens_of(flow.usable(prompt_.codes));
  prompt_noise_ = flow_noise(options.seed, 1, 0, prompt_.mel.size(1));
  cut_prompt();
  context_mel_ = at::zeros({kMelBins, 0});
}

/// The first window computes the prompt, encoder and regulator in every one. What is kept are its last whole groups
/// with their share of the mel and of the noise, so that they are to the speech behind them what they are in the whole
/// prompt.
void SpeechStream::cut_prompt() {
  const auto frames = prompt_.mel.size(1), tokens = prompt_tokens_.size(0);
  if (frames <= kPromptFramesMax || tokens == 0) return;
  const auto kept_tokens =
      std::min(tokens, std::max<std::int64_t>(1, kPromptFramesMax * tokens / frames / per_group_) * per_group_);
  const auto kept_frames = std::min(kPromptFramesMax, kept_tokens * frames / tokens);
  prompt_.mel = prompt_.mel.narrow(1, frames - kept_frames, kept_frames).clone();
  prompt_noise_ = prompt_noise_.narrow(2, frames - kept_frames, kept_frames).clone();
  prompt_tokens_ = prompt_tokens_.narrow(0, tokens - kept_tokens, kept_tokens).clone();
}

std::int64_t SpeechStream::frame_of(std::int64_t token) const {
  return static_cast<std::int64_t>(
      std::floor(static_cast<double>(token) * 22050 / (256 * decoder_->flow().token_rate())));
}

/// @return mel of the window, or of what stands behind the prompt
at::Tensor SpeechStream::solve(Window w, bool last) {
  const auto& flow = decoder_->flow();
  const auto frames = w.z.size(2), known = prompt_.mel.size(1) / flow.stride() * flow.stride();
  const bool first = !first_window_.z.defined();
  if (known == 0 || (first && last)) {
    evaluated_frames_ += frames, evaluated_pairs_ += frames * frames;
    return flow.solve(w.z, w.mu, speaker_, w.cond)[0];
  }
  FlowPast past;
  if (first) {
    first_window_ = std::move(w);
    const auto mel = first_window(past);
    keep_past(std::move(past));
    return mel;
  }
  if (past_.frames == 0) first_window(past);
  const auto behind = [&](const at::Tensor& x) { return x.narrow(2, known, frames - known); };
  evaluated_frames_ += frames - known, evaluated_pairs_ += (frames - known) * frames;
  auto mel =
      flow.solve_behind(past_.frames == 0 ? past : past_, behind(w.z), behind(w.mu), speaker_, behind(w.cond))[0];
  if (last) forget_past();
  return mel;
}

at::Tensor SpeechStream::first_window(FlowPast& past) {
  const auto& flow = decoder_->flow();
  const auto& w = first_window_;
  const auto frames = w.z.size(2), known = prompt_.mel.size(1) / flow.stride() * flow.stride();
  evaluated_frames_ += frames, evaluated_pairs_ += frames * frames;
  return flow.solve(w.z, w.mu, speaker_, w.cond, known, past)[0];
}

void SpeechStream::keep_past(FlowPast past) {
  const auto bytes = past.bytes();
  if (options_.memory && !options_.memory->take(bytes)) return;
  past_ = std::move(past);
  past_bytes_taken_ = bytes;
}

void SpeechStream::forget_past() {
  past_ = {};
  if (options_.memory) options_.memory->give(std::exchange(past_bytes_taken_, 0));
}

std::vector<float> SpeechStream::chunk(std::int64_t hop, std::int64_t lookahead) {
  const auto& flow = decoder_->flow();
  const auto P = prompt_tokens_.size(0), F1 = prompt_.mel.size(1);
  const auto context = std::min<std::int64_t>(committed_tokens_ - token_first_,
                                              static_cast<std::int64_t>(options_.context_groups) * per_group_);
  const auto start = committed_tokens_ - context, edge = committed_tokens_ + hop, end = edge + lookahead;
  const std::vector<std::int64_t> window(tokens_.begin() + (start - token_first_),
                                         tokens_.begin() + (end - token_first_));
  const auto h = flow.encode(at::cat({prompt_tokens_, tokens_of(window)}));
  const auto f_start = frame_of(start), f_now = frame_of(committed_tokens_), f_edge = frame_of(edge),
             f_end = frame_of(end);
  // Each part is stretched on its own, so that a token's frames do not depend on what else is in the window.
  auto part = [&](std::int64_t from, std::int64_t to) {
    return Flow::stretch(h.narrow(0, P + from - start, to - from), frame_of(to) - frame_of(from));
  };
  const auto mu = flow.regulate(at::cat({Flow::stretch(h.narrow(0, 0, P), F1), part(start, committed_tokens_),
                                         part(committed_tokens_, edge), part(edge, end)},
                                        2));
  auto cond = at::zeros_like(mu);
  cond.narrow(2, 0, F1).copy_(prompt_.mel.transpose(1, 2));
  if (f_now > f_start)
    cond[0]
        .narrow(1, F1, f_now - f_start)
        .copy_(context_mel_.narrow(1, context_mel_.size(1) - (f_now - f_start), f_now - f_start));
  const auto z = at::cat({prompt_noise_, flow_noise(options_.seed, 0, f_start, f_end - f_start)}, 2);
  const auto mel = solve({z, mu, cond}, lookahead == 0);
  const auto place = mel.size(1) - (f_end - f_start);  // of the context in what was computed
  const auto fresh = mel.narrow(1, place + f_now - f_start, f_edge - f_now),
             guess = mel.narrow(1, place + f_edge - f_start, f_end - f_edge);
  auto out = vocoder_.push_now(fresh, guess);
  context_mel_ = at::cat({context_mel_, fresh}, 1);
  committed_tokens_ = edge;
  committed_frames_ = f_edge;
  const auto keep_from = std::max<std::int64_t>(
      token_first_, committed_tokens_ - static_cast<std::int64_t>(options_.context_groups) * per_group_);
  tokens_.erase(tokens_.begin(), tokens_.begin() + (keep_from - token_first_));
  token_first_ = keep_from;
  const auto keep_frames = f_edge - frame_of(keep_from);
  context_mel_ = context_mel_.narrow(1, context_mel_.size(1) - keep_frames, keep_frames).clone();
  return out;
}

Result<std::vector<float>> SpeechStream::push(std::span<const std::int32_t> codes) try {
  const c10::InferenceMode guard;
  const auto fresh = decoder_->flow().usable({codes.begin(), codes.end()}, &dropped_);
  tokens_.insert(tokens_.end(), fresh.begin(), fresh.end());
  if (!pending()) return std::vector<float>{};
  // Every chunk computes context and look-ahead again, so small ones cost most: each is as large as the lead
  // allows, what has been sent and not yet played. The lead is reckoned, not measured, so that edges depend on nothing
  // but position: another replica makes the same samples.
  auto out = chunk(static_cast<std::int64_t>(hop_groups_) * per_group_,
                   static_cast<std::int64_t>(options_.lookahead_groups) * per_group_);
  affordable_groups_ += options_.speed * hop_groups_;
  hop_groups_ = std::max(1, static_cast<int>(std::min<double>(options_.hop_groups_max, affordable_groups_)));
  affordable_groups_ -= hop_groups_;
  return out;
} catch (const std::exception& e) {
  return fail(Errc::internal, "streaming synthesis failed: {}", e.what());
}

std::int64_t SpeechStream::waiting() const {
  return token_first_ + static_cast<std::int64_t>(tokens_.size()) - committed_tokens_;
}
bool SpeechStream::pending() const {
  return waiting() >= static_cast<std::int64_t>(hop_groups_ + options_.lookahead_groups) * per_group_;
}

Result<std::vector<float>> SpeechStream::finish() try {
  const c10::InferenceMode guard;
  std::vector<float> out;
  while (pending()) {
    PARLANDO_TRY(const auto part, push({}));
    out.insert(out.end(), part.begin(), part.end());
  }
  if (const auto left = waiting() / per_group_ * per_group_; left > 0) {
    const auto part = chunk(left, 0);
    out.insert(out.end(), part.begin(), part.end());
  }
  const auto rest = vocoder_.finish();
  out.insert(out.end(), rest.begin(), rest.end());
  return out;
} catch (const std::exception& e) {
  return fail(Errc::internal, "streaming synthesis failed: {}", e.what());
}

SpeechStreamV1::Options SpeechStreamV1::options_for(double rate, bool aligned) {
  Options o;
  o.token_hop = static_cast<std::int64_t>(2 * rate);
  o.mel_overlap = static_cast<std::int64_t>(20 / rate * 22050 / 256);
  o.flow_cache_tail = aligned ? o.mel_overlap : 34;
  return o;
}

SpeechStreamV1::SpeechStreamV1(std::shared_ptr<const SpeechDecoder> decoder, VoicePrompt prompt, Options options,
                               Noise noise)
    : decoder_(std::move(decoder)), prompt_(std::move(prompt)), options_(options), noise_(std::move(noise)) {
  speaker_ = decoder_->flow().speaker(prompt_.embedding);
  prompt_tokens_ = tokens_of(decoder_->flow().usable(prompt_.codes));
  mel_window_ = hamming(2 * options_.mel_overlap), speech_window_ = hamming(2 * options_.source_cache);
}

Result<std::vector<std::vector<float>>> SpeechStreamV1::push(std::span<const std::int64_t> tokens, bool last,
                                                             const Trace& trace) try {
  const c10::InferenceMode guard;
  queue_.insert(queue_.end(), tokens.begin(), tokens.end());
  std::vector<std::vector<float>> out;
  while (static_cast<std::int64_t>(queue_.size()) >= options_.token_hop + options_.token_overlap) {
    out.push_back(
        chunk(tokens_of({queue_.begin(), queue_.begin() + options_.token_hop + options_.token_overlap}), false, trace));
    queue_.erase(queue_.begin(), queue_.begin() + options_.token_hop);
  }
  if (last) out.push_back(chunk(tokens_of(queue_), true, trace)), queue_.clear();
  return out;
} catch (const std::exception& e) {
  return fail(Errc::internal, "streaming synthesis failed: {}", e.what());
}

std::vector<float> SpeechStreamV1::chunk(const at::Tensor& tokens, bool last, const Trace& trace) {
  const auto& flow = decoder_->flow();
  const auto P = prompt_tokens_.size(0), T = tokens.size(0), F1 = prompt_.mel.size(1), F2 = flow.frames_of(T);
  const auto h = flow.encode(at::cat({prompt_tokens_, tokens}));
  auto mu =
      flow.regulate(at::cat({Flow::stretch(h.narrow(0, 0, P), F1), flow.stretch_v1(h.narrow(0, P, T), F2)}, 2)).clone();
  auto z = noise_.flow(count_, F1 + F2).clone();
  if (z_cache_.defined()) {
    const auto K = std::min(z_cache_.size(2), F1 + F2);
    z.narrow(2, 0, K).copy_(z_cache_.narrow(2, 0, K)), mu.narrow(2, 0, K).copy_(mu_cache_.narrow(2, 0, K));
  }
  auto cached = [&](const at::Tensor& x) {
    return at::cat({x.narrow(2, 0, F1), x.narrow(2, x.size(2) - options_.flow_cache_tail, options_.flow_cache_tail)},
                   2);
  };
  if (F1 + F2 >= options_.flow_cache_tail) z_cache_ = cached(z), mu_cache_ = cached(mu);
  auto cond = at::zeros_like(mu);
  cond.narrow(2, 0, F1).copy_(prompt_.mel.transpose(1, 2));
  auto mel = flow.solve(z, mu, speaker_, cond).narrow(2, F1, F2);
  if (trace) trace(fmt::format("mel_{}", count_), mel);
  if (mel_tail_.defined()) mel = fade_in_out(mel, mel_tail_, mel_window_);
  at::Tensor cache_source;
  if (mel_cache_.defined()) mel = at::cat({mel_cache_, mel}, 2), cache_source = source_cache_;
  if (!last) {
    mel_tail_ = mel.narrow(2, mel.size(2) - options_.mel_overlap, options_.mel_overlap).clone();
    mel = mel.narrow(2, 0, mel.size(2) - options_.mel_overlap);
  }
  const auto voiced =
      (*decoder_->hift())(mel, noise_.phase(count_), noise_.source(count_, mel.size(2) * kHop), cache_source);
  auto wave = voiced.wave.unsqueeze(0);
  if (speech_cache_.defined()) wave = fade_in_out(wave, speech_cache_, speech_window_);
  if (!last) {
    mel_cache_ = mel.narrow(2, mel.size(2) - options_.mel_cache, options_.mel_cache).clone();
    source_cache_ =
        voiced.source.narrow(2, voiced.source.size(2) - options_.source_cache, options_.source_cache).clone();
    speech_cache_ = wave.narrow(1, wave.size(1) - options_.source_cache, options_.source_cache).clone();
    wave = wave.narrow(1, 0, wave.size(1) - options_.source_cache);
  }
  if (trace) trace(fmt::format("wav_{}", count_), wave);
  ++count_;
  return tensor::to_values(wave);
}

}  // namespace parlando::tts
