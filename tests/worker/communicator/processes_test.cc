// Ranks as real processes: killed, stopped, replaced.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/worker/communicator/child_process.h"
#include "tests/worker/communicator/group_of_threads.h"

namespace weir::worker {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::HasSubstr;

struct Fault {
  GroupKind kind;
  int signal;
  int num_floats;
  std::string name;
};

constexpr int kDeadlineMs = 1000;

class ProcessesTest : public testing::TestWithParam<Fault> {
 protected:
  std::unique_ptr<ChildProcess> Start(int rank, int first_epoch, int last_epoch, int num_floats) {
    std::string list;
    for (const std::string& address : addresses_) list += (list.empty() ? "" : ",") + address;
    return std::make_unique<ChildProcess>(
        std::vector<std::string>{std::string(WEIR_BINARY_DIR) + "/tests/bin/communicator_rank", std::to_string(rank),
                                 list, std::to_string(first_epoch), std::to_string(last_epoch),
                                 std::to_string(kDeadlineMs), std::to_string(num_floats)});
  }

  TemporaryFolder folder_;
  std::vector<std::string> addresses_;
};

INSTANTIATE_TEST_SUITE_P(Faults, ProcessesTest,
                         testing::Values(Fault{GroupKind::kUnix, SIGKILL, 7168, "KilledOverUnix"},
                                         Fault{GroupKind::kTcp, SIGKILL, 7168, "KilledOverTcp"},
                                         Fault{GroupKind::kUnix, SIGKILL, 1 << 20, "KilledInLargeSumsOverUnix"},
                                         Fault{GroupKind::kTcp, SIGKILL, 1 << 20, "KilledInLargeSumsOverTcp"},
                                         Fault{GroupKind::kUnix, SIGSTOP, 7168, "StoppedOverUnix"},
                                         Fault{GroupKind::kTcp, SIGSTOP, 7168, "StoppedOverTcp"},
                                         Fault{GroupKind::kTcp, SIGSTOP, 1 << 20, "StoppedInLargeSumsOverTcp"}),
                         [](const auto& one) { return one.param.name; });

// The middle of a group of four is hit.  The others must name it within two seconds, and form the next epoch's group
// with its replacement, in their old processes.
TEST_P(ProcessesTest, TheOthersNameTheRankAndFormTheNextEpoch) {
  constexpr int kWorldSize = 4;
  constexpr int kVictim = 2;
  const Fault& fault = GetParam();
  addresses_ = NewAddresses(fault.kind, kWorldSize, folder_.path());
  std::vector<std::unique_ptr<ChildProcess>> ranks;
  for (int r = 0; r < kWorldSize; ++r) ranks.push_back(Start(r, 1, 2, fault.num_floats));
  for (auto& rank : ranks) ASSERT_EQ(rank->ReadLine(), "formed 1");
  std::this_thread::sleep_for(milliseconds(100));

  const auto hit = steady_clock::now();
  ranks[kVictim]->Signal(fault.signal);
  for (int r = 0; r < kWorldSize; ++r) {
    if (r == kVictim) continue;
    const std::string line = ranks[r]->ReadLine();
    EXPECT_THAT(line, HasSubstr("failed 1"));
    EXPECT_THAT(line, HasSubstr("rank 2")) << "rank " << r;
  }
  EXPECT_LT(steady_clock::now() - hit, milliseconds(2000));

  ranks[kVictim]->Signal(SIGKILL);
  EXPECT_EQ(ranks[kVictim]->Wait(), 128 + SIGKILL);
  ranks[kVictim] = Start(kVictim, 2, 2, fault.num_floats);
  for (auto& rank : ranks) EXPECT_EQ(rank->ReadLine(), "formed 2");
  for (auto& rank : ranks) EXPECT_EQ(rank->ReadLine(), "done");
  for (auto& rank : ranks) EXPECT_EQ(rank->Wait(), 0);
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

class StoppedProcessTest : public ProcessesTest {};
INSTANTIATE_TEST_SUITE_P(Faults, StoppedProcessTest,
                         testing::Values(Fault{GroupKind::kUnix, SIGSTOP, 7168, "Unix"},
                                         Fault{GroupKind::kTcp, SIGSTOP, 7168, "Tcp"}),
                         [](const auto& one) { return one.param.name; });

TEST_P(StoppedProcessTest, RankThatWakesUpTooLateLearnsWhyAndComesBack) {
  addresses_ = NewAddresses(GetParam().kind, 2, folder_.path());
  auto first = Start(0, 1, 2, GetParam().num_floats);
  auto second = Start(1, 1, 2, GetParam().num_floats);
  ASSERT_EQ(first->ReadLine(), "formed 1");
  ASSERT_EQ(second->ReadLine(), "formed 1");
  second->Signal(SIGSTOP);
  EXPECT_THAT(first->ReadLine(), HasSubstr("for rank 1"));
  second->Signal(SIGCONT);
  EXPECT_THAT(second->ReadLine(), HasSubstr("failed 1"));
  for (auto* rank : {first.get(), second.get()}) {
    EXPECT_EQ(rank->ReadLine(), "formed 2");
    EXPECT_EQ(rank->ReadLine(), "done");
    EXPECT_EQ(rank->Wait(), 0);
  }
}

}  // namespace
}  // namespace weir::worker
