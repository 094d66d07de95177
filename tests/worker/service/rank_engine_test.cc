#include "worker/service/rank_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>

#include "tests/worker/service/served_rank.h"

namespace weir::worker {
namespace {

using testing::ElementsAre;

// Keeps what it hears; while it is held, hearing takes as long as that.
class SlowListener : public EngineListener {
 public:
  void OnGroupFormed(uint64_t epoch) override { Hear("formed " + std::to_string(epoch)); }
  void OnResult(const StepResult& result) override { Hear("step " + std::to_string(result.step_id)); }
  void OnFailed(const RankFailed& failure) override { Hear("failed " + failure.reason); }
  void OnDrained() override { Hear("drained"); }

  void Hold() {
    std::lock_guard lock(mutex_);
    is_held_ = true;
  }
  void LetGo() {
    std::lock_guard lock(mutex_);
    is_held_ = false;
    changed_.notify_all();
  }
  // Waits until so much was heard.
  std::vector<std::string> Heard(size_t count) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(20), [&] { return heard_.size() >= count; }));
    return heard_;
  }

 private:
  void Hear(std::string what) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !is_held_; });
    heard_.push_back(std::move(what));
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_held_ = false;
  std::vector<std::string> heard_;
};

class RankEngineTest : public testing::Test {
 protected:
  RankEngineTest() {
    session_ = engine_.BeginSession(listener_);
    EXPECT_TRUE(engine_.FormGroup(session_, {.epoch = 1, .addresses = {"here"}}).ok());
    listener_->Heard(1);
  }

  void WaitForSteps(int count) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (rank_->num_steps < count && std::chrono::steady_clock::now() < until) std::this_thread::yield();
    EXPECT_EQ(rank_->num_steps, count);
  }

  std::shared_ptr<SlowListener> listener_ = std::make_shared<SlowListener>();
  FakeRank* rank_ = new FakeRank({});  // of the engine
  RankEngine engine_{std::unique_ptr<Rank>(rank_), 1, nullptr};
  uint64_t session_ = 0;
};

TEST_F(RankEngineTest, StepsGoOnWhileAListenerIsSlow) {
  listener_->Hold();
  for (uint64_t step = 1; step <= 5; ++step) EXPECT_TRUE(engine_.Run(session_, PlanOf(1, step, {0})).ok());
  WaitForSteps(5);
  listener_->LetGo();
  EXPECT_THAT(listener_->Heard(6), ElementsAre("formed 1", "step 1", "step 2", "step 3", "step 4", "step 5"));
}

TEST_F(RankEngineTest, AListenerIsToldInOrderWhatCameOfOrders) {
  rank_->before_step = [](const StepPlan& plan) {
    return plan.step_id == 2 ? absl::InternalError("no memory") : absl::OkStatus();
  };
  listener_->Hold();
  for (uint64_t step = 1; step <= 3; ++step) EXPECT_TRUE(engine_.Run(session_, PlanOf(1, step, {0})).ok());
  EXPECT_TRUE(engine_.Drain(session_).ok());
  listener_->LetGo();
  EXPECT_THAT(listener_->Heard(4), ElementsAre("formed 1", "step 1", "failed no memory", "drained"));
}

TEST_F(RankEngineTest, AtMostSoManyStepsRunAheadOfAListenerThatHangs) {
  listener_->Hold();
  const int bound = static_cast<int>(RankEngine::kMaxOutcomes) + 2;  // one is being told, one is done and waits
  for (int step = 1; step <= bound + 10; ++step) {
    while (!engine_.Run(session_, PlanOf(1, static_cast<uint64_t>(step), {0})).ok()) std::this_thread::yield();
    if (step <= bound) WaitForSteps(step);
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(rank_->num_steps, bound);
  listener_->LetGo();
  listener_->Heard(static_cast<size_t>(bound) + 11);
}

TEST_F(RankEngineTest, AListenerOfASessionThatIsOverHearsNoMore) {
  listener_->Hold();
  EXPECT_TRUE(engine_.Run(session_, PlanOf(1, 1, {0})).ok());  // being told, perhaps
  EXPECT_TRUE(engine_.Run(session_, PlanOf(1, 2, {0})).ok());
  WaitForSteps(2);
  auto next = std::make_shared<SlowListener>();
  const uint64_t session = engine_.BeginSession(next);
  EXPECT_TRUE(engine_.FormGroup(session, {.epoch = 1, .addresses = {"here"}}).ok());
  listener_->LetGo();
  EXPECT_THAT(next->Heard(1), ElementsAre("formed 1"));
  EXPECT_LE(listener_->Heard(1).size(), 2u);
}

}  // namespace
}  // namespace weir::worker
