#include "common/transport/directory.hpp"

#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <thread>

#include "common/base/assert.hpp"
#include "common/base/file_stamp.hpp"
#include "common/base/mapped_file.hpp"

namespace parlando::transport {

namespace {

constexpr std::size_t kFileBytesMax = 1u << 20;
constexpr std::size_t kNameCharactersMax = 253;  // of a name in DNS
constexpr std::string_view kFile = "file:";
constexpr std::string_view kDns = "dns:tcp://";
constexpr std::string_view kTcp = "tcp://";

/// Host and port of `host:port`, `[v6]:port`.
Result<std::pair<std::string, int>> host_and_port(std::string_view text) {
  const auto colon = text.rfind(':');
  const auto host = text.substr(0, colon == std::string_view::npos ? 0 : colon);
  if (host.empty()) return fail(Errc::invalid_argument, "'{}' is not host:port", text);
  const auto digits = text.substr(colon + 1);
  int port = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  if (error != std::errc() || end != digits.data() + digits.size() || port < 1 || port > 65535)
    return fail(Errc::invalid_argument, "the port of '{}' is '{}', expected 1 to 65535", text, digits);
  return std::pair(std::string(host), port);
}

/// An endpoint as ZeroMQ takes it.
Result<void> check_endpoint(std::string_view text) {
  if (text.starts_with(kTcp)) {
    PARLANDO_TRY([[maybe_unused]] const auto parts, host_and_port(text.substr(kTcp.size())));
    return {};
  }
  for (const std::string_view prefix : {"inproc://", "ipc://"})
    if (text.starts_with(prefix) && text.size() > prefix.size()) return {};
  return fail(Errc::invalid_argument, "'{}' is not an endpoint: expected inproc://, ipc:// or tcp://host:port", text);
}

std::string_view trimmed(std::string_view text) {
  const auto first = text.find_first_not_of(" \t\r");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

}  // namespace

std::string tcp_endpoint(const std::string& address, int port) {
  const bool v6 = address.find(':') != std::string::npos;
  return v6 ? fmt::format("tcp://[{}]:{}", address, port) : fmt::format("tcp://{}:{}", address, port);
}

struct Directory::Source {
  enum class Kind { endpoint, file, name };
  Kind kind = Kind::endpoint;
  std::string text;  // endpoint, path or name
  int port = 0;
  std::set<std::string> endpoints;  // last known
  FileStamp stamp;                  // of a file that was read
  bool read = false;                // `stamp` means something
  bool asked = false;               // a question is with the resolver
  std::optional<Time> empty_since;  // of a name that had addresses
};

struct Directory::Role {
  std::vector<Source> sources;
  std::set<std::string> told;
};

Directory::Directory() = default;
Directory::Directory(Directory&&) noexcept = default;
Directory& Directory::operator=(Directory&&) noexcept = default;
Directory::~Directory() = default;

Result<void> Directory::check(const std::string& source) {
  if (source.starts_with(kFile)) {
    if (source.size() == kFile.size()) return fail(Errc::invalid_argument, "'{}' names no file", source);
    return {};
  }
  if (source.starts_with("dns:")) {
    if (!source.starts_with(kDns))
      return fail(Errc::invalid_argument, "'{}' is not a source: expected dns:tcp://name:port", source);
    PARLANDO_TRY(const auto parts, host_and_port(std::string_view(source).substr(kDns.size())));
    if (parts.first.size() > kNameCharactersMax)
      return fail(Errc::invalid_argument, "a name has {} characters, at most {} are allowed", parts.first.size(),
                  kNameCharactersMax);
    return {};
  }
  return check_endpoint(source);
}

Result<Directory> Directory::make(const Sources& sources, std::unique_ptr<Resolver> resolver,
                                  DirectoryOptions options) {
  Directory out;
  out.options_ = options;
  for (const auto& [role, list] : sources) {
    auto& known = out.roles_[role].sources;
    for (const auto& text : list) {
      PARLANDO_DO(check(text));
      Source source;
      if (text.starts_with(kFile)) {
        source.kind = Source::Kind::file;
        source.text = text.substr(kFile.size());
      } else if (text.starts_with(kDns)) {
        PARLANDO_TRY(auto parts, host_and_port(std::string_view(text).substr(kDns.size())));
        if (!resolver) return fail(Errc::invalid_argument, "'{}' needs a resolver, none is given", text);
        source.kind = Source::Kind::name;
        source.text = std::move(parts.first);
        source.port = parts.second;
      } else {
        source.text = text;
        source.endpoints = {text};
      }
      known.push_back(std::move(source));
    }
  }
  out.resolver_ = std::move(resolver);
  return out;
}

void Directory::look(Source& source, Time now) {
  if (source.kind == Source::Kind::file) {
    // The stamp is taken before reading: what is written meanwhile shows as a change next time.
    const auto stamp = FileStamp::of(source.text);
    if (source.read && stamp == source.stamp) return;
    const auto text = read_file(source.text, kFileBytesMax);
    source.read = text.has_value();
    if (!text) {
      ++counters_.files_unreadable;
      return;
    }
    source.stamp = stamp;
    source.endpoints.clear();
    for (std::string_view rest = *text; !rest.empty();) {
      const auto end = std::min(rest.find('\n'), rest.size());
      const auto line = trimmed(rest.substr(0, std::min(rest.find('#'), end)));
      rest.remove_prefix(std::min(end + 1, rest.size()));
      if (line.empty()) continue;
      if (check_endpoint(line))
        source.endpoints.emplace(line);
      else
        ++counters_.lines_refused;
    }
    return;
  }
  if (source.kind != Source::Kind::name) return;
  if (source.empty_since && now - *source.empty_since >= options_.keep) source.endpoints.clear();
  if (source.asked) {
    ++counters_.names_late;
    return;
  }
  source.asked = resolver_->request(source.text, source.port);
  if (!source.asked) ++counters_.questions_refused;
}

void Directory::take(const Resolver::Answer& answer, Time now) {
  bool wanted = false;
  for (auto& [name, role] : roles_)
    for (auto& source : role.sources) {
      // One name may serve several roles, each of which has asked: any answer will do for all.
      if (source.kind != Source::Kind::name || source.text != answer.name || source.port != answer.port) continue;
      wanted = wanted || source.asked;
      source.asked = false;
      switch (answer.outcome) {
        case Resolver::Outcome::found:
          source.empty_since.reset();
          source.endpoints.clear();
          for (const auto& address : answer.addresses) source.endpoints.insert(tcp_endpoint(address, answer.port));
          break;
        case Resolver::Outcome::nothing:
          ++counters_.names_empty;
          if (!source.empty_since) source.empty_since = now;
          break;
        case Resolver::Outcome::failed:
          ++counters_.names_failed;
          // An outage says nothing about the name: the time for which it was empty starts anew.
          source.empty_since.reset();
          break;
      }
    }
  if (!wanted) ++counters_.answers_unknown;
}

void Directory::compare(const std::string& name, Role& role, Changes& out) {
  std::set<std::string> wanted;
  for (const auto& source : role.sources) wanted.insert(source.endpoints.begin(), source.endpoints.end());
  std::erase_if(role.told, [&](const auto& endpoint) {
    if (wanted.contains(endpoint)) return false;
    out.removed.emplace_back(name, endpoint);
    return true;
  });
  for (const auto& endpoint : wanted) {
    if (role.told.contains(endpoint)) continue;
    if (role.told.size() >= options_.endpoints_max) {
      ++counters_.endpoints_refused;
      continue;
    }
    role.told.insert(endpoint);
    out.added.emplace_back(name, endpoint);
  }
}

Directory::Changes Directory::poll(Time now) {
  Changes out;
  bool changed = false;
  if (resolver_)
    while (const auto answer = resolver_->take()) {
      take(*answer, now);
      changed = true;
    }
  if (now >= next_) {
    next_ = now + options_.period;
    changed = true;
    for (auto& [name, role] : roles_)
      for (auto& source : role.sources) look(source, now);
  }
  if (changed)
    for (auto& [name, role] : roles_) compare(name, role, out);
  return out;
}

std::vector<std::string> Directory::endpoints(const std::string& role) const {
  const auto found = roles_.find(role);
  if (found == roles_.end()) return {};
  return {found->second.told.begin(), found->second.told.end()};
}

struct ThreadResolver::Shared {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::pair<std::string, int>> questions;
  std::deque<Answer> answers;  // at most as many as questions were let in: `open` counts both
  std::size_t open = 0;
  std::size_t open_max = 0;
  bool busy = false;
  bool stop = false;
  LookUp look_up = nullptr;
  void* context = nullptr;
  std::thread thread;
};

ThreadResolver::ThreadResolver(std::size_t questions_max, LookUp look_up, void* context)
    : shared_(std::make_shared<Shared>()) {
  shared_->open_max = questions_max;
  shared_->look_up = look_up;
  shared_->context = context;
  shared_->thread = std::thread([shared = shared_] {
    std::unique_lock lock(shared->mutex);
    while (true) {
      shared->changed.wait(lock, [&] { return shared->stop || !shared->questions.empty(); });
      if (shared->stop) return;
      const auto [name, port] = std::move(shared->questions.front());
      shared->questions.pop_front();
      shared->busy = true;
      lock.unlock();
      auto answer = shared->look_up(name, port, shared->context);
      lock.lock();
      shared->busy = false;
      shared->answers.push_back(std::move(answer));
    }
  });
}

ThreadResolver::~ThreadResolver() {
  std::thread thread;
  bool hangs = false;
  {
    const std::lock_guard lock(shared_->mutex);
    shared_->stop = true;
    hangs = shared_->busy;
    thread = std::move(shared_->thread);
  }
  shared_->changed.notify_one();
  // getaddrinfo cannot be called off and may take tens of seconds. The thread owns a share of all it touches.
  if (hangs)
    thread.detach();
  else
    thread.join();
}

bool ThreadResolver::request(const std::string& name, int port) {
  {
    const std::lock_guard lock(shared_->mutex);
    if (shared_->open >= shared_->open_max) return false;
    ++shared_->open;
    shared_->questions.emplace_back(name, port);
  }
  shared_->changed.notify_one();
  return true;
}

std::optional<Resolver::Answer> ThreadResolver::take() {
  const std::lock_guard lock(shared_->mutex);
  if (shared_->answers.empty()) return {};
  auto answer = std::move(shared_->answers.front());
  shared_->answers.pop_front();
  --shared_->open;
  return answer;
}

Resolver::Answer ThreadResolver::system_look_up(const std::string& name, int port, void*) {
  Answer out{name, port, Outcome::failed, {}};
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_ADDRCONFIG;
  addrinfo* list = nullptr;
  const int code = ::getaddrinfo(name.c_str(), nullptr, &hints, &list);
  // glibc answers EAI_AGAIN for SERVFAIL and time-outs; EAI_NODATA is a name without addresses.
  if (code == EAI_NONAME || code == EAI_NODATA || code == EAI_ADDRFAMILY) out.outcome = Outcome::nothing;
  if (code != 0) return out;
  std::set<std::string> addresses;
  for (const auto* a = list; a != nullptr; a = a->ai_next) {
    char text[NI_MAXHOST];
    if (::getnameinfo(a->ai_addr, a->ai_addrlen, text, sizeof text, nullptr, 0, NI_NUMERICHOST) == 0)
      addresses.insert(text);
  }
  ::freeaddrinfo(list);
  out.addresses.assign(addresses.begin(), addresses.end());
  out.outcome = out.addresses.empty() ? Outcome::nothing : Outcome::found;
  return out;
}

}  // namespace parlando::transport
