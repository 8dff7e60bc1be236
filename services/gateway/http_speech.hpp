#pragma once
/// `POST /v1/audio/speech`: a text is spoken in a conversation that is not kept, and leaves as it is made.
#include "services/gateway/http_chat.hpp"

namespace parlando::gateway {

class SpeechRequest final : public HttpRequest {
 public:
  static ApiResult<std::unique_ptr<SpeechRequest>> make(std::string_view body, RequestHead head);
  void start() override;

 private:
  explicit SpeechRequest(SpeechSound sound) : sound_(std::move(sound)) {}
  void on_event(const std::string& type, const nlohmann::json& event) override;
  void on_sound(std::string_view pcm) override;
  void send(std::string bytes);

  SpeechSound sound_;
  audio::Encoding encoding_ = audio::Encoding::mp3;
  std::string open_, text_;
  bool events_ = false;
  std::int64_t samples_ = 0;  ///< of speech
};

}  // namespace parlando::gateway
