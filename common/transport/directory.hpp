#pragma once
/// Replicas that come and go. Per role there is a list of sources; what they name together, without duplicates, is the
/// role's set of endpoints. Changes are told as differences, so that a transport adds and removes connections.
/// ARCHITECTURE.md, "The mesh".
///
/// Sources:
///   `inproc://x`, `ipc://path`, `tcp://host:port`   that endpoint
///   `file:/path`                                    one endpoint a line, `#` starts a comment; looked at every second
///   `dns:tcp://name:port`                           every address of a (headless) name, asked every second
///
/// What is believed: a source that names fewer endpoints than before is believed at once. A source that cannot be read
/// is not: a missing file and a resolver that fails (SERVFAIL, time-out, no answer) keep the last known set for as long
/// as it lasts, because dead replicas are noticed by their heartbeats and a name server's outage must not take the mesh
/// down. A name without any address (NXDOMAIN, empty answer) is believed when it has lasted `keep`.
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "common/base/clock.hpp"
#include "common/base/result.hpp"

namespace parlando::transport {

/// Asks for the addresses of names. Neither call blocks.
class Resolver {
 public:
  enum class Outcome {
    found,    ///< at least one address
    nothing,  ///< the name does not exist or has no address
    failed,   ///< nobody could say: SERVFAIL, time-out, no name server
  };
  struct Answer {
    std::string name;
    int port = 0;
    Outcome outcome = Outcome::failed;
    std::vector<std::string> addresses;  ///< numeric, IPv6 without brackets
  };
  virtual ~Resolver() = default;
  /// @return false when too many questions wait already; ask again later
  virtual bool request(const std::string& name, int port) = 0;
  /// One answer, in any order, if there is one.
  virtual std::optional<Answer> take() = 0;
};

struct DirectoryOptions {
  milliseconds period{1000};         ///< between two comparisons
  milliseconds keep{30'000};         ///< how long "no such name" may last before it is believed
  std::size_t endpoints_max = 1024;  ///< per role; those known stay, further ones are refused and counted
};

struct DirectoryCounters {
  std::uint64_t files_unreadable = 0;   ///< comparisons for which a file could not be read
  std::uint64_t lines_refused = 0;      ///< lines of files that are no endpoint; counted once per version of the file
  std::uint64_t names_failed = 0;       ///< answers "failed"
  std::uint64_t names_empty = 0;        ///< answers "nothing"
  std::uint64_t names_late = 0;         ///< comparisons at which an earlier question had no answer yet
  std::uint64_t questions_refused = 0;  ///< the resolver's queue was full
  std::uint64_t answers_unknown = 0;    ///< answers to no question of ours
  std::uint64_t endpoints_refused = 0;  ///< endpoints above `endpoints_max`, per comparison that found them
};

/// Plain class; one thread at a time.
class Directory {
 public:
  using Sources = std::map<std::string, std::vector<std::string>>;  ///< role -> sources
  using Endpoint = std::pair<std::string, std::string>;             ///< role, endpoint
  struct Changes {
    std::vector<Endpoint> added;
    std::vector<Endpoint> removed;
    bool empty() const { return added.empty() && removed.empty(); }
  };

  /// What is wrong with a source, for a configuration's check. @error Errc::invalid_argument
  static Result<void> check(const std::string& source);
  /// @param resolver  needed only when a source starts with `dns:`. @error Errc::invalid_argument naming the source
  static Result<Directory> make(const Sources& sources, std::unique_ptr<Resolver> resolver = {},
                                DirectoryOptions options = {});

  /// Takes answers, and once a period looks at files and asks for names. Never waits. The first call names everything
  /// that needs no resolver.
  Changes poll(Time now);
  /// When the next comparison is due; answers are taken at any call.
  Time next() const { return next_; }
  /// Of one role, sorted; those `poll` has told.
  std::vector<std::string> endpoints(const std::string& role) const;
  const DirectoryCounters& counters() const { return counters_; }

 private:
  struct Source;
  struct Role;
  void look(Source& source, Time now);
  void take(const Resolver::Answer& answer, Time now);
  void compare(const std::string& name, Role& role, Changes& out);

 public:
  Directory(Directory&&) noexcept;
  Directory& operator=(Directory&&) noexcept;
  ~Directory();

 private:
  Directory();
  std::map<std::string, Role> roles_;
  std::unique_ptr<Resolver> resolver_;
  DirectoryOptions options_;
  DirectoryCounters counters_;
  Time next_{};
};

/// Names by getaddrinfo on one thread, which sleeps while nothing is asked. A look-up that hangs delays the other names
/// and nobody else; at most `questions_max` wait.
class ThreadResolver final : public Resolver {
 public:
  /// Answers a question on the resolver's thread; may block.
  using LookUp = Answer (*)(const std::string& name, int port, void* context);
  explicit ThreadResolver(std::size_t questions_max = 64, LookUp look_up = &system_look_up, void* context = nullptr);
  /// Does not wait for a look-up that hangs: its thread ends by itself when the look-up does.
  ~ThreadResolver() override;
  bool request(const std::string& name, int port) override;
  std::optional<Answer> take() override;
  static Answer system_look_up(const std::string& name, int port, void* context);

 private:
  struct Shared;
  std::shared_ptr<Shared> shared_;
};

/// `tcp://10.0.0.1:5000`, `tcp://[fd00::1]:5000`
std::string tcp_endpoint(const std::string& address, int port);

}  // namespace parlando::transport
