/// The model in every format of its weights against a dense computation of what these stand for, and its packed files.
#include "services/llm/model/step1.hpp"

#include <boost/test/unit_test.hpp>

#include <fstream>

#include "common/base/mapped_file.hpp"
#include "common/checkpoint/safetensors.hpp"
#include "common/tensor/weights.hpp"
#include "kernels/vector/isa.hpp"
#include "services/llm/model/step1_cuda.hpp"
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
  }
}

BOOST_AUTO_TEST_CASE(weights_of_16_bits_are_read_as_such_to_the_same_bits) {
  // Nano's file has fp16 numbers. The same ones in a file of floats make the same model, at twice the bytes.
  const fs::path nano = fs::path(PARLANDO_SOURCE_DIR) / "models/nano/Step-Audio-TTS-3B";
  auto file = checkpoint::read_safetensors(nano / "model.safetensors");
  BOOST_REQUIRE(file.has_value());
  std::vector<at::Tensor> kept;
  int halves = 0;
  for (auto& [name, tensor] : file->tensors) {
    halves += tensor.dtype == checkpoint::Dtype::f16;
    kept.push_back(tensor::to_torch(tensor).to(at::kFloat).contiguous());
    const auto& x = kept.back();
    tensor.dtype = checkpoint::Dtype::f32;
    tensor.bytes = {static_cast<const std::byte*>(x.data_ptr()), x.nbytes()};
  }
  BOOST_REQUIRE(halves > 20);
  const TemporaryDirectory folder, saved;
  BOOST_REQUIRE(checkpoint::write_safetensors(folder.path() / "model.safetensors", file->tensors, {}).has_value());
  fs::copy_file(nano / "config.json", folder.path() / "config.json");
  const auto a = *Step1::load(nano, WeightFormat::f32), b = *Step1::load(folder.path(), WeightFormat::f32);
  if (kernels::isa() != kernels::Isa::plain)
    BOOST_TEST(static_cast<double>(a->decode_bytes()) < 0.51 * static_cast<double>(b->decode_bytes()));
  else  // without an instruction that widens them they are floats
    BOOST_TEST(a->decode_bytes() == b->decode_bytes());
  // What is written and read again stays as it lies.
  BOOST_REQUIRE(a->save(saved.path()).has_value());
  fs::copy_file(nano / "config.json", saved.path() / "config.json");
  const auto c = *Step1::load(saved.path(), WeightFormat::f32);
  BOOST_TEST(c->decode_bytes() == a->decode_bytes());
  BOOST_REQUIRE(kernels::force_isa(kernels::Isa::plain));
  BOOST_TEST((*Step1::load(nano, WeightFormat::f32))->decode_bytes() == b->decode_bytes());
  const auto ids = some_ids(70);
  for (const auto isa : kernels::isas()) {
    BOOST_REQUIRE(kernels::force_isa(isa));
    for (const std::size_t size : {1u, 33u}) {
      const auto x = in_pieces(*a, ids, size), y = in_pieces(*b, ids, size), z = in_pieces(*c, ids, size);
      BOOST_TEST(at::equal(x, y), kernels::name(isa));
      BOOST_TEST(at::equal(x, z), kernels::name(isa));
      BOOST_TEST(at::equal(a->logits(x), b->logits(y)), kernels::name(isa));
    }
  }
  kernels::force_isa(std::nullopt);
}

