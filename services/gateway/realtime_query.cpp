#include "services/gateway/realtime_query.hpp"

namespace parlando::gateway {

namespace {

constexpr std::size_t kModelMax = 200;

int hex_digit(char c) {
  return c >= '0' && c <= '9'   ? c - '0'
         : c >= 'a' && c <= 'f' ? c - 'a' + 10
         : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                : -1;
}

/// Of a query: "%20" and "+" are characters again.
std::string decoded(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool escaped =
        text[i] == '%' && i + 2 < text.size() && hex_digit(text[i + 1]) >= 0 && hex_digit(text[i + 2]) >= 0;
    if (escaped) {
      out += static_cast<char>(hex_digit(text[i + 1]) * 16 + hex_digit(text[i + 2]));
      i += 2;
    } else {
      out += text[i] == '+' ? ' ' : text[i];
    }
  }
  return out;
}

/// Calls `f` with each name and value of a target's query.
template <class F>
void each_field(std::string_view target, F f) {
  const auto query = target.find('?');
  auto rest = query == std::string_view::npos ? std::string_view() : target.substr(query + 1);
  while (!rest.empty()) {
    const auto pair = rest.substr(0, rest.find('&'));
    rest.remove_prefix(std::min(pair.size() + 1, rest.size()));
    const auto name = pair.substr(0, pair.find('='));
    f(name, decoded(pair.substr(std::min(name.size() + 1, pair.size()))));
  }
}

}  // namespace

ResumeFields resume_fields(std::string_view target) {
  ResumeFields out;
  each_field(target, [&](std::string_view name, const std::string& value) {
    if (name == "resumable") out.resumable = value == "true";
    if (name == "resume") out.token = value;
    if (name == "after") out.after = value;
  });
  return out;
}

RealtimeOptions realtime_options(std::string_view target) {
  RealtimeOptions out;
  each_field(target, [&](std::string_view name, const std::string& value) {
    if (name == "model" && !value.empty()) out.model = value.substr(0, kModelMax);
    if (name == "intent") out.transcription = value == "transcription";
  });
  return out;
}

}  // namespace parlando::gateway
