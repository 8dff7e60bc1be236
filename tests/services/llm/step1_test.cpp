/// The model in every format of its weights against a dense computation of what these stand for, and its packed files.
#include "services/llm/model/step1.hpp"

#include <boost/test/unit_test.hpp>

#include <fstream>

#include "common/checkpoint/safetensors.hpp"
#include "kernels/vector/isa.hpp"
#include "tests/services/llm/dense_step1.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::llm {
namespace {

namespace fs = std::filesystem;
const fs::path kTiny = fs::path(PARLANDO_SOURCE_DIR) / "tests/goldens/lm/tiny-step1-np2";
constexpr WeightFormat kAll[] = {WeightFormat::f32, WeightFormat::bf16, WeightFormat::int8, WeightFormat::int4};

std::shared_ptr<const Step1> tiny(WeightFormat format) {
  const auto loaded = Step1::load(kTiny, format);
  BOOST_REQUIRE_MESSAGE(loaded.has_value(), (loaded ? std::string() : loaded.error().message));
  return *loaded;
}

std::vector<std::int32_t> some_ids(int n) {
  std::vector<std::int32_t> out;
  for (int i = 0; i < n; ++i) out.push_back((i * 37 + 101) % 640);
  return out;
}

/// Final states of all ids, appended in pieces of this size.
at::Tensor in_pieces(const Step1& m, std::span<const std::int32_t> ids, std::size_t size) {
  auto pool = m.make_pool(static_cast<std::int64_t>(ids.size()));
  auto sequence = pool->open();
  std::vector<at::Tensor> out;
  for (std::size_t at = 0; at < ids.size(); at += size) {
    Step1::Chunk chunk{&sequence, ids.subspan(at, std::min(size, ids.size() - at))};
    const auto done = m.forward(*pool, {&chunk, 1});
    BOOST_REQUIRE_MESSAGE(done.has_value(), (done ? std::string() : done.error().message));
    out.push_back(*done);
  }
  return at::cat(out);
}

/// Of states of size 1, on average. fp32: sums in another order. Integers: activations of 16 bits, and now and then a
/// number that falls to the other side of a border of bf16 on its way into the cache. bf16: activations of 8 bits,
/// rounded some thirty times.
double allowed(WeightFormat format) {
  return format == WeightFormat::f32 ? 2e-6 : format == WeightFormat::bf16 ? 0.018 : 1.5e-3;
}
double mean_error(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().mean().item<double>(); }
double worst_error(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

}  // namespace

BOOST_AUTO_TEST_SUITE(step1_test)

BOOST_AUTO_TEST_CASE(token_by_token_and_in_pieces_each_format_is_its_dense_model) {
  const auto ids = some_ids(320);
  for (const auto format : kAll) BOOST_TEST_CONTEXT(kernels::name(format)) {
      const auto m = tiny(format);
      const auto want = dense(*m, ids).hidden;
      for (const std::size_t size : {1u, 3u, 13u, 320u}) {
        const auto got = in_pieces(*m, ids, size);
        BOOST_TEST(mean_error(got, want) <= allowed(format), "pieces of " << size << ": " << mean_error(got, want));
        BOOST_TEST(worst_error(got, want) <= 40 * allowed(format),
                   "pieces of " << size << ": " << worst_error(got, want));
      }
    }
}

BOOST_AUTO_TEST_CASE(every_instruction_set_computes_the_same_model) {
  const auto ids = some_ids(40);
  for (const auto format : kAll) {
    const auto m = tiny(format);
    const auto want = dense(*m, ids).hidden;
    for (const auto isa : kernels::isas()) {
      BOOST_REQUIRE(kernels::force_isa(isa));
      for (const std::size_t size : {1u, 40u}) {
        const auto error = mean_error(in_pieces(*m, ids, size), want);
        BOOST_TEST(error <= allowed(format), kernels::name(format) << " on " << kernels::name(isa) << ": " << error);
      }
    }
    kernels::force_isa(std::nullopt);
  }
}

BOOST_AUTO_TEST_CASE(fewer_bits_cost_a_little_and_not_more) {
  const auto ids = some_ids(64);
  const auto want = in_pieces(*tiny(WeightFormat::f32), ids, 64);
  const double int8 = mean_error(in_pieces(*tiny(WeightFormat::int8), ids, 64), want),
               int4 = mean_error(in_pieces(*tiny(WeightFormat::int4), ids, 64), want);
  BOOST_TEST(int8 > 0.0);
  BOOST_TEST(int8 <= 0.05);
  BOOST_TEST(int4 > int8);
  BOOST_TEST(int4 <= 0.5);
}

BOOST_AUTO_TEST_CASE(what_is_saved_is_loaded_again_bit_by_bit) {
  const auto ids = some_ids(20);
  for (const auto format : kAll) {
    const TemporaryDirectory folder;
    const auto m = tiny(format);
    BOOST_REQUIRE(m->save(folder.path()).has_value());
    fs::copy_file(kTiny / "config.json", folder.path() / "config.json");
    const auto again = Step1::load(folder.path(), WeightFormat::f32);  // packed weights keep their format
    BOOST_REQUIRE_MESSAGE(again.has_value(), (again ? std::string() : again.error().message));
    BOOST_TEST(((*again)->format() == format));
    BOOST_TEST((*again)->weight_bytes() == m->weight_bytes());
    const auto a = in_pieces(*m, ids, 20), b = in_pieces(**again, ids, 20);
    BOOST_TEST(at::equal(a, b));
    BOOST_TEST(at::equal(m->logits(a), (*again)->logits(b)));
    const auto ranks = Step1::load(folder.path(), format, 0, 2);
    BOOST_REQUIRE(!ranks.has_value());
    BOOST_TEST((ranks.error().code == Errc::unsupported));
  }
}

BOOST_AUTO_TEST_CASE(packed_files_that_lack_something_are_refused_by_name) {
  const TemporaryDirectory folder;
  BOOST_REQUIRE(tiny(WeightFormat::int8)->save(folder.path()).has_value());
  fs::copy_file(kTiny / "config.json", folder.path() / "config.json");
  const auto file = checkpoint::read_safetensors(folder.path() / "model.safetensors");
  BOOST_REQUIRE(file.has_value());
  auto refused = [&](auto&& change) {
    const TemporaryDirectory other;
    fs::copy_file(kTiny / "config.json", other.path() / "config.json");
    auto tensors = file->tensors;
    auto metadata = file->metadata;
    change(tensors, metadata);
    BOOST_REQUIRE(checkpoint::write_safetensors(other.path() / "model.safetensors", tensors, metadata).has_value());
    const auto loaded = Step1::load(other.path(), WeightFormat::int8);
    BOOST_REQUIRE(!loaded.has_value());
    BOOST_TEST((loaded.error().code == Errc::checkpoint_mismatch));
    return loaded.error().message;
  };
  BOOST_TEST(refused([](auto& t, auto&) { t.erase("model.layers.1.out.packed"); }).find("model.layers.1.out.packed") !=
             std::string::npos);
  BOOST_TEST(refused([](auto& t, auto&) {
               auto& packed = t.at("lm_head.packed");
               packed.bytes = packed.bytes.first(64), packed.shape = {64};
             }).find("lm_head.packed") != std::string::npos);
  BOOST_TEST(refused([](auto& t, auto&) { t["more"] = t.at("model.norm.weight"); }).find("more") != std::string::npos);
  BOOST_TEST(refused([](auto&, auto& m) { m["parlando_weights"] = "int3"; }).find("int3") != std::string::npos);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::llm
