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
#include "tests/support/temporary_directory.hpp"

namespace parlando::tokenizer {
namespace {
namespace fs = std::filesystem;

const fs::path kNano = fs::path(PARLANDO_SOURCE_DIR) / "models/nano";
constexpr std::int64_t kWidth = 7, kInner = 6, kHeads = 2, kHidden = 5, kPooled = (kHeads + 2) * kInner + 1;

using Numbers = std::map<std::string, std::vector<float>>;
struct Small {
  checkpoint::TensorMap tensors;
  Numbers values;
};

Small small(std::uint32_t seed) {
  Small out;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 0.6f);
  const std::pair<const char*, checkpoint::Shape> shapes[] = {{"in.weight", {kInner, kWidth}},
                                                              {"in.bias", {kInner}},
                                                              {"place", {TurnEnd::kRows, kInner}},
                                                              {"conv.weight", {kInner, kInner, 5}},
                                                              {"conv.bias", {kInner}},
                                                              {"attend.weight", {kHeads, kInner}},
                                                              {"hidden.weight", {kHidden, kPooled}},
                                                              {"hidden.bias", {kHidden}},
                                                              {"out.weight", {1, kHidden}},
                                                              {"out.bias", {1}}};
  for (const auto& [name, shape] : shapes) {
    auto& values = out.values[name];
    values.resize(static_cast<std::size_t>(*checkpoint::elements_of(shape)));
    for (auto& v : values) v = normal(random);
    out.tensors[name] = checkpoint::make_f32(shape, values);
  }
  return out;
}

/// The definition, number by number in double precision.
double reference(const Numbers& w, const std::vector<float>& states, std::int64_t rows, double seconds) {
  const auto at = [&](const char* name, std::int64_t i) {
    return static_cast<double>(w.at(name)[static_cast<std::size_t>(i)]);
  };
  using Rows = std::vector<std::vector<double>>;
  Rows h(static_cast<std::size_t>(rows), std::vector<double>(kInner)), g = h;
  for (std::int64_t t = 0; t < rows; ++t)
    for (std::int64_t c = 0; c < kInner; ++c) {
      double sum = at("in.bias", c) + at("place", (TurnEnd::kRows - rows + t) * kInner + c);
      for (std::int64_t k = 0; k < kWidth; ++k)
        sum += at("in.weight", c * kWidth + k) * states[static_cast<std::size_t>(t * kWidth + k)];
      h[static_cast<std::size_t>(t)][static_cast<std::size_t>(c)] = std::max(0.0, sum);
    }
  for (std::int64_t t = 0; t < rows; ++t)
    for (std::int64_t c = 0; c < kInner; ++c) {
      double sum = at("conv.bias", c);
      for (std::int64_t k = 0; k < 5; ++k)
        for (std::int64_t d = 0; d < kInner; ++d)
          if (const auto s = t + k - 2; s >= 0 && s < rows)
            sum += at("conv.weight", (c * kInner + d) * 5 + k) *
                   h[static_cast<std::size_t>(s)][static_cast<std::size_t>(d)];
      const auto i = static_cast<std::size_t>(t), j = static_cast<std::size_t>(c);
      g[i][j] = h[i][j] + std::max(0.0, sum);
    }
  std::vector<double> all;
  for (std::int64_t k = 0; k < kHeads; ++k) {
    std::vector<double> share;
    double total = 0;
    for (const auto& row : g) {
      double score = 0;
      for (std::int64_t c = 0; c < kInner; ++c)
        score += at("attend.weight", k * kInner + c) * row[static_cast<std::size_t>(c)];
      share.push_back(std::exp(score));
      total += share.back();
    }
    for (std::size_t c = 0; c < kInner; ++c) {
      double sum = 0;
      for (std::size_t t = 0; t < g.size(); ++t) sum += share[t] / total * g[t][c];
      all.push_back(sum);
    }
  }
  for (const auto count : {rows, std::min<std::int64_t>(rows, 8)})
    for (std::size_t c = 0; c < kInner; ++c) {
      double sum = 0;
      for (auto t = g.size() - static_cast<std::size_t>(count); t < g.size(); ++t) sum += g[t][c];
      all.push_back(sum / static_cast<double>(count));
    }
  all.push_back(0.5 * std::log1p(seconds));
  double logit = at("out.bias", 0);
  for (std::int64_t i = 0; i < kHidden; ++i) {
    double sum = at("hidden.bias", i);
    for (std::int64_t k = 0; k < kPooled; ++k)
      sum += at("hidden.weight", i * kPooled + k) * all[static_cast<std::size_t>(k)];
    logit += at("out.weight", i) * std::max(0.0, sum);
  }
  return 1 / (1 + std::exp(-logit));
}

std::vector<float> wave_of(const char* question) {
  const auto audio = *audio::read_audio(kNano / "questions" / question);
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
      std::vector<float> states(static_cast<std::size_t>(rows * kWidth));
      for (auto& v : states) v = normal(random);
      for (const double seconds : {0.4, 2.0, 30.0})
        // Two hundred additions of numbers of about one in float32.
        BOOST_TEST(std::abs(net.completeness(tensor::from_values(states, {rows, kWidth}), seconds) -
                            reference(values, states, rows, seconds)) < 1e-5,
                   "seed " << seed << ", " << rows << " rows");
    }
  }
}

BOOST_AUTO_TEST_CASE(rows_before_the_latest_change_nothing) {
  const TurnEnd net(small(4).tensors, kWidth, "small");
  const auto many = at::randn({50, kWidth});
  BOOST_TEST(net.completeness(many, 3) == net.completeness(many.narrow(0, 18, 32), 3));
  BOOST_TEST(at::equal(latest_rows(many.narrow(0, 0, 30), many.narrow(0, 30, 20)), many.narrow(0, 18, 32)));
  BOOST_TEST(at::equal(latest_rows({}, many.narrow(0, 0, 3)), many.narrow(0, 0, 3)));
  BOOST_TEST(!latest_rows({}, {}).defined());
}

BOOST_AUTO_TEST_CASE(nothing_is_not_complete) {
  const TurnEnd net(small(5).tensors, kWidth, "small");
  BOOST_TEST(net.completeness({}, 0) == 0);
  BOOST_TEST(net.completeness(at::zeros({0, kWidth}), 0) == 0);
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
    fs::copy(kNano / "Step-Audio-Tokenizer" / name, folder.path() / name);
  const auto without = *SpeechTokenizer::load(folder.path()),
             with = *SpeechTokenizer::load(kNano / "Step-Audio-Tokenizer");
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
