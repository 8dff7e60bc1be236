/// Attention over a paged cache against double precision, on every instruction set of this processor.
#include "kernels/attention/paged_attention.hpp"

#include <algorithm>
#include <bit>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <limits>
#include <numeric>

#include "tests/kernels/each_isa.hpp"

namespace parlando::kernels {
namespace {

float rounded(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return std::bit_cast<float>((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}

/// A sequence in scattered blocks of a cache whose other places hold what is no number.
struct Cache {
  KvLayout layout;
  std::int64_t heads, tokens, first;
  std::vector<std::byte> keys, values;
  std::vector<std::int32_t> table;
  std::vector<float> k, v, q, slopes;

  Cache(bool bf16, std::int64_t dim, std::int64_t per_group, std::int64_t count, std::int64_t position, unsigned seed)
      : layout{bf16, 2, dim}, heads(2 * per_group), tokens(count), first(position) {
    const auto total = first + tokens, blocks = (total + 15) / 16 + 3;
    keys.assign(static_cast<std::size_t>(blocks * layout.key_bytes()), std::byte{0xff});
    values.assign(static_cast<std::size_t>(blocks * layout.value_bytes()), std::byte{0xff});
    table.resize(static_cast<std::size_t>((total + 15) / 16));
    std::iota(table.begin(), table.end(), 2);
    std::mt19937 random(seed);
    std::shuffle(table.begin(), table.end(), random);
    k = random_floats(total * 2 * dim, seed + 1), v = random_floats(total * 2 * dim, seed + 2);
    q = random_floats(tokens * heads * dim, seed + 3);
    if (bf16)
      for (auto& x : q) x = rounded(x);
    for (std::int64_t h = 0; h < heads; ++h) slopes.push_back(1.0f / static_cast<float>(1 + h));
    for (std::int64_t j = 0; j < total; ++j) {
      const auto block = table[static_cast<std::size_t>(j / 16)];
      write_position(layout, keys.data() + block * layout.key_bytes(), values.data() + block * layout.value_bytes(),
                     j % 16, k.data() + j * 2 * dim, v.data() + j * 2 * dim);
    }
  }
  PagedAttention call(float* out) const {
    return {q.data(),     out,   heads * layout.dim, heads * layout.dim, tokens, first, keys.data(), values.data(),
            table.data(), heads, slopes.data()};
  }
};

double worst(const std::vector<float>& a, const std::vector<float>& b) {
  double out = 0;
  for (std::size_t i = 0; i < a.size(); ++i) out = std::max(out, std::abs(double{a[i]} - b[i]));
  return out;
}

}  // namespace

BOOST_AUTO_TEST_SUITE(attention_test)

BOOST_AUTO_TEST_CASE(scattered_blocks_give_what_double_precision_gives) {
  Team team;
  for (const bool bf16 : {false, true})
    for (const std::int64_t dim : {1, 8, 40, 64, 128})
      for (const std::int64_t per_group : {1, 2, 7, 12})
        for (const auto& [first, tokens] :
             {std::pair<std::int64_t, std::int64_t>{0, 1}, {0, 35}, {15, 1}, {100, 7}, {127, 2}, {128, 1}, {300, 1}}) {
          const Cache c(bf16, dim, per_group, tokens, first, 11);
          std::vector<float> want(c.q.size());
          paged_attention_reference(c.layout, c.call(want.data()));
          for_each_isa([&] {
            std::vector<float> got(c.q.size(), -7.0f);
            const auto a = c.call(got.data());
            paged_attention(team, c.layout, {&a, 1});
            // Averages of values of size ~1; scores are off by dim · 2^-24 at most, their exponentials as much.
            BOOST_TEST(worst(got, want) <= 2e-5, (bf16 ? "bf16, " : "f32, ")
                                                     << dim << " dimensions, " << per_group << " heads a group, "
                                                     << tokens << " tokens at " << first << ": off by "
                                                     << worst(got, want));
          });
        }
}

BOOST_AUTO_TEST_CASE(long_contexts_lose_nothing) {
  Team team;
  for (const bool bf16 : {false, true}) {
    const Cache c(bf16, 64, 12, 1, 5000, 12);
    std::vector<float> want(c.q.size());
    paged_attention_reference(c.layout, c.call(want.data()));
    for_each_isa([&] {
      std::vector<float> got(c.q.size());
      const auto a = c.call(got.data());
      paged_attention(team, c.layout, {&a, 1});
      BOOST_TEST(worst(got, want) <= 2e-5);
    });
  }
}

BOOST_AUTO_TEST_CASE(the_bits_of_a_token_do_not_depend_on_its_company) {
  Team one, two(2), three(3);
  for (const bool bf16 : {false, true})
    for (const std::int64_t per_group : {2, 12})
      for_each_isa([&] {
        const Cache c(bf16, 40, per_group, 70, 90, 13), other(bf16, 40, per_group, 1, 1500, 14);
        std::vector<float> alone(c.q.size()), others(other.q.size());
        for (std::int64_t t = 0; t < c.tokens; ++t) {
          auto token = c.call(alone.data());
          token.q += t * token.q_stride, token.out += t * token.out_stride;
          token.tokens = 1, token.first_position += t;
          paged_attention(one, c.layout, {&token, 1});
        }
        for (auto* team : {&one, &two, &three})
          for (const std::int64_t piece : {70, 33, 7}) {
            std::vector<float> got(c.q.size());
            for (std::int64_t t = 0; t < c.tokens; t += piece) {
              auto some = c.call(got.data());
              some.q += t * some.q_stride, some.out += t * some.out_stride;
              some.tokens = std::min(piece, c.tokens - t), some.first_position += t;
              const PagedAttention batch[] = {other.call(others.data()), some};
              paged_attention(*team, c.layout, batch);
            }
            BOOST_TEST((got == alone), "pieces of " << piece << ", " << team->size() << " threads");
          }
      });
}

BOOST_AUTO_TEST_CASE(threads_have_about_the_same_work) {
  const Cache prompt(true, 8, 12, 256, 0, 15), longer(true, 8, 12, 1, 3000, 16), shorter(true, 8, 12, 1, 100, 17);
  std::vector<float> out(prompt.q.size());
  const auto alone = prompt.call(out.data());
  for (const int threads : {2, 4})
    for (const auto share : attention_shares(prompt.layout, {&alone, 1}, threads))
      BOOST_TEST(share * threads < 1.2, threads << " threads: a share of " << share);
  // One long context among short ones: its two groups of heads are two items.
  std::vector<PagedAttention> mixed(6, shorter.call(out.data()));
  mixed.push_back(longer.call(out.data()));
  for (const auto share : attention_shares(prompt.layout, mixed, 2)) BOOST_TEST(share < 0.62);
}

BOOST_AUTO_TEST_CASE(attention_wakes_as_many_as_it_is_worth) {
  const KvLayout nano{false, 2, 40}, large{true, 4, 64};
  for_each_isa([&] {
    if (isa() == Isa::plain) return;
    // Positions of all groups: nano at 512, and 32 streams of it at 250; the 3B shape at 256 and at 4096.
    BOOST_TEST(threads_worth(attention_cost(nano, 4, 2 * 512), 2) == 1);
    BOOST_TEST(threads_worth(attention_cost(nano, 4, 32 * 2 * 250), 2) == 2);
    BOOST_TEST(threads_worth(attention_cost(large, 48, 4 * 256), 2) == 1);
    BOOST_TEST(threads_worth(attention_cost(large, 48, 4 * 4096), 2) == 2);
  });
}

BOOST_AUTO_TEST_CASE(sequences_of_a_batch_do_not_touch_each_other) {
  Team team(3);
  for_each_isa([&] {
    const Cache a(true, 64, 12, 1, 3000, 14), b(true, 64, 12, 60, 2000, 15);
    std::vector<float> alone(a.q.size() + b.q.size()), together(alone.size());
    Team one;
    for (const auto& [cache, at] : {std::pair{&a, std::size_t{0}}, {&b, a.q.size()}}) {
      const auto call = cache->call(alone.data() + at);
      paged_attention(one, cache->layout, {&call, 1});
    }
    // One cache may hold many sequences; here each brings its own.
    const PagedAttention calls[] = {a.call(together.data()), b.call(together.data() + a.q.size())};
    paged_attention(team, a.layout, calls);
    BOOST_TEST((together == alone));
  });
}

BOOST_AUTO_TEST_CASE(what_is_written_is_read_and_nothing_else_changes) {
  for (const bool bf16 : {false, true})
    for (const std::int64_t dim : {1, 7, 40, 64})
      for_each_isa([&] {
        const KvLayout layout{bf16, 3, dim};
        std::vector<std::byte> keys(static_cast<std::size_t>(layout.key_bytes())),
            values(static_cast<std::size_t>(layout.value_bytes()));
        std::vector<std::vector<float>> k, v;
        for (int j = 0; j < 16; ++j) {
          k.push_back(random_floats(3 * dim, static_cast<unsigned>(j)));
          v.push_back(random_floats(3 * dim, static_cast<unsigned>(j + 100)));
          write_position(layout, keys.data(), values.data(), j, k.back().data(), v.back().data());
        }
        for (int j = 0; j < 16; ++j) {
          std::vector<float> ks(k[0].size()), vs(k[0].size());
          read_position(layout, keys.data(), values.data(), j, ks.data(), vs.data());
          for (std::size_t i = 0; i < ks.size(); ++i) {
            BOOST_TEST(ks[i] ==
                       (bf16 ? rounded(k[static_cast<std::size_t>(j)][i]) : k[static_cast<std::size_t>(j)][i]));
            BOOST_TEST(vs[i] ==
                       (bf16 ? rounded(v[static_cast<std::size_t>(j)][i]) : v[static_cast<std::size_t>(j)][i]));
          }
        }
      });
}

BOOST_AUTO_TEST_CASE(a_key_that_is_no_number_is_not_swallowed) {
  Team team;
  for (const bool bf16 : {false, true})
    for_each_isa([&] {
      Cache c(bf16, 64, 12, 1, 200, 16);
      std::vector<float> k(128, std::numeric_limits<float>::quiet_NaN());
      const auto block = c.table[3];
      write_position(c.layout, c.keys.data() + block * c.layout.key_bytes(),
                     c.values.data() + block * c.layout.value_bytes(), 5, k.data(), c.v.data());
      std::vector<float> got(c.q.size());
      const auto a = c.call(got.data());
      paged_attention(team, c.layout, {&a, 1});
      BOOST_TEST(std::none_of(got.begin(), got.end(), [](float x) { return std::isfinite(x); }));
    });
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::kernels
