#include "sdk/cpp/src/core.hpp"

#include <sys/eventfd.h>
#include <unistd.h>

#include "common/base/random_id.hpp"

namespace parlando::sdk {

namespace {

constexpr milliseconds kTick{50};      // conversations look for gateways, and at the time
constexpr milliseconds kGoodbye{500};  // what closes conversations is to leave
constexpr milliseconds kSleepMax{500};
/// Sound that waits for credit is not more than is kept to be said again: 16 s.
constexpr std::size_t kStreamBytesMax = 512u << 10;

[[noreturn]] void raise(const parlando::Error& error) {
  throw Error(std::string(to_string(error.code)), error.message);
}

transport::MeshOptions mesh_options(const std::string& name) {
  transport::MeshOptions out;
  // The engine may have bound the key to the name; eight digits behind it are unique per process start.
  out.instance = fmt::format("{}-{:08x}", name, static_cast<std::uint32_t>(random_u64()));
  out.role = "client";
  out.link.stream_bytes_max = kStreamBytesMax;
  return out;
}

}  // namespace

Gateway::Gateway(std::shared_ptr<transport::ZmqContext> context, const std::string& endpoint,
                 const ClientOptions& options, Time now)
    : endpoint_(endpoint), mesh_(mesh_options(options.name)) {
  transport::SocketOptions sockets;
  sockets.connect["gateway"] = {endpoint};
  if (options.keys)
    sockets.keys = transport::SocketKeys{
        {options.keys->public_key, options.keys->secret_key}, nullptr, {{"gateway", options.keys->server_key}}};
  else
    sockets.plain_tcp = true;
  auto opened = transport::Sockets::open(std::move(context), std::move(sockets), mesh_, now);
  if (!opened) raise(opened.error());
  sockets_ = *std::move(opened);
}

Result<void> Gateway::send(protocol::Message message) {
  if (!linked_) return parlando::fail(Errc::unavailable, "no gateway is linked at '{}'", endpoint_);
  return mesh_.send(peer_.instance, std::move(message));
}

void Gateway::handled(const protocol::Envelope& head) {
  if (linked_) mesh_.handled(peer_.instance, head);
}

bool Gateway::stands() const { return linked_ && mesh_.is_up(peer_.instance) && peer_.ready && !peer_.draining; }

bool Gateway::read(Time now) {
  const bool more = sockets_->read(now);
  mesh_.tick(now);
  return more;
}

void Gateway::flush(Time now) { sockets_->flush(now); }

std::vector<Gateway::Arrived> Gateway::take() {
  std::vector<Arrived> out;
  for (auto& event : mesh_.take()) {
    if (event.delivery) out.push_back({std::move(event.delivery->message)});
    if (!event.peer) continue;
    peer_ = event.peer->peer;
    linked_ = event.peer->state != transport::PeerState::down;
    if (!linked_) out.push_back({});
  }
  return out;
}

// ------------------------------------------------------------------------------------------------ core

Core::Core(ClientOptions options) : options_(std::move(options)), context_(std::make_shared<transport::ZmqContext>()) {
  if (options_.endpoints.empty()) throw Error("invalid_argument", "no endpoint of a gateway is named");
  if (options_.name.empty() || options_.name.size() > 60)
    throw Error("invalid_argument",
                fmt::format("the name '{}' has {} characters, expected 1 to 60", options_.name, options_.name.size()));
  for (const auto& endpoint : options_.endpoints)
    gateways_.push_back(std::make_unique<Gateway>(context_, endpoint, options_, clock.now()));
  wake_ = ::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (wake_ < 0) throw Error("io", "there is no descriptor left to wake the client's thread");
  thread_ = std::thread([this] { run(); });
}

Core::~Core() {
  close();
  ::close(wake_);
}

std::shared_ptr<Talk> Core::begin(nlohmann::json opening) {
  const std::lock_guard lock(mutex);
  if (stopped_) throw Error("cancelled", "the client is closed");
  auto talk = std::make_shared<Talk>(*this, std::move(opening), options_.reconnect, random_u64(), clock.now());
  talks_.push_back(talk);
  wake();
  return talk;
}

void Core::close() {
  {
    std::unique_lock lock(mutex);
    for (auto& talk : talks_) talk->close(false);
    const auto unsent = [&] {
      return std::any_of(gateways_.begin(), gateways_.end(), [](const auto& g) { return g->has_unsent(); });
    };
    const auto end = clock.now() + kGoodbye;
    while (!stopped_ && unsent() && clock.now() < end) {
      wake();
      changed.wait_for(lock, milliseconds(20));
    }
    stopped_ = true;
    wake();
    changed.notify_all();
  }
  if (thread_.joinable() && thread_.get_id() != std::this_thread::get_id()) thread_.join();
}

std::string Core::endpoint_of(const Talk& talk) {
  const std::lock_guard lock(mutex);
  for (const auto& gateway : gateways_)
    if (gateway.get() == talk.place()) return gateway->endpoint();
  return {};
}

bool Core::refused() const {
  return std::any_of(gateways_.begin(), gateways_.end(), [](const auto& g) { return g->refuses(); });
}

/// The next in turn of those that take conversations.
Place* Core::find(const Place* but, const std::set<const Place*>& nor) {
  for (std::size_t n = 0; n < gateways_.size(); ++n) {
    auto* gateway = gateways_[(turn_ + n) % gateways_.size()].get();
    if (gateway == but || nor.contains(gateway) || !gateway->takes_conversations()) continue;
    turn_ += n + 1;
    return gateway;
  }
  return nullptr;
}

int Core::standing() const {
  return static_cast<int>(
      std::count_if(gateways_.begin(), gateways_.end(), [](const auto& gateway) { return gateway->stands(); }));
}

void Core::wake() {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto ignored = ::write(wake_, &one, sizeof one);
}

// ------------------------------------------------------------------------------------------------ the thread

void Core::run() {
  std::vector<pollfd> polled;
  milliseconds timeout{0};
  try {
    while (pass(polled, timeout)) {
      ::poll(polled.data(), polled.size(), static_cast<int>(timeout.count()));
      std::uint64_t count = 0;
      [[maybe_unused]] const auto ignored = ::read(wake_, &count, sizeof count);
      const std::lock_guard lock(mutex);
      std::size_t at = 1;
      for (auto& gateway : gateways_) {
        const auto size = gateway->descriptors().size();
        if (at + size <= polled.size()) gateway->readable(std::span(polled).subspan(at, size));
        at += size;
      }
    }
  } catch (const std::exception& e) {  // a bug of ours: nobody may wait for ever
    const std::lock_guard lock(mutex);
    for (auto& talk : talks_) talk->fail(Error("internal", e.what()));
    stopped_ = true;
    changed.notify_all();
  }
  const std::lock_guard lock(mutex);
  for (auto& talk : talks_) talk->close(false);
}

/// @return false when it is over; else what is to be waited for, and how long
bool Core::pass(std::vector<pollfd>& polled, milliseconds& timeout) {
  const std::lock_guard lock(mutex);
  if (stopped_) return false;
  const auto now = clock.now();
  bool more = false;
  for (auto& gateway : gateways_) {
    more = gateway->read(now) || more;
    dispatch(*gateway, now);
  }
  std::erase_if(talks_, [](const auto& talk) { return talk->is_ended(); });
  for (auto& talk : talks_) talk->on_tick(now);
  polled.assign(1, {wake_, POLLIN, 0});
  auto due = talks_.empty() ? now + kSleepMax : now + kTick;
  for (auto& gateway : gateways_) {
    gateway->flush(now);
    more = more || !gateway->idle();
    due = std::min(due, gateway->due(now));
    const auto descriptors = gateway->descriptors();
    polled.insert(polled.end(), descriptors.begin(), descriptors.end());
  }
  timeout = more ? milliseconds(0) : std::max(milliseconds(0), std::chrono::ceil<milliseconds>(due - now));
  changed.notify_all();
  return true;
}

void Core::dispatch(Gateway& gateway, Time now) {
  for (auto& arrived : gateway.take()) {
    if (!arrived.message) {
      for (auto& talk : talks_) talk->on_down(gateway, now);
      continue;
    }
    const auto found = std::find_if(talks_.begin(), talks_.end(),
                                    [&](const auto& talk) { return talk->owns(gateway, arrived.message->head); });
    if (found == talks_.end())
      gateway.handled(arrived.message->head);
    else
      (*found)->on_message(gateway, *arrived.message, now);
  }
}

}  // namespace parlando::sdk
