#include "common/protocol/messages.hpp"

namespace parlando::protocol {

namespace {

/// Writes a message's fields as table cells.
class Describer final : public FieldVisitor {
 public:
  void visit(const char* name, FieldValue f) override {
    using Kind = FieldValue::Kind;
    constexpr auto kNone = std::numeric_limits<std::int64_t>::max();
    std::string type;
    switch (f.kind) {
      case Kind::boolean:
        type = "bool";
        break;
      case Kind::i32:
        type = "i32";
        break;
      case Kind::u32:
        type = "u32";
        break;
      case Kind::i64:
        type = "i64";
        break;
      case Kind::u64:
        type = "u64";
        break;
      case Kind::text:
        type = f.rule.high == kNone ? "text" : fmt::format("text ≤ {} B", f.rule.high);
        break;
      case Kind::json:
        type = "JSON";
        break;
      case Kind::name:
        for (std::size_t i = 0; i < f.names.size(); ++i) type += (i == 0 ? "" : " / ") + std::string(f.names[i]);
        break;
    }
    const bool number = f.kind == Kind::i32 || f.kind == Kind::u32 || f.kind == Kind::i64;
    if (number && f.rule.low != std::numeric_limits<std::int64_t>::min())
      type += f.rule.high == kNone ? fmt::format(" ≥ {}", f.rule.low) : fmt::format(" {}…{}", f.rule.low, f.rule.high);
    text += (text.empty() ? "" : ", ") + fmt::format("`{}` {}", name, type);
  }
  std::string text;
};

constexpr std::string_view payload_text(PayloadKind kind) {
  switch (kind) {
    case PayloadKind::none:
      return "–";
    case PayloadKind::pcm:
      return "s16le";
    case PayloadKind::codes:
      return "int32 codes";
    case PayloadKind::ids:
      return "int32 ids";
    case PayloadKind::float32:
      return "float32";
    case PayloadKind::json:
      return "JSON";
  }
  return "?";
}

template <class T>
concept HasPayloadKind = requires {
  T::kPayload;
};

template <class T>
void row(std::string& out) {
  T message;
  Describer fields;
  message.fields(fields);
  auto payload = std::string(payload_text(PayloadKind::none));
  if constexpr (HasPayloadKind<T>) payload = payload_text(T::kPayload);
  if (T::kType == MessageType::window) payload = "records";
  const auto limit = payload_bytes_max(T::kType);
  out += fmt::format("| {} | `{}` | {} | {} | {} |\n", static_cast<int>(T::kType), to_string(T::kType),
                     is_packed(T::kType) ? "packed" : "JSON", fields.text.empty() ? "–" : fields.text,
                     limit == 0 ? payload : fmt::format("{} ≤ {} KiB", payload, limit / 1024));
}

template <class... Ts>
std::string rows() {
  std::string out;
  (row<Ts>(out), ...);
  return out;
}

}  // namespace

std::string describe_messages() {
  return "| type | name | body | fields | payload |\n|---|---|---|---|---|\n" +
         rows<Hello, Heartbeat, HeartbeatReply, Window, Cancel, ErrorMessage, Refused, Resync, Open, Close, OpenVad,
              OpenTokenizer, Tokenize, OpenChat, Synthesise, Claim, Granted, Renew, Attach, ForkChat, Audio, Flush,
              SpeechStarted, SpeechEnded, Cancelled, SpeechPaused, SpeechResumed, Played, Configure, Item, Respond,
              ToolOutput, Utter, Truncate, Forget, Tokens, Hear, Generate, Text, Say, ToolResult, GoOn, Speak, Speech,
              Commit, History, Committed, Records, Erase, Erased, Opened, TurnDone, Checkpoint, Attached, Hold, Release,
              Interrupted, Waiting, Noted, Event, Decided>();
}

}  // namespace parlando::protocol
