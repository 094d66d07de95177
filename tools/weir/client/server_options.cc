#include "tools/weir/client/server_options.h"

#include <CLI/CLI.hpp>

#include "tools/weir/cluster/local_cluster.h"

namespace weir::tools {

void AddServerOptions(CLI::App& command, ServerOptions& options) {
  const std::string group = "Gateway";
  options.address = "127.0.0.1:" + std::to_string(kDefaultPort);
  command.add_option("--server", options.address, "address of the gateway: host:port or unix:/path")
      ->envname("WEIR_SERVER")
      ->capture_default_str()
      ->group(group);
  command.add_option("--api-key-file", options.key_file, "file that holds the API key; else WEIR_API_KEY is used")
      ->check(CLI::ExistingFile)
      ->group(group);
  auto* tls = command.add_flag("--tls", options.uses_tls, "connect over TLS")->group(group);
  command.add_option("--tls-ca", options.ca_file, "PEM file with the authority's certificate; default: the system's")
      ->check(CLI::ExistingFile)
      ->group(group)
      ->needs(tls);
  auto* certificate = command
                          .add_option("--tls-certificate", options.certificate_file,
                                      "PEM file with a certificate of your own, for a gateway that asks for one")
                          ->check(CLI::ExistingFile)
                          ->group(group)
                          ->needs(tls);
  auto* key = command.add_option("--tls-key", options.certificate_key_file, "PEM file with its key")
                  ->check(CLI::ExistingFile)
                  ->group(group)
                  ->needs(certificate);
  certificate->needs(key);
}

}  // namespace weir::tools
