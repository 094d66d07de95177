#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "scheduler/core/policy.h"

// Everything that one seed decides before the first event: sizes, policy, load and which faults may happen.

namespace weir::sim {

// What may go wrong.  Each seed draws a subset: a bug that needs many cancels and no deadlines is found sooner when
// some seeds have exactly that (swarm testing).
enum class Fault : uint8_t {
  kCancel,          // a client leaves
  kCancelStorm,     // many leave in one instant
  kDeadline,        // requests carry deadlines, some impossible, some past
  kWorkerDeath,     // at any instant, with steps in flight
  kWorkerHang,      // steps never complete; found out later
  kStaleResult,     // results and losses of an epoch that has ended
  kRepeatedResult,  // a step's result comes again, or for a step never planned
  kSlowRank,        // steps take many times what they should
  kSmallPool,       // a handful of blocks
  kPolicyChange,    // weights, shares, limits, new tenants
  kClockJump,       // time leaps forward
  kNotFinite,       // rows that are NaN
  kFailedSequence,  // a rank could not run a sequence
  kUnknownId,       // cancels of requests that never were or have ended
  kInvalidArrival,  // arrivals that no shell should send
  kResize,          // the group comes back with other sizes
  kDrain,           // admission ends before the run does
};
inline constexpr int kNumFaults = 17;
std::string_view Name(Fault fault);

class FaultSet {
 public:
  bool contains(Fault fault) const { return (bits_ >> static_cast<int>(fault) & 1) != 0; }
  void insert(Fault fault) { bits_ |= 1U << static_cast<int>(fault); }
  void erase(Fault fault) { bits_ &= ~(1U << static_cast<int>(fault)); }
  void remove(FaultSet others) { bits_ &= ~others.bits_; }
  bool empty() const { return bits_ == 0; }
  std::string ToString() const;  // "cancel,worker_death", or "none"

 private:
  uint32_t bits_ = 0;
};

// How one tenant behaves.
struct TenantLoad {
  bool floods = false;  // keeps requests waiting, in phases, so that shares can be measured
  int32_t depth = 2;    // of its flood: requests kept waiting
  int64_t phase_us = 100000;
  bool mixes_classes = false;
  scheduler::PriorityClass priority = scheduler::PriorityClass::kStandard;
};

struct World {
  uint64_t seed = 0;
  scheduler::Limits limits;
  scheduler::Policy policy;
  int32_t num_dp_groups = 1;
  int32_t blocks_per_dp_group = 64;
  FaultSet faults;

  std::vector<TenantLoad> loads;    // by TenantId; parents have none of their own
  std::vector<int32_t> leaves;      // tenants that send requests
  int64_t arrival_interval_us = 0;  // mean
  int32_t max_prompt = 1;
  int32_t max_output = 1;
  int32_t vocabulary = 64;
  int32_t num_stop_tokens = 0;
  double prefix_chance = 0;  // of a prompt that begins like an earlier one
  double shared_chance = 0;  // of a prompt that begins with what all tenants may share
  double resume_chance = 0;
  double uncached_chance = 0;     // of a request that asks not to be cached
  int64_t fault_interval_us = 0;  // mean time between two faults of a kind

  std::string Describe() const;
};

World DrawWorld(uint64_t seed, FaultSet without);

}  // namespace weir::sim
