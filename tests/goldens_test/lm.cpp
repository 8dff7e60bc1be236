#include <ATen/ATen.h>

#include "common/base/codes.hpp"
#include "common/base/speech_tags.hpp"
#include "services/llm/model/prompts.hpp"
#include "services/llm/model/sampler.hpp"
#include "services/llm/model/step1.hpp"
#include "services/llm/model/step1_cuda.hpp"
#include "tests/goldens_test/report.hpp"

namespace parlando::goldens {
namespace fs = std::filesystem;
using namespace llm;
using nlohmann::json;

namespace {

/// Runs `model` on chunks of new or growing sequences, one forward pass each.
struct Runner {
  std::shared_ptr<const Step1> model;
  std::unique_ptr<KvPool> pool;
  explicit Runner(std::shared_ptr<const Step1> m) : model(std::move(m)), pool(model->make_pool(4096)) {}
  at::Tensor forward(KvPool::Sequence& sequence, std::span<const std::int32_t> ids, const Step1::Trace& trace = {}) {
    Step1::Chunk chunk{&sequence, ids};
    auto out = model->forward(*pool, {&chunk, 1}, trace);
    if (!out) throw Failure{out.error()};
    return *out;
  }
};

Sampling sampling_of(const json& params) {
  Sampling s{.temperature = 1.0, .top_k = {}};
  for (const auto& [key, value] : params.items()) {
    if (key == "temperature")
      s.temperature = value.get<double>();
    else if (key == "top_k")
      s.top_k = value.get<std::int64_t>();
    else if (key == "top_p")
      s.top_p = value.get<double>();
    else if (key == "repetition_penalty")
      s.repetition_penalty = value.get<double>();
    else if (key == "ras")
      s.repetition_aware = value.get<bool>();
    else
      raise(Errc::unsupported, "sampling parameter '{}'", key);
  }
  return s;
}

void compare_probabilities(Report& report, const std::string& what, const Result<std::vector<float>>& got,
                           const at::Tensor& want) {
  if (!got) return report.fail(what, got.error().message);
  report.near(what, *got, want, {2e-6});
  const auto flat = want.contiguous();
  const auto* w = flat.data_ptr<float>();
  for (std::size_t i = 0; i < got->size(); ++i) {
    const bool zero = w[i] == 0.0f, got_zero = (*got)[i] == 0.0f;
    if (zero != got_zero && std::max(w[i], (*got)[i]) > 1e-30f)
      return report.fail(what, fmt::format("entry {} is {}, expected {}", i, (*got)[i], w[i]));
  }
}

void model_case(Report& report, const fs::path& folder, const json& c, const checkpoint::TensorMap& t,
                std::map<std::string, std::unique_ptr<Runner>>& runners) {
  const auto kind = c.at("kind").get<std::string>();
  auto tensor = [&](const char* role) { return tensor_of(t, c.at("tensors").at(role).get<std::string>()); };
  auto has = [&](const char* role) { return c.at("tensors").contains(role); };
  auto runner = [&](at::ScalarType dtype) -> Runner& {
    const auto name = c.at("model").get<std::string>();
    auto& slot = runners[name + (dtype == at::kFloat ? "/f32" : "/bf16")];
    if (!slot) {
      auto model = Step1::load(folder / name, dtype);
      if (!model) throw Failure{model.error()};
      slot = std::make_unique<Runner>(*model);
    }
    return *slot;
  };
  const Tolerance hidden{5e-5}, logits{2e-4};
  auto rows = [](const at::Tensor& x, const json& positions) {
    std::vector<std::int64_t> at;
    for (const auto& p : positions) at.push_back(p.get<std::int64_t>());
    return x.index_select(0, at::tensor(at));
  };
  if (kind == "prefill") {
    auto& r = runner(at::kFloat);
    const auto ids = ints_of(tensor("input_ids"));
    auto sequence = r.pool->open();
    std::vector<at::Tensor> states(static_cast<std::size_t>(r.model->config().layers + 2));
    const auto out = r.forward(sequence, ids, [&](int stage, const at::Tensor& x) { states[stage] = x.clone(); });
    report.near("hidden", out, tensor("hidden"), hidden);
    report.near("logits", r.model->logits(rows(out, c.at("logit_positions"))), tensor("logits"), logits);
    if (has("hidden_states")) {
      states.erase(states.end() - 2);  // the reference's last state is the one after the final norm
      report.near("hidden_states", at::stack(states), tensor("hidden_states"), hidden);
    }
  } else if (kind == "decode") {
    auto& r = runner(at::kFloat);
    const auto ids = ints_of(tensor("input_ids"));
    const auto first = c.at("prompt_length").get<std::size_t>();
    auto sequence = r.pool->open();
    r.forward(sequence, std::span(ids).first(first));
    std::vector<at::Tensor> out;
    for (std::size_t i = first; i < ids.size(); ++i)
      out.push_back(r.model->logits(r.forward(sequence, std::span(ids).subspan(i, 1)))[0]);
    report.near("logits", at::stack(out), tensor("logits"), logits);
    std::vector<at::Tensor> keys, values;
    for (std::int64_t j = 0; j < 8; ++j) {
      const auto [k, v] = r.pool->store().read(sequence.blocks(), 0, j);
      keys.push_back(at::tensor(k)), values.push_back(at::tensor(v));
    }
    auto cached = [&](const std::vector<at::Tensor>& rows) {
      return at::stack(rows).view({8, r.model->config().groups, r.model->config().dim()});
    };
    report.near("layer0_key_cache", cached(keys), tensor("layer0_key_cache"), hidden);
    report.near("layer0_value_cache", cached(values), tensor("layer0_value_cache"), hidden);
    auto whole = r.pool->open();
    const auto full = r.model->logits(
        r.forward(whole, ids)
            .narrow(0, static_cast<std::int64_t>(first), static_cast<std::int64_t>(ids.size() - first)));
    report.equal("decode against a full prefill", at::equal(at::stack(out), full));
  } else if (kind == "chunked_prefill") {
    auto& r = runner(at::kFloat);
    const auto ids = ints_of(tensor("input_ids"));
    const auto a = c.at("chunks")[0].get<std::size_t>();
    auto sequence = r.pool->open();
    r.forward(sequence, std::span(ids).first(a));
    auto fork = sequence.fork();
    const auto out = r.forward(sequence, std::span(ids).subspan(a));
    report.near("hidden", out, tensor("hidden"), hidden);
    const auto last = r.model->logits(out.narrow(0, out.size(0) - 1, 1))[0];
    report.near("last_logits", last, tensor("last_logits").view({-1}), logits);
    // The fork continues on its own copy of the shared last block; a truncated sequence can be filled again.
    report.near("fork", r.forward(fork, std::span(ids).subspan(a)), out, {1e-5});
    // As far as the first chunk goes: one of a single token is cut to nothing.
    const auto cut = std::min<std::size_t>(a, 3);
    sequence.truncate(static_cast<std::int64_t>(a - cut));
    report.near(
        "after truncation",
        r.forward(sequence, std::span(ids).subspan(a - cut)).narrow(0, static_cast<std::int64_t>(cut), out.size(0)),
        out, {1e-5});
  } else if (kind == "ragged_batch") {
    auto& r = runner(at::kFloat);
    const auto ids = ints_of(tensor("input_ids"));
    std::vector<KvPool::Sequence> sequences;
    std::vector<Step1::Chunk> chunks;
    std::vector<std::int64_t> ends;
    sequences.reserve(c.at("lengths").size());
    std::size_t at = 0;
    for (const auto& n : c.at("lengths")) {
      sequences.push_back(r.pool->open());
      chunks.push_back({&sequences.back(), std::span(ids).subspan(at, n.get<std::size_t>())});
      at += n.get<std::size_t>();
      ends.push_back(static_cast<std::int64_t>(at) - 1);
    }
    auto out = r.model->forward(*r.pool, chunks);
    if (!out) throw Failure{out.error()};
    const auto last = out->index_select(0, at::tensor(ends));
    report.near("last_hidden", last, tensor("last_hidden"), hidden);
    report.near("last_logits", r.model->logits(last), tensor("last_logits"), logits);
  } else if (kind == "greedy") {
    auto& r = runner(at::kFloat);
    const auto ids = ints_of(tensor("input_ids")), want = ints_of(tensor("output_ids"));
    auto generate = [&](std::optional<std::int32_t> stop) {
      auto sequence = r.pool->open();
      auto hidden_rows = r.forward(sequence, ids);
      std::vector<std::int32_t> out;
      for (std::int64_t n = 0; n < c.at("max_new_tokens").get<std::int64_t>(); ++n) {
        const auto scores = r.model->logits(hidden_rows.narrow(0, hidden_rows.size(0) - 1, 1)).contiguous();
        const auto id =
            sample({scores.data_ptr<float>(), static_cast<std::size_t>(scores.numel())}, {}, Sampling::greedy(), 0);
        if (!id) throw Failure{id.error()};
        out.push_back(*id);
        if (stop && *id == *stop) break;
        hidden_rows = r.forward(sequence, std::span(&out.back(), 1));
      }
      return out;
    };
    report.equal("output_ids", generate({}) == want);
    const auto& stop = c.at("stop_case");
    report.equal("stop_case", generate(stop.at("stop_token_id").get<std::int32_t>()) ==
                                  stop.at("output_ids").get<std::vector<std::int32_t>>());
  } else if (kind == "prefill_bf16") {
    const auto ids = ints_of(tensor("input_ids"));
    auto& r = runner(at::kBFloat16);
    auto sequence = r.pool->open();
    const auto out = r.model->logits(rows(r.forward(sequence, ids), c.at("logit_positions")));
    for (const auto& [role, name] : c.at("tensors").items()) {
      if (!role.starts_with("logits")) continue;
      report.near(role, out, tensor_of(t, name.get<std::string>()),
                  role == "logits_fp32_attention" ? Tolerance{0.5, 0, 0.06} : Tolerance{0.6, 0, 0.08});
    }
    // One by one they are computed with the cache alone, and to the same bits.
    auto decoded = r.pool->open();
    std::vector<at::Tensor> one_by_one;
    for (std::size_t i = 0; i < ids.size(); ++i)
      one_by_one.push_back(r.forward(decoded, std::span(ids).subspan(i, 1))[0]);
    report.equal("decode", at::equal(r.model->logits(rows(at::stack(one_by_one), c.at("logit_positions"))), out));
    auto& f = runner(at::kFloat);
    auto second = f.pool->open();
    report.near("fp32 of the same weights", f.model->logits(rows(f.forward(second, ids), c.at("logit_positions"))),
                tensor("logits_fp32"), {0.6, 0, 0.08});
  } else {
    raise(Errc::unsupported, "case '{}' has the unknown kind '{}'", c.at("id").get<std::string>(), kind);
  }
}

void alibi(Report& report, const json& c, const checkpoint::TensorMap& t) {
  const auto heads = c.at("heads").get<std::int64_t>(), length = c.at("length").get<std::int64_t>();
  const auto slopes = alibi_slopes(heads);
  report.near("slopes", slopes, tensor_of(t, c.at("tensors").at("slopes").get<std::string>()), {1e-6});
  std::vector<float> row;
  for (const float slope : slopes)
    for (std::int64_t j = 0; j < length; ++j) row.push_back(-slope * std::sqrt(static_cast<float>(length - 1 - j)));
  report.near("last_row", row, tensor_of(t, c.at("tensors").at("last_row").get<std::string>()), {5e-6});
}

void sampling(Report& report, const json& c, const checkpoint::TensorMap& t) {
  const auto& tensors = c.at("tensors");
  const auto source = c.contains("logits_from") && c["logits_from"].is_string()
                          ? c["logits_from"].get<std::string>()
                          : tensors.at("logits").get<std::string>();
  const auto logits = tensor_of(t, source).contiguous();
  const auto history = c.value("history", std::vector<std::int32_t>{});
  const auto got = probabilities({logits.data_ptr<float>(), static_cast<std::size_t>(logits.numel())}, history,
                                 sampling_of(c.at("params")));
  for (const auto& [role, name] : tensors.items())
    if (role != "logits") compare_probabilities(report, role, got, tensor_of(t, name.get<std::string>()));
}

Message message_of(const json& m, const json& audio) {
  Message out{m.at("role").get<std::string>(), std::monostate{}};
  const auto& content = m.at("content");
  if (content.is_string()) out.content = content.get<std::string>();
  if (content.is_object()) {
    if (content.at("type") == "audio") {
      const auto& codes = audio.at(content.at("audio").get<std::string>());
      auto interleaved = interleave(codes.at("linguistic").get<std::vector<std::int32_t>>(),
                                    codes.at("semantic").get<std::vector<std::int32_t>>());
      if (!interleaved) throw Failure{interleaved.error()};
      out.content = *interleaved;
    } else if (content.at("type") == "text") {
      out.content = content.at("text").get<std::string>();
    }
  }
  return out;
}

void prompts(Report& report, const fs::path& folder, const fs::path& model) {
  const auto p = load_json(folder / "prompts.json");
  auto loaded = TextTokenizer::load(model);
  if (!loaded) throw Failure{loaded.error()};
  const auto tok = *loaded;
  const PromptBuilder builder(tok, false);
  using Ids = std::vector<std::int32_t>;
  auto text = [](const json& j) { return j.get<std::string>().substr(0, 24); };
  for (const auto& c : p.at("tokenizer")) {
    report.begin("prompts.tokenizer", text(c.at("text")));
    const auto ids = tok->encode(c.at("text").get<std::string>());
    report.equal("ids", ids == c.at("hf").get<Ids>());
    report.equal("decode", tok->decode(ids) == c.at("hf_decode").get<std::string>(), tok->decode(ids));
    auto with_bos = ids;
    with_bos.insert(with_bos.begin(), tok->bos());
    report.equal("with BOS", with_bos == c.at("hf_with_bos").get<Ids>());
    StreamDecoder stream(tok, false);
    std::string streamed;
    for (const auto id : ids) streamed += stream.push(id);
    streamed += stream.finish();
    report.equal("streamed", streamed == c.at("hf_decode").get<std::string>(), streamed);
  }
  for (const auto& c : p.at("decode")) {
    report.begin("prompts.decode", c.at("ids").dump());
    report.equal("text", tok->decode(c.at("ids").get<Ids>()) == c.at("text").get<std::string>());
    report.equal("text_skip_special",
                 tok->decode(c.at("ids").get<Ids>(), true) == c.at("text_skip_special").get<std::string>());
  }
  const auto& audio = p.at("audio_codes");
  for (const auto& c : p.at("chat_offline")) {
    report.begin("prompts.chat_offline", c.at("messages").dump().substr(0, 40));
    std::vector<Message> messages;
    bool refused = false;
    json plain = c.at("messages");
    for (auto& m : plain)
      if (m.at("content").is_object() && m["content"].value("type", "") == "audio")
        m["content"] = {{"type", "audio"}, {"codes", std::get<Ids>(message_of(m, audio).content)}};
    auto parsed = PromptBuilder::messages_of(plain);
    if (parsed)
      messages = *parsed;
    else
      refused = true;
    if (c.contains("error")) {
      report.equal("error", refused && parsed.error().message.find(c["error"].get<std::string>()) != std::string::npos);
      continue;
    }
    if (refused) {
      report.fail("messages", parsed.error().message);
      continue;
    }
    report.equal("prompt", builder.chat_offline_text(messages) == c.at("prompt").get<std::string>(),
                 builder.chat_offline_text(messages));
    if (c.contains("ids")) report.equal("ids", builder.chat_offline(messages) == c.at("ids").get<Ids>());
  }
  for (const auto& c : p.at("chat_server")) {
    report.begin("prompts.chat_server", c.at("messages").dump().substr(0, 40));
    auto parsed = PromptBuilder::messages_of(c.at("messages"));
    if (!parsed) {
      report.fail("messages", parsed.error().message);
      continue;
    }
    report.equal("ids",
                 builder.chat_server(*parsed, c.at("add_generation_prompt").get<bool>()) == c.at("ids").get<Ids>());
  }
  const auto& official = TtsPrompts::official();
  for (const auto& [key, want] : p.at("tts_system_prompts").items()) {
    report.begin("prompts.tts_system_prompts", key);
    const auto& got = key == "sys_prompt_for_rap"     ? official.rap
                      : key == "sys_prompt_for_vocal" ? official.vocal
                      : key == "sys_prompt_wo_spk"    ? official.without_speaker
                                                      : official.with_speaker;
    report.equal("text", got == want.get<std::string>());
  }
  for (const auto& c : p.at("tts")) {
    report.begin("prompts.tts", text(c.at("text")));
    const auto speaker = c.at("speaker").get<std::string>();
    const auto mode = tts_mode(c.at("text").get<std::string>(), speaker, c.at("clone").get<bool>());
    report.equal("speaker_key",
                 mode.speaker_key == (c.at("speaker_key").is_null() ? "" : c.at("speaker_key").get<std::string>()));
    report.equal("vocoder",
                 (mode.vocoder == Vocoder::music ? "music" : "common") == c.at("vocoder").get<std::string>());
    report.equal("system_prompt", mode.system_prompt == c.at("system_prompt").get<std::string>());
    auto system = mode.system_prompt == "with_speaker"      ? official.with_speaker
                  : mode.system_prompt == "without_speaker" ? official.without_speaker
                  : mode.system_prompt == "rap"             ? official.rap
                                                            : official.vocal;
    if (const auto hole = system.find("{}"); hole != std::string::npos) system.replace(hole, 2, speaker);
    const PromptBuilder::Tts request{system, c.at("prompt_text").get<std::string>(), c.at("text").get<std::string>(),
                                     c.at("prompt_codes").get<Ids>()};
    report.equal("ids_no_inner_bos", builder.tts(request, false) == c.at("ids_no_inner_bos").get<Ids>());
    report.equal("ids_inner_bos", builder.tts(request, true) == c.at("ids_inner_bos").get<Ids>());
  }
  for (const auto& c : p.at("tts_instruction")) {
    report.begin("prompts.tts_instruction", text(c.at("text")));
    report.equal("instruction", leading_tag(c.at("text").get<std::string>()) == c.at("instruction").get<std::string>(),
                 leading_tag(c.at("text").get<std::string>()));
  }
  for (const auto& c : p.at("interleave")) {
    report.begin("prompts.interleave", c.at("groups").dump());
    const auto linguistic = c.at("linguistic").get<Ids>(), semantic = c.at("semantic").get<Ids>();
    const auto codes = interleave(linguistic, semantic);
    if (!codes) {
      report.fail("codes", codes.error().message);
      continue;
    }
    const auto groups = c.at("groups").get<std::size_t>();
    report.equal("codes", *codes == c.at("codes").get<Ids>());
    if (c.at("token_string").is_string())
      report.equal("token_string", to_token_string(*codes) == c.at("token_string").get<std::string>());
    report.equal("left_over",
                 c.at("left_over") == json::array({linguistic.size() - 2 * groups, semantic.size() - 3 * groups}));
    const auto back = split_codes(*codes);
    report.equal("read back", back &&
                                  std::equal(back->linguistic.begin(), back->linguistic.end(), linguistic.begin()) &&
                                  back->linguistic.size() == 2 * groups &&
                                  std::equal(back->semantic.begin(), back->semantic.end(), semantic.begin()) &&
                                  back->semantic.size() == 3 * groups);
  }
}

/// The GPU path against the CPU path on the same prompts; reported as skipped without a device.
void cuda(Report& report, const fs::path& folder, const std::string& name) {
  if (Step1Cuda::devices() == 0) return;
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    report.begin("cuda", name);
    const auto model = Step1::load(folder / name, dtype);
    if (!model) throw Failure{model.error()};
    Runner runner(*model);
    auto gpu = Step1Cuda::create(**model, 4096);
    if (!gpu) {
      report.fail("create", gpu.error().message);
      return;
    }
    std::vector<std::int32_t> ids, blocks;
    for (int i = 0; i < 70; ++i)
      ids.push_back(static_cast<std::int32_t>((i * 131 + 7) % (*model)->config().vocabulary));
    for (int b = 0; b < 8; ++b) blocks.push_back(7 - b);
    auto sequence = runner.pool->open();
    const Tolerance tolerance = dtype == at::kFloat ? Tolerance{5e-4} : Tolerance{0.6, 0, 0.08};
    std::int64_t at = 0;
    for (const std::size_t n : {40u, 29u, 1u}) {  // prefill, chunk, decode
      const auto part = std::span<const std::int32_t>(ids).subspan(static_cast<std::size_t>(at), n);
      const auto hidden = runner.forward(sequence, part);
      const auto want = (*model)->logits(hidden.narrow(0, hidden.size(0) - 1, 1))[0];
      const Step1Cuda::Chunk chunk{at, part, blocks};
      const auto got = (*gpu)->forward({&chunk, 1});
      if (!got) {
        report.fail("forward", got.error().message);
        return;
      }
      report.near(fmt::format("logits after {} tokens", at + static_cast<std::int64_t>(n)), *got, want, tolerance);
      at += static_cast<std::int64_t>(n);
    }
  }
}

void shards(Report& report, const fs::path& folder) {
  const auto file = load_json(folder / "tp_plan.json");
  for (const auto& plan : file.at("plans")) {
    Step1Config c;
    c.hidden = plan.at("hidden_size"), c.inner = plan.at("intermediate_size"), c.heads = plan.at("num_attention_heads"),
    c.groups = plan.at("num_attention_groups");
    c.layers = plan.at("num_hidden_layers"), c.vocabulary = plan.at("vocab_size"), c.length_max = 1;
    const auto ranks = plan.at("tp").get<int>();
    report.begin("tp_plan", fmt::format("{} over {}", plan.at("config").get<std::string>(), ranks));
    for (const auto& r : plan.at("ranks")) {
      const auto shard = Shard::plan(c, r.at("rank").get<int>(), ranks);
      if (!shard) {
        report.fail("plan", shard.error().message);
        continue;
      }
      auto same = [&](const char* key, Range range) {
        report.equal(key, r.at(key) == json::array({range.first, range.last}));
      };
      same("query_heads", shard->query_heads), same("kv_groups", shard->kv_groups), same("q_proj_rows", shard->q_rows),
          same("k_proj_rows", shard->kv_rows);
      same("v_proj_rows", shard->kv_rows), same("o_proj_columns", shard->q_rows),
          same("gate_up_rows", shard->inner_rows), same("down_proj_columns", shard->inner_rows);
      same("vocab_rows", shard->vocabulary_rows);
      const auto want = r.at("slopes").get<std::vector<double>>();
      bool near = want.size() == shard->slopes.size();
      for (std::size_t i = 0; near && i < want.size(); ++i)
        near = std::abs(want[i] - shard->slopes[i]) <= 1e-8 + 6e-8 * std::abs(want[i]);
      report.equal("slopes", near);
    }
    // Where the checkpoint is at hand, each rank must load exactly these parts of it.
    const auto directory = folder / plan.at("config").get<std::string>();
    if (!fs::exists(directory / "config.json")) continue;
    const auto whole = Step1::load(directory, at::kFloat);
    if (!whole) throw Failure{whole.error()};
    const auto Q = c.hidden, KV = c.groups * c.dim();
    for (int rank = 0; rank < ranks; ++rank) {
      const auto part = Step1::load(directory, at::kFloat, rank, ranks);
      if (!part) throw Failure{part.error()};
      const auto& s = (*part)->shard();
      for (std::int64_t l = 0; l < (*whole)->layers(); ++l) {
        const auto a = (*whole)->layer(l), b = (*part)->layer(l);
        auto rows = [&](const at::Tensor& t, std::int64_t offset, Range r) {
          return t.narrow(0, offset + r.first, r.count());
        };
        report.equal("qkv", at::equal(b.qkv, at::cat({rows(a.qkv, 0, s.q_rows), rows(a.qkv, Q, s.kv_rows),
                                                      rows(a.qkv, Q + KV, s.kv_rows)})));
        report.equal(
            "gate_up",
            at::equal(b.gate_up, at::cat({rows(a.gate_up, 0, s.inner_rows), rows(a.gate_up, c.inner, s.inner_rows)})));
        report.equal("out", at::equal(b.out, a.out.narrow(1, s.q_rows.first, s.q_rows.count())));
        report.equal("down", at::equal(b.down, a.down.narrow(1, s.inner_rows.first, s.inner_rows.count())));
      }
      report.equal("embedding",
                   at::equal((*part)->embedding(),
                             (*whole)->embedding().narrow(0, s.vocabulary_rows.first, s.vocabulary_rows.count())));
      report.equal("head", at::equal((*part)->head(),
                                     (*whole)->head().narrow(0, s.vocabulary_rows.first, s.vocabulary_rows.count())));
    }
  }
}

}  // namespace

