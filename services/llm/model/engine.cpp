#include "services/llm/model/engine.hpp"

#include <ATen/ATen.h>

#include <algorithm>

namespace parlando::llm {

LmEngine::LmEngine(std::shared_ptr<const Step1> model, Limits limits)
    : model_(std::move(model)), limits_(limits), pool_(model_->make_pool(limits.cache_tokens)) {}

LmEngine::Sequence* LmEngine::find(const std::string& name) {
  const auto found = sequences_.find(name);
  return found == sequences_.end() ? nullptr : &found->second;
}

Result<void> LmEngine::open(const std::string& name) {
  if (static_cast<std::int64_t>(sequences_.size()) >= limits_.sequences)
    return fail(Errc::overloaded, "{} sequences are open, the limit is {}", sequences_.size(), limits_.sequences);
  if (find(name) != nullptr) return fail(Errc::invalid_argument, "sequence '{}' is open already", name);
  Sequence s;
  s.cache = pool_->open();
  s.order = orders_++;
  sequences_.emplace(name, std::move(s));
  return {};
}

Result<std::int64_t> LmEngine::append(const std::string& name, std::int64_t at, std::span<const std::int32_t> ids) {
  auto* s = find(name);
  if (s == nullptr) return fail(Errc::not_found, "sequence '{}' is not open", name);
  const auto length = static_cast<std::int64_t>(s->history.size());
  const auto n = static_cast<std::int64_t>(ids.size());
  if (at >= 0 && at + n <= length && std::equal(ids.begin(), ids.end(), s->history.begin() + at)) return length;  // a repeated message
  if (at != length) return fail(Errc::position_mismatch, "sequence '{}' has {} tokens, the message expects {}", name, length, at);
  if (length + n > model_->config().length_max)
    return fail(Errc::invalid_argument, "sequence '{}' would have {} tokens, the model takes {}", name, length + n, model_->config().length_max);
  for (const auto id : ids)
    if (id < 0 || id >= model_->config().vocabulary)
      return fail(Errc::token_out_of_range, "token id {} is outside the vocabulary of {}", id, model_->config().vocabulary);
  s->history.insert(s->history.end(), ids.begin(), ids.end());
  return length + n;
}

Result<void> LmEngine::fork(const std::string& name, std::int64_t at, const std::string& as) {
  auto* s = find(name);
  if (s == nullptr) return fail(Errc::not_found, "sequence '{}' is not open", name);
  const auto length = static_cast<std::int64_t>(s->history.size());
  if (at < 0 || at > length) return fail(Errc::position_mismatch, "sequence '{}' has {} tokens, the fork is asked at {}", name, length, at);
  PARLANDO_DO(open(as));
  auto& copy = sequences_.at(as);
  s = find(name);
  copy.cache = s->cache.fork();
  if (copy.cache.length() > at) copy.cache.truncate(at);
  copy.history.assign(s->history.begin(), s->history.begin() + at);
  return {};
}

Result<void> LmEngine::truncate(const std::string& name, std::int64_t to) {
  auto* s = find(name);
  if (s == nullptr) return fail(Errc::not_found, "sequence '{}' is not open", name);
  if (to < 0 || to > static_cast<std::int64_t>(s->history.size()))
    return fail(Errc::position_mismatch, "sequence '{}' has {} tokens, it cannot be cut to {}", name, s->history.size(), to);
  s->generation.reset();
  s->history.resize(static_cast<std::size_t>(to));
  if (s->cache.length() > to) s->cache.truncate(to);
  return {};
}

Result<void> LmEngine::generate(const std::string& name, std::int64_t at, Generation generation) {
  auto* s = find(name);
  if (s == nullptr) return fail(Errc::not_found, "sequence '{}' is not open", name);
  if (at != static_cast<std::int64_t>(s->history.size()))
    return fail(Errc::position_mismatch, "sequence '{}' has {} tokens, the message expects {}", name, s->history.size(), at);
  if (s->history.empty()) return fail(Errc::invalid_argument, "sequence '{}' is empty, there is nothing to continue", name);
  if (const auto problem = generation.sampling.problem()) return tl::make_unexpected(*problem);
  s->generation = std::move(generation);
  s->generated = 0;
  // The last id is computed again so that its logits are at hand.
  if (s->cache.length() == at) s->cache.truncate(at - 1);
  return {};
}

void LmEngine::cancel(const std::string& name) {
  if (auto* s = find(name)) s->generation.reset();
}

Result<void> LmEngine::adopt(const std::string& fork, const std::string& name) {
  if (find(fork) == nullptr) return fail(Errc::not_found, "sequence '{}' is not open", fork);
  auto node = sequences_.extract(fork);
  sequences_.erase(name);
  node.key() = name;
  sequences_.insert(std::move(node));
  return {};
}

void LmEngine::release(const std::string& name) { sequences_.erase(name); }

bool LmEngine::idle() const {
  return std::all_of(sequences_.begin(), sequences_.end(),
                     [](const auto& s) { return !s.second.generation && s.second.cache.length() >= static_cast<std::int64_t>(s.second.history.size()); });
}

std::optional<std::int64_t> LmEngine::length(const std::string& name) const {
  const auto found = sequences_.find(name);
  return found == sequences_.end() ? std::nullopt : std::optional(static_cast<std::int64_t>(found->second.history.size()));
}

std::vector<TokenEvent> LmEngine::step() {
  // Work in order of priority, then of age; long prompts go in pieces so that speech never waits for a whole prefill.
  std::vector<std::pair<const std::string*, Sequence*>> ready;
  for (auto& [name, s] : sequences_)
    if (s.cache.length() < static_cast<std::int64_t>(s.history.size())) ready.emplace_back(&name, &s);
  auto rank = [](const Sequence& s) { return s.generation ? static_cast<int>(s.generation->priority) : static_cast<int>(Priority::background); };
  std::sort(ready.begin(), ready.end(),
            [&](const auto& a, const auto& b) { return std::pair(rank(*a.second), a.second->order) < std::pair(rank(*b.second), b.second->order); });
  std::vector<Step1::Chunk> chunks;
  std::vector<std::pair<const std::string*, Sequence*>> in_batch;
  std::int64_t room = limits_.batch_tokens;
  for (const auto& [name, s] : ready) {
    const auto waiting = static_cast<std::int64_t>(s->history.size()) - s->cache.length();
    const auto take = std::min({waiting, limits_.prefill_chunk, room});
    if (take <= 0) break;
    chunks.push_back(
        {&s->cache, std::span<const std::int32_t>(s->history).subspan(static_cast<std::size_t>(s->cache.length()), static_cast<std::size_t>(take))});
    in_batch.emplace_back(name, s);
    room -= take;
  }
  std::vector<TokenEvent> events;
  if (chunks.empty()) return events;
  const auto hidden = model_->forward(*pool_, chunks);
  if (!hidden) {
    // A full cache or a fault: the newest of the lowest priority gives way, so that the others can go on.
    auto& [name, s] = in_batch.back();
    s->generation.reset();
    events.push_back({*name, -1, Finish::error, hidden.error().message});
    s->history.resize(static_cast<std::size_t>(s->cache.length()));
    return events;
  }
  tokens_computed_ += hidden->size(0);
  std::vector<std::int64_t> rows;
  std::vector<std::size_t> who;
  std::int64_t at = 0;
  for (std::size_t i = 0; i < chunks.size(); ++i) {
    at += static_cast<std::int64_t>(chunks[i].ids.size());
    auto* s = in_batch[i].second;
    if (s->generation && s->cache.length() == static_cast<std::int64_t>(s->history.size())) rows.push_back(at - 1), who.push_back(i);
  }
  if (rows.empty()) return events;
  const auto logits = model_->logits(hidden->index_select(0, at::tensor(rows))).contiguous();
  for (std::size_t r = 0; r < rows.size(); ++r) {
    auto& [name, s] = in_batch[who[r]];
    auto& g = *s->generation;
    const auto* row = logits.data_ptr<float>() + static_cast<std::int64_t>(r) * logits.size(1);
    const auto id = sample({row, static_cast<std::size_t>(logits.size(1))}, s->history, g.sampling, s->history.size());
    if (!id) {
      events.push_back({*name, -1, Finish::error, id.error().message});
      s->generation.reset();
      continue;
    }
    ++s->generated;
    const bool stop = std::find(g.stops.begin(), g.stops.end(), *id) != g.stops.end();
    const bool full = s->generated >= g.tokens_max || static_cast<std::int64_t>(s->history.size()) + 1 >= model_->config().length_max;
    events.push_back({*name, *id, stop ? Finish::stop : full ? Finish::length : Finish::none, {}});
    s->history.push_back(*id);
    if (stop || full) s->generation.reset();
  }
  return events;
}

}  // namespace parlando::llm
