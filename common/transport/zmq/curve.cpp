#include "common/transport/zmq/curve.hpp"

#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

#include <cctype>
#include <cstring>
#include <sstream>
#include <thread>

#include "common/base/assert.hpp"
#include "common/base/mapped_file.hpp"
#include "common/telemetry/log.hpp"

namespace parlando::transport::curve {

namespace {

constexpr const char* kZapEndpoint = "inproc://zeromq.zap.01";
constexpr std::size_t kKeyCharacters = 40;
constexpr std::size_t kKeyBytes = 32;
constexpr std::size_t kRoleCharactersMax = 40;       // as in HELLO
constexpr std::size_t kInstanceCharactersMax = 100;  // as in HELLO
constexpr std::size_t kFileBytesMax = 4u << 20;
constexpr std::size_t kZapFrames = 7;  // version, id, domain, address, identity, mechanism, key

std::string to_text(std::string_view raw) {
  char key[kKeyCharacters + 1];
  zmq_z85_encode(key, reinterpret_cast<const std::uint8_t*>(raw.data()), kKeyBytes);
  return key;
}

/// A property as ZMTP writes it: length and name, length (big-endian) and value.
void append_property(std::string& out, std::string_view name, std::string_view value) {
  out += static_cast<char>(name.size());
  out += name;
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>((value.size() >> shift) & 0xff);
  out += value;
}

}  // namespace

Result<KeyPair> KeyPair::generate() {
  char open[kKeyCharacters + 1];
  char secret[kKeyCharacters + 1];
  if (zmq_curve_keypair(open, secret) != 0) return fail(Errc::unsupported, "this ZeroMQ has no CURVE");
  return KeyPair{open, secret};
}

bool KeyPair::is_pair() const {
  if (!is_key(secret_key)) return false;
  char text[kKeyCharacters + 1];
  return zmq_curve_public(text, secret_key.c_str()) == 0 && public_key == text;
}

bool is_key(const std::string& text) {
  // zmq_z85_decode looks characters up in a table of 96: others must not reach it.
  for (const char c : text)
    if (c <= ' ' || c > '~') return false;
  std::uint8_t raw[kKeyBytes];
  return text.size() == kKeyCharacters && zmq_z85_decode(raw, text.c_str()) != nullptr;
}

Result<std::string> read_key(const std::string& file) {
  PARLANDO_TRY(auto text, read_file(file, 4096));
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.pop_back();
  if (text.size() != kKeyCharacters)
    return fail(Errc::bad_format, "'{}' holds {} characters, a key has 40 in Z85", file, text.size());
  if (!is_key(text)) return fail(Errc::bad_format, "'{}' holds characters that are not Z85", file);
  return text;
}

Result<KeyTable::Keys> KeyTable::parse(const std::string& text, const std::string& name) {
  Keys out;
  std::istringstream lines(text);
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    // A '#' is a digit of Z85, too: a comment starts at the beginning of a line or after a blank.
    for (std::size_t at = 0; at < line.size(); ++at)
      if (line[at] == '#' && (at == 0 || std::isspace(static_cast<unsigned char>(line[at - 1])))) line.resize(at);
    std::istringstream words(line);
    std::vector<std::string> fields;
    for (std::string word; words >> word;) fields.push_back(word);
    if (fields.empty()) continue;
    const auto bad = [&](const std::string& why) { return fail(Errc::bad_format, "{}:{}: {}", name, number, why); };
    if (fields.size() < 2 || fields.size() > 3)
      return bad(fmt::format("has {} words, expected a key, a role and perhaps an instance", fields.size()));
    if (!is_key(fields[0])) return bad("does not start with a key of 40 characters in Z85");
    if (fields[1].size() > kRoleCharactersMax) return bad("the role has more than 40 characters");
    if (fields.size() == 3 && fields[2].size() > kInstanceCharactersMax)
      return bad("the instance has more than 100 characters");
    if (!out.emplace(fields[0], Identity{fields[1], fields.size() == 3 ? fields[2] : ""}).second)
      return bad("the key stands in an earlier line, too");
    if (out.size() > kKeysMax) return bad(fmt::format("more than {} keys", kKeysMax));
  }
  return out;
}

Result<std::shared_ptr<KeyTable>> KeyTable::of_text(const std::string& text) {
  auto out = std::make_shared<KeyTable>();
  PARLANDO_TRY(out->keys_, parse(text, "keys"));
  return out;
}

Result<std::shared_ptr<KeyTable>> KeyTable::open(const std::string& file, Time now) {
  auto out = std::make_shared<KeyTable>();
  out->file_ = file;
  out->checked_ = now;
  // Before reading: what is written meanwhile shows as a change at the next look.
  out->stamp_ = FileStamp::of(file);
  PARLANDO_TRY(const auto text, read_file(file, kFileBytesMax));
  PARLANDO_TRY(out->keys_, parse(text, file));
  return out;
}

void KeyTable::refresh(Time now) {
  const std::lock_guard lock(mutex_);
  if (file_.empty() || now - checked_ < std::chrono::seconds(1)) return;
  checked_ = now;
  const auto stamp = FileStamp::of(file_);
  if (stamp == stamp_) return;
  stamp_ = stamp;
  const auto text = read_file(file_, kFileBytesMax);
  auto keys = text ? parse(*text, file_) : tl::make_unexpected(text.error());
  if (!keys) {
    ++broken_;
    telemetry::log(telemetry::Level::error, "keys of callers stay as they are: {} keys={}", keys.error().message,
                   keys_.size());
    return;
  }
  keys_ = *std::move(keys);
  ++version_;
  telemetry::log(telemetry::Level::info, "keys of callers are taken from '{}' keys={}", file_, keys_.size());
}

