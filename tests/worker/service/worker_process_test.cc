// weir-worker as real processes over a tiny checkpoint: two ranks compute together, one is killed, stopped or drained.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <chrono>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "config/build_id.h"
#include "tests/worker/checkpoint_writer.h"
#include "tests/worker/communicator/child_process.h"
#include "tests/worker/service/rank_client.h"
#include "tests/worker/service/served_rank.h"

namespace weir::worker {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::AllOf;
using testing::HasSubstr;

constexpr int kNumRanks = 2;

class WorkerProcessTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    model_ = new TestDirectory;
    CheckpointWriter(TinyV3Config()).Write(model_->path());
  }
  static void TearDownTestSuite() {
    delete model_;
    model_ = nullptr;
  }

  std::string Address(const char* what, int rank) const { return "unix:" + folder_ / (what + std::to_string(rank)); }

  std::unique_ptr<ChildProcess> Start(int rank) {
    std::vector<std::string> command = {std::string(WEIR_BINARY_DIR) + "/bin/weir-worker",
                                        "--model",
                                        model_->path(),
                                        "--tp",
                                        std::to_string(kNumRanks),
                                        "--rank",
                                        std::to_string(rank),
                                        "--listen",
                                        Address("r", rank),
                                        "--communicator",
                                        Address("c", rank),
                                        "--backend",
                                        "reference",
                                        "--num-blocks",
                                        "8",
                                        "--max-num-seqs",
                                        "4",
                                        "--max-num-batched-tokens",
                                        "64"};
    return std::make_unique<ChildProcess>(command);
  }

  // Connects until the rank says what it is.
  void Connect(int rank) {
    for (const auto until = steady_clock::now() + std::chrono::seconds(30); steady_clock::now() < until;) {
      clients_[rank] = std::make_unique<RankClient>(
          RankClientOptions{
              .address = Address("r", rank), .build = std::string(config::BuildId()), .rank = rank, .tp = kNumRanks},
          inbox_);
      const uint64_t stream = clients_[rank]->stream();
      while (true) {
        std::optional<RankEvent> event = events_.NextOf(stream, until);
        if (!event || std::holds_alternative<RankHello>(event->what)) return;
        if (std::holds_alternative<RankLost>(event->what)) break;
      }
      std::this_thread::sleep_for(milliseconds(20));
    }
    ADD_FAILURE() << "no hello of rank " << rank;
  }

  void Form(uint64_t epoch) {
    GroupOrder order{.epoch = epoch, .token = "secret"};
    for (int rank = 0; rank < kNumRanks; ++rank) order.addresses.push_back(Address("c", rank));
    order.collective_deadline = milliseconds(1500);
    for (auto& client : clients_) ASSERT_TRUE(client->FormGroup(order));
    for (auto& client : clients_) ASSERT_TRUE(events_.Next<RankGroupFormed>(client->stream()));
  }

  // A prompt of 70 tokens, more than a block and than a step, and `num_tokens` tokens after it; what was sampled.
  std::vector<int32_t> Generate(uint64_t epoch, int num_tokens) {
    std::vector<int32_t> sampled;
    uint64_t step_id = 0;
    for (int position = 0; position < 70; position += 35) Step(PromptPlan(epoch, ++step_id, position), sampled);
    while (static_cast<int>(sampled.size()) < num_tokens) {
      Step(NextPlan(epoch, ++step_id, 70 + static_cast<int>(sampled.size()) - 1), sampled);
    }
    return sampled;
  }

  static StepPlan PromptPlan(uint64_t epoch, uint64_t step_id, int position) {
    StepPlan plan = PlanOf(epoch, step_id, {1});
    SequenceWork& work = plan.work[0];
    work.first_position = position;
    work.num_tokens = 35;
    work.samples = position + 35 == 70;
    if (position == 0) {
      work.has_setup = true;
      work.setup = {.request_id = 5, .seed = 6, .num_prompt_tokens = 70, .sampling = {.temperature = 0.0f}};
      for (int i = 0; i < 70; ++i) work.setup.token_ids.push_back(3 + i * 7 % 50);
      work.new_block_ids = {2, 5};
    }
    return plan;
  }
  static StepPlan NextPlan(uint64_t epoch, uint64_t step_id, int position) {
    StepPlan plan = PlanOf(epoch, step_id, {1});
    plan.work[0].first_position = position;
    return plan;
  }

  void Step(const StepPlan& plan, std::vector<int32_t>& sampled) {
    std::vector<uint64_t> hashes;
    for (auto& client : clients_) ASSERT_TRUE(client->SendPlan(plan));
    for (auto& client : clients_) {
      const auto result = events_.Next<StepResult>(client->stream());
      ASSERT_TRUE(result);
      hashes.push_back(result->plan_hash);
      for (const SequenceResult& sequence : result->sequences) {
        EXPECT_EQ(sequence.error, "");
        if (sequence.has_sampled) sampled.push_back(sequence.sampled.token);
      }
    }
    EXPECT_EQ(hashes[0], hashes[1]);
  }

  static TestDirectory* model_;
  TestDirectory folder_;
  std::shared_ptr<RankInbox> inbox_ = std::make_shared<RankInbox>();
  EventReader events_{inbox_};
  std::unique_ptr<RankClient> clients_[kNumRanks];
};

TestDirectory* WorkerProcessTest::model_ = nullptr;

