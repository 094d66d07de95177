// What is the CPU backend's own: its thread pool, the choice of an instruction set, attention over rows that are not
// finite.  Its arithmetic is in the parity table.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/prefault.h"
#include "kernels/cpu/thread_pool.h"
#include "tests/kernels/attention_steps.h"
#include "tests/kernels/rig.h"

namespace weir::kernels::cpu {
namespace {

using testing::HasSubstr;

TEST(ThreadPoolTest, RunsEveryTaskOnceInLoopsThatFollowEachOther) {
  for (const int32_t num_threads : {1, 2, 5}) {
    ThreadPool pool({num_threads});
    int64_t expected = 0;
    std::atomic<int64_t> sum{0};
    for (int64_t loop = 0; loop < 3000; ++loop) {
      const int64_t num_tasks = loop % 7;
      std::vector<std::atomic<int32_t>> runs(7);
      pool.Run(num_tasks, [&](int64_t task, int32_t thread) {
        ASSERT_LT(thread, num_threads);
        runs[task].fetch_add(1, std::memory_order_relaxed);
        sum.fetch_add(loop + task, std::memory_order_relaxed);
      });
      for (int64_t task = 0; task < 7; ++task) ASSERT_EQ(runs[task].load(), task < num_tasks ? 1 : 0);
      expected += num_tasks * loop + num_tasks * (num_tasks - 1) / 2;
    }
    EXPECT_EQ(sum.load(), expected);
  }
}

TEST(ThreadPoolTest, WakesThreadsThatWentToSleep) {
  ThreadPool pool({3});
  for (int loop = 0; loop < 5; ++loop) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    std::atomic<int32_t> num_waiting{0};
    // Each task waits for the others, so the loop ends only if three threads take part.
    pool.Run(3, [&](int64_t, int32_t) {
      num_waiting.fetch_add(1);
      while (num_waiting.load() < 3) std::this_thread::yield();
    });
    EXPECT_EQ(num_waiting.load(), 3);
  }
}

TEST(ThreadPoolTest, ALoopDoesNotWaitForAThreadThatHasNoTask) {
  ThreadPool pool({2});
  const auto caller = std::this_thread::get_id();
  std::atomic<bool> is_held{false}, may_go{false};
  std::thread releaser([&] {
    while (!is_held.load()) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    may_go.store(true);
  });
  std::atomic<int32_t> num_by_caller{0};
  pool.Run(100, [&](int64_t, int32_t) {
    if (std::this_thread::get_id() == caller) {
      num_by_caller.fetch_add(1);
    } else if (!is_held.exchange(true)) {  // the other thread is stuck in one task
      while (!may_go.load()) std::this_thread::yield();
    }
    is_held.store(true);
  });
  releaser.join();
  EXPECT_GT(num_by_caller.load(), 0);
}

TEST(CpuBackendTest, NamesWhatThisProcessorHasWhenAskedForMore) {
  CpuOptions options;
  options.isa = "avx9000";
  const absl::StatusOr<std::unique_ptr<Backend>> backend = NewCpuBackend(options);
  ASSERT_FALSE(backend.ok());
  EXPECT_EQ(backend.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(backend.status().message()), HasSubstr("avx9000"));
  EXPECT_THAT(std::string(backend.status().message()), HasSubstr("portable"));
  options.isa = "";
  options.num_threads = -1;
  EXPECT_EQ(NewCpuBackend(options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(CpuBackendTest, SaysWhatItRunsOn) {
  CpuOptions options;
  options.num_threads = 3;
  options.isa = "portable";
  options.pins_threads = true;
  // Pinning is the caller's too: in a thread of its own it does not stay with the tests after this one.
  std::thread([&] {
    const auto backend = NewCpuBackend(options);
    ASSERT_TRUE(backend.ok());
    EXPECT_EQ((*backend)->detail(), "portable, 3 threads");
  }).join();
}

TEST(MemoryTest, IsAlignedAndSaysWhatThereIs) {
  for (const int64_t num_bytes : {0, 1, 63, 65, 3 << 20}) {
    const absl::StatusOr<Memory> memory = Memory::Allocate(num_bytes);
    ASSERT_TRUE(memory.ok());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory->data()) % 64, 0u);
  }
  EXPECT_GT(AvailableBytes(), 0);
  const absl::Status status = Memory::Allocate(int64_t{1} << 50).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string(int64_t{1} << 50)));
}

