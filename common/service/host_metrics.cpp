#include "common/service/host_metrics.hpp"

#include <algorithm>

namespace parlando::service {

namespace {

struct Counted {
  const char* name;
  const char* help;
  std::uint64_t (*value)(const HostFigures&);
};
constexpr Counted kCounters[] = {
    {"messages_received_total", "Messages taken in from peers",
     [](const HostFigures& f) { return f.mesh.links.received; }},
    {"messages_sent_total", "Messages sent to peers, each once",
     [](const HostFigures& f) { return f.mesh.links.sent; }},
    {"messages_resent_total", "Messages sent again after a resumed connection",
     [](const HostFigures& f) { return f.mesh.links.resent; }},
    {"messages_refused_total", "Messages that a full stream or link refused",
     [](const HostFigures& f) { return f.mesh.links.refused; }},
    {"link_duplicates_total", "Messages that arrived again",
     [](const HostFigures& f) { return f.mesh.links.duplicates; }},
    {"link_gaps_total", "Messages that arrived before an earlier one",
     [](const HostFigures& f) { return f.mesh.links.gaps; }},
    {"link_late_total", "Messages on streams that have ended", [](const HostFigures& f) { return f.mesh.links.late; }},
    {"credit_exceeded_total", "Streams ended because their sender ignored the window",
     [](const HostFigures& f) { return f.mesh.links.credit_exceeded; }},
    {"unknown_types_total", "Messages of a type this build does not know",
     [](const HostFigures& f) { return f.mesh.links.unknown_types; }},
    {"frames_received_total", "Frames taken in, batches and the link's own words included",
     [](const HostFigures& f) { return f.mesh.frames_in; }},
    {"frames_sent_total", "Frames sent", [](const HostFigures& f) { return f.mesh.frames_out; }},
    {"frames_malformed_total", "Frames that are no message", [](const HostFigures& f) { return f.mesh.malformed; }},
    {"hello_refused_total", "Peers that were refused", [](const HostFigures& f) { return f.mesh.hello_refused; }},
    {"version_refused_total", "Frames and peers of another protocol version",
     [](const HostFigures& f) { return f.mesh.version_refused; }},
    {"fenced_total", "Messages of owners that were replaced", [](const HostFigures& f) { return f.mesh.stale; }},
    {"peers_suspect_total", "Times a peer was silent or stood still",
     [](const HostFigures& f) { return f.mesh.peers_suspect; }},
    {"peers_hung_total", "Of these, for work that stood still", [](const HostFigures& f) { return f.mesh.peers_hung; }},
    {"peers_down_total", "Links that were given up", [](const HostFigures& f) { return f.mesh.peers_down; }},
    {"links_resumed_total", "Suspect peers that went on", [](const HostFigures& f) { return f.mesh.resumed; }},
    {"link_resets_total", "Links that began anew", [](const HostFigures& f) { return f.mesh.resets; }},
    {"hello_late_total", "HELLOs and answers of connections that were replaced",
     [](const HostFigures& f) { return f.mesh.hello_late; }},
    {"unknown_words_total", "Words between links of a later version",
     [](const HostFigures& f) { return f.mesh.unknown_words; }},
    {"resyncs_total", "Times something was missing on a connection",
     [](const HostFigures& f) { return f.mesh.resyncs; }},
    {"connections_total", "Connections made", [](const HostFigures& f) { return f.sockets.connections; }},
    {"connection_full_total", "Sends that had to wait for a connection",
     [](const HostFigures& f) { return f.sockets.full; }},
    {"unroutable_total", "Frames to a connection that was gone, and words of the link that found it full",
     [](const HostFigures& f) { return f.sockets.unroutable + f.mesh.unroutable; }},
    {"socket_errors_total", "Operations of ZeroMQ that failed", [](const HostFigures& f) { return f.sockets.errors; }},
    {"oversized_total", "Messages of more than three frames", [](const HostFigures& f) { return f.sockets.oversized; }},
    {"replicas_refused_total", "Endpoints and lines of replicas that were not taken",
     [](const HostFigures& f) { return f.directory.endpoints_refused + f.directory.lines_refused; }},
    {"names_empty_total", "Look-ups of replicas that found none",
     [](const HostFigures& f) { return f.directory.names_empty; }},
    {"names_late_total", "Look-ups of replicas that took longer than a period",
     [](const HostFigures& f) { return f.directory.names_late + f.directory.questions_refused; }},
    {"names_failed_total", "Look-ups of replicas and readings of their files that failed",
     [](const HostFigures& f) { return f.directory.names_failed + f.directory.files_unreadable; }},
    {"handled_total", "Messages the service has handled", [](const HostFigures& f) { return f.runner.messages; }},
    {"expired_total", "Messages whose budget was spent before they were handled",
     [](const HostFigures& f) { return f.runner.expired; }},
    {"failures_total", "Exceptions caught in the service", [](const HostFigures& f) { return f.runner.failures; }},
};

struct Gauged {
  const char* name;
  const char* help;
  double (*value)(const HostFigures&);
};
constexpr Gauged kGauges[] = {
    {"ready", "1 when requests can be served", [](const HostFigures& f) { return f.ready ? 1.0 : 0.0; }},
    {"draining", "1 when no new sessions are taken", [](const HostFigures& f) { return f.draining ? 1.0 : 0.0; }},
    {"load", "Sessions or utterances at work", [](const HostFigures& f) { return static_cast<double>(f.load); }},
    {"slots", "How many more are possible", [](const HostFigures& f) { return static_cast<double>(f.slots); }},
    {"streams", "Streams open on all links", [](const HostFigures& f) { return static_cast<double>(f.streams); }},
    {"queue_messages", "Messages waiting for the service",
     [](const HostFigures& f) { return static_cast<double>(f.waiting); }},
};

std::string prefix_of(std::string role) {
  std::replace(role.begin(), role.end(), '-', '_');
  return "parlando_" + role + "_";
}

}  // namespace

HostMetrics::HostMetrics(telemetry::Metrics& metrics, const std::string& role, bool heavy) {
  const auto prefix = prefix_of(role);
  for (const auto& c : kCounters) counters_.push_back(metrics.counter(prefix + c.name, c.help));
  for (const auto& g : kGauges) gauges_.push_back(metrics.gauge(prefix + g.name, g.help));
  if (heavy) step_seconds = metrics.histogram(prefix + "step_seconds", "Time of one unit of work");
  handle_seconds = metrics.histogram(prefix + "handle_seconds", "Time of handling what arrived together");
}

void HostMetrics::update(const HostFigures& figures) const {
  for (std::size_t i = 0; i < counters_.size(); ++i)
    counters_[i].set_at_least(static_cast<double>(kCounters[i].value(figures)));
  for (std::size_t i = 0; i < gauges_.size(); ++i) gauges_[i].set(kGauges[i].value(figures));
}

}  // namespace parlando::service
