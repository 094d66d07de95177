#include "gateway/service/certificate_files.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <utility>

#include "gateway/identity/file_stamp.h"

namespace weir::gateway {
namespace {

template <typename T, void (*kFree)(T*)>
struct Free {
  void operator()(T* object) const { kFree(object); }
};
using Bio = std::unique_ptr<BIO, Free<BIO, BIO_free_all>>;
using Certificate = std::unique_ptr<X509, Free<X509, X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Free<EVP_PKEY, EVP_PKEY_free>>;

Bio BioOf(const std::string& text) { return Bio(BIO_new_mem_buf(text.data(), static_cast<int>(text.size()))); }

absl::StatusOr<std::string> ReadPem(const std::string& what, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(what + " " + path + ": cannot be opened: " + std::strerror(errno));
  return std::string((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
}

// The first certificate; null when there is none, or when one of those that follow is broken.
Certificate FirstCertificate(const std::string& pem) {
  const Bio bio = BioOf(pem);
  Certificate first;
  while (Certificate next{PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)}) {
    if (first == nullptr) first = std::move(next);
  }
  const bool is_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  return is_end ? std::move(first) : nullptr;
}

Key KeyOf(const std::string& pem) {
  // Without a password of its own, OpenSSL would ask for one at the terminal.
  const auto no_password = [](char*, int, int, void*) { return -1; };
  Key key(PEM_read_bio_PrivateKey(BioOf(pem).get(), nullptr, no_password, nullptr));
  ERR_clear_error();
  return key;
}

std::string TextOf(const ASN1_TIME* time) {
  const Bio bio(BIO_new(BIO_s_mem()));
  ASN1_TIME_print(bio.get(), time);
  char* text = nullptr;
  const auto size = BIO_get_mem_data(bio.get(), &text);
  return {text, static_cast<size_t>(size)};
}

absl::Status Check(const CertificateFiles::Paths& paths, ServerCertificate& given) {
  const Certificate certificate = FirstCertificate(given.chain);
  if (certificate == nullptr) {
    return absl::InvalidArgumentError("TLS certificate " + paths.certificate +
                                      ": is no certificate in PEM form; it must hold the server's own, then those that "
                                      "vouch for it, each from -----BEGIN CERTIFICATE----- to its end");
  }
  const Key key = KeyOf(given.key);
  if (key == nullptr) {
    return absl::InvalidArgumentError("TLS key " + paths.key +
                                      ": is no private key in PEM form without a password (`openssl pkey -in FILE` "
                                      "shows what is wrong, and takes a password off)");
  }
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    ERR_clear_error();
    return absl::InvalidArgumentError("TLS key " + paths.key + ": does not belong to the certificate " +
                                      paths.certificate + "; give the key that the certificate was made for");
  }
  if (!paths.client_authority.empty() && FirstCertificate(given.client_authority) == nullptr) {
    return absl::InvalidArgumentError("TLS client authority " + paths.client_authority +
                                      ": is no certificate in PEM form; it must hold those that may vouch for clients");
  }
  given.valid_until = TextOf(X509_get0_notAfter(certificate.get()));
  given.has_expired = X509_cmp_current_time(X509_get0_notAfter(certificate.get())) < 0;
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const ServerCertificate>> Read(const CertificateFiles::Paths& paths) {
  auto given = std::make_shared<ServerCertificate>();
  auto chain = ReadPem("TLS certificate", paths.certificate);
  if (!chain.ok()) return chain.status();
  given->chain = *std::move(chain);
  auto key = ReadPem("TLS key", paths.key);
  if (!key.ok()) return key.status();
  given->key = *std::move(key);
  if (!paths.client_authority.empty()) {
    auto authority = ReadPem("TLS client authority", paths.client_authority);
    if (!authority.ok()) return authority.status();
    given->client_authority = *std::move(authority);
  }
  if (absl::Status status = Check(paths, *given); !status.ok()) return status;
  return given;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CertificateFiles>> CertificateFiles::Open(Paths paths) {
  std::unique_ptr<CertificateFiles> files(new CertificateFiles(std::move(paths)));
  if (const auto is_read = files->Refresh(); !is_read.ok()) return is_read.status();
  return files;
}

std::shared_ptr<const ServerCertificate> CertificateFiles::current() const {
  const std::lock_guard lock(mutex_);
  return current_;
}

absl::StatusOr<bool> CertificateFiles::Refresh() {
  const std::string stamp =
      StampOf(paths_.certificate) + " " + StampOf(paths_.key) + " " + StampOf(paths_.client_authority);
  {
    const std::lock_guard lock(mutex_);
    if (stamp == seen_) return false;
    seen_ = stamp;
  }
  auto certificate = Read(paths_);
  if (!certificate.ok()) return certificate.status();
  const std::lock_guard lock(mutex_);
  current_ = *std::move(certificate);
  return true;
}

}  // namespace weir::gateway
