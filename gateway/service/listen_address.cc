#include "gateway/service/listen_address.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>

namespace weir::gateway {
namespace {

// "127." and three more numbers below 256: a name that only begins so may be anybody's.
bool IsLoopbackV4(std::string_view host) {
  int num_parts = 0;
  while (true) {
    const size_t dot = std::min(host.find('.'), host.size());
    const std::string_view part = host.substr(0, dot);
    int number = -1;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), number);
    if (error != std::errc() || end != part.data() + part.size() || number < 0 || number > 255) return false;
    if (num_parts == 0 && number != 127) return false;
    ++num_parts;
    if (dot == host.size()) return num_parts == 4;
    host.remove_prefix(dot + 1);
  }
}

}  // namespace

bool IsLocalAddress(std::string_view listen) {
  if (listen.starts_with("unix:") || listen.starts_with("unix-abstract:")) return true;
  for (const std::string_view scheme : {"dns:///", "dns:", "ipv4:", "ipv6:"}) {
    if (!listen.starts_with(scheme)) continue;
    listen.remove_prefix(scheme.size());
    break;
  }
  const std::string_view host = listen.substr(0, std::min(listen.rfind(':'), listen.size()));
  return host == "localhost" || host == "[::1]" || IsLoopbackV4(host);
}

}  // namespace weir::gateway
