#pragma once
/// One connection to PostgreSQL whose statements end at a time, whatever the server or the network does. A statement
/// that did not end in time, or whose connection broke, may have been done or not: the connection is lost then.
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "services/context/store.hpp"

struct pg_conn;
struct pg_result;

namespace parlando::context {

/// Empty, or what is wrong with an address (`postgresql://…`) or with words (`host=… dbname=…`). Says no value that may
/// be a password.
std::string conninfo_problem(const std::string& conninfo);
/// Whether a text is meant to be one of those, rather than the name of a file.
bool is_conninfo(const std::string& text);

/// The answer of a statement. Columns count from 0; what is NULL reads as 0 and "".
class Rows {
 public:
  explicit Rows(pg_result* result);
  int size() const;
  std::int64_t changed() const;  ///< rows that the statement wrote
  bool is_null(int row, int column) const;
  std::int64_t number(int row, int column) const;  ///< of an integer or a boolean
  std::string text(int row, int column) const;     ///< bytes of a text or bytea

 private:
  std::string_view bytes(int row, int column) const;
  struct Clear {
    void operator()(pg_result* result) const;
  };
  std::unique_ptr<pg_result, Clear> result_;
};

/// Values of $1, $2, … of a statement.
class Values {
 public:
  Values& number(std::int64_t value);  ///< bigint
  Values& text(std::string_view value);
  Values& bytes(std::string_view value);  ///< bytea

 private:
  friend class Connection;
  std::vector<std::string> values_;
  std::vector<unsigned int> types_;
};

class Connection {
 public:
  /// Connects; may take as long as `connect_timeout` (2 s unless the text says otherwise) for each address, and as the
  /// resolver takes. @error Errc::unavailable, also when the server refuses
  static Stored<Connection> connect(const std::string& conninfo);
  Connection(Connection&&) noexcept = default;
  Connection& operator=(Connection&&) noexcept = default;

  /// One statement. @error Errc::unavailable (lost, not in time, a lock), Errc::io, Errc::bad_format, Errc::internal
  Stored<Rows> run(const char* sql, const Values& values, Time until);
  /// Several statements as one transaction. @return the rows of the last one
  Stored<Rows> run_all(const char* sql, Time until);
  /// Looks whether the other side has hung up, without waiting.
  bool is_lost();
  /// Nothing is asked of it any more.
  void give_up() { lost_ = true; }
  /// SQLSTATE of the last statement that failed, "" when the server did not say one.
  const std::string& state() const { return state_; }
  int server_version() const;

 private:
  struct Finish {
    void operator()(pg_conn* connection) const;
  };
  Connection() = default;
  Stored<Rows> take(Time until);
  StoreError failed(std::string why, std::string state);
  StoreError lost(std::string why);
  bool wait(short events, Time until);
  std::string reason() const;

  std::unique_ptr<pg_conn, Finish> connection_;
  std::vector<std::string> secrets_;
  std::string where_, state_;
  bool lost_ = false;
};

}  // namespace parlando::context
