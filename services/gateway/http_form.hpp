#pragma once
/// `multipart/form-data` (RFC 7578), strictly and within limits: a part is `name`, an optional file name and its bytes.
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::gateway {

struct FormPart {
  std::string name, filename;
  std::string_view data;  ///< of the body
};

/// @param content_type  with its boundary. @param body  outlives the parts
/// @error Errc::unsupported: another content type; Errc::bad_format, naming what was seen
Result<std::vector<FormPart>> read_form(std::string_view content_type, std::string_view body);

/// The value of a header's parameter, as `boundary` of `multipart/form-data; boundary="x"`; empty when it has none.
std::string header_parameter(std::string_view header, std::string_view name);

}  // namespace parlando::gateway
