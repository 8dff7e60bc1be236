#include "services/tts/tts_core.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "common/audio/audio_file.hpp"
#include "common/base/pcm.hpp"
#include "common/base/speech_tags.hpp"
#include "common/base/voice_id.hpp"
#include "common/nn/threads.hpp"
#include "common/telemetry/log.hpp"
#include "kernels/team/pool.hpp"

namespace parlando::tts {
using protocol::MessageType;
using transport::PeerState;
namespace fs = std::filesystem;

namespace {
constexpr SessionId kOwnSession{0, 1};  // requests for voices belong to no conversation
constexpr std::size_t kSamplesPerMessage = 16384;
constexpr std::size_t kPiecesMax = 64;
constexpr int kFailuresUntilBroken = 3;
constexpr milliseconds kRetryFirst{500}, kRetryMax{30000};
constexpr milliseconds kLlmAwayMax{3000};  // that utterances wait for any llm-tts, as controllers do for a role

/// A pass that throws (no memory, say) ends its own utterance and no other.
template <class F>
Result<void> guarded(F f) {
  try {
    return f();
  } catch (const std::exception& e) {
    return fail(Errc::internal, "the step failed: {}", e.what());
  }
}
}  // namespace

std::vector<config::Problem> TtsConfig::problems(const std::string& path) const {
  std::vector<config::Problem> out;
  config::expect_range(out, path + ".threads", threads, 1, 1024);
  config::expect_range(out, path + ".utterances_max", utterances_max, 1, 1 << 16);
  config::expect_range(out, path + ".text_bytes_max", text_bytes_max, 16, 60000);
  config::expect_range(out, path + ".voices_cached_max", voices_cached_max, 1, 10000);
  config::expect_range(out, path + ".prompt_memory_mb", prompt_memory_mb, 0, 1 << 20);
  return out;
}

Result<std::unique_ptr<service::Core>> TtsCore::make(const TtsConfig& config) {
  nn::use_threads(config.threads);  // loading computes, too
  std::unique_ptr<TtsCore> out(new TtsCore(config));
  const fs::path root = config.model;
  const auto dtype = config.bf16 ? at::kBFloat16 : at::kFloat;
  PARLANDO_TRY(out->common_, SpeechDecoder::load(root / "CosyVoice-300M-25Hz", dtype));
  if (fs::is_directory(root / "CosyVoice-300M-25Hz-Music")) {
    PARLANDO_TRY(out->music_, SpeechDecoder::load(root / "CosyVoice-300M-25Hz-Music", dtype));
  }
  auto speakers = fs::is_directory(root / "speakers") ? root / "speakers" : root.parent_path() / "speakers";
  if (!config.speakers.empty()) {
    speakers = config.speakers;
    if (!fs::is_directory(speakers)) return fail(Errc::not_found, "'{}' is no folder of voices", config.speakers);
  }
  PARLANDO_TRY(out->voices_,
               Voices::load(speakers, out->common_->speaker(),
                            [core = out.get()](std::span<const float>, int) -> Result<std::vector<std::int32_t>> {
                              return core->voice_states_.at(core->voice_now_).codes;  // `begin` waits for them
                            }));
  for (const auto& name : out->voices_->names()) out->voice_states_[name];
  out->voices_->set_own(config.voices, static_cast<std::size_t>(config.voices_cached_max));
  // Warm means that codes have become sound once.
  PARLANDO_TRY(const auto warm, out->common_->synthesise({1, 2, 1024, 1025, 1026, 3, 4, 1027, 1028, 1029},
                                                         {{}, at::zeros({1, 0, 80}), at::ones({1, 192})}, 1));
  if (warm.empty()) return fail(Errc::internal, "the decoder of '{}' gave no sound for ten codes", config.model);
  return std::unique_ptr<service::Core>(std::move(out));
}

void TtsCore::on_thread() { nn::use_threads(config_.threads); }

void TtsCore::add_metrics(telemetry::Metrics& metrics) {
  seconds_ = metrics.counter("parlando_tts_audio_seconds_total", "Speech made");
  restarts_ = metrics.counter("parlando_tts_restarts_total", "Pieces asked of another llm-tts");
  voices_broken_ = metrics.gauge("parlando_tts_voices_broken",
                                 "Voices that cannot be used: their recording or the request for their codes failed");
  first_audio_ =
      metrics.histogram("parlando_tts_first_audio_seconds", "From the request for a chunk's codes to its first audio");
}

std::string TtsCore::why_not_ready() const {
  if (!llms_.any_up()) return "no llm-tts is connected";
  std::size_t known = 0;
  const Error* broken = nullptr;
  for (const auto& [name, voice] : voice_states_) {
    if (is_voice_id(name)) continue;  // whoever wants it waits for it
    if (voice.codes.empty() && !voice.broken)
      return fmt::format("{} of {} voices have their codes",
                         std::count_if(voice_states_.begin(), voice_states_.end(),
                                       [](const auto& v) { return !v.second.codes.empty(); }),
                         voice_states_.size());
    known += !voice.codes.empty();
    if (voice.broken) broken = &*voice.broken;
  }
  if (known == 0 && broken != nullptr) return "no voice can be used: " + broken->message;
  return {};
}

Result<protocol::Tokenize> TtsCore::recording_of(const std::string& name) const {
  PARLANDO_TRY(const auto recording, voices_->recording(name));
  PARLANDO_DO(Voices::check(name, recording.wave, recording.rate));
  protocol::Tokenize ask{recording.rate, to_bytes(std::span<const float>(recording.wave))};
  if (const auto most = protocol::payload_bytes_max(MessageType::tokenize); ask.payload.size() > most)
    return fail(Errc::invalid_argument, "the recording of voice '{}' takes {} bytes at {} Hz, at most {} can be sent",
                name, ask.payload.size(), recording.rate, most);
  return ask;
}

/// Asks for the codes of every voice that has none, is not being asked for and is due.
void TtsCore::ask_for_voices(Time now) {
  for (auto& [name, voice] : voice_states_) {
    if (!voice.codes.empty() || voice.request.value != 0 || now < voice.retry_at) continue;
    const auto tokenizer = tokenizers_.choose(kOwnSession);
    if (!tokenizer) return;
    auto ask = recording_of(name);
    if (!ask) {
      voice.failures = kFailuresUntilBroken;  // the file is what it is
      on_voice(name, voice, tl::make_unexpected(ask.error()), now);
      continue;
    }
    voice.request = {next_stream_++};
    voice.tokenizer = *tokenizer;
    protocol::Envelope head;
    head.session = kOwnSession;
    head.stream = voice.request;
    send(voice.tokenizer, head, *std::move(ask));
  }
}

void TtsCore::forget_voice(const std::string& name) {
  const auto found = voice_states_.find(name);
  if (found == voice_states_.end()) return;
  if (const auto& voice = found->second; voice.request.value != 0 && tokenizers_.is_linked(voice.tokenizer)) {
    protocol::Envelope head;
    head.session = kOwnSession;
    head.stream = voice.request;
    send(voice.tokenizer, head, protocol::Close{});
  }
  voice_states_.erase(found);
}

/// A user's voice gets its codes when it is first spoken with.
Result<void> TtsCore::find_own_voice(const std::string& name, Time now) {
  // Else two who wait for more voices than are kept would take theirs away from each other for ever.
  auto found = voices_->find_own(name, [this](const std::string& id) {
    return std::any_of(utterances_.begin(), utterances_.end(), [&](auto& entry) {
      const auto* piece = to_begin(entry.second);
      return piece != nullptr && piece->speaker == id;
    });
  });
  if (!found) {
    forget_voice(name);
    return tl::unexpected(found.error());
  }
  for (const auto& gone : *found) forget_voice(gone);
  if (!voice_states_.contains(name)) {
    voice_states_[name];
    ask_for_voices(now);
  }
  return {};
}

/// The end of a request for a voice's codes.
void TtsCore::on_voice(const std::string& name, VoiceState& voice, Result<std::vector<std::int32_t>> codes, Time now) {
  voice.request = {};
  if (codes && codes->empty())
    codes = fail(Errc::no_speech, "the tokenizer found no codes in the recording of voice '{}'", name);
  if (codes) {
    voice = {.codes = *std::move(codes)};
  } else {
    if (++voice.failures >= kFailuresUntilBroken) {
      if (!voice.broken)
        telemetry::log(telemetry::Level::warning, "tts cannot use voice '{}': {}", name, codes.error().message);
      voice.broken = codes.error();
    }
    voice.retry_at = now + std::min(kRetryMax, kRetryFirst * (1 << std::min(voice.failures - 1, 10)));
    if (voice.broken) voice.retry_at = now + kRetryMax;
  }
  voices_broken_.set(static_cast<double>(std::count_if(voice_states_.begin(), voice_states_.end(),
                                                       [](const auto& v) { return v.second.broken.has_value(); })));
}

void TtsCore::on_tick(Time now) {
  ask_for_voices(now);
  // Nobody waits for these any more.
  std::vector<Key> late;
  for (auto& [key, u] : utterances_)
    if (!u.pieces.empty() && u.deadline <= now) late.push_back(key);
  for (const auto& key : late)
    give_up(key, *utterances_.find(key), {Errc::deadline_exceeded, "the budget was spent before the text was spoken"});
  if (llm_away_since_ > now || now - llm_away_since_ < kLlmAwayMax) return;
  late.clear();
  for (auto& [key, u] : utterances_)
    if (!u.pieces.empty() && !u.pieces.front().codes_done) late.push_back(key);
  const auto why = fmt::format("no replica of llm-tts can take the work: {} linked", llms_.size());
  for (const auto& key : late) give_up(key, *utterances_.find(key), {Errc::unavailable, why});
}

void TtsCore::on_peer(const transport::Peer& peer, PeerState state, Time now) {
  if (peer.caller) {
    if (state != PeerState::down) return;
    utterances_.erase_peer(peer.instance, [this](const Key&, Utterance& u) {
      for (auto& piece : u.pieces) end_codes(u, piece);
    });
    return ended_.erase_peer(peer.instance);
  }
  if (peer.role == "tokenizer") {
    tokenizers_.on_peer(peer, state);
    for (auto& [name, voice] : voice_states_) leave_tokenizer(voice);
    return ask_for_voices(now);
  }
  llms_.on_peer(peer, state);
  llm_away_since_ = llms_.any_up() ? Time::max() : std::min(llm_away_since_, now);
  // A suspect replica keeps what it was asked: only when another one can take it is the piece spoken there.
  for (auto& [key, u] : utterances_) {
    for (auto& piece : u.pieces) {
      if (piece.codes_stream.value == 0 || piece.codes_done || llms_.is_up(piece.llm)) continue;
      if (llms_.is_linked(piece.llm) && !llms_.choose(u.head.session, piece.full)) continue;
      restart(u, piece);
    }
  }
}

/// A request whose tokenizer is gone, or is suspect while another one can be asked, is not waited for any more.
void TtsCore::leave_tokenizer(VoiceState& voice) {
  if (voice.request.value == 0 || tokenizers_.is_up(voice.tokenizer)) return;
  if (tokenizers_.is_linked(voice.tokenizer)) {
    if (!tokenizers_.choose(kOwnSession)) return;
    protocol::Envelope head;
    head.session = kOwnSession;
    head.stream = voice.request;
    send(voice.tokenizer, head, protocol::Close{});
  }
  voice.request = {};
}

TtsCore::Piece* TtsCore::Utterance::piece_of(StreamId codes_stream) {
  const auto found =
      std::find_if(pieces.begin(), pieces.end(), [&](const Piece& p) { return p.codes_stream == codes_stream; });
  return found == pieces.end() ? nullptr : &*found;
}

/// The piece is spoken again by another replica; what was sent of it is skipped.
void TtsCore::restart(const Utterance& u, Piece& piece) {
  restarts_.add();
  piece.skip_samples = std::max(piece.skip_samples, piece.samples);
  forget_codes(u, piece);
}

/// Ends the request for codes, answered or not.
void TtsCore::end_codes(const Utterance& u, Piece& piece) {
  if (piece.codes_stream.value == 0) return;
  by_codes_stream_.erase(piece.codes_stream);
  auto head = u.head;
  head.stream = std::exchange(piece.codes_stream, {});
  if (llms_.is_linked(piece.llm)) send(piece.llm, head, protocol::Close{});
  piece.codes_done = false;
}

/// The piece is as if it had never been asked for.
void TtsCore::forget_codes(const Utterance& u, Piece& piece) {
  end_codes(u, piece);
  piece.codes.clear();
  piece.stream.reset();
  piece.effects.reset();
  piece.samples = 0;
}

/// The utterance cannot be spoken: its caller is told why and will close the stream.
void TtsCore::give_up(const Key& key, Utterance& u, const Error& error) {
  answer_error(key.peer, u.head, error);
  ended_.add(key);
  forget(key, u);
}

void TtsCore::forget(const Key& key, Utterance& u) {
  for (auto& piece : u.pieces) end_codes(u, piece);
  utterances_.erase(key);
}

void TtsCore::on_message(const std::string& peer, protocol::Message m, Time now) {
  const auto head = m.head;
  if (head.type == MessageType::tokens || head.type == MessageType::error) {
    if (head.session == kOwnSession) return from_tokenizer(peer, m, now);
    return from_llm(peer, m, now);
  }
  const auto key = service::StreamTable<Utterance>::key_of(peer, head);
  if (head.type == MessageType::close) {
    if (auto* u = utterances_.find(key)) forget(key, *u);
    return ended_.erase(key);
  }
  if (ended_.contains(key)) return;
  const auto done = [&]() -> Result<void> {
    if (head.type == MessageType::speak) return speak(key, m, now);
    return fail(Errc::unsupported, "tts takes no {}", to_string(head.type));
  }();
  if (done) return;
  if (auto* u = utterances_.find(key)) return give_up(key, *u, done.error());
  answer_error(peer, head, done.error());
  ended_.add(key);
}

Result<void> TtsCore::speak(const Key& key, protocol::Message& m, Time now) {
  PARLANDO_TRY(auto ask, protocol::read<protocol::Speak>(m));
  if (ask.style.find_first_of("()") != std::string::npos || ask.style.find("（") != std::string::npos ||
      ask.style.find("）") != std::string::npos)
    return fail(Errc::invalid_argument, "style '{}' holds a bracket, expected the name of a tag", ask.style);
  // A text with a tag of its own has chosen.
  if (!ask.style.empty() && leading_tag(ask.text).empty()) ask.text = "(" + ask.style + ")" + ask.text;
  if (ask.text.size() > static_cast<std::size_t>(config_.text_bytes_max))
    return fail(Errc::invalid_argument, "a text of {} bytes, at most {} are spoken at once", ask.text.size(),
                config_.text_bytes_max);
  auto* u = utterances_.find(key);
  if (u == nullptr) {
    PARLANDO_TRY(u, utterances_.open(key, Utterance{}));
    u->head = m.head;
    turns_.push_back(key);
  }
  if (u->pieces.size() >= kPiecesMax)
    return fail(Errc::overloaded, "{} pieces wait, at most {} are kept", u->pieces.size(), kPiecesMax);
  u->deadline = m.deadline;
  if (u->pieces.empty()) u->playout.asked(now);
  u->pieces.push_back({ask.piece, std::move(ask.text), std::move(ask.speaker), ask.skip_samples, ask.seed,
                       ask.speed_milli, ask.volume_milli});
  return {};
}

void TtsCore::from_tokenizer(const std::string& peer, protocol::Message& m, Time now) {
  const auto voice = std::find_if(voice_states_.begin(), voice_states_.end(), [&](const auto& v) {
    return v.second.request == m.head.stream && v.second.tokenizer == peer;
  });
  if (m.head.stream.value == 0 || voice == voice_states_.end()) return;
  const auto head = m.head;
  answer(peer, head, protocol::Close{});
  const auto codes = [&]() -> Result<std::vector<std::int32_t>> {
    if (head.type == MessageType::tokens) {
      PARLANDO_TRY(const auto tokens, protocol::read<protocol::Tokens>(m));
      return from_bytes<std::int32_t>(tokens.payload);
    }
    PARLANDO_TRY(const auto error, protocol::read<protocol::ErrorMessage>(m));
    return fail(Errc::unavailable, "the tokenizer gave no codes for voice '{}': {}", voice->first, error.message);
  };
  on_voice(voice->first, voice->second, codes(), now);
}

void TtsCore::from_llm(const std::string& peer, protocol::Message& m, Time) {
  const auto whose = by_codes_stream_.find(m.head.stream);
  if (whose == by_codes_stream_.end()) return;  // of an utterance that has ended
  const auto key = whose->second;
  auto* u = utterances_.find(key);
  auto* piece = u == nullptr ? nullptr : u->piece_of(m.head.stream);
  if (piece == nullptr || piece->llm != peer) return;
  if (m.head.type == MessageType::error) {
    const auto error = protocol::read<protocol::ErrorMessage>(m);
    return codes_failed(key, *u, *piece, error ? Error{errc_of(error->code), error->message} : error.error());
  }
  const auto tokens = protocol::read<protocol::Tokens>(m);
  if (!tokens) return codes_failed(key, *u, *piece, tokens.error());
  const auto codes = from_bytes<std::int32_t>(tokens->payload);
  piece->codes.insert(piece->codes.end(), codes.begin(), codes.end());
  piece->codes_done = tokens->last;
}

/// A full or leaving replica is no reason to fail while another one has room; nor is anything that is wrong with the
/// next piece a reason to cut off this one.
void TtsCore::codes_failed(const Key& key, Utterance& u, Piece& piece, const Error& error) {
  const bool elsewhere =
      error.code == Errc::overloaded || error.code == Errc::unavailable || error.code == Errc::not_ready;
  piece.full.insert(piece.llm);
  if (elsewhere && llms_.choose(u.head.session, piece.full)) return restart(u, piece);
  if (&piece == &u.pieces.front()) return give_up(key, u, error);
  forget_codes(u, piece);
  piece.full.clear();
  piece.only_first = true;
}

void TtsCore::on_refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time now) {
  if (const auto whose = by_codes_stream_.find(head.stream); whose != by_codes_stream_.end()) {
    const auto key = whose->second;
    auto* u = utterances_.find(key);
    auto* piece = u == nullptr ? nullptr : u->piece_of(head.stream);
    if (piece != nullptr && piece->llm == peer) return codes_failed(key, *u, *piece, error);
  }
  if (head.session == kOwnSession) {
    for (auto& [name, voice] : voice_states_)
      if (voice.request == head.stream) return on_voice(name, voice, tl::make_unexpected(error), now);
  }
  // Speech that its caller does not take: the caller is too far behind to be served.
  const auto key = service::StreamTable<Utterance>::key_of(peer, head);
  if (auto* u = utterances_.find(key)) give_up(key, *u, error);
}

