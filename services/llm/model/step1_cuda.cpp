#include "services/llm/model/step1_cuda.hpp"

#include <ATen/ATen.h>
#include <dlfcn.h>

#include <filesystem>

#include "kernels/cuda/step1_cuda.hpp"

namespace parlando::llm {
namespace {

struct Library {
  void* handle = nullptr;
  std::string problem;
  bool driver = false, there = false;  ///< there: a file is, whether it can be used or not
  decltype(&parlando_cuda_devices) devices = nullptr;
  decltype(&parlando_cuda_error) error = nullptr;
  decltype(&parlando_cuda_create) create = nullptr;
  decltype(&parlando_cuda_upload) upload = nullptr;
  decltype(&parlando_cuda_forward) forward = nullptr;
  decltype(&parlando_cuda_destroy) destroy = nullptr;
};

std::filesystem::path beside_the_program() {
  std::error_code code;
  return std::filesystem::read_symlink("/proc/self/exe", code).parent_path().parent_path() / "lib/libparlando_cuda.so";
}

/// A library with its functions, or why it cannot be used.
Library opened(const std::string& name) {
  Library l;
  l.handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (l.handle == nullptr) {
    l.problem = fmt::format("'{}' cannot be opened: {}", name, dlerror());
    return l;
  }
  l.there = true;
  auto symbol = [&](auto& function, const char* symbol_name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(l.handle, symbol_name));
    if (function == nullptr) l.problem = fmt::format("'{}' lacks {}", name, symbol_name);
  };
  symbol(l.devices, "parlando_cuda_devices"), symbol(l.error, "parlando_cuda_error"),
      symbol(l.create, "parlando_cuda_create");
  symbol(l.upload, "parlando_cuda_upload"), symbol(l.forward, "parlando_cuda_forward"),
      symbol(l.destroy, "parlando_cuda_destroy");
  return l;
}

/// Opened once: beside the program, or where the system looks for libraries. Without the driver it is not touched: it
/// needs cuBLAS, which a CPU machine does not have.
const Library& library() {
  static const Library loaded = [] {
    if (dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL) == nullptr) {
      Library l;
      l.problem = "this machine has no CUDA driver";
      return l;
    }
    std::error_code code;
    const auto beside = beside_the_program();
    const bool there = std::filesystem::exists(beside, code);
    auto l = opened(there ? beside.string() : "libparlando_cuda.so");
    l.driver = true, l.there = l.there || there;
    return l;
  }();
  return loaded;
}

}  // namespace

std::string Step1Cuda::broken(const std::filesystem::path& file) {
  std::error_code code;
  if (!std::filesystem::exists(file, code)) return {};
  const auto l = opened(file.string());
  if (l.handle != nullptr) dlclose(l.handle);
  return l.problem;
}

std::string Step1Cuda::broken() {
  const auto& l = library();
  return l.driver && l.there ? l.problem : std::string();
}

int Step1Cuda::devices() { return library().problem.empty() ? library().devices() : 0; }

Result<std::unique_ptr<Step1Cuda>> Step1Cuda::create(const Step1& model, std::int64_t cache_tokens) {
  const auto& l = library();
  if (!l.problem.empty()) return fail(Errc::unavailable, "{}", l.problem);
  if (l.devices() == 0) return fail(Errc::unavailable, "no CUDA device is usable");
  const auto& c = model.config();
  const bool bf16 = model.embedding().scalar_type() == at::kBFloat16;
  const ParlandoCudaConfig config{c.hidden,
                                  c.inner,
                                  c.heads,
                                  c.groups,
                                  c.layers,
                                  c.vocabulary,
                                  (cache_tokens + kBlockTokens - 1) / kBlockTokens,
                                  kBlockTokens,
                                  static_cast<float>(c.norm_eps),
                                  bf16,
                                  0};
  std::unique_ptr<Step1Cuda> out(new Step1Cuda);
  out->vocabulary_ = c.vocabulary;
  out->model_ = l.create(&config, alibi_slopes(c.heads).data());
  if (out->model_ == nullptr) return fail(Errc::internal, "CUDA: {}", l.error());
  auto upload = [&](int layer, int tensor, const at::Tensor& t) {
    const auto flat = t.contiguous();
    return l.upload(out->model_, layer, tensor, flat.data_ptr(), flat.nbytes()) == 0;
  };
  bool good = upload(0, kCudaEmbedding, model.embedding()) && upload(0, kCudaHead, model.head()) &&
              upload(0, kCudaFinalNorm, model.final_norm());
  for (std::int64_t n = 0; good && n < model.layers(); ++n) {
    const auto x = model.layer(n);
    const int i = static_cast<int>(n);
    good = upload(i, kCudaInputNorm, x.input_norm) && upload(i, kCudaQkv, x.qkv) && upload(i, kCudaOut, x.out) &&
           upload(i, kCudaPostNorm, x.post_norm) && upload(i, kCudaGateUp, x.gate_up) && upload(i, kCudaDown, x.down);
  }
  if (!good) return fail(Errc::internal, "CUDA: {}", l.error());
  return out;
}

Step1Cuda::~Step1Cuda() {
  if (model_ != nullptr) library().destroy(model_);
}

Result<std::vector<float>> Step1Cuda::forward(std::span<const Chunk> chunks) {
  std::vector<std::int32_t> ids, positions, rows, wanted;
  std::size_t width = 1;
  for (const auto& chunk : chunks) width = std::max(width, chunk.blocks.size());
  std::vector<std::int32_t> tables(width * chunks.size(), 0);
  for (std::size_t r = 0; r < chunks.size(); ++r) {
    const auto& chunk = chunks[r];
    const auto end = chunk.start + static_cast<std::int64_t>(chunk.ids.size());
    if (chunk.ids.empty() || static_cast<std::int64_t>(chunk.blocks.size()) * kBlockTokens < end)
      return fail(Errc::invalid_argument, "chunk {} ends at position {}, its {} blocks hold {}", r, end,
                  chunk.blocks.size(), chunk.blocks.size() * kBlockTokens);
    std::copy(chunk.blocks.begin(), chunk.blocks.end(), tables.begin() + static_cast<std::ptrdiff_t>(r * width));
    for (std::size_t i = 0; i < chunk.ids.size(); ++i) {
      if (chunk.ids[i] < 0 || chunk.ids[i] >= vocabulary_)
        return fail(Errc::token_out_of_range, "token id {} is outside the vocabulary of {}", chunk.ids[i], vocabulary_);
      ids.push_back(chunk.ids[i]),
          positions.push_back(static_cast<std::int32_t>(chunk.start + static_cast<std::int64_t>(i))),
          rows.push_back(static_cast<std::int32_t>(r));
    }
    wanted.push_back(static_cast<std::int32_t>(ids.size()) - 1);
  }
  std::vector<float> logits(wanted.size() * static_cast<std::size_t>(vocabulary_));
  if (library().forward(model_, ids.data(), positions.data(), rows.data(), static_cast<int>(ids.size()), tables.data(),
                        static_cast<int>(chunks.size()), static_cast<int>(width), wanted.data(),
                        static_cast<int>(wanted.size()), logits.data()) != 0)
    return fail(Errc::internal, "CUDA: {}", library().error());
  return logits;
}

}  // namespace parlando::llm
