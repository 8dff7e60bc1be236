#pragma once
/// Reads the graph of an ONNX model: nodes and initializers, without a runtime.
#include <filesystem>

#include "common/checkpoint/tensor_data.hpp"

namespace parlando::checkpoint {

struct OnnxNode {
  std::string name, op;
  std::vector<std::string> inputs, outputs;
  std::map<std::string, std::vector<std::int64_t>> ints;  ///< integer attributes
  std::map<std::string, float> floats;
  std::map<std::string, TensorData> tensors;  ///< Constant values
};

struct OnnxGraph {
  std::vector<OnnxNode> nodes;  ///< in file order
  TensorMap initializers;       ///< also the values of Constant nodes, by output name
  const OnnxNode* find(std::string_view name) const;
  /// The initializer behind a name, through Identity nodes; nothing for an activation.
  const TensorData* value(const std::string& name) const;
};

/// @error Errc::bad_format for malformed protobuf, Errc::unsupported for external data; naming the file.
Result<OnnxGraph> read_onnx(const std::filesystem::path& path);
Result<OnnxGraph> parse_onnx(std::span<const std::byte> bytes, std::shared_ptr<const void> owner,
                             const std::string& name);

/// speech_tokenizer_v1.onnx -> torch names, linear weights (out, in), codebook [codes, width]. `n_head` is returned
/// beside it.
struct SemanticWeights {
  TensorMap tensors;
  std::int64_t heads = 0;
};
Result<SemanticWeights> semantic_weights_of(const OnnxGraph& graph, const std::string& name);

/// campplus.onnx -> the folded form: every convolution with its bias in module order ("conv.000.weight" …) and the
/// batch norms that were not folded ("bn.…"). @see services/tts/model/campplus.hpp
Result<TensorMap> campplus_weights_of(const OnnxGraph& graph, const std::string& name);

}  // namespace parlando::checkpoint
