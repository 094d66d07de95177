#include "tests/worker/communicator/group_of_threads.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <barrier>
#include <cstdlib>
#include <filesystem>
#include <thread>

namespace weir::worker {
namespace {

// Ports that were free a moment ago, all different.
std::vector<int> FreePorts(int count) {
  std::vector<int> sockets;
  std::vector<int> ports;
  for (int i = 0; i < count; ++i) {
    sockets.push_back(::socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(::bind(sockets.back(), generic, length), 0);
    EXPECT_EQ(::getsockname(sockets.back(), generic, &length), 0);
    ports.push_back(ntohs(address.sin_port));
  }
  for (const int fd : sockets) ::close(fd);
  return ports;
}

}  // namespace

const char* NameOf(GroupKind kind) {
  return kind == GroupKind::kThreads ? "Threads" : kind == GroupKind::kUnix ? "Unix" : "Tcp";
}

TemporaryFolder::TemporaryFolder() {
  char name[] = "/tmp/weir-test-XXXXXX";
  path_ = ::mkdtemp(name);
}
TemporaryFolder::~TemporaryFolder() { std::filesystem::remove_all(path_); }

std::vector<std::string> NewAddresses(GroupKind kind, int world_size, const std::string& folder) {
  std::vector<std::string> addresses;
  if (kind == GroupKind::kTcp) {
    for (const int port : FreePorts(world_size)) addresses.push_back("127.0.0.1:" + std::to_string(port));
  } else {
    for (int rank = 0; rank < world_size; ++rank) addresses.push_back("unix:" + folder + "/" + std::to_string(rank));
  }
  return addresses;
}

void RunRanks(GroupKind kind, int world_size, std::chrono::milliseconds deadline,
              const std::function<void(int, std::unique_ptr<Communicator>)>& rank) {
  TemporaryFolder folder;
  std::vector<std::unique_ptr<Communicator>> group;
  std::vector<std::string> addresses;
  if (kind == GroupKind::kThreads) group = NewThreadGroup(world_size, deadline);
  if (kind != GroupKind::kThreads) addresses = NewAddresses(kind, world_size, folder.path());
  std::barrier<> all_formed(world_size);
  std::vector<std::thread> threads;
  for (int r = 0; r < world_size; ++r) {
    threads.emplace_back([&, r] {
      if (kind == GroupKind::kThreads) return rank(r, std::move(group[r]));
      SocketGroupOptions options;
      options.rank = r;
      options.addresses = addresses;
      options.epoch = 3;
      options.token = "secret";
      options.deadline = deadline;
      auto communicator = NewSocketGroup(options);
      all_formed.arrive_and_wait();  // what the first rank does on purpose shall not reach one that still forms
      ASSERT_TRUE(communicator.ok()) << communicator.status();
      rank(r, *std::move(communicator));
    });
  }
  for (std::thread& thread : threads) thread.join();
}

float Value(uint64_t seed, int rank, size_t i) {
  const auto mixed = static_cast<uint32_t>((seed * 0x9e3779b97f4a7c15u + i * 0x2545f4914f6cdd1du + 77) >> 40);
  const float scale = rank % 2 == 0 ? 1e8f : -3.3e7f;
  return scale / static_cast<float>(1 + rank) + static_cast<float>(mixed % 1000) * 0.37f * static_cast<float>(rank + 1);
}

std::vector<float> Values(uint64_t seed, int rank, size_t num_elements) {
  std::vector<float> values(num_elements);
  for (size_t i = 0; i < num_elements; ++i) values[i] = Value(seed, rank, i);
  return values;
}

std::vector<float> SumOfValues(uint64_t seed, const std::vector<int>& ranks, size_t num_elements) {
  std::vector<float> sum = Values(seed, ranks[0], num_elements);
  for (size_t k = 1; k < ranks.size(); ++k) {
    for (size_t i = 0; i < num_elements; ++i) sum[i] += Value(seed, ranks[k], i);
  }
  return sum;
}

std::vector<int> AllRanks(int world_size) {
  std::vector<int> ranks;
  for (int r = 0; r < world_size; ++r) ranks.push_back(r);
  return ranks;
}

}  // namespace weir::worker
