#include "services/controller/eraser.hpp"

#include "services/controller/errors.hpp"

namespace parlando::controller {
using namespace protocol;

namespace {
constexpr std::chrono::seconds kEraseTimeMax{10};
}

Eraser::Eraser(SessionId session, std::string owner, const ControllerConfig& config, Fleet& fleet, Outlet& outlet,
               Time now)
    : config_(&config),
      owner_(std::move(owner)),
      call_(Role::context, session, fleet, outlet),
      until_(now + kEraseTimeMax) {
  head_.session = session;
  if (call_.begin(now)) say();
}

/// Without an epoch nothing is erased: the store says which one the session has.
void Eraser::say() {
  if (expected_.value != 0 && head_.epoch.value == 0)
    call_.send(head_, Claim{expected_, owner_, config_->lease_ms});
  else
    call_.send(head_, Erase{});
}

void Eraser::on_message(Message message, Time now) {
  const auto known = message.head.epoch;
  switch (message.head.type) {
    case MessageType::granted: {
      const auto granted = read<Granted>(message);
      if (!granted) return void(failure_ = granted.error());
      head_.epoch = granted->epoch;
      return say();
    }
    case MessageType::erased: {
      const auto erased = read<Erased>(message);
      if (!erased) return void(failure_ = erased.error());
      turns_ = erased->turns;
      return;
    }
    case MessageType::error: {
      const auto error = read<ErrorMessage>(message);
      return error ? on_error(*error, known, now) : void(failure_ = error.error());
    }
    default:
      return;
  }
}

void Eraser::on_error(const ErrorMessage& error, Epoch known, Time now) {
  const auto code = errc_of(error.code);
  if (code == Errc::stale_epoch) {
    if (known.value == 0) return void(failure_ = Error{Errc::not_found, "nothing is stored under this name"});
    // Another owner has come in between, or this is the first answer.
    head_.epoch = {};
    expected_ = known;
    return say();
  }
  if (is_refusal(code) || code == Errc::io || code == Errc::internal) {
    if (call_.refused(head_, {code, error.message}, now)) say();
    return;  // `tick` says when waiting makes no sense
  }
  failure_ = Error{code, error.message};  // not_found: it was erased before
}

void Eraser::on_peer(const std::string& instance, transport::PeerState state, Time now) {
  if (call_.on_peer(head_, instance, state, now)) say();
}

void Eraser::on_refused(const Error& error, Time now) {
  if (is_link_lost(error.code) ? call_.lost(now) : call_.refused(head_, error, now)) say();
}

void Eraser::tick(Time now) {
  if (is_over()) return;
  if (auto trouble = call_.trouble(now, milliseconds(config_->wait_ms_max)))
    failure_ = std::move(trouble);
  else if (now >= until_)
    failure_ = Error{Errc::unavailable, "the store does not answer"};
}

}  // namespace parlando::controller
