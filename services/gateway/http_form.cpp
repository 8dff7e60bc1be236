#include "services/gateway/http_form.hpp"

#include <algorithm>

namespace parlando::gateway {
namespace {

constexpr std::size_t kFormPartsMax = 64, kHeadBytesMax = 4096, kBoundaryMax = 70;  // the last by RFC 2046

char low(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 'a' - 'A') : c; }

bool starts_with_word(std::string_view text, std::string_view word) {
  return text.size() >= word.size() &&
         std::equal(word.begin(), word.end(), text.begin(), [](char a, char b) { return low(a) == low(b); });
}

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t") - first + 1);
}

/// The header lines of one part.
Result<FormPart> read_head(std::string_view head) {
  FormPart out;
  bool disposed = false;
  while (!head.empty()) {
    const auto end = std::min(head.find("\r\n"), head.size());
    const auto line = head.substr(0, end);
    head.remove_prefix(std::min(head.size(), end + 2));
    constexpr std::string_view kDisposition = "content-disposition:";
    if (!starts_with_word(line, kDisposition)) continue;
    const auto value = trimmed(line.substr(kDisposition.size()));
    if (disposed || !starts_with_word(value, "form-data"))
      return fail(Errc::bad_format, "a part of the form has '{}', expected one form-data", value.substr(0, 60));
    disposed = true;
    out.name = header_parameter(value, "name");
    out.filename = header_parameter(value, "filename");
  }
  if (out.name.empty()) return fail(Errc::bad_format, "a part of the form has no name");
  return out;
}

}  // namespace

std::string header_parameter(std::string_view header, std::string_view name) {
  auto at = header.find(';');
  while (at != std::string_view::npos && at < header.size()) {
    header.remove_prefix(at + 1);
    const auto equals = header.find('=');
    if (equals == std::string_view::npos) return {};
    const auto key = trimmed(header.substr(0, equals));
    header.remove_prefix(equals + 1);
    std::string value;
    if (header.starts_with('"')) {
      std::size_t i = 1;
      for (; i < header.size() && header[i] != '"'; ++i) {
        if (header[i] == '\\' && i + 1 < header.size()) ++i;
        value += header[i];
      }
      header.remove_prefix(std::min(header.size(), i + 1));
    } else {
      value = trimmed(header.substr(0, header.find(';')));
    }
    if (key.size() == name.size() && starts_with_word(key, name)) return value;
    at = header.find(';');
  }
  return {};
}

Result<std::vector<FormPart>> read_form(std::string_view content_type, std::string_view body) {
  if (!starts_with_word(content_type, "multipart/form-data"))
    return fail(Errc::unsupported, "the content type is '{}', expected multipart/form-data",
                content_type.substr(0, 60));
  const auto boundary = header_parameter(content_type, "boundary");
  if (boundary.empty() || boundary.size() > kBoundaryMax)
    return fail(Errc::bad_format, "the form's boundary has {} characters, expected 1 to {}", boundary.size(),
                kBoundaryMax);
  const auto first = "--" + boundary, next = "\r\n--" + boundary;
  if (!body.starts_with(first)) return fail(Errc::bad_format, "the form does not begin with its boundary");
  body.remove_prefix(first.size());
  std::vector<FormPart> out;
  while (!body.starts_with("--")) {
    if (!body.starts_with("\r\n"))
      return fail(Errc::bad_format, "a boundary of the form is not followed by a new line");
    body.remove_prefix(2);
    const auto head_end = body.substr(0, kHeadBytesMax).find("\r\n\r\n");
    if (head_end == std::string_view::npos)
      return fail(Errc::bad_format, "a part of the form has no header that ends within {} bytes", kHeadBytesMax);
    PARLANDO_TRY(auto part, read_head(body.substr(0, head_end)));
    body.remove_prefix(head_end + 4);
    const auto end = body.find(next);
    if (end == std::string_view::npos)
      return fail(Errc::bad_format, "the part '{}' of the form has no end", part.name.substr(0, 60));
    part.data = body.substr(0, end);
    body.remove_prefix(end + next.size());
    out.push_back(std::move(part));
    if (out.size() > kFormPartsMax) return fail(Errc::bad_format, "the form has more than {} parts", kFormPartsMax);
  }
  return out;
}

}  // namespace parlando::gateway
