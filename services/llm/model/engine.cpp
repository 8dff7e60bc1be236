#include "services/llm/model/engine.hpp"

#include <algorithm>
#include <set>

namespace parlando::llm {

LmEngine::LmEngine(std::shared_ptr<const Step1> model, Limits limits, std::shared_ptr<const Clock> clock,
                   std::unique_ptr<Backend> backend)
    : model_(std::move(model)),
      limits_(limits),
      clock_(std::move(clock)),
      cost_(std::chrono::duration<double>(limits.step_max).count(), limits.step_growth),
      backend_(backend ? std::move(backend)
                       : std::make_unique<CpuBackend>(model_, (limits.cache_tokens + kBlockTokens - 1) / kBlockTokens)),
      ledger_(backend_->blocks()),
      prefixes_(ledger_, {limits.prefix_blocks, limits.prefix_idle}) {}

LmEngine::Sequence* LmEngine::find(const std::string& name) {
  const auto found = sequences_.find(name);
  return found == sequences_.end() ? nullptr : &found->second;
}

Result<void> LmEngine::open(const std::string& name) {
  if (static_cast<std::int64_t>(sequences_.size()) >= limits_.sequences)
    return fail(Errc::overloaded, "{} sequences are open, the limit is {}", sequences_.size(), limits_.sequences);
  if (find(name) != nullptr) return fail(Errc::invalid_argument, "sequence '{}' is open already", name);
  Sequence s;
  s.cache = ledger_.open();
  s.order = orders_++;
  sequences_.emplace(name, std::move(s));
  return {};
}

void LmEngine::share(const std::string& name, Beginning whose) {
  if (auto* s = find(name)) s->beginning = std::move(whose);
}

/// Nothing behind this is computed any more.
void LmEngine::cut(Sequence& s, std::int64_t length) {
  if (length > s.cache.length()) return;
  s.cache.truncate(length);
  s.drawn = std::min(s.drawn, length);
  s.entered = std::min(s.entered, length);
  if (s.stand.length > length) s.stand = {};
}

/// Takes what is computed already of what it lacks. Of less than a block that it lacks nothing is looked for, unless it
/// is all there is: a sequence that grows by a few ids would look in vain each time.
void LmEngine::look_up(Sequence& s, bool first) {
  if (!shares(s) || s.left() == 0) return;
  if (s.left() < kBlockTokens && s.cache.length() > 0) return;
  // The last id is computed in any case where something is drawn behind it.
  const auto ids = std::span(s.history).first(s.history.size() - (s.generation ? 1 : 0));
  auto match = prefixes_.find(ids, s.beginning, s.cache.length(), s.stand, clock_->now());
  const auto gained = std::max<std::int64_t>(0, match.length - s.cache.length());
  prefixes_.count(first ? 1 : 0, gained);
  if (gained == 0) return;
  const auto& own = s.cache.blocks();
  match.blocks.insert(match.blocks.begin(), own.begin(), own.begin() + match.first / kBlockTokens);
  s.cache = ledger_.open_on(match.blocks, match.length);
  s.drawn = std::min(s.drawn, match.first);
}

/// Keeps what is computed of a sequence for those to come.
void LmEngine::enter(Sequence& s, std::int64_t length) {
  if (!shares(s) || s.doubted || s.cache.length() == 0) return;
  prefixes_.enter(s.history, s.cache, length, s.drawn, s.beginning, s.stand, clock_->now());
}

/// It has drawn, so what it stands on is sound.
void LmEngine::believe(Sequence& s) {
  const bool again = std::exchange(s.doubted, false);
  s.drawn = s.cache.length();
  if (shares(s) && (s.generated == 1 || again)) prefixes_.believe(s.stand, s.cache.blocks());
}

/// Its logits are no numbers, perhaps by what it stands on. Who has a block of it keeps nothing meanwhile.
void LmEngine::doubt(const Sequence& s) {
  if (!shares(s)) return;
  prefixes_.doubt(s.history, s.beginning);
  const std::set<std::int32_t> blocks(s.cache.blocks().begin(), s.cache.blocks().end());
  for (auto& [name, other] : sequences_)
    other.doubted = other.doubted || std::any_of(other.cache.blocks().begin(), other.cache.blocks().end(),
                                                 [&](std::int32_t block) { return blocks.contains(block); });
}

/// The operator's ids, whole blocks as they are computed; the last of them with its block: nobody writes there then.
void LmEngine::enter_operators(Sequence& s) {
  const auto all = std::min(s.beginning.operators, s.beginning.most), length = s.cache.length();
  const auto ended = (all + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
  const auto there = length >= ended ? all : std::min(length, all) / kBlockTokens * kBlockTokens;
  if (there <= s.entered) return;
  enter(s, there);
  s.entered = there;
}

Result<std::int64_t> LmEngine::append(const std::string& name, std::int64_t at, std::span<const std::int32_t> ids) {
  auto* s = find(name);
  if (s == nullptr) return fail(Errc::not_found, "sequence '{}' is not open", name);
  const auto length = static_cast<std::int64_t>(s->history.size());
  const auto n = static_cast<std::int64_t>(ids.size());
  if (at >= 0 && at + n <= length && std::equal(ids.begin(), ids.end(), s->history.begin() + at))
    return length;  // a repeated message
  if (at != length)
    return fail(Errc::position_mismatch, "sequence '{}' has {} tokens, the message expects {}", name, length, at);
  if (length + n > model_->config().length_max)
    return fail(Errc::invalid_argument, "sequence '{}' would have {} tokens, the model takes {}", name, length + n,
                model_->config().length_max);
  for (const auto id : ids)
    if (id < 0 || id >= model_->config().vocabulary)
      return fail(Errc::token_out_of_range, "token id {} is outside the vocabulary of {}", id,
                  model_->config().vocabulary);
  s->history.insert(s->history.end(), ids.begin(), ids.end());
  s->parked = false;
  look_up(*s, true);
  return length + n;
}

Result<void> LmEngine::fork(const std::string& name, std::int64_t at, const std::string& as) {
  auto* s = find(name);
  if (s == nullptr) return fail(Errc::not_found, "sequence '{}' is not open", name);
  const auto length = static_cast<std::int64_t>(s->history.size());
  if (at < 0 || at > length)
    return fail(Errc::position_mismatch, "sequence '{}' has {} tokens, the fork is asked at {}", name, length, at);
  PARLANDO_DO(open(as));
  auto& copy = sequences_.at(as);
  s = find(name);
  copy.cache = s->cache.fork();
  copy.stand = s->stand;
  copy.drawn = s->drawn;
  copy.doubted = s->doubted;
  cut(copy, at);
  copy.parked = s->parked;
  copy.beginning = s->beginning;
  copy.history.assign(s->history.begin(), s->history.begin() + at);
  return {};
}

Result<void> LmEngine::truncate(const std::string& name, std::int64_t to) {
  auto* s = find(name);
  if (s == nullptr) return fail(Errc::not_found, "sequence '{}' is not open", name);
  if (to < 0 || to > static_cast<std::int64_t>(s->history.size()))
    return fail(Errc::position_mismatch, "sequence '{}' has {} tokens, it cannot be cut to {}", name, s->history.size(),
                to);
  s->generation.reset();
  s->history.resize(static_cast<std::size_t>(to));
  cut(*s, to);
  return {};
}

Result<void> LmEngine::generate(const std::string& name, std::int64_t at, Generation generation) {
  auto* s = find(name);
  if (s == nullptr) return fail(Errc::not_found, "sequence '{}' is not open", name);
  if (at != static_cast<std::int64_t>(s->history.size()))
    return fail(Errc::position_mismatch, "sequence '{}' has {} tokens, the message expects {}", name, s->history.size(),
                at);
  if (s->history.empty())
    return fail(Errc::invalid_argument, "sequence '{}' is empty, there is nothing to continue", name);
  if (at >= model_->config().length_max)
    return fail(Errc::invalid_argument, "sequence '{}' has {} tokens, as many as the model takes: nothing can follow",
                name, at);
  if (const auto problem = generation.sampling.problem()) return tl::make_unexpected(*problem);
  s->generation = std::move(generation);
  s->generated = 0;
  s->parked = false;
  // The last id is computed again so that its logits are at hand.
  cut(*s, at - 1);
  return {};
}

void LmEngine::due(const std::string& name, Time at) {
  if (auto* s = find(name)) s->due = at;
}

void LmEngine::cancel(const std::string& name) {
  if (auto* s = find(name)) s->generation.reset();
}

Result<void> LmEngine::adopt(const std::string& fork, const std::string& name) {
  if (find(fork) == nullptr) return fail(Errc::not_found, "sequence '{}' is not open", fork);
  if (fork != name) release(name);
  auto node = sequences_.extract(fork);
  node.key() = name;
  sequences_.insert(std::move(node));
  return {};
}

void LmEngine::release(const std::string& name) {
  const auto found = sequences_.find(name);
  if (found == sequences_.end()) return;
  enter(found->second, found->second.cache.length());
  sequences_.erase(found);
}

void LmEngine::forget(SessionId session) {
  prefixes_.forget(session);
  for (auto& [name, s] : sequences_)
    if (s.beginning.session == session) s.beginning.session.reset();
}

bool LmEngine::idle() const {
  return std::none_of(sequences_.begin(), sequences_.end(), [](const auto& s) { return s.second.waiting(); });
}

std::optional<std::int64_t> LmEngine::length(const std::string& name) const {
  const auto found = sequences_.find(name);
  return found == sequences_.end() ? std::nullopt
                                   : std::optional(static_cast<std::int64_t>(found->second.history.size()));
}

std::int64_t LmEngine::computed(const std::string& name) const {
  const auto found = sequences_.find(name);
  return found == sequences_.end() ? 0 : found->second.cache.length();
}

/// Sequences by class, then by age.
std::vector<LmEngine::Entry*> LmEngine::in_order(bool (*wanted)(const Sequence&)) {
  std::vector<Entry*> out;
  for (auto& entry : sequences_)
    if (wanted(entry.second)) out.push_back(&entry);
  std::sort(out.begin(), out.end(), [](const Entry* a, const Entry* b) {
    return std::pair(rank(a->second), a->second.order) < std::pair(rank(b->second), b->second.order);
  });
  return out;
}

/// Frees what a sequence holds and leaves it alone until somebody asks for it; its ids stay.
void LmEngine::drop(Sequence& s) {
  cut(s, 0);
  s.generation.reset();
  s.parked = true;
}

void LmEngine::fail_sequence(Entry& entry, const Error& error, std::vector<TokenEvent>& events) {
  drop(entry.second);
  events.push_back({entry.first, -1, Finish::error, error});
}

/// The cache is full: one sequence gives way. @return false when it was the last one that holds or wants blocks
bool LmEngine::make_way(std::vector<TokenEvent>& events) {
  if (prefixes_.free_block()) return true;
  const auto holders = in_order([](const Sequence& s) { return s.waiting() || s.cache.length() > 0; });
  auto& [name, s] = *holders.back();
  if (!s.generation) {
    ++counts_.parked;
    drop(s);
    return true;
  }
  ++counts_.gave_way;
  const auto alone = holders.size() == 1;
  fail_sequence(
      *holders.back(),
      {Errc::overloaded,
       alone ? fmt::format("the key/value cache of {} tokens is too small for sequence '{}' of {}",
                           ledger_.blocks_total() * kBlockTokens, name, s.history.size())
             : fmt::format(
                   "the key/value cache of {} tokens is full and sequence '{}' is the newest of the lowest class: "
                   "try again when others have ended",
                   ledger_.blocks_total() * kBlockTokens, name)},
      events);
  return !alone;
}

/// One token of everything that generates, then as much of the prompts as the time of a step allows.
LmEngine::Batch LmEngine::next_batch() {
  Batch out;
  auto waiting = in_order([](const Sequence& s) { return s.waiting(); });
  std::stable_sort(waiting.begin(), waiting.end(), [](const Entry* a, const Entry* b) {
    return std::pair(rank(a->second), a->second.due) < std::pair(rank(b->second), b->second.due);
  });
  auto room = limits_.batch_tokens;
  auto add = [&](Entry* entry, std::int64_t count) {
    out.wants.push_back({&entry->second.cache, count});
    out.entries.push_back(entry);
    room -= count;
  };
  std::vector<Entry*> speaking;
  for (auto* entry : waiting)
    if (entry->second.speaking()) speaking.push_back(entry);
  // Where not all of them fit, who had a token longest ago is first, and those who want to begin are not kept waiting
  // until one of them ends.
  const bool prompted = speaking.size() < waiting.size();
  const auto most =
      static_cast<std::size_t>(room - (prompted ? std::min<std::int64_t>(StepCost::kLeast, room / 2) : 0));
  if (speaking.size() > most) {
    std::stable_sort(speaking.begin(), speaking.end(),
                     [](const Entry* a, const Entry* b) { return a->second.served < b->second.served; });
    speaking.resize(most);
  }
  ++batches_;
  for (auto* entry : speaking) {
    entry->second.served = batches_;
    add(entry, 1), ++out.speaking;
  }
  auto prompts = cost_.room(out.speaking);
  for (auto* entry : waiting) {
    auto& s = entry->second;
    if (s.speaking()) continue;
    look_up(s, false);  // somebody else may have computed it meanwhile
    if (s.left() == 0) continue;
    const auto take = std::min({s.left(), limits_.prefill_chunk, room, prompts});
    if (take <= 0) break;
    add(entry, take);
    prompts -= take, out.prefilled += take;
  }
  return out;
}

/// The pass over a batch, and a draw for every sequence that is computed to its end and generates.
StepPlan LmEngine::plan_of(const Batch& batch, std::vector<BlockCopy> copies) const {
  StepPlan out;
  out.step = batches_;
  out.copies = std::move(copies);
  for (std::size_t i = 0; i < batch.wants.size(); ++i) {
    const auto& s = batch.entries[i]->second;
    const auto first = s.cache.length(), count = batch.wants[i].count;
    out.add(std::span(s.history).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)), first,
            s.cache.blocks());
    if (s.generation && count == s.left()) out.draw(s.history, s.generation->sampling, s.history.size());
  }
  return out;
}

