#pragma once

#include <grpcpp/security/server_credentials.h>

#include <memory>

#include "gateway/service/certificate_files.h"

namespace weir::gateway {

// TLS with whatever `files` hold at the time of each handshake; connections that stand go on.  With a client authority,
// clients must have a certificate of it.  For one port.  They and `files` must outlive the
// server, which does not keep them.
std::shared_ptr<grpc::ServerCredentials> NewTlsCredentials(const CertificateFiles* files);

}  // namespace weir::gateway