/// The piece whose codes are to be asked for now: the first one, or the next one when all codes of the first are there.
TtsCore::Piece* TtsCore::to_begin(Utterance& u) {
  if (u.pieces.empty()) return nullptr;
  auto& first = u.pieces[0];
  if (first.codes_stream.value == 0) return &first;
  if (!first.codes_done || u.pieces.size() < 2) return nullptr;
  auto& next = u.pieces[1];
  return next.codes_stream.value == 0 && !next.only_first ? &next : nullptr;
}

/// Asks for the codes of a piece. @error what the caller did wrong, or that a voice cannot be had;
/// Errc::not_ready: later
Result<void> TtsCore::begin(const Key& key, Utterance& u, Piece& piece, Time now) {
  if (piece.speaker.empty()) piece.speaker = voices_->default_name();
  const bool own = is_voice_id(piece.speaker);
  if (own) PARLANDO_DO(find_own_voice(piece.speaker, now));
  // A model that was not trained on a voice is told of the recording, not of a name.
  const bool cloned = own || voices_->is_cloned(piece.speaker);
  const auto mode = tts_mode(piece.text, piece.speaker, cloned);
  if (mode.vocoder == Vocoder::music && !music_)
    return fail(Errc::not_found, "this model has no CosyVoice-300M-25Hz-Music directory for singing");
  voice_now_ = cloned ? piece.speaker : voices_->entry(mode);
  // Without its codes the voice is not read from the disk: this is tried again with every unit of work.
  if (const auto state = voice_states_.find(voice_now_); state != voice_states_.end() && state->second.codes.empty()) {
    if (const auto& broken = state->second.broken)
      return fail(broken->code, "voice '{}' cannot be used: {}", voice_now_, broken->message);
    return fail(Errc::not_ready, "the codes of voice '{}' have not come from the tokenizer yet", voice_now_);
  }
  PARLANDO_TRY(const auto voice, voices_->get(voice_now_));
  auto llm = llms_.choose_at_last(u.head.session, piece.full);
  if (!llm) {
    // Whoever took it after the others had refused is gone; one of them may have room by now.
    llm = llms_.choose_at_last(u.head.session);
    piece.full.clear();
  }
  if (!llm) return fail(Errc::not_ready, "no llm-tts can take the text");
  const auto& names = protocol::names_of<protocol::SpeechMode>();
  const auto place = std::find(names.begin(), names.end(), mode.system_prompt);
  if (place == names.end()) return fail(Errc::internal, "there is no speech mode '{}'", mode.system_prompt);
  piece.decoder = mode.vocoder == Vocoder::music ? music_ : common_;
  piece.voice = voice;
  piece.codes.clear();
  piece.codes_done = false;
  piece.samples = 0;
  piece.begun = now;
  piece.llm = *llm;
  piece.codes_stream = {next_stream_++};
  by_codes_stream_[piece.codes_stream] = key;
  auto head = u.head;
  head.stream = piece.codes_stream;
  send(piece.llm, head,
       protocol::Synthesise{static_cast<protocol::SpeechMode>(place - names.begin()), voice->name, voice->text,
                            piece.text, piece.seed, !own, to_bytes(std::span<const std::int32_t>(voice->prompt.codes))},
       u.deadline);
  return {};
}

