#include "worker/service/worker_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "tests/worker/communicator/group_of_threads.h"
#include "tests/worker/service/rank_client.h"
#include "tests/worker/service/served_rank.h"

namespace weir::worker {
namespace {

using std::chrono::milliseconds;
using testing::AllOf;
using testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

class WorkerServiceTest : public testing::Test {
 protected:
  std::unique_ptr<RankClient> Connect(const ServedRank& rank) {
    return std::make_unique<RankClient>(ClientOptions(rank), inbox_);
  }
  std::unique_ptr<RankClient> Connect(const RankClientOptions& options) {
    return std::make_unique<RankClient>(options, inbox_);
  }
  // Connected, greeted, and in a group of its own.
  std::unique_ptr<RankClient> ConnectAndForm(const ServedRank& rank, uint64_t epoch = 1) {
    auto client = Connect(rank);
    EXPECT_TRUE(events_.Next<RankHello>(client->stream()));
    EXPECT_TRUE(client->FormGroup(OrderOf(epoch, {&rank})));
    EXPECT_TRUE(events_.Next<RankGroupFormed>(client->stream()));
    return client;
  }
  absl::Status WhyLost(const RankClient& client) {
    const auto lost = events_.Next<RankLost>(client.stream());
    return lost ? lost->status : absl::UnknownError("not lost");
  }

