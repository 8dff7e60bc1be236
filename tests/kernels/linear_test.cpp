/// Products with packed weights against double precision, in every format, on every instruction set of this processor.
#include "kernels/linear/linear.hpp"

#include <bit>
#include <boost/test/unit_test.hpp>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/vector/f16.hpp"
#include "tests/kernels/each_isa.hpp"

namespace parlando::kernels {
namespace {

constexpr PackedShape kFormats[] = {
    {WeightFormat::f32},  {WeightFormat::f32, 0, 0, 32, true}, {WeightFormat::bf16},
    {WeightFormat::int8}, {WeightFormat::int4, 0, 0, 32},      {WeightFormat::int4, 0, 0, 64}};
constexpr std::int64_t kProductRows[] = {1, 15, 16, 33}, kProductColumns[] = {1, 2, 7, 31, 64, 257, 513};

std::vector<std::byte> packed(const PackedShape& s, const std::vector<float>& w) {
  // Nothing may depend on what the memory held before.
  std::vector<std::byte> out(static_cast<std::size_t>(s.bytes()), std::byte{0xa5});
  pack_rows(s, w.data(), 0, s.rows, out.data());
  return out;
}

template <class F>
void for_each_shape(F&& check) {
  for (auto shape : kFormats)
    for (const auto rows : kProductRows)
      for (const auto columns : kProductColumns) {
        shape.rows = rows, shape.columns = columns;
        BOOST_TEST_CONTEXT(name(shape.format)
                           << ", group " << shape.group << ", " << rows << " rows, " << columns << " columns") {
          check(shape);
        }
      }
}

}  // namespace

BOOST_AUTO_TEST_SUITE(linear_test)

BOOST_AUTO_TEST_CASE(products_are_those_of_the_rounded_numbers) {
  Team team;
  for_each_isa([&] {
    for_each_shape([&](const PackedShape& s) {
      const auto w = random_floats(s.rows * s.columns, 1);
      const auto bytes = packed(s, w);
      std::vector<float> stored(w.size());
      unpack(s, bytes.data(), stored.data());
      for (const std::int64_t count : {1, 2, 3, 5, 8, 12, 13, 16, 17, 27, 31, 32, 33, 50}) {
        if (isa() == Isa::plain && count > 27) continue;  // seconds, and nothing new
        const auto x = random_floats(count * (s.columns + 3), 2);
        LinearInput in;
        in.set(team, s, x.data(), count, s.columns + 3);
        std::vector<float> rounded(static_cast<std::size_t>(count * s.columns));
        in.values(rounded.data());
        std::vector<double> want(static_cast<std::size_t>(count * s.rows));
        linear_reference(stored.data(), s.rows, s.columns, rounded.data(), count, want.data());
        const auto stride = s.rows + 5;
        std::vector<float> got(static_cast<std::size_t>(count * stride), -7.0f);
        linear(team, s, bytes.data(), in, got.data(), stride);
        // n products of size ~1 summed in float: error below n · 2^-24 · a few.
        double worst = 0;
        bool untouched = true;
        for (std::int64_t n = 0; n < count; ++n) {
          for (std::int64_t r = 0; r < s.rows; ++r)
            worst = std::max(worst, std::abs(got[static_cast<std::size_t>(n * stride + r)] -
                                             want[static_cast<std::size_t>(n * s.rows + r)]));
          for (auto r = s.rows; r < stride; ++r) untouched &= got[static_cast<std::size_t>(n * stride + r)] == -7.0f;
        }
        BOOST_TEST(worst <= 1e-6 * static_cast<double>(s.columns + 8), count << " rows of x: error " << worst);
        BOOST_TEST(untouched);
      }
    });
  });
}

BOOST_AUTO_TEST_CASE(rounding_keeps_the_promise_of_each_format) {
  for_each_shape([](const PackedShape& s) {
    const auto w = random_floats(s.rows * s.columns, 3);
    std::vector<float> got(w.size());
    unpack(s, packed(s, w).data(), got.data());
    double worst = 0, squares = 0, error = 0;
    for (std::int64_t r = 0; r < s.rows; ++r) {
      double most = 0;
      for (std::int64_t c = 0; c < s.columns; ++c) most = std::max(most, std::abs(double{w[r * s.columns + c]}));
      for (std::int64_t c = 0; c < s.columns; ++c) {
        const double v = w[r * s.columns + c], e = std::abs(got[r * s.columns + c] - v);
        squares += v * v, error += e * e;
        switch (s.format) {
          case WeightFormat::f32:  // halves lose digits of what is no fp16 number
            worst = std::max(worst, s.halves ? e - std::abs(v) / 2048 - 0x1p-25 : e);
            break;
          case WeightFormat::bf16:
            worst = std::max(worst, e - std::abs(v) / 256);
            break;
          case WeightFormat::int8:  // half a step
            worst = std::max(worst, e - most / 127 * 0.5001);
            break;
          case WeightFormat::int4:
            break;
        }
      }
    }
    BOOST_TEST(worst <= 0.0);
    // 16 steps over a normal distribution cut at its largest of 32 or 64: a hundredth of the power is usual.
    if (s.format == WeightFormat::int4) BOOST_TEST(error <= 0.02 * squares);
  });
}

BOOST_AUTO_TEST_CASE(integer_products_are_the_same_wherever_there_are_fused_sums) {
  Team team;
  for (auto s : kFormats) {
    if (s.format != WeightFormat::int8 && s.format != WeightFormat::int4) continue;
    s.rows = 45, s.columns = 601;
    const auto bytes = packed(s, random_floats(s.rows * s.columns, 4));
    for (const std::int64_t count : {7, 24, 41}) {
      const auto x = random_floats(count * s.columns, 5);
      std::vector<float> first;
      for_each_isa([&] {
        if (isa() == Isa::plain) return;
        LinearInput in;
        in.set(team, s, x.data(), count, s.columns);
        std::vector<float> got(static_cast<std::size_t>(count * s.rows));
        linear(team, s, bytes.data(), in, got.data(), s.rows);
        if (first.empty()) first = got;
        BOOST_TEST((got == first), name(s.format) << ", " << count << " rows of x");
      });
    }
  }
}

BOOST_AUTO_TEST_CASE(the_largest_numbers_do_not_overflow) {
  Team team;
  for_each_isa([&] {
    for (auto s : kFormats) {
      s.rows = 16, s.columns = 1024;
      for (const std::int64_t count : {1, 30}) {
        const std::vector<float> w(static_cast<std::size_t>(s.rows * s.columns), -1.0f),
            x(static_cast<std::size_t>(count * 1024), 3.0f);
        LinearInput in;
        in.set(team, s, x.data(), count, s.columns);
        std::vector<float> got(static_cast<std::size_t>(count * 16));
        linear(team, s, packed(s, w).data(), in, got.data(), 16);
        for (const auto y : got) BOOST_TEST(std::abs(y + 3072.0f) <= 0.02f * 3072, name(s.format));
      }
    }
  });
}

BOOST_AUTO_TEST_CASE(what_is_no_number_comes_out_as_none) {
  Team team;
  for_each_isa([&] {
    for (auto s : kFormats)
      for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                              std::bit_cast<float>(0x7fffffffu), std::bit_cast<float>(0xffffffffu)}) {
        s.rows = 17, s.columns = 300;
        const auto w = random_floats(s.rows * s.columns, 6);
        for (const std::int64_t count : {2, 35}) {
          auto x = random_floats(count * s.columns, 7);
          x[299] = bad;
          LinearInput in;
          in.set(team, s, x.data(), count, s.columns);
          std::vector<float> got(static_cast<std::size_t>(count * s.rows));
          linear(team, s, packed(s, w).data(), in, got.data(), s.rows);
          for (std::int64_t r = 0; r < count * s.rows; ++r)
            BOOST_TEST(std::isfinite(got[static_cast<std::size_t>(r)]) == (r >= s.rows), name(s.format));
        }
      }
  });
}

