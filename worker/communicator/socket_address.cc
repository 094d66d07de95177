#include "worker/communicator/socket_address.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <system_error>

namespace weir::worker {
namespace {

sockaddr_un UnixAddress(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.data(), path.size());  // ParseSocketAddress has checked the length
  return address;
}

FileDescriptor OpenUnixSocket() {
  return FileDescriptor(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

FileDescriptor OpenTcpSocket(const addrinfo& info) {
  FileDescriptor socket(::socket(info.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int one = 1;
  if (socket.is_open()) ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return socket;
}

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

absl::StatusOr<AddressList> Resolve(const SocketAddress& address) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  const int code = ::getaddrinfo(address.host.c_str(), address.port.c_str(), &hints, &list);
  if (code != 0) return absl::UnavailableError("cannot resolve " + address.ToString() + ": " + ::gai_strerror(code));
  return AddressList(list, &::freeaddrinfo);
}

bool SomebodyListens(const sockaddr_un& address) {
  FileDescriptor probe = OpenUnixSocket();
  return ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ||
         errno == EAGAIN;  // its queue is full
}

bool IsSocket(const std::string& path) {
  struct stat status{};
  return ::lstat(path.c_str(), &status) == 0 && S_ISSOCK(status.st_mode);
}

absl::StatusOr<FileDescriptor> BindUnix(const SocketAddress& address) {
  FileDescriptor socket = OpenUnixSocket();
  const sockaddr_un name = UnixAddress(address.host);
  const auto bind = [&] { return ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0; };
  if (bind()) return socket;
  if (errno != EADDRINUSE) return SystemError("cannot listen at " + address.ToString(), errno);
  if (!IsSocket(address.host)) return absl::AlreadyExistsError(address.host + " exists and is not a socket; remove it");
  if (SomebodyListens(name)) {
    return absl::AlreadyExistsError("another process listens at " + address.ToString() +
                                    "; stop it or choose another path");
  }
  ::unlink(address.host.c_str());
  if (bind()) return socket;
  return SystemError("cannot listen at " + address.ToString(), errno);
}

absl::StatusOr<FileDescriptor> BindTcp(const SocketAddress& address) {
  auto list = Resolve(address);
  if (!list.ok()) return list.status();
  int error = EADDRNOTAVAIL;
  for (const addrinfo* info = list->get(); info != nullptr; info = info->ai_next) {
    FileDescriptor socket = OpenTcpSocket(*info);
    const int one = 1;
    ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (::bind(socket.get(), info->ai_addr, info->ai_addrlen) == 0) return socket;
    error = errno;
  }
  return SystemError("cannot listen at " + address.ToString(), error);
}

std::optional<int> ParsePort(std::string_view text) {
  int port = 0;
  if (text.empty() || text.size() > 5) return std::nullopt;
  for (const char c : text) {
    if (c < '0' || c > '9') return std::nullopt;
    port = port * 10 + (c - '0');
  }
  if (port < 1 || port > 65535) return std::nullopt;
  return port;
}

absl::StatusOr<SocketAddress> ParseUnixAddress(std::string_view path) {
  if (path.empty() || path.find('\0') != path.npos || path.size() >= sizeof(sockaddr_un::sun_path)) {
    return absl::InvalidArgumentError("the path of 'unix:" + std::string(path) + "' must have 1 to " +
                                      std::to_string(sizeof(sockaddr_un::sun_path) - 1) + " bytes");
  }
  return SocketAddress{true, std::string(path), ""};
}

}  // namespace

std::string SocketAddress::ToString() const {
  std::string text = is_unix ? "unix:" : "";
  const bool is_v6 = !is_unix && host.find(':') != host.npos;
  if (is_v6) text += '[';
  text += host;
  if (is_v6) text += ']';
  if (!is_unix) text += ':';
  return text + port;
}

absl::StatusOr<SocketAddress> ParseSocketAddress(std::string_view text) {
  constexpr std::string_view kUnix = "unix:";
  if (text.starts_with(kUnix)) return ParseUnixAddress(text.substr(kUnix.size()));
  const size_t colon = text.rfind(':');
  std::string_view host = text.substr(0, colon == text.npos ? 0 : colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  if (host.empty() || !ParsePort(text.substr(colon + 1))) {
    return absl::InvalidArgumentError("'" + std::string(text) +
                                      "' is not an address; write unix:/path or host:port with a port from 1 to 65535");
  }
  return SocketAddress{false, std::string(host), std::string(text.substr(colon + 1))};
}

absl::StatusOr<Listener> Listener::Open(const SocketAddress& address, int backlog) {
  auto socket = address.is_unix ? BindUnix(address) : BindTcp(address);
  if (!socket.ok()) return socket.status();
  Listener listener(*std::move(socket), address);
  if (::listen(listener.fd(), backlog) != 0) return SystemError("cannot listen at " + address.ToString(), errno);
  return listener;
}

Listener::Listener(FileDescriptor fd, const SocketAddress& address) : fd_(std::move(fd)) {
  if (!address.is_unix) return;
  path_ = address.host;
  struct stat status{};
  if (::lstat(path_.c_str(), &status) == 0) {
    device_ = status.st_dev;
    inode_ = status.st_ino;
  }
}

Listener::Listener(Listener&& other) noexcept
    : fd_(std::move(other.fd_)), path_(std::exchange(other.path_, "")), device_(other.device_), inode_(other.inode_) {}

Listener::~Listener() {
  struct stat status{};
  if (path_.empty() || ::lstat(path_.c_str(), &status) != 0) return;
  if (status.st_dev == device_ && status.st_ino == inode_) ::unlink(path_.c_str());
}

FileDescriptor Listener::Accept() {
  FileDescriptor socket(::accept4(fd_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  const int one = 1;
  if (socket.is_open()) ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);  // no-op on Unix
  return socket;
}

absl::StatusOr<FileDescriptor> StartConnect(const SocketAddress& address) {
  if (address.is_unix) {
    FileDescriptor socket = OpenUnixSocket();
    const sockaddr_un name = UnixAddress(address.host);
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0) return socket;
    return SystemError("cannot connect to " + address.ToString(), errno);
  }
  auto list = Resolve(address);
  if (!list.ok()) return list.status();
  int error = EADDRNOTAVAIL;
  for (const addrinfo* info = list->get(); info != nullptr; info = info->ai_next) {
    FileDescriptor socket = OpenTcpSocket(*info);
    if (::connect(socket.get(), info->ai_addr, info->ai_addrlen) == 0 || errno == EINPROGRESS) return socket;
    error = errno;
  }
  return SystemError("cannot connect to " + address.ToString(), error);
}

absl::Status ConnectError(const FileDescriptor& socket) {
  int error = 0;
  socklen_t length = sizeof error;
  ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &length);
  return error == 0 ? absl::OkStatus() : SystemError("cannot connect", error);
}

absl::Status SystemError(std::string_view what, int error_number) {
  return absl::UnavailableError(std::string(what) + ": " + std::generic_category().message(error_number));
}

}  // namespace weir::worker