std::optional<Identity> KeyTable::who(const std::string& key) const {
  const std::lock_guard lock(mutex_);
  const auto found = keys_.find(key);
  if (found == keys_.end()) return {};
  return found->second;
}

std::size_t KeyTable::size() const {
  const std::lock_guard lock(mutex_);
  return keys_.size();
}

std::vector<std::string> KeyTable::keys() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> out;
  for (const auto& [key, identity] : keys_) out.push_back(key);
  return out;
}

struct ZapServer::Impl {
  void* context = nullptr;
  void* socket = nullptr;
  int wake = -1;
  ZapCounters counters;
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<KeyTable>> domains;
  Time complained{};
  std::thread thread;
  SteadyClock clock;

  std::shared_ptr<KeyTable> table_of(const std::string& domain) {
    const std::lock_guard lock(mutex);
    const auto found = domains.find(domain);
    return found == domains.end() ? nullptr : found->second;
  }

  /// All frames of one request. @return false when nothing waits, or the context ends
  bool receive(std::vector<std::string>& frames) {
    frames.clear();
    for (bool more = true; more;) {
      zmq_msg_t part;
      zmq_msg_init(&part);
      const bool got = zmq_msg_recv(&part, socket, ZMQ_DONTWAIT) >= 0;
      // Only this process asks, but a frame too many is kept out of memory nevertheless.
      if (got && frames.size() <= kZapFrames)
        frames.emplace_back(static_cast<const char*>(zmq_msg_data(&part)), zmq_msg_size(&part));
      more = got && zmq_msg_more(&part) != 0;
      zmq_msg_close(&part);
      if (!got) return false;
    }
    return true;
  }

  void answer(const std::vector<std::string>& frames) {
    const auto now = clock.now();
    std::string why;
    std::string key;
    std::optional<Identity> who;
    if (frames.size() != kZapFrames || frames[0] != "1.0" || frames[5] != "CURVE" || frames[6].size() != kKeyBytes) {
      ++counters.malformed;
      why = "this is no CURVE request";
    } else if (const auto table = table_of(frames[2]); table == nullptr) {
      why = "this domain is not served";
    } else {
      key = to_text(frames[6]);
      table->refresh(now);
      who = table->who(key);
      if (!who) why = "this key is not listed";
    }
    ++(who ? counters.accepted : counters.refused);
    if (!who && now - complained >= std::chrono::seconds(1)) {
      complained = now;
      telemetry::log(telemetry::Level::warning, "a caller is refused: {} domain={} address={} key={}", why,
                     frames.size() > 2 ? frames[2] : "", frames.size() > 3 ? frames[3] : "", key);
    }
    // All three properties are always there: what ZAP says goes before what a caller's own metadata claims.
    std::string properties;
    if (who) {
      append_property(properties, "Instance", who->instance);
      append_property(properties, "Key", key);
    }
    const std::string reply[] = {
        "1.0", frames.size() > 1 ? frames[1] : "", who ? "200" : "400", why, who ? who->role : "", properties};
    for (const auto& frame : reply)
      zmq_send(socket, frame.data(), frame.size(), &frame == std::end(reply) - 1 ? 0 : ZMQ_SNDMORE);
  }

  void run() {
    std::vector<std::string> frames;
    zmq_pollitem_t items[] = {{socket, 0, ZMQ_POLLIN, 0}, {nullptr, wake, ZMQ_POLLIN, 0}};
    while (true) {
      if (zmq_poll(items, 2, -1) < 0) {
        if (zmq_errno() == EINTR) continue;
        break;  // ETERM: the context ends
      }
      if (items[1].revents != 0) break;
      while (receive(frames)) answer(frames);
    }
    zmq_close(socket);
  }

  /// @error Errc::io when the endpoint is taken
  Result<void> start() {
    socket = zmq_socket(context, ZMQ_REP);
    const int none = 0;
    if (socket == nullptr) return fail(Errc::io, "the ZAP server has no socket: {}", zmq_strerror(zmq_errno()));
    zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof none);
    if (zmq_bind(socket, kZapEndpoint) != 0) {
      const auto error = zmq_errno();
      zmq_close(socket);
      return fail(Errc::io, "'{}' cannot be bound: {}", kZapEndpoint, zmq_strerror(error));
    }
    thread = std::thread([this] { run(); });
    return {};
  }
};

ZapServer::ZapServer(void* context) : impl_(std::make_unique<Impl>()) {
  impl_->context = context;
  impl_->wake = ::eventfd(0, EFD_CLOEXEC);
  PARLANDO_ASSERT(impl_->wake >= 0, "an event descriptor is needed to end the ZAP server's thread");
}

ZapServer::~ZapServer() {
  const std::uint64_t one = 1;
  [[maybe_unused]] const auto ignored = ::write(impl_->wake, &one, sizeof one);
  if (impl_->thread.joinable()) impl_->thread.join();
  ::close(impl_->wake);
}

Result<void> ZapServer::register_domain(const std::string& domain, std::shared_ptr<KeyTable> table) {
  if (domain.empty() || table == nullptr) return fail(Errc::invalid_argument, "a ZAP domain needs a name and a table");
  const std::lock_guard lock(impl_->mutex);
  if (impl_->domains.contains(domain)) return fail(Errc::invalid_argument, "the ZAP domain '{}' is taken", domain);
  if (!impl_->thread.joinable()) {
    PARLANDO_DO(impl_->start());
  }
  impl_->domains.emplace(domain, std::move(table));
  return {};
}

void ZapServer::unregister_domain(const std::string& domain) {
  const std::lock_guard lock(impl_->mutex);
  impl_->domains.erase(domain);
}

const ZapCounters& ZapServer::counters() const { return impl_->counters; }

}  // namespace parlando::transport::curve
