#include "common/checkpoint/onnx.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>

#include "common/base/mapped_file.hpp"
#include "common/checkpoint/protobuf.hpp"

namespace parlando::checkpoint {
namespace {

using Bytes = std::span<const std::byte>;

template <class F>
void each(Bytes bytes, const std::string& file, const char* what, F&& visit) {
  ProtobufReader reader(bytes);
  while (const auto field = reader.next()) visit(*field);
  if (!reader.ok()) raise(Errc::bad_format, "'{}': malformed protobuf in {}", file, what);
}

TensorData read_tensor(Bytes bytes, const std::shared_ptr<const void>& owner, const std::string& file,
                       std::string& name) {
  TensorData out;
  out.owner = owner;
  std::uint64_t type = 0;
  Bytes raw, floats, int64s, int32s;
  std::vector<float> single_floats;
  bool has_raw = false;
  each(bytes, file, "a tensor", [&](const ProtobufReader::Field& f) {
    switch (f.number) {
      case 1:  // dims, packed or not
        if (f.wire == 0)
          out.shape.push_back(static_cast<std::int64_t>(f.value));
        else if (f.wire == 2)
          for (auto rest = f.bytes; !rest.empty();) {
            const auto v = ProtobufReader::varint(rest);
            if (!v) raise(Errc::bad_format, "'{}': bad dimensions", file);
            out.shape.push_back(static_cast<std::int64_t>(*v));
          }
        break;
      case 2:
        type = f.value;
        break;
      case 4:
        if (f.wire == 2)
          floats = f.bytes;
        else if (f.wire == 5)
          single_floats.push_back(f.as_float());
        break;
      case 5:
        int32s = f.bytes;
        break;
      case 7:
        int64s = f.bytes;
        break;
      case 8:
        name = std::string(f.text());
        break;
      case 9:
        raw = f.bytes;
        has_raw = true;
        break;
      case 13:
      case 14:
        if (f.number == 13 || f.value == 1)
          raise(Errc::unsupported, "'{}': tensor '{}' keeps its data in another file", file, name);
        break;
      default:
        break;
    }
  });
  const auto count = elements_of(out.shape);
  if (!count || out.shape.size() > 8)
    raise(Errc::bad_format, "'{}': tensor '{}' has shape {}", file, name, to_string(out.shape));
  switch (type) {
    case 1:
      out.dtype = Dtype::f32;
      break;
    case 6:
      out.dtype = Dtype::i32;
      break;
    case 7:
      out.dtype = Dtype::i64;
      break;
    case 9:
      out.dtype = Dtype::boolean;
      break;
    case 10:
      out.dtype = Dtype::f16;
      break;
    case 11:
      out.dtype = Dtype::f64;
      break;
    case 16:
      out.dtype = Dtype::bf16;
      break;
    default:
      raise(Errc::unsupported, "'{}': tensor '{}' has ONNX type {}", file, name, type);
  }
  if (!has_raw) {
    if (!single_floats.empty()) {
      auto values = std::make_shared<std::vector<float>>(std::move(single_floats));
      out.bytes = std::as_bytes(std::span(*values));
      out.owner = values;
    } else if (!floats.empty()) {
      out.bytes = floats;
    } else if (!int64s.empty() || !int32s.empty()) {  // packed varints
      auto values = std::make_shared<std::vector<std::int64_t>>();
      for (auto rest = int64s.empty() ? int32s : int64s; !rest.empty();) {
        const auto v = ProtobufReader::varint(rest);
        if (!v) raise(Errc::bad_format, "'{}': tensor '{}' has bad integers", file, name);
        values->push_back(static_cast<std::int64_t>(*v));
      }
      out.dtype = Dtype::i64;
      out.bytes = std::as_bytes(std::span(*values));
      out.owner = values;
    }
  } else {
    out.bytes = raw;
  }
  if (static_cast<std::uint64_t>(*count) > out.bytes.size() ||
      static_cast<std::size_t>(*count) * bytes_of(out.dtype) != out.bytes.size())
    raise(Errc::bad_format, "'{}': tensor '{}' of shape {} holds {} bytes", file, name, to_string(out.shape),
          out.bytes.size());
  return out;
}

OnnxNode read_node(Bytes bytes, const std::shared_ptr<const void>& owner, const std::string& file) {
  OnnxNode node;
  each(bytes, file, "a node", [&](const ProtobufReader::Field& f) {
    if (f.number == 1)
      node.inputs.emplace_back(f.text());
    else if (f.number == 2)
      node.outputs.emplace_back(f.text());
    else if (f.number == 3)
      node.name = f.text();
    else if (f.number == 4)
      node.op = f.text();
    else if (f.number == 5) {
      std::string name, unused;
      std::vector<std::int64_t> ints;
      std::optional<float> number;
      std::optional<TensorData> tensor;
      each(f.bytes, file, "an attribute", [&](const ProtobufReader::Field& a) {
        if (a.number == 1)
          name = a.text();
        else if (a.number == 2)
          number = a.as_float();
        else if (a.number == 3)
          ints.push_back(static_cast<std::int64_t>(a.value));
        else if (a.number == 5)
          tensor = read_tensor(a.bytes, owner, file, unused);
        else if (a.number == 8 && a.wire == 0)
          ints.push_back(static_cast<std::int64_t>(a.value));
        else if (a.number == 8)
          for (auto rest = a.bytes; !rest.empty();) {
            const auto v = ProtobufReader::varint(rest);
            if (!v) raise(Errc::bad_format, "'{}': attribute '{}' has bad integers", file, name);
            ints.push_back(static_cast<std::int64_t>(*v));
          }
      });
      if (number) node.floats[name] = *number;
      if (tensor) node.tensors[name] = *tensor;
      if (!ints.empty()) node.ints[name] = ints;
    }
  });
  return node;
}

const OnnxNode& node_of(const OnnxGraph& graph, const std::string& name, const std::string& file) {
  const auto* node = graph.find(name);
  if (node == nullptr) raise(Errc::checkpoint_mismatch, "'{}' has no node '{}'", file, name);
  return *node;
}

const TensorData& operand(const OnnxGraph& graph, const std::string& node_name, const std::string& file) {
  const auto& node = node_of(graph, node_name, file);
  for (const auto& input : node.inputs)
    if (const auto* tensor = graph.value(input); tensor != nullptr && tensor->dtype == Dtype::f32) return *tensor;
  raise(Errc::checkpoint_mismatch, "'{}': node '{}' reads no stored tensor", file, node_name);
}

const TensorData& initializer(const OnnxGraph& graph, const std::string& name, const std::string& file) {
  const auto found = graph.initializers.find(name);
  if (found == graph.initializers.end()) raise(Errc::checkpoint_mismatch, "'{}' has no initializer '{}'", file, name);
  return found->second;
}

TensorData transposed(const TensorData& in, const std::string& what) {
  if (in.shape.size() != 2 || in.dtype != Dtype::f32)
    raise(Errc::checkpoint_mismatch, "{} is not a float matrix but {}", what, to_string(in.shape));
  const auto rows = static_cast<std::size_t>(in.shape[0]), columns = static_cast<std::size_t>(in.shape[1]);
  std::vector<float> source(rows * columns), values(rows * columns);
  std::memcpy(source.data(), in.bytes.data(), in.bytes.size());
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < columns; ++c) values[c * rows + r] = source[r * columns + c];
  return make_f32({in.shape[1], in.shape[0]}, std::move(values));
}

}  // namespace

