#include "services/gateway/http_transcription.hpp"

#include "services/gateway/http_fields.hpp"
#include "services/gateway/http_form.hpp"

namespace parlando::gateway {
using nlohmann::json;

namespace {

constexpr double kSecondsMax = 3600;
constexpr milliseconds kUtteranceSilence{600};  // that ends an utterance
/// Behind the recording: ends the last utterance, so that `flush` finds none and its answer is the end.
constexpr milliseconds kTail{2000};
constexpr std::size_t kFieldBytesMax = 4096;
constexpr std::size_t kFieldShownMax = 60;  // of what a client has written, in an error

std::string clock_time(double seconds, char point) {
  const auto ms = static_cast<std::int64_t>(std::llround(std::max(0.0, seconds) * 1000));
  return fmt::format("{:02}:{:02}:{:02}{}{:03}", ms / 3600000, ms / 60000 % 60, ms / 1000 % 60, point, ms % 1000);
}

}  // namespace

// ------------------------------------------------------------------------------------------------ the request

class TranscriptionRequest::Reading {
 public:
  explicit Reading(TranscriptionRequest& to) : to_(to) {}
  std::optional<ApiError> problem;

  void read(const std::vector<FormPart>& form) {
    const FormPart* file = nullptr;
    bool model = false;
    for (const auto& part : form) {
      const auto name = part.name.ends_with("[]") ? part.name.substr(0, part.name.size() - 2) : part.name;
      if (name.size() > kFieldShownMax) continue;  // none that is known
      if (name == "file") {
        if (file != nullptr) return refuse("file", "is there twice");
        file = &part;
        continue;
      }
      if (part.data.size() > kFieldBytesMax && name != "prompt")
        return refuse(name, fmt::format("has {} bytes, expected at most {}", part.data.size(), kFieldBytesMax));
      model |= name == "model" && !part.data.empty();
      read_field(name, std::string(part.data));
      if (problem) return;
    }
    if (file == nullptr) return missing("file");
    if (!model) return missing("model");
    if (to_.stream_ && to_.format_ != Format::json && to_.format_ != Format::text)
      return refuse("response_format", "is no format that is streamed: json and text are");
    const auto shown = file->filename.empty() ? std::string("file") : file->filename.substr(0, 100);
    auto sound = SoundSource::open(std::string(file->data), shown, kSecondsMax, kTail);
    if (!sound) return refuse("file", "cannot be heard: " + sound.error().message);
    to_.sound_ = std::move(*sound);
  }

 private:
  void read_field(const std::string& name, const std::string& value) {
    static const std::map<std::string, Format> kFormats{{"json", Format::json},
                                                        {"text", Format::text},
                                                        {"verbose_json", Format::verbose_json},
                                                        {"srt", Format::srt},
                                                        {"vtt", Format::vtt}};
    if (name == "response_format") {
      const auto found = kFormats.find(value);
      if (found == kFormats.end())
        return refuse(name,
                      "is '" + value.substr(0, kFieldShownMax) + "', expected json, text, verbose_json, srt or vtt");
      to_.format_ = found->second;
    } else if (name == "stream") {
      if (value != "true" && value != "false" && !value.empty())
        return refuse(name, "is '" + value.substr(0, kFieldShownMax) + "', expected true or false");
      to_.stream_ = value == "true";
    } else if (name == "language") {
      to_.language_ = value;
    } else if (name == "temperature") {
      char* end = nullptr;
      const double number = std::strtod(value.c_str(), &end);
      if (value.empty() || *end != '\0' || !(number >= 0 && number <= 1))
        return refuse(name, "is '" + value.substr(0, kFieldShownMax) + "', expected a number from 0 to 1");
    } else if (name == "timestamp_granularities") {
      if (value == "word")
        return refuse("timestamp_granularities[]", "asks for words: segments are told", "unsupported_value");
      if (value != "segment")
        return refuse("timestamp_granularities[]",
                      "is '" + value.substr(0, kFieldShownMax) + "', expected segment or word");
    } else if (name == "include" && value == "logprobs") {
      return refuse("include[]", "asks for logprobs: probabilities are not given", "unsupported_value");
    }
  }
  void refuse(const std::string& name, const std::string& why, std::string code = "invalid_value") {
    if (!problem) problem = ApiError{400, fmt::format("'{}' {}", name, why), name, std::move(code)};
  }
  void missing(const std::string& name) {
    if (!problem) problem = ApiError{400, fmt::format("'{}' is missing", name), name, "missing_field"};
  }

