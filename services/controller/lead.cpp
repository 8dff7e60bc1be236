#include "services/controller/lead.hpp"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "common/base/mapped_file.hpp"
#include "common/protocol/settings.hpp"

namespace parlando::controller {
using namespace protocol;
using nlohmann::json;

namespace {

constexpr std::string_view kPersona = "persona:";
constexpr int kSilenceMs = 500;       // that ends an utterance when nobody can judge it and no other was chosen
constexpr int kSilenceMsMax = 10000;  // the longest that a vad takes
constexpr std::size_t kToolsMax = 128, kStopsMax = 4;

/// The longest silence within an utterance that a semantic detector leaves open.
int wait_ms(Eagerness eagerness) {
  if (eagerness == Eagerness::low) return 8000;
  return eagerness == Eagerness::high ? 2000 : 4000;
}

int likely(Eagerness eagerness, const ControllerConfig& config) {
  if (eagerness == Eagerness::low) return config.likely_permille_low;
  return eagerness == Eagerness::high ? config.likely_permille_high : config.likely_permille_medium;
}

int enough(Eagerness eagerness, bool lasts, const ControllerConfig& config) {
  if (eagerness == Eagerness::low) return lasts ? config.complete_again_permille_low : config.complete_permille_low;
  if (eagerness == Eagerness::high) return lasts ? config.complete_again_permille_high : config.complete_permille_high;
  return lasts ? config.complete_again_permille_medium : config.complete_permille_medium;
}

Result<std::set<std::string>> tools_of(const Settings& settings) {
  std::set<std::string> out;
  const auto list = json::parse(settings.tools.text, nullptr, false);
  if (list.is_null()) return out;
  if (!list.is_array() || list.size() > kToolsMax)
    return fail(Errc::invalid_argument, "tools is no array of at most {} tools", kToolsMax);
  for (const auto& tool : list) {
    const auto name = tool.is_object() ? tool.find("name") : tool.end();
    if (!tool.is_object() || name == tool.end() || !name->is_string() || name->get<std::string>().empty())
      return fail(Errc::invalid_argument, "tool {} has no name", out.size());
    if (!out.insert(name->get<std::string>()).second)
      return fail(Errc::invalid_argument, "tool '{}' is there twice", name->get<std::string>());
  }
  return out;
}

Result<void> check_stop(const Settings& settings) {
  const auto list = json::parse(settings.stop.text, nullptr, false);
  if (list.is_null()) return {};
  const auto good = [](const json& text) { return text.is_string() && !text.get_ref<const std::string&>().empty(); };
  if (!list.is_array() || list.size() > kStopsMax || !std::all_of(list.begin(), list.end(), good))
    return fail(Errc::invalid_argument, "stop is no array of at most {} texts", kStopsMax);
  return {};
}

}  // namespace

Result<Personas> load_personas(const std::string& file) {
  Personas out;
  if (file.empty()) return out;
  PARLANDO_TRY(const auto text, read_file(file, 4u << 20));
  const auto object = json::parse(text, nullptr, false);
  if (!object.is_object()) return fail(Errc::bad_json, "'{}' is no JSON object of personas", file);
  for (const auto& [name, fields] : object.items()) {
    if (!fields.is_object()) return fail(Errc::bad_json, "'{}': persona '{}' is no object", file, name);
    auto& persona = out[name];
    for (const auto& [key, value] : fields.items()) {
      auto* field = key == "system" ? &persona.system : key == "speaker" ? &persona.speaker : nullptr;
      if (field == nullptr || !value.is_string())
        return fail(Errc::bad_json, "'{}': {}.{} is {}, expected a text under system or speaker", file, name, key,
                    value.dump().substr(0, 40));
      *field = value.get<std::string>();
    }
  }
  return out;
}

Patience Lead::patience(std::int32_t permille) const {
  if (permille >= likely_permille) return Patience::likely;
  return permille >= 0 && permille < unfinished_permille ? Patience::unfinished : Patience::unsure;
}

OpenVad Lead::vad(bool judged, Patience patience) const {
  OpenVad out{settings.threshold_permille, settings.silence_ms};
  if (is_manual()) out.silence_ms = kSilenceMsMax;
  if (!is_semantic()) return out;
  const auto most = wait_ms(settings.eagerness);
  if (judged)
    out.silence_ms =
        patience == Patience::unfinished ? most : std::min(most, patience == Patience::likely ? likely_ms : unsure_ms);
  else
    out.silence_ms = settings.silence_ms < 0 ? kSilenceMs : settings.silence_ms;
  return out;
}

Result<LeadPtr> lead_by(Settings settings, const ControllerConfig& config, const Personas& personas) {
  auto out = std::make_shared<Lead>();
  out->system = settings.system;
  out->speaker = settings.speaker;
  if (settings.system.starts_with(kPersona)) {
    const auto name = settings.system.substr(kPersona.size());
    const auto found = personas.find(name);
    if (found == personas.end()) return fail(Errc::not_found, "there is no persona '{}'", name);
    out->system = found->second.system;
    out->is_persona = true;
    if (settings.speaker.empty()) out->speaker = found->second.speaker;
  }
  if (!settings.tokenizer_mode.empty() && settings.tokenizer_mode != "stable" && settings.tokenizer_mode != "exact")
    return fail(Errc::invalid_argument, "tokenizer_mode is '{}', expected stable or exact", settings.tokenizer_mode);
  PARLANDO_TRY(out->tools, tools_of(settings));
  PARLANDO_DO(check_stop(settings));
  const auto& choice = settings.tool_choice;
  if (choice != "auto" && choice != "none" && choice != "required" && !out->tools.contains(choice))
    return fail(Errc::invalid_argument, "tool_choice is '{}', expected auto, none, required or the name of a tool",
                choice);
  out->enough_permille = enough(settings.eagerness, false, config);
  out->enough_again_permille = enough(settings.eagerness, true, config);
  out->likely_permille = likely(settings.eagerness, config);
  out->unfinished_permille = config.unfinished_permille;
  out->likely_ms = config.likely_silence_ms;
  out->unsure_ms = config.unsure_silence_ms;
  out->settings = std::move(settings);
  out->tail_ms = out->is_semantic() ? config.semantic_tail_ms : config.tail_ms;
  return out;
}

Result<Settings> changed(Settings settings, const JsonText& fields) {
  const auto change = json::parse(fields.text, nullptr, false);
  if (change.is_null()) return settings;
  if (!change.is_object()) return fail(Errc::invalid_argument, "settings is no object");
  JsonWriter writer;
  settings.fields(writer);
  const auto known = json::parse(writer.text());
  for (const auto& [key, value] : change.items())
    if (!known.contains(key)) return fail(Errc::invalid_argument, "settings has no field '{}'", key.substr(0, 40));
  PARLANDO_DO(protocol::apply(fields, settings));
  return settings;
}

}  // namespace parlando::controller
