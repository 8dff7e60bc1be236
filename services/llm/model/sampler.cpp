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

/// @param first  id of the first logit
void adjust(std::vector<float>& logits, std::int64_t first, std::span<const std::int32_t> history, const Sampling& s) {
  const auto at = [&](std::int32_t id) -> float* {
    const auto place = id - first;
    return place >= 0 && place < static_cast<std::int64_t>(logits.size()) ? &logits[static_cast<std::size_t>(place)]
                                                                          : nullptr;
  };
  if (s.repetition_penalty) {
    const auto r = static_cast<float>(*s.repetition_penalty);
    const std::unordered_set<std::int32_t> seen(history.begin(), history.end());
    for (const auto id : seen)
      if (auto* x = at(id)) *x = *x < 0 ? *x * r : *x / r;
  }
  if (const auto banned = forbidden(history, s); banned >= 0)
    if (auto* x = at(banned)) *x = kNever;
}

bool is_bad(float x) { return !(x <= std::numeric_limits<float>::max()); }

Result<void> check(std::span<const float> logits, const char* what) {
  const auto bad = std::find_if(logits.begin(), logits.end(), is_bad);
  if (bad == logits.end()) return {};
  return fail(Errc::internal, "{} is {}, of id {}: no id can be sampled", what, *bad, bad - logits.begin());
}
}  // namespace

Result<std::vector<float>> probabilities(std::span<const float> in, std::span<const std::int32_t> history,
                                         const Sampling& s) {
  if (auto problem = s.problem()) return tl::make_unexpected(*problem);
  // Comparisons with NaN are false: without this check a sort, a maximum or the draw would quietly pick some id. −inf
  // is legal: a forbidden id.
  std::vector<float> logits(in.begin(), in.end());
  PARLANDO_DO(check(logits, "a logit"));
  adjust(logits, 0, history, s);
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

/// Whether top-k leaves but a few ids.
bool few(const Sampling& s, std::int64_t vocabulary) { return s.temperature != 0 && s.top_k && *s.top_k < vocabulary; }
}  // namespace

void candidates(std::span<const float> logits, std::int64_t first, std::int64_t vocabulary,
                std::span<const std::int32_t> history, const Sampling& s, Candidates& out) {
  out.ids.clear(), out.values.clear(), out.bad = -1;
  if (logits.empty() || s.problem()) return;
  const auto size = static_cast<std::int64_t>(logits.size());
  const auto note = [&](std::int64_t place) {
    out.bad = static_cast<std::int32_t>(first + place), out.bad_value = logits[static_cast<std::size_t>(place)];
  };
  // A vocabulary is copied only where something in it changes, which could hide what it was.
  thread_local std::vector<float> changed;
  if (s.repetition_penalty || forbidden(history, s) >= 0) {
    for (const auto id : history)
      if (id >= first && id - first < size && is_bad(logits[static_cast<std::size_t>(id - first)]))
        return note(id - first);
    changed.assign(logits.begin(), logits.end());
    adjust(changed, first, history, s);
    logits = changed;
  }
  if (s.temperature == 0) {
    const auto best = kernels::largest_of(logits);
    if (best.bad >= 0) return note(best.bad);
    if (best.at < 0 || !(logits[static_cast<std::size_t>(best.at)] > kNever)) return;
    out.ids.push_back(static_cast<std::int32_t>(first + best.at));
    out.values.push_back(logits[static_cast<std::size_t>(best.at)]);
    return;
  }
  // Numbers a little below the border may become equal to it when they are divided by the temperature.
  constexpr float kSlack = 1e-5f;
  thread_local kernels::TopCandidates top;
  kernels::top_candidates(logits, few(s, vocabulary) ? std::min(*s.top_k, size) : size, kSlack, top);
  if (top.bad >= 0) return note(top.bad);
  for (const auto id : top.ids) out.ids.push_back(static_cast<std::int32_t>(first + id));
  out.values.assign(top.values.begin(), top.values.end());
}

Result<std::int32_t> sample(const Candidates& all, std::int64_t vocabulary, const Sampling& s, std::uint64_t position) {
  if (auto problem = s.problem()) return tl::make_unexpected(*problem);
  if (all.bad >= 0)
    return fail(Errc::internal, "a logit is {}, of id {}: no id can be sampled", all.bad_value, all.bad);
  if (s.temperature == 0) {
    const auto best = std::max_element(all.values.begin(), all.values.end());
    if (best == all.values.end()) return fail(Errc::invalid_argument, "no id can be sampled: every logit is -inf");
    return all.ids[static_cast<std::size_t>(best - all.values.begin())];
  }
  // What the chain would do on all ids: those that top-k leaves out have no part in any of its sums.
  auto rest = s;
  rest.repetition_penalty.reset(), rest.repetition_aware = false;  // done
  if (!few(s, vocabulary)) rest.top_k.reset();
  PARLANDO_TRY(const auto p, probabilities(all.values, {}, rest));
  return draw(p, all.ids, uniform(s.seed, position));
}

Result<std::int32_t> sample(std::span<const float> logits, std::span<const std::int32_t> history, const Sampling& s,
                            std::uint64_t position) {
  if (auto problem = s.problem()) return tl::make_unexpected(*problem);
  const auto size = static_cast<std::int64_t>(logits.size());
  if (s.temperature != 0 && !few(s, size)) {
    PARLANDO_TRY(const auto p, probabilities(logits, history, s));
    return draw(p, {}, uniform(s.seed, position));
  }
  thread_local Candidates all;
  candidates(logits, 0, size, history, s, all);
  return sample(all, size, s, position);
}

}  // namespace parlando::llm