  TranscriptionRequest& to_;
};

ApiResult<std::unique_ptr<TranscriptionRequest>> TranscriptionRequest::make(std::string_view content_type,
                                                                            std::string_view body, RequestHead) {
  const auto form = read_form(content_type, body);
  if (!form)
    return tl::unexpected(
        ApiError{form.error().code == Errc::unsupported ? 415 : 400, form.error().message, {}, "bad_form"});
  std::unique_ptr<TranscriptionRequest> out(new TranscriptionRequest());
  Reading reading(*out);
  reading.read(*form);
  if (reading.problem) return tl::unexpected(std::move(*reading.problem));
  return out;
}

// ------------------------------------------------------------------------------------------------ the conversation

void TranscriptionRequest::start() {
  say({{"type", "open"},
       {"stored", false},
       {"speak", false},
       {"tokenizer", "exact"},  // a recording is there as a whole
       {"detection", {{"type", "silence"}, {"silence_ms", kUtteranceSilence.count()}, {"answers", false}}}});
  say_sound(std::move(sound_));
  say({{"type", "flush"}});
}

void TranscriptionRequest::on_event(const std::string& type, const json& event) {
  if (type == "speech_started") {
    speaking_ = true;
  } else if (type == "speech_ended") {
    speaking_ = false;
    ++utterances_;
  } else if (type == "noted") {
    note(event);
  } else if (type == "error") {
    const auto code = event.value("code", "");
    if (code != to_string(Errc::no_speech))
      return fail(api_error(code, event.value("message", ""), event.value("retry_ms", std::int64_t{0})));
    // An utterance that was none after all; or of `flush`, behind which nothing is left.
    if (utterances_ > 0) return utterance_over();
    flushed_ = true;
    end_if_done();
  }
}

void TranscriptionRequest::note(const json& noted) {
  const auto seconds = [&](const char* name) {
    return static_cast<double>(noted.value(name, std::int64_t{0})) / static_cast<double>(kInputRate);
  };
  auto text = noted.value("text", "");
  if (text.find_first_not_of(" \n") == std::string::npos) return utterance_over();
  segments_.push_back({seconds("first_sample"), seconds("end_sample"), std::move(text)});
  if (stream_) send_delta();
  utterance_over();
}

/// `flush` may have ended this one, which lay before it: whether more follows only another one tells.
void TranscriptionRequest::utterance_over() {
  utterances_ = std::max<std::int64_t>(0, utterances_ - 1);
  if (has_said_all()) say({{"type", "flush"}});
  end_if_done();
}

void TranscriptionRequest::end_if_done() {
  if (flushed_ && utterances_ == 0 && !speaking_) end();
}

void TranscriptionRequest::send_delta() {
  if (!has_begun()) begin_events();
  send_event({{"type", "transcript.text.delta"}, {"delta", (segments_.size() > 1 ? " " : "") + segments_.back().text}});
}

std::string TranscriptionRequest::whole_text() const {
  std::string out;
  for (const auto& segment : segments_) out += (out.empty() ? "" : " ") + segment.text;
  return out;
}

void TranscriptionRequest::end() {
  // Nothing reaches into the silence that was added.
  seconds_ = std::max(0.0, said_seconds() - std::chrono::duration<double>(kTail).count());
  for (auto& segment : segments_) segment.end = std::min(segment.end, seconds_);
  if (!stream_) return answer(whole());
  if (!has_begun()) begin_events();
  send_event({{"type", "transcript.text.done"}, {"text", whole_text()}});
  finish_events(false);
}

http::Response TranscriptionRequest::whole() const {
  std::string out;
  const auto usage = json{{"type", "duration"}, {"seconds", static_cast<std::int64_t>(std::ceil(seconds_))}};
  switch (format_) {
    case Format::text:
      return {200, "text/plain; charset=utf-8", whole_text() + "\n"};
    case Format::srt:
      for (std::size_t i = 0; i < segments_.size(); ++i)
        out += fmt::format("{}\n{} --> {}\n{}\n\n", i + 1, clock_time(segments_[i].start, ','),
                           clock_time(segments_[i].end, ','), segments_[i].text);
      return {200, "text/plain; charset=utf-8", out};
    case Format::vtt:
      out = "WEBVTT\n\n";
      for (const auto& s : segments_)
        out += fmt::format("{} --> {}\n{}\n\n", clock_time(s.start, '.'), clock_time(s.end, '.'), s.text);
      return {200, "text/vtt; charset=utf-8", out};
    case Format::verbose_json: {
      auto list = json::array();
      for (std::size_t i = 0; i < segments_.size(); ++i)
        list.push_back({{"id", i},
                        {"seek", 0},
                        {"start", segments_[i].start},
                        {"end", segments_[i].end},
                        {"text", segments_[i].text},
                        {"tokens", json::array()},
                        {"temperature", 0.0},
                        {"avg_logprob", 0.0},
                        {"compression_ratio", 1.0},
                        {"no_speech_prob", 0.0}});
      return {200, "application/json",
              dump({{"task", "transcribe"},
                    {"language", language_.empty() ? "unknown" : language_},
                    {"duration", seconds_},
                    {"text", whole_text()},
                    {"segments", std::move(list)},
                    {"usage", usage}})};
    }
    case Format::json:
      break;
  }
  return {200, "application/json", dump({{"text", whole_text()}, {"usage", usage}})};
}

}  // namespace parlando::gateway
