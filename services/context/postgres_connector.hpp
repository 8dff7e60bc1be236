#pragma once
/// Makes connections on a thread of its own, so that nobody waits for a resolver or a server that does not answer: one
/// at a time, again and again with growing pauses until there is one.
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>

#include "services/context/postgres_connection.hpp"

namespace parlando::context {

class Connector {
 public:
  /// The pause behind an attempt that failed; it doubles.
  struct Pauses {
    milliseconds first{100}, max{5000};
  };
  /// A connection that can be used; may wait, for a bounded time.
  using Make = std::function<Stored<Connection>()>;

  Connector(Make make, Pauses pauses);
  /// Waits for an attempt under way.
  ~Connector();
  Connector(const Connector&) = delete;
  Connector& operator=(const Connector&) = delete;

  /// A connection is wanted from now on. @param why  there is none
  void want(StoreError why);
  /// The connection that was made, if there is one before the time.
  std::optional<Connection> take(Time until);
  /// Waits until an attempt has ended. @return whether there is a connection to take
  bool wait(Time until);
  /// Why there is none, and when the next attempt begins.
  StoreError away() const;

 private:
  void run();

  const Make make_;
  const Pauses pauses_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool wanted_ = false, ends_ = false;
  int attempts_ = 0;  ///< that failed since it is wanted
  Time next_{};
  StoreError why_;
  std::optional<Connection> made_;
  std::thread thread_;
};

}  // namespace parlando::context
