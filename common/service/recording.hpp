#pragma once
/// Recording and replay of a service: everything that reaches its core, with the time at which it did, goes to a file;
/// replay gives it to a new core of the same configuration and compares what that says, byte for byte. Works for cores
/// whose behaviour is a function of what reaches them (`Replayable`).
///
/// The file: the line `parlando recording 1`, a header as one line of JSON {service, role, core, identity}, then
/// records {kind 1 byte, time 8 (nanoseconds of the steady clock), size 4, content}, little-endian:
/// `m` a message (peer, deadline, frames), `p` a peer and its state, `r` a refusal, `t` a tick, `d` that it is to
/// drain, `w` a unit of work that had a result, `c` the wall clock (seconds ahead of the steady one), `x` the core
/// threw, `o` what it said: per message {type 2, stream 4, CRC-32C of peer and frames 4}. A file that was cut off is
/// read up to the last whole record.
#include <chrono>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>

#include "common/service/core.hpp"

namespace parlando::service {

/// Of a core that can be recorded.
class Replayable {
 public:
  virtual ~Replayable() = default;
  /// What is random about this one: a replay gives it back with `set_identity` before anything else.
  virtual std::string identity() const = 0;
  virtual void set_identity(std::string identity) = 0;
  /// How far the wall clock is ahead of the steady one; told before the first message and when it has changed.
  virtual void set_wall_clock(std::chrono::seconds ahead) = 0;
  /// Empty, or what else it depends on, so that it cannot be made again.
  virtual std::string why_not_replayable() const { return {}; }
};

struct RecordingOptions {
  std::filesystem::path file;
  std::uint64_t bytes_max = std::uint64_t{1} << 30;  ///< then recording ends, with a warning; the service goes on
};

/// A core whose life is written to a file; what follows a full disk or the limit is not, from the first line on: the
/// service goes on, with a warning and a count. A recording that exists is replaced.
/// @param header  {service, role, core}
/// @error Errc::unsupported for a core that is not Replayable, Errc::io for a file that cannot be made
Result<std::unique_ptr<Core>> record(std::unique_ptr<Core> core, nlohmann::json header, RecordingOptions options);

struct ReplayResult {
  std::uint64_t events = 0;    ///< that reached the core
  std::uint64_t messages = 0;  ///< that it said
  /// The first thing that was said differently: when (seconds behind the first event), what, and what was recorded.
  std::optional<std::string> difference;
};

/// Told of every message during a replay, in order.
struct Replayed {
  double seconds = 0;  ///< behind the first event
  bool said = false;   ///< by the core; else to it
  const std::string& peer;
  const protocol::Message& message;
};

using MakeCore = std::function<Result<std::unique_ptr<Core>>(const nlohmann::json& header)>;
/// @error Errc::not_found, Errc::bad_format; those of `make`
Result<ReplayResult> replay(const std::filesystem::path& file, const MakeCore& make,
                            const std::function<void(const Replayed&)>& told = {});

}  // namespace parlando::service
