#include "services/tokenizer/model/live.hpp"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>

#include "common/base/codes.hpp"
#include "common/tensor/torch_bridge.hpp"

namespace parlando::tokenizer {

namespace {
constexpr std::size_t kBlockSamples = 7680;  // 480 ms: two windows of the linguistic branch, twelve semantic rows
constexpr std::size_t kStatesKept = 4;
constexpr std::int64_t kMelShift = 160, kMelReach = 200, kMelBins = 128, kRowMs = 40;
constexpr std::int64_t kPieceFrames = kPieceSamples / kMelShift;
const float kFbankFloor = std::log(1.1920928955078125e-7f);

float peak_of(std::span<const float> wave) {
  float peak = 0.01f;
  for (const float x : wave) peak = std::max(peak, std::fabs(x));
  return peak;
}
}  // namespace

template <class Make>
void FrameStore::read(std::int64_t from, std::int64_t to, std::vector<float>& out, Make&& make) {
  auto append = [&](const std::vector<float>& values) { out.insert(out.end(), values.begin(), values.end()); };
  if (from < first_) {  // forgotten: an end far behind what was heard
    const auto until = std::min(to, first_);
    append(make(from, until));
    from = until;
  }
  if (from >= to) return;
  if (from > end()) values_.clear(), first_ = from;
  if (to > end()) {
    const auto more = make(end(), to);
    values_.insert(values_.end(), more.begin(), more.end());
  }
  out.insert(out.end(), values_.begin() + (from - first_) * bins_, values_.begin() + (to - first_) * bins_);
}

void FrameStore::forget(std::int64_t before) {
  const auto gone = std::clamp<std::int64_t>(before - first_, 0, end() - first_);
  values_.erase(values_.begin(), values_.begin() + gone * bins_);
  first_ += gone;
}

LiveTokenizer::LiveTokenizer(std::shared_ptr<const SpeechTokenizer> tokenizer, Options options)
    : tokenizer_(std::move(tokenizer)),
      guard_rows_((options.guard_ms + kRowMs - 1) / kRowMs),
      fbank_(audio::FbankWindow::hamming, 32768.0f),
      fbank_frames_(audio::Fbank::kBins),
      mel_frames_(kMelBins) {
  State first;
  first.linguistic = tokenizer_->linguistic()->start();
  states_.push_back(std::move(first));
}

/// The first block is twice as long: the level that it finds is that of speech.
std::size_t LiveTokenizer::block_end(std::size_t begin) { return begin + (begin == 0 ? 2 : 1) * kBlockSamples; }

std::size_t LiveTokenizer::blocks_behind() const {
  std::size_t blocks = 0;
  for (auto end = block_end(latest().samples); end <= wave_.size(); end = block_end(end)) ++blocks;
  return blocks;
}

/// Stacked frames as the encoder takes them. @param usable  samples that may be looked at
at::Tensor LiveTokenizer::linguistic_rows(std::int64_t from, std::int64_t to, std::size_t usable, float gain) {
  const std::int64_t last = audio::Fbank::frames_of(usable) - 1, first = std::max<std::int64_t>(0, kSkip * from - 3);
  std::vector<float> frames;
  fbank_frames_.read(first, std::min(last, kSkip * (to - 1) + 3) + 1, frames, [&](std::int64_t a, std::int64_t b) {
    const auto begin = static_cast<std::size_t>(a) * audio::Fbank::kShift;
    const auto size = static_cast<std::size_t>(b - a - 1) * audio::Fbank::kShift + audio::Fbank::kFrame;
    return fbank_(std::span(wave_).subspan(begin, size)).values;
  });
  for (float& v : frames)
    if (v > kFbankFloor) v += gain;
  std::vector<float> rows;
  for (auto i = from; i < to; ++i)
    for (int k = 0; k < kStack; ++k) {
      const auto f = std::clamp<std::int64_t>(kSkip * i + k - 3, 0, last) - first;
      rows.insert(rows.end(), frames.begin() + f * audio::Fbank::kBins, frames.begin() + (f + 1) * audio::Fbank::kBins);
    }
  auto out = tensor::from_values(rows, {to - from, kStack * audio::Fbank::kBins});
  tokenizer_->linguistic()->normalise(out);
  return out;
}

/// On its way through the encoders; the reading is a copy until both have taken it.
struct LiveTokenizer::Part {
  LiveTokenizer& live;
  Reading next;
  std::size_t end;  ///< of the part
  bool last;
  bool semantic_done = false, piece_ends = false;  ///< `piece_ends`: with what the semantic branch reads now
  std::size_t open = 0;                            ///< of that, rows that are not settled
};

std::int64_t LiveTokenizer::Reading::rows() const {
  const auto end = static_cast<std::int64_t>(part_end());
  const auto ids = linguistic_count(end) - (state_.linguistic.position - 1);
  const auto windows = (std::max<std::int64_t>(0, ids) + kNewRows - 1) / kNewRows;
  return std::max(windows * kWindowRows, semantic_count(end - state_.piece * kPieceSamples) - state_.semantic.rows);
}

void LiveTokenizer::read_linguistic(std::vector<Part>& parts) {
  std::vector<LinguisticState*> states;
  std::vector<at::Tensor> rows;
  std::vector<Part*> readers;
  for (auto& part : parts) {
    auto& s = part.next.state_;
    s.peak = std::max(s.peak, peak_of(std::span(part.live.wave_).subspan(s.samples, part.end - s.samples)));
    const auto samples = static_cast<std::int64_t>(part.end), whole = samples / kChunkSamples * kChunkSamples;
    const auto from = s.linguistic.position - 1, to = linguistic_count(part.last ? samples : whole);
    if (to <= from) continue;
    const bool tail = to > linguistic_count(whole);
    rows.push_back(part.live.linguistic_rows(from, to, tail ? part.end : static_cast<std::size_t>(whole),
                                             2 * std::log(0.999f / s.peak)));
    states.push_back(&s.linguistic);
    readers.push_back(&part);
  }
  if (readers.empty()) return;
  const auto& encoder = *readers[0]->live.tokenizer_->linguistic();
  const auto hidden = encoder.step(states, rows);
  for (std::size_t i = 0; i < readers.size(); ++i) {
    auto& next = readers[i]->next;
    next.state_.latest = latest_rows(next.state_.latest, hidden[i]);
    const auto ids = encoder.quantise(hidden[i]);
    next.linguistic_.insert(next.linguistic_.end(), ids.begin(), ids.end());
    next.state_.linguistic_ids += ids.size();
  }
}

/// What the semantic branch reads next of a part; nothing when it is through.
std::optional<SemanticEncoder::Growth> LiveTokenizer::next_growth(Part& part) {
  auto& s = part.next.state_;
  while (!part.semantic_done) {
    const auto begin = static_cast<std::size_t>(s.piece * kPieceSamples);
    const auto piece = std::span(wave_).subspan(begin, std::min<std::size_t>(part.end - begin, kPieceSamples));
    const auto size = static_cast<std::int64_t>(piece.size());
    part.piece_ends = size == kPieceSamples;
    part.semantic_done = !part.piece_ends;
    if (size < kPieceSamplesMin) return {};
    const auto frames = size / kMelShift, rows = semantic_count(size);
    // Open rows are read again; those that have heard enough are settled.
    const auto settled = part.last || part.piece_ends ? rows : std::max(s.semantic.rows, rows - guard_rows_);
    if (rows > s.semantic.rows) {
      const auto first = SemanticEncoder::first_frame(s.semantic), base = s.piece * kPieceFrames;
      // Frames near the end of what was heard see its mirror image: they are made anew when there is more.
      const auto sure = std::clamp<std::int64_t>((size - kMelReach) / kMelShift + 1, first, frames);
      std::vector<float> mel;
      mel_frames_.read(base + first, base + sure, mel, [&](std::int64_t a, std::int64_t b) {
        return audio::whisper_log_power(piece, static_cast<int>(a - base), static_cast<int>(b - base));
      });
      const auto open = audio::whisper_log_power(piece, static_cast<int>(sure), static_cast<int>(frames));
      mel.insert(mel.end(), open.begin(), open.end());
      s.top = audio::whisper_scale(mel, 2 * std::log10(0.999f / s.peak), s.top);
      part.open = static_cast<std::size_t>(rows - settled);
      return SemanticEncoder::Growth{&s.semantic, tensor::from_values(mel, {frames - first, kMelBins}),
                                     settled - s.semantic.rows};
    }
    if (part.piece_ends) begin_piece(s);
  }
  return {};
}

void LiveTokenizer::begin_piece(State& s) {
  ++s.piece;
  s.top = kWhisperTopMin;
  s.semantic = {};
}

void LiveTokenizer::read_semantic(std::vector<Part>& parts) {
  while (true) {
    std::vector<SemanticEncoder::Growth> growths;
    std::vector<Part*> readers;
    for (auto& part : parts)
      if (auto growth = part.live.next_growth(part)) growths.push_back(*std::move(growth)), readers.push_back(&part);
    if (readers.empty()) return;
    const auto& encoder = readers[0]->live.tokenizer_->semantic();
    const auto hidden = encoder.extend(growths);
    for (std::size_t i = 0; i < readers.size(); ++i) {
      auto& part = *readers[i];
      const auto ids = encoder.quantise(hidden[i]);
      const auto settled = ids.size() - part.open;
      part.next.state_.semantic_ids += settled;
      part.next.semantic_.insert(part.next.semantic_.end(), ids.begin(),
                                 part.next.is_block_ ? ids.end() : ids.begin() + static_cast<std::ptrdiff_t>(settled));
      if (part.piece_ends) begin_piece(part.next.state_);
    }
  }
}

/// What the libraries throw in there, as an error.
template <class F>
Result<void> LiveTokenizer::guarded(F&& work) const {
  try {
    const c10::InferenceMode guard;
    work();
    return {};
  } catch (const Failure& failure) {
    return tl::make_unexpected(failure.error);
  } catch (const std::exception& e) {
    return fail(Errc::internal, "tokenising {} samples failed: {}", wave_.size(), e.what());
  }
}

void LiveTokenizer::read(std::span<const Work> work) {
  if (work.empty()) return;
  const auto done = work[0].live->guarded([&] {
    std::vector<Part> parts;
    for (const auto& w : work) parts.push_back({*w.live, *w.reading, w.reading->part_end(), w.reading->is_last_part()});
    read_linguistic(parts);
    read_semantic(parts);
    for (std::size_t i = 0; i < work.size(); ++i) {
      auto& next = parts[i].next;
      next.state_.samples = parts[i].end;
      next.done_ = next.is_block_ || parts[i].last;
      *work[i].reading = std::move(next);
    }
  });
  if (done) return;
  if (work.size() > 1)
    for (const auto& w : work) read(std::span(&w, 1));
  else
    work[0].reading->error_ = done.error(), work[0].reading->done_ = true;
}

std::int64_t LiveTokenizer::final_groups(const State& s) {
  return static_cast<std::int64_t>(
      std::min(s.linguistic_ids / kLinguisticPerGroup, s.semantic_ids / kSemanticPerGroup));
}

void LiveTokenizer::forget_frames() {
  const auto& oldest = states_.front();
  fbank_frames_.forget(kSkip * (oldest.linguistic.position - 1) - 3);
  mel_frames_.forget(oldest.piece * kPieceFrames + SemanticEncoder::first_frame(oldest.semantic));
}

Result<LiveUpdate> LiveTokenizer::take_block(Reading reading) {
  if (reading.error_) return tl::make_unexpected(*std::move(reading.error_));
  auto& next = reading.state_;
  const auto first_group = final_groups(latest());
  linguistic_.insert(linguistic_.end(), reading.linguistic_.begin(), reading.linguistic_.end());
  semantic_.insert(semantic_.end(), reading.semantic_.begin(), reading.semantic_.end());
  LiveUpdate update{first_group, {}, 0};
  const auto from = static_cast<std::size_t>(first_group);
  PARLANDO_TRY(update.codes, interleave(std::span<const std::int32_t>(linguistic_).subspan(kLinguisticPerGroup * from),
                                        std::span<const std::int32_t>(semantic_).subspan(kSemanticPerGroup * from)));
  semantic_.resize(next.semantic_ids);
  update.final_groups = final_groups(next);
  states_.push_back(std::move(next));
  if (states_.size() > kStatesKept) states_.pop_front();
  forget_frames();
  return update;
}

Result<LiveEnd> LiveTokenizer::take_end(const Reading& reading) const {
  if (reading.error_) return tl::make_unexpected(*reading.error_);
  PARLANDO_TRY(auto codes, interleave(reading.linguistic_, reading.semantic_));
  LiveEnd out{std::move(codes), reading.state_.latest};
  PARLANDO_DO(
      guarded([&] { out.completeness = tokenizer_->completeness(out.states, std::span(wave_).first(reading.end_)); }));
  return out;
}

LiveTokenizer::Reading LiveTokenizer::until(std::size_t end) const {
  end = std::min(end, wave_.size());
  const auto from = std::find_if(states_.rbegin(), states_.rend(), [&](const State& s) { return s.samples <= end; });
  Reading reading(from != states_.rend() ? *from : State{}, end, false);
  auto& s = reading.state_;
  if (from == states_.rend()) {
    const auto begun = guarded([&] { s.linguistic = tokenizer_->linguistic()->start(); });
    if (!begun) reading.error_ = begun.error(), reading.done_ = true;
  }
  reading.linguistic_.assign(linguistic_.begin(), linguistic_.begin() + static_cast<std::ptrdiff_t>(s.linguistic_ids));
  reading.semantic_.assign(semantic_.begin(), semantic_.begin() + static_cast<std::ptrdiff_t>(s.semantic_ids));
  return reading;
}

Result<LiveUpdate> LiveTokenizer::step() {
  auto reading = block();
  const Work work{this, &reading};
  read({&work, 1});
  return take_block(std::move(reading));
}

Result<std::optional<LiveUpdate>> LiveTokenizer::push(std::span<const float> wave) {
  add(wave);
  std::optional<LiveUpdate> out;
  while (is_behind()) {
    PARLANDO_TRY(auto update, step());
    if (out) {
      const auto known = (update.first_group - out->first_group) * kCodesPerGroup;
      update.codes.insert(update.codes.begin(), out->codes.begin(), out->codes.begin() + known);
      update.first_group = out->first_group;
    }
    out = std::move(update);
  }
  return out;
}

Result<LiveEnd> LiveTokenizer::stable(std::size_t end) {
  auto reading = until(end);
  const Work work{this, &reading};
  while (!reading.is_done()) read({&work, 1});
  return take_end(reading);
}

Result<LiveEnd> LiveTokenizer::exact(std::size_t end) const {
  end = std::min(end, wave_.size());
  LiveEnd out;
  Result<void> made;
  const auto make = [&]() -> Result<void> {
    PARLANDO_TRY(const auto ready, tokenizer_->preprocess(std::span(wave_).first(end), 16000, {}));
    PARLANDO_TRY(const auto ids, tokenizer_->encode(ready));
    PARLANDO_TRY(auto codes, interleave(ids.linguistic, ids.semantic));
    out = {std::move(codes), ids.states, tokenizer_->completeness(ids.states, ready)};
    return {};
  };
  PARLANDO_DO(guarded([&] { made = make(); }));
  PARLANDO_DO(std::move(made));
  return out;
}

}  // namespace parlando::tokenizer
