#pragma once
/// Turns, as controllers tell them at `/turns`, as spans of OpenTelemetry (OTLP/HTTP in JSON): one trace a
/// conversation, a span a turn, and below it one for each part of the time to its first sound. No text and no sound is
/// in them.
#include <deque>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::traces {

/// The spans of one line. Ids are made of session and turn: a turn that is sent twice is the same spans.
/// @error Errc::bad_json: it is no turn
Result<std::vector<nlohmann::json>> spans_of(std::string_view line);

/// What a collector takes at `/v1/traces`.
nlohmann::json request_of(const std::vector<nlohmann::json>& spans);

/// Which turns were not sent yet. Controllers tell their last 256 again and again; those that an answer does not name
/// any more are forgotten, so it is bounded by what controllers keep.
class Backlog {
 public:
  static constexpr std::size_t kTurnsMax = 4096;
  /// @param source  of the answer   @param lines  JSON, one a line; what is no turn is counted
  void take(const std::string& source, std::string_view lines);
  /// A source that is gone has nothing to tell again.
  void keep_only(const std::set<std::string>& sources);
  /// Up to so many turns, the oldest first; they stay until `sent`.
  std::vector<nlohmann::json> next(std::size_t turns_max) const;
  void sent(std::size_t turns);
  std::size_t size() const { return waiting_.size(); }
  std::uint64_t malformed() const { return malformed_; }
  /// The oldest go when the collector is away for too long.
  std::uint64_t dropped() const { return dropped_; }

 private:
  std::map<std::string, std::set<std::string>> known_;  ///< source -> lines of its last answer
  std::deque<std::vector<nlohmann::json>> waiting_;
  std::uint64_t malformed_ = 0, dropped_ = 0;
};

}  // namespace parlando::traces
