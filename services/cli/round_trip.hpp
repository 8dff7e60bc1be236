#pragma once
/// A frame of sound there and back, over the path that services take and over bare ZeroMQ; for measurements.
#include <filesystem>
#include <string>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::cli {

struct RoundTripOptions {
  std::string endpoint;  ///< inproc, ipc or tcp, to bind; tcp may end in :*
  int warm_up = 100;
  int count = 600;
  int per_second = 500;  ///< one after the other: who has no answer when the next is due is late, not doubled
};

/// Microseconds of each.
struct RoundTrips {
  std::vector<double> whole;      ///< from handing the frame to the service (its mailbox) to its answer in the service
  std::vector<double> from_core;  ///< the same without the mailbox: from the core's own thread
};

/// A light core in a Host sends Audio of 640 bytes to a light core in another Host, which answers with Speech of the
/// same sound.
/// @error those of Host::start, Errc::unavailable when no answer comes
Result<RoundTrips> round_trips(const RoundTripOptions& options);

/// A DEALER and a ROUTER on two threads, each in zmq_poll, with the same frames and pauses; nothing is checked, counted
/// or kept.
/// @error Errc::io naming what ZeroMQ refused
Result<std::vector<double>> bare_round_trips(const RoundTripOptions& options);

}  // namespace parlando::cli
