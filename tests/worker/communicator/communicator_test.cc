#include "worker/communicator/communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <barrier>
#include <cstring>
#include <random>
#include <thread>
#include <tuple>

#include "tests/worker/communicator/group_of_threads.h"

namespace weir::worker {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;

constexpr milliseconds kLong{30000};

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

class CommunicatorTest : public testing::TestWithParam<std::tuple<GroupKind, int>> {
 protected:
  GroupKind kind() const { return std::get<0>(GetParam()); }
  int world_size() const { return std::get<1>(GetParam()); }
  // `rank` gets a reference; the communicator lives until all ranks are through.
  void Run(milliseconds deadline, const std::function<void(int, Communicator&)>& rank) {
    std::barrier<> all_done(world_size());
    RunRanks(kind(), world_size(), deadline, [&](int r, std::unique_ptr<Communicator> communicator) {
      rank(r, *communicator);
      all_done.arrive_and_wait();
    });
  }
};

std::string NameOfCase(const testing::TestParamInfo<std::tuple<GroupKind, int>>& info) {
  return std::string(NameOf(std::get<0>(info.param))) + std::to_string(std::get<1>(info.param));
}

constexpr GroupKind kAllKinds[] = {GroupKind::kThreads, GroupKind::kUnix, GroupKind::kTcp};
INSTANTIATE_TEST_SUITE_P(Groups, CommunicatorTest,
                         testing::Combine(testing::ValuesIn(kAllKinds), testing::Values(1, 2, 3, 4, 8)), NameOfCase);

TEST(TestValues, ShowTheOrderOfAddition) {
  const std::vector<float> forward = SumOfValues(1, {0, 1, 2, 3}, 1000);
  EXPECT_FALSE(SameBits(forward, SumOfValues(1, {3, 2, 1, 0}, 1000)));
  EXPECT_FALSE(SameBits(forward, SumOfValues(1, {0, 1, 3, 2}, 1000)));
}

TEST_P(CommunicatorTest, KnowsItsRankAndWorldSize) {
  Run(kLong, [&](int r, Communicator& communicator) {
    EXPECT_EQ(communicator.rank(), r);
    EXPECT_EQ(communicator.world_size(), world_size());
  });
}

TEST_P(CommunicatorTest, SumsInRankOrderWhateverTheSize) {
  std::vector<size_t> sizes = {0, 1, 15, 16, 17, 1000, 7168, 32767, 32768, 32769, 300001};
  if (world_size() <= 4) sizes.push_back(size_t{4} << 20);  // 16 MiB
  std::vector<std::vector<float>> expected;
  for (const size_t size : sizes) expected.push_back(SumOfValues(size, AllRanks(world_size()), size));
  Run(kLong, [&](int r, Communicator& communicator) {
    for (size_t k = 0; k < sizes.size(); ++k) {
      std::vector<float> data = Values(sizes[k], r, sizes[k]);
      ASSERT_TRUE(communicator.AllReduceSum(data).ok());
      EXPECT_TRUE(SameBits(data, expected[k])) << sizes[k];
    }
  });
}

TEST_P(CommunicatorTest, LargeBuffersInBothDirectionsDoNotDeadlock) {
  if (world_size() > 4) GTEST_SKIP() << "enough with four";
  constexpr size_t kLarge = size_t{16} << 20;
  Run(kLong, [&](int r, Communicator& communicator) {
    const std::vector<std::byte> mine(kLarge, std::byte(r + 1));
    const std::vector<std::span<const std::byte>> send(world_size(), mine);
    std::vector<std::vector<std::byte>> receive(world_size());
    ASSERT_TRUE(communicator.AllToAll(send, receive).ok());
    for (int other = 0; other < world_size(); ++other) {
      ASSERT_EQ(receive[other].size(), kLarge);
      EXPECT_EQ(receive[other][kLarge / 2], std::byte(other + 1));
      EXPECT_EQ(receive[other].back(), std::byte(other + 1));
    }
  });
}

// ---- random sequences against a model ----

std::byte PlannedByte(uint64_t seed, int from, int to, size_t i) {
  return std::byte(seed * 31 + from * 7 + to * 3 + i);
}

std::vector<std::byte> PlannedBytes(uint64_t seed, int from, int to, size_t num_bytes) {
  std::vector<std::byte> bytes(num_bytes);
  for (size_t i = 0; i < num_bytes; ++i) bytes[i] = PlannedByte(seed, from, to, i);
  return bytes;
}

// Sizes of all orders of magnitude, with zero.
size_t PlannedSize(uint64_t seed, int from, int to) {
  std::mt19937_64 random(seed * 1000003 + from * 101 + to);
  const uint64_t magnitude = random() % 18;
  return random() % (uint64_t{1} << magnitude);
}

void CheckAllGather(uint64_t seed, int rank, Communicator& communicator) {
  const size_t size = PlannedSize(seed, 0, 0);
  std::vector<std::byte> all(size * communicator.world_size());
  ASSERT_TRUE(communicator.AllGather(PlannedBytes(seed, rank, 0, size), all).ok());
  for (int r = 0; r < communicator.world_size(); ++r) {
    const auto expected = PlannedBytes(seed, r, 0, size);
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), all.begin() + static_cast<ptrdiff_t>(r * size)));
  }
}

