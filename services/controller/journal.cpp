#include "services/controller/journal.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

namespace parlando::controller {
using nlohmann::json;

namespace {

std::optional<SessionId> session_of(const std::string& text) {
  if (text.size() != 32 || text.find_first_not_of("0123456789abcdef") != std::string::npos) return std::nullopt;
  return SessionId{std::strtoull(text.substr(0, 16).c_str(), nullptr, 16),
                   std::strtoull(text.substr(16).c_str(), nullptr, 16)};
}

std::optional<JournalEntry> entry_of(const std::string& line) {
  const auto j = json::parse(line, nullptr, false);
  if (!j.is_object() || !j.contains("record") || !j["record"].is_object()) return std::nullopt;
  if (!j.contains("session") || !j["session"].is_string()) return std::nullopt;
  const auto session = session_of(j["session"].get<std::string>());
  const auto turn = j.find("turn"), epoch = j.find("epoch");
  if (!session || turn == j.end() || !turn->is_number_integer() || epoch == j.end() || !epoch->is_number_integer())
    return std::nullopt;
  return JournalEntry{*session, {epoch->get<std::uint64_t>()}, turn->get<std::int64_t>(), j["record"].dump()};
}

}  // namespace

Result<std::vector<JournalEntry>> Journal::load() {
  std::vector<JournalEntry> out;
  if (!is_kept() || ::access(file_.c_str(), F_OK) != 0) return out;
  std::ifstream in(file_);
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    if (in.eof()) {
      // No end of line: the write was cut off, and what is written next must not be glued to it.
      if (line.empty()) break;
      const auto whole = std::filesystem::file_size(file_) - line.size();
      if (::truncate(file_.c_str(), static_cast<off_t>(whole)) != 0)
        return fail(Errc::io, "{} ends in a half line and cannot be cut: {}", file_, std::strerror(errno));
      break;
    }
    auto entry = entry_of(line);
    if (!entry) return fail(Errc::bad_format, "{}:{} is no turn that waits: {}", file_, number, line.substr(0, 60));
    out.push_back(std::move(*entry));
  }
  lines_ = out.size();
  if (in.bad()) return fail(Errc::io, "{} cannot be read", file_);
  return out;
}

namespace {
std::string line_of(const JournalEntry& entry) {
  const json head{{"session", entry.session.text()}, {"epoch", entry.epoch.value}, {"turn", entry.turn}};
  auto line = head.dump();
  line.pop_back();
  return line + ",\"record\":" + entry.record + "}\n";
}
}  // namespace

Result<void> Journal::keep(const std::vector<JournalEntry>& waiting) {
  if (!is_kept()) return {};
  std::string text;
  for (const auto& entry : waiting) text += line_of(entry);
  const auto fresh = file_ + ".new";
  const int fd = ::open(fresh.c_str(), O_WRONLY | O_TRUNC | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return fail(Errc::io, "{} cannot be opened: {}", fresh, std::strerror(errno));
  bool good = ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()) && ::fdatasync(fd) == 0;
  ::close(fd);
  good = good && ::rename(fresh.c_str(), file_.c_str()) == 0;
  if (!good) return fail(Errc::io, "{} cannot be written: {}", fresh, std::strerror(errno));
  lines_ = waiting.size();
  return {};
}

Result<void> Journal::append(const JournalEntry& entry) {
  if (!is_kept()) return {};
  const int fd = ::open(file_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return fail(Errc::io, "{} cannot be opened: {}", file_, std::strerror(errno));
  const auto line = line_of(entry);
  const auto before = ::lseek(fd, 0, SEEK_END);
  const bool good = ::write(fd, line.data(), line.size()) == static_cast<ssize_t>(line.size()) && ::fdatasync(fd) == 0;
  const int error = errno;
  // Half a line would be glued to the next one.
  if (!good && before >= 0) [[maybe_unused]]
    const auto ignored = ::ftruncate(fd, before);
  ::close(fd);
  empty_ = false;
  ++lines_;
  if (!good) return fail(Errc::io, "{} cannot be written: {}", file_, std::strerror(error));
  return {};
}

Result<void> Journal::clear() {
  if (!is_kept() || empty_) return {};
  if (::truncate(file_.c_str(), 0) != 0 && errno != ENOENT)
    return fail(Errc::io, "{} cannot be emptied: {}", file_, std::strerror(errno));
  empty_ = true;
  lines_ = 0;
  return {};
}

}  // namespace parlando::controller
