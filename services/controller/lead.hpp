#pragma once
/// How a conversation is led: its settings as they were said, checked, and what they mean here. Shared by the turns
/// that they hold for.
#include <map>
#include <memory>
#include <set>
#include <string>

#include "common/protocol/messages.hpp"
#include "services/controller/config.hpp"

namespace parlando::controller {

/// A name for a system prompt and a voice, chosen by `Settings.system = "persona:NAME"`.
struct Persona {
  std::string system, speaker;
};
using Personas = std::map<std::string, Persona>;
/// An object {name: {system, speaker}}. @param file  empty: none. @error Errc::io, Errc::bad_json naming the file
Result<Personas> load_personas(const std::string& file);

/// The silence that ends an utterance whose pauses were judged, the shortest first.
enum class Patience : std::uint8_t { likely, unsure, unfinished };

struct Lead {
  protocol::Settings settings;             ///< as said: what another controller is told
  std::string system, speaker;             ///< a persona in its place
  bool is_persona = false;                 ///< `system` is the operator's text
  std::set<std::string> tools;             ///< names of those that the client executes
  std::int32_t enough_permille = 0;        ///< with a semantic detector: so likely is an utterance complete that ends
  std::int32_t enough_again_permille = 0;  ///< and one whose pause lasts
  std::int32_t likely_permille = 0;        ///< one that is at least so likely ends behind less silence
  std::int32_t unfinished_permille = 0;    ///< and one that is less likely than this behind the longest
  std::int32_t likely_ms = 0, unsure_ms = 0;  ///< the silence that ends one that is likely, and one that may be
  std::int32_t tail_ms = 0;                   ///< sound behind the end of speech that belongs to an utterance

  /// @param lasts  of the pause that is judged
  std::int32_t enough(bool lasts) const { return lasts ? enough_again_permille : enough_permille; }
  bool is_semantic() const { return settings.detection == protocol::Detection::semantic; }
  /// Only the client ends an utterance.
  bool is_manual() const { return settings.detection == protocol::Detection::none; }
  /// How long to wait behind a pause. @param permille  how likely it is the end; -1: nobody has said
  Patience patience(std::int32_t permille) const;
  /// What a vad is asked for. @param judged  somebody says whether utterances are complete
  protocol::OpenVad vad(bool judged, Patience patience = Patience::likely) const;
  int preroll_ms(const ControllerConfig& config) const {
    return settings.prefix_ms < 0 ? config.preroll_ms : settings.prefix_ms;
  }
};
using LeadPtr = std::shared_ptr<const Lead>;

/// @error Errc::invalid_argument naming the field; Errc::not_found for a persona
Result<LeadPtr> lead_by(protocol::Settings settings, const ControllerConfig& config, const Personas& personas);
/// Settings with the fields of a JSON object in their place. @error Errc::invalid_argument naming the field
Result<protocol::Settings> changed(protocol::Settings settings, const protocol::JsonText& fields);

}  // namespace parlando::controller