const OnnxNode* OnnxGraph::find(std::string_view name) const {
  for (const auto& node : nodes)
    if (node.name == name) return &node;
  return nullptr;
}

const TensorData* OnnxGraph::value(const std::string& name) const {
  std::string at = name;
  for (int hops = 0; hops < 16; ++hops) {
    if (const auto found = initializers.find(at); found != initializers.end()) return &found->second;
    const OnnxNode* source = nullptr;
    for (const auto& node : nodes)
      if (node.op == "Identity" && !node.outputs.empty() && node.outputs[0] == at && !node.inputs.empty())
        source = &node;
    if (source == nullptr) return nullptr;
    at = source->inputs[0];
  }
  return nullptr;
}

Result<OnnxGraph> parse_onnx(Bytes bytes, std::shared_ptr<const void> owner, const std::string& name) try {
  OnnxGraph graph;
  bool found = false;
  each(bytes, name, "the model", [&](const ProtobufReader::Field& field) {
    if (field.number != 7 || field.wire != 2) return;
    found = true;
    each(field.bytes, name, "the graph", [&](const ProtobufReader::Field& f) {
      if (f.wire != 2) return;
      if (f.number == 1) {
        graph.nodes.push_back(read_node(f.bytes, owner, name));
      } else if (f.number == 5) {
        std::string tensor_name;
        auto tensor = read_tensor(f.bytes, owner, name, tensor_name);
        graph.initializers.emplace(std::move(tensor_name), std::move(tensor));
      }
    });
  });
  if (!found) return fail(Errc::bad_format, "'{}' holds no ONNX graph", name);
  for (const auto& node : graph.nodes)
    if (node.op == "Constant" && !node.outputs.empty() && node.tensors.contains("value"))
      graph.initializers.emplace(node.outputs[0], node.tensors.at("value"));
  return graph;
} catch (const Failure& failure) {
  return tl::make_unexpected(failure.error);
}

