#include "services/gateway/http_own_voices.hpp"

#include <map>

#include "services/gateway/http_form.hpp"
#include "services/gateway/json_text.hpp"

namespace parlando::gateway {
using nlohmann::json;

namespace {

constexpr std::string_view kPath = "/v1/audio/voices";

json describe(const StoredVoice& voice) {
  return {{"object", "audio.voice"}, {"id", voice.id}, {"name", voice.name}, {"created_at", voice.created}};
}

http::Response refuse(int status, const std::string& message, const std::string& param = {},
                      const std::string& code = "invalid_value") {
  return error_response({status, message, param, code});
}

http::Response refuse(const Error& error, const std::string& param = {}) {
  auto out = api_error(to_string(error.code), error.message, 0);
  out.param = param;
  if (error.code == Errc::overloaded) out.status = 409;  // waiting does not help
  return error_response(out);
}

http::Response create(const http::Request& request, const VoiceStore& store, const std::string& owner,
                      std::int64_t now) {
  const auto form = read_form(request.header("content-type"), request.body);
  if (!form) return refuse(400, form.error().message, {}, "bad_form");
  NewVoice voice;
  const std::map<std::string, std::pair<std::string*, std::size_t>, std::less<>> texts{
      {"name", {&voice.name, VoiceStore::kNameBytesMax}},
      {"transcript", {&voice.transcript, VoiceStore::kTranscriptBytesMax}},
      {"consent", {&voice.consent, VoiceStore::kConsentBytesMax}}};
  std::string file;
  for (const auto& part : *form) {
    if (part.name == "file" || part.name == "audio_sample") {
      if (!file.empty()) return refuse(400, fmt::format("'{}' is one recording too many", part.name), part.name);
      file = part.name;
      voice.recording = part.data;
      continue;
    }
    const auto found = texts.find(part.name);
    if (found == texts.end()) continue;
    const auto [to, most] = found->second;
    if (part.data.size() > most)
      return refuse(400, fmt::format("'{}' has {} bytes, expected at most {}", part.name, part.data.size(), most),
                    part.name);
    *to = part.data;
  }
  for (const auto& [name, to] : texts)
    if (to.first->find_first_not_of(" \t\r\n") == std::string::npos)
      return refuse(400, fmt::format("'{}' is missing", name), name, "missing_field");
  if (file.empty()) return refuse(400, "'file' is missing", "file", "missing_field");
  if (voice.consent == "false" || voice.consent == "no" || voice.consent == "0")
    return refuse(400, "'consent' says that the speaker does not agree", "consent");
  const auto made = store.add(voice, owner, now);
  if (!made) {
    const bool of_file = made.error().code != Errc::overloaded && made.error().code != Errc::io;
    return refuse(made.error(), of_file ? file : "");
  }
  return {200, "application/json", dump(describe(*made))};
}

}  // namespace

http::Response answer_voices(const http::Request& request, const VoiceStore& store, const std::string& owner,
                             std::int64_t now) {
  if (!store.is_kept())
    return refuse(404, "this server keeps no voices: its configuration names no folder for them", {}, "unsupported");
  const auto path = request.path();
  if (path == kPath) {
    if (request.method == "POST") return create(request, store, owner, now);
    const auto voices = store.list(owner);
    if (!voices) return refuse(voices.error());
    auto list = json::array();
    for (const auto& voice : *voices) list.push_back(describe(voice));
    return {200, "application/json", dump({{"object", "list"}, {"data", std::move(list)}, {"has_more", false}})};
  }
  const std::string id(path.substr(kPath.size() + 1));
  if (request.method == "DELETE") {
    const auto removed = store.remove(id, owner);
    if (!removed) return refuse(removed.error());
    return {200, "application/json", dump({{"object", "audio.voice.deleted"}, {"id", id}, {"deleted", true}})};
  }
  const auto voice = store.find(id, owner);
  return voice ? http::Response{200, "application/json", dump(describe(*voice))} : refuse(voice.error());
}

}  // namespace parlando::gateway
