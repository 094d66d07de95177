#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tests/scheduler/service/test_cluster.h"

// What can go wrong with a rank while sequences run.

namespace weir::scheduler {

struct Fault {
  std::string name;
  std::function<void(TestCluster&)> strike;  // of a cluster of four ranks
  bool is_slow = false;                      // found by a deadline
};

std::vector<Fault> Faults();

// A result of step 1 of this epoch, with nothing in it.
void SayOldResult(FakeRank& rank, uint64_t epoch);
// From now on every sequence but the first of each step has an error instead of a token.
void FailTheSecondSequence(FakeRank& rank);

}  // namespace weir::scheduler
