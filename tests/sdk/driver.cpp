// Does with the C++ library what it is told, a JSON object a line; answers a line each. tests/sdk/README.md lists the
// commands.
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <parlando/client.hpp>

namespace {
namespace sdk = parlando::sdk;
using nlohmann::json;
using std::chrono::milliseconds;

/// Of a WAV file as the questions are: 16 kHz, mono, 16 bit, a header of 44 bytes.
std::vector<std::int16_t> sound_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  const auto at = bytes.find("data");
  if (at == std::string::npos) throw sdk::Error("not_found", path);
  std::vector<std::int16_t> out((bytes.size() - at - 8) / 2);
  std::memcpy(out.data(), bytes.data() + at + 8, out.size() * 2);
  return out;
}

struct Driver {
  std::unique_ptr<sdk::Client> client;
  std::map<std::string, std::unique_ptr<sdk::Conversation>> talks;

  sdk::Conversation& talk(const json& c) {
    const auto found = talks.find(c.value("talk", "a"));
    if (found == talks.end()) throw sdk::Error("not_found", "no such conversation");
    return *found->second;
  }

  json take_turn(sdk::Conversation& talk) {
    const auto turn = talk.turn();
    const auto record = json::parse(turn.record.json);
    json tools = json::array();
    for (const auto& call : record.value("tool_calls", json::array())) tools.push_back(call["name"]);
    return {{"number", turn.number},
            {"user", turn.user},
            {"assistant", turn.assistant},
            {"samples", turn.sound.size()},
            {"audio_seconds", record["audio_seconds"]},
            {"tools", tools}};
  }

  json wait_for(sdk::Conversation& talk, const std::string& type) {
    std::size_t samples = 0;
    while (const auto told = talk.next(milliseconds(60000))) {
      if (const auto* sound = std::get_if<sdk::Sound>(&*told)) {
        samples += sound->samples.size();
        if (type == "sound") return {{"type", "sound"}, {"samples", samples}};
        continue;
      }
      const auto& event = std::get<sdk::Event>(*told);
      if (event.type != type) continue;
      json out{{"type", type}, {"samples", samples}};
      if (type == "error") out["code"] = event.text("code");
      return out;
    }
    return {{"ended", true}, {"samples", samples}};
  }

  json connect(const json& c) {
    sdk::ClientOptions options;
    options.endpoints = c["endpoints"].get<std::vector<std::string>>();
    options.name = c.value("name", "client");
    if (c.contains("keys")) options.keys = sdk::Keys::read(c["keys"][0], c["keys"][1], c["keys"][2]);
    client = std::make_unique<sdk::Client>(options);
    return json::object();
  }

  json begin(json c, bool resumes) {
    const auto name = c.value("as", "a");
    const milliseconds timeout(static_cast<int>(1000 * c.value("timeout", 30.0)));
    std::vector<sdk::Tool> tools;
    const auto client_tools = c.value("client_tools", json::object());
    for (const auto& [tool, output] : client_tools.items()) {
      tools.push_back({.name = tool, .description = tool + "."});
      tools.back().function = [text = output.get<std::string>()](const std::string&) { return text; };
    }
    if (c.contains("again")) c.update(json(c["again"]));
    for (const auto* own : {"as", "talk", "timeout", "do", "client_tools", "again"}) c.erase(own);
    auto talk = resumes ? client->resume(c["token"].dump(), tools, timeout) : client->open(c.dump(), tools, timeout);
    json out{{"session", talk.session()}, {"rate", talk.rate()}};
    talks[name] = std::make_unique<sdk::Conversation>(std::move(talk));
    return out;
  }

  json metrics(const sdk::Metrics& m) {
    return {{"turns", m.turns},
            {"errors", m.errors},
            {"resumed", m.resumed},
            {"said_again", m.said_again},
            {"sound_sent_seconds", m.sound_sent_seconds},
            {"sound_received_seconds", m.sound_received_seconds},
            {"first_text_ms", m.first_text_ms},
            {"first_sound_ms", m.first_sound_ms},
            {"whole_turn_ms", m.whole_turn_ms}};
  }

  json run(const json& c) {
    const auto what = c["do"].get<std::string>();
    if (what == "connect") return connect(c);
    if (what == "open" || what == "resume") return begin(c, what == "resume");
    if (what == "quit") {
      client->close();
      return json::object();
    }
    if (what == "erase_session") return {{"turns", client->erase(c["token"].dump())}};
    // The type keeps odd numbers of bytes out; the package for Python refuses them with these words.
    if (what == "bytes") throw sdk::Error("invalid_argument", c["count"].dump() + " bytes");
    auto& t = talk(c);
    if (what == "turn") return take_turn(t);
    if (what == "wait") return wait_for(t, c["type"]);
    if (what == "session_token") return {{"token", json::parse(t.session_token())}};
    if (what == "erase") return {{"turns", t.erase()}};
    if (what == "endpoint") return {{"endpoint", t.endpoint()}};
    if (what == "metrics") return metrics(t.metrics());
    if (what == "close") {
      const auto token = json::parse(t.resume_token());
      t.close(c.value("detach", false));
      return {{"token", token}};
    }
    if (what == "audio") {
      const auto samples = sound_of(c["file"]);
      const auto from = c.value("from", std::size_t{0}), to = c.value("to", samples.size());
      t.send_audio(std::span(samples).subspan(from, to - from));
    } else if (what == "silence") {
      t.send_audio(std::vector<std::int16_t>(c["samples"].get<std::size_t>()));
    } else if (what == "say") {
      t.say(c["text"].get<std::string>());
    } else if (what == "flush") {
      t.flush();
    } else if (what == "cancel") {
      t.cancel();
    } else if (what == "item") {
      t.item(c["role"].get<std::string>(), c["text"].get<std::string>());
    } else {
      throw sdk::Error("unknown_type", what);
    }
    return json::object();
  }
};
}  // namespace

int main() {
  Driver driver;
  for (std::string line; std::getline(std::cin, line);) {
    json out;
    try {
      out = driver.run(json::parse(line));
    } catch (const sdk::Error& error) {
      out = {{"error", error.code}, {"message", error.message}};
    }
    std::cout << out.dump() << std::endl;
  }
  driver.talks.clear();
}
