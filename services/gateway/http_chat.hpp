#pragma once
/// `POST /v1/chat/completions`: the messages become items of a conversation that is not kept, sound among them
/// utterances that are noted, and `respond` asks for the answer.
#include <map>
#include <mutex>
#include <optional>

#include "services/gateway/http_request.hpp"

namespace parlando::gateway {

/// What is known of a request beside its body.
struct RequestHead {
  std::string id;            ///< 32 hexadecimal digits
  std::int64_t created = 0;  ///< Unix time, seconds
};

template <class T>
using ApiResult = tl::expected<T, ApiError>;

/// What was said aloud, for clients that name an answer by its id in a later request. The oldest go. Any thread.
class SpokenAnswers {
 public:
  static constexpr std::int64_t kSeconds = 3600;
  void add(const std::string& id, std::string text, std::int64_t now_seconds);
  std::optional<std::string> find(const std::string& id, std::int64_t now_seconds) const;
  std::size_t size() const {
    const std::lock_guard lock(mutex_);
    return entries_.size();
  }

 private:
  static constexpr std::size_t kMost = 1000, kTextBytesMax = 8192;
  struct Entry {
    std::string text;
    std::int64_t until = 0;
  };
  mutable std::mutex mutex_;
  std::map<std::string, Entry> entries_;
  std::deque<std::string> order_;
};

class ChatCompletion final : public HttpRequest {
 public:
  /// @param spoken  outlives the request
  static ApiResult<std::unique_ptr<ChatCompletion>> make(std::string_view body, RequestHead head,
                                                         SpokenAnswers& spoken);
  void start() override;

 private:
  /// One message of the session, or sound that is an utterance of the user.
  struct Step {
    std::string message;
    std::unique_ptr<SoundSource> sound;
    std::string param;  ///< where the sound stands in the request
  };
  struct AudioOut {
    audio::Encoding encoding;
    std::string id;
  };
  class Reading;

  ChatCompletion(RequestHead head, SpokenAnswers& spoken) : head_(std::move(head)), spoken_(spoken) {}
  void go_on();
  void on_event(const std::string& type, const nlohmann::json& event) override;
  void on_sound(std::string_view pcm) override;
  void on_text(std::string_view text);
  void on_tool_call(const nlohmann::json& call);
  void end(std::string_view finish_reason, const nlohmann::json& turn);
  void send_chunk(nlohmann::json delta, const char* finish_reason = nullptr);
  void begin_if_needed();
  nlohmann::json base(const char* object) const;

  RequestHead head_;
  SpokenAnswers& spoken_;
  std::string model_, open_;
  std::deque<Step> steps_;
  bool stream_ = false, include_usage_ = false;
  bool spoken_turn_ = false;  ///< the last step is sound that is answered by itself
  std::optional<AudioOut> audio_;
  std::optional<SpeechSound> encoder_;
  std::string sound_param_;  ///< of the utterance that is being understood; empty: none is
  std::string text_, sound_;
  std::string calls_;  ///< JSON array, as the answer tells them
  int call_count_ = 0;
};

}  // namespace parlando::gateway