void CheckAllToAll(uint64_t seed, int rank, Communicator& communicator, std::vector<std::vector<std::byte>>& receive) {
  std::vector<std::vector<std::byte>> parts;
  for (int to = 0; to < communicator.world_size(); ++to) {
    parts.push_back(PlannedBytes(seed, rank, to, PlannedSize(seed, rank, to)));
  }
  const std::vector<std::span<const std::byte>> send(parts.begin(), parts.end());
  ASSERT_TRUE(communicator.AllToAll(send, receive).ok());
  for (int from = 0; from < communicator.world_size(); ++from) {
    EXPECT_EQ(receive[from], PlannedBytes(seed, from, rank, PlannedSize(seed, from, rank)));
  }
}

void CheckBroadcast(uint64_t seed, int rank, Communicator& communicator) {
  const int root = static_cast<int>(seed / 8 % communicator.world_size());
  const size_t size = PlannedSize(seed, 0, 0);
  std::vector<std::byte> data = PlannedBytes(seed, rank, 0, size);
  ASSERT_TRUE(communicator.Broadcast(data, root).ok());
  EXPECT_EQ(data, PlannedBytes(seed, root, 0, size));
}

void CheckAllReduce(uint64_t seed, int rank, Communicator& communicator) {
  const size_t size = PlannedSize(seed, 0, 0);
  std::vector<float> data = Values(seed, rank, size);
  ASSERT_TRUE(communicator.AllReduceSum(data).ok());
  EXPECT_TRUE(SameBits(data, SumOfValues(seed, AllRanks(communicator.world_size()), size)));
}

TEST_P(CommunicatorTest, RandomSequencesAgreeWithAModel) {
  std::mt19937_64 random(static_cast<uint64_t>(world_size()) * 10 + static_cast<uint64_t>(kind()));
  std::vector<uint64_t> seeds(120);
  for (uint64_t& seed : seeds) seed = random() >> 1;
  Run(kLong, [&](int r, Communicator& communicator) {
    std::vector<std::vector<std::byte>> receive(world_size());
    for (const uint64_t seed : seeds) {
      switch (seed % 5) {
        case 0:
          CheckAllReduce(seed, r, communicator);
          break;
        case 1:
          CheckAllGather(seed, r, communicator);
          break;
        case 2:
          CheckAllToAll(seed, r, communicator, receive);
          break;
        case 3:
          CheckBroadcast(seed, r, communicator);
          break;
        default:
          ASSERT_TRUE(communicator.Barrier().ok());
      }
      if (testing::Test::HasFatalFailure()) return;
    }
  });
}

TEST_P(CommunicatorTest, SubgroupsAndTheirParentTakeTurns) {
  Run(kLong, [&](int r, Communicator& communicator) {
    std::vector<int> members;
    for (int other = r % 2; other < world_size(); other += 2) members.push_back(other);
    for (int turn = 0; turn < 3; ++turn) {
      auto subgroup = communicator.Subgroup(members);
      ASSERT_TRUE(subgroup.ok()) << subgroup.status();
      EXPECT_EQ((*subgroup)->rank(), r / 2);
      EXPECT_EQ((*subgroup)->world_size(), static_cast<int>(members.size()));
      for (int i = 0; i < 10; ++i) {
        std::vector<float> data = Values(i, r, 5000);
        ASSERT_TRUE((*subgroup)->AllReduceSum(data).ok());
        EXPECT_TRUE(SameBits(data, SumOfValues(i, members, 5000)));
      }
      CheckAllReduce(41 + turn, r, communicator);
    }
  });
}

