#include "services/llm/llm_core.hpp"

#include <cstdlib>

#include <nlohmann/json.hpp>

#include "common/base/codes.hpp"
#include "common/base/mapped_file.hpp"
#include "common/base/nesting.hpp"
#include "common/base/pcm.hpp"
#include "common/nn/threads.hpp"
#include "common/telemetry/log.hpp"
#include "kernels/team/pool.hpp"
#include "kernels/vector/isa.hpp"

namespace parlando::llm {
namespace fs = std::filesystem;
using nlohmann::json;
using protocol::MessageType;

namespace {
constexpr std::int64_t kSpeechLengthMax = 8192;  // includes the prompt, as in the official call
constexpr std::size_t kHistoryMessagesMax = 2000;
constexpr std::size_t kStopsMax = 4;
constexpr int kThousand = 1000;

/// Defaults of the official calls, overridden by the checkpoint's generation_config.json.
Result<Sampling> sampling_of(const fs::path& directory, Sampling defaults) {
  if (!fs::exists(directory / "generation_config.json")) return defaults;
  PARLANDO_TRY(const auto text, read_file(directory / "generation_config.json", 1u << 20));
  const auto config = json::parse(text, nullptr, false);
  if (!config.is_object())
    return fail(Errc::bad_json, "'{}/generation_config.json' is not a JSON object", directory.string());
  if (config.value("do_sample", true) == false) return Sampling::greedy();
  if (config.contains("temperature")) defaults.temperature = config["temperature"].get<double>();
  if (config.contains("top_k")) defaults.top_k = config["top_k"].get<std::int64_t>();
  if (config.contains("top_p")) defaults.top_p = config["top_p"].get<double>();
  if (config.contains("repetition_aware")) defaults.repetition_aware = config["repetition_aware"].get<bool>();
  return defaults;
}

std::string dumped(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

/// Calls and results in a history, as messages of the model. Those of former turns stand in their answers' `calls`, and
/// only models that are told of tools know them; those of items are the exchange that is to be answered.
json with_calls(const json& history, const Step1Config& config) {
  const bool all = !config.tool_prompt.empty();
  std::size_t answered = 0;  // behind the last thing that a user said
  for (std::size_t i = 0; i < history.size(); ++i)
    if (history[i].is_object() && history[i].value("role", json()) == "user") answered = i;
  auto out = json::array();
  for (std::size_t i = 0; i < history.size(); ++i) {
    auto message = history[i];
    const bool told = all || (config.tool_calls && i >= answered);
    if (!message.is_object()) return history;
    if (message.value("role", json()) == "tool" && !told) continue;
    const auto calls = message.value("calls", json::array());
    message.erase("calls");
    if (!calls.is_array() || calls.empty()) {
      out.push_back(std::move(message));
      continue;
    }
    const bool of_turn = std::any_of(calls.begin(), calls.end(), [](const json& c) { return c.contains("result"); });
    std::string written;
    for (const auto& call : calls)
      if (call.is_object())
        written += "<|CALL_START|>" +
                   dumped({{"name", call.value("name", json())}, {"arguments", call.value("arguments", json())}}) +
                   "<|CALL_END|>";
    if (of_turn ? all : told) {
      out.push_back({{"role", "assistant"}, {"content", written}});
      for (const auto& call : calls)
        if (of_turn) out.push_back({{"role", "tool"}, {"content", dumped(call.value("result", json()))}});
    }
    const bool empty = !message.contains("content") || message["content"] == "";
    if (of_turn || !empty) out.push_back(std::move(message));
  }
  return out;
}

/// What a client has chosen, in the place of the model's own. @error Errc::invalid_argument naming it
Result<Chat::Options> options_of(const protocol::OpenChat& open, const Sampling& own, int tokens_max) {
  Chat::Options out{.sampling = own, .tokens_max = tokens_max};
  out.sampling.seed = open.seed;
  if (open.temperature_milli >= 0) out.sampling.temperature = static_cast<double>(open.temperature_milli) / kThousand;
  if (open.top_p_milli >= 0) out.sampling.top_p = std::max(1, open.top_p_milli) / static_cast<double>(kThousand);
  if (open.top_k == 0) out.sampling.top_k.reset();
  if (open.top_k > 0) out.sampling.top_k = open.top_k;
  if (const auto problem = out.sampling.problem()) return tl::make_unexpected(*problem);
  if (open.tokens_max == 0) return fail(Errc::invalid_argument, "tokens_max is 0, expected 1 or more");
  if (open.tokens_max > 0) out.tokens_max = std::min<std::int64_t>(tokens_max, open.tokens_max);
  if (open.tool_choice != "auto" && open.tool_choice != "none")
    return fail(Errc::unsupported, "tool_choice is '{}': a model cannot be made to call a tool, expected auto or none",
                open.tool_choice);
  out.calls_tools = open.tool_choice != "none";
  const auto stop = json::parse(open.stop.text, nullptr, false);
  if (stop.is_null()) return out;
  if (!stop.is_array() || stop.size() > kStopsMax)
    return fail(Errc::invalid_argument, "stop is no array of at most {} texts", kStopsMax);
  for (const auto& text : stop) {
    if (!text.is_string() || text.get_ref<const std::string&>().empty())
      return fail(Errc::invalid_argument, "stop holds {}, expected a text", text.dump().substr(0, 40));
    out.stop.push_back(text.get<std::string>());
  }
  return out;
}

std::string name_of(const std::string& peer, SessionId session, StreamId stream) {
  return fmt::format("{}/{}/{}", peer, session.text(), stream.value);
}
std::string name_of(const std::string& peer, const protocol::Envelope& head) {
  return name_of(peer, head.session, head.stream);
}
/// What belongs to no session is shared with nobody.
std::optional<SessionId> shared_by(SessionId session) {
  return session == SessionId{} ? std::nullopt : std::optional(session);
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

LlmCore::Job::Job(std::string caller, const protocol::Message& first)
    : peer(std::move(caller)), head(first.head), deadline(first.deadline) {}
LlmCore::Job::~Job() = default;
LlmCore::Job::Job(Job&&) noexcept = default;
LlmCore::Job& LlmCore::Job::operator=(Job&&) noexcept = default;

std::vector<config::Problem> LlmConfig::problems(const std::string& path) const {
  std::vector<config::Problem> out;
  config::expect_range(out, path + ".threads", threads, 1, 1024);
  config::expect_range(out, path + ".cache_tokens", cache_tokens, 256, 1 << 24);
  config::expect_range(out, path + ".sequences_max", sequences_max, 1, 1 << 16);
  config::expect_range(out, path + ".conversation_tokens", conversation_tokens, 1, 1 << 24);
  config::expect_range(out, path + ".reply_tokens_max", reply_tokens_max, 1, 1 << 20);
  config::expect_range(out, path + ".prefix_permille", prefix_permille, 0, 1000);
  config::expect_range(out, path + ".prefix_idle_ms", prefix_idle_ms, 1000, 86'400'000);
  config::expect_range(out, path + ".step_ms_max", step_ms_max, 1, 60'000);
  config::expect_range(out, path + ".ranks", ranks, 1, 64);
  return out;
}

Result<LlmModel> LlmModel::load(const fs::path& directory, at::ScalarType dtype, LmEngine::Limits limits, int ranks,
                                int threads, const std::string& program) {
  LlmModel out;
  if (ranks > 1) {
    const auto format = dtype == at::kBFloat16 ? WeightFormat::bf16 : WeightFormat::f32;
    const auto blocks = (limits.cache_tokens + kBlockTokens - 1) / kBlockTokens;
    PARLANDO_TRY(auto group, RankBackend::start({directory, format, ranks, threads, blocks, program}));
    out.group = group.get();
    const auto part = group->part();
    out.engine = std::make_shared<LmEngine>(part, limits, std::make_shared<SteadyClock>(), std::move(group));
  } else {
    PARLANDO_TRY(const auto model, Step1::load(directory, dtype));
    out.engine = std::make_shared<LmEngine>(model, limits);
  }
  PARLANDO_DO(out.read_words(directory));
  return out;
}

Result<void> LlmModel::read_words(const fs::path& directory) try {
  PARLANDO_TRY(text, TextTokenizer::load(directory));
  PARLANDO_TRY(chat_sampling, sampling_of(directory, Sampling::chat()));
  PARLANDO_TRY(speech_sampling, sampling_of(directory, Sampling::tts()));
  chat_prompt = "适配用户的语言，用简短口语化的文字回答";  // default of the official demo
  prompts = TtsPrompts::official();
  if (fs::exists(directory / "prompts.json")) {
    PARLANDO_TRY(const auto words, read_file(directory / "prompts.json", 1u << 20));
    const auto p = json::parse(words);
    chat_prompt = p.value("chat", chat_prompt);
    prompts = {p.value("sys_prompt_with_spk", prompts.with_speaker),
               p.value("sys_prompt_wo_spk", prompts.without_speaker), p.value("sys_prompt_for_rap", prompts.rap),
               p.value("sys_prompt_for_vocal", prompts.vocal)};
  }
  return {};
} catch (const json::exception& error) {
  return fail(Errc::bad_json, "a configuration of '{}' is malformed: {}", directory.string(), error.what());
}

Result<void> LlmModel::start_speech(const std::string& name, const Speech& speech) const {
  const auto& mode = speech.mode;
  if (mode != "with_speaker" && mode != "without_speaker" && mode != "rap" && mode != "vocal")
    return fail(Errc::invalid_argument, "mode '{}', expected with_speaker, without_speaker, rap or vocal",
                mode.substr(0, 40));
  const auto& system = mode == "vocal"             ? prompts.vocal
                       : mode == "rap"             ? prompts.rap
                       : mode == "without_speaker" ? prompts.without_speaker
                                                   : prompts.with_speaker;
  const auto codes = std::min<std::int32_t>(kCodes, text->audio_count());
  for (const auto code : speech.codes)
    if (code < 0 || code >= codes) return fail(Errc::token_out_of_range, "code {} is outside 0…{}", code, codes - 1);
  std::size_t voice_ids = 0;
  const auto prompt =
      PromptBuilder(text, true)
          .tts({system, speech.prompt_text, speech.text, {speech.codes.begin(), speech.codes.end()}, speech.speaker},
               {}, &voice_ids);
  const auto limit = std::min(kSpeechLengthMax, engine->model().config().length_max),
             size = static_cast<std::int64_t>(prompt.size());
  if (size + kCodesPerGroup >= limit)
    return fail(Errc::invalid_argument, "the prompt has {} tokens, at most {} are possible", size,
                limit - kCodesPerGroup);
  PARLANDO_DO(engine->open(name));
  const auto voice = static_cast<std::int64_t>(voice_ids);
  Beginning whose{voice, speech.session, voice};  // nobody says the same text twice
  if (!speech.operator_voice) {
    // Of a user's voice the operator's part ends where its name may have changed an id.
    const auto nameless = PromptBuilder(text, true).tts({system, {}, {}, {}, std::string()});
    whose.operators = std::min<std::int64_t>(
        voice, std::mismatch(prompt.begin(), prompt.end(), nameless.begin(), nameless.end()).first - prompt.begin());
  }
  engine->share(name, whose);
  auto begun = engine->append(name, 0, prompt).and_then([&](std::int64_t length) {
    return engine->generate(name, length,
                            {speech.sampling, limit - size, {engine->model().config().eos}, Priority::speech});
  });
  if (begun) return {};
  engine->release(name);
  return tl::make_unexpected(std::move(begun).error());
}

Result<std::unique_ptr<service::Core>> LlmCore::make(const LlmConfig& config) {
  if (kernels::tiles_refused())
    telemetry::log(telemetry::Level::warning,
                   "llm computes without tiles (AMX): the system does not let this process use them instruction_set={}",
                   kernels::name(kernels::isa()));
  // A rank is a second start of this program.
  std::error_code ignored;
  const auto program = fs::read_symlink("/proc/self/exe", ignored).filename().string();
  if (config.ranks > 1 && config.rank_processes && !program.starts_with("parlando-llm"))
    return fail(Errc::invalid_argument, "rank_processes: '{}' cannot start ranks, expected parlando-llm (or threads)",
                program);
  nn::use_threads(config.threads);  // loading computes, too
  PARLANDO_TRY(auto model,
               LlmModel::load(config.model, config.bf16 ? at::kBFloat16 : at::kFloat,
                              {.cache_tokens = config.cache_tokens,
                               .sequences = config.sequences_max,
                               .prefix_blocks = config.cache_tokens / kBlockTokens * config.prefix_permille / kThousand,
                               .prefix_idle = milliseconds(config.prefix_idle_ms),
                               .step_max = milliseconds(config.step_ms_max)},
                              config.ranks, config.threads, config.rank_processes ? "/proc/self/exe" : std::string()));
  // Ready means that one real token went through the model.
  auto& engine = *model.engine;
  const std::int32_t id = 1;
  PARLANDO_DO(engine.open("warm"));
  PARLANDO_DO(engine.append("warm", 0, {&id, 1}));
  PARLANDO_DO(engine.generate("warm", 1, {Sampling::greedy(), 1}));
  const auto events = engine.step();
  if (events.empty() || events.front().finish == Finish::error)
    return fail(Errc::internal, "the model of '{}' gave no token", config.model);
  engine.release("warm");
  return std::unique_ptr<service::Core>(std::make_unique<LlmCore>(config, std::move(model)));
}

void LlmCore::on_thread() { nn::use_threads(config_.threads); }

void LlmCore::add_metrics(telemetry::Metrics& metrics) {
  tokens_ = metrics.counter("parlando_llm_tokens_generated_total", "Tokens generated");
  fallbacks_ = metrics.counter("parlando_llm_fallback_replies_total",
                               "Replies taken from the checkpoint's fallback_replies because the model gave none");
  bad_logits_ =
      metrics.counter("parlando_llm_bad_logits_total", "Generations ended because their logits were no numbers");
  gave_way_ = metrics.counter("parlando_llm_cache_refused_total", "Generations ended by a full key/value cache");
  prefix_lookups_ =
      metrics.counter("parlando_llm_prefix_lookups_total", "Prompts, or parts, whose beginning was looked for");
  prefix_hit_tokens_ = metrics.counter("parlando_llm_prefix_hit_tokens_total",
                                       "Tokens that need not be computed since their beginning was there");
  prefix_evictions_ = metrics.counter("parlando_llm_prefix_evictions_total",
                                      "Blocks of beginnings that gave way to others or to a full cache");
  prefix_expired_ =
      metrics.counter("parlando_llm_prefix_expired_total", "Blocks of beginnings that nobody had used for long");
  prefix_forgotten_ =
      metrics.counter("parlando_llm_prefix_forgotten_total",
                      "Blocks of beginnings of sessions that are over, or that may have made logits no numbers");
  prefix_blocks_ = metrics.gauge("parlando_llm_prefix_blocks", "Blocks of beginnings that stay computed");
  cache_blocks_ = metrics.gauge("parlando_llm_cache_blocks", "Blocks of the key/value cache");
  cache_blocks_free_ = metrics.gauge("parlando_llm_cache_blocks_free",
                                     "Of these nobody's; those of beginnings give way when it is full");
  parked_ =
      metrics.counter("parlando_llm_cache_parked_total", "Waiting sequences whose blocks a full key/value cache took");
}

/// Sequences that are left, as far as the cache has room for a usual conversation each. With a full cache there is one
/// as long as a sequence is left: who comes waits for blocks, which is better than no answer where nobody else is.
std::int64_t LlmCore::slots() const {
  const auto sequences = config_.sequences_max - load();
  const auto usual = (config_.conversation_tokens + kBlockTokens - 1) / kBlockTokens;
  return std::min(sequences, std::max<std::int64_t>(1, model_.engine->blocks_left() / usual));
}

void LlmCore::on_message(const std::string& peer, protocol::Message m, Time) {
  const auto head = m.head;
  const service::CallerStream key{peer, head.key()};
  const auto found = jobs_.find(name_of(peer, head));
  if (head.type == MessageType::close) {
    if (found != jobs_.end()) jobs_.erase(found);
    return ended_.erase(key);
  }
  const bool is_open = found != jobs_.end();
  if (!is_open && ended_.contains(key)) return;
  const auto done = [&]() -> Result<void> {
    const bool opens = head.type == MessageType::open_chat || head.type == MessageType::fork_chat ||
                       head.type == MessageType::synthesise;
    if (opens && is_open) return fail(Errc::invalid_argument, "stream {} is open already", head.stream.value);
    if (head.type == MessageType::open_chat) return open_chat(peer, std::move(m));
    if (head.type == MessageType::fork_chat) return fork_chat(peer, std::move(m));
    if (head.type == MessageType::synthesise) return open_speech(peer, std::move(m));
    if (head.type == MessageType::erase && !is_open) {
      model_.engine->forget(head.session);
      return {};
    }
    if (!is_open) return fail(Errc::not_found, "stream {} is not open", head.stream.value);
    if (!found->second.chat) return fail(Errc::unsupported, "a synthesis takes no {}", to_string(head.type));
    return follow(found->second, m);
  }();
  if (done) return;
  answer_error(peer, head, done.error());
  if (is_open) jobs_.erase(found);
  ended_.add(key);
}

/// An answer that its caller does not take leaves a hole: nothing behind it would make sense.
void LlmCore::on_refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time) {
  const auto found = jobs_.find(name_of(peer, head));
  if (found == jobs_.end()) return;
  end_with(found, error);
}

/// Its caller is told why; nothing further is said or taken in on the stream.
void LlmCore::end_with(Jobs::iterator job, const Error& error) {
  answer_error(job->second.peer, job->second.head, error);
  ended_.add({job->second.peer, job->second.head.key()});
  jobs_.erase(job);
}

Result<void> LlmCore::open_chat(const std::string& peer, protocol::Message m) {
  Job job(peer, m);
  PARLANDO_TRY(const auto open, protocol::read<protocol::OpenChat>(m));
  const std::string_view text(reinterpret_cast<const char*>(open.payload.data()), open.payload.size());
  const auto history = text.empty()                                        ? json::array()
                       : nested_deeper_than(text, protocol::kBodyDepthMax) ? json()
                                                                           : json::parse(text, nullptr, false);
  if (!history.is_array() || history.size() > kHistoryMessagesMax)
    return fail(Errc::bad_json, "the history is not a JSON array of at most {} messages", kHistoryMessagesMax);
  const auto& config = model_.engine->model().config();
  PARLANDO_TRY(auto past, PromptBuilder::messages_of(with_calls(history, config)));
  PARLANDO_TRY(auto options, options_of(open, model_.chat_sampling, config_.reply_tokens_max));
  const bool own = open.system.empty();
  std::vector<Message> messages{{"system", own ? model_.chat_prompt : open.system, own}};
  if (!config.tool_prompt.empty() && open.tools.text != "null" && options.calls_tools)
    messages.push_back({config.tool_prompt, open.tools.text});
  messages.insert(messages.end(), std::make_move_iterator(past.begin()), std::make_move_iterator(past.end()));
  options.operator_system = own || open.operator_system;
  options.session = shared_by(job.head.session);
  const auto name = name_of(peer, job.head);
  PARLANDO_TRY(job.chat, Chat::open(model_.engine, model_.text, name, std::move(messages), std::move(options)));
  jobs_.emplace(name, std::move(job));
  return {};
}

/// A chat that begins as a copy of another one of this caller and session.
Result<void> LlmCore::fork_chat(const std::string& peer, protocol::Message m) {
  Job job(peer, m);
  PARLANDO_TRY(const auto fork, protocol::read<protocol::ForkChat>(m));
  const auto from = jobs_.find(name_of(peer, job.head.session, fork.from));
  if (from == jobs_.end() || !from->second.chat)
    return fail(Errc::not_found, "stream {} is no open chat of this session", fork.from.value);
  const auto name = name_of(peer, job.head);
  PARLANDO_TRY(job.chat, from->second.chat->fork(name));
  jobs_.emplace(name, std::move(job));
  return {};
}

Result<void> LlmCore::open_speech(const std::string& peer, protocol::Message m) {
  Job job(peer, m);
  PARLANDO_TRY(const auto ask, protocol::read<protocol::Synthesise>(m));
  const auto voice = from_bytes<std::int32_t>(ask.payload);
  auto sampling = model_.speech_sampling;
  sampling.seed = ask.seed;
  const auto name = name_of(peer, job.head);
  const auto mode = protocol::names_of<protocol::SpeechMode>()[static_cast<std::size_t>(ask.mode)];
  PARLANDO_DO(model_.start_speech(name, {std::string(mode), ask.speaker, ask.prompt_text, ask.text, voice, sampling,
                                         ask.operator_voice, shared_by(job.head.session)}));
  model_.engine->due(name, job.deadline);
  job.speech = std::make_unique<SpeechGroups>();
  job.speech->engine = model_.engine;
  job.speech->name = name;
  jobs_.emplace(name, std::move(job));
  return {};
}

/// A further message of a chat.
Result<void> LlmCore::follow(Job& job, protocol::Message& m) {
  switch (m.head.type) {
    case MessageType::hear: {
      PARLANDO_TRY(const auto hear, protocol::read<protocol::Hear>(m));
      return job.chat->hear(hear.first_group, from_bytes<std::int32_t>(hear.payload));
    }
    case MessageType::say: {
      PARLANDO_TRY(auto say, protocol::read<protocol::Say>(m));
      return job.chat->say(std::move(say.text));
    }
    case MessageType::go_on: {
      PARLANDO_TRY(const auto go_on, protocol::read<protocol::GoOn>(m));
      return job.chat->go_on(from_bytes<std::int32_t>(go_on.payload));
    }
    case MessageType::generate: {
      job.deadline = m.deadline;
      PARLANDO_TRY(const auto ask, protocol::read<protocol::Generate>(m));
      const auto wanted = ask.transcribe     ? Chat::Wanted::transcript
                          : ask.as_it_stands ? Chat::Wanted::as_it_stands
                                             : Chat::Wanted::answer;
      PARLANDO_TRY(auto events, job.chat->reply(wanted, ask.background ? Priority::aside : Priority::reply));
      model_.engine->due(name_of(job.peer, job.head), job.deadline);
      tell(job, std::move(events));
      return {};
    }
    case MessageType::tool_result: {
      job.deadline = m.deadline;
      model_.engine->due(name_of(job.peer, job.head), job.deadline);
      PARLANDO_TRY(const auto result, protocol::read<protocol::ToolResult>(m));
      PARLANDO_TRY(auto events, job.chat->tool_result(result.result.text));
      tell(job, std::move(events));
      return {};
    }
    default:
      return fail(Errc::unsupported, "llm takes no {}", to_string(m.head.type));
  }
}

void LlmCore::tell(Job& job, std::vector<ChatEvent> events) {
  static constexpr protocol::TextKind kKinds[] = {protocol::TextKind::transcript, protocol::TextKind::text,
                                                  protocol::TextKind::tool_call, protocol::TextKind::done};
  for (auto& e : events) {
    if (e.fallback) fallbacks_.add();
    if (e.kind == ChatEvent::Kind::done) {
      job.answered = true;
      const auto& usage = job.chat->usage();
      e.text = dumped({{"finish", usage.finish == Finish::length ? "length" : "stop"},
                       {"prompt_tokens", usage.prompt_tokens},
                       {"cached_tokens", usage.cached_tokens},
                       {"output_tokens", usage.output_tokens}});
    }
    if (e.kind == ChatEvent::Kind::tool_call && (e.left > 0 || e.past)) {
      auto call = json::parse(e.text);
      if (e.left > 0) call["left"] = e.left;
      if (e.past) call["past"] = true;
      e.text = dumped(call);
    }
    answer(job.peer, job.head,
           protocol::Text{kKinds[static_cast<int>(e.kind)], e.at, std::move(e.text),
                          to_bytes(std::span<const std::int32_t>(e.ids))});
  }
}

/// Nobody waits for these any more: their budget is spent.
void LlmCore::expire(Time now) {
  for (auto job = jobs_.begin(); job != jobs_.end();) {
    const auto at = job++;
    if (at->second.deadline > now || at->second.answered) continue;
    end_with(at, {Errc::deadline_exceeded, "the budget was spent before the answer was complete"});
  }
}

/// Its parts hold what nobody else has: the process ends, an engine in one process as well (as when a service of it
/// stands still); who started it starts all ranks again together, and sessions go on at another replica meanwhile.
void LlmCore::end_with_group() const {
  if (model_.group == nullptr || model_.group->broken().empty()) return;
  telemetry::log(telemetry::Level::error, "llm ends, its ranks are no group any more: {}", model_.group->broken());
  std::_Exit(kGroupBroken);
}

void LlmCore::on_tick(Time /*now*/) {
  end_with_group();
  model_.engine->expire_prefixes();
  count_prefixes();
}

void LlmCore::count_prefixes() {
  const auto& prefixes = model_.engine->prefixes();
  const auto& counts = prefixes.counts();
  prefix_lookups_.set_at_least(static_cast<double>(counts.lookups));
  prefix_hit_tokens_.set_at_least(static_cast<double>(counts.hit_tokens));
  prefix_evictions_.set_at_least(static_cast<double>(counts.evicted));
  prefix_expired_.set_at_least(static_cast<double>(counts.expired));
  prefix_forgotten_.set_at_least(static_cast<double>(counts.forgotten));
  prefix_blocks_.set(static_cast<double>(prefixes.entries()));
  cache_blocks_.set(static_cast<double>(model_.engine->blocks_total()));
  cache_blocks_free_.set(static_cast<double>(model_.engine->blocks_free()));
}

bool LlmCore::work(Time now) {
  expire(now);
  if (model_.engine->idle()) return false;
  const kernels::Pool::Busy busy(kernels::Pool::of_process());
  const auto events = model_.engine->step();
  end_with_group();
  for (const auto& event : events) on_token(event);
  const auto& counts = model_.engine->counts();
  bad_logits_.set_at_least(static_cast<double>(counts.bad_logits)),
      gave_way_.set_at_least(static_cast<double>(counts.gave_way));
  parked_.set_at_least(static_cast<double>(counts.parked));
  count_prefixes();
  return !model_.engine->idle();
}

void LlmCore::on_token(const TokenEvent& event) {
  const auto found = jobs_.find(event.sequence);
  if (found == jobs_.end()) return;
  auto& job = found->second;
  if (event.id >= 0) tokens_.add();
  if (job.chat) {
    auto events = job.chat->on(event);
    if (!events) return end_with(found, events.error());
    return tell(job, *std::move(events));
  }
  if (event.error) return end_with(found, *event.error);
  auto& s = *job.speech;
  if (event.id >= 0 && event.id != model_.engine->model().config().eos)
    for (const auto code : s.collector.push(event.id - model_.text->audio_base())) s.ready.push_back(code);
  const bool last = event.finish != Finish::none;
  if (s.ready.empty() && !last) return;
  const auto first = s.groups;
  s.groups += static_cast<std::int64_t>(s.ready.size()) / kCodesPerGroup;
  answer(job.peer, job.head, protocol::Tokens{first, s.groups, last, to_bytes(std::span<const std::int32_t>(s.ready))});
  s.ready.clear();
  if (!last) return;
  ended_.add({job.peer, job.head.key()});
  jobs_.erase(found);
}

void LlmCore::on_peer(const transport::Peer& peer, transport::PeerState state, Time) {
  if (state != transport::PeerState::down) return;
  std::erase_if(jobs_, [&](const auto& j) { return j.second.peer == peer.instance; });
  ended_.erase_peer(peer.instance);
}

}  // namespace parlando::llm
