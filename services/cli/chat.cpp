#include "services/cli/chat.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <iostream>

#include "services/cli/sound_device.hpp"
#include "services/cli/trace_view.hpp"

namespace parlando::cli {
using nlohmann::json;
using std::chrono::milliseconds;

namespace {

constexpr milliseconds kNextWait{20};
constexpr milliseconds kSend{2'000};
constexpr int kLeadMs = 300;  // of sound in front of the loudspeaker
constexpr std::size_t kLineMax = 60'000;

class Chat {
 public:
  Chat(sdk::Conversation conversation, const ChatOptions& options)
      : conversation_(std::move(conversation)), options_(options), typed_(::isatty(0) == 1) {
    sigemptyset(&stop_);
    sigaddset(&stop_, SIGINT);
    sigaddset(&stop_, SIGTERM);
  }

  Result<void> open_devices() {
    if (options_.speaks || options_.listens) {
      PARLANDO_TRY(loudspeaker_, Loudspeaker::open(options_.loudspeaker, conversation_.rate()));
    }
    if (!options_.listens) return {};
    PARLANDO_TRY(microphone_, Microphone::open(options_.microphone, [this](std::span<const std::int16_t> frame) {
                   const std::vector<std::int16_t> silence(frame.size());
                   const bool muted = options_.mutes && loudspeaker_->is_playing();
                   // What ends the conversation, its listener is told.
                   [[maybe_unused]] const auto sent = guarded([&] {
                     conversation_.send_audio(muted ? std::span<const std::int16_t>(silence) : frame, kSend);
                   });
                 }));
    return {};
  }

  Result<void> run() {
    invite();
    while (true) {
      PARLANDO_TRY(const bool goes_on, look());
      if (!goes_on) break;
      const timespec none{};
      if (const int signal = ::sigtimedwait(&stop_, nullptr, &none); signal > 0) {
        if (signal == SIGTERM || !is_busy()) break;
        PARLANDO_DO(guarded([&] { conversation_.cancel(); }));
        if (loudspeaker_) loudspeaker_->clear();
      }
      PARLANDO_DO(check_devices());
      if (input_ended_ && !is_busy() && !options_.listens) break;
      if (!input_ended_ && !turn_) PARLANDO_DO(read_input());
    }
    if (loudspeaker_) loudspeaker_->wait_until_silent();
    microphone_.reset();
    return {};
  }

 private:
  bool is_busy() { return turn_ || (loudspeaker_ && loudspeaker_->is_playing()); }

  void invite() const {
    if (typed_ && !options_.listens) fmt::print("> ");
    std::fflush(stdout);
  }

  Result<void> check_devices() {
    if (loudspeaker_)
      if (const auto why = loudspeaker_->failure(); !why.empty())
        return fail(Errc::unavailable, "the loudspeaker cannot be used: aplay says: {}", why);
    if (microphone_)
      if (const auto why = microphone_->failure(); !why.empty())
        return fail(Errc::unavailable, "the microphone cannot be used: arecord says: {}", why);
    return {};
  }

  /// A line that has been typed, if one has.
  Result<void> read_input() {
    pollfd item{0, POLLIN, 0};
    if (lines_.find('\n') == std::string::npos && ::poll(&item, 1, 0) > 0) {
      char part[4096];
      const auto got = ::read(0, part, sizeof part);
      if (got <= 0) {
        input_ended_ = true;
        if (!lines_.empty()) lines_ += '\n';
      } else {
        lines_.append(part, static_cast<std::size_t>(got));
      }
    }
    const auto end = lines_.find('\n');
    if (end == std::string::npos) {
      if (lines_.size() > kLineMax) return fail(Errc::invalid_argument, "a line has at most {} bytes", kLineMax);
      return {};
    }
    const auto line = lines_.substr(0, end);
    lines_.erase(0, end + 1);
    if (line.find_first_not_of(" \t\r") == std::string::npos) {
      invite();
      return {};
    }
    turn_ = true;
    return guarded([&] { conversation_.say(line); });
  }

  /// What is told, for a moment. @return false: the conversation has ended
  Result<bool> look() {
    try {
      const auto told = conversation_.next(kNextWait);
      if (!told) return false;
      if (const auto* sound = std::get_if<sdk::Sound>(&*told)) {
        if (loudspeaker_) loudspeaker_->play(sound->samples);
      } else {
        on_event(std::get<sdk::Event>(*told));
      }
      return true;
    } catch (const sdk::Error& e) {
      if (e.code == "deadline_exceeded") return true;
      return fail(errc_of(e.code), "{}", e.message);
    }
  }

  void on_event(const sdk::Event& event) {
    if (event.type == "speech_ended") {
      turn_ = true;
    } else if (event.type == "text") {
      on_text(event);
    } else if (event.type == "hold" && loudspeaker_) {
      loudspeaker_->hold();
    } else if (event.type == "release" && loudspeaker_) {
      loudspeaker_->release();
    } else if (event.type == "interrupted") {
      if (loudspeaker_) loudspeaker_->clear();
      fmt::print(" —");
    } else if (event.type == "turn" || event.type == "cancelled") {
      if (says_) fmt::print("\n");
      if (event.type == "turn" && options_.trace)
        fmt::print("{}", draw_trace(json::parse(event.json, nullptr, false).value("trace", json())));
      next_turn();
    } else if (event.type == "error") {
      if (says_) fmt::print("\n");
      if (event.text("code") != "no_speech") std::cerr << "parlando: " << event.text("message") << "\n";
      next_turn();
    }
    std::fflush(stdout);
  }

  void on_text(const sdk::Event& event) {
    const auto kind = event.text("kind"), text = event.text("text");
    if (kind == "transcript") {
      if (options_.listens) fmt::print("you:      {}\n", text);
    } else if (kind == "tool_call") {
      const auto call = json::parse(text, nullptr, false);
      if (call.is_object())
        fmt::print("tool:     {} {} -> {}\n", call.value("name", ""), call.value("arguments", json()).dump(),
                   call.value("result", json()).dump());
    } else if (kind == "text" && !text.empty()) {
      if (!std::exchange(says_, true)) fmt::print("parlando: ");
      fmt::print("{}", text);
    }
  }

  void next_turn() {
    turn_ = says_ = false;
    if (!input_ended_) invite();
  }

  sdk::Conversation conversation_;
  const ChatOptions& options_;
  bool typed_;
  sigset_t stop_;
  std::unique_ptr<Loudspeaker> loudspeaker_;
  std::unique_ptr<Microphone> microphone_;
  std::string lines_;
  bool input_ended_ = false;
  bool turn_ = false;  ///< something was said that is not answered yet
  bool says_ = false;  ///< the answer's line is begun
};

Result<void> run_chat(const Common& common, const ChatOptions& options) {
  const bool aloud = options.speaks || options.listens;
  // Before the engine's threads: they leave Ctrl-C to us.
  service::block_signals();
  PARLANDO_TRY(auto client, EngineClient::start(options.address, engine_options(common),
                                                {.hears = options.listens, .answers = true, .speaks = aloud}));
  json settings{{"speak", aloud}, {"seed", common.seed}, {"stored", !client.is_own()}};
  if (aloud) settings["lead_ms"] = kLeadMs;
  if (!options.system.empty()) settings["system"] = options.system;
  if (!options.speaker.empty()) settings["speaker"] = options.speaker;
  if (options.listens) settings["detection"] = {{"type", options.detector}};
  PARLANDO_TRY(auto conversation, client.open(std::move(settings)));
  Chat chat(std::move(conversation), options);
  PARLANDO_DO(chat.open_devices());
  if (::isatty(0) == 1)
    fmt::print("{}; Ctrl-C stops an answer, or ends this\n",
               options.listens ? "speak (with headphones: what the loudspeaker says would be heard as you)"
                               : "type a question and Enter");
  return chat.run();
}

}  // namespace

int chat(const Common& common, const ChatOptions& options) {
  const auto done = run_chat(common, options);
  return done ? kOk : report(done.error(), common.as_json);
}

}  // namespace parlando::cli