bool IsResident(const Memory& memory) {
  const auto page_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> pages((static_cast<size_t>(memory.num_bytes()) + page_bytes - 1) / page_bytes);
  EXPECT_EQ(mincore(memory.data(), static_cast<size_t>(memory.num_bytes()), pages.data()), 0);
  return std::all_of(pages.begin(), pages.end(), [](unsigned char page) { return (page & 1) != 0; });
}

TEST(PrefaultTest, TakesPagesAndLeavesWhatIsWrittenMeanwhile) {
  Memory memory = *Memory::Allocate(int64_t{64} << 20);
  if (IsResident(memory)) GTEST_SKIP() << "the memory was in use before";
  if (madvise(memory.data(), 1, 23 /* MADV_POPULATE_WRITE */) != 0) GTEST_SKIP() << "an older kernel";
  Prefault prefault;
  prefault.Add(memory.data(), memory.num_bytes());
  for (int64_t i = 0; i < memory.num_bytes(); i += 4096) memory.data()[memory.num_bytes() - 1 - i] = 7;
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!IsResident(memory) && std::chrono::steady_clock::now() < until) std::this_thread::yield();
  EXPECT_TRUE(IsResident(memory));
  for (int64_t i = 0; i < memory.num_bytes(); i += 4096) ASSERT_EQ(memory.data()[memory.num_bytes() - 1 - i], 7);
}

TEST(PrefaultTest, MemoryIsFreedAndTheBackendDestroyedWhilePagesAreTaken) {
  const auto backend = *NewCpuBackend({.num_threads = 1});
  for (int i = 0; i < 20; ++i) {
    const DeviceBuffer one = *backend->Allocate(int64_t{16} << 20), other = *backend->Allocate(1000);
    backend->Prefault(one.View(DType::kBF16, 1 << 10, 1 << 13));
    backend->Prefault(other.View(DType::kF32, 1, 250));
  }
}

TEST(WorkspaceTest, KeepsTheFirstErrorAndWorksAgainAfterIt) {
  Workspace workspace;
  absl::Status status;
  EXPECT_NE(workspace.Get<float>(0, status), nullptr);
  EXPECT_EQ(workspace.Get<float>(int64_t{1} << 50, status), nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(workspace.Get<float>(100, status), nullptr);
}

class EveryIsa : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    CpuOptions options;
    options.isa = GetParam();
    options.num_threads = 2;
    absl::StatusOr<std::unique_ptr<Backend>> backend = NewCpuBackend(options);
    if (!backend.ok()) GTEST_SKIP() << GetParam() << " does not run on this machine";
    backend_ = *std::move(backend);
  }
  std::unique_ptr<Backend> backend_;
};

std::vector<std::string> IsaNames() {
  std::vector<std::string> names;
  for (const Isa& isa : KnownIsas()) names.emplace_back(isa.name);
  return names;
}

INSTANTIATE_TEST_SUITE_P(All, EveryIsa, testing::ValuesIn(IsaNames()), [](const auto& param) {
  std::string name = param.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

// Positions that only later rows see hold NaN and infinity: the rows before them have the bits they have without.
TEST_P(EveryIsa, PromptRowsDoNotMeetLaterRowsThatAreNotFinite) {
  for (const DType cache : {DType::kBF16, DType::kF32}) {
    MlaShape shape{3, 40, 12, 8, 20};
    shape.softmax_scale = 0.2f;
    Random random("not finite");
    AttentionSequences sequences(random, shape, kBF16Weights, cache, {150});
    Rig rig(*backend_);
    const std::vector<SequencePart> whole = {{0, 0, 150, 0}};
    const Values good = Attend(rig, sequences, whole, "blocks");
    sequences.latents[0].at(37, 5) = std::numeric_limits<float>::quiet_NaN();
    sequences.latents[0].at(131, 0) = std::numeric_limits<float>::infinity();
    const Values bad = Attend(rig, sequences, whole, "blocks");
    for (int64_t r = 0; r < 150; ++r) {
      if (r < 37) {
        EXPECT_THAT(std::vector<float>(bad.row(r).begin(), bad.row(r).end()), testing::ElementsAreArray(good.row(r)))
            << "row " << r;
      } else {
        EXPECT_FALSE(std::isfinite(bad.at(r, 0))) << "row " << r;
      }
    }
  }
}

}  // namespace
}  // namespace weir::kernels::cpu