/// What is to be heard next of a piece. @param last  set to whether it is the end of it
Result<std::vector<float>> TtsCore::decode(Piece& piece, bool& last) const {
  if (config_.whole) {
    last = piece.codes_done;
    if (!last) return std::vector<float>();
    return piece.decoder->synthesise(piece.codes, piece.voice->prompt, piece.seed);
  }
  auto& stream = *piece.stream;
  if (!piece.codes.empty() || stream.pending()) {
    const auto before = stream.frames();
    PARLANDO_TRY(auto wave, stream.push(std::exchange(piece.codes, {})));
    // A step is one chunk, or what is left behind the last: others wait for it.
    if (stream.frames() != before || !piece.codes_done) return wave;
  }
  last = piece.codes_done;
  if (!last) return std::vector<float>();
  return stream.finish();
}

/// Decodes what has come of the first piece and sends it. @error when the decoder fails
Result<void> TtsCore::advance(const Key& key, Utterance& u, Time now) {
  auto& piece = u.pieces.front();
  if (!piece.stream) {
    piece.stream = std::make_unique<SpeechStream>(piece.decoder, piece.voice->prompt,
                                                  SpeechStream::Options{.seed = piece.seed, .memory = prompt_memory_});
    if (piece.speed_milli != 1000 || piece.volume_milli != 1000) {
      PARLANDO_TRY(piece.effects,
                   EffectStream::make(kMelRate, piece.speed_milli / 1000.0, piece.volume_milli / 1000.0));
    }
    if (piece.codes.empty() && !piece.codes_done) return {};
  }
  bool last = false;
  PARLANDO_TRY(auto wave, decode(piece, last));
  if (piece.effects) {
    PARLANDO_TRY(wave, piece.effects->push(wave, last));
  }
  if (!wave.empty() && piece.samples == 0)
    first_audio_.observe(std::chrono::duration<double>(now - piece.begun).count());
  const auto first = piece.samples;
  piece.samples += static_cast<std::int64_t>(wave.size());
  seconds_.add(static_cast<double>(wave.size()) / kMelRate);
  auto at = static_cast<std::size_t>(
      std::clamp<std::int64_t>(piece.skip_samples - first, 0, static_cast<std::int64_t>(wave.size())));
  if (at < wave.size()) u.playout.sent(static_cast<std::int64_t>(wave.size() - at), kMelRate, now);
  do {
    const auto n = std::min(kSamplesPerMessage, wave.size() - at);
    const bool end = last && at + n == wave.size();
    if (n == 0 && !end) break;
    answer(key.peer, u.head,
           protocol::Speech{piece.index, first + static_cast<std::int64_t>(at), kMelRate, end,
                            to_pcm16(std::span(wave).subspan(at, n))});
    at += n;
  } while (at < wave.size());
  if (!last) return {};
  end_codes(u, piece);  // the request is done on both sides
  u.pieces.pop_front();
  if (!u.pieces.empty()) u.pieces.front().begun = now;
  return {};
}

