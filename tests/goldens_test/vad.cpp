#include <ATen/ATen.h>

#include "services/vad/model/silero.hpp"
#include "tests/goldens_test/report.hpp"

namespace parlando::goldens {

bool run_vad(const std::filesystem::path& folder) {
  Report report("vad");
  const auto cases = load_json(folder / "silero_cases.json");
  const auto tensors = load_tensors(folder / "silero_cases.safetensors");
  auto weights =
      vad::SileroWeights::load(std::filesystem::path(PARLANDO_SOURCE_DIR) / "models/silero-vad/silero_vad.safetensors");
  if (!weights) throw Failure{weights.error()};
  for (const auto& [name, info] : cases.items()) {
    report.begin("silero", name);
    const auto pcm = tensor_of(tensors, name + ".pcm16").to(at::kFloat).div(32768).contiguous();
    const auto want = tensor_of(tensors, name + ".prob");
    vad::Silero net(*weights);
    std::vector<float> got;
    for (std::int64_t at = 0; at + vad::kFrameSamples <= pcm.numel(); at += vad::kFrameSamples)
      got.push_back(net(std::span<const float, vad::kFrameSamples>(pcm.data_ptr<float>() + at, vad::kFrameSamples)));
    report.near("prob", got, want, {1e-4});
    report.equal("frames", info.at("frames").get<std::int64_t>() == static_cast<std::int64_t>(got.size()));
  }
  return report.print();
}

}  // namespace parlando::goldens
