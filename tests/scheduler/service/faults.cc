#include "tests/scheduler/service/faults.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>

#include "weir/worker/v1/worker.pb.h"

namespace weir::scheduler {
namespace {

using worker::v1::RunResponse;
using Alteration = std::function<bool(RunResponse&)>;

// One result of a rank, with at least one sequence where `with_token`.
void AlterOnce(FakeRank& rank, const Alteration& alter, bool with_token = true) {
  auto is_done = std::make_shared<std::atomic<bool>>(false);
  rank.Alter([is_done, alter, with_token](RunResponse& response) {
    const worker::v1::StepResult& result = response.result();
    const bool fits = !with_token || (result.sequences_size() > 0 && result.sequences(0).has_sampled());
    if (!fits || is_done->exchange(true)) return true;
    return alter(response);
  });
}

Fault Altered(std::string name, const Alteration& alter, int rank = 2) {
  return {.name = std::move(name),
          .strike = [alter, rank](TestCluster& cluster) { AlterOnce(cluster.rank(rank), alter, rank % 2 == 0); }};
}

worker::v1::StepResult& Result(RunResponse& response) { return *response.mutable_result(); }

}  // namespace

std::vector<Fault> Faults() {
  std::vector<Fault> faults;
  faults.push_back({.name = "ARankDies", .strike = [](TestCluster& cluster) {
                      cluster.rank(1).Kill();
                      cluster.rank(1).Start();
                    }});
  faults.push_back({.name = "AllRanksDie", .strike = [](TestCluster& cluster) {
                      for (int i = 0; i < cluster.num_ranks(); ++i) cluster.rank(i).Kill();
                      std::this_thread::sleep_for(std::chrono::milliseconds(300));
                      for (int i = 0; i < cluster.num_ranks(); ++i) cluster.rank(i).Start();
                    }});
  faults.push_back({.name = "ARankHangs",
                    .strike =
                        [](TestCluster& cluster) {
                          cluster.rank(3).Hang(true);
                          WaitFor([&] { return cluster.metric("weir_worker_group_losses_total") >= 1; });
                          WaitFor([&] { return cluster.metric("weir_worker_up{rank=\"3\"}") == 0; });
                          cluster.rank(3).Hang(false);
                        },
                    .is_slow = true});
  faults.push_back(
      {.name = "AResultIsLost",
       .strike = [](TestCluster& cluster) { AlterOnce(cluster.rank(0), [](RunResponse&) { return false; }); },
       .is_slow = true});
  faults.push_back(Altered("ARankReportsAFailure", [](RunResponse& response) {
    const worker::v1::StepResult result = response.result();
    response.mutable_failed()->set_epoch(result.epoch());
    response.mutable_failed()->set_step_id(result.step_id());
    response.mutable_failed()->set_reason("scripted");
    return true;
  }));
  faults.push_back(Altered(
      "ARankReadAnotherPlan",
      [](RunResponse& response) {
        Result(response).set_plan_hash(response.result().plan_hash() + 1);
        return true;
      },
      1));
  faults.push_back(Altered("AStepThatWasNeverPlanned", [](RunResponse& response) {
    Result(response).set_step_id(1'000'000);
    return true;
  }));
  faults.push_back(Altered("ASlotThatWasNotPlanned", [](RunResponse& response) {
    Result(response).mutable_sequences(0)->set_slot(999);
    return true;
  }));
  faults.push_back(Altered("AnAnswerIsMissing", [](RunResponse& response) {
    Result(response).mutable_sequences()->RemoveLast();
    return true;
  }));
  faults.push_back(Altered("AnAnswerTooMany", [](RunResponse& response) {
    *Result(response).add_sequences() = worker::v1::SequenceResult(response.result().sequences(0));
    return true;
  }));
  faults.push_back(Altered("ATokenIsMissing", [](RunResponse& response) {
    Result(response).mutable_sequences(0)->mutable_sampled()->clear_token_id();
    return true;
  }));
  faults.push_back(Altered("ANumberBeyondItsType", [](RunResponse& response) {
    Result(response).mutable_sequences(0)->set_slot(0xffffffffu);
    return true;
  }));
  faults.push_back(Altered("ATokenBeyondTheVocabulary", [](RunResponse& response) {
    Result(response).mutable_sequences(0)->mutable_sampled()->set_token_id(2'000'000'000);
    return true;
  }));
  faults.push_back(Altered("AMessageThatSaysNothing", [](RunResponse& response) {
    response.Clear();
    return true;
  }));
  faults.push_back(Altered("ASecondHello", [](RunResponse& response) {
    response.mutable_hello()->set_build("test");
    return true;
  }));
  return faults;
}

void SayOldResult(FakeRank& rank, uint64_t epoch) {
  RunResponse response;
  response.mutable_result()->set_epoch(epoch);
  response.mutable_result()->set_step_id(1);
  rank.Say(response);
}

void FailTheSecondSequence(FakeRank& rank) {
  rank.Alter([](RunResponse& response) {
    for (int i = 1; i < response.result().sequences_size(); ++i) {
      worker::v1::SequenceResult& sequence = *Result(response).mutable_sequences(i);
      sequence.clear_sampled();
      sequence.set_error("scripted");
    }
    return true;
  });
}

}  // namespace weir::scheduler