bool TtsCore::can_advance(const Utterance& u) const {
  if (u.pieces.empty() || u.pieces.front().codes_stream.value == 0) return false;
  const auto& piece = u.pieces.front();
  if (config_.whole) return !piece.stream || piece.codes_done;
  return !piece.stream || !piece.codes.empty() || piece.codes_done || piece.stream->pending();
}

/// Of the utterances that can get a step, the one whose listener has nothing to hear first; it stands last then.
std::optional<TtsCore::Key> TtsCore::runs_dry_first() {
  std::erase_if(turns_, [this](const Key& key) { return utterances_.find(key) == nullptr; });
  auto first = turns_.end();
  auto dry_at = Time::max();
  for (auto at = turns_.begin(); at != turns_.end(); ++at) {
    const auto& u = *utterances_.find(*at);
    if (!can_advance(u) || u.playout.dry_at() >= dry_at) continue;
    first = at;
    dry_at = u.playout.dry_at();
  }
  if (first == turns_.end()) return {};
  const auto key = *first;
  turns_.erase(first);
  turns_.push_back(key);
  return key;
}

bool TtsCore::work(Time now) {
  const kernels::Pool::Busy busy(kernels::Pool::of_process());
  // Pieces begin as soon as they can; then one utterance gets one step.
  std::vector<std::pair<Key, Error>> failed;
  bool begun = false;
  for (auto& [key, u] : utterances_) {
    auto* piece = to_begin(u);
    if (piece == nullptr) continue;
    const auto done = guarded([&] { return begin(key, u, *piece, now); });
    begun = begun || done.has_value();
    if (done || done.error().code == Errc::not_ready) continue;
    if (piece == &u.pieces.front())
      failed.emplace_back(key, done.error());
    else
      piece->only_first = true;
  }
  for (const auto& [key, error] : failed) give_up(key, *utterances_.find(key), error);
  if (begun) return true;  // requests leave before anything is computed here
  const auto key = runs_dry_first();
  if (!key) return false;
  auto& u = *utterances_.find(*key);
  const auto pieces = u.pieces.size();
  if (const auto done = guarded([&] { return advance(*key, u, now); }); !done) {
    give_up(*key, u, done.error());
  } else if (u.pieces.size() < pieces && !u.pieces.empty()) {
    return true;  // the next one may not have been asked for
  }
  return std::any_of(utterances_.begin(), utterances_.end(), [this](const auto& u) { return can_advance(u.second); });
}

}  // namespace parlando::tts
