#include "services/context/open_store.hpp"

#include "services/context/postgres_connection.hpp"
#include "services/context/postgres_store.hpp"
#include "services/context/sqlite_store.hpp"

namespace parlando::context {

std::string place_problem(const std::string& place) {
  if (place.empty()) return "is empty, expected a file name or an address of PostgreSQL";
  if (is_conninfo(place)) return conninfo_problem(place);
  if (place.find('\0') != std::string::npos) return "has a byte 0";
  if (const auto scheme = place.find("://"); scheme != std::string::npos && scheme < place.find('/'))
    return fmt::format("is an address of '{}', expected a file name or postgresql://…", place.substr(0, scheme));
  std::error_code ignored;
  if (place.back() == '/' || std::filesystem::is_directory(place, ignored))
    return fmt::format("is '{}', a folder, expected a file name", place);
  return {};
}

Result<std::unique_ptr<Store>> open_store(const std::string& place) {
  return is_conninfo(place) ? PostgresStore::open(place) : SqliteStore::open(place);
}

}  // namespace parlando::context
