#pragma once

#include <string>

namespace CLI {
class App;
}

// Which gateway a client command talks to, and as whom.

namespace weir::tools {

struct ServerOptions {
  std::string address;   // host:port or unix:/path
  std::string api_key;   // empty: none
  std::string key_file;  // holds the key; the environment and process lists need not show it
  bool uses_tls = false;
  std::string ca_file;  // PEM; empty: the system's
  // PEM, both or none: for a gateway that asks clients for a certificate as well.
  std::string certificate_file, certificate_key_file;
};

// --server, --api-key-file, --tls, --tls-ca, --tls-certificate, --tls-key.  The environment's WEIR_SERVER and
// WEIR_API_KEY are the defaults.
void AddServerOptions(CLI::App& command, ServerOptions& options);

}  // namespace weir::tools
