#include "services/cli/random_weights.hpp"

#include <cmath>
#include <nlohmann/json.hpp>
#include <random>

namespace parlando::cli {

using checkpoint::Shape;
using checkpoint::TensorMap;

namespace {

class Maker {
 public:
  void add(const std::string& name, Shape shape, double scale = -1, double offset = 0) {
    const auto count = static_cast<std::size_t>(checkpoint::elements_of(shape).value_or(0));
    std::int64_t fan = 1;
    for (std::size_t d = 1; d < shape.size(); ++d) fan *= shape[d];
    const auto width =
        static_cast<float>(scale >= 0 ? scale : 1.0 / std::sqrt(static_cast<double>(std::max<std::int64_t>(1, fan))));
    std::vector<float> values(count);
    std::uniform_real_distribution<float> uniform(-1.7f, 1.7f);
    for (auto& v : values) v = width * uniform(random_) + static_cast<float>(offset);
    out[name] = checkpoint::make_f32(std::move(shape), std::move(values));
  }
  void linear(const std::string& name, std::int64_t o, std::int64_t i, bool bias = true) {
    add(name + ".weight", {o, i});
    if (bias) add(name + ".bias", {o}, 0.02);
  }
  void conv(const std::string& name, std::int64_t o, std::int64_t i, std::int64_t k) {
    add(name + ".weight", {o, i, k}), add(name + ".bias", {o}, 0.02);
  }
  void norm(const std::string& name, std::int64_t n) {
    add(name + ".weight", {n}, 0.02, 1.0), add(name + ".bias", {n}, 0.02);
  }
  TensorMap out;

