#include "services/llm/model/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_set>

#include "kernels/select/top.hpp"

namespace parlando::llm {

namespace {
constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr std::size_t kWindow = 10;
// Within these, logits of any size a network gives stay numbers after the division.
constexpr double kTemperatureMin = 1e-3, kPenaltyMin = 1e-3, kPenaltyMax = 1e3;
}  // namespace

std::optional<Error> Sampling::problem() const {
  auto bad = [](std::string text) { return Error{Errc::invalid_argument, std::move(text)}; };
  if (!(temperature == 0 || (temperature >= kTemperatureMin && temperature <= 100)))
    return bad(fmt::format("temperature is {}, expected 0 or {}…100", temperature, kTemperatureMin));
  if (top_k && *top_k < 1) return bad(fmt::format("top_k is {}, expected at least 1", *top_k));
  if (top_p && !(*top_p > 0 && *top_p <= 1)) return bad(fmt::format("top_p is {}, expected (0, 1]", *top_p));
  if (repetition_penalty && !(*repetition_penalty >= kPenaltyMin && *repetition_penalty <= kPenaltyMax))
    return bad(fmt::format("repetition_penalty is {}, expected {}…{}", *repetition_penalty, kPenaltyMin, kPenaltyMax));
  return std::nullopt;
}

double uniform(std::uint64_t seed, std::uint64_t counter) {
  // SplitMix64 of the pair: every (seed, counter) has its own well-mixed value.
  std::uint64_t x = seed * 0x9e3779b97f4a7c15ull + counter * 0xbf58476d1ce4e5b9ull + 0x94d049bb133111ebull;
  for (int round = 0; round < 2; ++round) {
    x ^= x >> 30, x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27, x *= 0x94d049bb133111ebull;
    x ^= x >> 31;
  }
  return static_cast<double>(x >> 11) * 0x1.0p-53;
}

namespace {
/// The newest id, when it stands twice among the last ten and that counts; else −1.
std::int32_t forbidden(std::span<const std::int32_t> history, const Sampling& s) {
  if (!s.repetition_aware || history.size() < kWindow) return -1;
  const auto last = history.subspan(history.size() - kWindow);
  return std::count(last.begin(), last.end(), last.back()) >= 2 ? last.back() : -1;
}

void adjust(std::vector<float>& logits, std::span<const std::int32_t> history, const Sampling& s) {
  if (s.repetition_penalty) {
    const auto r = static_cast<float>(*s.repetition_penalty);
    const std::unordered_set<std::int32_t> seen(history.begin(), history.end());
    for (const auto id : seen)
      if (id >= 0 && static_cast<std::size_t>(id) < logits.size())
        logits[id] = logits[id] < 0 ? logits[id] * r : logits[id] / r;
  }
  const auto banned = forbidden(history, s);
  if (banned >= 0 && static_cast<std::size_t>(banned) < logits.size())
    logits[static_cast<std::size_t>(banned)] = kNever;
}

Result<void> check(std::span<const float> logits, const char* what) {
  const auto bad =
      std::find_if(logits.begin(), logits.end(), [](float x) { return !(x <= std::numeric_limits<float>::max()); });
  if (bad == logits.end()) return {};
  return fail(Errc::internal, "{} is {}, of id {}: no id can be sampled", what, *bad, bad - logits.begin());
}

/// The same of the ids that `adjust` may change, which could hide what they were.
Result<void> check_some(std::span<const float> logits, std::span<const std::int32_t> history) {
  for (const auto id : history)
    if (id >= 0 && static_cast<std::size_t>(id) < logits.size() &&
        !(logits[static_cast<std::size_t>(id)] <= std::numeric_limits<float>::max()))
      return fail(Errc::internal, "a logit is {}, of id {}: no id can be sampled", logits[static_cast<std::size_t>(id)],
                  id);
  return {};
}
}  // namespace

Result<std::vector<float>> probabilities(std::span<const float> in, std::span<const std::int32_t> history,
                                         const Sampling& s) {
  if (auto problem = s.problem()) return tl::make_unexpected(*problem);
  // Comparisons with NaN are false: without this check a sort, a maximum or the draw would quietly pick some id. −inf
  // is legal: a forbidden id.
  std::vector<float> logits(in.begin(), in.end());
  PARLANDO_DO(check(logits, "a logit"));
  adjust(logits, history, s);
  if (s.temperature == 0) {
    const auto best = std::max_element(logits.begin(), logits.end());
    if (best == logits.end() || !(*best > kNever))
      return fail(Errc::invalid_argument, "no id can be sampled: every logit is -inf");
    std::vector<float> out(logits.size(), 0.0f);
    out[static_cast<std::size_t>(best - logits.begin())] = 1.0f;
    return out;
  }
  const auto temperature = static_cast<float>(s.temperature);
  for (auto& x : logits) x /= temperature;
  PARLANDO_DO(check(logits, "a logit divided by the temperature"));
  if (s.top_k && static_cast<std::size_t>(*s.top_k) < logits.size()) {
    auto sorted = logits;
    std::nth_element(sorted.begin(), sorted.begin() + (*s.top_k - 1), sorted.end(), std::greater<>());
    const float border = sorted[static_cast<std::size_t>(*s.top_k - 1)];
    for (auto& x : logits)
      if (x < border) x = kNever;
  }
  auto softmax = [](std::vector<float>& x) {
    const auto top_at = std::max_element(x.begin(), x.end());
    if (top_at == x.end() || !(*top_at > kNever)) return false;
    const float top = *top_at;
    double sum = 0;
    for (auto& v : x) sum += v = std::exp(v - top);
    for (auto& v : x) v = static_cast<float>(v / sum);
    return true;
  };
  if (s.top_p && *s.top_p < 1) {
    auto p = logits;
    if (!softmax(p)) return fail(Errc::invalid_argument, "no id can be sampled: every logit is -inf");
    std::vector<std::size_t> order(p.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return logits[a] < logits[b]; });
    double sum = 0;
    for (std::size_t i = 0; i + 1 < order.size(); ++i) {
      sum += p[order[i]];
      if (static_cast<float>(sum) > static_cast<float>(1.0 - *s.top_p)) break;
      logits[order[i]] = kNever;
    }
  }
  if (!softmax(logits)) return fail(Errc::invalid_argument, "no id can be sampled: every logit is -inf");
  return logits;
}

