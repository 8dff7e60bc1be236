#include "services/controller/http_tool_server.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>

#include "common/base/assert.hpp"
#include "common/base/nesting.hpp"

namespace parlando::controller {
using nlohmann::json;

namespace {
constexpr int kResultDepthMax = 16;
constexpr int kStatusGood = 200, kStatusElse = 300;
}  // namespace

HttpToolServer::HttpToolServer(http::Url url, Limits limits)
    : url_(std::move(url)),
      limits_(limits),
      wake_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
      give_up_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  PARLANDO_ASSERT(wake_ >= 0 && give_up_ >= 0, "event descriptors are needed to tell of answers and to give up");
  limits_.post.give_up = give_up_;
  for (int i = 0; i < limits_.threads; ++i) threads_.emplace_back([this] { run(); });
}

HttpToolServer::~HttpToolServer() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
    waiting_.clear();
  }
  more_.notify_all();
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto ignored = ::write(give_up_, &one, sizeof one);
  for (auto& thread : threads_) thread.join();
  ::close(wake_);
  ::close(give_up_);
}

bool HttpToolServer::ask(Ask ask) {
  {
    const std::lock_guard lock(mutex_);
    auto& calls = calls_[ask.session];
    if (waiting_.size() >= limits_.waiting_max || calls >= limits_.session_max) {
      if (calls == 0) calls_.erase(ask.session);
      return false;
    }
    ++calls;
    const auto until = std::chrono::steady_clock::now() + ask.budget;
    waiting_.push_back({std::move(ask), until});
  }
  more_.notify_one();
  return true;
}

void HttpToolServer::forget(SessionId session, const std::string& id) {
  const std::lock_guard lock(mutex_);
  const auto its = [&](const Waiting& w) { return w.ask.session == session && w.ask.id == id; };
  const auto found = std::find_if(waiting_.begin(), waiting_.end(), its);
  if (found == waiting_.end()) return;  // it is being made, and its answer will find nobody
  waiting_.erase(found);
  if (--calls_[session] == 0) calls_.erase(session);
}

std::vector<ToolServer::Answer> HttpToolServer::take() {
  std::uint64_t count = 0;
  [[maybe_unused]] const auto ignored = ::read(wake_, &count, sizeof count);
  const std::lock_guard lock(mutex_);
  return std::exchange(answers_, {});
}

/// The next call that somebody waits for. One session's slow calls leave threads for those of the others.
/// @return nothing: it is over
std::optional<HttpToolServer::Waiting> HttpToolServer::next() {
  const int at_once = std::max(1, limits_.threads / 2);
  std::unique_lock lock(mutex_);
  for (;;) {
    auto found = waiting_.end();
    more_.wait(lock, [&] {
      found = std::find_if(waiting_.begin(), waiting_.end(), [&](const Waiting& w) {
        const auto its = made_.find(w.ask.session);
        return its == made_.end() || its->second < at_once;
      });
      return ends_ || found != waiting_.end();
    });
    if (ends_) return std::nullopt;
    auto call = std::move(*found);
    waiting_.erase(found);
    if (std::chrono::steady_clock::now() < call.until) {
      ++made_[call.ask.session];
      return call;
    }
    if (--calls_[call.ask.session] == 0) calls_.erase(call.ask.session);
  }
}

void HttpToolServer::run() {
  while (auto call = next()) {
    auto result = result_of(*call);
    const auto session = call->ask.session;
    {
      const std::lock_guard lock(mutex_);
      if (--calls_[session] == 0) calls_.erase(session);
      if (--made_[session] == 0) made_.erase(session);
      answers_.push_back({session, call->ask.id, std::move(result)});
    }
    more_.notify_all();  // its place is free for a call of the same session
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto ignored = ::write(wake_, &one, sizeof one);
  }
}

json HttpToolServer::result_of(const Waiting& call) const {
  const auto& ask = call.ask;
  const json body{{"name", ask.name},
                  {"arguments", ask.arguments},
                  {"session", ask.session.text()},
                  {"turn", ask.turn.value},
                  {"id", ask.id}};
  auto limits = limits_.post;
  limits.time_max = std::min(
      limits.time_max, std::chrono::ceil<std::chrono::milliseconds>(call.until - std::chrono::steady_clock::now()));
  const auto text = body.dump(-1, ' ', false, json::error_handler_t::replace);
  const auto answer = http::post(url_, text, "application/json", limits);
  if (!answer) return {{"error", "the tool server: " + answer.error().message}};
  if (answer->status < kStatusGood || answer->status >= kStatusElse)
    return {{"error", fmt::format("the tool server answers with status {}", answer->status)}};
  auto parsed = nested_deeper_than(answer->body, kResultDepthMax) ? json(json::value_t::discarded)
                                                                  : json::parse(answer->body, nullptr, false);
  return parsed.is_discarded() ? json(answer->body) : parsed;
}

}  // namespace parlando::controller
