// One rank as a process, for processes_test: sums until its group fails, says why, and forms the next epoch's group.
//
// communicator_rank RANK ADDRESS,... FIRST_EPOCH LAST_EPOCH DEADLINE_MS NUM_FLOATS
// Writes "formed EPOCH", "failed EPOCH MS_SINCE_LAST_SUCCESS: REASON" and, after some sums of the last epoch, "done".

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "worker/communicator/communicator.h"

namespace {

using std::chrono::duration_cast;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

// The sum of what all ranks bring; false when it is wrong.
absl::Status Sum(weir::worker::Communicator& communicator, std::vector<float>& data) {
  const int world_size = communicator.world_size();
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<float>(communicator.rank() + 1);
  absl::Status status = communicator.AllReduceSum(data);
  const float expected = static_cast<float>(world_size * (world_size + 1)) / 2;
  if (status.ok() && (data.front() != expected || data.back() != expected)) return absl::DataLossError("wrong sum");
  return status;
}

void RunEpoch(const weir::worker::SocketGroupOptions& options, size_t num_floats, bool is_last) {
  const std::string epoch = std::to_string(options.epoch);
  auto communicator = weir::worker::NewSocketGroup(options);
  if (!communicator.ok()) return Say("unformed " + epoch + ": " + std::string(communicator.status().message()));
  Say("formed " + epoch);
  std::vector<float> data(num_floats);
  auto last_success = steady_clock::now();
  const int num_sums = num_floats >= (1 << 20) ? 10 : 200;
  for (int i = 0; !is_last || i < num_sums; ++i) {
    if (absl::Status status = Sum(**communicator, data); !status.ok()) {
      const auto ms = duration_cast<milliseconds>(steady_clock::now() - last_success).count();
      return Say("failed " + epoch + " " + std::to_string(ms) + ": " + std::string(status.message()));
    }
    last_success = steady_clock::now();
  }
  Say("done");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  weir::worker::SocketGroupOptions options;
  options.rank = std::atoi(argv[1]);
  std::istringstream list(argv[2]);
  for (std::string address; std::getline(list, address, ',');) options.addresses.push_back(address);
  options.token = "secret";
  options.deadline = milliseconds(std::atoi(argv[5]));
  const auto last_epoch = static_cast<uint64_t>(std::atoi(argv[4]));
  for (options.epoch = static_cast<uint64_t>(std::atoi(argv[3])); options.epoch <= last_epoch; ++options.epoch) {
    RunEpoch(options, static_cast<size_t>(std::atoi(argv[6])), options.epoch == last_epoch);
  }
  return 0;
}
