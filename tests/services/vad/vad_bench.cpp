/// CPU time of VadCore::on_message for 20 ms of sound. Usage: bench_vad [SESSIONS]
#include <algorithm>
#include <cstdlib>
#include <ctime>

#include "common/audio/audio_file.hpp"
#include "common/base/pcm.hpp"
#include "services/vad/vad_core.hpp"

namespace {

using namespace parlando;

double cpu_seconds() {
  timespec t;
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

}  // namespace

int main(int argc, char** argv) {
  const auto sessions = static_cast<std::uint64_t>(argc > 1 ? std::atoi(argv[1]) : 1);
  const std::filesystem::path root = PARLANDO_SOURCE_DIR;
  const auto weights = vad::SileroWeights::load(root / "models/silero-vad/silero_vad.safetensors");
  const auto sound = audio::read_audio(root / "models/nano/questions/capital_of_france.wav");
  if (!weights || !sound) {
    fmt::print(stderr, "{}\n", weights ? sound.error().message : weights.error().message);
    return 1;
  }
  const auto pcm = to_pcm16(sound->wave);
  constexpr std::size_t kPacket = 640;
  const auto packets = pcm.size() / kPacket;
  std::vector<double> mean;
  std::vector<double> each;
  for (int round = 0; round < 12; ++round) {
    vad::VadCore core({}, *weights);
    protocol::Envelope head;
    const auto to = [&](std::uint64_t session) {
      head.session = {session, 7};
      head.stream = {1};
      return head;
    };
    for (std::uint64_t s = 0; s < sessions; ++s)
      core.on_message("controller-0123456789", protocol::pack(protocol::OpenVad{}, to(s)), {});
    double sum = 0;
    for (std::size_t n = 0; n < packets; ++n)
      for (std::uint64_t s = 0; s < sessions; ++s) {
        const auto* at = pcm.data() + n * kPacket;
        auto message =
            protocol::pack(protocol::Audio{static_cast<std::int64_t>(n * kPacket / 2), {at, at + kPacket}}, to(s));
        const auto start = cpu_seconds();
        core.on_message("controller-0123456789", std::move(message), {});
        const auto took = cpu_seconds() - start;
        sum += took;
        if (round > 1) each.push_back(took);
      }
    if (round > 1) mean.push_back(sum / static_cast<double>(packets * sessions));
  }
  std::sort(mean.begin(), mean.end());
  std::sort(each.begin(), each.end());
  const auto at = [&](double q) {
    return 1e6 * each[static_cast<std::size_t>(q * static_cast<double>(each.size() - 1))];
  };
  fmt::print(
      "on_message of 20 ms, {} sessions: mean of a run {:.1f} us (median of {}, {:.1f} to {:.1f}); p50 {:.1f} p99 "
      "{:.1f} us\n",
      sessions, 1e6 * mean[mean.size() / 2], mean.size(), 1e6 * mean.front(), 1e6 * mean.back(), at(0.5), at(0.99));
}