BOOST_AUTO_TEST_CASE(a_weight_that_is_no_number_makes_its_row_none) {
  Team team;
  for_each_isa([&] {
    for (auto s : kFormats)
      for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity(),
                              std::bit_cast<float>(0x7fffffffu)}) {
        s.rows = 17, s.columns = 300;
        auto w = random_floats(s.rows * s.columns, 6);
        // What stands at the beginning of a panel lies behind the last columns of the one before.
        w[16 * s.columns + 299] = w[16 * s.columns] = w[3 * s.columns] = bad;
        const auto bytes = packed(s, w);
        std::vector<float> stored(w.size());
        for (const std::int64_t count : {2, 35}) {
          const auto x = random_floats(count * s.columns, 7);
          LinearInput in;
          in.set(team, s, x.data(), count, s.columns);
          std::vector<float> got(static_cast<std::size_t>(count * s.rows));
          linear(team, s, bytes.data(), in, got.data(), s.rows);
          for (std::int64_t r = 0; r < count * s.rows; ++r)
            BOOST_TEST(std::isfinite(got[static_cast<std::size_t>(r)]) == (r % 17 != 3 && r % 17 != 16),
                       name(s.format) << ", row " << r);
        }
        unpack(s, bytes.data(), stored.data());
        BOOST_TEST(!std::isfinite(stored[16 * 300 + 299]), name(s.format));
      }
  });
}

