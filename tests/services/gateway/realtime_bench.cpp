/// What a frame of 20 ms costs between a realtime client's text and its conversation's sound, both ways: median of 15
/// runs of 5000 frames, and the spread of the middle half.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "common/base/base64.hpp"
#include "services/gateway/realtime.hpp"

namespace {
using namespace parlando;
using namespace parlando::gateway;
using nlohmann::json;

constexpr int kRuns = 15, kFrames = 5000;

template <class F>
void measure(const std::string& name, F&& frame) {
  std::vector<double> runs;
  for (int run = 0; run < kRuns; ++run) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kFrames; ++i) frame();
    runs.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() /
                   kFrames);
  }
  std::sort(runs.begin(), runs.end());
  fmt::print("{:<28} {:6.2f} us ({:.2f} to {:.2f})\n", name, runs[kRuns / 2], runs[kRuns / 4], runs[kRuns * 3 / 4]);
}

std::string tone(int samples) {
  std::string out(static_cast<std::size_t>(2 * samples), '\0');
  for (int i = 0; i < samples; ++i) {
    const auto value = static_cast<std::int16_t>(8000 * std::sin(i * 0.1));
    std::memcpy(out.data() + 2 * i, &value, 2);
  }
  return out;
}

}  // namespace

int main() {
  for (const std::string type : {"audio/pcm", "audio/pcmu", "audio/pcma"}) {
    Realtime translator({.id_prefix = "bench"});
    translator.start();
    const json format{{"format", {{"type", type}}}};
    translator.client_message(
        json{{"type", "session.update"},
             {"session", {{"type", "realtime"}, {"audio", {{"input", format}, {"output", format}}}}}}
            .dump(),
        false);
    const auto wave = tone(480);
    const auto bytes = std::as_bytes(std::span(wave)).first(type == "audio/pcm" ? 960 : 160);
    const auto append =
        json{{"type", "input_audio_buffer.append"}, {"event_id", "event_1"}, {"audio", to_base64(bytes)}}.dump();
    measure(type + " append", [&] {
      translator.client_message(append, false);
      translator.take_for_talks();
    });
    const auto speech = tone(441);
    measure(type + " delta", [&] {
      translator.talk_sound(0, 1, speech);
      translator.take_for_client();
    });
  }
  return 0;
}