class FaultTest : public WorkerProcessTest, public testing::WithParamInterface<int> {};
INSTANTIATE_TEST_SUITE_P(Signals, FaultTest, testing::Values(SIGKILL, SIGSTOP),
                         [](const auto& one) { return one.param == SIGKILL ? "Kill" : "Stop"; });

TEST_P(FaultTest, TheOtherRankNamesItAndTheNextEpochGivesTheSameTokens) {
  std::vector<std::unique_ptr<ChildProcess>> processes;
  for (int rank = 0; rank < kNumRanks; ++rank) processes.push_back(Start(rank));
  for (int rank = 0; rank < kNumRanks; ++rank) Connect(rank);
  Form(1);
  const std::vector<int32_t> before = Generate(1, 6);
  ASSERT_EQ(before.size(), 6);

  processes[1]->Signal(GetParam());
  const auto hit = steady_clock::now();
  ASSERT_TRUE(clients_[0]->SendPlan(NextPlan(1, 100, 75)));
  const auto failed = events_.Next<RankFailed>(clients_[0]->stream());
  EXPECT_LT(steady_clock::now() - hit, milliseconds(2000));
  ASSERT_TRUE(failed);
  EXPECT_EQ(failed->epoch, 1);
  EXPECT_THAT(failed->reason, HasSubstr("rank 1"));

  processes[1]->Signal(SIGKILL);
  EXPECT_EQ(processes[1]->Wait(), 128 + SIGKILL);
  EXPECT_TRUE(absl::IsUnavailable(events_.Next<RankLost>(clients_[1]->stream())->status));
  processes[1] = Start(1);
  Connect(1);
  Form(2);
  EXPECT_EQ(Generate(2, 6), before);
}

TEST_F(WorkerProcessTest, SigtermDrainsAndExitsWithZero) {
  auto first = Start(0);
  auto second = Start(1);
  Connect(0);
  Connect(1);
  Form(1);
  ASSERT_EQ(Generate(1, 2).size(), 2);
  first->Signal(SIGTERM);
  EXPECT_TRUE(events_.Next<RankLost>(clients_[0]->stream())->status.ok());
  EXPECT_EQ(first->Wait(), 0);
  ASSERT_TRUE(clients_[1]->Drain());
  EXPECT_TRUE(events_.Next<RankLost>(clients_[1]->stream())->status.ok());
  EXPECT_EQ(second->Wait(), 0);
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

TEST_F(WorkerProcessTest, SigtermWithoutASchedulerExitsWithZero) {
  auto process = Start(0);
  EXPECT_NE(process->ReadUntil("serving at"), "");
  process->Signal(SIGTERM);
  EXPECT_EQ(process->Wait(), 0);
}

TEST_F(WorkerProcessTest, WrongUsageExitsWithTwoAndBadModelsWithOne) {
  const std::string program = std::string(WEIR_BINARY_DIR) + "/bin/weir-worker";
  EXPECT_EQ(ChildProcess({program}).Wait(), 2);
  auto beyond = Start(5);
  EXPECT_THAT(beyond->ReadLine(), HasSubstr("--rank 5 of 2 ranks"));
  EXPECT_EQ(beyond->Wait(), 2);
  ChildProcess nowhere({program, "--model", folder_ / "nothing", "--listen", Address("r", 0)});
  EXPECT_THAT(nowhere.ReadLine(), HasSubstr("nothing"));
  EXPECT_EQ(nowhere.Wait(), 1);
  ChildProcess help({program, "--help"});
  EXPECT_NE(help.ReadUntil("Example"), "");
  EXPECT_EQ(help.Wait(), 0);
}

TEST_F(WorkerProcessTest, ModelThatDoesNotAllowTheLayoutIsRefused) {
  ChildProcess process({std::string(WEIR_BINARY_DIR) + "/bin/weir-worker", "--model", model_->path(), "--tp", "3",
                        "--listen", Address("r", 0), "--communicator", Address("c", 0)});
  EXPECT_THAT(process.ReadLine(), AllOf(HasSubstr(" E rank 0: "), HasSubstr("3")));
  EXPECT_EQ(process.Wait(), 1);
}

TEST_F(WorkerProcessTest, ACacheBeyondTheMemoryIsRefusedWithWhatWouldFit) {
  const std::vector<std::string> command = {std::string(WEIR_BINARY_DIR) + "/bin/weir-worker",
                                            "--model",
                                            model_->path(),
                                            "--listen",
                                            Address("r", 0),
                                            "--num-blocks",
                                            "1000000000"};
  ChildProcess process(command);
  EXPECT_THAT(process.ReadUntil(" E rank 0: "), AllOf(HasSubstr("does not fit: weights "), HasSubstr(" available"),
                                                      HasSubstr(" would fit"), HasSubstr("--allow-overcommit")));
  EXPECT_EQ(process.Wait(), 1);
}

TEST_F(WorkerProcessTest, LogsWhatHappenedToTheGroup) {
  auto first = Start(0);
  auto second = Start(1);
  Connect(0);
  Connect(1);
  EXPECT_NE(first->ReadUntil("a scheduler has connected"), "");
  Form(7);
  EXPECT_NE(first->ReadUntil("epoch 7: the group of 2 stands"), "");
  second->Signal(SIGKILL);
  ASSERT_TRUE(clients_[0]->SendPlan(PromptPlan(7, 31, 0)));
  EXPECT_THAT(first->ReadUntil("epoch 7: ended at step 31: "), HasSubstr("rank 1"));
}

}  // namespace
}  // namespace weir::worker
