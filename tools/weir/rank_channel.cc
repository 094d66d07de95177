#include "tools/weir/rank_channel.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace weir::tools {
namespace {

absl::Status Gone() { return absl::UnavailableError("the other end of a rank's channel is gone"); }

bool SendAll(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    bytes = bytes.subspan(count);
  }
  return true;
}

bool ReceiveAll(int fd, std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t count = recv(fd, bytes.data(), bytes.size(), 0);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    bytes = bytes.subspan(count);
  }
  return true;
}

struct Header {
  uint64_t kind;
  uint64_t num_bytes;
};

}  // namespace

RankChannel& RankChannel::operator=(RankChannel&& other) noexcept {
  if (this == &other) return *this;
  Close();
  fd_ = std::exchange(other.fd_, -1);
  return *this;
}

absl::Status RankChannel::Send(const Message& message) {
  const Header header = {static_cast<uint64_t>(message.kind), message.bytes.size()};
  if (!SendAll(fd_, std::as_bytes(std::span(&header, 1))) || !SendAll(fd_, message.bytes)) return Gone();
  return absl::OkStatus();
}

absl::Status RankChannel::Receive(Message& message) {
  Header header = {};
  if (!ReceiveAll(fd_, std::as_writable_bytes(std::span(&header, 1)))) return Gone();
  message.kind = static_cast<MessageKind>(header.kind);
  message.bytes.resize(header.num_bytes);
  return ReceiveAll(fd_, message.bytes) ? absl::OkStatus() : Gone();
}

void RankChannel::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

size_t ByteReader::TakeSize() {
  uint64_t size = 0;
  Copy(&size, sizeof(size));
  if (size <= rest_.size()) return size;
  is_short_ = true;
  return 0;
}

void ByteReader::Copy(void* out, size_t num_bytes) {
  if (num_bytes > rest_.size()) {
    is_short_ = true;
    rest_ = {};
    std::memset(out, 0, num_bytes);
    return;
  }
  if (num_bytes > 0) std::memcpy(out, rest_.data(), num_bytes);
  rest_ = rest_.subspan(num_bytes);
}

}  // namespace weir::tools