Result<OnnxGraph> read_onnx(const std::filesystem::path& path) {
  PARLANDO_TRY(auto file, MappedFile::open(path));
  auto owner = std::make_shared<const MappedFile>(std::move(file));
  return parse_onnx(owner->bytes(), owner, path.string());
}

Result<SemanticWeights> semantic_weights_of(const OnnxGraph& graph, const std::string& name) try {
  const auto& conv1 = node_of(graph, "/conv1/Conv", name);
  const auto stride = conv1.ints.find("strides");
  if (stride == conv1.ints.end() || stride->second.empty() || stride->second[0] != 2)
    raise(Errc::unsupported, "'{}': /conv1/Conv has stride {}, the 25 Hz tokenizer has 2 (is this the 50 Hz file?)",
          name, stride == conv1.ints.end() || stride->second.empty() ? 1 : stride->second[0]);
  SemanticWeights out;
  auto& t = out.tensors;
  for (const char* conv : {"conv1", "conv2"}) {
    t[fmt::format("encoder.{}.weight", conv)] = initializer(graph, fmt::format("encoders.{}.weight", conv), name);
    t[fmt::format("encoder.{}.bias", conv)] = initializer(graph, fmt::format("encoders.{}.bias", conv), name);
  }
  t["encoder.positional_embedding"] = initializer(graph, "encoders.positional_embedding", name);
  int blocks = 0;
  while (graph.find(fmt::format("/blocks.{}/attn/query/MatMul", blocks)) != nullptr) {
    const auto at = fmt::format("/blocks.{}/", blocks), to = fmt::format("encoder.blocks.{}.", blocks);
    for (const char* norm : {"attn_ln", "mlp_ln"}) {
      t[to + norm + ".weight"] = operand(graph, at + norm + "/Mul", name);
      t[to + norm + ".bias"] = operand(graph, at + norm + "/Add_1", name);
    }
    for (const char* linear : {"attn/query", "attn/key", "attn/value", "attn/out", "mlp/mlp.0", "mlp/mlp.2"}) {
      std::string target = linear;
      if (target.starts_with("mlp/")) target = target.substr(4);
      for (auto& c : target)
        if (c == '/') c = '.';
      t[to + target + ".weight"] = transposed(operand(graph, at + linear + "/MatMul", name), at + linear);
      if (target != "attn.key") t[to + target + ".bias"] = operand(graph, at + linear + "/Add", name);
    }
    ++blocks;
  }
  if (blocks == 0) raise(Errc::checkpoint_mismatch, "'{}' has no transformer blocks", name);
  t["quantizer._codebook.embed"] =
      transposed(operand(graph, "/quantizer/rq/model/layers.0/_codebook/MatMul", name), "the codebook");
  const auto& heads_node = node_of(graph, "/blocks.0/attn/Constant_1", name);
  const auto heads = heads_node.tensors.find("value");
  if (heads == heads_node.tensors.end() || heads->second.dtype != Dtype::i64 || heads->second.bytes.size() != 8)
    raise(Errc::checkpoint_mismatch, "'{}': /blocks.0/attn/Constant_1 holds no head count", name);
  std::memcpy(&out.heads, heads->second.bytes.data(), 8);
  return out;
} catch (const Failure& failure) {
  return tl::make_unexpected(failure.error);
}

