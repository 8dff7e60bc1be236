#include "tests/services/context/postgres_server.hpp"

#include <fcntl.h>
#include <grp.h>
#include <libpq-fe.h>
#include <poll.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <boost/test/unit_test.hpp>
#include <csignal>
#include <fstream>
#include <iterator>

namespace parlando::context {

namespace {

constexpr int kLookMs = 20;
constexpr int kStartMsMax = 60000;

/// Folder of the server's programs, the highest version; empty: there are none.
std::string find_programs() {
  std::string out;
  int highest = 0;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator("/usr/lib/postgresql", ignored)) {
    const int version = std::atoi(entry.path().filename().c_str());
    if (version <= highest || ::access((entry.path() / "bin/postgres").c_str(), X_OK) != 0) continue;
    highest = version;
    out = entry.path() / "bin";
  }
  return out;
}

std::string run(PGconn* connection, const std::string& sql) {
  const std::unique_ptr<PGresult, decltype(&PQclear)> result(PQexec(connection, sql.c_str()), &PQclear);
  const auto status = PQresultStatus(result.get());
  BOOST_REQUIRE_MESSAGE(status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK,
                        sql << ": " << PQerrorMessage(connection));
  return PQntuples(result.get()) > 0 ? PQgetvalue(result.get(), 0, 0) : "";
}

}  // namespace

PostgresServer& PostgresServer::running() {
  static PostgresServer server;
  if (!server.runs()) {
    auto started = server.made_ ? server.start() : server.make();
    BOOST_REQUIRE_MESSAGE(started.has_value(), (started ? "" : started.error().message));
  }
  return server;
}

PostgresServer::~PostgresServer() { stop(SIGQUIT); }

std::string PostgresServer::log() const {
  std::ifstream in(folder_.path() / "log");
  return {std::istreambuf_iterator<char>(in), {}};
}

Result<pid_t> PostgresServer::spawn(const std::vector<std::string>& command) const {
  std::vector<char*> words;
  for (const auto& word : command) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  const auto log = (folder_.path() / "log").string();
  const bool is_root = ::getuid() == 0;
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child < 0) return fail(Errc::io, "no process for {}", command[0]);
  if (child > 0) return child;
  const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  const int in = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (out < 0 || in < 0 || ::dup2(in, 0) < 0 || ::dup2(out, 1) < 0 || ::dup2(out, 2) < 0) ::_exit(126);
  if (is_root && (::setgroups(0, nullptr) != 0 || ::setgid(group_) != 0 || ::setuid(user_) != 0)) ::_exit(126);
  if (::prctl(PR_SET_PDEATHSIG, SIGQUIT) != 0 || ::getppid() != parent) ::_exit(126);
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::execv(words[0], words.data());
  ::_exit(127);
}

Result<void> PostgresServer::make() {
  programs_ = find_programs();
  if (programs_.empty())
    return fail(
        Errc::not_found,
        "the PostgreSQL server is missing (looked for /usr/lib/postgresql/*/bin/postgres): `make test` installs "
        "it, or `tools/setup.sh --test`");
  if (::getuid() == 0) {
    const auto* user = ::getpwnam("postgres");
    if (user == nullptr) user = ::getpwnam("nobody");
    if (user == nullptr) return fail(Errc::not_found, "there is no user 'postgres' or 'nobody' to run the server as");
    user_ = user->pw_uid;
    group_ = user->pw_gid;
    if (::chown(folder_.path().c_str(), user_, group_) != 0)
      return fail(Errc::io, "'{}' cannot be given to the server's user", folder_.path().string());
  }
  const auto data = (folder_.path() / "data").string();
  PARLANDO_TRY(const auto child, spawn({programs_ + "/initdb", "-D", data, "-U", "parlando", "-A", "trust", "-E",
                                        "UTF8", "--no-locale", "--no-sync"}));
  int status = 0;
  if (::waitpid(child, &status, 0) != child || status != 0) return fail(Errc::io, "initdb failed: {}", log());
  std::ofstream(data + "/postgresql.conf", std::ios::app)
      << "listen_addresses = ''\nunix_socket_directories = '" << folder_.path().string()
      << "'\nshared_buffers = 16MB\nmax_connections = 40\n";
  std::ofstream(data + "/pg_hba.conf", std::ios::trunc) << "local all guarded scram-sha-256\nlocal all all trust\n";
  PARLANDO_DO(start());
  execute("CREATE ROLE guarded LOGIN SUPERUSER PASSWORD 'gu4rd-secret'");
  made_ = true;
  return {};
}

std::string PostgresServer::conninfo(const std::string& role) const {
  return fmt::format("host={} user={} dbname=postgres", folder_.path().string(), role);
}

Result<void> PostgresServer::start() {
  PARLANDO_TRY(pid_, spawn({programs_ + "/postgres", "-D", (folder_.path() / "data").string()}));
  for (int waited = 0; waited < kStartMsMax; waited += kLookMs) {
    if (PQping(conninfo().c_str()) == PQPING_OK) return {};
    if (::waitpid(pid_, nullptr, WNOHANG) == pid_) {
      pid_ = 0;
      break;
    }
    ::poll(nullptr, 0, kLookMs);
  }
  stop(SIGQUIT);
  return fail(Errc::io, "the PostgreSQL server does not start: {}", log());
}

void PostgresServer::stop(int signal) {
  if (pid_ <= 0) return;
  ::kill(pid_, signal);
  ::waitpid(pid_, nullptr, 0);
  pid_ = 0;
}

std::string PostgresServer::execute(const std::string& sql) const { return Session(conninfo()).execute(sql); }

Session::Session(const std::string& conninfo) : connection_(PQconnectdb(conninfo.c_str())) {
  auto* c = static_cast<PGconn*>(connection_.get());
  BOOST_REQUIRE_MESSAGE(PQstatus(c) == CONNECTION_OK, PQerrorMessage(c));
  PQsetNoticeProcessor(
      c, [](void*, const char*) {}, nullptr);
}

std::unique_ptr<Session> Session::try_open(const std::string& conninfo) {
  std::unique_ptr<Session> out(new Session);
  out->connection_.reset(PQconnectdb(conninfo.c_str()));
  return PQstatus(static_cast<PGconn*>(out->connection_.get())) == CONNECTION_OK ? std::move(out) : nullptr;
}

void Session::Finish::operator()(void* connection) const { PQfinish(static_cast<PGconn*>(connection)); }

std::string Session::execute(const std::string& sql) { return run(static_cast<PGconn*>(connection_.get()), sql); }

}  // namespace parlando::context
