#pragma once
/// `POST /v1/audio/transcriptions`: the recording is the user's sound in a conversation that is not kept and answers
/// nothing; silence splits it into utterances, and each is noted with its place.
#include "services/gateway/http_chat.hpp"

namespace parlando::gateway {

class TranscriptionRequest final : public HttpRequest {
 public:
  static ApiResult<std::unique_ptr<TranscriptionRequest>> make(std::string_view content_type, std::string_view body,
                                                               RequestHead head);
  void start() override;
  bool is_of_file() const override { return true; }

 private:
  enum class Format { json, text, verbose_json, srt, vtt };
  struct Segment {
    double start = 0, end = 0;  ///< seconds
    std::string text;
  };
  class Reading;

  TranscriptionRequest() = default;
  void on_event(const std::string& type, const nlohmann::json& event) override;
  void note(const nlohmann::json& noted);
  void utterance_over();
  void end_if_done();
  void send_delta();
  void end();
  std::string whole_text() const;
  http::Response whole() const;

  std::unique_ptr<SoundSource> sound_;
  double seconds_ = 0;
  Format format_ = Format::json;
  std::string language_;
  bool stream_ = false;
  std::vector<Segment> segments_;
  std::int64_t utterances_ = 0;  ///< that have ended and are not noted yet
  bool speaking_ = false, flushed_ = false;
};

}  // namespace parlando::gateway
