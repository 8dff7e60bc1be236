#include "services/tokenizer/model/turn_end.hpp"

#include <ATen/ATen.h>

#include <boost/test/unit_test.hpp>
#include <cmath>
#include <fstream>
#include <random>

#include "common/audio/audio_file.hpp"
#include "common/base/result.hpp"
#include "common/checkpoint/safetensors.hpp"
#include "common/tensor/torch_bridge.hpp"
#include "services/tokenizer/model/live.hpp"
#include "services/tokenizer/model/prosody.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::tokenizer {
namespace {
namespace fs = std::filesystem;

const fs::path kBundledModel = fs::path(PARLANDO_SOURCE_DIR) / "models/nano";
constexpr std::int64_t kWidth = 7, kSeen = kWidth + kProsodyWidth, kInner = 6, kMemory = 4, kHidden = 5, kNets = 2;

using Numbers = std::map<std::string, std::vector<float>>;
struct Small {
  checkpoint::TensorMap tensors;
  Numbers values;
};

Small small(std::uint32_t seed) {
  Small out;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.6f);
  const std::pair<const char*, checkpoint::Shape> shapes[] = {{"in.weight", {kInner, kSeen}},
                                                              {"in.bias", {kInner}},
                                                              {"gru.weight_ih_l0", {3 * kMemory, kInner}},
                                                              {"gru.weight_hh_l0", {3 * kMemory, kMemory}},
                                                              {"gru.bias_ih_l0", {3 * kMemory}},
                                                              {"gru.bias_hh_l0", {3 * kMemory}},
                                                              {"hidden.weight", {kHidden, kMemory + 1}},
                                                              {"hidden.bias", {kHidden}},
                                                              {"out.weight", {1, kHidden}},
                                                              {"out.bias", {1}}};
  for (int net = 0; net < kNets; ++net)
    for (const auto& [of, shape] : shapes) {
      const auto name = fmt::format("nets.{}.{}", net, of);
      auto& values = out.values[name];
      values.resize(static_cast<std::size_t>(*checkpoint::elements_of(shape)));
      for (auto& v : values) v = normal(random);
      out.tensors[name] = checkpoint::make_f32(shape, values);
    }
  return out;
}

/// The definition, number by number in double precision.
double reference(const Numbers& w, const std::vector<float>& seen, std::int64_t rows, double seconds) {
  double logits = 0;
  for (int net = 0; net < kNets; ++net) {
    const auto at = [&](const char* of, std::int64_t i) {
      return static_cast<double>(w.at(fmt::format("nets.{}.{}", net, of))[static_cast<std::size_t>(i)]);
    };
    const auto product = [&](const char* weight, const char* bias, std::int64_t row, const std::vector<double>& x) {
      double sum = at(bias, row);
      for (std::size_t k = 0; k < x.size(); ++k)
        sum += at(weight, row * static_cast<std::int64_t>(x.size()) + static_cast<std::int64_t>(k)) * x[k];
      return sum;
    };
    const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
    std::vector<double> memory(kMemory, 0.0);
    for (std::int64_t t = 0; t < TurnEnd::kRows; ++t) {
      std::vector<double> h(kInner, 0.0);  // nothing where the utterance has not begun
      if (const auto row = t - (TurnEnd::kRows - rows); row >= 0) {
        const auto from = seen.begin() + static_cast<std::ptrdiff_t>(row * kSeen);
        const std::vector<double> x(from, from + kSeen);
        for (std::int64_t c = 0; c < kInner; ++c)
          h[static_cast<std::size_t>(c)] = std::max(0.0, product("in.weight", "in.bias", c, x));
      }
      const auto before = memory;
      const auto in = [&](std::int64_t row) { return product("gru.weight_ih_l0", "gru.bias_ih_l0", row, h); };
      const auto kept = [&](std::int64_t row) { return product("gru.weight_hh_l0", "gru.bias_hh_l0", row, before); };
      for (std::int64_t c = 0; c < kMemory; ++c) {
        const auto reset = sigmoid(in(c) + kept(c)), update = sigmoid(in(kMemory + c) + kept(kMemory + c));
        const auto fresh = std::tanh(in(2 * kMemory + c) + reset * kept(2 * kMemory + c));
        auto& value = memory[static_cast<std::size_t>(c)];
        value = (1 - update) * fresh + update * value;
      }
    }
    memory.push_back(0.5 * std::log1p(seconds));
    logits += at("out.bias", 0);
    for (std::int64_t i = 0; i < kHidden; ++i)
      logits += at("out.weight", i) * std::max(0.0, product("hidden.weight", "hidden.bias", i, memory));
  }
  return 1 / (1 + std::exp(-logits / kNets));
}