namespace {
/// Whether a rank's part of a packed model is what the whole one has there, bit by bit.
void is_a_slice(const Step1& part, const Step1& whole) {
  const auto& s = part.shard();
  const auto H = whole.config().hidden, I = whole.config().inner, KV = whole.config().groups * whole.config().dim();
  const auto rows = [](const at::Tensor& x, const Range& r, std::int64_t below = 0) {
    return x.narrow(0, below + r.first, r.count());
  };
  // The columns that lie together with a rank's own are among its part, and no more than these.
  const auto columns = [&](const at::Tensor& got, const at::Tensor& all, const Range& own, std::int64_t before) {
    BOOST_TEST(before >= 0);
    BOOST_TEST(before < 32);
    BOOST_TEST(got.size(1) - before - own.count() < 32);
    BOOST_TEST(at::equal(got, all.narrow(1, own.first - before, got.size(1))));
  };
  for (std::int64_t l = 0; l < whole.layers(); ++l) {
    const auto got = part.layer(l), all = whole.layer(l);
    BOOST_TEST(at::equal(
        got.qkv, at::cat({rows(all.qkv, s.q_rows), rows(all.qkv, s.kv_rows, H), rows(all.qkv, s.kv_rows, H + KV)})));
    BOOST_TEST(at::equal(got.gate_up, at::cat({rows(all.gate_up, s.inner_rows), rows(all.gate_up, s.inner_rows, I)})));
    columns(got.out, all.out, s.q_rows, part.beside().out);
    columns(got.down, all.down, s.inner_rows, part.beside().down);
    BOOST_TEST(at::equal(got.input_norm, all.input_norm));
    BOOST_TEST(at::equal(got.post_norm, all.post_norm));
  }
  BOOST_TEST(at::equal(part.head(), rows(whole.head(), s.vocabulary_rows)));
  BOOST_TEST(at::equal(part.embedding(), rows(whole.embedding(), s.vocabulary_rows)));
  BOOST_TEST(at::equal(part.final_norm(), whole.final_norm()));
}
}  // namespace

BOOST_AUTO_TEST_CASE(ranks_read_their_part_of_a_packed_file) {
  // Of the second one, no cut at a multiple of the 32 columns that share a scale in int4.
  const fs::path nano = fs::path(PARLANDO_SOURCE_DIR) / "models/nano/Step-Audio-Chat";
  for (const auto& source : {kTiny, nano})
    for (const auto format : kAll) {
      const TemporaryDirectory folder;
      {
        const auto m = Step1::load(source, format);
        BOOST_REQUIRE(m.has_value());
        BOOST_REQUIRE((*m)->save(folder.path()).has_value());
        fs::copy_file(source / "config.json", folder.path() / "config.json");
      }
      const auto whole = Step1::load(folder.path(), format);
      BOOST_REQUIRE(whole.has_value());
      for (const int ranks : {2, 4}) {
        std::int64_t bytes = 0;
        for (int rank = 0; rank < ranks; ++rank)
          BOOST_TEST_CONTEXT(source << ", " << kernels::name(format) << ", rank " << rank << " of " << ranks) {
            const auto part = Step1::load(folder.path(), WeightFormat::f32, rank, ranks);
            BOOST_REQUIRE_MESSAGE(part.has_value(), (part ? std::string() : part.error().message));
            BOOST_TEST(((*part)->format() == format));
            BOOST_TEST((*part)->ranks() == ranks);
            is_a_slice(**part, **whole);
            bytes += (*part)->weight_bytes();
          }
        // All parts are the whole, but for norms, groups that several hold and columns that lie together.
        BOOST_TEST(static_cast<double>(bytes) < 1.5 * static_cast<double>((*whole)->weight_bytes()));
      }
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

BOOST_AUTO_TEST_CASE(a_cuda_library_that_is_there_and_cannot_be_opened_is_broken) {
  const TemporaryDirectory folder;
  const auto file = folder.path() / "libparlando_cuda.so";
  BOOST_TEST(Step1Cuda::broken(file).empty());  // none is built where there is no compiler for it
  BOOST_REQUIRE(write_file(file, "no library").has_value());
  BOOST_TEST(Step1Cuda::broken(file).find(file.string()) != std::string::npos);
  // One without our functions: of the libraries of this program.
  std::ifstream maps("/proc/self/maps");
  std::string line, library;
  while (std::getline(maps, line))
    if (const auto at = line.find('/'); at != std::string::npos && line.find("/libm.so") != std::string::npos)
      library = line.substr(at);
  BOOST_REQUIRE(!library.empty());
  const auto problem = Step1Cuda::broken(library);
  BOOST_TEST(problem.find(library) != std::string::npos);
  BOOST_TEST(problem.find("lacks parlando_cuda_") != std::string::npos, problem);
}

BOOST_AUTO_TEST_SUITE_END()

}  // namespace parlando::llm