bool run_lm(const fs::path& folder) {
  Report report("lm");
  const auto file = load_json(folder / "cases.json");
  const auto t = load_tensors(folder / "cases.safetensors");
  std::map<std::string, std::unique_ptr<Runner>> runners;
  fs::path tokenizer_model;
  for (const auto& entry : fs::directory_iterator(folder))
    if (fs::exists(entry.path() / "tokenizer.model")) tokenizer_model = entry.path();
  for (const auto& c : file.at("cases")) {
    const auto kind = c.at("kind").get<std::string>();
    report.begin(kind, c.at("id").get<std::string>());
    if (kind == "alibi")
      alibi(report, c, t);
    else if (kind == "sampling" || kind == "sampling_ties")
      sampling(report, c, t);
    else
      model_case(report, folder, c, t, runners);
  }
  std::set<std::string> models;
  for (const auto& c : file.at("cases"))
    if (c.contains("model")) models.insert(c["model"].get<std::string>());
  for (const auto& name : models) cuda(report, folder, name);
  if (const auto why = Step1Cuda::broken(); !why.empty())
    report.begin("cuda", "library"), report.fail("open", why);
  else if (Step1Cuda::devices() == 0)
    fmt::print("lm         cuda: skipped, no device\n");
  prompts(report, folder, tokenizer_model);
  shards(report, folder);
  return report.print();
}

}  // namespace parlando::goldens
