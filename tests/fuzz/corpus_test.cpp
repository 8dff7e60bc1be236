/// Runs every fuzz target over its corpus and over seeded mutations of it; what libFuzzer finds is added to
/// tests/fuzz/corpus.
#define BOOST_TEST_MODULE fuzz_corpus
#include <algorithm>
#include <boost/test/unit_test.hpp>
#include <cstring>
#include <filesystem>
#include <random>

#include "common/audio/audio_file.hpp"
#include "common/base/mapped_file.hpp"
#include "common/checkpoint/safetensors.hpp"
#include "common/protocol/codec.hpp"
#include "tests/fuzz/targets.hpp"
#include "tests/support/temporary_directory.hpp"

namespace fs = std::filesystem;
namespace parlando::fuzz {
namespace {

std::string small_safetensors() {
  const TemporaryDirectory folder;
  checkpoint::TensorMap tensors;
  tensors["a"] = checkpoint::make_f32({2, 3}, {1, 2, 3, 4, 5, 6});
  tensors["b.weight"] = checkpoint::make_f32({4}, {1, 2, 3, 4});
  BOOST_REQUIRE(checkpoint::write_safetensors(folder.path() / "x.safetensors", tensors, {{"k", "v"}}));
  return *read_file(folder.path() / "x.safetensors");
}

/// Valid inputs per target: the corpus folder plus small files of the reference values.
std::vector<std::string> seeds(const std::string& target) {
  std::vector<std::string> out;
  const fs::path corpus = fs::path(PARLANDO_SOURCE_DIR) / "tests/fuzz/corpus" / target,
                 goldens = fs::path(PARLANDO_SOURCE_DIR) / "tests/goldens";
  if (fs::is_directory(corpus))
    for (const auto& file : fs::directory_iterator(corpus)) out.push_back(*read_file(file.path()));
  if (target == "safetensors") out.push_back(small_safetensors());
  if (target == "sentencepiece") out.push_back(*read_file(goldens / "lm/tiny-step1/tokenizer.model"));
  if (target == "wav") out.push_back(audio::encode_wav(std::vector<float>(500, 0.25f), 16000));
  if (target == "message")
    for (const auto type :
         {protocol::MessageType::audio, protocol::MessageType::hello, protocol::MessageType::window}) {
      protocol::Message m;
      m.head.type = type;
      m.head.sequence = 3;
      m.body = R"({"received":1,"limit":[2,{"x":"y"}]})";
      if (type == protocol::MessageType::audio) m.payload.assign(40, std::byte{7});
      const auto f = protocol::encode(m);
      out.push_back(std::string{static_cast<char>(f.envelope.size()), static_cast<char>(f.body.size())} +
                    std::string(reinterpret_cast<const char*>(f.envelope.data()), f.envelope.size()) + f.body +
                    std::string(reinterpret_cast<const char*>(f.payload.data()), f.payload.size()));
    }
  if (target == "tag") out.push_back("（RAP）(x)哼唱");
  if (target == "npy")
    out.push_back(read_file(goldens / "tokenizer/ckpt/linguistic_tokenizer.npy")->substr(0, 128 + 4 * 64 * 4));
  if (target == "cmvn")
    for (const auto& file : fs::recursive_directory_iterator(goldens / "tokenizer/ckpt"))
      if (file.path().filename() == "am.mvn") out.push_back(*read_file(file.path()));
  if (target == "onnx") out.push_back(read_file(goldens / "tokenizer/ckpt/speech_tokenizer_v1.onnx")->substr(0, 20000));
  return out;
}

void run(const Target& target, const std::string& input) {
  // An exact-size heap copy, so that a sanitizer sees the first byte read past the end.
  const std::vector<std::byte> bytes(reinterpret_cast<const std::byte*>(input.data()),
                                     reinterpret_cast<const std::byte*>(input.data()) + input.size());
  target.run(bytes);
}

}  // namespace

BOOST_AUTO_TEST_CASE(no_reader_of_foreign_bytes_crashes_on_its_corpus_or_on_mutations_of_it) {
  for (const auto& target : targets()) {
    const auto inputs = seeds(target.name);
    BOOST_TEST(!inputs.empty(), "target " << target.name << " has no seeds");
    std::mt19937 random(20250217);
    run(target, "");
    int ran = 0;
    for (const auto& seed : inputs) {
      run(target, seed);
      const int rounds = seed.size() > 100000 ? 60 : 400;
      for (int i = 0; i < rounds; ++i, ++ran) {
        auto mutated = seed;
        const int kind = static_cast<int>(random() % 4);
        if (kind == 0) mutated.resize(random() % (mutated.size() + 1));
        for (int n = static_cast<int>(random() % 8); n >= 0 && !mutated.empty(); --n) {
          // Headers decide; two thirds of the flips go into the first kilobyte.
          const auto at = random() % std::min<std::size_t>(mutated.size(), random() % 3 ? 1024 : mutated.size());
          if (kind == 1)
            mutated[at] = static_cast<char>(0xff);
          else
            mutated[at] = static_cast<char>(random());
        }
        if (kind == 3)
          mutated.insert(random() % (mutated.size() + 1), std::string(random() % 16, static_cast<char>(random())));
        run(target, mutated);
      }
    }
    BOOST_TEST_MESSAGE(target.name << ": " << ran << " inputs");
  }
}

BOOST_AUTO_TEST_CASE(known_bad_files_are_refused_with_the_value_seen) {
  auto good = small_safetensors();
  auto refuse = [](const std::string& bytes, const std::string& words) {
    const auto r = checkpoint::parse_safetensors(std::as_bytes(std::span(bytes)), nullptr, "bad.safetensors");
    BOOST_REQUIRE(!r);
    BOOST_TEST(r.error().message.find(words) != std::string::npos, r.error().message);
    BOOST_TEST(r.error().message.find("bad.safetensors") != std::string::npos);
  };
  refuse(good.substr(0, 5), "at least 8");
  refuse(good.substr(0, good.size() - 4), "truncated");
  auto huge = good;
  const std::uint64_t length = 1ull << 63;
  std::memcpy(huge.data(), &length, 8);
  refuse(huge, "header length 9223372036854775808");
  auto overlap = good;
  overlap.replace(overlap.find("[24,40]"), 7, "[20,36]");
  refuse(overlap, "overlap");
  auto type = good;
  type.replace(type.find("F32"), 3, "F99");
  refuse(type, "'F99'");
}

}  // namespace parlando::fuzz
