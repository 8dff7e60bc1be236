#pragma once
/// What every service tells of itself besides what its core counts: one table of name, help and where the value comes
/// from.
#include "common/service/runner.hpp"
#include "common/transport/zmq/sockets.hpp"

namespace parlando::service {

/// Everything that is counted somewhere, gathered at one moment.
struct HostFigures {
  transport::MeshCounters mesh;
  transport::SocketCounters sockets;
  transport::DirectoryCounters directory;
  RunnerCounters runner;
  std::int64_t streams = 0, load = 0, slots = 0, waiting = 0;
  bool ready = false, draining = false;
};

class HostMetrics {
 public:
  /// @param role  `llm-chat` becomes `parlando_llm_chat_…`   @param heavy  the core takes steps on a thread of its own
  HostMetrics(telemetry::Metrics& metrics, const std::string& role, bool heavy);
  void update(const HostFigures& figures) const;
  telemetry::Metrics::Histogram step_seconds, handle_seconds;

 private:
  std::vector<telemetry::Metrics::Counter> counters_;
  std::vector<telemetry::Metrics::Gauge> gauges_;
};

}  // namespace parlando::service
