#include <boost/test/unit_test.hpp>
#include <cmath>
#include <limits>
#include <random>

#include "services/llm/model/sampler.hpp"

namespace parlando::llm {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();

/// Every path through the chain.
std::vector<Sampling> chains() {
  auto penalised = Sampling::chat();
  penalised.repetition_penalty = 1.3;
  Sampling plain{.temperature = 1, .top_k = {}};
  Sampling nucleus{.temperature = 0.8, .top_k = {}, .top_p = 0.5};
  Sampling greedy_penalised = Sampling::greedy();
  greedy_penalised.repetition_penalty = 2.0, greedy_penalised.repetition_aware = true;
  return {Sampling::chat(), Sampling::tts(), Sampling::greedy(), penalised, plain, nucleus, greedy_penalised};
}

}  // namespace

BOOST_AUTO_TEST_CASE(id_zero_is_drawn_as_often_as_its_probability_says) {
  const std::vector<float> logits = {1.0f, 0.5f, 0.0f};
  for (auto s : chains()) {
    s.top_p.reset();
    const auto p = probabilities(logits, {}, s);
    BOOST_REQUIRE(p.has_value());
    int zeros = 0;
    for (std::uint64_t n = 0; n < 4000; ++n) zeros += *sample(logits, {}, s, n) == 0;
    BOOST_TEST((*p)[0] > 0.4f);
    BOOST_TEST(std::abs(zeros / 4000.0 - (*p)[0]) < 0.04);  // five sigma of 4000 draws
  }
}

BOOST_AUTO_TEST_CASE(the_last_id_and_a_lone_id_can_be_drawn) {
  const std::vector<float> last = {-kInf, -kInf, 2.0f}, lone = {0.25f};
  for (const auto& s : chains()) {
    BOOST_TEST(*sample(last, {}, s, 1) == 2);
    BOOST_TEST(*sample(lone, {}, s, 1) == 0);
  }
}

BOOST_AUTO_TEST_CASE(a_logit_that_is_no_number_is_an_error_on_every_path) {
  for (const float bad : {kNan, -kNan, kInf})
    for (const std::size_t at : {0u, 7u, 63u})
      for (const auto& s : chains()) {
        std::vector<float> logits(64, 0.5f);
        logits[20] = -kInf;  // a forbidden id is no fault
        logits[at] = bad;
        const std::vector<std::int32_t> history(12, 7);
        const auto id = sample(logits, history, s, 3);
        BOOST_REQUIRE_MESSAGE(!id.has_value(), "id " << (id ? *id : -1) << " was drawn");
        BOOST_TEST(static_cast<int>(id.error().code) == static_cast<int>(Errc::internal));
        BOOST_TEST(id.error().message.find(fmt::format("id {}", at)) != std::string::npos, id.error().message);
        BOOST_TEST(!probabilities(logits, history, s).has_value());
      }
}

BOOST_AUTO_TEST_CASE(where_every_id_is_forbidden_that_is_said) {
  const std::vector<float> none(8, -kInf);
  for (const auto& s : chains()) {
    const auto id = sample(none, {}, s, 0);
    BOOST_REQUIRE(!id.has_value());
    BOOST_TEST(static_cast<int>(id.error().code) == static_cast<int>(Errc::invalid_argument));
  }
  BOOST_TEST(!sample({}, {}, Sampling::greedy(), 0).has_value());
}

BOOST_AUTO_TEST_CASE(settings_whose_arithmetic_would_leave_the_numbers_are_refused) {
  const std::vector<float> logits = {3.0f, -2.0f, 0.0f};
  for (const double temperature : {1e-300, 1e-30, -0.5, 101.0, std::nan("")}) {
    auto s = Sampling::chat();
    s.temperature = temperature;
    const auto id = sample(logits, {}, s, 0);
    BOOST_REQUIRE_MESSAGE(!id.has_value(), "temperature " << temperature);
    BOOST_TEST(static_cast<int>(id.error().code) == static_cast<int>(Errc::invalid_argument));
  }
  for (const double penalty : {0.0, 1e-300, 1e300, -1.0, std::nan("")}) {
    auto s = Sampling::chat();
    s.repetition_penalty = penalty;
    BOOST_TEST(!sample(logits, std::vector<std::int32_t>{0, 1, 2}, s, 0).has_value(), "penalty " << penalty);
  }
}

/// As the chain is described: probabilities of the whole vocabulary, then a draw along the ids.
std::int32_t drawn_from_all(const std::vector<float>& logits, const std::vector<std::int32_t>& history,
                            const Sampling& s, std::uint64_t position) {
  const auto p = probabilities(logits, history, s);
  BOOST_REQUIRE(p.has_value());
  const double target = s.temperature == 0 ? 0.0 : uniform(s.seed, position);
  double sum = 0;
  std::int32_t last = -1;
  for (std::size_t i = 0; i < p->size(); ++i) {
    if ((*p)[i] <= 0) continue;
    last = static_cast<std::int32_t>(i);
    if ((sum += (*p)[i]) > target) break;
  }
  return last;
}

