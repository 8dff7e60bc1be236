#pragma once
/// What clients say and are told on the WebSocket `/v1/dialogue`, as text: JSON objects with a `type`. README.md lists
/// them.
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "common/base/clock.hpp"
#include "common/protocol/messages.hpp"

namespace parlando::gateway {

/// A conversation is asked for.
struct OpenOptions : protocol::Settings {
  std::optional<std::uint64_t> seed;  ///< empty: any
  std::optional<milliseconds> lead;   ///< how far sound may be ahead of the loudspeaker; empty: as it comes
  bool stored = true;                 ///< else nothing of it outlives its controller
  std::optional<SessionId> session;   ///< one that is stored, which is to go on; empty: a new one
  std::string token;                  ///< its `session_token`
};

/// What was said in a session is to be deleted.
struct EraseOptions {
  std::optional<SessionId> session;  ///< empty: the one that is open here
  std::string token;                 ///< its `session_token`
};

/// Settings that change: applied to those that stand (`protocol::apply`), they make a Configure.
struct SettingsChange {
  protocol::JsonText changes;
};

/// A conversation whose socket was lost is to go on here.
struct ResumeOptions {
  SessionId session;
  std::string token;                 ///< as `opened` gave it
  protocol::Attach claim;            ///< what the client has of which turn; without digests
  std::optional<milliseconds> lead;  ///< another one, if the session has any
};

using ClientMessage = std::variant<OpenOptions, ResumeOptions, EraseOptions, SettingsChange, protocol::Flush,
                                   protocol::Say, protocol::Cancel, protocol::Item, protocol::Respond,
                                   protocol::ToolOutput, protocol::Utter, protocol::Truncate, protocol::Forget>;

/// @error Errc::bad_json, Errc::unknown_type: no message at all; Errc::invalid_argument: one with a wrong field, which
/// is named
Result<ClientMessage> read_client_message(std::string_view text);

/// What a client says that breaks the protocol's form, and is counted against it.
inline bool is_malformed(Errc code) {
  return code == Errc::bad_json || code == Errc::unknown_type || code == Errc::bad_frame;
}

/// What a client keeps of its session.
struct SessionKeys {
  std::string resume_token;   ///< single use
  std::string session_token;  ///< empty: this gateway gives none
};

// Events.
std::string opened_event(SessionId session, std::uint64_t seed, const SessionKeys& keys, const protocol::Opened& opened,
                         std::optional<milliseconds> lead = {});
std::string resumed_event(SessionId session, const SessionKeys& keys, const protocol::Attached& attached,
                          std::optional<milliseconds> lead = {});
/// @param turns  that were stored of it
std::string erased_event(SessionId session, std::int64_t turns);
std::string speech_event(std::string_view type, std::int64_t sample);
std::string text_event(TurnId turn, protocol::TextKind kind, std::string_view text);
std::string turn_event(const protocol::TurnDone& done);
std::string cancelled_event(TurnId turn);
std::string hold_event(TurnId turn);
std::string release_event(TurnId turn);
std::string interrupted_event(const protocol::Interrupted& interrupted);
std::string waiting_event(const protocol::Waiting& waiting);
std::string noted_event(const protocol::Noted& noted);
/// @param session_ended  no session is open any more: the client may open another one
/// @param turn  that has failed; 0: none has
std::string error_event(std::string_view code, std::string_view message, std::int64_t retry_ms = 0,
                        bool session_ended = false, TurnId turn = {});

}  // namespace parlando::gateway