TEST_P(CommunicatorTest, SubgroupOfOthersIsRefused) {
  Run(kLong, [&](int r, Communicator& communicator) {
    EXPECT_TRUE(absl::IsInvalidArgument(communicator.Subgroup(std::vector<int>{world_size()}).status()));
    EXPECT_TRUE(absl::IsInvalidArgument(communicator.Subgroup(std::vector<int>{}).status()));
    EXPECT_TRUE(absl::IsInvalidArgument(communicator.Subgroup(std::vector<int>{r, r}).status()));
  });
}

// ---- failures; these need somebody to wait for ----

class FailingCommunicatorTest : public CommunicatorTest {};
INSTANTIATE_TEST_SUITE_P(Groups, FailingCommunicatorTest,
                         testing::Combine(testing::ValuesIn(kAllKinds), testing::Values(2, 4)), NameOfCase);

TEST_P(FailingCommunicatorTest, DeadlineNamesTheRankThatDoesNotCome) {
  const int absent = world_size() - 1;
  std::atomic<int> num_waiting{world_size() - 1};
  Run(milliseconds(200), [&](int r, Communicator& communicator) {
    if (r == absent) {
      while (num_waiting > 0) std::this_thread::sleep_for(milliseconds(1));
      return;
    }
    std::vector<float> data(100);
    const absl::Status status = communicator.AllReduceSum(data);
    --num_waiting;
    EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
    EXPECT_THAT(Message(status),
                AllOf(HasSubstr("200 ms"), HasSubstr("all-reduce"), HasSubstr("for rank " + std::to_string(absent))));
    // Dead: the first reason, at once.
    EXPECT_EQ(communicator.Barrier(), status);
  });
}

