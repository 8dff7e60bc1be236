#include "common/base/result.hpp"

namespace parlando {

std::string_view to_string(Errc code) {
  switch (code) {
    case Errc::ok:
      return "ok";
    case Errc::invalid_argument:
      return "invalid_argument";
    case Errc::not_found:
      return "not_found";
    case Errc::bad_format:
      return "bad_format";
    case Errc::unsupported:
      return "unsupported";
    case Errc::checkpoint_mismatch:
      return "checkpoint_mismatch";
    case Errc::io:
      return "io";
    case Errc::internal:
      return "internal";
    case Errc::overloaded:
      return "overloaded";
    case Errc::deadline_exceeded:
      return "deadline_exceeded";
    case Errc::cancelled:
      return "cancelled";
    case Errc::position_mismatch:
      return "position_mismatch";
    case Errc::token_out_of_range:
      return "token_out_of_range";
    case Errc::bad_frame:
      return "bad_frame";
    case Errc::bad_magic:
      return "bad_magic";
    case Errc::bad_version:
      return "bad_version";
    case Errc::unknown_type:
      return "unknown_type";
    case Errc::bad_json:
      return "bad_json";
    case Errc::stale_epoch:
      return "stale_epoch";
    case Errc::credit_exceeded:
      return "credit_exceeded";
    case Errc::not_ready:
      return "not_ready";
    case Errc::unavailable:
      return "unavailable";
    case Errc::no_speech:
      return "no_speech";
  }
  return "unknown";
}

Errc errc_of(std::string_view name) {
  constexpr int kLast = static_cast<int>(Errc::no_speech);
  for (int code = 0; code <= kLast; ++code)
    if (to_string(static_cast<Errc>(code)) == name) return static_cast<Errc>(code);
  return Errc::internal;
}

}  // namespace parlando
