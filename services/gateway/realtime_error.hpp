#pragma once
/// What was wrong with a client's event, as the `error` event of `/v1/realtime` says it.
#include <fmt/format.h>

#include <string>
#include <tl/expected.hpp>

namespace parlando::gateway {

struct RealtimeError {
  std::string code, message;
  std::string param = {};  ///< the field; empty: none
  std::string type = "invalid_request_error";
};

template <class T>
using RealtimeResult = tl::expected<T, RealtimeError>;

template <class... Args>
tl::unexpected<RealtimeError> refuse(std::string code, std::string param, fmt::format_string<Args...> format,
                                     Args&&... args) {
  return tl::unexpected<RealtimeError>(
      {std::move(code), fmt::format(format, std::forward<Args>(args)...), std::move(param)});
}

}  // namespace parlando::gateway
