// Asks the engine a question and tells how long the answer is: talk ENDPOINT [QUESTION]
#include <cstdio>
#include <parlando/client.hpp>

int main(int argc, char** argv) try {
  namespace sdk = parlando::sdk;
  if (argc < 2) return std::puts("usage: talk ENDPOINT [QUESTION]"), 2;
  sdk::Client client({.endpoints = {argv[1]}});
  auto talk = client.open(R"({"speak": true})");
  talk.say(argc > 2 ? argv[2] : "what is the capital of france");
  const auto turn = talk.turn();
  std::printf("%s\n%s\n", turn.user.c_str(), turn.assistant.c_str());
  std::printf("%.2f s of sound, the first of it after %.0f ms\n", static_cast<double>(turn.sound.size()) / turn.rate,
              talk.metrics().first_sound_ms);
  return 0;
} catch (const parlando::sdk::Error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
