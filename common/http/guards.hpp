#pragma once
/// The rules of the front door that need no socket: addresses to listen on, and which Host and Origin headers are
/// served.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "common/base/result.hpp"

namespace parlando::http {

struct ListenAddress {
  std::string host;  ///< numeric, without brackets
  std::uint16_t port = 0;
  bool loopback = false;
};
/// "127.0.0.1:80", "[::1]:80", "localhost:80". @error Errc::invalid_argument
Result<ListenAddress> parse_listen_address(std::string_view text);

/// Which Host headers are served; see Limits::hosts.
class HostRule {
 public:
  HostRule() = default;
  HostRule(std::vector<std::string> hosts, const ListenAddress& address, std::uint16_t port);
  bool allows(std::string_view host) const;

 private:
  std::vector<std::string> hosts_;
  bool numeric_ = false;  ///< every numeric address is served
};

/// Whether a page of `origin` may open a WebSocket at `host`: its own page, or one of `allowed`.
bool origin_allowed(std::string_view origin, std::string_view host, const std::vector<std::string>& allowed);

}  // namespace parlando::http
