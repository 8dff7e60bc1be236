#include "tests/fuzz/targets.hpp"

#include <memory>

#include "common/audio/audio_file.hpp"
#include "common/base/speech_tags.hpp"
#include "common/checkpoint/import.hpp"
#include "common/checkpoint/npy.hpp"
#include "common/checkpoint/onnx.hpp"
#include "common/checkpoint/safetensors.hpp"
#include "common/checkpoint/torch_zip.hpp"
#include "common/protocol/codec.hpp"
#include "services/llm/model/text_tokenizer.hpp"

namespace parlando::fuzz {
namespace {

/// Reads every byte of every tensor, so that a span outside the input is found by the sanitizer.
void touch(const checkpoint::TensorMap& tensors) {
  unsigned sum = 0;
  for (const auto& [name, tensor] : tensors)
    for (const auto b : tensor.bytes) sum += std::to_integer<unsigned>(b);
  volatile unsigned sink = sum;
  (void)sink;
}

const std::vector<Target> kTargets = {
    {"safetensors",
     [](std::span<const std::byte> in) {
       if (auto r = checkpoint::parse_safetensors(in, nullptr, "input")) touch(r->tensors);
     }},
    {"torch_zip",
     [](std::span<const std::byte> in) {
       if (auto r = checkpoint::parse_torch_file(in, nullptr, "input")) touch(*r);
     }},
    {"onnx",
     [](std::span<const std::byte> in) {
       const auto graph = checkpoint::parse_onnx(in, nullptr, "input");
       if (!graph) return;
       touch(graph->initializers);
       if (auto w = checkpoint::semantic_weights_of(*graph, "input")) touch(w->tensors);
       if (auto w = checkpoint::campplus_weights_of(*graph, "input")) touch(*w);
     }},
    {"npy",
     [](std::span<const std::byte> in) {
       if (auto r = checkpoint::parse_npy(in, nullptr, "input")) touch({{"array", *r}});
     }},
    {"sentencepiece",
     [](std::span<const std::byte> in) {
       const auto tok = llm::TextTokenizer::parse(in, "input");
       if (!tok) return;
       const auto ids = (*tok)->encode(" hello <s> w\xc3\xb6rld \xff\xfe");
       (*tok)->decode(ids);
     }},
    {"wav", [](std::span<const std::byte> in) { (void)audio::read_audio(in, "input", 5); }},
    {"message",  // three frames: the first two bytes say how long the envelope and the body are
     [](std::span<const std::byte> in) {
       if (in.size() < 2) return;
       const auto rest = in.subspan(2);
       const auto first = std::min<std::size_t>(std::to_integer<std::size_t>(in[0]), rest.size()),
                  second = std::min<std::size_t>(std::to_integer<std::size_t>(in[1]), rest.size() - first);
       const std::span<const std::byte> frames[] = {rest.first(first), rest.subspan(first, second),
                                                    rest.subspan(first + second)};
       auto decoded = protocol::decode(frames);
       if (!decoded) return;
       for (const auto& m : decoded->messages)
         if (!m.unknown) (void)protocol::encode(m);
     }},
    {"mesh", run_mesh},
    {"cmvn",
     [](std::span<const std::byte> in) {
       (void)checkpoint::parse_cmvn({reinterpret_cast<const char*>(in.data()), in.size()}, "input");
     }},
    {"tag",
     [](std::span<const std::byte> in) {
       (void)tts_mode({reinterpret_cast<const char*>(in.data()), in.size()}, "x", false);
     }},
};

}  // namespace

const std::vector<Target>& targets() { return kTargets; }

}  // namespace parlando::fuzz

#ifdef PARLANDO_FUZZ_TARGET
extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, std::size_t size) {
  for (const auto& target : parlando::fuzz::targets())
    if (target.name == PARLANDO_FUZZ_TARGET) target.run(std::as_bytes(std::span(data, size)));
  return 0;
}
#endif