BOOST_AUTO_TEST_CASE(parts_of_a_matrix_are_packed_as_the_whole) {
  for (auto s : kFormats) {
    s.rows = 40, s.columns = 70;
    const auto w = random_floats(s.rows * s.columns, 8);
    const auto whole = packed(s, w);
    std::vector<std::byte> parts(whole.size(), std::byte{0x5a});
    pack_rows(s, w.data() + 16 * s.columns, 16, 24, parts.data());
    pack_rows(s, w.data(), 0, 16, parts.data());
    BOOST_TEST((parts == whole), name(s.format));
  }
}

BOOST_AUTO_TEST_CASE(numbers_of_16_bits_lie_as_halves_to_the_same_bits) {
  // Every fp16 number but those that are none is the same there and back.
  for (std::uint32_t h = 0; h < 0x10000; ++h)
    if (const float x = float_of_f16(static_cast<std::uint16_t>(h)); x == x) BOOST_REQUIRE(f16_of(x) == h);
  BOOST_TEST(std::isnan(float_of_f16(f16_of(std::numeric_limits<float>::quiet_NaN()))));
  BOOST_TEST(f16_of(1.0f + 0x1p-11f) == f16_of(1.0f));  // ties to even
  BOOST_TEST(f16_of(1.0f + 0x3p-11f) == f16_of(1.0f + 0x4p-11f));
  BOOST_TEST(f16_of(65519.0f) == f16_of(65504.0f));
  BOOST_TEST(std::isinf(float_of_f16(f16_of(65520.0f))));
  Team one, two(2);
  for_each_isa([&] {
    // The last one is too large to be taken for cached as floats, and is not as halves.
    for (const auto& [rows, columns] : {std::pair{1, 1}, {40, 7}, {90, 257}, {320, 160}, {4500, 500}}) {
      if (rows == 4500 && isa() == Isa::plain) continue;  // seconds
      const PackedShape plain{WeightFormat::f32, rows, columns}, halves{WeightFormat::f32, rows, columns, 32, true};
      auto w = random_floats(plain.rows * plain.columns, 15);
      for (auto& v : w) v = float_of_f16(f16_of(v * 0x1p-9f));  // small ones have fewer digits
      const auto floats = packed(plain, w), half = packed(halves, w);
      BOOST_TEST(halves.bytes() <= plain.bytes() / 2 + 32 * plain.panels());  // whole lines
      for (const std::int64_t count : {1, 2, 3, 5, 12, 13, 33, 61}) {
        const auto x = random_floats(count * columns, 16);
        std::vector<float> a(static_cast<std::size_t>(count * rows)), b(a.size());
        LinearInput in;
        in.set(one, plain, x.data(), count, columns);
        linear(one, plain, floats.data(), in, a.data(), rows);
        for (auto* team : {&one, &two}) {
          in.set(*team, halves, x.data(), count, columns);
          linear(*team, halves, half.data(), in, b.data(), rows);
          BOOST_TEST(std::memcmp(a.data(), b.data(), a.size() * 4) == 0,
                     rows << " × " << columns << ", " << count << " rows of x, " << team->size() << " threads");
        }
      }
    }
  });
}