TEST_P(FailingCommunicatorTest, AbortEndsAWaitAndBreaksTheOthers) {
  Run(kLong, [&](int r, Communicator& communicator) {
    if (r == world_size() - 1) return;  // never comes
    std::thread aborter;
    if (r == 0) {
      aborter = std::thread([&] {
        std::this_thread::sleep_for(milliseconds(20));
        communicator.Abort("the step was given up");
      });
    }
    const absl::Status status = communicator.Barrier();
    if (aborter.joinable()) aborter.join();
    EXPECT_EQ(status.code(), r == 0 ? absl::StatusCode::kAborted : absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(Message(status), HasSubstr("the step was given up"));
    if (r != 0) {
      EXPECT_THAT(Message(status), HasSubstr("rank 0 aborted"));
    }
    EXPECT_EQ(communicator.Barrier(), status);
  });
}

TEST_P(FailingCommunicatorTest, AbortBetweenCallsFailsTheNext) {
  Run(kLong, [&](int r, Communicator& communicator) {
    const absl::Status first = communicator.Barrier();
    if (r == 0) communicator.Abort("enough");
    const absl::Status status = communicator.Barrier();
    // The word may come while this rank still waits for a third in the first barrier.
    EXPECT_TRUE(first.ok() || (r != 0 && first == status)) << first;
    EXPECT_EQ(status.code(), r == 0 ? absl::StatusCode::kAborted : absl::StatusCode::kUnavailable) << status;
  });
}

// The best of several, since a busy machine may keep any one waiting.
TEST_P(FailingCommunicatorTest, AbortIsFelt) {
  auto best = milliseconds::max();
  for (int attempt = 0; attempt < 5; ++attempt) {
    Run(kLong, [&](int r, Communicator& communicator) {
      if (r != 0) return;
      steady_clock::time_point aborted;
      std::thread aborter([&] {
        std::this_thread::sleep_for(milliseconds(20));
        aborted = steady_clock::now();
        communicator.Abort("enough");
      });
      EXPECT_TRUE(absl::IsAborted(communicator.Barrier()));
      const auto returned = steady_clock::now();
      aborter.join();
      best = std::min(best, std::chrono::duration_cast<milliseconds>(returned - aborted));
    });
  }
  EXPECT_LT(best, milliseconds(50));
}

TEST_P(FailingCommunicatorTest, AbortsFromManyThreadsWhileCollectivesRun) {
  Run(kLong, [&](int r, Communicator& communicator) {
    std::vector<std::thread> aborters;
    for (int i = 0; i < 3 && r == 0; ++i) {
      aborters.emplace_back([&communicator, i] {
        std::this_thread::sleep_for(milliseconds(5 + i));
        communicator.Abort("aborter " + std::to_string(i));
      });
    }
    absl::Status status;
    std::vector<float> data(10000, 0.0f);
    while (status.ok()) status = communicator.AllReduceSum(data);
    EXPECT_THAT(Message(status), HasSubstr("aborter"));
    for (std::thread& thread : aborters) thread.join();
  });
}

TEST_P(FailingCommunicatorTest, AnotherCollectiveIsToldApart) {
  Run(kLong, [&](int r, Communicator& communicator) {
    std::vector<float> data(100);
    const absl::Status status = r == 0 ? communicator.Barrier() : communicator.AllReduceSum(data);
    EXPECT_TRUE(absl::IsInternal(status)) << status;
    EXPECT_THAT(Message(status), AllOf(HasSubstr("diverged"), HasSubstr("barrier"), HasSubstr("all-reduce")));
  });
}

TEST_P(FailingCommunicatorTest, AnotherSizeIsToldApart) {
  Run(kLong, [&](int r, Communicator& communicator) {
    std::vector<float> data(r == 0 ? 100 : 1 << 20);  // other algorithms, too
    const absl::Status status = communicator.AllReduceSum(data);
    EXPECT_TRUE(absl::IsInternal(status)) << status;
    EXPECT_THAT(Message(status), AllOf(HasSubstr("diverged"), HasSubstr(" 400 bytes"), HasSubstr(" 4194304 bytes")));
  });
}

TEST_P(FailingCommunicatorTest, AnotherRootIsToldApart) {
  Run(kLong, [&](int r, Communicator& communicator) {
    std::vector<std::byte> data(10);
    absl::Status status = communicator.Broadcast(data, r == 0 ? 0 : 1);
    // The ranks that agree with their root may be through before it learns of the one that does not.
    if (r > 1 && status.ok()) status = communicator.Barrier();
    EXPECT_TRUE(absl::IsInternal(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr("diverged"));
  });
}

TEST_P(FailingCommunicatorTest, BuffersThatDoNotFitAreRefusedAndEndTheGroup) {
  Run(kLong, [&](int r, Communicator& communicator) {
    std::vector<std::byte> mine(10);
    std::vector<std::byte> all(10 * world_size() + (r == 0 ? 1 : 0));
    const absl::Status status = communicator.AllGather(mine, all);
    EXPECT_EQ(status.code(), r == 0 ? absl::StatusCode::kInvalidArgument : absl::StatusCode::kUnavailable) << status;
    EXPECT_FALSE(communicator.Barrier().ok());
  });
}

TEST_P(FailingCommunicatorTest, RankThatLeftIsNamedWhenItIsNeeded) {
  std::barrier<> all_through(world_size());
  RunRanks(kind(), world_size(), kLong, [&](int r, std::unique_ptr<Communicator> communicator) {
    EXPECT_TRUE(communicator->Barrier().ok());
    all_through.arrive_and_wait();
    if (r == 1) return communicator.reset();
    const absl::Status status = communicator->Barrier();
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr("rank 1 has left"));
  });
}

TEST_P(FailingCommunicatorTest, LeavingAfterTheLastCollectiveHarmsNobody) {
  for (int attempt = 0; attempt < 20; ++attempt) {
    RunRanks(kind(), world_size(), kLong, [&](int r, std::unique_ptr<Communicator> communicator) {
      std::vector<float> data(attempt % 2 == 0 ? 100 : 300000);
      std::vector<std::byte> bytes(100);
      EXPECT_TRUE(communicator->AllReduceSum(data).ok());
      for (int root = 0; root < world_size(); ++root) EXPECT_TRUE(communicator->Broadcast(bytes, root).ok());
      if (r == attempt % world_size()) std::this_thread::sleep_for(milliseconds(2));
      const absl::Status status = communicator->AllReduceSum(data);
      EXPECT_TRUE(status.ok()) << status;
    });
  }
}

TEST_P(FailingCommunicatorTest, FailureInASubgroupEndsTheWholeGroup) {
  std::barrier<> pair_is_through(2);
  Run(milliseconds(2000), [&](int r, Communicator& communicator) {
    if (r > 1) {
      EXPECT_FALSE(communicator.Barrier().ok());
      return;
    }
    auto pair = communicator.Subgroup(std::vector<int>{0, 1});
    ASSERT_TRUE(pair.ok());
    EXPECT_TRUE((*pair)->Barrier().ok());
    pair_is_through.arrive_and_wait();
    if (r == 1) (*pair)->Abort("enough");
    EXPECT_FALSE((*pair)->Barrier().ok());
    EXPECT_FALSE(communicator.Barrier().ok());
  });
}

}  // namespace
}  // namespace weir::worker
