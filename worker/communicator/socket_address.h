#pragma once

#include <sys/types.h>

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/communicator/file_descriptor.h"

// Addresses of ranks, and the two ways to a stream socket: listening and connecting.  All sockets are non-blocking and
// closed on exec; TCP sockets have TCP_NODELAY.

namespace weir::worker {

struct SocketAddress {
  bool is_unix = false;
  std::string host;  // a path when is_unix
  std::string port;  // empty when is_unix

  std::string ToString() const;
};

// "unix:/path", "host:port" or "[v6]:port".  INVALID_ARGUMENT says what is wrong: empty or over-long path, port outside
// 1 to 65535.
absl::StatusOr<SocketAddress> ParseSocketAddress(std::string_view text);

// Listens until destroyed; a Unix socket's file is then removed, unless another listener has replaced it.
class Listener {
 public:
  // A socket file without a listener (its process was killed) is replaced.  ALREADY_EXISTS when somebody listens there,
  // or when the path is something else than a socket.
  static absl::StatusOr<Listener> Open(const SocketAddress& address, int backlog);
  Listener(Listener&& other) noexcept;
  Listener& operator=(Listener&&) = delete;
  ~Listener();

  int fd() const { return fd_.get(); }
  // The next connection; not open when none waits.
  FileDescriptor Accept();

 private:
  Listener(FileDescriptor fd, const SocketAddress& address);
  FileDescriptor fd_;
  std::string path_;  // of a Unix socket
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

// Begins to connect: the socket becomes writable when it is through, and ConnectError tells how it ended.
absl::StatusOr<FileDescriptor> StartConnect(const SocketAddress& address);
absl::Status ConnectError(const FileDescriptor& socket);

// "what: the system's words for `error_number`".
absl::Status SystemError(std::string_view what, int error_number);

}  // namespace weir::worker
