#include "common/config/fields.hpp"

#include "common/base/mapped_file.hpp"
#include "common/base/nesting.hpp"

namespace parlando::config {

std::string to_text(const std::vector<Problem>& problems) {
  std::string out;
  for (const auto& p : problems) out += (out.empty() ? "" : "\n") + p.path + " " + p.text;
  return out;
}

Result<nlohmann::json> load_file(const std::string& file) {
  PARLANDO_TRY(const auto text, read_file(file, 1u << 20));
  if (nested_deeper_than(text, 32)) return fail(Errc::bad_json, "'{}' is nested deeper than 32 levels", file);
  try {
    auto out = nlohmann::json::parse(text, nullptr, true, true);
    if (!out.is_object()) return fail(Errc::bad_json, "'{}' is not a JSON object", file);
    return out;
  } catch (const nlohmann::json::exception& e) {
    return fail(Errc::bad_json, "'{}': {}", file, e.what());
  }
}

}  // namespace parlando::config