std::vector<float> wave_of(const char* question) {
  const auto audio = *audio::read_audio(kBundledModel / "questions" / question);
  BOOST_REQUIRE(audio.rate == 16000);
  return audio.wave;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(turn_end)

BOOST_AUTO_TEST_CASE(it_is_what_its_definition_says) {
  for (std::uint32_t seed = 1; seed <= 3; ++seed) {
    const auto [tensors, values] = small(seed);
    const TurnEnd net(tensors, kWidth, "small");
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (const std::int64_t rows : {1, 2, 5, 8, 9, 31, 32}) {
      std::vector<float> states(static_cast<std::size_t>(rows * kSeen));
      for (auto& v : states) v = normal(random);
      for (const double seconds : {0.4, 2.0, 30.0})
        // Two hundred additions of numbers of about one in float32.
        BOOST_TEST(std::abs(net.completeness(tensor::from_values(states, {rows, kSeen}), seconds) -
                            reference(values, states, rows, seconds)) < 1e-5,
                   "seed " << seed << ", " << rows << " rows");
    }
  }
}

BOOST_AUTO_TEST_CASE(rows_before_the_latest_change_nothing) {
  const TurnEnd net(small(4).tensors, kWidth, "small");
  const auto many = at::randn({50, kSeen});
  BOOST_TEST(net.completeness(many, 3) == net.completeness(many.narrow(0, 18, 32), 3));
  BOOST_TEST(at::equal(latest_rows(many.narrow(0, 0, 30), many.narrow(0, 30, 20)), many.narrow(0, 18, 32)));
  BOOST_TEST(at::equal(latest_rows({}, many.narrow(0, 0, 3)), many.narrow(0, 0, 3)));
  BOOST_TEST(!latest_rows({}, {}).defined());
}

BOOST_AUTO_TEST_CASE(nothing_is_not_complete) {
  const TurnEnd net(small(5).tensors, kWidth, "small");
  BOOST_TEST(net.completeness({}, 0) == 0);
  BOOST_TEST(net.completeness(at::zeros({0, kSeen}), 0) == 0);
}

BOOST_AUTO_TEST_CASE(a_tensor_that_is_missing_misshapen_or_left_over_is_named) {
  const auto refused = [](checkpoint::TensorMap tensors) {
    try {
      TurnEnd net(std::move(tensors), kWidth, "the file");
    } catch (const Failure& failure) {
      BOOST_TEST((failure.error.code == Errc::checkpoint_mismatch));
      return failure.error.message;
    }
    return std::string("taken");
  };
  const auto good = small(6).tensors;
  for (const auto& [name, data] : good) {
    auto tensors = good;
    tensors.erase(name);
    BOOST_TEST(refused(tensors).find(name) != std::string::npos, name);
    tensors[name] = checkpoint::make_f32({3, 11}, std::vector<float>(33));
    BOOST_TEST(refused(tensors).find("the file") != std::string::npos, name);
  }
  auto tensors = good;
  tensors["more"] = checkpoint::make_f32({1}, {0});
  BOOST_TEST(refused(tensors).find("more") != std::string::npos);
  BOOST_TEST(refused({}) != "taken");
}

BOOST_AUTO_TEST_CASE(a_tokenizer_without_the_file_knows_no_completeness_and_has_the_same_codes) {
  const TemporaryDirectory folder;
  for (const char* name : {"tokenizer.json", "linguistic.safetensors", "semantic.safetensors"})
    fs::copy(kBundledModel / "Step-Audio-Tokenizer" / name, folder.path() / name);
  const auto without = *SpeechTokenizer::load(folder.path()),
             with = *SpeechTokenizer::load(kBundledModel / "Step-Audio-Tokenizer");
  BOOST_TEST(!without->knows_completeness());
  BOOST_TEST(with->knows_completeness());
  const auto wave = wave_of("weather_in_paris.wav");
  for (const bool exact : {true, false}) {
    LiveTokenizer a(without, {}), b(with, {});
    BOOST_REQUIRE((a.push(wave).has_value() && b.push(wave).has_value()));
    const auto x = exact ? *a.exact(wave.size()) : *a.stable(wave.size());
    const auto y = exact ? *b.exact(wave.size()) : *b.stable(wave.size());
    BOOST_TEST((x.codes == y.codes));
    BOOST_TEST(x.completeness == TurnEnd::kUnknown);
    BOOST_TEST((y.completeness >= 0 && y.completeness <= 1));
    BOOST_TEST(y.states.size(0) == TurnEnd::kRows);
  }
  std::ofstream(folder.path() / "turn_end.safetensors") << "nonsense";
  const auto broken = SpeechTokenizer::load(folder.path());
  BOOST_REQUIRE(!broken.has_value());
  BOOST_TEST(broken.error().message.find("turn_end.safetensors") != std::string::npos, broken.error().message);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::tokenizer
