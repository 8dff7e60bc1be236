#include "services/llm/llm_core.hpp"

#include <ATen/Parallel.h>

#include <nlohmann/json.hpp>

#include "common/base/codes.hpp"
#include "common/base/mapped_file.hpp"
#include "common/base/pcm.hpp"

namespace parlando::llm {
namespace fs = std::filesystem;
using nlohmann::json;
using protocol::MessageType;

namespace {
constexpr std::int32_t kEot = 3;
constexpr std::int64_t kSpeechLengthMax = 8192;  // includes the prompt, as in the official call
constexpr std::size_t kHistoryMessagesMax = 200;

/// Defaults of the official calls, overridden by the checkpoint's generation_config.json.
Result<Sampling> sampling_of(const fs::path& directory, Sampling defaults) {
  if (!fs::exists(directory / "generation_config.json")) return defaults;
  PARLANDO_TRY(const auto text, read_file(directory / "generation_config.json", 1u << 20));
  const auto config = json::parse(text, nullptr, false);
  if (!config.is_object()) return fail(Errc::bad_json, "'{}/generation_config.json' is not a JSON object", directory.string());
  if (config.value("do_sample", true) == false) return Sampling::greedy();
  if (config.contains("temperature")) defaults.temperature = config["temperature"].get<double>();
  if (config.contains("top_k")) defaults.top_k = config["top_k"].get<std::int64_t>();
  if (config.contains("top_p")) defaults.top_p = config["top_p"].get<double>();
  if (config.contains("repetition_aware")) defaults.repetition_aware = config["repetition_aware"].get<bool>();
  return defaults;
}

std::string name_of(const std::string& peer, const protocol::Envelope& head) {
  return fmt::format("{}/{:x}{:016x}/{}", peer, head.session.high, head.session.low, head.stream);
}
}  // namespace

/// Codes of one synthesis on their way out.
struct SpeechGroups {
  GroupCollector collector;
  std::vector<std::int32_t> ready;
  std::int64_t groups = 0;
  std::shared_ptr<LmEngine> engine;
  std::string name;
  ~SpeechGroups() { engine->release(name); }
};

LlmCore::Job::Job() = default;
LlmCore::Job::~Job() = default;
LlmCore::Job::Job(Job&&) noexcept = default;
LlmCore::Job& LlmCore::Job::operator=(Job&&) noexcept = default;

std::vector<config::Problem> LlmConfig::problems(const std::string& path) const {
  std::vector<config::Problem> out;
  config::expect_range(out, path + ".threads", threads, 1, 1024);
  config::expect_range(out, path + ".cache_tokens", cache_tokens, 256, 1 << 24);
  config::expect_range(out, path + ".sequences_max", sequences_max, 1, 1 << 16);
  config::expect_range(out, path + ".reply_tokens_max", reply_tokens_max, 1, 1 << 20);
  return out;
}

Result<LlmModel> LlmModel::load(const fs::path& directory, at::ScalarType dtype, LmEngine::Limits limits) try {
  LlmModel out;
  PARLANDO_TRY(const auto model, Step1::load(directory, dtype));
  out.engine = std::make_shared<LmEngine>(model, limits);
  PARLANDO_TRY(out.text, TextTokenizer::load(directory));
  PARLANDO_TRY(out.chat_sampling, sampling_of(directory, Sampling::chat()));
  PARLANDO_TRY(out.speech_sampling, sampling_of(directory, Sampling::tts()));
  out.chat_prompt = "适配用户的语言，用简短口语化的文字回答";  // default of the official demo
  out.prompts = TtsPrompts::official();
  if (fs::exists(directory / "prompts.json")) {
    PARLANDO_TRY(const auto text, read_file(directory / "prompts.json", 1u << 20));
    const auto p = json::parse(text);
    out.chat_prompt = p.value("chat", out.chat_prompt);
    out.prompts = {p.value("sys_prompt_with_spk", out.prompts.with_speaker), p.value("sys_prompt_wo_spk", out.prompts.without_speaker),
                   p.value("sys_prompt_for_rap", out.prompts.rap), p.value("sys_prompt_for_vocal", out.prompts.vocal)};
  }
  return out;
} catch (const json::exception& error) {
  return fail(Errc::bad_json, "a configuration of '{}' is malformed: {}", directory.string(), error.what());
}

Result<void> LlmModel::start_speech(const std::string& name, const Speech& speech) const {
  const auto& mode = speech.mode;
  if (mode != "with_speaker" && mode != "without_speaker" && mode != "rap" && mode != "vocal")
    return fail(Errc::invalid_argument, "mode '{}', expected with_speaker, without_speaker, rap or vocal", mode.substr(0, 40));
  auto system = mode == "vocal" ? prompts.vocal : mode == "rap" ? prompts.rap : mode == "without_speaker" ? prompts.without_speaker : prompts.with_speaker;
  if (const auto hole = system.find("{}"); hole != std::string::npos) system.replace(hole, 2, speech.speaker);
  for (const auto code : speech.codes)
    if (code < 0 || code >= kCodes) return fail(Errc::token_out_of_range, "code {} is outside 0…{}", code, kCodes - 1);
  const auto prompt = PromptBuilder(text, true).tts({system, speech.prompt_text, speech.text, {speech.codes.begin(), speech.codes.end()}});
  const auto limit = std::min(kSpeechLengthMax, engine->model().config().length_max), size = static_cast<std::int64_t>(prompt.size());
  if (size + kCodesPerGroup >= limit) return fail(Errc::invalid_argument, "the prompt has {} tokens, at most {} are possible", size, limit - kCodesPerGroup);
  PARLANDO_DO(engine->open(name));
  auto begun = engine->append(name, 0, prompt).and_then([&](std::int64_t length) {
    return engine->generate(name, length, {speech.sampling, limit - size, {kEot}, Priority::speech});
  });
  if (!begun) engine->release(name);
  return begun;
}

Result<std::unique_ptr<service::Core>> LlmCore::make(const LlmConfig& config) {
  PARLANDO_TRY(auto model, LlmModel::load(config.model, config.bf16 ? at::kBFloat16 : at::kFloat,
                                          {.cache_tokens = config.cache_tokens, .sequences = config.sequences_max}));
  // Ready means that one real token went through the model.
  auto& engine = *model.engine;
  const std::int32_t id = 1;
  PARLANDO_DO(engine.open("warm"));
  PARLANDO_DO(engine.append("warm", 0, {&id, 1}));
  PARLANDO_DO(engine.generate("warm", 1, {Sampling::greedy(), 1}));
  const auto events = engine.step();
  if (events.empty() || events.front().finish == Finish::error) return fail(Errc::internal, "the model of '{}' gave no token", config.model);
  engine.release("warm");
  return std::unique_ptr<service::Core>(std::make_unique<LlmCore>(config, std::move(model)));
}

void LlmCore::on_thread() { at::set_num_threads(config_.threads); }

void LlmCore::add_metrics(telemetry::Metrics& metrics) { tokens_ = metrics.counter("parlando_llm_tokens_generated_total", "Tokens generated"); }

void LlmCore::on_message(const std::string& peer, protocol::Message m, Time) {
  const auto name = name_of(peer, m.head);
  auto found = jobs_.find(name);
  const auto done = [&]() -> Result<void> {
    if (m.head.type == MessageType::open) {
      jobs_.erase(name);
      Job job;
      job.peer = peer, job.head = m.head;
      PARLANDO_DO(open(name, job, m));
      jobs_.emplace(name, std::move(job));
      return {};
    }
    if (m.head.type == MessageType::close || m.head.type == MessageType::cancel) {
      if (found != jobs_.end()) jobs_.erase(found);
      return {};
    }
    if (found == jobs_.end()) return fail(Errc::not_found, "stream {} is not open", m.head.stream);
    if (!found->second.chat) return fail(Errc::unsupported, "a synthesis takes no message of type {}", static_cast<int>(m.head.type));
    if (m.head.type == MessageType::append) return append(found->second, m);
    if (m.head.type == MessageType::generate) return found->second.chat->reply();
    return fail(Errc::unsupported, "llm takes no message of type {}", static_cast<int>(m.head.type));
  }();
  if (!done) answer_error(peer, m.head, done.error());
}

Result<void> LlmCore::open(const std::string& name, Job& job, const protocol::Message& m) {
  const auto body = protocol::body_of(m);
  const auto kind = protocol::text_in(body, "kind");
  if (kind == "chat") {
    // The history may be longer than a body: it comes as the payload.
    json history = json::array();
    if (!m.payload.empty())
      history =
          json::parse(reinterpret_cast<const char*>(m.payload.data()), reinterpret_cast<const char*>(m.payload.data()) + m.payload.size(), nullptr, false);
    if (!history.is_array() || history.size() > kHistoryMessagesMax)
      return fail(Errc::bad_json, "the history is not a JSON array of at most {} messages", kHistoryMessagesMax);
    PARLANDO_TRY(auto past, PromptBuilder::messages_of(history));
    std::vector<Message> messages{{"system", protocol::text_in(body, "system").empty() ? model_.chat_prompt : protocol::text_in(body, "system")}};
    messages.insert(messages.end(), std::make_move_iterator(past.begin()), std::make_move_iterator(past.end()));
    auto sampling = model_.chat_sampling;
    sampling.seed = static_cast<std::uint64_t>(protocol::integer_in(body, "seed", 1));
    PARLANDO_TRY(job.chat, Chat::open(model_.engine, model_.text, name, std::move(messages), {.sampling = sampling, .tokens_max = config_.reply_tokens_max}));
    return {};
  }
  if (kind != "speech") return fail(Errc::invalid_argument, "kind '{}', expected chat or speech", kind.substr(0, 40));
  const auto voice = from_bytes<std::int32_t>(m.payload);
  auto sampling = model_.speech_sampling;
  sampling.seed = static_cast<std::uint64_t>(protocol::integer_in(body, "seed", 1));
  PARLANDO_DO(model_.start_speech(name, {protocol::text_in(body, "mode"), protocol::text_in(body, "speaker"), protocol::text_in(body, "prompt_text"),
                                         protocol::text_in(body, "text"), voice, sampling}));
  job.speech = std::make_unique<SpeechGroups>();
  job.speech->engine = model_.engine, job.speech->name = name;
  return {};
}

Result<void> LlmCore::append(Job& job, const protocol::Message& m) {
  const auto body = protocol::body_of(m);
  if (body.contains("first_group")) {
    if (!body["first_group"].is_number_integer())
      return fail(Errc::invalid_argument, "first_group is {}, expected a whole number", body["first_group"].dump().substr(0, 40));
    return job.chat->hear(body["first_group"].get<std::int64_t>(), from_bytes<std::int32_t>(m.payload));
  }
  if (body.contains("tool_result")) return job.chat->tool_result(body["tool_result"].dump());
  if (body.contains("text")) return job.chat->say(protocol::text_in(body, "text"));
  return fail(Errc::invalid_argument, "append needs first_group, text or tool_result");
}

bool LlmCore::work(Time) {
  if (model_.engine->idle()) return false;
  for (const auto& event : model_.engine->step()) on_token(event);
  return !model_.engine->idle();
}

void LlmCore::on_token(const TokenEvent& event) {
  const auto found = jobs_.find(event.sequence);
  if (found == jobs_.end()) return;
  auto& job = found->second;
  if (event.id >= 0) tokens_.add();
  if (job.chat) {
    const auto events = job.chat->on(event);
    if (!events) return answer_error(job.peer, job.head, events.error());
    static constexpr const char* kKinds[] = {"transcript", "text", "tool_call", "done"};
    for (const auto& e : *events)
      answer(job.peer, job.head, MessageType::text, protocol::dump(json{{"kind", kKinds[static_cast<int>(e.kind)]}, {"text", e.text}}));
    return;
  }
  if (event.finish == Finish::error) return answer_error(job.peer, job.head, {Errc::internal, event.error});
  auto& s = *job.speech;
  if (event.id >= 0 && event.id != kEot)
    for (const auto code : s.collector.push(event.id - model_.text->audio_base())) s.ready.push_back(code);
  const bool last = event.finish != Finish::none;
  if (s.ready.empty() && !last) return;
  answer(job.peer, job.head, MessageType::tokens, fmt::format(R"({{"first_group":{},"last":{}}})", s.groups, last),
         to_bytes(std::span<const std::int32_t>(s.ready)));
  s.groups += static_cast<std::int64_t>(s.ready.size()) / kCodesPerGroup;
  s.ready.clear();
  if (last) jobs_.erase(found);
}

void LlmCore::on_peer(const transport::Peer& peer, bool up, Time) {
  if (!up) std::erase_if(jobs_, [&](const auto& j) { return j.second.peer == peer.instance; });
}

}  // namespace parlando::llm
