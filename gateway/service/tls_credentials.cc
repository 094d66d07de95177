#include "gateway/service/tls_credentials.h"

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>

#include <mutex>
#include <string>

namespace weir::gateway {
namespace {

// gRPC's C++ face has certificates that never change, or a watcher of files that serves nothing while a pair is half
// replaced.  Its core asks at every handshake: this brings that to C++.
class TlsCredentials final : public grpc::ServerCredentials {
 public:
  explicit TlsCredentials(const CertificateFiles* files) : files_(files) {
    const auto clients = files->asks_clients() ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                                               : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE;
    credentials_ = grpc_ssl_server_credentials_create_with_options(
        grpc_ssl_server_credentials_create_options_using_config_fetcher(clients, &Fetch, this));
  }
  ~TlsCredentials() override { grpc_server_credentials_release(credentials_); }

  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  static grpc_ssl_certificate_config_reload_status Fetch(void* self, grpc_ssl_server_certificate_config** config) {
    return static_cast<TlsCredentials*>(self)->FetchIfChanged(config);
  }

  grpc_ssl_certificate_config_reload_status FetchIfChanged(grpc_ssl_server_certificate_config** config) {
    auto current = files_->current();
    const std::lock_guard lock(mutex_);
    if (current == given_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const grpc_ssl_pem_key_cert_pair pair{.private_key = current->key.c_str(), .cert_chain = current->chain.c_str()};
    // gRPC wants an authority also where it asks no client for a certificate: any certificate will do then.
    const std::string& authority = files_->asks_clients() ? current->client_authority : current->chain;
    *config = grpc_ssl_server_certificate_config_create(authority.c_str(), &pair, 1);
    given_ = std::move(current);
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  const CertificateFiles* const files_;
  grpc_server_credentials* credentials_;
  std::mutex mutex_;
  std::shared_ptr<const ServerCertificate> given_;
};

}  // namespace

std::shared_ptr<grpc::ServerCredentials> NewTlsCredentials(const CertificateFiles* files) {
  return std::make_shared<TlsCredentials>(files);
}

}  // namespace weir::gateway
