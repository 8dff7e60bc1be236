#include "services/gateway/realtime_items.hpp"

#include "common/base/nesting.hpp"
#include "services/gateway/realtime_events.hpp"
#include "services/gateway/realtime_fields.hpp"

namespace parlando::gateway {
using nlohmann::json;

namespace {

constexpr std::size_t kItemTextMax = 60000;  // of a text in a conversation
constexpr std::size_t kIdMax = 64, kCallNameMax = 64;
constexpr std::size_t kPartsMax = 256;
constexpr int kArgumentsDepthMax = 24;  // of the arguments of a call

RealtimeResult<void> check_length(std::string_view text, const std::string& param) {
  if (text.size() > kItemTextMax)
    return refuse("string_above_max_length", param, "{} has {} bytes, expected at most {}", param, text.size(),
                  kItemTextMax);
  return {};
}

RealtimeResult<RealtimeItem::Part> read_part(const json& value, const std::string& role, const std::string& param) {
  const auto type = value.is_object() ? text_of(value, "type") : std::string();
  const bool assistant = role == "assistant";
  if (type == "input_text" || type == "text" || type == "output_text")
    return RealtimeItem::Part{assistant ? "output_text" : "input_text", text_of(value, "text")};
  const bool sound = type == (assistant ? "output_audio" : "input_audio") || type == "audio";
  if (sound && role != "system") {
    const auto& transcript = field(value, "transcript");
    if (transcript.is_string())
      return RealtimeItem::Part{assistant ? "output_audio" : "input_audio", transcript.get<std::string>()};
    return refuse("invalid_value", param,
                  "{}: recorded sound is not taken as an item without its transcript; send it with "
                  "input_audio_buffer.append and input_audio_buffer.commit",
                  param);
  }
  return refuse("invalid_value", param + ".type",
                "Invalid value: '{}'. Supported values in a message of the role '{}' are: {}.", type.substr(0, 40),
                role, assistant ? "'output_text', 'output_audio'" : "'input_text', 'input_audio'");
}

RealtimeResult<RealtimeItem> read_message(const json& value, RealtimeItem item, const std::string& param) {
  item.role = text_of(value, "role");
  if (item.role != "user" && item.role != "assistant" && item.role != "system")
    return refuse("invalid_value", param + ".role",
                  "Invalid value: '{}'. Supported values are: 'user', 'assistant' and 'system'.",
                  item.role.substr(0, 40));
  const auto& content = field(value, "content");
  if (!content.is_array() || content.size() > kPartsMax)
    return refuse("missing_required_parameter", param + ".content", "{}.content: expected an array of at most {} parts",
                  param, kPartsMax);
  for (std::size_t i = 0; i < content.size(); ++i) {
    auto part = read_part(content[i], item.role, fmt::format("{}.content[{}]", param, i));
    if (!part) return tl::unexpected(part.error());
    item.content.push_back(*std::move(part));
  }
  const auto fits = check_length(item.text(), param + ".content");
  if (!fits) return tl::unexpected(fits.error());
  return item;
}

}  // namespace

std::string RealtimeItem::text() const {
  std::string out;
  for (const auto& part : content) {
    if (!out.empty() && !part.text.empty()) out += '\n';
    out += part.text;
  }
  return out;
}

std::size_t RealtimeItem::bytes() const {
  auto out = 200 + id.size() + call_id.size() + name.size() + arguments.size() + output.size() + 50 * content.size();
  for (const auto& part : content) out += part.text.size();
  return out;
}

json RealtimeItem::json() const {
  nlohmann::json out{{"id", id}, {"object", "realtime.item"}, {"status", status}};
  if (kind == Kind::call) {
    out["type"] = "function_call";
    out["call_id"] = call_id;
    out["name"] = name;
    out["arguments"] = arguments;
    return out;
  }
  if (kind == Kind::output) {
    out["type"] = "function_call_output";
    out["call_id"] = call_id;
    out["output"] = output;
    return out;
  }
  out["type"] = "message";
  out["role"] = role;
  auto& parts = out["content"] = nlohmann::json::array();
  for (const auto& part : content) {
    nlohmann::json one{{"type", part.type}};
    const bool sound = part.type == "input_audio" || part.type == "output_audio";
    if (!sound || !part.text.empty()) one[sound ? "transcript" : "text"] = part.text;
    parts.push_back(std::move(one));
  }
  return out;
}

RealtimeResult<RealtimeItem> read_realtime_item(const json& value, const std::string& param) {
  if (!value.is_object())
    return refuse("missing_required_parameter", param, "Missing required parameter: '{}'.", param);
  RealtimeItem item;
  if (const auto& id = field(value, "id"); !id.is_null()) {
    if (!id.is_string() || id.get_ref<const std::string&>().empty() || id.get_ref<const std::string&>().size() > kIdMax)
      return refuse("invalid_value", param + ".id", "{}.id: expected a text of 1 to {} bytes", param, kIdMax);
    item.id = id.get<std::string>();
  }
  const auto type = text_of(value, "type");
  if (type == "message") return read_message(value, std::move(item), param);
  item.kind = type == "function_call" ? RealtimeItem::Kind::call : RealtimeItem::Kind::output;
  item.call_id = text_of(value, "call_id");
  if (type == "function_call") {
    if (item.call_id.empty()) item.call_id = item.id;
    item.name = text_of(value, "name");
    item.arguments = text_of(value, "arguments");
    if (item.name.empty())
      return refuse("missing_required_parameter", param + ".name", "Missing required parameter: '{}.name'.", param);
    if (item.name.size() > kCallNameMax)
      return refuse("invalid_value", param + ".name", "{}.name: expected a text of 1 to {} bytes", param, kCallNameMax);
    const auto fits = check_length(item.arguments, param + ".arguments");
    if (!fits) return tl::unexpected(fits.error());
  } else if (type == "function_call_output") {
    if (item.call_id.empty())
      return refuse("missing_required_parameter", param + ".call_id", "Missing required parameter: '{}.call_id'.",
                    param);
    const auto& output = field(value, "output");
    item.output = output.is_string() ? output.get<std::string>() : output.is_null() ? "" : dump(output);
    const auto fits = check_length(item.output, param + ".output");
    if (!fits) return tl::unexpected(fits.error());
  } else {
    return refuse("invalid_value", param + ".type",
                  "Invalid value: '{}'. Supported values are: 'message', 'function_call' and 'function_call_output'.",
                  type.substr(0, 40));
  }
  if (item.call_id.size() > 100)
    return refuse("string_above_max_length", param + ".call_id", "{}.call_id has {} bytes, expected at most 100", param,
                  item.call_id.size());
  return item;
}

json dialogue_item(const RealtimeItem& item) {
  json out{{"type", "item"}, {"id", item.id}};
  if (item.kind == RealtimeItem::Kind::output) {
    out["role"] = "tool";
    out["text"] = item.output;
    out["calls"] = item.call_id;
    return out;
  }
  if (item.kind == RealtimeItem::Kind::call) {
    const bool deep = nested_deeper_than(item.arguments, kArgumentsDepthMax);
    auto arguments = deep ? json(json::value_t::discarded) : json::parse(item.arguments, nullptr, false);
    out["role"] = "assistant";
    out["text"] = "";
    out["calls"] = json::array({{{"id", item.call_id},
                                 {"name", item.name},
                                 {"arguments", arguments.is_discarded() ? json(item.arguments) : arguments}}});
    return out;
  }
  const auto text = item.text();
  if (text.empty()) return {};
  out["role"] = item.role;
  out["text"] = text;
  return out;
}

RealtimeItem& RealtimeItems::add(RealtimeItem item, const std::string& after) {
  auto place = items_.end();
  if (after == "root")
    place = items_.begin();
  else if (const auto found = by_id_.find(after); found != by_id_.end())
    place = std::next(found->second);
  item.counted = item.bytes();
  bytes_ += item.counted;
  const auto at = items_.insert(place, std::move(item));
  by_id_[at->id] = at;
  while (items_.size() > 1 && (items_.size() > kItemsMax || bytes_ > kBytesMax))
    erase(items_.front().id == at->id ? std::next(items_.begin())->id : items_.front().id);
  return *at;
}

RealtimeItem* RealtimeItems::find(const std::string& id) {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &*found->second;
}

bool RealtimeItems::erase(const std::string& id) {
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return false;
  bytes_ -= found->second->counted;
  items_.erase(found->second);
  by_id_.erase(found);
  return true;
}

std::string RealtimeItems::before(const std::string& id) const {
  const auto found = by_id_.find(id);
  if (found == by_id_.end() || found->second == items_.begin()) return {};
  return std::prev(found->second)->id;
}

json previous_item(const std::string& id) { return id.empty() ? json() : json(id); }

}  // namespace parlando::gateway
