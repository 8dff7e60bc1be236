#pragma once
/// A client in TLS for tests of the server: never blocks, trusts every certificate.
#include <openssl/ssl.h>

#include "tests/common/http/client.hpp"

namespace parlando::http {

class TlsClient {
 public:
  explicit TlsClient(int port) : raw_(port) {
    context_ = SSL_CTX_new(TLS_client_method());
    ssl_ = SSL_new(context_);
    SSL_set_bio(ssl_, BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()));
    SSL_set_connect_state(ssl_);
  }
  TlsClient(const TlsClient&) = delete;
  ~TlsClient() {
    SSL_free(ssl_);
    SSL_CTX_free(context_);
  }

  /// Carries what there is both ways. @return *this
  TlsClient& pump() {
    raw_.pump();
    BIO_write(SSL_get_rbio(ssl_), raw_.in.data(), static_cast<int>(raw_.in.size()));
    raw_.in.clear();
    if (!SSL_is_init_finished(ssl_)) SSL_do_handshake(ssl_);
    if (SSL_is_init_finished(ssl_) && !waiting_.empty()) {
      SSL_write(ssl_, waiting_.data(), static_cast<int>(waiting_.size()));
      waiting_.clear();
    }
    char part[16384];
    for (int n = 0; (n = SSL_read(ssl_, part, sizeof(part))) > 0;) in.append(part, static_cast<std::size_t>(n));
    said_goodbye = (SSL_get_shutdown(ssl_) & SSL_RECEIVED_SHUTDOWN) != 0;
    for (int n = 0; (n = BIO_read(SSL_get_wbio(ssl_), part, sizeof(part))) > 0;)
      out_.append(part, static_cast<std::size_t>(n));
    out_.erase(0, raw_.send(out_));
    return *this;
  }
  void send(std::string_view bytes) { waiting_ += bytes; }
  /// Each in a record of its own, all of them in one segment. After the handshake.
  void send_records(std::initializer_list<std::string_view> records) {
    std::string all;
    char part[16384];
    for (const auto record : records) SSL_write(ssl_, record.data(), static_cast<int>(record.size()));
    for (int n = 0; (n = BIO_read(SSL_get_wbio(ssl_), part, sizeof(part))) > 0;)
      all.append(part, static_cast<std::size_t>(n));
    raw_.send(all);
  }
  /// What lies below TLS.
  Client& raw() { return raw_; }
  bool is_secure() const { return SSL_is_init_finished(ssl_) == 1; }
  /// As browsers end a connection.
  void close() {
    SSL_shutdown(ssl_);
    pump();
    raw_.close();
  }

  std::string in;
  bool said_goodbye = false;  ///< the server has ended it in order

 private:
  Client raw_;
  SSL_CTX* context_ = nullptr;
  SSL* ssl_ = nullptr;
  std::string waiting_, out_;
};

}  // namespace parlando::http
