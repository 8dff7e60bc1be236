#pragma once
/// `parlando replay`: a recording of a service, made again and compared.
#include <string>

#include "common/base/result.hpp"

namespace parlando::cli {

struct ReplayOptions {
  std::string file;
  std::string session;   ///< in hexadecimal digits: its messages are printed; "all": of every session; empty: none are
  bool as_json = false;  ///< one object: {file, events, messages, identical, difference?}
};

/// @return the exit code: 0 when everything was said again as it was recorded, 1 when not
/// @error Errc::not_found, Errc::bad_format, Errc::unsupported; those of the service's configuration
Result<int> replay(const ReplayOptions& options);

}  // namespace parlando::cli
