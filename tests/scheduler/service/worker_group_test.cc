// The group's epochs and deadlines by a clock of the test's own.

#include "scheduler/service/worker_group.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace weir::scheduler {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class FakePort final : public RankPort {
 public:
  uint64_t Open(int32_t rank) override { return streams[rank] = ++num_opened; }
  void Close(int32_t rank) override { closed.push_back(rank); }
  void FormGroup(int32_t, const GroupForm& form) override { forms.push_back(form); }
  void Send(int32_t, std::shared_ptr<const worker::v1::RunRequest>) override { ++num_sent; }
  void Kill(uint64_t pid) override { killed.push_back(pid); }

  std::map<int32_t, uint64_t> streams;
  uint64_t num_opened = 0;
  std::vector<int32_t> closed;
  std::vector<GroupForm> forms;
  std::vector<uint64_t> killed;
  int num_sent = 0;
};

class WorkerGroupTest : public testing::Test {
 protected:
  static GroupOptions Options() {
    return {.addresses = {"unix:/run/rank0", "10.0.0.7:7000"}, .kills_hung_local_ranks = true};
  }

  void Say(int32_t rank, decltype(RankEvent::what) what) {
    group_.On(now_, {.rank = rank, .stream = port_.streams[rank], .what = std::move(what)}, news_);
  }
  void Hello(int32_t rank) {
    Say(rank, RankHello{.build = "b",
                        .rank = rank,
                        .tp = 2,
                        .num_blocks = 10 + rank,
                        .block_size = 4,
                        .max_num_seqs = 8,
                        .max_num_batched_tokens = 16,
                        .max_model_len = 100,
                        .vocab_size = 1000,
                        .communicator_address = "unix:/run/mesh" + std::to_string(rank),
                        .pid = 100u + static_cast<uint64_t>(rank)});
  }
  void Pass(TimeUs us) {
    now_ += us;
    group_.OnTime(now_, news_);
  }
  void Form() {
    Pass(0);
    Hello(0);
    Hello(1);
    Say(0, RankFormed{.epoch = group_.epoch()});
    Say(1, RankFormed{.epoch = group_.epoch()});
    ASSERT_TRUE(group_.stands());
  }
  void SendStep(StepId step) {
    StepPlan plan{.epoch = group_.epoch(), .step = step};
    plan.work.push_back({.id = 1, .slot = 0, .num_tokens = 1, .samples = true});
    plan.num_generated_rows = 1;
    group_.Send(now_, plan, nullptr);
  }
  template <typename T>
  int Count() const {
    int count = 0;
    for (const WorkerGroup::News& news : news_) count += std::holds_alternative<T>(news) ? 1 : 0;
    return count;
  }

  FakePort port_;
  TimeUs now_ = 1'000'000;
  WorkerGroup group_{Options(), &port_};
  std::vector<WorkerGroup::News> news_;
};

TEST_F(WorkerGroupTest, FormsWhenAllRanksHaveSaidHello) {
  Pass(0);
  Hello(1);
  EXPECT_TRUE(port_.forms.empty());
  EXPECT_THAT(group_.WhyApart(), HasSubstr("rank 0 at unix:/run/rank0"));
  Hello(0);
  ASSERT_EQ(port_.forms.size(), 2u);
  EXPECT_THAT(port_.forms[0].addresses, ElementsAre("unix:/run/mesh0", "unix:/run/mesh1"));
  EXPECT_EQ(port_.forms[0].token, port_.forms[1].token);
  EXPECT_EQ(port_.forms[0].token.size(), 32u);
  Say(0, RankFormed{.epoch = group_.epoch()});
  EXPECT_FALSE(group_.stands());
  Say(1, RankFormed{.epoch = group_.epoch()});
  ASSERT_TRUE(group_.stands());
  EXPECT_EQ(std::get<WorkerGroup::Formed>(news_.at(0)).shape.blocks_per_dp_group, 10);  // the least that any has
}

TEST_F(WorkerGroupTest, SilenceEndsTheEpochAndRanksThatLiveJoinTheNext) {
  Form();
  const Epoch epoch = group_.epoch();
  const std::string token = port_.forms[0].token;
  SendStep(1);
  EXPECT_EQ(port_.num_sent, 2);
  Say(0, RankResult{.epoch = epoch, .step = 1, .sequences = {{.slot = 0, .has_sampled = true, .token = 5}}});
  EXPECT_EQ(group_.wake_time(), now_ + Options().unknown_step_deadline_us);
  Pass(Options().unknown_step_deadline_us - 1);
  EXPECT_EQ(Count<WorkerGroup::Lost>(), 0);
  Pass(1);
  ASSERT_EQ(Count<WorkerGroup::Lost>(), 1);
  EXPECT_THAT(std::get<WorkerGroup::Lost>(news_.back()).reason, HasSubstr("step 1 from rank 1 within"));
  ASSERT_EQ(port_.forms.size(), 4u);
  EXPECT_GT(port_.forms[2].epoch, epoch);
  EXPECT_NE(port_.forms[2].token, token);
  Say(1, RankResult{.epoch = epoch, .step = 1});  // too late: changes nothing
  EXPECT_EQ(Count<CompletedStep>(), 0);
}

