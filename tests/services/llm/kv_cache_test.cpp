/// The paged cache against a dense reference: whatever is appended, forked, cut, adopted, released or fails, every
/// sequence keeps its own content.
#include <boost/test/results_collector.hpp>
#include <boost/test/unit_test.hpp>
#include <map>
#include <random>
#include <set>

#include "tests/services/llm/dense_step1.hpp"

namespace parlando::llm {
namespace {

constexpr std::int64_t kBlocks = 24;

std::shared_ptr<const Step1> cached_model() {
  static const auto loaded =
      Step1::load(std::filesystem::path(PARLANDO_SOURCE_DIR) / "tests/goldens/lm/tiny-step1-np2", at::kFloat);
  BOOST_REQUIRE_MESSAGE(loaded.has_value(), (loaded ? std::string() : loaded.error().message));
  return *loaded;
}

std::int64_t blocks_of(std::int64_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

/// Sequences beside what a dense computation says about them.
struct World {
  struct Live {
    KvPool::Sequence cache;
    std::vector<std::int32_t> ids;
    Dense want;
  };
  std::unique_ptr<KvPool> pool = cached_model()->make_pool(kBlocks * kBlockTokens);
  std::map<int, Live> live;
  std::mt19937 random;
  int names = 0;
  explicit World(unsigned seed) : random(seed) {}

  std::int64_t pick(std::int64_t first, std::int64_t last) {
    return first + static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(last - first + 1));
  }
  int some() { return std::next(live.begin(), pick(0, static_cast<std::int64_t>(live.size()) - 1))->first; }
  /// Ids of odd names are odd, of even ones even: a fork never continues as its parent does.
  std::vector<std::int32_t> fresh_ids(int name, std::int64_t count) {
    std::vector<std::int32_t> out;
    for (std::int64_t i = 0; i < count; ++i) out.push_back(static_cast<std::int32_t>(2 * pick(0, 319) + name % 2));
    return out;
  }
  std::map<std::int32_t, std::int64_t> references() const {
    std::map<std::int32_t, std::int64_t> out;
    for (const auto& [name, s] : live)
      for (const auto block : s.cache.blocks()) ++out[block];
    return out;
  }

  /// Appends to some sequences in one batch. @param fails_at  a stage of the network that throws, or -1
  void append(const std::vector<std::pair<int, std::vector<std::int32_t>>>& parts, int fails_at = -1) {
    std::vector<Step1::Chunk> chunks;
    auto shared = references();
    std::int64_t need = 0, total = 0;
    for (const auto& [name, ids] : parts) {
      auto& s = live.at(name);
      total += static_cast<std::int64_t>(ids.size());
      chunks.push_back({&s.cache, ids});
      const auto length = s.cache.length();
      need += blocks_of(length + static_cast<std::int64_t>(ids.size())) - blocks_of(length);
      if (length % kBlockTokens != 0 && !ids.empty()) {
        auto& n = shared[s.cache.blocks()[static_cast<std::size_t>(length / kBlockTokens)]];
        if (n > 1) ++need, --n;
      }
    }
    if (total == 0) fails_at = -1;  // nothing is computed, nothing throws
    const auto free = pool->blocks_free();
    const auto done = cached_model()->forward(
        *pool, chunks, fails_at < 0 ? Step1::Trace() : [&](int stage, const at::Tensor&) {
          if (stage == fails_at) throw std::runtime_error("the test says so");
        });
    BOOST_TEST(done.has_value() == (need <= free && fails_at < 0));
    if (!done) {
      BOOST_TEST(static_cast<int>(done.error().code) ==
                 static_cast<int>(need > free ? Errc::overloaded : Errc::internal));
      if (need > free) BOOST_TEST(pool->blocks_free() == free);
      return;
    }
    std::int64_t at = 0;
    for (const auto& [name, ids] : parts) {
      auto& s = live.at(name);
      s.ids.insert(s.ids.end(), ids.begin(), ids.end());
      const auto n = static_cast<std::int64_t>(ids.size()), length = static_cast<std::int64_t>(s.ids.size());
      if (n == 0) continue;
      s.want = dense(*cached_model(), s.ids);
      BOOST_TEST((done->narrow(0, at, n) - s.want.hidden.narrow(0, length - n, n)).abs().max().item<float>() < 1e-3f);
      at += n;
    }
  }

  int fork(int from, std::int64_t at) {
    auto& s = live.at(from);
    Live copy{s.cache.fork(), {s.ids.begin(), s.ids.begin() + at}, s.want};
    copy.cache.truncate(at);
    live.emplace(++names, std::move(copy));
    return names;
  }

  /// Every position of every sequence holds what it should, and no block is lost or owned by nobody.
  void check() {
    std::set<std::int32_t> used;
    for (const auto& [name, s] : live) {
      const auto length = static_cast<std::int64_t>(s.ids.size());
      BOOST_TEST(s.cache.length() == length);
      BOOST_TEST(static_cast<std::int64_t>(s.cache.blocks().size()) == blocks_of(length));
      used.insert(s.cache.blocks().begin(), s.cache.blocks().end());
      if (length == 0) continue;
      float keys = 0, values = 0;
      for (std::int64_t l = 0; l < cached_model()->layers(); ++l)
        for (std::int64_t j = 0; j < length; ++j) {
          const auto [k, v] = pool->store().read(s.cache.blocks(), l, j);
          keys = std::max(keys, (at::tensor(k) - s.want.keys[l][j].flatten()).abs().max().item<float>());
          values = std::max(values, (at::tensor(v) - s.want.values[l][j].flatten()).abs().max().item<float>());
        }
      BOOST_TEST(keys < 1e-3f, "keys of sequence " << name << " differ");
      BOOST_TEST(values < 1e-3f, "values of sequence " << name << " differ");
    }
    BOOST_TEST(pool->blocks_free() == kBlocks - static_cast<std::int64_t>(used.size()));
  }
};

}  // namespace

BOOST_AUTO_TEST_CASE(a_fork_after_a_failed_batch_does_not_write_into_its_parent) {
  // 20 tokens: a partial second block. The batch fails because its second part cannot fit; then both go on, each with
  // ids of its own.
  for (const std::int64_t length : {20, 16}) {
    BOOST_TEST_CONTEXT("length " << length) {
      World w(1);
      w.live[0].cache = w.pool->open(), w.live[1].cache = w.pool->open();
      w.append({{0, w.fresh_ids(0, length)}});
      w.append({{0, w.fresh_ids(0, 30)}, {1, w.fresh_ids(1, kBlocks * kBlockTokens - 32)}});
      w.check();
      w.names = 2;
      const auto child = w.fork(0, length);
      w.append({{0, w.fresh_ids(0, 3)}});
      w.append({{child, w.fresh_ids(1, 3)}});
      w.append({{0, w.fresh_ids(0, 1)}});
      w.check();
    }
  }
}

BOOST_AUTO_TEST_CASE(a_pass_that_throws_gives_its_room_back) {
  World w(2);
  w.live[0].cache = w.pool->open();
  w.append({{0, w.fresh_ids(0, 20)}});
  for (int stage = 0; stage <= static_cast<int>(cached_model()->config().layers) + 1; ++stage) {
    w.append({{0, w.fresh_ids(0, 40)}}, stage);
    w.check();
  }
}

BOOST_AUTO_TEST_CASE(sequences_that_share_their_last_block_need_one_copy_less_than_there_are) {
  // Three writers of one block with as many blocks free as two copies take: the last one keeps the original.
  World w(3);
  w.live[0].cache = w.pool->open(), w.live[1].cache = w.pool->open();
  w.append({{0, w.fresh_ids(0, 20)}, {1, w.fresh_ids(1, (kBlocks - 4) * kBlockTokens)}});
  w.names = 1;
  const auto a = w.fork(0, 20), b = w.fork(0, 20);
  BOOST_TEST(w.pool->blocks_free() == 2);
  w.append({{0, w.fresh_ids(0, 2)}, {a, w.fresh_ids(a, 2)}, {b, w.fresh_ids(b, 2)}});
  w.check();
  BOOST_TEST(w.pool->blocks_free() == 0);
}

BOOST_AUTO_TEST_CASE(whatever_happens_each_sequence_keeps_its_content) {
  for (unsigned seed = 1; seed <= 12; ++seed) {
    BOOST_TEST_CONTEXT("seed " << seed) {
      World w(seed);
      for (int step = 0; step < 50; ++step) {
        const auto what = w.live.empty() ? 0 : w.pick(0, 11);
        if (what == 0) {
          w.live[++w.names].cache = w.pool->open();
        } else if (what <= 6) {
          std::map<int, std::vector<std::int32_t>> parts;
          for (auto n = w.pick(1, 3); n > 0; --n) {
            const auto name = w.some();
            parts[name] = w.fresh_ids(
                name,
                std::min<std::int64_t>(w.pick(1, 40), 120 - static_cast<std::int64_t>(w.live.at(name).ids.size())));
          }
          w.append({parts.begin(), parts.end()},
                   what == 6 ? static_cast<int>(w.pick(0, cached_model()->config().layers + 1)) : -1);
        } else if (what <= 8) {
          const auto from = w.some();
          w.fork(from, w.pick(0, static_cast<std::int64_t>(w.live.at(from).ids.size())));
        } else if (what == 9) {
          auto& s = w.live.at(w.some());
          const auto to = w.pick(0, static_cast<std::int64_t>(s.ids.size()));
          s.cache.truncate(to), s.ids.resize(static_cast<std::size_t>(to));
        } else if (what == 10) {  // one takes the place of another
          const auto from = w.some(), to = w.some();
          if (from != to) {
            w.live.at(to) = std::move(w.live.at(from));
            w.live.erase(from);
          }
        } else if (w.live.size() > 2 || w.pick(0, 3) == 0) {
          w.live.erase(w.some());
        }
        w.check();
        if (boost::unit_test::results_collector.results(boost::unit_test::framework::current_test_case().p_id)
                .p_assertions_failed > 0)
          return;
      }
      w.live.clear();
      BOOST_TEST(w.pool->blocks_free() == kBlocks);
    }
  }
}

}  // namespace parlando::llm
