#include "services/llm/model/config.hpp"

#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>

#include "common/base/mapped_file.hpp"

namespace parlando::llm {

Result<Step1Config> Step1Config::load(const std::filesystem::path& file) {
  PARLANDO_TRY(const auto text, read_file(file, 1u << 20));
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) return fail(Errc::bad_json, "'{}' is not a JSON object", file.string());
  Step1Config c;
  const std::pair<const char*, std::int64_t*> sizes[] = {
      {"hidden_size", &c.hidden},          {"intermediate_size", &c.inner},  {"num_attention_heads", &c.heads},
      {"num_attention_groups", &c.groups}, {"num_hidden_layers", &c.layers}, {"vocab_size", &c.vocabulary},
      {"max_seq_len", &c.length_max}};
  for (const auto& [key, value] : sizes) {
    if (!json.contains(key) || !json[key].is_number_integer())
      return fail(Errc::bad_json, "'{}' lacks the integer '{}'", file.string(), key);
    *value = json[key].get<std::int64_t>();
    if (*value <= 0 || *value > (std::int64_t{1} << 32))
      return fail(Errc::bad_json, "'{}': {} is {}, expected a positive size", file.string(), key, *value);
  }
  if (!json.contains("rms_norm_eps") || !json["rms_norm_eps"].is_number())
    return fail(Errc::bad_json, "'{}' lacks 'rms_norm_eps'", file.string());
  c.norm_eps = json["rms_norm_eps"].get<double>();
  c.bos = json.value("bos_token_id", 1), c.eos = json.value("eos_token_id", 3), c.pad = json.value("pad_token_id", 0);
  c.dtype = json.value("torch_dtype", "bfloat16");
  c.reply_format = json.value("reply_format", "direct");
  c.tool_calls = json.value("tool_calls", false);
  c.tool_prompt = json.value("tool_prompt", "");
  if (!c.tool_prompt.empty() && c.tool_prompt != "tool_json_schemas")
    return fail(Errc::bad_json, "'{}': tool_prompt is '{}', expected tool_json_schemas or nothing", file.string(),
                c.tool_prompt);
  if (json.contains("fallback_replies")) {
    const auto& replies = json["fallback_replies"];
    if (!replies.is_object()) return fail(Errc::bad_json, "'{}': fallback_replies is not an object", file.string());
    for (const auto& [key, value] : replies.items()) {
      auto* reply = key == "no_reply"   ? &c.fallback_replies.no_reply
                    : key == "bad_call" ? &c.fallback_replies.bad_call
                                        : nullptr;
      if (reply == nullptr || !value.is_string())
        return fail(Errc::bad_json, "'{}': fallback_replies.{} is {}, expected a text under no_reply or bad_call",
                    file.string(), key, value.dump().substr(0, 40));
      *reply = value.get<std::string>();
    }
  }
  if (c.reply_format != "direct" && c.reply_format != "transcript_first")
    return fail(Errc::bad_json, "'{}': reply_format is '{}', expected direct or transcript_first", file.string(),
                c.reply_format);
  for (const auto& [key, id] : {std::pair{"bos_token_id", c.bos}, {"eos_token_id", c.eos}})
    if (id < 0 || id >= c.vocabulary)
      return fail(Errc::bad_json, "'{}': {} is {}, outside the vocabulary of {}", file.string(), key, id, c.vocabulary);
  if (c.hidden % c.heads != 0)
    return fail(Errc::bad_json, "'{}': {} heads do not divide hidden_size {}", file.string(), c.heads, c.hidden);
  if (c.heads % c.groups != 0)
    return fail(Errc::bad_json, "'{}': {} groups do not divide {} heads", file.string(), c.groups, c.heads);
  return c;
}

std::vector<float> alibi_slopes(std::int64_t heads) {
  const auto c = static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(heads)));
  std::vector<float> out;
  for (std::int64_t h = 0; h < heads; ++h)
    out.push_back(
        static_cast<float>(std::exp2(h < c ? -8.0 * static_cast<double>(h + 1) / static_cast<double>(c)
                                           : -4.0 * static_cast<double>(2 * (h - c) + 1) / static_cast<double>(c))));
  return out;
}

Result<Shard> Shard::plan(const Step1Config& c, int rank, int ranks) {
  if (ranks <= 0 || rank < 0 || rank >= ranks)
    return fail(Errc::invalid_argument, "rank {} of {} does not exist", rank, ranks);
  if (c.heads % ranks != 0)
    return fail(Errc::invalid_argument, "{} heads cannot be divided by {} ranks", c.heads, ranks);
  if (c.inner % ranks != 0)
    return fail(Errc::invalid_argument, "intermediate size {} cannot be divided by {} ranks", c.inner, ranks);
  if (c.groups % ranks != 0 && ranks % c.groups != 0)
    return fail(Errc::invalid_argument, "{} groups fit neither into nor around {} ranks", c.groups, ranks);
  auto part = [&](std::int64_t n) { return Range{n / ranks * rank, n / ranks * (rank + 1)}; };
  Shard s;
  s.query_heads = part(c.heads);
  if (c.groups % ranks == 0) {
    s.kv_groups = part(c.groups);
  } else {  // more ranks than groups: neighbouring ranks hold the same one
    const auto group = rank / (ranks / c.groups);
    s.kv_groups = {group, group + 1};
  }
  s.q_rows = {s.query_heads.first * c.dim(), s.query_heads.last * c.dim()};
  s.kv_rows = {s.kv_groups.first * c.dim(), s.kv_groups.last * c.dim()};
  s.inner_rows = part(c.inner);
  // Padded to a multiple of 64 before division; the last rank holds what is left.
  const auto padded = (c.vocabulary + 63) / 64 * 64;
  const auto each = (padded + ranks - 1) / ranks;
  s.vocabulary_rows = {std::min(c.vocabulary, each * rank), std::min(c.vocabulary, each * (rank + 1))};
  const auto all = alibi_slopes(c.heads);
  s.slopes.assign(all.begin() + s.query_heads.first, all.begin() + s.query_heads.last);
  return s;
}

}  // namespace parlando::llm
