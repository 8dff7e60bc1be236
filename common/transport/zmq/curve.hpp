#pragma once
/// Keys, and who may connect with which. CURVE encrypts and proves that a caller has the secret of its public key; the
/// `KeyTable` says which public keys are known and in which role; the `ZapServer` asks the table for every handshake.
///
/// For a socket that listens (all of it before `bind`, or callers get in unasked):
///   zap->register_domain(domain, table);       // first: without a ZAP server libzmq lets every key in
///   curve_server = 1, curve_secretkey, zap_domain = domain, kZapEnforceDomain = 1
///   per message: zmq_msg_gets(m, "User-Id") is the role of the key, "Instance" its instance (or ""), "Key" the key
///   itself
/// For a socket that calls: curve_serverkey = public key of that role (each role has its own), its own key pair.
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "common/base/clock.hpp"
#include "common/base/file_stamp.hpp"
#include "common/base/result.hpp"

namespace parlando::transport::curve {

/// Socket option ZMQ_ZAP_ENFORCE_DOMAIN, which zmq.h hides behind its draft switch; libzmq 4.3 has it (int, 0 or 1).
/// With it a socket that has a domain and no ZAP server refuses everybody.
inline constexpr int kZapEnforceDomain = 93;

/// Of 40 characters each, Z85.
struct KeyPair {
  std::string public_key;
  std::string secret_key;
  /// A fresh pair. @error Errc::unsupported when this ZeroMQ was built without CURVE
  static Result<KeyPair> generate();
  /// Does the public key belong to the secret one?
  bool is_pair() const;
};

bool is_key(const std::string& text);
/// Reads one key from a file with 40 characters. @error Errc::not_found, Errc::io, Errc::bad_format naming the file
Result<std::string> read_key(const std::string& file);

/// Whose key it is.
struct Identity {
  std::string role;
  std::string instance;  ///< empty: any instance of the role
  bool operator==(const Identity&) const = default;
};

/// Public keys of the callers that one service admits, from a file: a line is `<key> <role> [instance]`, `#` starts a
/// comment. A file without keys admits nobody. Written anew, best by renaming into its place, it takes effect within a
/// second; a file that is missing, broken or too large keeps the old table, is counted and logged once. Any thread.
class KeyTable {
 public:
  static constexpr std::size_t kKeysMax = 16384;

  /// @error Errc::not_found, Errc::io, Errc::bad_format naming file and line
  static Result<std::shared_ptr<KeyTable>> open(const std::string& file, Time now);
  /// Of keys that never change, from a text in the file's format. @error Errc::bad_format naming the line
  static Result<std::shared_ptr<KeyTable>> of_text(const std::string& text);

  /// Reads the file again when it changed; looks at most once a second.
  void refresh(Time now);
  std::optional<Identity> who(const std::string& key) const;
  std::size_t size() const;
  std::vector<std::string> keys() const;
  /// Grows with every table taken over. When it does, a transport asks `who` again for the "Key" of its connections:
  /// ZAP decides at the handshake only, so a key that was taken away keeps its open connections otherwise.
  std::uint64_t version() const { return version_; }
  /// Files that were not taken over.
  std::uint64_t broken() const { return broken_; }

 private:
  using Keys = std::map<std::string, Identity>;
  static Result<Keys> parse(const std::string& text, const std::string& name);
  std::string file_;
  mutable std::mutex mutex_;
  Keys keys_;
  FileStamp stamp_;
  Time checked_{};
  std::atomic<std::uint64_t> version_{1};
  std::atomic<std::uint64_t> broken_{0};
};

struct ZapCounters {
  std::atomic<std::uint64_t> accepted{0};
  std::atomic<std::uint64_t> refused{0};
  std::atomic<std::uint64_t> malformed{0};  ///< of `refused`: requests that are no CURVE request of ZAP 1.0
};

/// Answers the question "may this key connect to that domain?" for all sockets of one ZeroMQ context, of which there
/// can be one only (`inproc://zeromq.zap.01`). It lives on a thread of its own that sleeps until it is asked: a
/// handshake never waits for a service's thread, and a service that hangs stops nobody else's. The thread starts with
/// the first domain. End it before the context; if the context ends first, the thread ends with it.
class ZapServer {
 public:
  /// @param context  libzmq's own handle, as of zmq_ctx_new or zmq::context_t::handle()
  explicit ZapServer(void* context);
  ~ZapServer();
  ZapServer(const ZapServer&) = delete;
  ZapServer& operator=(const ZapServer&) = delete;

  /// From its return on the domain is answered. @error Errc::invalid_argument when the domain is empty or taken,
  /// Errc::io when another ZAP server listens in this context
  Result<void> register_domain(const std::string& domain, std::shared_ptr<KeyTable> table);
  /// Its callers are refused from then on.
  void unregister_domain(const std::string& domain);
  const ZapCounters& counters() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace parlando::transport::curve
