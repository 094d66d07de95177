#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "worker/communicator/communicator.h"

// What tests of communicators share: groups whose ranks are threads of the test, and values whose sums show the order
// of addition.

namespace weir::worker {

enum class GroupKind { kThreads, kUnix, kTcp };
const char* NameOf(GroupKind kind);

// A folder that is removed with everything in it.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Addresses where nobody listens: in `folder`, or free ports of the loopback.
std::vector<std::string> NewAddresses(GroupKind kind, int world_size, const std::string& folder);

// Runs `rank` once per rank, each in a thread with its communicator, and waits for all.
void RunRanks(GroupKind kind, int world_size, std::chrono::milliseconds deadline,
              const std::function<void(int rank, std::unique_ptr<Communicator> communicator)>& rank);

// Element i of what rank `rank` brings to the sum number `seed`.
float Value(uint64_t seed, int rank, size_t i);
std::vector<float> Values(uint64_t seed, int rank, size_t num_elements);
// The sum over ranks in their order.
std::vector<float> SumOfValues(uint64_t seed, const std::vector<int>& ranks, size_t num_elements);
std::vector<int> AllRanks(int world_size);

}  // namespace weir::worker
