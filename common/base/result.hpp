#pragma once
/// Errors as values: every function that can fail answers `Result<T>`; an `Error` says which rule was broken, what was
/// seen and what was expected. Exceptions of libraries are caught in the adapter that calls the library and become an
/// `Error` there.
#include <fmt/format.h>

#include <string>
#include <string_view>
#include <tl/expected.hpp>
#include <utility>

namespace parlando {

/// Numbers travel on the wire and are never reused. "Caller" means: do not retry unchanged.
enum class Errc : int {
  ok = 0,
  invalid_argument = 1,     ///< A value outside its documented range. Caller.
  not_found = 2,            ///< A file, voice, session or model that does not exist. Caller.
  bad_format = 3,           ///< Foreign bytes that break their format's rules. Caller.
  unsupported = 4,          ///< Well formed, but something we do not do. Caller.
  checkpoint_mismatch = 5,  ///< A tensor is missing, unexpected, misshapen or truncated. Operator.
  io = 6,                   ///< The operating system refused a read or a write. Operator; retry may help.
  internal = 7,             ///< A library threw or an invariant of ours broke. Ours.
  overloaded = 8,           ///< A limit was reached; retry later. Overload.
  deadline_exceeded = 9,    ///< The remaining budget was spent before the work was done. Retry with a new budget.
  cancelled = 10,           ///< The stream, or the link it came on, has ended.
  position_mismatch =
      11,  ///< A position does not go on where the sequence or stream ends; the message has the true one. Caller.
  token_out_of_range = 12,  ///< A token id outside its codebook. Caller.
  bad_frame = 13,           ///< A wire frame that is truncated, oversized or has a wrong size field. Caller.
  bad_magic = 14,           ///< Not a parlando frame. Caller.
  bad_version = 15,         ///< Protocol version outside the agreed range. Caller.
  unknown_type = 16,        ///< A message type this build does not know. Counted and dropped.
  bad_json = 17,            ///< The body is not the JSON object it must be. Caller.
  stale_epoch = 18,         ///< The session has another owner; the envelope carries the true epoch. Caller: stop.
  credit_exceeded = 19,     ///< More was sent than the window allowed. Caller; the stream takes nothing more.
  not_ready = 20,           ///< The service is still warming up. Retry.
  unavailable = 21,         ///< No live replica can serve the request. Retry.
  no_speech = 22,           ///< The audio holds no speech. Caller.
};

/// Short stable name, as used in logs and JSON.
std::string_view to_string(Errc code);
/// The code of a name; Errc::internal for one that this build does not know.
Errc errc_of(std::string_view name);

struct Error {
  Errc code = Errc::internal;
  std::string message;
};

template <class T>
using Result = tl::expected<T, Error>;

template <class... Args>
[[nodiscard]] tl::unexpected<Error> fail(Errc code, fmt::format_string<Args...> format, Args&&... args) {
  return tl::unexpected<Error>(Error{code, fmt::format(format, std::forward<Args>(args)...)});
}

/// Thrown inside one library only (loading of checkpoints, for example) and caught at its public functions; never
/// leaves them.
struct Failure {
  Error error;
};

template <class... Args>
[[noreturn]] void raise(Errc code, fmt::format_string<Args...> format, Args&&... args) {
  throw Failure{Error{code, fmt::format(format, std::forward<Args>(args)...)}};
}

}  // namespace parlando

#define PARLANDO_CAT2(a, b) a##b
#define PARLANDO_CAT(a, b) PARLANDO_CAT2(a, b)
/// `PARLANDO_TRY(auto x, f());` declares x from a Result or returns its error.
#define PARLANDO_TRY(declaration, expression)                                       \
  auto PARLANDO_CAT(result_, __LINE__) = (expression);                              \
  if (!PARLANDO_CAT(result_, __LINE__))                                             \
    return tl::make_unexpected(std::move(PARLANDO_CAT(result_, __LINE__)).error()); \
  declaration = *std::move(PARLANDO_CAT(result_, __LINE__))
/// `PARLANDO_DO(f());` returns the error of a Result<void>.
#define PARLANDO_DO(expression)                                                              \
  if (auto PARLANDO_CAT(result_, __LINE__) = (expression); !PARLANDO_CAT(result_, __LINE__)) \
  return tl::make_unexpected(std::move(PARLANDO_CAT(result_, __LINE__)).error())
