#include "tests/sim/search.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

// The runs themselves: they repeat, they differ, they obey their options, and a world draws what it says.

namespace weir::sim {
namespace {

RunOptions Options(uint64_t seed, int64_t num_events = 600) {
  RunOptions options;
  options.seed = seed;
  options.num_events = num_events;
  return options;
}

TEST(SimulationTest, TheSameSeedGivesTheSameTrace) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const RunResult once = Simulate(Options(seed));
    const RunResult again = Simulate(Options(seed));
    EXPECT_EQ(once.violation.text, "") << "seed " << seed;
    EXPECT_EQ(once.trace_hash, again.trace_hash) << "seed " << seed;
    EXPECT_EQ(once.num_events, again.num_events);
  }
}

TEST(SimulationTest, OtherSeedsGiveOtherTraces) {
  std::set<uint64_t> hashes;
  for (uint64_t seed = 1; seed <= 50; ++seed) hashes.insert(Simulate(Options(seed, 200)).trace_hash);
  EXPECT_EQ(hashes.size(), 50U);
}

TEST(SimulationTest, LoggingAndFullChecksChangeNothing) {
  RunOptions logged = Options(3);
  std::vector<std::string> lines;
  logged.log = [&](const std::string& line) { lines.push_back(line); };
  logged.full_check_every = 1;
  EXPECT_EQ(Simulate(logged).trace_hash, Simulate(Options(3)).trace_hash);
  EXPECT_GT(lines.size(), 600U);
}

TEST(SimulationTest, SeedsTogetherMeetEveryKindOfTrouble) {
  int64_t num_preemptions = 0;
  int64_t num_cached_tokens = 0;
  FaultSet seen;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    const RunResult result = Simulate(Options(seed));
    num_preemptions += result.num_preemptions;
    num_cached_tokens += result.num_cached_tokens;
    const World world = DrawWorld(seed, {});
    for (int i = 0; i < kNumFaults; ++i) {
      if (world.faults.contains(static_cast<Fault>(i))) seen.insert(static_cast<Fault>(i));
    }
  }
  EXPECT_GT(num_preemptions, 20);
  EXPECT_GT(num_cached_tokens, 1000);
  for (int i = 0; i < kNumFaults; ++i) {
    EXPECT_TRUE(seen.contains(static_cast<Fault>(i))) << Name(static_cast<Fault>(i));
  }
}

TEST(WorldTest, AFaultThatIsSwitchedOffLeavesTheRestAsItWas) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    FaultSet without;
    without.insert(Fault::kCancel);
    const World with_cancels = DrawWorld(seed, {});
    const World without_cancels = DrawWorld(seed, without);
    EXPECT_FALSE(without_cancels.faults.contains(Fault::kCancel));
    EXPECT_EQ(with_cancels.limits.max_num_seqs, without_cancels.limits.max_num_seqs);
    EXPECT_EQ(with_cancels.arrival_interval_us, without_cancels.arrival_interval_us);
  }
}

TEST(SearchTest, RunsTheSeedsItIsTold) {
  SearchOptions options;
  options.first_seed = 7;
  options.num_seeds = 3;
  options.num_events = 100;
  const SearchResult result = Search(options);
  EXPECT_FALSE(result.has_failed) << result.violation.text;
  EXPECT_EQ(result.num_seeds, 3);
  EXPECT_GE(result.num_events, 300);
  EXPECT_EQ(result.seed, 9U);
}

}  // namespace
}  // namespace weir::sim