std::vector<TokenEvent> LmEngine::step() {
  std::vector<TokenEvent> events;
  expire_prefixes();
  for (;;) {
    const auto batch = next_batch();
    if (batch.wants.empty()) return events;
    const auto begun = clock_->now();
    auto copies = ledger_.reserve(batch.wants);
    if (!copies) {
      if (!make_way(events)) return events;
      continue;
    }
    // What throws on the way leaves no room reserved and no copy forgotten, either.
    StepPlan plan;
    const auto drawn = [&]() -> Result<std::vector<Drawn>> {
      try {
        plan = plan_of(batch, *std::move(copies));
        auto out = backend_->run(plan);
        if (out && out->size() != plan.draws.size())
          return fail(Errc::internal, "a pass answered {} of {} draws", out->size(), plan.draws.size());
        return out;
      } catch (const std::exception& e) {
        return fail(Errc::internal, "a pass could not be made: {}", e.what());
      }
    }();
    if (!drawn) {
      const auto& error = drawn.error();
      for (auto* entry : batch.entries) {
        ledger_.unreserve(entry->second.cache);
        fail_sequence(*entry, error, events);
      }
      return events;
    }
    for (const auto& want : batch.wants) ledger_.commit(*want.sequence, want.count);
    tokens_computed_ += static_cast<std::int64_t>(plan.ids.size());
    for (auto* entry : batch.entries) enter_operators(entry->second);
    tell(batch, *drawn, events);
    cost_.observe(batch.speaking, batch.prefilled, std::chrono::duration<double>(clock_->now() - begun).count());
    return events;
  }
}

void LmEngine::tell(const Batch& batch, std::span<const Drawn> drawn, std::vector<TokenEvent>& events) {
  auto next = drawn.begin();
  for (auto* entry : batch.entries) {
    auto& [name, s] = *entry;
    if (!s.generation || s.waiting()) continue;
    const auto& [id, error] = *next++;
    if (error) {
      if (error->code == Errc::internal) {
        ++counts_.bad_logits;
        doubt(s);
      }
      fail_sequence(*entry, *error, events);
      continue;
    }
    auto& g = *s.generation;
    ++s.generated;
    believe(s);
    const bool stop = std::find(g.stops.begin(), g.stops.end(), id) != g.stops.end();
    const bool full =
        s.generated >= g.tokens_max || static_cast<std::int64_t>(s.history.size()) + 1 >= model_->config().length_max;
    events.push_back({name, id, stop ? Finish::stop : full ? Finish::length : Finish::none});
    s.history.push_back(id);
    if (!stop && !full) continue;
    s.generation.reset();
    enter(s, s.cache.length());
  }
}

}  // namespace parlando::llm
