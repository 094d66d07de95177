#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "tests/worker/service/rank_client.h"
#include "worker/rank.h"
#include "worker/service/rank_engine.h"
#include "worker/service/worker_service.h"

// What tests of the worker service share: a rank without a model, and the whole of a rank's process around it.

namespace weir::worker {

// Answers every plan at once: the token sampled for a sequence is TokenFor(step, slot).  With a communicator it also
// takes part in a barrier per step, as a real rank would in its sums.
class FakeRank : public Rank {
 public:
  explicit FakeRank(const RankOptions& options) : options_(options) {}

  static int32_t TokenFor(uint64_t step_id, SlotId slot) { return static_cast<int32_t>(step_id * 1000) + slot; }

  absl::StatusOr<StepResult> Run(const StepPlan& plan) override;
  absl::Status Reform(Communicator* communicator, uint64_t epoch) override;
  const ModelConfig& config() const override { return config_; }
  const RankOptions& options() const override { return options_; }
  const MemoryEstimate& memory() const override { return memory_; }

  // Called in the engine's thread before a step is answered; an error is the step's.
  std::function<absl::Status(const StepPlan&)> before_step;
  std::atomic<int> num_steps{0};

 private:
  const RankOptions options_;
  ModelConfig config_;
  MemoryEstimate memory_;
  Communicator* communicator_ = nullptr;
  uint64_t epoch_ = 0;
};

// One rank's engine and service, in this process.
struct ServedRank {
  // Listens in `folder` at "r<rank>"; ranks meet at "c<rank>".
  ServedRank(const std::string& folder, ParallelLayout layout, const std::string& build = "build-1");

  void FinishLoading();  // the hello follows
  std::string address() const;
  std::string communicator_address() const;

  std::string folder;
  ParallelLayout layout;
  uint64_t manifest_hash = 0x1234;
  FakeRank* rank = nullptr;  // of engine
  std::unique_ptr<RankEngine> engine;
  std::unique_ptr<WorkerService> service;
};

// Reads an inbox stream by stream.
class EventReader {
 public:
  explicit EventReader(std::shared_ptr<RankInbox> inbox) : inbox_(std::move(inbox)) {}

  // The next event of `stream` that holds a What; others of this stream before it are dropped, those of other streams
  // are kept.  Nothing, with a test failure, when the stream is lost before, or after 20 s.
  template <typename What>
  std::optional<What> Next(uint64_t stream);

  // The next event of `stream`, whatever it holds; nothing when none comes until then.
  std::optional<RankEvent> NextOf(uint64_t stream, std::chrono::steady_clock::time_point until);

 private:
  const std::shared_ptr<RankInbox> inbox_;
  std::deque<RankEvent> waiting_;
};

template <typename What>
std::optional<What> EventReader::Next(uint64_t stream) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (std::optional<RankEvent> event = NextOf(stream, until)) {
    if (What* what = std::get_if<What>(&event->what)) return std::move(*what);
    if (const RankLost* lost = std::get_if<RankLost>(&event->what)) {
      ADD_FAILURE() << "the stream is lost: " << lost->status;
      return std::nullopt;
    }
  }
  ADD_FAILURE() << "the event does not come";
  return std::nullopt;
}

RankClientOptions ClientOptions(const ServedRank& rank);
StepPlan PlanOf(uint64_t epoch, uint64_t step_id, const std::vector<SlotId>& slots);
GroupOrder OrderOf(uint64_t epoch, const std::vector<const ServedRank*>& ranks);

}  // namespace weir::worker