BOOST_AUTO_TEST_CASE(a_product_wakes_as_many_as_it_is_worth) {
  const auto threads = [](WeightFormat format, std::int64_t rows, std::int64_t columns, std::int64_t count) {
    return threads_worth(product_cost({format, rows, columns}, count), 2);
  };
  for_each_isa([&] {
    if (isa() == Isa::plain) return;
    // Nano speaks with one stream: no product of a step is worth a second thread, as floats or as halves.
    for (const auto& [rows, columns] : {std::pair{320, 160}, {160, 160}, {896, 160}, {160, 448}, {2334, 160}}) {
      BOOST_TEST(threads(WeightFormat::f32, rows, columns, 1) == 1);
      BOOST_TEST(threads_worth(product_cost({WeightFormat::f32, rows, columns, 32, true}, 1), 2) == 1);
    }
    // Of TTS-3B all are, in every format.
    for (const auto& [rows, columns] : {std::pair{3584, 3072}, {3072, 3072}, {16384, 3072}, {3072, 8192}})
      for (const auto format : {WeightFormat::f32, WeightFormat::bf16, WeightFormat::int8, WeightFormat::int4})
        BOOST_TEST(threads(format, rows, columns, 1) == 2, name(format));
    // The same weights with more rows: what is computed counts, not only what is read.
    BOOST_TEST(threads(WeightFormat::f32, 2334, 160, 32) == 2);
    BOOST_TEST(threads(WeightFormat::f32, 160, 160, 4) == 1);
    BOOST_TEST(product_cost({WeightFormat::f32, 896, 160}, 300).nanoseconds >
               2 * product_cost({WeightFormat::f32, 896, 160}, 100).nanoseconds);
  });
}

BOOST_AUTO_TEST_CASE(threads_make_what_one_makes) {
  Team one;
  Pool pool(3);
  Team three(pool, 3);
  for (auto s : kFormats) {
    s.rows = 20000, s.columns = 512;  // worth more than one
    const auto asked = pool.asked();
    const auto bytes = packed(s, random_floats(s.rows * s.columns, 9));
    for (const std::int64_t count : {1, 13}) {
      const auto x = random_floats(count * s.columns, 10);
      LinearInput in;
      in.set(one, s, x.data(), count, s.columns);
      std::vector<float> a(static_cast<std::size_t>(count * s.rows)), b(a.size());
      linear(one, s, bytes.data(), in, a.data(), s.rows);
      linear(three, s, bytes.data(), in, b.data(), s.rows);
      BOOST_TEST((a == b), name(s.format));
    }
    BOOST_TEST(pool.asked() >= asked + 2, name(s.format));
  }
}

BOOST_AUTO_TEST_CASE(the_bits_of_a_row_do_not_depend_on_its_company) {
  constexpr std::int64_t kCounts[] = {1, 2, 3, 5, 7, 12, 13, 16, 17, 23, 24, 32, 33, 61};
  Team one, two(2);
  for_each_isa([&] {
    // More rows than a few panels and fewer; one matrix of each format is too large to be taken for cached.
    for (auto s : kFormats)
      for (const auto& [rows, columns] : {std::pair{40, 7}, {90, 257}, {270, 600}, {9000, 1030}}) {
        s.rows = rows, s.columns = columns;
        if (rows == 9000 && (isa() == Isa::plain || s.group == 64)) continue;  // seconds each
        const auto bytes = packed(s, random_floats(s.rows * s.columns, 11));
        const auto x = random_floats(61 * s.columns, 12);
        std::vector<float> alone(static_cast<std::size_t>(61 * s.rows));
        LinearInput in;
        for (std::int64_t n = 0; n < (rows == 9000 ? 5 : 61); ++n) {
          in.set(one, s, x.data() + n * s.columns, 1, s.columns);
          linear(one, s, bytes.data(), in, alone.data() + n * s.rows, s.rows);
        }
        for (const auto count : kCounts) {
          if (rows == 9000 && count > 5 && count != 13 && count != 61) continue;
          for (auto* team : {&one, &two}) {
            std::vector<float> got(static_cast<std::size_t>(count * s.rows));
            in.set(*team, s, x.data(), count, s.columns);
            linear(*team, s, bytes.data(), in, got.data(), s.rows);
            const auto compared = std::min<std::int64_t>(count, rows == 9000 ? 5 : 61) * s.rows;
            BOOST_TEST(std::memcmp(got.data(), alone.data(), static_cast<std::size_t>(compared) * 4) == 0,
                       name(s.format) << ", " << rows << " × " << columns << ", " << count << " rows of x, "
                                      << team->size() << " threads");
          }
        }
      }
  });
}