BOOST_AUTO_TEST_CASE(what_is_drawn_from_few_is_what_would_be_drawn_from_all) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (const std::size_t size : {3u, 17u, 64u, 1000u, 5003u})
    for (const bool rough : {false, true})  // whole numbers: many ties at the border
      for (auto s : chains())
        for (const std::int64_t k : {1, 2, 50, 4000}) {
          if (s.top_k) s.top_k = k;
          std::vector<float> logits(size);
          for (auto& x : logits) x = rough ? std::round(3 * normal(random)) : 4 * normal(random);
          for (std::size_t i = 0; i < size; i += 7) logits[i] = -kInf;
          const std::vector<std::int32_t> history = {1, 2, 1, 0, 2, 1, 2, 0, 1, 1};
          for (std::uint64_t n = 0; n < 5; ++n)
            BOOST_TEST(*sample(logits, history, s, n) == drawn_from_all(logits, history, s, n));
        }
}

namespace {
/// Of `parts` ranks what each knows of its part of the vocabulary, padded to a multiple of 64 before it is divided:
/// some parts may be empty.
std::vector<Candidates> by_parts(std::span<const float> logits, std::size_t parts,
                                 const std::vector<std::int32_t>& history, const Sampling& s) {
  const auto size = logits.size(), each = ((size + 63) / 64 * 64 + parts - 1) / parts;
  std::vector<Candidates> out(parts);
  for (std::size_t r = 0; r < parts; ++r) {
    const auto first = std::min(size, each * r), last = std::min(size, each * (r + 1));
    candidates(logits.subspan(first, last - first), static_cast<std::int64_t>(first), static_cast<std::int64_t>(size),
               history, s, out[r]);
  }
  return out;
}

Candidates joined(const std::vector<Candidates>& parts) {
  Candidates out;
  for (const auto& part : parts) {
    out.ids.insert(out.ids.end(), part.ids.begin(), part.ids.end());
    out.values.insert(out.values.end(), part.values.begin(), part.values.end());
    if (out.bad < 0) out.bad = part.bad, out.bad_value = part.bad_value;
  }
  return out;
}
}  // namespace

BOOST_AUTO_TEST_CASE(parts_of_a_vocabulary_draw_what_the_whole_draws) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  auto settings = chains();
  auto warm = Sampling::tts();
  warm.temperature = 1.7, warm.repetition_penalty = 0.8;
  auto cold = Sampling::chat();
  cold.temperature = 0.05, cold.top_p = 0.3;
  settings.push_back(warm), settings.push_back(cold);
  int draws = 0, at_ties = 0;
  for (const std::size_t size : {1u, 2u, 3u, 17u, 63u, 65u, 129u, 333u, 2334u})
    for (const int kind : {0, 1, 2})  // all different; whole numbers, many ties at the border; all the same
      for (auto s : settings)
        for (const std::int64_t k : {1, 2, 50, 200, 4000}) {
          if (s.top_k) s.top_k = k;
          s.seed = random();
          std::vector<float> logits(size);
          for (auto& x : logits) x = kind == 0 ? 4 * normal(random) : kind == 1 ? std::round(3 * normal(random)) : 0.5f;
          if (kind != 2)
            for (std::size_t i = 3; i < size; i += 7) logits[i] = -kInf;
          std::vector<std::int32_t> history(12);
          for (auto& id : history) id = static_cast<std::int32_t>(random() % std::min<std::size_t>(size, 5));
          const auto vocabulary = static_cast<std::int64_t>(size);
          for (const std::size_t parts : {1u, 2u, 3u, 4u, 7u}) {
            const auto told = by_parts(logits, parts, history, s);
            const auto all = joined(told);
            for (std::uint64_t n = 0; n < 3; ++n, ++draws) {
              const auto want = sample(logits, history, s, n), got = sample(all, vocabulary, s, n);
              BOOST_REQUIRE_EQUAL(got.has_value(), want.has_value());
              if (want)
                BOOST_TEST(*got == *want, size << " ids in " << parts << " parts, top_k " << s.top_k.value_or(0));
              else
                BOOST_TEST(static_cast<int>(got.error().code) == static_cast<int>(want.error().code));
            }
            // What is told is few, but for what equals the last of them.
            for (const auto& part : told) {
              if (s.temperature == 0) BOOST_TEST(part.ids.size() <= 1u);
              if (s.temperature == 0 || !s.top_k || k >= vocabulary) continue;
              const auto most = static_cast<std::size_t>(k);
              if (kind == 0 && !s.repetition_aware && !s.repetition_penalty && size < 1000)
                BOOST_TEST(part.ids.size() <= most + most / 10 + 1);
              at_ties += part.ids.size() > most;
            }
          }
        }
  BOOST_TEST(draws > 10'000);
  BOOST_TEST(at_ties > 100);  // the harder case was among them
}

