#include "common/http/guards.hpp"

#include <algorithm>
#include <boost/asio/ip/address.hpp>
#include <charconv>

namespace parlando::http {
namespace {

std::string lower(std::string_view text) {
  std::string out(text);
  for (auto& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c + 'a' - 'A');
  return out;
}

struct HostPort {
  std::string_view host, port;
};
/// "name", "name:80", "[::1]:80".
HostPort split(std::string_view text) {
  const auto colon = text.rfind(':');
  const auto bracket = text.rfind(']');
  if (colon == std::string_view::npos || (bracket != std::string_view::npos && colon < bracket)) return {text, {}};
  return {text.substr(0, colon), text.substr(colon + 1)};
}

std::string_view without_brackets(std::string_view host) {
  const bool bracketed = host.size() >= 2 && host.front() == '[' && host.back() == ']';
  return bracketed ? host.substr(1, host.size() - 2) : host;
}

bool is_numeric(std::string_view host) {
  boost::system::error_code ec;
  boost::asio::ip::make_address(std::string(without_brackets(host)), ec);
  return !ec;
}

}  // namespace

Result<ListenAddress> parse_listen_address(std::string_view text) {
  const auto [host, port] = split(text);
  if (port.empty()) return fail(Errc::invalid_argument, "the address '{}' has no port, expected host:port", text);
  ListenAddress out;
  unsigned value = 0;
  const auto [end, ec] = std::from_chars(port.data(), port.data() + port.size(), value);
  if (ec != std::errc() || end != port.data() + port.size() || value > 65535)
    return fail(Errc::invalid_argument, "the address '{}' has the port '{}', expected 0 to 65535", text, port);
  out.port = static_cast<std::uint16_t>(value);
  out.host = host == "localhost" ? "127.0.0.1" : std::string(without_brackets(host));
  boost::system::error_code bad;
  const auto ip = boost::asio::ip::make_address(out.host, bad);
  if (bad)
    return fail(Errc::invalid_argument, "the address '{}' has the host '{}', expected a numeric address or localhost",
                text, host);
  if (ip.is_v6() != host.starts_with('['))
    return fail(Errc::invalid_argument, "the address '{}' is written wrongly, expected [IPv6]:port or IPv4:port", text);
  out.loopback = ip.is_loopback();
  return out;
}

HostRule::HostRule(std::vector<std::string> hosts, const ListenAddress& address, std::uint16_t port)
    : hosts_(std::move(hosts)) {
  for (auto& host : hosts_) host = lower(host);
  if (!hosts_.empty()) return;
  if (!address.loopback) {
    numeric_ = true;
    hosts_ = {"localhost"};
    return;
  }
  const auto own = address.host.find(':') == std::string::npos ? address.host : "[" + address.host + "]";
  for (const auto& name : {std::string("localhost"), std::string("127.0.0.1"), std::string("[::1]"), own})
    hosts_.push_back(fmt::format("{}:{}", name, port));
}

bool HostRule::allows(std::string_view header) const {
  const auto whole = lower(header);
  const auto [host, port] = split(whole);
  if (host.empty()) return false;
  if (numeric_ && is_numeric(host)) return true;
  return std::any_of(hosts_.begin(), hosts_.end(), [&, host = host, port = port](const std::string& allowed) {
    if (allowed == "*") return true;
    const auto [name, only] = split(allowed);
    return name == host && (only.empty() || only == (port.empty() ? "80" : port));
  });
}

bool origin_allowed(std::string_view origin, std::string_view host, const std::vector<std::string>& allowed) {
  const auto from = lower(origin);
  for (const auto& entry : allowed)
    if (entry == "*" || lower(entry) == from) return true;
  const bool secure = from.starts_with("https://");
  if (!secure && !from.starts_with("http://")) return false;  // "null", extensions, files
  const auto default_port = secure ? "443" : "80";
  const auto there = split(std::string_view(from).substr(secure ? 8 : 7));
  const auto own = lower(host);
  const auto here = split(own);
  return !there.host.empty() && there.host == here.host &&
         (there.port.empty() ? default_port : there.port) == (here.port.empty() ? default_port : here.port);
}

}  // namespace parlando::http