TEST_F(WorkerGroupTest, AHungRankIsKilledOnThisHostOnly) {
  Form();
  SendStep(1);
  Pass(Options().unknown_step_deadline_us);
  Pass(Options().connect_deadline_us + 500'000);  // neither answers
  EXPECT_THAT(port_.closed, ElementsAre(0, 1));
  EXPECT_THAT(port_.killed, ElementsAre(100));  // rank 1 is elsewhere
  const uint64_t opened = port_.num_opened;
  Pass(Options().min_retry_us);
  EXPECT_EQ(port_.num_opened, opened + 2);
}

TEST_F(WorkerGroupTest, ARankThatSaysWhyItCouldNotFormIsNotHung) {
  Pass(0);
  Hello(0);
  Hello(1);
  Say(0, RankFailed{.epoch = group_.epoch(), .reason = "rank 1 is missing"});
  Pass(Options().connect_deadline_us + 500'000);
  EXPECT_THAT(port_.closed, ElementsAre(1));
  EXPECT_TRUE(port_.killed.empty());
  Pass(Options().min_retry_us);
  Hello(1);
  EXPECT_EQ(port_.forms.size(), 4u);
}

TEST_F(WorkerGroupTest, ADeadRankIsSoughtWithGrowingPatience) {
  Pass(0);
  std::vector<TimeUs> waits;
  for (int i = 0; i < 6; ++i) {
    Say(0, RankGone{.reason = "refused"});
    waits.push_back(group_.wake_time() - now_);
    Pass(waits.back());
  }
  EXPECT_THAT(waits, ElementsAre(100'000, 200'000, 400'000, 800'000, 1'000'000, 1'000'000));
}

TEST_F(WorkerGroupTest, AStreamOnWhichNothingComesIsOpenedAnew) {
  Pass(0);
  Hello(0);
  Pass(Options().silence_deadline_us / 2);
  Say(1, RankLoading{.bytes_done = 1, .bytes_total = 2});
  EXPECT_EQ(group_.wake_time(), now_ + Options().silence_deadline_us);
  Pass(Options().silence_deadline_us - 1);
  EXPECT_TRUE(port_.closed.empty());
  Pass(1);
  EXPECT_THAT(port_.closed, ElementsAre(1));
  EXPECT_THAT(group_.WhyApart(), HasSubstr("neither hello"));
  EXPECT_TRUE(port_.killed.empty());
  Pass(group_.wake_time() - now_);
  EXPECT_EQ(port_.num_opened, 3u);
  Hello(1);
  EXPECT_EQ(port_.forms.size(), 2u);
  EXPECT_THAT(port_.closed, ElementsAre(1));  // rank 0 has said hello, and is silent until it is asked something
}

TEST_F(WorkerGroupTest, WhatAStreamSaysAfterItWasGivenUpIsNotHeard) {
  Form();
  const uint64_t old_stream = port_.streams[1];
  Say(1, RankGone{.reason = "died"});
  EXPECT_EQ(Count<WorkerGroup::Lost>(), 1);
  Pass(Options().min_retry_us);
  group_.On(now_, {.rank = 1, .stream = old_stream, .what = RankHello{.build = "b", .rank = 1}}, news_);
  EXPECT_FALSE(group_.is_up(1));
  Hello(1);
  EXPECT_TRUE(group_.is_up(1));
}

TEST_F(WorkerGroupTest, RanksOfOtherSizesThanRequestsWereAdmittedByAreRefused) {
  Form();
  group_.RequireShape(std::get<WorkerGroup::Formed>(news_.at(0)).shape);
  for (int32_t rank : {0, 1}) Say(rank, RankGone{.reason = "restarted"});
  Pass(Options().min_retry_us);
  for (int32_t rank : {0, 1}) {
    Say(rank, RankHello{.build = "b",
                        .rank = rank,
                        .tp = 2,
                        .num_blocks = 10,
                        .block_size = 4,
                        .max_num_seqs = 8,
                        .max_num_batched_tokens = 16,
                        .max_model_len = 50,
                        .vocab_size = 1000});
  }
  EXPECT_THAT(group_.WhyApart(), HasSubstr("max_model_len is 50 and not 100"));
  EXPECT_EQ(port_.forms.size(), 2u);
}

}  // namespace
}  // namespace weir::scheduler