 private:
  std::minstd_rand random_{7};
};

}  // namespace

TensorMap random_linguistic(const nlohmann::json& c) {
  Maker m;
  const std::int64_t d = c.at("width"), hidden = c.at("hidden"), blocks = c.at("blocks"), centroids = c.at("centroids");
  for (std::int64_t l = 0; l < blocks; ++l) {
    const auto at = l == 0 ? std::string("encoder.encoders0.0.") : fmt::format("encoder.encoders.{}.", l - 1);
    const std::int64_t in = l == 0 ? 560 : d;
    m.norm(at + "norm1", in), m.norm(at + "norm2", d);
    m.linear(at + "self_attn.linear_q_k_v", 3 * d, in), m.linear(at + "self_attn.linear_out", d, d);
    m.add(at + "self_attn.fsmn_block.weight", {d, 1, 11});
    m.linear(at + "feed_forward.w_1", hidden, d), m.linear(at + "feed_forward.w_2", d, hidden);
  }
  m.norm("encoder.after_norm", d);
  m.add("cmvn.shift", {560}, 0.1, 8.0), m.add("cmvn.rescale", {560}, 0.01, 0.3),
      m.add("kmeans.centroids", {centroids, d}, 1.0);
  return std::move(m.out);
}

TensorMap random_semantic(const nlohmann::json& c) {
  Maker m;
  const std::int64_t d = c.at("width"), blocks = c.at("blocks"), codes = c.at("codes");
  m.conv("encoder.conv1", d, 128, 3), m.conv("encoder.conv2", d, d, 3);
  m.add("encoder.positional_embedding", {1500, d}, 0.5);
  for (std::int64_t n = 0; n < blocks; ++n) {
    const auto at = fmt::format("encoder.blocks.{}.", n);
    m.norm(at + "attn_ln", d), m.norm(at + "mlp_ln", d);
    m.linear(at + "attn.query", d, d), m.linear(at + "attn.key", d, d, false), m.linear(at + "attn.value", d, d),
        m.linear(at + "attn.out", d, d);
    m.linear(at + "mlp.0", 4 * d, d), m.linear(at + "mlp.2", d, 4 * d);
  }
  m.add("quantizer._codebook.embed", {codes, d}, 0.03);
  return std::move(m.out);
}

TensorMap random_flow(const nlohmann::json& config) {
  Maker m;
  const auto& f = config.at("flow");
  const auto &e = f.at("encoder"), &s = f.at("estimator");
  const std::int64_t in = f.at("input_size"), w = e.at("output_size"), hidden = e.at("linear_units"),
                     heads = e.at("attention_heads");
  m.add("input_embedding.weight", {f.at("vocab_size"), in}, 0.6);
  m.linear("encoder.embed.out.0", w, in), m.norm("encoder.embed.out.1", w);
  for (std::int64_t l = 0; l < e.at("num_blocks").get<std::int64_t>(); ++l) {
    const auto at = fmt::format("encoder.encoders.{}.", l), a = at + "self_attn.";
    for (const char* n : {"linear_q", "linear_k", "linear_v", "linear_out"}) m.linear(a + n, w, w);
    m.linear(a + "linear_pos", w, w, false);
    m.add(a + "pos_bias_u", {heads, w / heads}, 0.02), m.add(a + "pos_bias_v", {heads, w / heads}, 0.02);
    m.linear(at + "feed_forward.w_1", hidden, w), m.linear(at + "feed_forward.w_2", w, hidden);
    m.norm(at + "norm_mha", w), m.norm(at + "norm_ff", w);
  }
  m.norm("encoder.after_norm", w), m.linear("encoder_proj", 80, w);
  for (int n = 0; n < 4; ++n)
    m.conv(fmt::format("length_regulator.model.{}", 3 * n), 80, 80, 3),
        m.norm(fmt::format("length_regulator.model.{}", 3 * n + 1), 80);
  m.conv("length_regulator.model.12", 80, 80, 1);
  m.linear("spk_embed_affine_layer", 80, config.value("spk_embed_dim", 192));
  const auto channels = s.at("channels").get<std::vector<std::int64_t>>();
  const std::int64_t inputs = s.at("in_channels"), time = 4 * channels[0],
                     inner = s.at("num_heads").get<std::int64_t>() * s.at("attention_head_dim").get<std::int64_t>();
  const std::string d = "decoder.estimator.";
  m.linear(d + "time_mlp.linear_1", time, inputs), m.linear(d + "time_mlp.linear_2", time, time);
  auto stage = [&](const std::string& at, std::int64_t i, std::int64_t o) {
    m.linear(at + ".0.mlp.1", o, time);
    m.conv(at + ".0.block1.block.0", o, i, 3), m.norm(at + ".0.block1.block.1", o),
        m.conv(at + ".0.block2.block.0", o, o, 3), m.norm(at + ".0.block2.block.1", o);
    m.conv(at + ".0.res_conv", o, i, 1);
    for (std::int64_t n = 0; n < s.at("n_blocks").get<std::int64_t>(); ++n) {
      const auto t = fmt::format("{}.1.{}.", at, n);
      m.norm(t + "norm1", o), m.norm(t + "norm3", o);
      for (const char* q : {"to_q", "to_k", "to_v"}) m.linear(t + "attn1." + q, inner, o, false);
      m.linear(t + "attn1.to_out.0", o, inner), m.linear(t + "ff.net.0.proj", 4 * o, o),
          m.linear(t + "ff.net.2", o, 4 * o);
    }
  };
  std::int64_t width = inputs;
  for (std::size_t n = 0; n < channels.size(); ++n) {
    const auto at = fmt::format("{}down_blocks.{}", d, n);
    stage(at, width, channels[n]);
    width = channels[n];
    m.conv(n + 1 == channels.size() ? at + ".2" : at + ".2.conv", width, width, 3);
  }
  for (std::int64_t n = 0; n < s.at("num_mid_blocks").get<std::int64_t>(); ++n)
    stage(fmt::format("{}mid_blocks.{}", d, n), width, width);
  for (std::size_t n = 0; n < channels.size(); ++n) {
    const auto at = fmt::format("{}up_blocks.{}", d, n);
    const auto from = channels[channels.size() - 1 - n],
               to = n + 1 < channels.size() ? channels[channels.size() - 2 - n] : channels[0];
    stage(at, 2 * from, to);
    const bool last = n + 1 == channels.size();
    m.conv(last ? at + ".2" : at + ".2.conv", to, to, last ? 3 : 4);
    width = to;
  }
  m.conv(d + "final_block.block.0", width, width, 3), m.norm(d + "final_block.block.1", width),
      m.conv(d + "final_proj", 80, width, 1);
  return std::move(m.out);
}

TensorMap random_hift(const nlohmann::json& config) {
  Maker m;
  const auto& h = config.at("hift");
  const std::int64_t base = h.at("base_channels"), cond = h.value("cond_channels", std::int64_t{512});
  for (int n = 0; n < 5; ++n) m.conv(fmt::format("f0_predictor.condnet.{}", 2 * n), cond, n == 0 ? 80 : cond, 3);
  m.linear("f0_predictor.classifier", 1, cond), m.linear("m_source.l_linear", 1, 9), m.conv("conv_pre", base, 80, 7);
  const auto rates = h.at("upsample_rates").get<std::vector<std::int64_t>>(),
             kernels = h.at("resblock_kernel_sizes").get<std::vector<std::int64_t>>(),
             source_kernels = h.at("source_resblock_kernel_sizes").get<std::vector<std::int64_t>>();
  auto block = [&](const std::string& at, std::int64_t c, std::int64_t k, std::size_t dilations) {
    for (std::size_t n = 0; n < dilations; ++n) {
      m.conv(fmt::format("{}.convs1.{}", at, n), c, c, k), m.conv(fmt::format("{}.convs2.{}", at, n), c, c, k);
      m.add(fmt::format("{}.activations1.{}.alpha", at, n), {c}, 0.1, 1.0),
          m.add(fmt::format("{}.activations2.{}.alpha", at, n), {c}, 0.1, 1.0);
    }
  };
  for (std::size_t i = 0; i < rates.size(); ++i) {
    const auto in = base >> i, out = base >> (i + 1);
    m.add(fmt::format("ups.{}.weight", i), {in, out, 2 * rates[i]}), m.add(fmt::format("ups.{}.bias", i), {out}, 0.02);
    std::int64_t u = 1;
    for (std::size_t j = i + 1; j < rates.size(); ++j) u *= rates[j];
    m.conv(fmt::format("source_downs.{}", i), out, 18, u == 1 ? 1 : 2 * u);
    block(fmt::format("source_resblocks.{}", i), out, source_kernels[i],
          h.at("source_resblock_dilation_sizes").at(i).size());
    for (std::size_t j = 0; j < kernels.size(); ++j)
      block(fmt::format("resblocks.{}", i * kernels.size() + j), out, kernels[j],
            h.at("resblock_dilation_sizes").at(j).size());
  }
  m.conv("conv_post", 18, base >> rates.size(), 7);
  return std::move(m.out);
}

/// With every batch norm folded, as an ONNX export has it.
TensorMap random_campplus(const nlohmann::json& config) {
  Maker m;
  const auto& s = config.at("speaker");
  const std::int64_t head = s.at("head_channels"), growth = s.at("growth"),
                     inner = growth * s.at("bottleneck").get<std::int64_t>();
  auto conv = [&](const std::string& name, Shape shape) {
    m.add(name + ".weight", shape), m.add(name + ".bias", {shape[0]}, 0.02);
  };
  auto affine = [&](const std::string& name, std::int64_t n) {
    m.add(name + ".scale", {n}, 0.02, 1.0), m.add(name + ".shift", {n}, 0.02);
  };
  conv("head.conv1", {head, 1, 3, 3}), conv("head.conv2", {head, head, 3, 3});
  for (const char* layer : {"head.layer1.", "head.layer2."})
    for (int n = 0; n < 2; ++n) {
      const auto at = fmt::format("{}{}.", layer, n);
      conv(at + "conv1", {head, head, 3, 3}), conv(at + "conv2", {head, head, 3, 3});
      if (n == 0) conv(at + "shortcut.0", {head, head, 1, 1});
    }
  std::int64_t width = s.at("width");
  conv("xvector.tdnn.linear", {width, 10 * head, 5});
  int block = 1;
  for (const auto& layers : s.at("layers")) {
    for (std::int64_t n = 1; n <= layers.get<std::int64_t>(); ++n, width += growth) {
      const auto at = fmt::format("xvector.block{}.tdnnd{}.", block, n);
      affine(at + "nonlinear1", width), conv(at + "linear1", {inner, width, 1}),
          conv(at + "cam_layer.linear_local", {growth, inner, 3});
      conv(at + "cam_layer.linear1", {inner / 2, inner, 1}), conv(at + "cam_layer.linear2", {growth, inner / 2, 1});
    }
    const auto t = fmt::format("xvector.transit{}.", block++);
    affine(t + "nonlinear", width), conv(t + "linear", {width / 2, width, 1});
    width /= 2;
  }
  conv("xvector.dense.linear", {192, 2 * width, 1}), affine("xvector.dense.nonlinear", 192);
  return std::move(m.out);
}

}  // namespace parlando::cli
