#include "tests/sim/workers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

// The workers must notice every plan that no scheduler may make.  Plans are made by hand here: one that is right, and
// variations of it that are not.

namespace weir::sim {
namespace {

using scheduler::PlannedWork;
using scheduler::StepPlan;
using ::testing::HasSubstr;

constexpr int32_t kBlockSize = 4;
constexpr int32_t kVocabulary = 50;

class WorkersTest : public ::testing::Test {
 protected:
  WorkersTest() : workers_(MakeLimits(), kVocabulary, [this](auto id) { return Find(id); }, report_) {
    workers_.Form(1, 1, 8);
  }

  static scheduler::Limits MakeLimits() {
    scheduler::Limits limits;
    limits.block_size = kBlockSize;
    limits.max_num_seqs = 4;
    limits.max_num_batched_tokens = 64;
    return limits;
  }

  Request* Find(scheduler::RequestId id) {
    return id >= 1 && id <= requests_.size() ? requests_[id - 1].get() : nullptr;
  }

  // A live request of tenant 0 whose prompt is `first_token`, 1, 2, ... and may be cached.
  Request& Add(int32_t num_prompt, scheduler::TokenId first_token = 0, scheduler::TenantId tenant = 0) {
    auto request = std::make_unique<Request>();
    request->arrival.id = requests_.size() + 1;
    request->arrival.tenant = tenant;
    request->arrival.max_tokens = 8;
    for (int32_t i = 0; i < num_prompt; ++i) {
      request->arrival.prompt.push_back(i == 0 ? first_token : i);
      request->Append(request->arrival.prompt.back());
    }
    request->arrival.block_keys.resize(static_cast<size_t>(num_prompt / kBlockSize));
    request->num_known = num_prompt;
    request->is_live = true;
    requests_.push_back(std::move(request));
    return *requests_.back();
  }

  // A plan with one work; more are added with AddWork.
  StepPlan Plan() {
    StepPlan plan;
    plan.epoch = 1;
    plan.step = workers_.last_planned() + 1;
    return plan;
  }
  static PlannedWork& AddWork(StepPlan& plan, const Request& request, int32_t first, int32_t num_tokens,
                              std::vector<scheduler::BlockId> blocks = {}, bool is_new = false) {
    PlannedWork work;
    work.id = request.id();
    work.slot = static_cast<scheduler::SlotId>(request.id() - 1);
    work.is_new = is_new;
    work.first_position = first;
    work.num_tokens = num_tokens;
    work.samples = first + num_tokens >= request.num_known;
    work.first_new_block = is_new ? 0 : static_cast<int32_t>(request.table.size());
    work.blocks_begin = static_cast<int32_t>(plan.blocks.size());
    plan.blocks.insert(plan.blocks.end(), blocks.begin(), blocks.end());
    work.blocks_end = static_cast<int32_t>(plan.blocks.size());
    plan.work.push_back(work);
    return plan.work.back();
  }
  void Execute(const StepPlan& plan) {
    workers_.Execute(plan, [this](auto id) {
      const Request& request = *Find(id);
      return std::span<const scheduler::TokenId>(request.tokens).first(static_cast<size_t>(request.num_known));
    });
  }
  // Prefills a prompt in one step, which completes.
  Request& Prefill(int32_t num_prompt, std::vector<scheduler::BlockId> blocks, scheduler::TokenId first_token = 0,
                   scheduler::TenantId tenant = 0) {
    Request& request = Add(num_prompt, first_token, tenant);
    StepPlan plan = Plan();
    AddWork(plan, request, 0, num_prompt, std::move(blocks), true);
    Execute(plan);
    workers_.Complete();
    return request;
  }
  void ExpectBroken(const char* checker) {
    EXPECT_EQ(report_.violation().checker, checker) << report_.violation().text;
  }

