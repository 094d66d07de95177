#include "tools/weir/cluster/held_ports.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <set>

namespace weir::tools {
namespace {

// A socket that listens there, as a child of `weir up` does; -1 when it cannot.
int Listen(int32_t port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  if (bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 && listen(fd, 1) == 0) return fd;
  close(fd);
  return -1;
}

TEST(HeldPortsTest, NobodyIsGivenAPortThatAnotherHolds) {
  std::vector<HeldPorts> all;
  std::set<int32_t> given;
  for (int i = 0; i < 20; ++i) {
    absl::StatusOr<HeldPorts> ports = HeldPorts::Take(3);
    ASSERT_TRUE(ports.ok()) << ports.status();
    for (int32_t port = ports->first(); port < ports->first() + 3; ++port) EXPECT_TRUE(given.insert(port).second);
    all.push_back(*std::move(ports));
  }
}

TEST(HeldPortsTest, AChildCanListenThereAgainAndAgain) {
  absl::StatusOr<HeldPorts> ports = HeldPorts::Take(1);
  ASSERT_TRUE(ports.ok()) << ports.status();
  for (int life = 0; life < 3; ++life) {
    const int fd = Listen(ports->first());
    EXPECT_GE(fd, 0);
    close(fd);
  }
}

TEST(HeldPortsTest, AreFreeAfterwards) {
  int32_t first = 0;
  {
    absl::StatusOr<HeldPorts> ports = HeldPorts::Take(2);
    ASSERT_TRUE(ports.ok()) << ports.status();
    first = ports->first();
  }
  absl::StatusOr<HeldPorts> again = HeldPorts::Take(2);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->first(), first);
}

}  // namespace
}  // namespace weir::tools
