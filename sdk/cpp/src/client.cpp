#include <parlando/client.hpp>

#include "common/base/random_id.hpp"
#include "common/transport/zmq/curve.hpp"
#include "sdk/cpp/src/core.hpp"

namespace parlando::sdk {
using nlohmann::json;

namespace {

constexpr milliseconds kLook{200};
constexpr std::size_t kOutputBytesMax = 60000;  // of a tool, as gateways take it

void check(const Result<void>& result) {
  if (!result) throw Error(std::string(to_string(result.error().code)), result.error().message);
}

/// An object that a user has written.
json object_of(std::string_view text, const char* what) {
  auto out = text.empty() ? json::object() : json::parse(text, nullptr, false);
  if (!out.is_object()) throw Error("invalid_argument", fmt::format("{} is no JSON object", what));
  return out;
}
json fields_of(std::string_view event) {
  auto out = json::parse(event, nullptr, false);
  return out.is_object() ? out : json::object();
}

}  // namespace

Keys Keys::read(const std::string& public_file, const std::string& secret_file, const std::string& server_file) {
  Keys out;
  const std::pair<const std::string*, std::string*> files[] = {
      {&public_file, &out.public_key}, {&secret_file, &out.secret_key}, {&server_file, &out.server_key}};
  for (const auto& [file, key] : files) {
    auto read = transport::curve::read_key(*file);
    if (!read) throw Error(std::string(to_string(read.error().code)), read.error().message);
    *key = *std::move(read);
  }
  return out;
}

std::string Event::text(std::string_view name) const {
  const auto fields = fields_of(json);
  const auto found = fields.find(name);
  return found != fields.end() && found->is_string() ? found->get<std::string>() : std::string();
}
std::int64_t Event::number(std::string_view name, std::int64_t otherwise) const {
  const auto fields = fields_of(json);
  const auto found = fields.find(name);
  return found != fields.end() && found->is_number() ? found->get<std::int64_t>() : otherwise;
}
bool Event::flag(std::string_view name) const {
  const auto fields = fields_of(json);
  const auto found = fields.find(name);
  return found != fields.end() && found->is_boolean() && found->get<bool>();
}

// ------------------------------------------------------------------------------------------------ client

Client::Client(ClientOptions options) : core_(std::make_shared<Core>(std::move(options))) {}
Client::Client(Client&&) noexcept = default;
Client& Client::operator=(Client&&) noexcept = default;
Client::~Client() { close(); }
void Client::close() {
  if (core_) core_->close();
}

Conversation Client::open(std::string_view settings, std::vector<Tool> tools, milliseconds timeout) {
  auto opening = object_of(settings, "settings");
  opening["type"] = "open";
  for (const auto& tool : tools)
    opening["tools"].push_back({{"name", tool.name},
                                {"description", tool.description},
                                {"parameters", object_of(tool.parameters, "parameters of a tool")}});
  return begin(opening.dump(), std::move(tools), timeout);
}

Conversation Client::resume(std::string_view token, std::vector<Tool> tools, milliseconds timeout) {
  auto opening = object_of(token, "token");
  opening["type"] = "resume";
  return begin(opening.dump(), std::move(tools), timeout);
}

std::int64_t Client::erase(std::string_view token, milliseconds timeout) {
  if (!core_) throw Error("cancelled", "the client is closed");
  auto opening = object_of(token, "token");
  opening["type"] = "erase";
  Conversation asking(core_, core_->begin(std::move(opening)), {});
  return asking.wait_erased(timeout);
}

Conversation Client::begin(std::string opening, std::vector<Tool> tools, milliseconds timeout) {
  if (!core_) throw Error("cancelled", "the client is closed");
  auto talk = core_->begin(json::parse(opening));
  Conversation out(core_, talk, std::move(tools));
  std::unique_lock lock(core_->mutex);
  const auto end = core_->clock.now() + timeout;
  while (!talk->was_opened() && !talk->is_ended()) {
    const auto now = core_->clock.now();
    if (now >= end) {
      const bool refused = core_->refused();
      talk->close(false);
      if (refused) throw Error("invalid_argument", "the gateways refuse this client: its key, its name or its version");
      throw Error("unavailable", fmt::format("no gateway has answered for {} ms", timeout.count()));
    }
    core_->changed.wait_for(lock, std::min<Time::duration>(kLook, end - now));
  }
  if (talk->was_opened()) return out;
  throw talk->failure().value_or(Error("cancelled", "the client is closed"));
}

// ------------------------------------------------------------------------------------------------ conversation

Conversation::Conversation(std::shared_ptr<Core> core, std::shared_ptr<Talk> talk, std::vector<Tool> tools)
    : core_(std::move(core)), talk_(std::move(talk)), tools_(std::move(tools)) {}
Conversation::Conversation(Conversation&&) noexcept = default;
Conversation& Conversation::operator=(Conversation&& other) noexcept {
  if (this == &other) return *this;
  close();
  core_ = std::move(other.core_);
  talk_ = std::move(other.talk_);
  tools_ = std::move(other.tools_);
  return *this;
}
Conversation::~Conversation() { close(); }

std::string Conversation::session() const {
  const std::lock_guard lock(core_->mutex);
  return talk_->session();
}
std::int32_t Conversation::rate() const {
  const std::lock_guard lock(core_->mutex);
  return talk_->rate();
}
std::string Conversation::endpoint() const { return core_->endpoint_of(*talk_); }
Metrics Conversation::metrics() const {
  const std::lock_guard lock(core_->mutex);
  return talk_->metrics();
}
std::string Conversation::resume_token() const {
  const std::lock_guard lock(core_->mutex);
  return talk_->resume_token().dump();
}

std::string Conversation::session_token() const {
  const std::lock_guard lock(core_->mutex);
  if (talk_->session_token().empty()) throw Error("unsupported", "the gateway has given no token of the session");
  return json{{"session", talk_->session()}, {"token", talk_->session_token()}}.dump();
}

void Conversation::send_audio(std::span<const std::int16_t> samples, milliseconds timeout) {
  const auto end = core_->clock.now() + timeout;
  std::unique_lock lock(core_->mutex);
  while (!samples.empty()) {
    const auto part = samples.first(std::min(samples.size(), Talk::kMessageSamples));
    const auto heard = talk_->hear(part);
    if (heard) {
      samples = samples.subspan(part.size());
      continue;
    }
    if (heard.error().code != Errc::overloaded || talk_->is_ended() || core_->clock.now() >= end) check(heard);
    core_->changed.wait_for(lock, kLook);
  }
}

namespace {
void say(Core& core, Talk& talk, json fields) {
  const std::lock_guard lock(core.mutex);
  check(talk.say(std::move(fields), core.clock.now()));
}
}  // namespace

void Conversation::flush() { sdk::say(*core_, *talk_, {{"type", "flush"}}); }
void Conversation::say(std::string_view text) { sdk::say(*core_, *talk_, {{"type", "text"}, {"text", text}}); }
void Conversation::utter(std::string_view text) { sdk::say(*core_, *talk_, {{"type", "utter"}, {"text", text}}); }
void Conversation::item(std::string_view role, std::string_view text, std::string_view id, std::string_view calls) {
  json fields{{"type", "item"}, {"role", role}, {"text", text}};
  fields["id"] = id.empty() ? fmt::format("item_{:016x}", random_u64()) : std::string(id);
  if (!calls.empty()) fields["calls"] = json::parse(calls, nullptr, false);
  sdk::say(*core_, *talk_, std::move(fields));
}
void Conversation::respond(std::string_view settings) {
  auto fields = object_of(settings, "settings");
  fields["type"] = "respond";
  sdk::say(*core_, *talk_, std::move(fields));
}
void Conversation::configure(std::string_view settings) {
  auto fields = object_of(settings, "settings");
  fields["type"] = "configure";
  sdk::say(*core_, *talk_, std::move(fields));
}
void Conversation::tool_output(std::string_view call, std::string_view output) {
  sdk::say(*core_, *talk_, {{"type", "tool_output"}, {"call", call}, {"output", output}});
}
void Conversation::truncate(std::uint32_t turn, std::int64_t samples) {
  sdk::say(*core_, *talk_, {{"type", "truncate"}, {"turn", turn}, {"samples", samples}});
}
void Conversation::forget(std::string_view item) { sdk::say(*core_, *talk_, {{"type", "forget"}, {"item", item}}); }
void Conversation::forget(std::uint32_t turn, std::string_view part) {
  sdk::say(*core_, *talk_, {{"type", "forget"}, {"turn", turn}, {"part", part}});
}
void Conversation::cancel(std::uint32_t turn) {
  json fields{{"type", "cancel"}};
  if (turn != 0) fields["turn"] = turn;
  sdk::say(*core_, *talk_, std::move(fields));
}

std::int64_t Conversation::erase(milliseconds timeout) {
  sdk::say(*core_, *talk_, {{"type", "erase"}});
  return wait_erased(timeout);
}

/// Errors of turns that were under way are none of it.
std::int64_t Conversation::wait_erased(milliseconds timeout) {
  const auto end = core_->clock.now() + timeout;
  for (;;) {
    const auto told = next(std::max(milliseconds(0), std::chrono::ceil<milliseconds>(end - core_->clock.now())));
    if (!told) {
      const std::lock_guard lock(core_->mutex);
      throw talk_->failure().value_or(Error("cancelled", "the conversation is closed"));
    }
    const auto* event = std::get_if<Event>(&*told);
    if (event == nullptr) continue;
    if (event->type == "erased") return event->number("turns");
    if (event->type == "error" && event->number("turn") == 0)
      throw Error(event->text("code"), event->text("message"), event->number("retry_ms"));
  }
}

std::optional<Told> Conversation::next(milliseconds timeout) {
  std::optional<Told> out;
  {
    std::unique_lock lock(core_->mutex);
    const auto end = core_->clock.now() + timeout;
    while (!(out = talk_->take())) {
      if (talk_->is_ended()) return {};
      const auto now = core_->clock.now();
      if (now >= end) throw Error("deadline_exceeded", fmt::format("nothing was told for {} ms", timeout.count()));
      core_->changed.wait_for(lock, std::min<Time::duration>(kLook, end - now));
    }
  }
  if (const auto* event = std::get_if<Event>(&*out)) call_tool(*event);
  return out;
}

void Conversation::call_tool(const Event& event) {
  if (tools_.empty() || event.type != "text" || event.text("kind") != "tool_call") return;
  const auto call = fields_of(event.text("text"));
  if (call.contains("result") || !call.contains("name") || !call.contains("id")) return;
  const auto tool = std::find_if(tools_.begin(), tools_.end(), [&](const Tool& t) { return call["name"] == t.name; });
  if (tool == tools_.end()) return;
  std::string output;
  try {
    const auto arguments = call.value("arguments", json::object());
    output = tool->function(arguments.is_string() ? arguments.get<std::string>() : arguments.dump());
  } catch (const std::exception& e) {
    output = fmt::format("error: {}", e.what());
  }
  // The turn waits for it: what is too large to be told is said to be so.
  if (output.size() > kOutputBytesMax)
    output =
        fmt::format("error: the tool has answered {} bytes, at most {} can be told", output.size(), kOutputBytesMax);
  tool_output(call["id"].get<std::string>(), output);
}

Turn Conversation::turn(milliseconds timeout) {
  const auto end = core_->clock.now() + timeout;
  Turn out;
  out.rate = rate();
  for (;;) {
    auto told = next(std::max(milliseconds(0), std::chrono::ceil<milliseconds>(end - core_->clock.now())));
    if (!told) {
      const std::lock_guard lock(core_->mutex);
      throw talk_->failure().value_or(Error("cancelled", "the conversation is closed"));
    }
    out.events.push_back(*std::move(told));
    const auto* event = std::get_if<Event>(&out.events.back());
    if (event == nullptr) continue;
    if (event->type == "error") throw Error(event->text("code"), event->text("message"), event->number("retry_ms"));
    if (event->type == "cancelled")
      throw Error("cancelled", fmt::format("turn {} was cancelled", event->number("turn")));
    if (event->type != "turn") continue;
    out.record = *event;
    out.number = event->number("turn");
    out.user = event->text("user");
    out.assistant = event->text("assistant");
    for (const auto& e : out.events)
      if (const auto* sound = std::get_if<Sound>(&e); sound != nullptr && sound->turn == out.number)
        out.sound.insert(out.sound.end(), sound->samples.begin(), sound->samples.end());
    return out;
  }
}

void Conversation::close(bool detach) {
  if (!core_ || !talk_) return;
  const std::lock_guard lock(core_->mutex);
  talk_->close(detach);
  core_->changed.notify_all();
}

}  // namespace parlando::sdk