  Report report_;
  std::vector<std::unique_ptr<Request>> requests_;
  Workers workers_;
};

TEST_F(WorkersTest, AChunkedPromptThenDecodingAheadIsRight) {
  Request& request = Add(6);
  StepPlan first = Plan();
  AddWork(first, request, 0, 3, {5}, true);
  Execute(first);
  StepPlan second = Plan();
  AddWork(second, request, 3, 3, {2});
  Execute(second);
  StepPlan third = Plan();
  AddWork(third, request, 6, 1).takes_sampled_token = true;
  Execute(third);
  EXPECT_TRUE(report_.ok()) << report_.violation().text;
  EXPECT_TRUE(workers_.Complete().sampled.empty());
  const FlyingStep sampled = workers_.Complete();
  ASSERT_EQ(sampled.sampled.size(), 1U);
  EXPECT_EQ(sampled.sampled[0].token, NextToken(request.chain[5], kVocabulary));
  EXPECT_EQ(workers_.num_owned(), 2);
}

TEST_F(WorkersTest, ABlockInTwoHandsIsNoticed) {
  Prefill(4, {3});
  StepPlan plan = Plan();
  AddWork(plan, Add(4, 7), 0, 4, {3}, true);
  Execute(plan);
  ExpectBroken("blocks");
}

TEST_F(WorkersTest, ARowBeyondTheLastBlockIsNoticed) {
  StepPlan plan = Plan();
  AddWork(plan, Add(5), 0, 5, {0}, true);
  Execute(plan);
  ExpectBroken("blocks");
}

TEST_F(WorkersTest, APositionLeftOutOrComputedTwiceIsNoticed) {
  for (const int32_t next : {2, 4}) {
    requests_.clear();
    report_ = Report();
    workers_.Form(1, 1, 8);
    Request& request = Add(8);
    StepPlan first = Plan();
    AddWork(first, request, 0, 3, {0, 1}, true);
    Execute(first);
    StepPlan second = Plan();
    AddWork(second, request, next, 2);
    Execute(second);
    ExpectBroken("positions");
  }
}

TEST_F(WorkersTest, ASharedPrefixIsReadOnceItsStepHasCompleted) {
  Request& first = Prefill(6, {0, 1});
  StepPlan plan = Plan();
  AddWork(plan, Add(6), 4, 2, {0, 2}, true);
  Execute(plan);
  EXPECT_TRUE(report_.ok()) << report_.violation().text;
  EXPECT_EQ(workers_.num_owned(), 3);  // block 0 counts once
  first.is_live = false;
  workers_.Forget(first);
  EXPECT_EQ(workers_.num_owned(), 2);
}

TEST_F(WorkersTest, APrefixStillBeingWrittenIsNoticed) {
  StepPlan first = Plan();
  AddWork(first, Add(6), 0, 6, {0, 1}, true);
  Execute(first);
  StepPlan second = Plan();
  AddWork(second, Add(6), 4, 2, {0, 2}, true);
  Execute(second);
  ExpectBroken("kv_content");
  EXPECT_THAT(report_.violation().text, HasSubstr("still being written"));
}

TEST_F(WorkersTest, APrefixOfOtherTokensIsNoticed) {
  Prefill(6, {0, 1}, 9);
  StepPlan plan = Plan();
  AddWork(plan, Add(6), 4, 2, {0, 2}, true);
  Execute(plan);
  ExpectBroken("kv_content");
}

TEST_F(WorkersTest, APrefixOfAnotherTenantIsNoticed) {
  Prefill(6, {0, 1}, 0, 1);
  StepPlan plan = Plan();
  AddWork(plan, Add(6), 4, 2, {0, 2}, true);
  Execute(plan);
  ExpectBroken("kv_content");
  EXPECT_THAT(report_.violation().text, HasSubstr("belongs to others"));
}

TEST_F(WorkersTest, ABrokenRowsBlockIsNoticedWhenShared) {
  StepPlan first = Plan();
  AddWork(first, Add(6), 0, 6, {0, 1}, true);
  Execute(first);
  ASSERT_TRUE(workers_.BreakRow(Workers::Breakage::kNotFinite, 0));
  EXPECT_FALSE(workers_.Complete().sampled[0].is_finite);
  StepPlan second = Plan();
  AddWork(second, Add(6), 4, 2, {0, 2}, true);
  Execute(second);
  ExpectBroken("kv_content");
}

TEST_F(WorkersTest, ATakenSlotIsNotGivenAgainBeforeItsRelease) {
  Request& gone = Prefill(4, {0});
  gone.is_live = false;
  workers_.Forget(gone);
  StepPlan plan = Plan();
  AddWork(plan, Add(4), 0, 4, {1}, true).slot = 0;
  Execute(plan);
  ExpectBroken("slots");
}

TEST_F(WorkersTest, AReleasedSlotIsReusableInTheSamePlan) {
  Request& gone = Prefill(4, {0});
  gone.is_live = false;
  workers_.Forget(gone);
  StepPlan plan = Plan();
  plan.released.push_back({0, 0});
  AddWork(plan, Add(4, 3), 0, 4, {0}, true).slot = 0;
  Execute(plan);
  EXPECT_TRUE(report_.ok()) << report_.violation().text;
}

TEST_F(WorkersTest, ASlotThatIsInUseIsNotReleased) {
  Prefill(4, {0});
  StepPlan plan = Plan();
  plan.released.push_back({0, 0});
  AddWork(plan, Add(4, 3), 0, 4, {1}, true);
  Execute(plan);
  ExpectBroken("slots");
}

TEST_F(WorkersTest, BlocksOfARowInFlightMayBeKeptBackUntilItCompletes) {
  Request& request = Add(4);
  StepPlan plan = Plan();
  AddWork(plan, request, 0, 4, {0}, true);
  Execute(plan);
  request.is_live = false;
  workers_.Forget(request);
  EXPECT_EQ(workers_.num_owned(), 0);
  EXPECT_GT(workers_.num_lingering(), 0);
  workers_.Complete();
  EXPECT_EQ(workers_.num_lingering(), 0);
}

TEST_F(WorkersTest, WorkForARequestThatEndedIsNoticed) {
  Request& gone = Prefill(4, {0});
  gone.is_live = false;
  StepPlan plan = Plan();
  AddWork(plan, gone, 4, 1, {1});
  Execute(plan);
  ExpectBroken("work_after_end");
}

TEST_F(WorkersTest, TakingATokenThatWasNotSampledJustBeforeIsNoticed) {
  Request& request = Prefill(4, {0});
  StepPlan plan = Plan();
  AddWork(plan, request, 4, 1, {1}).takes_sampled_token = true;  // that step has completed: its token is known
  Execute(plan);
  ExpectBroken("sampled_token");
}

TEST_F(WorkersTest, SamplingInTheMiddleOfAPromptIsNoticed) {
  StepPlan plan = Plan();
  AddWork(plan, Add(8), 0, 4, {0}, true).samples = true;
  Execute(plan);
  ExpectBroken("sampled_token");
}

TEST_F(WorkersTest, APlanOfAnotherEpochOrOutOfTurnIsNoticed) {
  StepPlan plan = Plan();
  plan.epoch = 2;
  Execute(plan);
  ExpectBroken("plan_shape");
  report_ = Report();
  plan.epoch = 1;
  plan.step = 2;
  Execute(plan);
  ExpectBroken("plan_shape");
}

}  // namespace
}  // namespace weir::sim
