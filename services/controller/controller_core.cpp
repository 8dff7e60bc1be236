#include "services/controller/controller_core.hpp"

#include <algorithm>
#include <limits>

#include "common/base/random_id.hpp"
#include "common/base/secret.hpp"
#include "common/telemetry/log.hpp"
#include "services/controller/http_tool_server.hpp"

namespace parlando::controller {
using namespace protocol;
using nlohmann::json;
using transport::PeerState;

namespace {
constexpr std::size_t kEndedMax = 16384;  // above it a stream without a session is answered again
constexpr std::size_t kIdentityBytesMax = 512u << 10;
constexpr milliseconds kJournalAgain{1000};

/// Of the time zone here, east of Greenwich.
std::int64_t zone_seconds() {
  const auto now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  return local.tm_gmtoff;
}
}  // namespace

ControllerCore::ControllerCore(ControllerConfig config, Personas personas, std::unique_ptr<ToolServer> tools)
    : config_(std::move(config)),
      personas_(std::move(personas)),
      tools_(std::move(tools)),
      owner_("controller-" + random_hex(8)),
      journal_(config_.commit_queue_file) {}

std::time_t ControllerCore::wall_time(Time now) const {
  if (!wall_ahead_) return std::time(nullptr);
  return (std::chrono::floor<std::chrono::seconds>(now.time_since_epoch()) + *wall_ahead_ + zone_shift_).count();
}

std::string ControllerCore::identity() const {
  json out{{"owner", owner_}, {"personas", json::object()}, {"left", json::array()}, {"zone", zone_seconds()}};
  for (const auto& [name, persona] : personas_)
    out["personas"][name] = {{"system", persona.system}, {"speaker", persona.speaker}};
  for (const auto& entry : left_)
    out["left"].push_back({{"high", entry.session.high},
                           {"low", entry.session.low},
                           {"epoch", entry.epoch.value},
                           {"turn", entry.turn},
                           {"record", entry.record}});
  return out.dump(-1, ' ', false, json::error_handler_t::replace);
}

/// Of a recording: nothing is read or written here that was not there.
void ControllerCore::set_identity(std::string identity) {
  const auto in = json::parse(identity, nullptr, false);
  if (!in.is_object()) {  // of a former build
    owner_ = std::move(identity);
    return;
  }
  owner_ = in.value("owner", owner_);
  personas_.clear();
  const auto personas = in.value("personas", json::object());
  for (const auto& [name, persona] : personas.items())
    personas_[name] = {persona.value("system", ""), persona.value("speaker", "")};
  journal_ = Journal({});
  leftovers_.clear();
  left_.clear();
  const auto left = in.value("left", json::array());
  for (const auto& entry : left)
    left_.push_back({{entry.value("high", std::uint64_t{0}), entry.value("low", std::uint64_t{0})},
                     {entry.value("epoch", std::uint64_t{0})},
                     entry.value("turn", std::int64_t{0}),
                     entry.value("record", "{}")});
  restore_journal(left_, Time::max());
  zone_shift_ = std::chrono::seconds(in.value("zone", zone_seconds()) - zone_seconds());
}

std::string ControllerCore::why_not_replayable() const {
  if (tools_ != nullptr) return "tools_url answers from outside";
  if (identity().size() > kIdentityBytesMax)
    return "its personas and the turns that wait are more than the header of a recording holds";
  return {};
}

ControllerCore::~ControllerCore() = default;

Result<std::unique_ptr<service::Core>> ControllerCore::make(const ControllerConfig& config) {
  PARLANDO_TRY(auto personas, load_personas(config.personas_file));
  std::unique_ptr<ToolServer> tools;
  if (!config.tools_url.empty()) {
    PARLANDO_TRY(auto url, http::Url::parse(config.tools_url));
    HttpToolServer::Limits limits;
    limits.post.time_max = std::chrono::seconds(config.tool_seconds_max);
    tools = std::make_unique<HttpToolServer>(std::move(url), limits);
  }
  auto core = std::make_unique<ControllerCore>(config, std::move(personas), std::move(tools));
  PARLANDO_TRY(auto entries, core->journal_.load());
  core->left_ = entries;
  core->restore_journal(std::move(entries), Time::max());
  return std::unique_ptr<service::Core>(std::move(core));
}

void ControllerCore::add_metrics(telemetry::Metrics& metrics) { tally_.add(metrics); }

std::string ControllerCore::why_not_ready() const {
  std::string missing;
  for (std::size_t role = 0; role < kRoles; ++role) {
    if (fleet_.any_live(static_cast<Role>(role))) continue;
    missing += (missing.empty() ? "no live replica of " : ", ") + std::string(kRoleNames[role]);
  }
  return missing;
}

bool ControllerCore::drain() {
  draining_ = true;
  return sessions_.empty() && leftovers_.empty() && erasures_.empty();
}

milliseconds ControllerCore::tick_interval() const {
  return busy_.empty() && leftovers_.empty() && erasures_.empty() ? milliseconds(500) : milliseconds(20);
}

std::int64_t ControllerCore::slots() const { return std::min(own_slots(), slots_of_models()); }

/// Of a role that has no live replica `why_not_ready` tells; one whose replicas are full takes nobody, either.
std::int64_t ControllerCore::slots_of_models() const {
  auto out = std::numeric_limits<std::int64_t>::max();
  for (std::size_t role = 0; role < kRoles; ++role)
    if (fleet_.any_live(static_cast<Role>(role)) && !fleet_.any(static_cast<Role>(role))) return 0;
  for (const auto role : {Role::chat, Role::tts})
    if (fleet_.linked(role) > 0) out = std::min(out, fleet_.slots(role) * config_.sessions_per_slot);
  return out;
}

/// A session that nobody is at, and in which nothing is under way, gives way to one that somebody wants.
std::int64_t ControllerCore::own_slots() const {
  const auto idle =
      std::count_if(detached_.begin(), detached_.end(), [this](const auto& d) { return !busy_.contains(d.first); });
  return std::max<std::int64_t>(0, config_.sessions_max - load() + idle);
}

void ControllerCore::make_room(Time now) {
  if (load() < config_.sessions_max) return;
  auto first = detached_.end();
  for (auto it = detached_.begin(); it != detached_.end(); ++it)
    if (!busy_.contains(it->first) && (first == detached_.end() || it->second < first->second)) first = it;
  if (first != detached_.end()) drop_detached(SessionId(first->first), "another one needs its place", now);
}

const Turn* ControllerCore::turn_of(SessionId session) const {
  const auto found = sessions_.find(session);
  return found == sessions_.end() ? nullptr : &found->second->turn();
}

// ------------------------------------------------------------------------------------------------ messages

void ControllerCore::on_message(const std::string& peer, Message message, Time now) {
  const auto id = message.head.session;
  if (!fleet_.role_of(peer)) return from_gateway(peer, std::move(message), now);
  for (auto& [key, erasure] : erasures_) {
    if (key.first != id || !erasure.eraser.is_current(peer, message.head.stream)) continue;
    erasure.eraser.on_message(std::move(message), now);
    return settle_erasures(now);
  }
  if (const auto left = leftovers_.find(id);
      left != leftovers_.end() && left->second.ledger.is_current(peer, message.head.stream))
    return left->second.ledger.on_message(std::move(message), now);
  with(id, now, [&](Session& s) { s.on_answer(peer, std::move(message), now); });
}

void ControllerCore::from_gateway(const std::string& peer, Message message, Time now) {
  const auto id = message.head.session;
  const ClientStream client{peer, message.head.stream, message.head.link};
  if (message.head.type == MessageType::open) return open(client, std::move(message), now);
  if (message.head.type == MessageType::attach) return attach(client, std::move(message), now);
  if (message.head.type == MessageType::erase) return erase(client, message.head, now);
  const auto found = sessions_.find(id);
  const bool its = found != sessions_.end() && found->second->client() == client;
  if (message.head.type == MessageType::close) {
    ended_.erase({id, client});
    if (const auto wish = erasures_.find({id, client}); wish != erasures_.end()) wish->second.to.stream = {};
    if (!its) return;
    const auto close = read<Close>(message);
    if (close && close->detached) return part(found, now);
    found->second->leave(close && close->moves ? Session::Then::goes_on : Session::Then::is_over);
    return remove(found, now);
  }
  if (its) return with(id, now, [&](Session& s) { s.on_input(std::move(message), now); });
  if (!ended_.contains({id, client})) refuse(client, message.head, {Errc::not_found, "the session is not open here"});
}

std::optional<Error> ControllerCore::why_not_open(const Session* known, const ClientStream& client,
                                                  const Open& open) const {
  if (known != nullptr && known->client() == client)
    return Error{Errc::invalid_argument, "the session is open already"};
  // Who knows no epoch has the right to what is stored, as its gateway has seen, and opens it by its name. What waits
  // here for a client that was lost gives way to it.
  const bool has_right = open.expected_epoch.value == 0;
  const bool is_led = known != nullptr && !(has_right && known->is_detached());
  if (is_led && !equal_secrets(known->token_digest(), open.token_digest)) {
    if (has_right && silent_gateways_.contains(known->client().gateway))
      return Error{Errc::unavailable, "the session's gateway is silent and not given up yet"};
    // The client has resumed it since: who brings another token is a gateway that stood still.
    return Error{Errc::not_found, "the session goes on at another gateway"};
  }
  // Who opens a session that is led here must know its epoch, as the store would ask.
  if (is_led && known->epoch().value != 0 && known->epoch() != open.expected_epoch)
    return Error{Errc::stale_epoch,
                 fmt::format("the session has epoch {}, not {}", known->epoch().value, open.expected_epoch.value)};
  if (draining_) return Error{Errc::overloaded, "this controller takes no new sessions"};
  if (known == nullptr && own_slots() <= 0)
    return Error{Errc::overloaded,
                 fmt::format("{} sessions are open, at most {} are served", load(), config_.sessions_max)};
  // One that goes on here has been let in before.
  if (known == nullptr && open.expected_epoch.value == 0 && slots_of_models() <= 0)
    return Error{Errc::overloaded,
                 fmt::format("{} sessions are open, and a service that answers has no place for another", load())};
  return std::nullopt;
}

void ControllerCore::open(const ClientStream& client, Message message, Time now) {
  auto to = message.head;
  const auto id = to.session;
  auto open = read<Open>(message);
  if (!open) return refuse(client, to, open.error());
  const auto found = sessions_.find(id);
  const auto* known = found == sessions_.end() ? nullptr : found->second.get();
  if (const auto error = why_not_open(known, client, *open)) {
    if (error->code == Errc::stale_epoch) to.epoch = known->epoch();
    return refuse(client, to, *error);
  }
  if (known != nullptr) {
    // Who opens it by its name knows no epoch; to a claim without one the turns that wait for the store would be lost.
    if (known->is_detached()) open->expected_epoch = known->epoch();
    if (!known->is_detached()) ended_.insert({id, known->client()});
    found->second->yield({});
    detached_.erase(id);
  }
  if (known == nullptr) make_room(now);
  auto ledger = ledger_for(id, now);
  const Surroundings around{config_, personas_, tools_.get(), fleet_, *this, tally_};
  sessions_[id] = std::make_unique<Session>(id, client, std::move(*open), std::move(ledger), around);
  with(id, now, [&](Session& s) {
    s.set_trace(to.trace);
    s.start(now);
  });
}

/// One answer for everything that is wrong: who tries learns nothing. Who has the token may know more.
void ControllerCore::attach(const ClientStream& client, Message message, Time now) {
  const auto to = message.head;
  const auto claim = read<Attach>(message);
  if (!claim) return refuse(client, to, claim.error());
  const auto found = sessions_.find(to.session);
  const bool its = found != sessions_.end() && found->second->is_resumed_by(*claim);
  // It may wake, and nobody but its death says that it does not: until then the session cannot be given to another.
  if (its && !found->second->is_detached() && silent_gateways_.contains(found->second->client().gateway))
    return refuse(client, to, {Errc::unavailable, "the session's gateway is silent and not given up yet"});
  if (!its || !found->second->is_detached()) {
    tally_.resume_refused.add();
    return refuse(client, to, {Errc::not_found, "no session waits here for this token"});
  }
  tally_.resumed.add();
  detached_.erase(to.session);
  with(to.session, now, [&](Session& s) {
    s.set_trace(to.trace);
    s.attach(client, *claim, now);
  });
}

/// The client is lost: its session waits for it, if it can come back.
void ControllerCore::part(Sessions::iterator at, Time now) {
  auto& session = *at->second;
  if (config_.detached_seconds_max > 0 && session.can_detach()) {
    session.detach(now);
    detached_[at->first] = now + std::chrono::seconds(config_.detached_seconds_max);
    return follow(at->first, now);
  }
  session.leave();
  remove(at, now);
}

/// Of a controller that goes away only turns under way are waited for.
void ControllerCore::tick_detached(Time now) {
  std::vector<SessionId> over;
  for (const auto& [id, until] : detached_)
    if (now >= until || (draining_ && !busy_.contains(id))) over.push_back(id);
  for (const auto& id : over) drop_detached(id, "nobody has resumed it", now);
  if (tally_.detached.impl != nullptr) tally_.detached.set(static_cast<double>(detached_.size()));
}

void ControllerCore::drop_detached(SessionId id, std::string_view why, Time now) {
  const auto found = sessions_.find(id);
  telemetry::log(telemetry::Level::info, "controller drops a session without a client, {} session={}", why, id.text());
  found->second->leave();
  remove(found, now);
}

/// A session that was here before brings the turns that it still has to store.
Ledger ControllerCore::ledger_for(SessionId id, Time) {
  if (const auto found = sessions_.find(id); found != sessions_.end() && found->second->ledger().waiting() > 0)
    return std::move(found->second->ledger());
  if (const auto left = leftovers_.find(id); left != leftovers_.end()) {
    auto ledger = std::move(left->second.ledger);
    leftovers_.erase(left);
    return ledger;
  }
  return Ledger(id, config_, owner_, fleet_, *this, journal_);
}

void ControllerCore::refuse(const ClientStream& client, const Envelope& to, const Error& error) {
  if (ended_.size() < kEndedMax) ended_.insert({to.session, client});
  answer_error(client.gateway, to, error, is_refusal(error.code) ? kRetry : milliseconds(0));
}

/// Whether the client may is the gateway's to know. What is begun is finished, whoever waits for the answer.
void ControllerCore::erase(const ClientStream& client, const Envelope& to, Time now) {
  if (erasures_.size() >= Eraser::kMax)
    return refuse(client, to, {Errc::overloaded, fmt::format("{} sessions are being erased", erasures_.size())});
  erasures_.try_emplace({to.session, client}, Erasure{to, Eraser(to.session, owner_, config_, fleet_, *this, now)});
  settle_erasures(now);
}

/// What this controller still has of a session that is erased goes with it.
void ControllerCore::settle_erasures(Time now) {
  for (auto it = erasures_.begin(); it != erasures_.end();) {
    auto& [key, erasure] = *it;
    auto& [id, client] = key;
    erasure.eraser.tick(now);
    if (!erasure.eraser.is_over()) {
      ++it;
      continue;
    }
    erasure.eraser.close();
    const auto turns = erasure.eraser.turns();
    if (turns) {
      telemetry::log(telemetry::Level::info, "controller erases a session session={} turns={}", id.text(), *turns);
      with(id, now, [](Session& s) { s.yield({}, Session::Then::is_over); });
      leftovers_.erase(id);
    }
    if (erasure.to.stream.value != 0) {
      if (turns)
        answer(client.gateway, erasure.to, Erased{*turns});
      else
        refuse(client, erasure.to, *erasure.eraser.failure());
    }
    it = erasures_.erase(it);
  }
}

/// Runs something of a session; what it throws ends its turn, not the process and not other sessions.
template <class F>
void ControllerCore::with(SessionId id, Time now, F&& f) {
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return;
  try {
    f(*found->second);
  } catch (const std::exception& e) {
    telemetry::log(telemetry::Level::error, "controller fails session={}: {}", id.text(), e.what());
    found->second->on_exception(e.what(), now);
  }
  follow(id, now);
}

void ControllerCore::follow(SessionId id, Time now) {
  const auto found = sessions_.find(id);
  if (found == sessions_.end()) return;
  if (found->second->is_over()) {
    if (ended_.size() < kEndedMax && !found->second->is_detached()) ended_.insert({id, found->second->client()});
    return remove(found, now);
  }
  if (found->second->is_busy())
    busy_.insert(id);
  else
    busy_.erase(id);
  if (tally_.sessions.impl != nullptr) tally_.sessions.set(static_cast<double>(load()));
}

void ControllerCore::remove(Sessions::iterator at, Time now) {
  const auto id = at->first;
  auto& ledger = at->second->ledger();
  if (ledger.waiting() > 0 && leftovers_.size() < static_cast<std::size_t>(config_.sessions_max))
    leftovers_.insert_or_assign(id,
                                Leftover{std::move(ledger), now + std::chrono::seconds(config_.commit_seconds_max)});
  else if (ledger.waiting() > 0)
    count_lost(ledger.waiting());
  busy_.erase(id);
  detached_.erase(id);
  sessions_.erase(at);
  if (tally_.sessions.impl != nullptr) tally_.sessions.set(static_cast<double>(load()));
}

// ------------------------------------------------------------------------------------------------ peers and time

void ControllerCore::on_peer(const transport::Peer& peer, PeerState state, Time now) {
  const auto role = fleet_.on_peer(peer, state);
  if (!role) {
    // A gateway that is only suspect wakes, and finds everything said behind what it has.
    if (!peer.caller) return;
    if (state == PeerState::suspect)
      silent_gateways_.insert(peer.instance);
    else
      silent_gateways_.erase(peer.instance);
    if (state == PeerState::down) forget_gateway(peer.instance, now);
    return;
  }
  if (*role == Role::context) {
    for (auto& [id, left] : leftovers_) left.ledger.on_peer(peer.instance, state, now);
    for (auto& [key, erasure] : erasures_) erasure.eraser.on_peer(peer.instance, state, now);
  }
  std::vector<SessionId> ids;
  for (const auto& [id, session] : sessions_) ids.push_back(id);
  for (const auto& id : ids) with(id, now, [&](Session& s) { s.on_peer(*role, peer.instance, state, now); });
}

void ControllerCore::forget_gateway(const std::string& gateway, Time now) {
  std::vector<SessionId> ids;
  for (const auto& [id, session] : sessions_)
    if (session->client().gateway == gateway) ids.push_back(id);
  for (const auto& id : ids) part(sessions_.find(id), now);
  std::erase_if(ended_, [&](const auto& e) { return e.second.gateway == gateway; });
  for (auto& [key, erasure] : erasures_)
    if (key.second.gateway == gateway) erasure.to.stream = {};  // it is finished all the same
}

void ControllerCore::on_refused(const std::string& peer, const Envelope& head, const Error& error, Time now) {
  if (const auto left = leftovers_.find(head.session);
      left != leftovers_.end() && left->second.ledger.is_current(peer, head.stream))
    return left->second.ledger.on_refused(error, now);
  for (auto& [key, erasure] : erasures_)
    if (key.first == head.session && erasure.eraser.is_current(peer, head.stream))
      return erasure.eraser.on_refused(error, now);
  with(head.session, now, [&](Session& s) { s.on_refused(peer, head, error, now); });
}

void ControllerCore::on_tick(Time now) {
  const std::vector<SessionId> ids(busy_.begin(), busy_.end());
  for (const auto& id : ids) with(id, now, [&](Session& s) { s.on_tick(now); });
  tick_detached(now);
  tick_leftovers(now);
  settle_erasures(now);
  const auto waiting = commits_waiting();
  if (tally_.commits_waiting.impl != nullptr) tally_.commits_waiting.set(static_cast<double>(waiting));
  if (now < journal_again_ || (waiting > 0 && !journal_.is_long(waiting))) return;
  std::vector<JournalEntry> entries;
  for (const auto& [id, session] : sessions_) session->ledger().add_journaled(entries);
  for (const auto& [id, left] : leftovers_) left.ledger.add_journaled(entries);
  if (const auto good = waiting > 0 ? journal_.keep(entries) : journal_.clear(); !good) {
    telemetry::log(telemetry::Level::error, "controller: {}", good.error().message);
    journal_again_ = now + kJournalAgain;
  }
}

/// What a tool server has answered belongs to sessions; of one that is gone nobody wants it.
bool ControllerCore::work(Time now) {
  if (tools_ == nullptr) return false;
  for (const auto& answer : tools_->take())
    with(answer.session, now, [&](Session& s) { s.on_tool_answer(answer, now); });
  return false;
}

/// Wakes for answers, too; `work` takes them.
int ControllerCore::wait(std::span<pollfd> descriptors, milliseconds timeout) {
  if (tools_ == nullptr || tools_->descriptor() < 0) return Core::wait(descriptors, timeout);
  std::vector<pollfd> all(descriptors.begin(), descriptors.end());
  all.push_back({tools_->descriptor(), POLLIN, 0});
  const int count = Core::wait(all, timeout);
  std::copy_n(all.begin(), descriptors.size(), descriptors.begin());
  return count;
}

void ControllerCore::tick_leftovers(Time now) {
  for (auto it = leftovers_.begin(); it != leftovers_.end();) {
    auto& ledger = it->second.ledger;
    ledger.tick(now);
    const bool expired = now >= it->second.until;
    if (expired) count_lost(ledger.waiting());
    if (!expired && ledger.waiting() > 0) {
      ++it;
      continue;
    }
    ledger.close();
    it = leftovers_.erase(it);
  }
}

/// They are on the disk and stay until they are written or another owner has the session.
void ControllerCore::restore_journal(std::vector<JournalEntry> entries, Time until) {
  for (const auto& entry : entries) {
    auto found = leftovers_.find(entry.session);
    if (found == leftovers_.end())
      found =
          leftovers_
              .emplace(entry.session, Leftover{Ledger(entry.session, config_, owner_, fleet_, *this, journal_), until})
              .first;
    found->second.ledger.restore(entry);
  }
}

/// Sessions with waiting turns are busy.
std::size_t ControllerCore::commits_waiting() const {
  std::size_t waiting = 0;
  for (const auto& id : busy_) waiting += sessions_.at(id)->ledger().waiting();
  for (const auto& [id, left] : leftovers_) waiting += left.ledger.waiting();
  return waiting;
}

}  // namespace parlando::controller
