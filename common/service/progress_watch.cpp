#include "common/service/progress_watch.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <fstream>
#include <sstream>

namespace parlando::service {

ThreadUse thread_use(pid_t thread) {
  const ThreadUse unknown{true, milliseconds(0)};
  std::ifstream file(fmt::format("/proc/self/task/{}/stat", thread));
  std::string line;
  if (thread == 0 || !std::getline(file, line)) return unknown;
  const auto name_end = line.rfind(')');  // the name in front of it may hold anything
  if (name_end == std::string::npos) return unknown;
  std::istringstream rest(line.substr(name_end + 1));
  char state = 0;
  std::string skipped;
  std::int64_t user = 0, system = 0;
  rest >> state;
  for (int field = 0; field < 10; ++field) rest >> skipped;
  rest >> user >> system;
  if (!rest) return unknown;
  return {state == 'R', milliseconds((user + system) * 1000 / ::sysconf(_SC_CLK_TCK))};
}

}  // namespace parlando::service
