#pragma once
/// The Step-1 forward pass on a GPU through libparlando_cuda.so, which is opened only where a device exists.
#include <filesystem>
#include <memory>
#include <string>

#include "services/llm/model/step1.hpp"

namespace parlando::llm {

class Step1Cuda {
 public:
  /// Copies the weights of a loaded model to device 0.
  /// @error Errc::unavailable when there is no device or the library is not beside the executable; Errc::internal with
  /// CUDA's words
  static Result<std::unique_ptr<Step1Cuda>> create(const Step1& model, std::int64_t cache_tokens);
  ~Step1Cuda();
  Step1Cuda(const Step1Cuda&) = delete;
  Step1Cuda& operator=(const Step1Cuda&) = delete;

  struct Chunk {
    std::int64_t start = 0;
    std::span<const std::int32_t> ids, blocks;
  };  ///< tokens of one sequence behind position `start`
  /// One ragged batch; logits [chunks, V] of each chunk's last token.
  Result<std::vector<float>> forward(std::span<const Chunk> chunks);
  /// Number of devices, 0 without a driver or without the library.
  static int devices();
  /// Why a library that is there cannot be used. @return empty when it can, when there is none, or when no driver is
  /// there that it would be opened for
  static std::string broken();
  /// The same of any file, whether there is a driver or not.
  static std::string broken(const std::filesystem::path& library);

 private:
  Step1Cuda() = default;
  void* model_ = nullptr;
  std::int64_t vocabulary_ = 0;
};

}  // namespace parlando::llm