BOOST_AUTO_TEST_CASE(a_part_with_a_logit_that_is_no_number_spoils_the_draw) {
  const std::vector<std::int32_t> history(12, 190);
  for (const float bad : {kNan, kInf})
    for (const std::size_t at : {0u, 99u, 190u, 199u})
      for (const auto& s : chains()) {
        std::vector<float> logits(200, 0.5f);
        logits[at] = bad;
        const auto id = sample(joined(by_parts(logits, 3, history, s)), 200, s, 3);
        BOOST_REQUIRE(!id.has_value());
        BOOST_TEST(static_cast<int>(id.error().code) == static_cast<int>(Errc::internal));
        BOOST_TEST(id.error().message.find(fmt::format("id {}", at)) != std::string::npos, id.error().message);
      }
}

BOOST_AUTO_TEST_CASE(settings_that_are_refused_are_refused_in_parts) {
  const std::vector<float> logits(40, 0.5f);
  for (auto s : {Sampling{.top_k = 0}, Sampling{.top_k = -3}, Sampling{.temperature = -1}}) {
    const auto id = sample(joined(by_parts(logits, 2, {}, s)), 40, s, 0);
    BOOST_REQUIRE(!id.has_value());
    BOOST_TEST(static_cast<int>(id.error().code) == static_cast<int>(Errc::invalid_argument));
  }
}

/// (1.5 + k ulp) / 1.5 = 1 + 2k/3 ulp, and both k = 1 and k = 2 round to 1 + 1 ulp: two ids at the border of top-k.
BOOST_AUTO_TEST_CASE(a_tie_that_only_the_division_makes_is_a_tie) {
  constexpr float kUlp = std::numeric_limits<float>::epsilon();
  const std::vector<float> logits = {1.5f + kUlp, 0.0f, 1.5f + 2 * kUlp, -1.0f};
  const Sampling s{.temperature = 1.5, .top_k = 1, .seed = 9};
  int lower = 0;
  for (std::uint64_t n = 0; n < 100; ++n) {
    const auto want = uniform(s.seed, n) < 0.5 ? 0 : 2;
    lower += want == 0;
    BOOST_TEST(*sample(logits, {}, s, n) == want);
    BOOST_TEST(*sample(joined(by_parts(logits, 1, {}, s)), 4, s, n) == want);
  }
  BOOST_TEST(lower > 30);
  BOOST_TEST(lower < 70);
}

BOOST_AUTO_TEST_CASE(an_id_that_stands_twice_among_the_last_ten_is_forbidden) {
  const std::vector<float> logits = {0.0f, 0.0f, 0.0f, 5.0f, 0.0f, 4.0f, 0.0f, 0.0f};
  auto s = Sampling::tts();
  s.top_k = 1;
  struct Case {
    std::vector<std::int32_t> history;
    std::int32_t id;
  };
  for (const auto& [history, id] : {Case{{3, 0, 1, 2, 4, 5, 6, 7, 0, 3}, 5},
                                    {{0, 1, 2, 4, 5, 6, 7, 0, 3, 3}, 5},
                                    {{3, 0, 3, 1, 2, 4, 3, 6, 7, 3}, 5},
                                    {{0, 1, 2, 4, 5, 6, 7, 0, 1, 3}, 3},     // once
                                    {{3, 0, 1, 2, 4, 5, 6, 7, 0, 1, 3}, 3},  // the other one is the eleventh
                                    {{3, 3, 0, 1, 2, 4, 5, 6, 7, 0}, 3},     // twice, but it is not the newest
                                    {{3, 1, 2, 4, 5, 6, 7, 0, 3}, 3}}) {     // nine ids
    BOOST_TEST(*sample(logits, history, s, 1) == id);
    const auto p = probabilities(logits, history, s);
    BOOST_REQUIRE(p.has_value());
    BOOST_TEST((*p)[static_cast<std::size_t>(id)] == 1.0f);
  }
}

BOOST_AUTO_TEST_CASE(each_seed_draws_its_own_ids) {
  std::vector<float> logits(200, 0.0f);
  Sampling a{.temperature = 1, .top_k = {}, .seed = 1}, b = a;
  b.seed = 2;
  int same = 0;
  for (std::uint64_t n = 0; n < 200; ++n) same += *sample(logits, {}, a, n) == *sample(logits, {}, b, n);
  BOOST_TEST(same < 12);  // one in 200 by chance
}

}  // namespace parlando::llm
