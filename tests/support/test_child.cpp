/// A child for tests of the supervisor: `test_child NAME LOG WORD…` does what its words say, one after the other.
///   exit:N        ends with that status
///   ready:PORT    says so to the supervisor
///   first:FILE    the next word only if FILE is not there, and makes it
///   serve         gives signs of life until SIGTERM, then adds NAME to LOG and ends
///   mute          says `alive` once and never again
///   deaf          gives signs of life and ignores SIGTERM
#include <fcntl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <string_view>

namespace {

void say(const std::string& line) {
  const char* text = std::getenv("PARLANDO_READY_FD");
  if (text == nullptr) std::_Exit(3);
  if (::write(std::atoi(text), line.data(), line.size()) < 0) return;  // a full pipe is no matter
}

sigset_t end_signal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  return set;
}

/// Until SIGTERM.
void beat(bool deaf) {
  const auto set = end_signal();
  const timespec pause{0, 100'000'000};
  do say("alive\n");
  while (sigtimedwait(&set, nullptr, &pause) != SIGTERM || deaf);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 3;
  // From the start: whoever reads "ready" may send it before the next word is done.
  const auto set = end_signal();
  sigprocmask(SIG_BLOCK, &set, nullptr);
  for (int n = 3; n < argc; ++n) {
    const std::string_view word = argv[n];
    const auto value = word.substr(std::min(word.find(':') + 1, word.size()));
    if (word.starts_with("exit:")) return std::atoi(value.data());
    if (word.starts_with("ready:")) say("ready " + std::string(value) + "\n");
    if (word.starts_with("first:") && ::open(value.data(), O_CREAT | O_EXCL | O_CLOEXEC, 0600) < 0) ++n;
    if (word == "mute") {
      say("alive\n");
      while (true) ::pause();
    }
    if (word == "deaf") beat(true);
    if (word == "serve") {
      beat(false);
      const int log = ::open(argv[2], O_CREAT | O_APPEND | O_WRONLY | O_CLOEXEC, 0600);
      const auto line = std::string(argv[1]) + "\n";
      return ::write(log, line.data(), line.size()) < 0 ? 3 : 0;
    }
  }
  return 0;
}
