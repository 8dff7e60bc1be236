#include "common/service/runner.hpp"

#include "common/service/thrown.hpp"
#include "common/telemetry/log.hpp"

namespace parlando::service {
using protocol::MessageType;

/// @return true when `f` ended well; else `error` says what was thrown
template <class F>
bool Runner::guarded(const char* what, F&& f, Error& error) {
  try {
    f();
    return true;
  } catch (...) {
    error = thrown();
  }
  ++counters_.failures;
  telemetry::log(telemetry::Level::error, "service fails to {}: {}", what, error.message);
  return false;
}

/// Behind what the core has said so far, so that a stream keeps its order.
void Runner::answer_error(const std::string& peer, const protocol::Envelope& to, const Error& error) {
  collect();
  out_.push_back({peer, protocol::pack(protocol::ErrorMessage{std::string(to_string(error.code)), error.message}, to)});
}

bool Runner::deliver(const std::string& peer, protocol::Message message, Time now) {
  ++counters_.messages;
  const auto head = message.head;
  // Nobody waits for this any more; the end of a stream is never late.
  if (message.deadline <= now && head.type != MessageType::close && head.type != MessageType::error) {
    ++counters_.expired;
    answer_error(peer, head,
                 {Errc::deadline_exceeded,
                  fmt::format("the budget of a {} was spent before it was handled", to_string(head.type))});
    return true;
  }
  Error error;
  const bool good = guarded(
      "handle a message", [&] { core_.on_message(peer, std::move(message), now); }, error);
  const bool put_by = core_.take_put_by();
  if (!good) answer_error(peer, head, error);
  return !(good && put_by);
}

void Runner::peer(const transport::Peer& peer, transport::PeerState state, Time now) {
  Error error;
  guarded(
      "follow a peer", [&] { core_.on_peer(peer, state, now); }, error);
}

void Runner::refused(const std::string& peer, const protocol::Envelope& head, const Error& error, Time now) {
  Error thrown;
  guarded(
      "take a refusal", [&] { core_.on_refused(peer, head, error, now); }, thrown);
}

void Runner::tick(Time now) {
  Error error;
  guarded(
      "follow the time", [&] { core_.on_tick(now); }, error);
}

bool Runner::work(Time now) {
  Error error;
  bool more = false;
  guarded(
      "take a step", [&] { more = core_.work(now); }, error);
  ++counters_.steps;
  return more;
}

void Runner::collect() {
  auto out = core_.take();
  if (out_.empty())
    out_ = std::move(out);
  else
    out_.insert(out_.end(), std::make_move_iterator(out.begin()), std::make_move_iterator(out.end()));
}

std::vector<Out> Runner::take() {
  collect();
  return std::exchange(out_, {});
}

}  // namespace parlando::service
