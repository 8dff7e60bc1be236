#pragma once
/// A PostgreSQL server of the distribution for the tests of one program: in a temporary directory, on a unix socket
/// alone, as a user without rights when the tests run as root. It ends with the program, however that ends.
#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "common/base/result.hpp"
#include "tests/support/temporary_directory.hpp"

namespace parlando::context {

class PostgresServer {
 public:
  /// Started when it is first asked for, and again if a test has left it stopped. The test fails, saying why, without
  /// one.
  static PostgresServer& running();
  ~PostgresServer();
  PostgresServer(const PostgresServer&) = delete;
  PostgresServer& operator=(const PostgresServer&) = delete;

  /// Words for libpq. The role `guarded` needs its password 'gu4rd-secret', others none.
  std::string conninfo(const std::string& role = "parlando") const;
  /// Waits until it takes connections. @error Errc::io with what the server said
  Result<void> start();
  /// SIGTERM: once all have left; SIGINT: without waiting for them; SIGQUIT: at once, as after a crash.
  void stop(int signal);
  bool runs() const { return pid_ > 0; }
  /// Runs statements on a connection of its own; the test fails when one does. @return the first value, or ""
  std::string execute(const std::string& sql) const;

 private:
  PostgresServer() = default;
  Result<void> make();
  Result<pid_t> spawn(const std::vector<std::string>& command) const;
  std::string log() const;

  TemporaryDirectory folder_;
  std::string programs_;
  uid_t user_ = 0;
  gid_t group_ = 0;
  pid_t pid_ = 0;
  bool made_ = false;
};

/// A connection of the test's own, as long as the object lives.
class Session {
 public:
  explicit Session(const std::string& conninfo);
  /// @return nothing when the server refuses
  static std::unique_ptr<Session> try_open(const std::string& conninfo);
  /// The test fails when a statement does. @return the first value, or ""
  std::string execute(const std::string& sql);

 private:
  struct Finish {
    void operator()(void* connection) const;
  };
  Session() = default;
  std::unique_ptr<void, Finish> connection_;
};

}  // namespace parlando::context
