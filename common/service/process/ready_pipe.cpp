#include "common/service/process/ready_pipe.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <string_view>

namespace parlando::service::process {

namespace {
constexpr std::size_t kLineCharactersMax = 100;
}

ReadyPipe ReadyPipe::of_environment() {
  ReadyPipe out;
  const char* text = std::getenv(kReadyVariable);
  if (text == nullptr) return out;
  const std::string_view digits(text);
  int number = -1;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error == std::errc() && end == digits.data() + digits.size()) out.descriptor_ = number;
  return out;
}

void ReadyPipe::write(const std::string& line) {
  if (descriptor_ < 0) return;
  [[maybe_unused]] const auto ignored = ::write(descriptor_, line.data(), line.size());
}

void ReadyPipe::ready(int port) { write(fmt::format("ready {}\n", port)); }

void ReadyPipe::alive() { write("alive\n"); }

AnswerWatch::AnswerWatch(milliseconds limit, Time now, Ask ask)
    : limit_(limit), answered_at_(now), ask_(std::move(ask)) {}

bool AnswerWatch::alive(Time now) {
  if (answered_->load()) {
    if (asked_) answered_at_ = now;
    answered_->store(false);
    asked_ = ask_([answered = answered_] { answered->store(true); });
    if (!asked_) answered_->store(true);
  }
  return now - answered_at_ <= limit_;
}

void ReadyLines::take(const char* bytes, std::size_t count) {
  for (const char c : std::string_view(bytes, count)) {
    if (c != '\n') {
      if (line_.size() < kLineCharactersMax) line_ += c;
      continue;
    }
    constexpr std::string_view kReady = "ready";
    if (line_.starts_with(kReady)) {
      port_ = 0;
      const auto at = line_.find_first_not_of(' ', kReady.size());
      if (at != std::string::npos) std::from_chars(line_.data() + at, line_.data() + line_.size(), *port_);
    }
    line_.clear();
  }
}

}  // namespace parlando::service::process