BOOST_AUTO_TEST_CASE(the_bits_of_a_row_do_not_depend_on_hundreds) {
  // Hundreds of rows are worked on in parts, whose sums wait for the next columns.
  Team one, two(2);
  for_each_isa([&] {
    if (isa() < Isa::avx512) return;
    for (auto s : kFormats) {
      s.rows = 300, s.columns = 1090;
      const auto bytes = packed(s, random_floats(s.rows * s.columns, 13));
      const std::int64_t count = 530;
      const auto x = random_floats(count * s.columns, 14);
      std::vector<float> alone(static_cast<std::size_t>(count * s.rows)), got(alone.size());
      LinearInput in;
      for (std::int64_t n = 0; n < count; n += 1 + n % 37) {
        in.set(one, s, x.data() + n * s.columns, 1, s.columns);
        linear(one, s, bytes.data(), in, alone.data() + n * s.rows, s.rows);
      }
      for (auto* team : {&one, &two}) {
        in.set(*team, s, x.data(), count, s.columns);
        linear(*team, s, bytes.data(), in, got.data(), s.rows);
        for (std::int64_t n = 0; n < count; n += 1 + n % 37)
          BOOST_TEST(std::memcmp(got.data() + n * s.rows, alone.data() + n * s.rows,
                                 static_cast<std::size_t>(s.rows) * 4) == 0,
                     name(s.format) << ", row " << n << ", " << team->size() << " threads");
      }
    }
  });
}

BOOST_AUTO_TEST_CASE(tiles_are_tested_where_there_are_any) {
  BOOST_TEST((isa_named("amx") == Isa::amx));
  BOOST_TEST(force_isa(Isa::amx) == (isas().back() == Isa::amx));
  if (isa() != Isa::amx)
    BOOST_TEST_MESSAGE("skipped: no kernel was tested with tiles (AMX), which this "
                       << (tiles_refused() ? "system refuses" : "processor does not have"));
  force_isa(std::nullopt);
}

BOOST_AUTO_TEST_CASE(a_part_that_is_copied_stands_for_the_same_numbers) {
  for (auto shape : kFormats)
    for (const std::int64_t rows : {5, 16, 50, 83})
      for (const std::int64_t columns : {1, 64, 130, 257}) {
        shape.rows = rows, shape.columns = columns;
        const auto whole = packed(shape, random_floats(rows * columns, 4));
        std::vector<float> all(static_cast<std::size_t>(rows * columns));
        unpack(shape, whole.data(), all.data());
        const auto together = columns_together(shape);
        // Two ranges of rows, of the columns from each place on where a part may begin, to its end or to the matrix's.
        for (std::int64_t column = 0; column < columns; column += 2 * together + together % 2)
          for (const auto last : {std::min(columns, column + together), columns})
            for (const auto& [first, second] : {std::pair<std::int64_t, std::int64_t>{0, rows}, {3, 5}, {16, 33}}) {
              if (second > rows) continue;
              auto part = shape;
              part.rows = 2 * (second - first), part.columns = last - column;
              std::vector<std::byte> out(static_cast<std::size_t>(part.bytes()));
              copy_part(shape, whole.data(), first, second - first, column, part, 0, out.data());
              copy_part(shape, whole.data(), first, second - first, column, part, second - first, out.data());
              std::vector<float> got(static_cast<std::size_t>(part.rows * part.columns)), want;
              unpack(part, out.data(), got.data());
              for (int twice = 0; twice < 2; ++twice)
                for (auto r = first; r < second; ++r)
                  want.insert(want.end(), all.begin() + r * columns + column, all.begin() + r * columns + last);
              BOOST_TEST(got == want, name(shape.format) << ", rows " << first << " to " << second << " of " << rows
                                                         << ", columns " << column << " to " << last);
              // Nothing lies where packing leaves zeros.
              if (shape.format == WeightFormat::f32 || shape.format == WeightFormat::bf16)
                BOOST_TEST((out == packed(part, want)));
            }
      }
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::kernels
