#include "tools/weir/cluster/held_ports.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

namespace weir::tools {
namespace {

// Below what systems give to connections by themselves (Linux: from 32768 on), which come and go.
constexpr int32_t kFirst = 20000, kEnd = 32768;

enum class Reuse : uint8_t { kNo, kYes };  // SO_REUSEADDR

// A socket that is bound to 127.0.0.1:`port`; -1, with errno, when it cannot be.
int Bind(int32_t port, Reuse reuse) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = reuse == Reuse::kYes ? 1 : 0;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  if (bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0) return fd;
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

}  // namespace

absl::Status CheckPortIsFree(int32_t port) {
  const int fd = Bind(port, Reuse::kYes);
  if (fd < 0) return absl::UnavailableError(std::strerror(errno));
  close(fd);
  return absl::OkStatus();
}

absl::StatusOr<HeldPorts> HeldPorts::Take(int32_t count) {
  // Two that look at the same instant begin in different places.
  const int32_t num_rows = (kEnd - kFirst) / count;
  const int32_t offset = static_cast<int32_t>(getpid()) % num_rows;
  for (int32_t i = 0; i < num_rows; ++i) {
    HeldPorts ports;
    ports.first_ = kFirst + (offset + i) % num_rows * count;
    int32_t num_held = 0;
    while (num_held < count && ports.Hold(ports.first_ + num_held)) ++num_held;
    if (num_held == count) return ports;
  }
  return absl::UnavailableError("no free ports on 127.0.0.1; name some with --port and --ops-port");
}

bool HeldPorts::Hold(int32_t port) {
  // Whoever else holds it has bound it with SO_REUSEADDR; only without that option does the system say so.
  const int probe = Bind(port, Reuse::kNo);
  if (probe < 0) return false;
  close(probe);
  const int fd = Bind(port, Reuse::kYes);
  if (fd >= 0) fds_.push_back(fd);
  return fd >= 0;
}

void HeldPorts::LetGo() {
  for (const int fd : fds_) close(fd);
  fds_.clear();
}

HeldPorts::~HeldPorts() { LetGo(); }

HeldPorts::HeldPorts(HeldPorts&& other) noexcept { *this = std::move(other); }

HeldPorts& HeldPorts::operator=(HeldPorts&& other) noexcept {
  LetGo();
  first_ = std::exchange(other.first_, 0);
  fds_ = std::exchange(other.fds_, {});
  return *this;
}

}  // namespace weir::tools
