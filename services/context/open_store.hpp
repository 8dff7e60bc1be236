#pragma once
/// Where turns are kept, as a configuration says it: the name of a file (SQLite), or PostgreSQL by its address
/// (`postgresql://…`) or by words (`host=… dbname=…`).
#include "services/context/store.hpp"

namespace parlando::context {

/// Empty, or what is wrong with a place. Says no value that may be a password.
std::string place_problem(const std::string& place);
/// @error as `SqliteStore::open` and `PostgresStore::open`
Result<std::unique_ptr<Store>> open_store(const std::string& place);

}  // namespace parlando::context