  TemporaryFolder folder_;
  std::shared_ptr<RankInbox> inbox_ = std::make_shared<RankInbox>();
  EventReader events_{inbox_};
};

TEST_F(WorkerServiceTest, RankSaysWhatItIs) {
  ServedRank rank(folder_.path(), {});
  rank.FinishLoading();
  auto client = Connect(rank);
  const auto hello = events_.Next<RankHello>(client->stream());
  ASSERT_TRUE(hello);
  EXPECT_EQ(hello->build, "build-1");
  EXPECT_EQ(hello->manifest_hash, 0x1234);
  EXPECT_EQ(hello->num_blocks, 100);
  EXPECT_EQ(hello->max_model_len, 1000);
  EXPECT_EQ(hello->eos_token_ids, (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(hello->communicator_address, rank.communicator_address());
  EXPECT_EQ(hello->pid, 42);
}

TEST_F(WorkerServiceTest, ProgressOfLoadingComesBeforeTheHello) {
  ServedRank rank(folder_.path(), {});
  auto client = Connect(rank);
  std::atomic<bool> is_heard{false};
  std::thread loader([&] {
    for (int64_t done = 1; !is_heard; ++done) {
      rank.service->ReportLoading(done, 1 << 20);
      std::this_thread::sleep_for(milliseconds(1));
    }
  });
  const auto loading = events_.Next<RankLoading>(client->stream());
  is_heard = true;
  loader.join();
  ASSERT_TRUE(loading);
  EXPECT_GT(loading->bytes_done, 0);
  EXPECT_EQ(loading->bytes_total, 1 << 20);
  rank.FinishLoading();
  EXPECT_TRUE(events_.Next<RankHello>(client->stream()));
}

TEST_F(WorkerServiceTest, ResultsComeInTheOrderOfThePlans) {
  ServedRank rank(folder_.path(), {});
  rank.FinishLoading();
  auto client = ConnectAndForm(rank);
  constexpr uint64_t kNumSteps = 500;
  constexpr uint64_t kAhead = 3;
  for (uint64_t step = 1; step <= kNumSteps + kAhead; ++step) {
    if (step <= kNumSteps) {
      ASSERT_TRUE(client->SendPlan(PlanOf(1, step, {0, 3, 7})));
    }
    if (step <= kAhead) continue;
    const auto result = events_.Next<StepResult>(client->stream());
    ASSERT_TRUE(result);
    EXPECT_EQ(result->step_id, step - kAhead);
    EXPECT_EQ(result->epoch, 1);
    EXPECT_EQ(result->plan_hash, (step - kAhead) * 31);
    ASSERT_EQ(result->sequences.size(), 3);
    EXPECT_EQ(result->sequences[1].sampled.token, FakeRank::TokenFor(step - kAhead, 3));
  }
}

TEST_F(WorkerServiceTest, SchedulerOfAnotherBuildIsRefusedAndHarmsNothing) {
  ServedRank rank(folder_.path(), {});
  rank.FinishLoading();
  auto present = ConnectAndForm(rank);
  RankClientOptions options = ClientOptions(rank);
  options.build = "build-2";
  auto other = Connect(options);
  const absl::Status status = WhyLost(*other);
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(Message(status), AllOf(HasSubstr("build-1"), HasSubstr("build-2")));
  ASSERT_TRUE(present->SendPlan(PlanOf(1, 1, {0})));
  EXPECT_TRUE(events_.Next<StepResult>(present->stream()));
}

TEST_F(WorkerServiceTest, RankThatIsNotWhatWasExpectedIsRefused) {
  ServedRank rank(folder_.path(), {.tp = 2, .dp = 1, .rank = 1});
  rank.FinishLoading();
  const auto why = [&](auto change) {
    RankClientOptions options = ClientOptions(rank);
    change(options);
    auto client = Connect(options);
    const absl::Status status = WhyLost(*client);
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    return Message(status);
  };
  EXPECT_THAT(why([](RankClientOptions& o) { o.manifest_hash = 0x99; }), AllOf(HasSubstr("99"), HasSubstr("1234")));
  EXPECT_THAT(why([](RankClientOptions& o) { o.rank = 0; }), HasSubstr("rank is 1, expected 0"));
  EXPECT_THAT(why([](RankClientOptions& o) { o.tp = 4; }), HasSubstr("tensor_parallel_size is 2, expected 4"));
  EXPECT_THAT(why([](RankClientOptions& o) { o.dp = 2; }), HasSubstr("data_parallel_size is 1, expected 2"));
}

TEST_F(WorkerServiceTest, RankThatIsNotThereIsLost) {
  auto client = Connect({.address = "unix:" + folder_.path() + "/nobody", .build = "build-1"});
  EXPECT_TRUE(absl::IsUnavailable(WhyLost(*client)));
  EXPECT_FALSE(client->SendPlan(PlanOf(1, 1, {0})));
}

TEST_F(WorkerServiceTest, PlansOfAnotherEpochAreDropped) {
  ServedRank rank(folder_.path(), {});
  rank.FinishLoading();
  auto client = ConnectAndForm(rank, 7);
  ASSERT_TRUE(client->SendPlan(PlanOf(6, 1, {0})));
  ASSERT_TRUE(client->SendPlan(PlanOf(7, 2, {0})));
  const auto result = events_.Next<StepResult>(client->stream());
  ASSERT_TRUE(result);
  EXPECT_EQ(result->step_id, 2);
  EXPECT_EQ(rank.rank->num_steps, 1);
}

TEST_F(WorkerServiceTest, EpochMustGrow) {
  ServedRank rank(folder_.path(), {});
  rank.FinishLoading();
  auto client = ConnectAndForm(rank, 7);
  ASSERT_TRUE(client->FormGroup(OrderOf(7, {&rank})));
  const auto failed = events_.Next<RankFailed>(client->stream());
  ASSERT_TRUE(failed);
  EXPECT_THAT(failed->reason, HasSubstr("epoch 7 does not follow epoch 7"));
}

TEST_F(WorkerServiceTest, FailedStepEndsTheEpochAndTheNextIsFormed) {
  ServedRank rank(folder_.path(), {});
  rank.rank->before_step = [](const StepPlan& plan) {
    return plan.step_id == 2 ? absl::InternalError("the device is on fire") : absl::OkStatus();
  };
  rank.FinishLoading();
  auto client = ConnectAndForm(rank);
  for (uint64_t step = 1; step <= 4; ++step) ASSERT_TRUE(client->SendPlan(PlanOf(1, step, {0})));
  EXPECT_EQ(events_.Next<StepResult>(client->stream())->step_id, 1);
  const auto failed = events_.Next<RankFailed>(client->stream());
  ASSERT_TRUE(failed);
  EXPECT_EQ(failed->epoch, 1);
  EXPECT_EQ(failed->step_id, 2);
  EXPECT_EQ(failed->reason, "the device is on fire");
  ASSERT_TRUE(client->FormGroup(OrderOf(2, {&rank})));
  ASSERT_TRUE(events_.Next<RankGroupFormed>(client->stream()));
  ASSERT_TRUE(client->SendPlan(PlanOf(2, 5, {0})));
  EXPECT_EQ(events_.Next<StepResult>(client->stream())->step_id, 5);
  EXPECT_EQ(rank.rank->num_steps, 3);  // steps 3 and 4 of the dead epoch were dropped
}

TEST_F(WorkerServiceTest, SecondSchedulerTakesOver) {
  ServedRank rank(folder_.path(), {});
  rank.FinishLoading();
  auto first = ConnectAndForm(rank, 5);
  auto second = Connect(rank);
  const absl::Status status = WhyLost(*first);
  EXPECT_TRUE(absl::IsAborted(status)) << status;
  EXPECT_THAT(Message(status), HasSubstr("taken over"));
  // A scheduler that has forgotten everything counts from the beginning.
  ASSERT_TRUE(events_.Next<RankHello>(second->stream()));
  ASSERT_TRUE(second->FormGroup(OrderOf(1, {&rank})));
  ASSERT_TRUE(events_.Next<RankGroupFormed>(second->stream()));
  ASSERT_TRUE(second->SendPlan(PlanOf(1, 1, {0})));
  EXPECT_TRUE(events_.Next<StepResult>(second->stream()));
}

TEST_F(WorkerServiceTest, CancelledStreamLeavesTheRankReadyForTheNext) {
  ServedRank rank(folder_.path(), {});
  rank.FinishLoading();
  for (uint64_t round = 1; round <= 20; ++round) {
    auto client = ConnectAndForm(rank, round);
    for (uint64_t step = 1; step <= round % 4; ++step) ASSERT_TRUE(client->SendPlan(PlanOf(round, step, {0})));
    client->Cancel("enough");
    EXPECT_EQ(WhyLost(*client), absl::CancelledError("enough"));
  }
}

TEST_F(WorkerServiceTest, PlansBeyondTheQueueEndTheStream) {
  ServedRank rank(folder_.path(), {});
  std::promise<void> release;
  std::shared_future<void> released = release.get_future().share();
  rank.rank->before_step = [released](const StepPlan&) {
    released.wait();
    return absl::OkStatus();
  };
  rank.FinishLoading();
  auto client = ConnectAndForm(rank);
  for (uint64_t step = 1; step <= 200; ++step) {
    if (!client->SendPlan(PlanOf(1, step, {0}))) break;
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_TRUE(absl::IsResourceExhausted(WhyLost(*client)));
  release.set_value();
}

TEST_F(WorkerServiceTest, DrainFinishesWhatIsPlanned) {
  ServedRank rank(folder_.path(), {});
  rank.rank->before_step = [](const StepPlan&) {
    std::this_thread::sleep_for(milliseconds(5));
    return absl::OkStatus();
  };
  rank.FinishLoading();
  auto client = ConnectAndForm(rank);
  for (uint64_t step = 1; step <= 10; ++step) ASSERT_TRUE(client->SendPlan(PlanOf(1, step, {0})));
  ASSERT_TRUE(client->Drain());
  for (uint64_t step = 1; step <= 10; ++step) EXPECT_EQ(events_.Next<StepResult>(client->stream())->step_id, step);
  EXPECT_TRUE(WhyLost(*client).ok());
  for (int i = 0; i < 5000 && !rank.service->IsDrained(); ++i) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_TRUE(rank.service->IsDrained());
  auto late = Connect(rank);
  EXPECT_TRUE(absl::IsUnavailable(WhyLost(*late)));
}

TEST_F(WorkerServiceTest, DrainOfTheProcessDoesTheSame) {
  ServedRank rank(folder_.path(), {});
  rank.FinishLoading();
  auto client = ConnectAndForm(rank);
  for (uint64_t step = 1; step <= 5; ++step) ASSERT_TRUE(client->SendPlan(PlanOf(1, step, {0})));
  EXPECT_EQ(events_.Next<StepResult>(client->stream())->step_id, 1);
  rank.service->Drain();
  EXPECT_TRUE(WhyLost(*client).ok());
}

TEST_F(WorkerServiceTest, DrainWithoutASchedulerIsDoneAtOnce) {
  ServedRank rank(folder_.path(), {});
  rank.FinishLoading();
  rank.service->Drain();
  EXPECT_TRUE(rank.service->IsDrained());
}

TEST_F(WorkerServiceTest, ServiceThatEndsTellsItsScheduler) {
  ServedRank rank(folder_.path(), {});
  rank.FinishLoading();
  auto client = ConnectAndForm(rank);
  rank.service.reset();
  EXPECT_TRUE(absl::IsUnavailable(WhyLost(*client)));
}

TEST_F(WorkerServiceTest, AddressInUseIsRefused) {
  ServedRank rank(folder_.path(), {});
  const auto second = WorkerService::Start({.build = "build-1", .address = rank.address()});
  EXPECT_TRUE(absl::IsUnavailable(second.status())) << second.status();
  EXPECT_THAT(Message(second.status()), HasSubstr(rank.address()));
  EXPECT_FALSE(WorkerService::Start({.build = "build-1", .address = "nonsense"}).ok());
}

// ---- two ranks ----

class TwoRanksTest : public WorkerServiceTest {
 protected:
  TwoRanksTest() {
    for (ServedRank* rank : {&first_, &second_}) {
      rank->FinishLoading();
      clients_.push_back(Connect(*rank));
      EXPECT_TRUE(events_.Next<RankHello>(clients_.back()->stream()));
    }
  }
  void Form(uint64_t epoch) {
    for (auto& client : clients_) ASSERT_TRUE(client->FormGroup(OrderOf(epoch, {&first_, &second_})));
    ExpectOfBoth<RankGroupFormed>();
  }
  template <typename What>
  std::vector<What> ExpectOfBoth() {
    std::vector<What> both;
    for (auto& client : clients_) both.push_back(events_.Next<What>(client->stream()).value_or(What{}));
    return both;
  }

  ServedRank first_{folder_.path(), {.tp = 2, .dp = 1, .rank = 0}};
  ServedRank second_{folder_.path(), {.tp = 2, .dp = 1, .rank = 1}};
  std::vector<std::unique_ptr<RankClient>> clients_;
};

TEST_F(TwoRanksTest, FormAGroupAndStepTogether) {
  Form(1);
  for (uint64_t step = 1; step <= 50; ++step) {
    for (auto& client : clients_) ASSERT_TRUE(client->SendPlan(PlanOf(1, step, {0})));
    ExpectOfBoth<StepResult>();
  }
}

TEST_F(TwoRanksTest, StepThatOneRankFailsIsReportedByBoth) {
  second_.rank->before_step = [](const StepPlan& plan) {
    return plan.step_id == 3 ? absl::InternalError("out of luck") : absl::OkStatus();
  };
  Form(1);
  for (uint64_t step = 1; step <= 2; ++step) {
    for (auto& client : clients_) ASSERT_TRUE(client->SendPlan(PlanOf(1, step, {0})));
    ExpectOfBoth<StepResult>();
  }
  for (auto& client : clients_) ASSERT_TRUE(client->SendPlan(PlanOf(1, 3, {0})));
  const std::vector<RankFailed> failed = ExpectOfBoth<RankFailed>();
  EXPECT_THAT(failed[0].reason, AllOf(HasSubstr("rank 1 aborted"), HasSubstr("out of luck")));
  EXPECT_EQ(failed[1].reason, "out of luck");
  Form(2);
  for (auto& client : clients_) ASSERT_TRUE(client->SendPlan(PlanOf(2, 4, {0})));
  ExpectOfBoth<StepResult>();
}

// Rank 1 gets no plan, as if it hung: the scheduler forms the next epoch while rank 0 waits in a collective.
TEST_F(TwoRanksTest, NextEpochInterruptsACollective) {
  Form(1);
  ASSERT_TRUE(clients_[0]->SendPlan(PlanOf(1, 1, {0})));
  while (first_.rank->num_steps == 0) std::this_thread::sleep_for(milliseconds(1));
  Form(2);
  for (auto& client : clients_) ASSERT_TRUE(client->SendPlan(PlanOf(2, 2, {0})));
  ExpectOfBoth<StepResult>();
}

TEST_F(TwoRanksTest, NextEpochInterruptsAGroupThatCannotForm) {
  GroupOrder order = OrderOf(1, {&first_, &second_});
  order.connect_deadline = milliseconds(60000);
  ASSERT_TRUE(clients_[0]->FormGroup(order));  // rank 1 is not told
  std::this_thread::sleep_for(milliseconds(50));
  Form(2);
}

TEST_F(TwoRanksTest, RankLeftAloneInAGroupReportsWhoIsMissing) {
  GroupOrder order = OrderOf(1, {&first_, &second_});
  order.connect_deadline = milliseconds(200);
  ASSERT_TRUE(clients_[0]->FormGroup(order));
  const auto failed = events_.Next<RankFailed>(clients_[0]->stream());
  ASSERT_TRUE(failed);
  EXPECT_EQ(failed->step_id, 0);
  EXPECT_THAT(failed->reason, HasSubstr("misses rank 1"));
}

TEST_F(TwoRanksTest, SchedulerThatGoesAwayFreesARankFromItsCollective) {
  Form(1);
  ASSERT_TRUE(clients_[0]->SendPlan(PlanOf(1, 1, {0})));
  while (first_.rank->num_steps == 0) std::this_thread::sleep_for(milliseconds(1));
  clients_.clear();
  for (ServedRank* rank : {&first_, &second_}) {
    clients_.push_back(Connect(*rank));
    ASSERT_TRUE(events_.Next<RankHello>(clients_.back()->stream()));
  }
  Form(1);
}

}  // namespace
}  // namespace weir::worker
