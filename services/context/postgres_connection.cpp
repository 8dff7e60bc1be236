#include "services/context/postgres_connection.hpp"

#include <libpq-fe.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <optional>
#include <utility>

namespace parlando::context {

namespace {

constexpr unsigned int kBytea = 17, kInt8 = 20, kText = 25;  // pg_type.oid
constexpr milliseconds kRetrySoon{500};
constexpr milliseconds kRetryServer{1000};
constexpr int kConnectSecondsMax = 10;

struct FreeOptions {
  void operator()(PQconninfoOption* options) const { PQconninfoFree(options); }
};
using Options = std::unique_ptr<PQconninfoOption, FreeOptions>;

/// Options of a text; null with libpq's reason. The reason may quote any part of the text.
Options parse(const std::string& conninfo, std::string& why) {
  char* text = nullptr;
  Options out(PQconninfoParse(conninfo.c_str(), &text));
  if (text != nullptr) {
    why = text;
    PQfreemem(text);
  }
  return out;
}

const char* value_of(const Options& options, std::string_view keyword) {
  for (const auto* o = options.get(); o->keyword != nullptr; ++o)
    if (keyword == o->keyword) return o->val;
  return nullptr;
}

bool is_whole(std::string_view text, int low, int high) {
  int value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  return code == std::errc() && end == text.data() + text.size() && value >= low && value <= high;
}

/// The first word of `word = value …`; empty: it does not begin so.
std::string first_word(const std::string& text) {
  const auto from = text.find_first_not_of(" \t\n");
  if (from == std::string::npos) return {};
  const auto to = text.find_first_not_of("abcdefghijklmnopqrstuvwxyz_", from);
  const auto equals = text.find_first_not_of(" \t\n", to);
  if (to == std::string::npos || to == from || equals == std::string::npos || text[equals] != '=') return {};
  return text.substr(from, to - from);
}

bool is_address(const std::string& text) {
  return text.starts_with("postgresql://") || text.starts_with("postgres://");
}

std::string one_line(std::string text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  std::string out;
  for (const char c : text) {
    if (c == '\n')
      out += "; ";
    else if (c != '\t')
      out += c;
  }
  return out;
}

}  // namespace

bool is_conninfo(const std::string& text) { return is_address(text) || !first_word(text).empty(); }

std::string conninfo_problem(const std::string& conninfo) {
  if (conninfo.find('\0') != std::string::npos) return "has a byte 0";
  if (!is_address(conninfo)) {
    const Options known(PQconndefaults());
    const auto word = first_word(conninfo);
    bool found = false;
    for (const auto* o = known.get(); o != nullptr && o->keyword != nullptr; ++o) found = found || word == o->keyword;
    if (!found)
      return fmt::format(
          "begins with the word '{}', which is no setting of PostgreSQL (a file of such a name is './…')", word);
  }
  std::string why;
  const auto options = parse(conninfo, why);
  if (!options) {
    // What libpq quotes may be part of a password that was written without the escapes it needs.
    const bool may_be_secret =
        conninfo.find("pass") != std::string::npos || (is_address(conninfo) && conninfo.find('@') != std::string::npos);
    const auto reason = may_be_secret ? one_line(why.substr(0, why.find('"'))) + "…" : one_line(why);
    return fmt::format(
        "is no address or list of settings of PostgreSQL ({}), expected postgresql://user@host/database or host=… "
        "dbname=…, special characters as %XX or in quotes",
        reason);
  }
  if (const auto* port = value_of(options, "port")) {
    std::string_view rest = port;
    while (!rest.empty()) {
      const auto one = rest.substr(0, rest.find(','));
      if (!one.empty() && !is_whole(one, 1, 65535)) return "has a port that is no number from 1 to 65535";
      rest.remove_prefix(std::min(rest.size(), one.size() + 1));
    }
  }
  if (const auto* timeout = value_of(options, "connect_timeout"); timeout != nullptr)
    if (!is_whole(timeout, 1, kConnectSecondsMax))
      return fmt::format("has a connect_timeout that is no number of seconds from 1 to {}", kConnectSecondsMax);
  const std::pair<const char*, std::vector<std::string_view>> kChoices[] = {
      {"sslmode", {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}},
      {"target_session_attrs", {"read-write", "primary", "any"}},
      {"channel_binding", {"disable", "prefer", "require"}},
      {"gssencmode", {"disable", "prefer", "require"}},
  };
  for (const auto& [keyword, choices] : kChoices) {
    const auto* value = value_of(options, keyword);
    if (value == nullptr || std::find(choices.begin(), choices.end(), value) != choices.end()) continue;
    std::string names;
    for (const auto choice : choices) names += (names.empty() ? "" : ", ") + std::string(choice);
    return fmt::format("has a {} that is none of {}", keyword, names);
  }
  return {};
}

Rows::Rows(pg_result* result) : result_(result) {}
void Rows::Clear::operator()(pg_result* result) const { PQclear(result); }
int Rows::size() const { return PQntuples(result_.get()); }
std::int64_t Rows::changed() const {
  const std::string_view text = PQcmdTuples(result_.get());
  std::int64_t out = 0;
  std::from_chars(text.data(), text.data() + text.size(), out);
  return out;
}
bool Rows::is_null(int row, int column) const { return PQgetisnull(result_.get(), row, column) != 0; }
std::string_view Rows::bytes(int row, int column) const {
  if (is_null(row, column)) return {};
  return {PQgetvalue(result_.get(), row, column), static_cast<std::size_t>(PQgetlength(result_.get(), row, column))};
}
std::int64_t Rows::number(int row, int column) const {
  std::uint64_t out = 0;
  const auto in = bytes(row, column);
  if (!in.empty() && in.size() < 8 && (in[0] & 0x80) != 0) out = ~out;
  for (const char c : in) out = out << 8 | static_cast<unsigned char>(c);
  return static_cast<std::int64_t>(out);
}
std::string Rows::text(int row, int column) const { return std::string(bytes(row, column)); }

Values& Values::number(std::int64_t value) {
  std::string out(8, '\0');
  for (int n = 0; n < 8; ++n)
    out[static_cast<std::size_t>(n)] = static_cast<char>(static_cast<std::uint64_t>(value) >> (56 - 8 * n));
  values_.push_back(std::move(out));
  types_.push_back(kInt8);
  return *this;
}
Values& Values::text(std::string_view value) {
  values_.emplace_back(value);
  types_.push_back(kText);
  return *this;
}
Values& Values::bytes(std::string_view value) {
  values_.emplace_back(value);
  types_.push_back(kBytea);
  return *this;
}

void Connection::Finish::operator()(pg_conn* connection) const { PQfinish(connection); }

int Connection::server_version() const { return PQserverVersion(connection_.get()); }

Stored<Connection> Connection::connect(const std::string& conninfo) {
  Connection out;
  std::string ignored;
  const auto options = parse(conninfo, ignored);
  if (!options) return fail(Errc::invalid_argument, "the store {}", conninfo_problem(conninfo));
  for (const char* keyword : {"password", "sslpassword"})
    if (const auto* value = value_of(options, keyword); value != nullptr && *value != '\0')
      out.secrets_.emplace_back(value);
  // What stands before the text gives way to it. A server that cannot be written to is passed over.
  const char* keywords[] = {"connect_timeout",  "keepalives_idle",      "keepalives_interval",
                            "keepalives_count", "target_session_attrs", "fallback_application_name",
                            "dbname",           "client_encoding",      nullptr};
  const char* values[] = {"2", "10", "3", "3", "read-write", "parlando-context", conninfo.c_str(), "UTF8", nullptr};
  out.connection_.reset(PQconnectdbParams(keywords, values, 1));
  if (out.connection_ == nullptr) return fail(Errc::internal, "libpq has no memory for a connection");
  auto* c = out.connection_.get();
  PQsetNoticeProcessor(
      c, [](void*, const char*) {}, nullptr);
  if (PQstatus(c) != CONNECTION_OK) return tl::make_unexpected(out.lost(out.reason()));
  const auto word = [](const char* text) { return std::string(text == nullptr ? "" : text); };
  out.where_ = fmt::format(" '{}' at '{}:{}'", word(PQdb(c)), word(PQhost(c)), word(PQport(c)));
  if (PQsetnonblocking(c, 1) != 0) return tl::make_unexpected(out.lost(out.reason()));
  return out;
}

std::string Connection::reason() const {
  std::string text = PQerrorMessage(connection_.get());
  // While it connects a line tells of each address; later the first tells why, and what follows quotes the statement.
  text = one_line(where_.empty() ? text : text.substr(0, text.find('\n')));
  for (const auto& secret : secrets_)
    for (auto at = text.find(secret); at != std::string::npos; at = text.find(secret, at + 3))
      text.replace(at, secret.size(), "***");
  return text.empty() ? "the connection was closed" : text;
}

StoreError Connection::lost(std::string why) {
  lost_ = true;
  state_.clear();
  return {Errc::unavailable, fmt::format("PostgreSQL{} is away: {}", where_, why), kRetrySoon};
}

/// What a SQLSTATE means to a caller (PostgreSQL manual, appendix A).
StoreError Connection::failed(std::string why, std::string state) {
  state_ = std::move(state);
  const auto is = [&](std::string_view begin) { return state_.starts_with(begin); };
  StoreError out(Errc::internal, fmt::format("PostgreSQL{}: {} (SQLSTATE {})", where_, why, state_));
  // It ends the connection, or it has become a replica: another connection may find a server that works.
  if (is("08") || is("57P") || is("25P") || is("25006") || PQstatus(connection_.get()) != CONNECTION_OK) lost_ = true;
  if (lost_ || is("57014") || is("55P03") || is("40") || is("53300")) {
    out.code = Errc::unavailable;
    out.retry = kRetrySoon;
  } else if (is("XX001") || is("XX002")) {
    out.code = Errc::bad_format;
  } else if (is("53") || is("58") || is("42501") || is("42P01") || is("3F")) {  // no room, no right, no table
    out.code = Errc::io;
    out.retry = kRetryServer;
  }
  return out;
}

/// @return whether something of `events` can be done
bool Connection::wait(short events, Time until) {
  pollfd one{PQsocket(connection_.get()), events, 0};
  for (;;) {
    const auto left = std::chrono::ceil<milliseconds>(until - SteadyClock().now());
    const int ready = ::poll(&one, 1, static_cast<int>(std::max<std::int64_t>(0, left.count())));
    if (ready > 0) return true;
    if (ready == 0 || errno != EINTR) return false;
  }
}

bool Connection::is_lost() {
  if (lost_) return true;
  auto* c = connection_.get();
  if (!wait(POLLIN, SteadyClock().now())) return false;
  // Words of a server that ends, and its end, come together; the end is seen once the words were read.
  if (PQconsumeInput(c) == 0 || PQstatus(c) != CONNECTION_OK) return lost_ = true;
  (void)PQisBusy(c);
  if (wait(POLLIN, SteadyClock().now()) && (PQconsumeInput(c) == 0 || PQstatus(c) != CONNECTION_OK)) lost_ = true;
  return lost_;
}

Stored<Rows> Connection::take(Time until) {
  auto* c = connection_.get();
  const auto late = [&] { return tl::make_unexpected(lost("no answer in time")); };
  for (int left = 1; left > 0;) {
    left = PQflush(c);
    if (left < 0) return tl::make_unexpected(lost(reason()));
    if (left == 0) break;
    // A server that sends before it has read all must be read, or both wait for ever.
    if (!wait(POLLIN | POLLOUT, until)) return late();
    if (PQconsumeInput(c) == 0) return tl::make_unexpected(lost(reason()));
  }
  std::optional<Rows> rows;
  std::optional<StoreError> error;
  for (;;) {
    while (PQisBusy(c) != 0) {
      if (!wait(POLLIN, until)) return late();
      if (PQconsumeInput(c) == 0) return tl::make_unexpected(lost(reason()));
    }
    auto* result = PQgetResult(c);
    if (result == nullptr) break;
    Rows next(result);
    const auto status = PQresultStatus(result);
    if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK) {
      rows.emplace(std::move(next));
      continue;
    }
    const auto* state = PQresultErrorField(result, PG_DIAG_SQLSTATE);
    const auto* why = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
    error = state == nullptr ? lost(reason()) : failed(one_line(why == nullptr ? "" : why), state);
    if (PQstatus(c) != CONNECTION_OK) break;
  }
  if (error) return tl::make_unexpected(*std::move(error));
  if (!rows) return tl::make_unexpected(lost(reason()));
  return *std::move(rows);
}

Stored<Rows> Connection::run(const char* sql, const Values& values, Time until) {
  std::vector<const char*> starts;
  std::vector<int> sizes, formats(values.values_.size(), 1);
  for (const auto& value : values.values_) {
    starts.push_back(value.data());
    sizes.push_back(static_cast<int>(value.size()));
  }
  const auto count = static_cast<int>(starts.size());
  if (PQsendQueryParams(connection_.get(), sql, count, values.types_.data(), starts.data(), sizes.data(),
                        formats.data(), 1) == 0)
    return tl::make_unexpected(lost(reason()));
  return take(until);
}

Stored<Rows> Connection::run_all(const char* sql, Time until) {
  if (PQsendQuery(connection_.get(), sql) == 0) return tl::make_unexpected(lost(reason()));
  return take(until);
}

}  // namespace parlando::context
