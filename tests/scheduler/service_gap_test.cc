#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <random>

#include "scheduler/core/scheduler.h"

// Fair share among tenants that always want more than they get: the service of any two of them, over any interval,
// differs by at most 2U, where U is the larger of the longest prompt's cost and the cost of as many generated tokens as
// the cache holds (Sheng et al., OSDI 2024, theorem 4.4).  About 5 s.

namespace weir::scheduler {
namespace {

struct Shape {
  int min_prompt = 1, max_prompt = 1, min_output = 1, max_output = 1;
};

struct Setting {
  Limits limits;
  Policy policy;
  int32_t num_dp_groups = 1;
  int32_t num_blocks = 0;
  std::vector<Shape> shapes;  // by tenant
};

Setting Draw(uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto draw = [&random](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  Setting setting;
  setting.limits.block_size = draw(1, 16);
  setting.limits.max_num_seqs = draw(1, 24);
  setting.limits.max_num_batched_tokens = setting.limits.max_num_seqs + draw(0, 200);
  setting.limits.max_steps_in_flight = draw(1, 2);
  setting.policy.max_prompt_tokens_while_decoding = draw(1, 100);
  setting.num_dp_groups = draw(1, 3) == 1 ? 2 : 1;
  setting.num_blocks = draw(20, 150);
  const int num_tokens = setting.num_blocks * setting.limits.block_size;
  const int num_tenants = draw(2, 4);
  for (int i = 0; i < num_tenants; ++i) {
    setting.policy.tenants.push_back({});
    Shape shape;
    shape.max_prompt = draw(1, 4) == 1 ? std::max(1, num_tokens * 6 / 10) : draw(1, std::max(1, num_tokens / 10));
    shape.min_prompt = draw(1, shape.max_prompt);
    shape.max_output = draw(1, 3) == 1 ? std::max(1, num_tokens * 4 / 10 - 1) : draw(1, std::max(1, num_tokens / 10));
    shape.min_output = draw(1, shape.max_output);
    setting.shapes.push_back(shape);
  }
  return setting;
}

// Tenants that always want more, and workers that answer at once.
class Race {
 public:
  explicit Race(uint64_t seed)
      : setting_(Draw(seed)),
        random_(seed + 1),
        core_(setting_.limits, setting_.policy),
        num_tenants_(static_cast<TenantId>(setting_.shapes.size())),
        lowest_(num_tenants_ * num_tenants_, 0),
        highest_(num_tenants_ * num_tenants_, 0) {
    core_.Apply(
        now_,
        GroupFormed{.epoch = 1, .num_dp_groups = setting_.num_dp_groups, .blocks_per_dp_group = setting_.num_blocks},
        outputs_);
  }

  // Runs until every tenant had much service; returns the largest gap of two over any interval, in units of U.
  double LargestGap() {
    for (int step = 0; step < 3000; ++step, ++now_) {
      if (step % 8 == 0) Refill();
      if (!RunStep()) return 1e9;  // stands still
      Measure();
    }
    double gap = 0;
    for (size_t i = 0; i < lowest_.size(); ++i) gap = std::max(gap, highest_[i] - lowest_[i]);
    return gap / Unit();
  }

 private:
  int DrawFrom(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

  void Refill() {
    std::vector<int> num_waiting(num_tenants_, 0);
    for (const Scheduler::SequenceView& view : core_.Sequences()) num_waiting[view.tenant] += view.dp_group < 0 ? 1 : 0;
    for (TenantId tenant = 0; tenant < num_tenants_; ++tenant) {
      const Shape& shape = setting_.shapes[tenant];
      for (; num_waiting[tenant] < 250; ++num_waiting[tenant]) {
        Arrival arrival{.id = next_id_++, .tenant = tenant};
        arrival.prompt.resize(DrawFrom(shape.min_prompt, shape.max_prompt), 1);
        arrival.max_tokens = DrawFrom(shape.min_output, shape.max_output);
        longest_prompt_ = std::max(longest_prompt_, static_cast<int>(arrival.prompt.size()));
        core_.Apply(now_, arrival, outputs_);
      }
    }
  }

  // As many steps are planned as may be; the oldest completes.  False if there is none.
  bool RunStep() {
    while (core_.Plan(now_, plan_, outputs_)) in_flight_.push_back(plan_);
    if (in_flight_.empty()) return false;
    StepCompleted completed{.epoch = 1, .step = in_flight_.front().step};
    for (const PlannedWork& work : in_flight_.front().work) {
      if (work.samples) completed.sampled.push_back({.dp_group = work.dp_group, .slot = work.slot, .token = 1});
    }
    in_flight_.pop_front();
    core_.Apply(now_, completed, outputs_);
    outputs_.clear();
    return true;
  }

  void Measure() {
    for (TenantId a = 0; a < num_tenants_; ++a) {
      for (TenantId b = 0; b < num_tenants_; ++b) {
        const double difference = core_.service(a) - core_.service(b);
        double &lowest = lowest_[a * num_tenants_ + b], &highest = highest_[a * num_tenants_ + b];
        lowest = std::min(lowest, difference);
        highest = std::max(highest, difference);
      }
    }
  }

  double Unit() const {
    const double cache = static_cast<double>(setting_.num_dp_groups) * setting_.num_blocks * setting_.limits.block_size;
    return std::max(setting_.policy.cost_per_prompt_token * longest_prompt_,
                    setting_.policy.cost_per_generated_token * cache);
  }

  const Setting setting_;
  std::mt19937_64 random_;
  Scheduler core_;
  const TenantId num_tenants_;
  std::vector<Output> outputs_;
  std::deque<StepPlan> in_flight_;
  StepPlan plan_;
  TimeUs now_ = 0;
  RequestId next_id_ = 1;
  int longest_prompt_ = 1;
  std::vector<double> lowest_, highest_;  // difference of two tenants' service, by pair
};

TEST(ServiceGap, StaysWithinTwoU) {
  const char* count = std::getenv("WEIR_SEEDS");
  const uint64_t num_seeds = count != nullptr ? std::strtoull(count, nullptr, 10) : 150;
  std::vector<std::pair<double, uint64_t>> gaps;
  for (uint64_t seed = 1; seed <= num_seeds; ++seed) {
    gaps.emplace_back(Race(seed).LargestGap(), seed);
    EXPECT_LE(gaps.back().first, 2.0) << "seed " << seed;
  }
  std::sort(gaps.rbegin(), gaps.rend());
  std::printf("largest gap %.3f U (seed %lu), median %.3f U\n", gaps.front().first, gaps.front().second,
              gaps[gaps.size() / 2].first);
}

}  // namespace
}  // namespace weir::scheduler
