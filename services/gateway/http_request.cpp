#include "services/gateway/http_request.hpp"

#include "services/gateway/http_fields.hpp"

namespace parlando::gateway {
using nlohmann::json;

void HttpRequest::event(std::string_view text) try {
  if (over_) return;
  const auto event = json::parse(text, nullptr, false);  // our own: made by client_message.cpp
  const auto type = event.value("type", "");
  if (type != "error") return on_event(type, event);
  const auto error =
      api_error(event.value("code", ""), event.value("message", ""), event.value("retry_ms", std::int64_t{0}));
  if (event.value("session_ended", false)) return fail(error);
  on_event(type, event);
} catch (const json::exception& e) {  // a record or a call of a controller with a field of another kind
  fail({500, fmt::format("the session told something that makes no sense: {}", e.what()), {}, "internal"});
}

void HttpRequest::sound(std::string_view pcm) {
  if (!over_) on_sound(pcm);
}

void HttpRequest::closed(std::uint16_t code, const std::string& reason) {
  if (over_) return;
  constexpr std::uint16_t kGoingAway = 1001, kTryLater = 1013;
  const bool later = code == kGoingAway || code == kTryLater;
  fail({later ? 503 : 500, reason.empty() ? "the session has ended" : reason, {}, later ? "unavailable" : "internal"});
}

std::vector<HttpRequest::Said> HttpRequest::take_said() {
  std::vector<Said> out;
  while (!over_ && !waiting_.empty() && !paused_) {
    auto& next = waiting_.front();
    if (!next.sound) {
      out.push_back({false, std::move(next.text)});
      waiting_.pop_front();
      continue;
    }
    auto pcm = next.sound->next();
    if (!pcm) {
      fail(api_error(to_string(pcm.error().code), pcm.error().message, 0));
    } else if (!pcm->empty()) {
      said_samples_ += static_cast<std::int64_t>(pcm->size() / kSampleBytes);
      out.push_back({true, std::move(*pcm)});
      break;
    } else {
      waiting_.pop_front();
    }
  }
  return out;
}

void HttpRequest::say(const json& message) { waiting_.push_back({dump(message), nullptr}); }
void HttpRequest::say_sound(std::unique_ptr<SoundSource> sound) { waiting_.push_back({{}, std::move(sound)}); }

void HttpRequest::answer(http::Response response) {
  if (over_) return;
  answered_.push_back({Answered::Kind::whole, std::move(response)});
  over_ = true;
}

void HttpRequest::begin(http::Response head) {
  begun_ = true;
  answered_.push_back({Answered::Kind::begin, std::move(head)});
}

void HttpRequest::part(std::string data) {
  if (!data.empty()) answered_.push_back({Answered::Kind::part, {}, std::move(data)});
}

void HttpRequest::finish() {
  answered_.push_back({Answered::Kind::finish});
  over_ = true;
}

void HttpRequest::fail(const ApiError& error) {
  if (over_) return;
  if (!begun_) return answer(error_response(error));
  if (events_) {
    part("data: " + error_json(error) + "\n\n");
    return finish();
  }
  answered_.push_back({Answered::Kind::abort});
  over_ = true;
}

void HttpRequest::begin_events() {
  events_ = true;
  http::Response head{200, "text/event-stream; charset=utf-8", {}};
  head.headers = {{"X-Accel-Buffering", "no"}};
  begin(std::move(head));
}

void HttpRequest::send_event(const json& data) { part("data: " + dump(data) + "\n\n"); }

void HttpRequest::finish_events(bool done_mark) {
  if (done_mark) part("data: [DONE]\n\n");
  finish();
}

}  // namespace parlando::gateway
