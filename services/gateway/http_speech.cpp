#include "services/gateway/http_speech.hpp"

#include "common/base/base64.hpp"
#include "common/base/codes.hpp"
#include "common/base/nesting.hpp"
#include "services/gateway/http_fields.hpp"
#include "services/gateway/http_voices.hpp"

namespace parlando::gateway {
using nlohmann::json;

namespace {

constexpr int kSpeechDepthMax = 16;
constexpr std::size_t kInputBytesMax = 60000;   // of a message `utter`
constexpr std::int64_t kGroupsPerMinute = 500;  // of 120 ms

std::int64_t characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

/// One tag is spoken in: of the typed fields, else what the instructions ask for.
std::string read_style(Fields& f) {
  std::string style, field;
  for (const auto* name : {"style", "emotion", "language", "pace"}) {
    const auto word = f.text(name, 100);
    if (!word) continue;
    const auto tag = style_of(*word);
    if (tag.empty()) return f.refuse(name, "is '" + *word + "', which is no style that is known"), "";
    if (!style.empty()) return f.refuse(name, "is one style too many beside '" + field + "'"), "";
    style = tag;
    field = name;
  }
  const auto instructions = f.text("instructions", 16384);
  return style.empty() && instructions ? style_in(*instructions) : style;
}

}  // namespace

ApiResult<std::unique_ptr<SpeechRequest>> SpeechRequest::make(std::string_view body, RequestHead) {
  const auto parsed = nested_deeper_than(body, kSpeechDepthMax) ? json() : json::parse(body, nullptr, false);
  if (!parsed.is_object()) return tl::unexpected(ApiError{400, "the body is not a JSON object", {}, "bad_json"});
  std::optional<ApiError> problem;
  Fields f(parsed, "", problem);
  if (!f.text("model", 200)) f.missing("model");
  const auto input = f.text("input", kInputBytesMax);
  if (!input) f.missing("input");
  if (input && input->find_first_not_of(" \t\r\n") == std::string::npos) f.refuse("input", "is empty");
  const auto voice = read_voice(f, "voice");
  const auto format = f.one_of("response_format", {"mp3", "opus", "aac", "flac", "wav", "pcm"}).value_or("mp3");
  const auto encoding = audio::encoding_of(format);
  if (!encoding) f.refuse("response_format", "is aac, which is not written here", "unsupported_value");
  const auto speed = f.number("speed", 0.25, 4).value_or(1);
  const auto events = f.one_of("stream_format", {"audio", "sse"}).value_or("audio") == "sse";
  const auto style = read_style(f);
  if (problem) return tl::unexpected(std::move(*problem));
  auto sound = SpeechSound::make(*encoding);
  if (!sound)
    return tl::unexpected(ApiError{400, "'response_format' cannot be written: " + sound.error().message,
                                   "response_format", "unsupported_value"});
  std::unique_ptr<SpeechRequest> out(new SpeechRequest(std::move(*sound)));
  out->encoding_ = *encoding;
  out->events_ = events;
  out->text_ = *input;
  json open{{"type", "open"}, {"stored", false}, {"speak", true}, {"speed", speed}};
  if (!voice->empty()) open["speaker"] = *voice;
  if (!style.empty()) open["style"] = style;
  out->open_ = dump(open);
  return out;
}

void SpeechRequest::start() {
  say(json::parse(open_));
  say({{"type", "utter"}, {"text", text_}});
}

void SpeechRequest::on_sound(std::string_view pcm) {
  samples_ += static_cast<std::int64_t>(pcm.size() / kSampleBytes);
  send(sound_.push(pcm));
}

void SpeechRequest::send(std::string bytes) {
  if (bytes.empty()) return;
  if (!has_begun()) events_ ? begin_events() : begin({200, std::string(audio::media_type(encoding_)), {}});
  if (!events_) return part(std::move(bytes));
  send_event({{"type", "speech.audio.delta"}, {"audio", to_base64(std::as_bytes(std::span(bytes)))}});
}

void SpeechRequest::on_event(const std::string& type, const json& event) {
  if (type == "error") {
    auto error =
        api_error(event.value("code", ""), event.value("message", ""), event.value("retry_ms", std::int64_t{0}));
    if (error.code == to_string(Errc::not_found)) error.param = "voice";  // it asks for nothing else by name
    return fail(error);
  }
  if (type != "turn") return;
  send(sound_.finish());
  if (!has_begun()) return fail({500, "no sound was made of this text", {}, "internal"});
  if (!events_) return finish();
  const auto groups = samples_ * kGroupsPerMinute / (60 * kSpeechRate);
  const auto in = characters(text_), made = groups * kCodesPerGroup;
  send_event({{"type", "speech.audio.done"},
              {"usage", {{"input_tokens", in}, {"output_tokens", made}, {"total_tokens", in + made}}}});
  finish_events(false);
}

}  // namespace parlando::gateway