namespace {
/// The draw from probabilities in the order of their ids. @param ids  of each, or empty: its place
Result<std::int32_t> draw(std::span<const float> p, std::span<const std::int32_t> ids, double target) {
  double sum = 0;
  std::int32_t last = -1;
  for (std::size_t i = 0; i < p.size(); ++i) {
    if (p[i] <= 0) continue;
    last = ids.empty() ? static_cast<std::int32_t>(i) : ids[i];
    sum += p[i];
    if (sum > target) return last;
  }
  if (last < 0) return fail(Errc::internal, "no id can be sampled: no probability of {} is above 0", p.size());
  return last;  // rounding left the sum a little below 1
}

/// What the chain would do, on the few ids that top-k leaves: the others have no part in any of its sums.
Result<std::int32_t> sample_top(std::span<const float> logits, const Sampling& s, double target) {
  // Numbers a little below the border may become equal to it when they are divided by the temperature.
  constexpr float kSlack = 1e-5f;
  thread_local kernels::TopCandidates top;
  kernels::top_candidates(logits, *s.top_k, kSlack, top);
  if (top.bad >= 0)
    return fail(Errc::internal, "a logit is {}, of id {}: no id can be sampled",
                logits[static_cast<std::size_t>(top.bad)], top.bad);
  auto few = s;
  few.repetition_penalty.reset(), few.repetition_aware = false;  // done
  PARLANDO_TRY(const auto p, probabilities(top.values, {}, few));
  return draw(p, top.ids, target);
}
}  // namespace

Result<std::int32_t> sample(std::span<const float> logits, std::span<const std::int32_t> history, const Sampling& s,
                            std::uint64_t position) {
  if (auto problem = s.problem()) return tl::make_unexpected(*problem);
  const bool few = s.temperature != 0 && s.top_k && *s.top_k < static_cast<std::int64_t>(logits.size());
  if (s.temperature != 0 && !few) {
    PARLANDO_TRY(const auto p, probabilities(logits, history, s));
    return draw(p, {}, uniform(s.seed, position));
  }
  // A vocabulary is copied only where something in it changes.
  thread_local std::vector<float> changed;
  if (s.repetition_penalty || forbidden(history, s) >= 0) {
    PARLANDO_DO(check_some(logits, history));
    changed.assign(logits.begin(), logits.end());
    adjust(changed, history, s);
    logits = changed;
  }
  if (few) return sample_top(logits, s, uniform(s.seed, position));
  const auto best = kernels::largest_of(logits);
  if (best.bad >= 0)
    return fail(Errc::internal, "a logit is {}, of id {}: no id can be sampled",
                logits[static_cast<std::size_t>(best.bad)], best.bad);
  if (best.at < 0 || !(logits[static_cast<std::size_t>(best.at)] > kNever))
    return fail(Errc::invalid_argument, "no id can be sampled: every logit is -inf");
  return static_cast<std::int32_t>(best.at);
}

}  // namespace parlando::llm
