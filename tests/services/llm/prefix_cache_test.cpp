/// Beginnings that stay computed: the tree against a list of what was entered, and an engine with it against one
/// without.
#include "services/llm/model/prefix_cache.hpp"

#include <boost/test/unit_test.hpp>
#include <map>
#include <random>

#include "services/llm/model/engine.hpp"

namespace parlando::llm {
namespace {

using Ids = std::vector<std::int32_t>;
constexpr SessionId kOne{0, 1}, kTwo{0, 2};
const Time kNow{std::chrono::hours(1)};

std::shared_ptr<const Step1> prefix_model() {
  static const auto loaded =
      Step1::load(std::filesystem::path(PARLANDO_SOURCE_DIR) / "tests/goldens/lm/tiny-step1-np2", WeightFormat::f32);
  BOOST_REQUIRE(loaded.has_value());
  return *loaded;
}

Ids drawn_ids(int n, int seed) {
  Ids out;
  for (int i = 0; i < n; ++i) out.push_back((i * 37 + seed * 101) % 640);
  return out;
}

Ids joined(Ids a, const Ids& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// Blocks whose content is known: what passes would have written.
struct Memory {
  BlockLedger ledger;
  std::map<std::int32_t, Ids> content;
  explicit Memory(std::int64_t blocks) : ledger(blocks) {}
  bool append(BlockLedger::Sequence& s, const Ids& more) {
    const BlockLedger::Want want{&s, static_cast<std::int64_t>(more.size())};
    const auto copies = ledger.reserve({&want, 1});
    if (!copies) return false;
    for (const auto& [from, to] : *copies) content[to] = content[from];
    for (std::size_t i = 0; i < more.size(); ++i) {
      const auto at = static_cast<std::size_t>(s.length()) + i;
      auto& block = content[s.blocks()[at / 16]];
      block.resize(16);
      block[at % 16] = more[i];
    }
    ledger.commit(s, want.count);
    return true;
  }
  Ids read(const std::vector<std::int32_t>& blocks, std::int64_t length) {
    Ids out;
    for (std::int64_t i = 0; i < length; ++i)
      out.push_back(content[blocks[static_cast<std::size_t>(i / 16)]][static_cast<std::size_t>(i % 16)]);
    return out;
  }
};

struct Answer {
  Ids said;
  std::int64_t computed = 0;
};
Answer answer(LmEngine& engine, const Ids& prompt, Beginning whose, int tokens, std::int64_t* cached = nullptr) {
  Answer out;
  BOOST_REQUIRE(engine.open("x").has_value());
  engine.share("x", std::move(whose));
  const auto before = engine.tokens_computed();
  BOOST_REQUIRE(engine.append("x", 0, prompt).has_value());
  if (cached != nullptr) *cached = engine.computed("x");
  const auto length = static_cast<std::int64_t>(prompt.size());
  BOOST_REQUIRE(engine.generate("x", length, {Sampling::greedy(), tokens, {}}).has_value());
  while (!engine.idle())
    for (const auto& e : engine.step()) out.said.push_back(e.id);
  out.computed = engine.tokens_computed() - before;
  engine.release("x");
  return out;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(prefix_cache_test)

BOOST_AUTO_TEST_CASE(whatever_is_entered_the_longest_beginning_that_may_be_met_is_found) {
  for (unsigned seed = 1; seed <= 40; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      std::mt19937 random(seed);
      const auto pick = [&](std::size_t n) { return static_cast<std::int64_t>(random() % n); };
      const bool small = seed % 2 == 0;  // the limits are met
      Memory memory(small ? 24 : 4000);
      ManualClock clock;
      PrefixCache cache(memory.ledger, {.blocks = small ? 14 : 4000, .idle = std::chrono::seconds(20)});
      struct Entered {
        Ids ids;
        Beginning whose;
      };
      std::vector<Entered> entered;
      struct Live {
        BlockLedger::Sequence cache;
        Ids ids;
        Beginning whose;
      };
      std::vector<Live> live;
      // What may be met of `e` by a prompt: with the operator's ids in both, and in one session all of them.
      const auto meets = [](const Ids& wanted, const Beginning& whose, const Entered& e) {
        const auto common =
            std::mismatch(wanted.begin(), wanted.end(), e.ids.begin(), e.ids.end()).first - wanted.begin();
        const auto shared = std::min({common, whose.operators, e.whose.operators});
        if (!whose.session || whose.session != e.whose.session) return shared;
        // Blocks that are wholly the operator's in one and not in the other hang in different places.
        return whose.operators == e.whose.operators ? common : shared;
      };
      const std::int64_t of_operator[] = {0, 20, 37, 48};
      for (int call = 0; call < 120; ++call) {
        const auto what = pick(10);
        if (what <= 4) {
          // Of few ids, so that they often begin alike and part anywhere.
          Ids wanted;
          const auto& from = entered.empty() ? Ids() : entered[static_cast<std::size_t>(pick(entered.size()))].ids;
          wanted.assign(from.begin(), from.begin() + pick(from.size() + 1));
          for (auto n = pick(40); n > 0; --n) wanted.push_back(static_cast<std::int32_t>(pick(2)));
          Beginning whose{of_operator[pick(4)], {}};
          if (pick(4) > 0) whose.session = pick(2) == 0 ? kOne : kTwo;
          const auto match = cache.find(wanted, whose, clock.now());
          BOOST_TEST(match.length <= static_cast<std::int64_t>(wanted.size()));
          BOOST_TEST((memory.read(match.blocks, match.length) ==
                      Ids(wanted.begin(), wanted.begin() + static_cast<std::ptrdiff_t>(match.length))));
          std::int64_t longest = 0;
          for (const auto& e : entered) longest = std::max<std::int64_t>(longest, meets(wanted, whose, e));
          if (small)
            BOOST_TEST(match.length <= static_cast<std::int64_t>(wanted.size()));
          else
            BOOST_TEST(match.length >= longest);
          // Nothing of another session behind the operator's ids.
          std::int64_t allowed = 0;
          for (const auto& e : entered) {
            const auto common =
                std::mismatch(wanted.begin(), wanted.end(), e.ids.begin(), e.ids.end()).first - wanted.begin();
            const bool same = whose.session && whose.session == e.whose.session;
            allowed = std::max<std::int64_t>(
                allowed, same ? common : std::min<std::int64_t>({common, whose.operators, e.whose.operators}));
          }
          BOOST_TEST(match.length <= allowed);
          Live s{match.length > 0 ? memory.ledger.open_on(match.blocks, match.length) : memory.ledger.open(), wanted,
                 whose};
          const Ids rest(wanted.begin() + static_cast<std::ptrdiff_t>(match.length), wanted.end());
          while (!memory.append(s.cache, rest))
            if (!cache.evict()) break;
          if (s.cache.length() < static_cast<std::int64_t>(wanted.size())) continue;  // the sequences alone fill it
          live.push_back(std::move(s));
        } else if (what <= 7 && !live.empty()) {
          const auto at = static_cast<std::size_t>(pick(live.size()));
          auto& s = live[at];
          cache.enter(s.ids, s.cache, s.cache.length(), s.whose, clock.now());
          entered.push_back({s.ids, s.whose});
          if (pick(2) == 0) live.erase(live.begin() + static_cast<std::ptrdiff_t>(at));
        } else if (what == 8 && !live.empty()) {
          auto& s = live[static_cast<std::size_t>(pick(live.size()))];
          const Ids more{static_cast<std::int32_t>(pick(2)), 7};
          if (memory.append(s.cache, more)) s.ids = joined(s.ids, more);
        } else if (small) {
          clock.advance(std::chrono::seconds(pick(6)));
          cache.expire(clock.now());
        }
        for (const auto& s : live) BOOST_TEST((memory.read(s.cache.blocks(), s.cache.length()) == s.ids));
        BOOST_TEST(cache.entries() <= (small ? 14 : 4000));
      }
      live.clear();
      BOOST_TEST(memory.ledger.blocks_total() - memory.ledger.blocks_free() <= cache.entries());
      clock.advance(std::chrono::seconds(20));
      cache.expire(clock.now());
      BOOST_TEST(cache.entries() == 0);
      BOOST_TEST(memory.ledger.blocks_free() == memory.ledger.blocks_total());
    }
  }
}

BOOST_AUTO_TEST_CASE(ends_go_before_fronts_and_what_was_used_longest_ago_first) {
  Memory memory(16);
  PrefixCache cache(memory.ledger, {.blocks = 16});
  const Beginning whose{0, kOne};
  const auto front = drawn_ids(32, 1), a = joined(front, drawn_ids(16, 2)), b = joined(front, drawn_ids(16, 3));
  for (const auto& prompt : {a, b}) {
    auto s = memory.ledger.open();
    BOOST_REQUIRE(memory.append(s, prompt));
    cache.enter(prompt, s, s.length(), whose, kNow);
  }
  BOOST_TEST(cache.entries() == 4);
  BOOST_TEST(cache.find(a, whose, kNow).length == 48);
  BOOST_TEST(cache.evict());
  BOOST_TEST(cache.find(b, whose, kNow).length == 32);
  BOOST_TEST(cache.find(a, whose, kNow).length == 48);
  BOOST_TEST(cache.evict());
  BOOST_TEST(cache.find(a, whose, kNow).length == 32);
  BOOST_TEST(cache.evict());
  BOOST_TEST(cache.evict());
  BOOST_TEST(!cache.evict());
  BOOST_TEST(memory.ledger.blocks_free() == 16);
}

/// An entry whose block somebody uses would free nothing: who comes later still finds it.
BOOST_AUTO_TEST_CASE(what_somebody_uses_is_not_let_go_for_a_block) {
  Memory memory(8);
  PrefixCache cache(memory.ledger, {8});
  const Beginning operators{48, kOne};
  auto used = memory.ledger.open(), old = memory.ledger.open();
  const auto first = drawn_ids(40, 1), second = drawn_ids(40, 2);
  BOOST_REQUIRE(memory.append(used, first));
  BOOST_REQUIRE(memory.append(old, second));
  cache.enter(first, used, 40, operators, kNow);
  cache.enter(second, old, 40, operators, kNow + milliseconds(1));
  BOOST_TEST(memory.ledger.blocks_free() == 2);
  BOOST_TEST(!cache.free_block());
  BOOST_TEST(cache.entries() == 6);
  old = memory.ledger.open();  // its ends are nobody's now, though they are the newer ones
  for (const int left : {5, 4, 3}) {
    BOOST_TEST(cache.free_block());
    BOOST_TEST(cache.entries() == left);
    BOOST_TEST(cache.find(first, operators, kNow).length == 40);
  }
  BOOST_TEST(memory.ledger.blocks_free() == 5);
  BOOST_TEST(!cache.free_block());
  BOOST_TEST(cache.counts().evicted == 3);
  // A block of which a part is the operator's stands in two entries: it is free when both are gone.
  used = memory.ledger.open();
  while (cache.free_block()) {
  }
  auto mixed = memory.ledger.open();
  BOOST_REQUIRE(memory.append(mixed, first));
  cache.enter(first, mixed, 40, {8, kOne}, kNow);
  BOOST_TEST(cache.entries() == 4);
  mixed = memory.ledger.open();
  for (const int left : {3, 2, 0}) {
    BOOST_TEST(cache.free_block());
    BOOST_TEST(cache.entries() == left);
  }
  BOOST_TEST(memory.ledger.blocks_free() == 8);
}

namespace {
/// Asks once: computes what is not there, and keeps it. @return how many ids were there
std::int64_t ask(Memory& memory, PrefixCache& cache, const Ids& prompt, const Beginning& whose, Time now) {
  const auto match = cache.find(prompt, whose, now);
  auto s = match.length > 0 ? memory.ledger.open_on(match.blocks, match.length) : memory.ledger.open();
  BOOST_TEST((memory.read(s.blocks(), s.length()) == Ids(prompt.begin(), prompt.begin() + s.length())));
  BOOST_REQUIRE(memory.append(s, Ids(prompt.begin() + match.length, prompt.end())));
  cache.enter(prompt, s, s.length(), whose, now);
  return match.length;
}
}  // namespace

/// A sequence goes on from where it stands, whatever is entered, forgotten or let go meanwhile: it finds what it would
/// from the root, nothing that others said, and all that was entered and used since.
BOOST_AUTO_TEST_CASE(who_stands_in_the_tree_finds_what_is_there_from_the_root) {
  constexpr std::chrono::seconds kIdle{20};
  std::map<std::string, std::int64_t> met;
  for (unsigned seed = 1; seed <= 150; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      std::mt19937 random(seed);
      const auto pick = [&](std::size_t n) { return static_cast<std::int64_t>(random() % n); };
      const bool small = seed % 3 == 0;  // the limits are met
      Memory memory(small ? 40 : 4000);
      ManualClock clock;
      PrefixCache cache(memory.ledger, {.blocks = small ? 20 : 4000, .idle = kIdle});
      // Two of the operator's begin alike; whole blocks, and a part of one.
      const auto persona = drawn_ids(40, 1);
      const std::vector<Ids> texts{persona, Ids(persona.begin(), persona.begin() + 32),
                                   joined(Ids(persona.begin(), persona.begin() + 37), drawn_ids(13, 2))};
      struct Said {  // what was entered, and when the tree used it last for sure
        Ids ids;
        Beginning whose;
        Time used, end_used;  // the end of the operator's words, where it is a part of a block
      };
      std::vector<Said> said;
      struct Live {
        BlockLedger::Sequence cache;
        Ids ids;
        Beginning whose;
        PrefixCache::Stand stand;
      };
      std::vector<Live> live;
      const auto common_of = [](const Ids& a, const Ids& b) -> std::int64_t {
        return std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first - a.begin();
      };
      const auto is_fresh = [&](Time used) { return clock.now() - used < kIdle; };
      const auto least = [&](const Ids& wanted, const Beginning& whose, const Said& e) -> std::int64_t {
        if (!is_fresh(e.used)) return 0;
        const auto common = common_of(wanted, e.ids);
        if (whose.session && whose.session == e.whose.session && whose.operators == e.whose.operators) return common;
        const auto both = std::min({common, whose.operators, e.whose.operators}), whole = both / 16 * 16;
        const auto operators = std::min<std::int64_t>(e.whose.operators, static_cast<std::int64_t>(e.ids.size()));
        return whole + 16 <= operators || is_fresh(e.end_used) ? both : whole;
      };
      const auto find = [&](Live& s) {
        const auto have = s.cache.length();
        auto match = cache.find(s.ids, s.whose, have, s.stand, clock.now());
        BOOST_TEST(s.stand.length <= match.length);
        BOOST_TEST(match.first % 16 == 0);
        const auto from = s.ids.begin() + match.first, to = s.ids.begin() + match.length;
        BOOST_TEST((memory.read(match.blocks, match.length - match.first) == Ids(from, to)));
        std::int64_t most = 0, longest = 0;
        for (const auto& e : said) {
          const bool same = s.whose.session && s.whose.session == e.whose.session;
          const auto common = common_of(s.ids, e.ids);
          most = std::max(most, same ? common : std::min({common, s.whose.operators, e.whose.operators}));
          longest = std::max(longest, least(s.ids, s.whose, e));
        }
        BOOST_TEST(match.length <= most);
        if (!small) BOOST_TEST(match.length >= longest);
        met["finds"] += match.length > have;
        met["goes on"] += match.first > 0;
        const auto reached = match.length;
        if (reached > have) {
          const auto& own = s.cache.blocks();
          match.blocks.insert(match.blocks.begin(), own.begin(), own.begin() + match.first / 16);
          s.cache = memory.ledger.open_on(match.blocks, reached);
        }
        BOOST_TEST(cache.find(s.ids, s.whose, clock.now()).length == reached);
      };
      const auto compute = [&](Live& s) {
        const Ids rest(s.ids.begin() + s.cache.length(), s.ids.end());
        while (!memory.append(s.cache, rest))
          if (!cache.free_block()) break;
        s.ids.resize(static_cast<std::size_t>(s.cache.length()));
      };
      const auto enter = [&](Live& s, std::int64_t length) {
        if (length == 0) return;
        const auto operators = std::min(s.whose.operators, length);
        const bool uses_end = s.stand.length <= operators / 16 * 16;
        cache.enter(s.ids, s.cache, length, 0, s.whose, s.stand, clock.now());
        if (pick(4) == 0) cache.believe(s.stand, s.cache.blocks());
        BOOST_TEST(s.stand.length <= s.cache.length());
        const auto kept = s.whose.session ? length : operators;
        said.push_back({Ids(s.ids.begin(), s.ids.begin() + kept), s.whose, clock.now(),
                        uses_end ? clock.now() : clock.now() - kIdle});
      };
      for (int call = 0; call < 150; ++call) {
        const auto what = pick(16);
        const auto some = [&]() -> Live& { return live[static_cast<std::size_t>(pick(live.size()))]; };
        if (what <= 3 || live.empty()) {
          const auto& text = texts[static_cast<std::size_t>(pick(3))];
          const auto length = static_cast<std::int64_t>(text.size());
          // The same words as the operator's, as a client's, or of both.
          const std::int64_t operators[] = {length, length, 0, 20};
          Live s{memory.ledger.open(), text, {operators[pick(4)], {}}, {}};
          if (pick(5) > 0) s.whose.session = SessionId{0, static_cast<std::uint64_t>(1 + pick(3))};
          if (!said.empty() && pick(2) == 0) {
            const auto& from = said[static_cast<std::size_t>(pick(said.size()))].ids;
            s.ids.assign(from.begin(), from.begin() + pick(from.size() + 1));
          }
          for (auto n = pick(40); n > 0; --n) s.ids.push_back(static_cast<std::int32_t>(pick(2)));
          find(s);
          compute(s);
          live.push_back(std::move(s));
          if (live.size() > (small ? 4u : 9u)) live.erase(live.begin() + pick(live.size()));
        } else if (what <= 5) {
          auto& s = some();  // as the engine does while it computes
          const auto all = s.whose.operators, length = s.cache.length();
          enter(s, length >= (all + 15) / 16 * 16 ? all : std::min(length, all) / 16 * 16);
        } else if (what <= 7) {
          const auto at = pick(live.size());
          enter(live[static_cast<std::size_t>(at)], live[static_cast<std::size_t>(at)].cache.length());
          if (pick(2) == 0) live.erase(live.begin() + at);
        } else if (what <= 10) {
          auto& s = some();
          if (!said.empty() && pick(2) == 0) {  // what somebody said behind the same words
            const auto& from = said[static_cast<std::size_t>(pick(said.size()))].ids;
            if (common_of(s.ids, from) == static_cast<std::int64_t>(s.ids.size())) s.ids = from;
          }
          for (auto n = pick(20); n > 0; --n) s.ids.push_back(static_cast<std::int32_t>(pick(2)));
          find(s);
          compute(s);
        } else if (what == 11) {
          auto& s = some();
          s.ids.resize(static_cast<std::size_t>(pick(s.ids.size() + 1)));
          s.cache.truncate(static_cast<std::int64_t>(s.ids.size()));
          if (s.stand.length > s.cache.length()) s.stand = {};
        } else if (what == 12) {
          auto& s = some();
          live.push_back({s.cache.fork(), s.ids, s.whose, s.stand});
        } else if (what == 13 && pick(3) == 0) {
          const SessionId session{0, static_cast<std::uint64_t>(1 + pick(3))};
          met["forgets"] += cache.entries(session) > 0;
          cache.forget(session);
          BOOST_TEST(cache.entries(session) == 0);
          for (auto& s : live)
            if (s.whose.session == session) s.whose.session.reset();
          for (auto& e : said) {
            if (e.whose.session != session) continue;
            e.whose.session.reset();
            e.ids.resize(std::min(e.ids.size(), static_cast<std::size_t>(e.whose.operators)));
          }
        } else if (what == 14 && small) {
          if (pick(2) == 0)
            cache.evict();
          else
            cache.free_block();
        } else {
          clock.advance(std::chrono::seconds(pick(8)));
          const auto before = cache.entries();
          cache.expire(clock.now());
          met["expires"] += cache.entries() < before && cache.entries() > 0;
        }
        for (const auto& s : live) BOOST_TEST((memory.read(s.cache.blocks(), s.cache.length()) == s.ids));
        BOOST_TEST(cache.entries() <= (small ? 20 : 4000));
      }
      live.clear();
      BOOST_TEST(memory.ledger.blocks_only_held() == memory.ledger.blocks_total() - memory.ledger.blocks_free());
      clock.advance(kIdle);
      cache.expire(clock.now());
      BOOST_TEST(cache.entries() == 0);
      BOOST_TEST(memory.ledger.blocks_free() == memory.ledger.blocks_total());
      met["evicts"] += cache.counts().evicted;
    }
  }
  for (const char* what : {"finds", "goes on", "forgets", "expires", "evicts"}) BOOST_TEST(met[what] > 0, what);
}

/// A session that has said the operator's words itself keeps nobody from them, and they outlive it.
BOOST_AUTO_TEST_CASE(a_client_that_says_the_operators_words_first_changes_nothing_of_them) {
  for (const int words : {32, 40}) {
    const auto clock = std::make_shared<ManualClock>();
    LmEngine engine(prefix_model(),
                    {.cache_tokens = 2048,
                     .prefix_blocks = 64,
                     .prefix_idle = std::chrono::seconds(100),
                     .step_max = std::chrono::hours(1)},
                    clock);
    const auto persona = drawn_ids(words, 1);
    std::int64_t cached = -1;
    const auto said = [&](const Ids& more, std::int64_t operators, SessionId session) {
      answer(engine, joined(persona, more), {operators, session}, 2, &cached);
      return cached;
    };
    BOOST_TEST(said(drawn_ids(20, 2), 0, kOne) == 0);
    clock->advance(std::chrono::seconds(30));
    BOOST_TEST(said(drawn_ids(20, 3), words, kOne) == words);  // its own
    BOOST_TEST(said(drawn_ids(20, 4), words, kTwo) == words);
    clock->advance(std::chrono::seconds(40));
    BOOST_TEST(said(drawn_ids(20, 3), words, kOne) == words + 20);
    clock->advance(std::chrono::seconds(60));  // what the client said, and the other session, are over; that one is not
    engine.expire_prefixes();
    BOOST_TEST(engine.prefixes().entries(kTwo) == 0);
    BOOST_TEST(said(drawn_ids(20, 3), words, kOne) == words + 20);
    BOOST_TEST(said(drawn_ids(20, 5), words, kTwo) >= words / 16 * 16);
    clock->advance(std::chrono::seconds(100));
    engine.expire_prefixes();
    BOOST_TEST(engine.prefixes().entries() == 0);
    BOOST_TEST(engine.blocks_free() == 128);
  }
}

/// What grows within a block stays its owner's, who has come back.
BOOST_AUTO_TEST_CASE(a_beginning_that_grows_keeps_its_place) {
  Memory memory(64);
  PrefixCache cache(memory.ledger, {.blocks = 8});
  const auto all = drawn_ids(12, 1);
  for (const int length : {4, 8, 12})
    BOOST_TEST(ask(memory, cache, Ids(all.begin(), all.begin() + length), {0, kOne}, kNow) == length - 4);
  BOOST_TEST(cache.entries(kOne) == 1);
  for (int n = 0; n < 20; ++n)
    ask(memory, cache, drawn_ids(16, 10 + n), {0, SessionId{1, static_cast<std::uint64_t>(n)}}, kNow + milliseconds(n));
  BOOST_TEST(cache.entries() == 8);
  BOOST_TEST(cache.find(all, {0, kOne}, kNow + milliseconds(20)).length == 12);
}

/// Where every kept block is in use none is looked for: whoever gives way asks once per sequence.
BOOST_AUTO_TEST_CASE(a_block_is_not_looked_for_where_all_are_in_use) {
  Memory memory(400);
  PrefixCache cache(memory.ledger, {.blocks = 400});
  const auto prompt = drawn_ids(1600, 1), other = drawn_ids(48, 2);
  auto used = memory.ledger.open();
  BOOST_REQUIRE(memory.append(used, prompt));
  cache.enter(prompt, used, used.length(), {800, kOne}, kNow);
  BOOST_TEST(cache.entries() == 100);
  BOOST_TEST(memory.ledger.blocks_only_held() == 0);
  for (int n = 0; n < 100; ++n) BOOST_TEST(!cache.free_block());
  BOOST_TEST(cache.looked_at() == 0);
  ask(memory, cache, other, {0, kTwo}, kNow);
  BOOST_TEST(memory.ledger.blocks_only_held() == 3);
  for (int n = 0; n < 3; ++n) BOOST_TEST(cache.free_block());
  BOOST_TEST(memory.ledger.blocks_only_held() == 0);
  BOOST_TEST(!cache.free_block());
  BOOST_TEST(cache.entries() == 100);
}

/// The operator's words are looked at once, however many sessions have come back since they were used.
BOOST_AUTO_TEST_CASE(who_gives_way_is_found_in_one_look_at_each) {
  Memory memory(400);
  PrefixCache cache(memory.ledger, {.blocks = 400});
  auto now = kNow;
  std::vector<BlockLedger::Sequence> users;
  const auto use = [&](const Ids& prompt, const Beginning& whose) {
    for (int twice = 0; twice < 2; ++twice) ask(memory, cache, prompt, whose, now += milliseconds(1));
    const auto match = cache.find(prompt, whose, now);
    users.push_back(memory.ledger.open_on(match.blocks, match.length));
  };
  use(drawn_ids(800, 1), {800, {}});
  for (std::uint64_t n = 0; n < 40; ++n) use(drawn_ids(16, 10 + static_cast<int>(n)), {0, SessionId{1, n}});
  use(drawn_ids(16, 99), {0, kTwo});
  users.pop_back();  // what it said is nobody's now
  BOOST_TEST(cache.entries() == 50 + 40 + 1);
  BOOST_TEST(cache.free_block());
  BOOST_TEST(cache.looked_at() <= 50 + 40 + 1);
  BOOST_TEST(cache.entries(kTwo) == 0);
  BOOST_TEST(cache.entries() == 50 + 40);
}

/// Ids of no session: the operator's words alone are kept, and go when nobody has used them.
BOOST_AUTO_TEST_CASE(whole_blocks_of_the_operators_words_expire_without_a_session) {
  Memory memory(64);
  PrefixCache cache(memory.ledger, {.blocks = 64, .idle = std::chrono::seconds(10)});
  const auto prompt = drawn_ids(60, 1);
  ask(memory, cache, prompt, {48, {}}, kNow);
  BOOST_TEST(cache.entries() == 3);
  BOOST_TEST(ask(memory, cache, prompt, {48, {}}, kNow + milliseconds(9'000)) == 48);
  cache.expire(kNow + milliseconds(10'000));
  BOOST_TEST(cache.entries() == 3);
  cache.expire(kNow + milliseconds(19'000));
  BOOST_TEST(cache.entries() == 0);
  BOOST_TEST(cache.counts().expired == 3);
}

BOOST_AUTO_TEST_CASE(many_who_ask_once_do_not_push_out_who_goes_on) {
  Memory memory(400);
  PrefixCache cache(memory.ledger, {.blocks = 64});
  const auto system = drawn_ids(32, 1), history = joined(system, drawn_ids(96, 2));
  auto now = kNow;
  ask(memory, cache, history, {32, kOne}, now);
  BOOST_TEST(ask(memory, cache, joined(history, drawn_ids(32, 3)), {32, kOne}, now) == 128);  // it has come back
  for (int n = 0; n < 200; ++n)
    ask(memory, cache, joined(system, drawn_ids(64, 10 + n)), {32, SessionId{1, static_cast<std::uint64_t>(n)}},
        now += milliseconds(1));
  BOOST_TEST(cache.entries() == 64);
  BOOST_TEST(ask(memory, cache, joined(history, drawn_ids(32, 3)), {32, kOne}, now) == 160);
  // Of those who came once the last ones are still there, too.
  BOOST_TEST(cache.find(joined(system, drawn_ids(64, 209)), {32, SessionId{1, 199}}, now).length == 96);
  BOOST_TEST(cache.find(joined(system, drawn_ids(64, 10)), {32, SessionId{1, 0}}, now).length == 32);
}

BOOST_AUTO_TEST_CASE(a_long_session_takes_what_is_free_and_nothing_from_others) {
  Memory memory(400);
  PrefixCache cache(memory.ledger, {.blocks = 40});
  const auto system = drawn_ids(32, 1), second = joined(system, drawn_ids(96, 2)),
             third = joined(system, drawn_ids(96, 3));
  const auto longer = joined(system, drawn_ids(1600, 4));
  ask(memory, cache, second, {32, kTwo}, kNow);
  ask(memory, cache, third, {32, SessionId{0, 3}}, kNow);
  for (int n = 1; n <= 10; ++n)
    ask(memory, cache, Ids(longer.begin(), longer.begin() + n * 160), {32, kOne}, kNow + milliseconds(n));
  const auto now = kNow + milliseconds(11);
  BOOST_TEST(cache.entries() == 40);
  BOOST_TEST(cache.find(longer, {32, kOne}, now).length == 26 * 16 + 32);
  BOOST_TEST(cache.find(second, {32, kTwo}, now).length == 128);
  BOOST_TEST(cache.find(third, {32, SessionId{0, 3}}, now).length == 128);
  // Others take it back, to a quarter; its front stays.
  ask(memory, cache, joined(system, drawn_ids(160, 5)), {32, SessionId{0, 4}}, now);
  ask(memory, cache, joined(system, drawn_ids(96, 6)), {32, SessionId{0, 5}}, now);
  BOOST_TEST(cache.entries() == 40);
  BOOST_TEST(cache.find(longer, {32, kOne}, now).length == 10 * 16 + 32);
  BOOST_TEST(cache.find(second, {32, kTwo}, now).length == 128);
  BOOST_TEST(cache.find(third, {32, SessionId{0, 3}}, now).length == 128);
}

BOOST_AUTO_TEST_CASE(what_belongs_to_a_session_alone_goes_with_it) {
  Memory memory(64);
  PrefixCache cache(memory.ledger, {.blocks = 64});
  const auto system = drawn_ids(40, 1), first = joined(system, drawn_ids(60, 2)),
             second = joined(system, drawn_ids(60, 3));
  ask(memory, cache, first, {40, kOne}, kNow);
  ask(memory, cache, second, {40, kTwo}, kNow);
  BOOST_TEST(cache.entries(kOne) == 5);
  const auto all = cache.entries();
  cache.forget(kOne);
  cache.forget(SessionId{0, 3});  // nothing was kept of it
  BOOST_TEST(cache.entries(kOne) == 0);
  BOOST_TEST(cache.entries() == all - 5);
  BOOST_TEST(cache.counts().forgotten == 5);
  BOOST_TEST(cache.counts().evicted + cache.counts().expired == 0);
  BOOST_TEST(cache.find(first, {40, kOne}, kNow).length == 40);
  BOOST_TEST(cache.find(second, {40, kTwo}, kNow).length == 100);
  BOOST_TEST(memory.ledger.blocks_total() - memory.ledger.blocks_free() == cache.entries());
}

BOOST_AUTO_TEST_CASE(what_is_computed_for_a_session_that_is_over_is_not_kept) {
  LmEngine engine(prefix_model(), {.cache_tokens = 2048, .prefix_blocks = 64, .step_max = std::chrono::hours(1)});
  BOOST_REQUIRE(engine.open("x").has_value());
  engine.share("x", {32, kOne});
  BOOST_REQUIRE(engine.append("x", 0, drawn_ids(80, 1)).has_value());
  BOOST_REQUIRE(engine.generate("x", 80, {Sampling::greedy(), 4, {}}).has_value());
  (void)engine.step();
  engine.forget(kOne);
  while (!engine.idle()) (void)engine.step();
  engine.release("x");
  BOOST_TEST(engine.prefixes().entries(kOne) == 0);
  BOOST_TEST(engine.prefixes().entries() == 2);  // the operator's words
}

BOOST_AUTO_TEST_CASE(a_session_meets_its_own_history_and_the_operators_words_alone) {
  const auto system = drawn_ids(70, 1), history = drawn_ids(60, 2);
  const auto first = joined(system, history);
  LmEngine engine(prefix_model(), {.cache_tokens = 2048, .prefix_blocks = 64, .step_max = std::chrono::hours(1)});
  std::int64_t cached = -1;
  const auto cached_for = [&](const Ids& prompt, Beginning whose) {
    answer(engine, prompt, std::move(whose), 2, &cached);
    return cached;
  };
  BOOST_TEST(cached_for(first, {70, kOne}) == 0);
  BOOST_TEST(cached_for(first, {70, kTwo}) == 70);  // the last, unfinished block of it, too
  BOOST_TEST(cached_for(first, {70, {}}) == 70);
  BOOST_TEST(cached_for(first, {0, SessionId{0, 3}}) == 0);  // the same words, from a client
  BOOST_TEST(cached_for(first, {70, kOne}) == 130);
  BOOST_TEST(cached_for(joined(drawn_ids(70, 1), drawn_ids(30, 9)), {70, kOne}) >= 70);
}

BOOST_AUTO_TEST_CASE(a_second_turn_computes_what_is_new) {
  const auto system = drawn_ids(50, 1), asked = drawn_ids(21, 2), next = drawn_ids(17, 3);
  LmEngine engine(prefix_model(), {.cache_tokens = 2048, .prefix_blocks = 64, .step_max = std::chrono::hours(1)});
  LmEngine plain(prefix_model(), {.cache_tokens = 2048, .step_max = std::chrono::hours(1)});
  const Beginning whose{50, kOne};
  auto prompt = joined(system, asked);
  const auto first = answer(engine, prompt, whose, 12);
  prompt = joined(joined(prompt, first.said), next);
  const auto second = answer(engine, prompt, whose, 8), expected = answer(plain, prompt, whose, 8);
  BOOST_TEST(second.said == expected.said, boost::test_tools::per_element());
  BOOST_TEST(expected.computed == 50 + 21 + 12 + 17 + 8);
  BOOST_TEST(second.computed == 17 + 8);
}

BOOST_AUTO_TEST_CASE(whoever_comes_while_a_beginning_is_computed_waits_for_no_more_than_that) {
  const auto system = drawn_ids(160, 1);
  LmEngine engine(prefix_model(), {.cache_tokens = 2048,
                                   .prefill_chunk = 16,
                                   .batch_tokens = 16,
                                   .prefix_blocks = 64,
                                   .step_max = std::chrono::hours(1)});
  for (const char* name : {"a", "b"}) {
    BOOST_REQUIRE(engine.open(name).has_value());
    engine.share(name, {160, {}});
    BOOST_REQUIRE(engine.append(name, 0, joined(system, drawn_ids(5, name[0]))).has_value());
    BOOST_REQUIRE(engine.generate(name, 165, {Sampling::greedy(), 1, {}}).has_value());
  }
  while (!engine.idle()) engine.step();
  BOOST_TEST(engine.tokens_computed() == 165 + 5 + 2);
  BOOST_TEST(engine.prefixes().counts().hit_tokens == 160);
}

BOOST_AUTO_TEST_CASE(what_nobody_uses_goes_by_the_clock_and_before_anything_that_is_used) {
  const auto clock = std::make_shared<ManualClock>();
  LmEngine engine(prefix_model(),
                  {.cache_tokens = 256,
                   .prefix_blocks = 8,
                   .prefix_idle = std::chrono::seconds(10),
                   .step_max = std::chrono::hours(1)},
                  clock);
  const Beginning whose{0, kOne};
  answer(engine, drawn_ids(60, 1), whose, 4);
  BOOST_TEST(engine.blocks_free() == 12);
  clock->advance(milliseconds(9'999));
  engine.expire_prefixes();
  BOOST_TEST(engine.prefixes().entries() == 4);
  clock->advance(milliseconds(1));
  engine.expire_prefixes();
  BOOST_TEST(engine.prefixes().entries() == 0);
  BOOST_TEST(engine.prefixes().counts().expired == 4);
  BOOST_TEST(engine.blocks_free() == 16);
  // More than its share is not kept, and what is kept ends nobody's answer.
  answer(engine, drawn_ids(200, 2), whose, 4);
  BOOST_TEST(engine.prefixes().entries() == 8);
  BOOST_TEST(answer(engine, drawn_ids(240, 3), {}, 4).said.size() == 4u);
  BOOST_TEST(engine.counts().gave_way + engine.counts().parked == 0);
  BOOST_TEST(engine.prefixes().counts().evicted >= 7);
}

BOOST_AUTO_TEST_CASE(what_gave_logits_that_are_no_numbers_is_forgotten) {
  const auto broken = Step1::random(prefix_model()->config(), WeightFormat::f32, 7);
  BOOST_REQUIRE(broken.has_value());
  (*broken)->embedding().select(0, 600).fill_(std::numeric_limits<float>::quiet_NaN());
  LmEngine engine(*broken, {.cache_tokens = 512, .prefix_blocks = 32, .step_max = std::chrono::hours(1)});
  Ids poisoned(40, 5);
  poisoned[20] = 600;
  for (const char* name : {"a", "b"}) {
    BOOST_REQUIRE(engine.open(name).has_value());
    engine.share(name, {40, kOne});
    BOOST_REQUIRE(engine.append(name, 0, poisoned).has_value());
    while (!engine.idle()) engine.step();
  }
  BOOST_TEST(engine.prefixes().entries() > 0);
  BOOST_REQUIRE(engine.generate("a", 40, {Sampling::greedy(), 1, {}}).has_value());
  while (!engine.idle()) engine.step();
  BOOST_TEST(engine.counts().bad_logits == 1);
  BOOST_TEST(engine.prefixes().entries() == 0);
  for (const char* name : {"a", "b"}) engine.release(name);  // b has lived through it
  BOOST_TEST(engine.prefixes().entries() == 0);
  BOOST_TEST(engine.blocks_free() == 32);
}

/// Of the operator's words others have drawn numbers behind: what made none is what one session added.
BOOST_AUTO_TEST_CASE(logits_that_are_no_numbers_cost_others_nothing) {
  const auto broken = Step1::random(prefix_model()->config(), WeightFormat::f32, 7);
  BOOST_REQUIRE(broken.has_value());
  (*broken)->embedding().select(0, 600).fill_(std::numeric_limits<float>::quiet_NaN());
  LmEngine engine(*broken, {.cache_tokens = 1024, .prefix_blocks = 48, .step_max = std::chrono::hours(1)});
  const Ids system(40, 5), asked(30, 6);
  Ids poisoned(30, 7);
  poisoned[10] = 600;
  const auto good = joined(system, asked), bad = joined(system, poisoned);
  answer(engine, good, {40, kOne}, 3);
  BOOST_REQUIRE(engine.open("waits").has_value());  // it lives through it
  engine.share("waits", {40, SessionId{0, 4}});
  BOOST_REQUIRE(engine.append("waits", 0, joined(system, Ids(30, 9))).has_value());
  while (!engine.idle()) engine.step();
  BOOST_REQUIRE(engine.open("bad").has_value());
  engine.share("bad", {40, kTwo});
  BOOST_REQUIRE(engine.append("bad", 0, bad).has_value());
  BOOST_REQUIRE(engine.generate("bad", 70, {Sampling::greedy(), 1, {}}).has_value());
  while (!engine.idle()) engine.step();
  BOOST_TEST(engine.counts().bad_logits == 1);
  engine.release("bad");
  std::int64_t cached = 0;
  BOOST_TEST(engine.prefixes().entries(kTwo) == 0);
  answer(engine, good, {40, kOne}, 1, &cached);
  BOOST_TEST(cached == 70);
  BOOST_REQUIRE(engine.generate("waits", 70, {Sampling::greedy(), 2, {}}).has_value());
  while (!engine.idle()) engine.step();
  engine.release("waits");
  answer(engine, joined(system, Ids(30, 9)), {40, SessionId{0, 4}}, 1, &cached);
  BOOST_TEST(cached == 70);
}

namespace {
/// Draws no numbers while it is told so.
class Spoiled : public Backend {
 public:
  Spoiled(std::int64_t blocks, const bool* bad) : backend_(prefix_model(), blocks), bad_(bad) {}
  std::int64_t blocks() const override { return backend_.blocks(); }
  Result<std::vector<Drawn>> run(const StepPlan& plan) override {
    auto out = backend_.run(plan);
    if (*bad_ && out)
      for (auto& drawn : *out) drawn = {-1, Error{Errc::internal, "no numbers"}};
    return out;
  }

 private:
  CpuBackend backend_;
  const bool* bad_;
};
}  // namespace

BOOST_AUTO_TEST_CASE(what_was_sound_and_fails_twice_goes) {
  bool bad = false;
  LmEngine engine(prefix_model(), {.prefix_blocks = 32, .step_max = std::chrono::hours(1)},
                  std::make_shared<ManualClock>(), std::make_unique<Spoiled>(64, &bad));
  const auto system = drawn_ids(40, 1);
  std::int64_t cached = -1;
  const auto ask_for = [&](int seed) {
    answer(engine, joined(system, drawn_ids(20, seed)), {40, SessionId{5, static_cast<std::uint64_t>(seed)}}, 1,
           &cached);
    return cached;
  };
  ask_for(1);
  BOOST_TEST(ask_for(2) == 40);
  bad = true;
  BOOST_TEST(ask_for(3) == 40);
  bad = false;
  BOOST_TEST(ask_for(4) == 40);  // it was not the operator's words
  bad = true;
  BOOST_TEST(ask_for(5) == 40);
  BOOST_TEST(ask_for(6) >= 32);  // the end of them was a part of a block: nobody has drawn behind that itself
  BOOST_TEST(ask_for(7) == 0);
  bad = false;
  BOOST_TEST(ask_for(8) == 0);
  BOOST_TEST(ask_for(9) == 40);
  BOOST_TEST(engine.counts().bad_logits == 4);
}

namespace {
/// Fails now and then, as a machine does.
class Unreliable : public Backend {
 public:
  Unreliable(std::int64_t blocks, bool* fails) : backend_(prefix_model(), blocks), fails_(fails) {}
  std::int64_t blocks() const override { return backend_.blocks(); }
  Result<std::vector<Drawn>> run(const StepPlan& plan) override {
    auto out = backend_.run(plan);  // what it had written stays written
    if (std::exchange(*fails_, false)) return fail(Errc::internal, "the test says so");
    return out;
  }

 private:
  CpuBackend backend_;
  bool* fails_;
};
}  // namespace

BOOST_AUTO_TEST_CASE(whatever_happens_an_answer_is_that_of_an_engine_without) {
  std::int64_t hits = 0, evicted = 0, failed = 0, answers = 0, cancelled = 0, parked = 0;
  for (unsigned seed = 1; seed <= 12; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      std::mt19937 random(seed);
      const auto pick = [&](std::size_t n) { return static_cast<int>(random() % n); };
      bool fails = false;
      const std::int64_t blocks = seed % 3 == 0 ? 64 : 12;
      LmEngine engine(prefix_model(),
                      {.prefill_chunk = 24,
                       .batch_tokens = 48,
                       .sequences = 8,
                       .prefix_blocks = blocks / 2,
                       .step_max = std::chrono::hours(1)},
                      std::make_shared<ManualClock>(), std::make_unique<Unreliable>(blocks, &fails));
      struct Live {
        Ids prompt, said;
        Sampling sampling;
        Beginning whose;
        int tokens = 0;
        bool generates = false;
      };
      std::map<std::string, Live> live;
      std::vector<Ids> known{drawn_ids(37, 1), drawn_ids(48, 2)};
      const auto check = [&](const Live& s) {
        LmEngine plain(prefix_model(), {.cache_tokens = 1024, .step_max = std::chrono::hours(1)});
        BOOST_REQUIRE(plain.open("x").has_value());
        BOOST_REQUIRE(plain.append("x", 0, s.prompt).has_value());
        BOOST_REQUIRE(
            plain.generate("x", static_cast<std::int64_t>(s.prompt.size()), {s.sampling, s.tokens, {}}).has_value());
        Ids expected;
        while (!plain.idle())
          for (const auto& e : plain.step()) expected.push_back(e.id);
        expected.resize(std::min(expected.size(), s.said.size()));
        BOOST_TEST(s.said == expected, boost::test_tools::per_element());
        ++answers;
      };
      int names = 0;
      for (int call = 0; call < 200; ++call) {
        const auto what = pick(12);
        const auto some = [&] { return std::next(live.begin(), pick(live.size())); };
        if (what <= 1 && live.size() < 6) {
          Live s;
          const auto& from = known[static_cast<std::size_t>(pick(known.size()))];
          // Whole blocks, one id beside them, or anywhere.
          auto at = static_cast<std::size_t>(pick(from.size() + 1));
          if (pick(2) == 0) at = std::min(from.size(), (at + 8) / 16 * 16 + static_cast<std::size_t>(pick(2)));
          s.prompt = joined(Ids(from.begin(), from.begin() + static_cast<std::ptrdiff_t>(at)),
                            drawn_ids(1 + pick(30), pick(50)));
          s.prompt.resize(std::min<std::size_t>(s.prompt.size(), 150));
          s.whose = {pick(3) * 20, pick(3) == 0 ? kTwo : kOne};
          s.tokens = 1 + pick(12);
          s.sampling = pick(2) == 0 ? Sampling::greedy() : Sampling::chat();
          s.sampling.seed = random();
          const auto name = std::to_string(++names);
          BOOST_REQUIRE(engine.open(name).has_value());
          engine.share(name, s.whose);
          BOOST_REQUIRE(engine.append(name, 0, s.prompt).has_value());
          live[name] = std::move(s);
        } else if (what <= 3 && !live.empty()) {
          auto& [name, s] = *some();
          if (s.generates) continue;
          s.generates = true;
          BOOST_REQUIRE(engine
                            .generate(name, static_cast<std::int64_t>(s.prompt.size()),
                                      {s.sampling, s.tokens, {}, static_cast<Priority>(pick(2))})
                            .has_value());
        } else if (what == 4 && !live.empty()) {
          const auto at = some();
          known.push_back(joined(at->second.prompt, at->second.said));
          check(at->second);
          cancelled += static_cast<int>(at->second.said.size()) < at->second.tokens;
          engine.release(at->first);
          live.erase(at);
        } else {
          if (pick(25) == 0) fails = true;
          for (const auto& e : engine.step()) {
            auto& s = live.at(e.sequence);
            if (e.id >= 0) s.said.push_back(e.id);
            if (!e.error) continue;
            ++failed;
            check(s);
            engine.release(e.sequence);
            live.erase(e.sequence);
          }
        }
      }
      for (const auto& [name, s] : live) check(s), engine.release(name);
      hits += engine.prefixes().counts().hit_tokens, evicted += engine.prefixes().counts().evicted;
      parked += engine.counts().parked;
      BOOST_TEST(engine.prefixes().entries() <= blocks / 2);
      BOOST_TEST(blocks - engine.blocks_free() <= engine.prefixes().entries());
      BOOST_REQUIRE(engine.open("all").has_value());
      BOOST_REQUIRE(engine.append("all", 0, drawn_ids(static_cast<int>(std::min<std::int64_t>(256, blocks * 16)), 77))
                        .has_value());
      while (!engine.idle()) engine.step();
      engine.release("all");
    }
  }
  BOOST_TEST_MESSAGE(
      fmt::format("{} answers, {} tokens not computed, {} blocks gave way, {} failed, {} cancelled, {} parked", answers,
                  hits, evicted, failed, cancelled, parked));
  for (const auto n : {hits, evicted, failed, cancelled, parked}) BOOST_TEST(n > 0);
}

BOOST_AUTO_TEST_CASE(a_long_prompt_among_many_is_found_in_few_comparisons) {
  Memory memory(20000);
  PrefixCache cache(memory.ledger, {.blocks = 20000});
  std::mt19937 random(1);
  std::vector<Ids> prompts(300);
  for (auto& prompt : prompts) {
    for (int i = 0; i < 1024; ++i) prompt.push_back(static_cast<std::int32_t>(random() % 640));
    ask(memory, cache, prompt, {0, kOne}, kNow);
  }
  for (const auto& prompt : prompts) {
    const auto before = cache.compared();
    const auto match = cache.find(prompt, {0, kOne}, kNow);
    BOOST_TEST(match.length == 1024);
    BOOST_TEST((memory.read(match.blocks, match.length) == prompt));
    BOOST_TEST(cache.compared() - before == 64);
  }
  // The same in an engine: the ids behind a prompt are those of one that keeps nothing.
  LmEngine engine(prefix_model(), {.cache_tokens = 16384, .prefix_blocks = 800, .step_max = std::chrono::hours(1)});
  LmEngine plain(prefix_model(), {.step_max = std::chrono::hours(1)});
  for (std::size_t n = 0; n < 50; ++n) {
    prompts[n].resize(200);
    answer(engine, prompts[n], {0, kOne}, 1);
  }
  for (std::size_t n = 0; n < 50; n += 7) {
    const auto got = answer(engine, prompts[n], {0, kOne}, 12), expected = answer(plain, prompts[n], {}, 12);
    BOOST_TEST(got.said == expected.said, boost::test_tools::per_element());
    BOOST_TEST(got.said.size() == 12u);
    BOOST_TEST(got.computed <= 12 + 1);
  }
}

/// Lookups and entries of a long prompt go on from where they ended.
BOOST_AUTO_TEST_CASE(a_prompt_in_pieces_is_compared_once) {
  LmEngine engine(prefix_model(), {.cache_tokens = 4096,
                                   .prefill_chunk = 16,
                                   .batch_tokens = 16,
                                   .prefix_blocks = 200,
                                   .step_max = std::chrono::hours(1)});
  const auto prompt = drawn_ids(1024, 1);
  for (const std::int64_t operators : {0, 512, 1024}) {
    const SessionId session{7, static_cast<std::uint64_t>(operators)};
    const auto before = engine.prefixes().compared();
    const auto piece = std::to_string(operators);
    answer(engine, prompt, {operators, session}, 1);
    // Each block is looked for and entered once, each piece looks behind the last one it knows.
    BOOST_TEST(engine.prefixes().compared() - before <= 5 * 64, "with " << operators << " of the operator");
  }
}

/// In every format of weights and cache the words are those of an engine that computes all of it.
BOOST_AUTO_TEST_CASE(in_every_format_an_answer_is_that_of_an_engine_without) {
  for (const auto format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::int8, WeightFormat::int4}) {
    const auto model = Step1::random(prefix_model()->config(), format, 5);
    BOOST_REQUIRE(model.has_value());
    LmEngine engine(*model, {.cache_tokens = 2048, .prefix_blocks = 64, .step_max = std::chrono::hours(1)});
    LmEngine plain(*model, {.cache_tokens = 2048, .step_max = std::chrono::hours(1)});
    const auto system = drawn_ids(43, 1);
    Ids history = system;
    std::int64_t saved = 0;
    for (int turn = 0; turn < 4; ++turn) {
      history = joined(history, drawn_ids(13 + turn, 2 + turn));
      const auto got = answer(engine, history, {43, kOne}, 15), expected = answer(plain, history, {43, kOne}, 15);
      BOOST_TEST(got.said == expected.said, name(format) << ", turn " << turn);
      saved += expected.computed - got.computed;
      const auto other = joined(system, drawn_ids(20, 40 + turn));
      const SessionId stranger{3, static_cast<std::uint64_t>(turn)};
      BOOST_TEST(answer(engine, other, {43, stranger}, 9).said == answer(plain, other, {43, stranger}, 9).said,
                 name(format) << ", another session");
      history = joined(history, got.said);
    }
    BOOST_TEST(saved > 3 * 43);
  }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::llm