Result<TensorMap> campplus_weights_of(const OnnxGraph& graph, const std::string& name) try {
  // Convolutions come in module order; their node names are not relied upon.
  struct Conv {
    std::vector<float> weight, bias;
    Shape shape;
    std::string output;
  };
  struct Norm {
    std::vector<float> scale, shift;
  };
  std::vector<Conv> convs;
  std::vector<Norm> norms;
  auto floats = [&](const std::string& input, const char* what) {
    const auto* tensor = graph.value(input);
    if (tensor == nullptr)
      raise(Errc::checkpoint_mismatch, "'{}': {} '{}' is not stored in the file", name, what, input);
    auto values = to_f32(*tensor);
    if (!values) raise(values.error().code, "'{}': {}", name, values.error().message);
    return std::pair(*std::move(values), tensor->shape);
  };
  for (const auto& node : graph.nodes) {
    if (node.op == "Conv" && node.inputs.size() >= 2 && !node.outputs.empty()) {
      Conv conv;
      std::tie(conv.weight, conv.shape) = floats(node.inputs[1], "a convolution weight");
      if (conv.shape.empty()) raise(Errc::checkpoint_mismatch, "'{}': a convolution without shape", name);
      if (node.inputs.size() > 2)
        conv.bias = floats(node.inputs[2], "a convolution bias").first;
      else
        conv.bias.assign(static_cast<std::size_t>(conv.shape[0]), 0.0f);
      if (conv.bias.size() != static_cast<std::size_t>(conv.shape[0]))
        raise(Errc::checkpoint_mismatch, "'{}': a convolution bias of {} values", name, conv.bias.size());
      conv.output = node.outputs[0];
      convs.push_back(std::move(conv));
    } else if (node.op == "BatchNormalization") {
      if (node.inputs.size() != 5)
        raise(Errc::checkpoint_mismatch, "'{}': a batch norm with {} inputs", name, node.inputs.size());
      const auto w = floats(node.inputs[1], "a batch norm").first, b = floats(node.inputs[2], "a batch norm").first,
                 mean = floats(node.inputs[3], "a batch norm").first,
                 var = floats(node.inputs[4], "a batch norm").first;
      const float epsilon = node.floats.contains("epsilon") ? node.floats.at("epsilon") : 1e-5f;
      if (b.size() != w.size() || mean.size() != w.size() || var.size() != w.size())
        raise(Errc::checkpoint_mismatch, "'{}': a batch norm of unequal parts", name);
      Norm norm;
      for (std::size_t i = 0; i < w.size(); ++i) {
        const double scale = w[i] / std::sqrt(static_cast<double>(var[i]) + epsilon);
        norm.scale.push_back(static_cast<float>(scale));
        norm.shift.push_back(static_cast<float>(b[i] - mean[i] * scale));
      }
      auto conv = std::find_if(convs.begin(), convs.end(), [&](const Conv& c) { return c.output == node.inputs[0]; });
      // A norm belongs to the convolution it reads when nothing else reads that convolution (the first layer of a dense
      // block does not).
      std::size_t readers = 0;
      for (const auto& other : graph.nodes)
        readers += static_cast<std::size_t>(std::count(other.inputs.begin(), other.inputs.end(), node.inputs[0]));
      if (conv != convs.end() && readers == 1) {
        const std::size_t each_row = conv->weight.size() / norm.scale.size();
        for (std::size_t i = 0; i < conv->weight.size(); ++i) conv->weight[i] *= norm.scale[i / each_row];
        for (std::size_t i = 0; i < norm.scale.size(); ++i)
          conv->bias[i] = conv->bias[i] * norm.scale[i] + norm.shift[i];
      } else {
        norms.push_back(std::move(norm));
      }
    }
  }
  TensorMap out;
  std::size_t next = 0, next_norm = 0;
  auto take = [&](const std::string& to) {
    if (next >= convs.size())
      raise(Errc::checkpoint_mismatch, "'{}' has {} convolutions, '{}' is missing", name, convs.size(), to);
    auto& conv = convs[next++];
    const auto channels = conv.shape[0];
    out[to + ".weight"] = make_f32(conv.shape, std::move(conv.weight));
    out[to + ".bias"] = make_f32({channels}, std::move(conv.bias));
  };
  auto take_norm = [&](const std::string& to) {
    if (next_norm >= norms.size())
      raise(Errc::checkpoint_mismatch, "'{}' has {} batch norms, '{}' is missing", name, norms.size(), to);
    auto& norm = norms[next_norm++];
    const auto size = static_cast<std::int64_t>(norm.scale.size());
    out[to + ".scale"] = make_f32({size}, std::move(norm.scale));
    out[to + ".shift"] = make_f32({size}, std::move(norm.shift));
  };
  take("head.conv1");
  for (const char* layer : {"head.layer1", "head.layer2"}) {
    const std::string l = layer;
    take(l + ".0.conv1"), take(l + ".0.conv2"), take(l + ".0.shortcut.0"), take(l + ".1.conv1"), take(l + ".1.conv2");
  }
  take("head.conv2");
  take("xvector.tdnn.linear");
  for (int block = 1; block <= 3; ++block) {
    int layer = 0;
    // A dense layer is a 1x1 convolution followed by a kernel of 3; a transit is a 1x1 convolution followed by another
    // 1x1.
    while (next + 1 < convs.size() && convs[next + 1].shape.size() == 3 && convs[next + 1].shape[2] == 3) {
      const auto at = fmt::format("xvector.block{}.tdnnd{}.", block, ++layer);
      take_norm(at + "nonlinear1");
      take(at + "linear1"), take(at + "cam_layer.linear_local"), take(at + "cam_layer.linear1"),
          take(at + "cam_layer.linear2");
    }
    take_norm(fmt::format("xvector.transit{}.nonlinear", block));
    take(fmt::format("xvector.transit{}.linear", block));
  }
  take("xvector.dense.linear");
  take_norm("xvector.dense.nonlinear");
  if (next != convs.size())
    raise(Errc::checkpoint_mismatch, "'{}' has {} convolutions, the speaker encoder has {}", name, convs.size(), next);
  return out;
} catch (const Failure& failure) {
  return tl::make_unexpected(failure.error);
}

}  // namespace parlando::checkpoint
