#include "tests/worker/service/served_rank.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace weir::worker {
namespace {

absl::StatusOr<std::unique_ptr<Communicator>> Form(const ParallelLayout& layout, const GroupOrder& order,
                                                   const std::atomic<bool>& cancelled) {
  return NewSocketGroup(SocketGroupOptionsOf(order, layout.rank, cancelled));
}

}  // namespace

absl::StatusOr<StepResult> FakeRank::Run(const StepPlan& plan) {
  ++num_steps;
  if (before_step) {
    if (absl::Status status = before_step(plan); !status.ok()) return status;
  }
  if (communicator_ != nullptr) {
    if (absl::Status status = communicator_->Barrier(); !status.ok()) return status;
  }
  StepResult result{.step_id = plan.step_id, .epoch = plan.epoch, .plan_hash = plan.step_id * 31};
  for (const SequenceWork& work : plan.work) {
    SequenceResult& sequence = result.sequences.emplace_back();
    sequence.slot = work.slot;
    sequence.dp_rank = work.dp_rank;
    sequence.has_sampled = work.samples;
    sequence.sampled.token = TokenFor(plan.step_id, work.slot);
  }
  return result;
}

absl::Status FakeRank::Reform(Communicator* communicator, uint64_t epoch) {
  communicator_ = communicator;
  epoch_ = epoch;
  return absl::OkStatus();
}

ServedRank::ServedRank(const std::string& in_folder, ParallelLayout in_layout, const std::string& build)
    : folder(in_folder), layout(in_layout) {
  RankOptions options;
  options.layout = layout;
  options.num_blocks = 100;
  options.max_model_len = 1000;
  options.max_num_seqs = 8;
  auto fake = std::make_unique<FakeRank>(options);
  rank = fake.get();
  engine = std::make_unique<RankEngine>(std::move(fake), layout.world_size(),
                                        [in_layout](const GroupOrder& order, const std::atomic<bool>& cancelled) {
                                          return Form(in_layout, order, cancelled);
                                        });
  auto started = WorkerService::Start({.build = build, .address = address()});
  EXPECT_TRUE(started.ok()) << started.status();
  if (started.ok()) service = *std::move(started);
}

void ServedRank::FinishLoading() {
  service->Serve(engine.get(), {.manifest_hash = manifest_hash,
                                .rank = layout.rank,
                                .tp = layout.tp,
                                .dp = layout.dp,
                                .num_blocks = 100,
                                .block_size = 64,
                                .max_num_seqs = 8,
                                .max_num_batched_tokens = 256,
                                .max_model_len = 1000,
                                .vocab_size = 1 << 20,
                                .eos_token_ids = {1, 2},
                                .device = "fake",
                                .communicator_address = communicator_address(),
                                .pid = 42});
}

std::string ServedRank::address() const { return absl::StrCat("unix:", folder, "/r", layout.rank); }
std::string ServedRank::communicator_address() const { return absl::StrCat("unix:", folder, "/c", layout.rank); }

std::optional<RankEvent> EventReader::NextOf(uint64_t stream, std::chrono::steady_clock::time_point until) {
  while (true) {
    const auto found =
        std::find_if(waiting_.begin(), waiting_.end(), [&](const RankEvent& event) { return event.stream == stream; });
    if (found != waiting_.end()) {
      RankEvent event = std::move(*found);
      waiting_.erase(found);
      return event;
    }
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
    if (left.count() <= 0) return std::nullopt;
    for (RankEvent& event : inbox_->TakeAll(left)) waiting_.push_back(std::move(event));
  }
}

RankClientOptions ClientOptions(const ServedRank& rank) {
  return {.address = rank.address(),
          .build = "build-1",
          .rank = rank.layout.rank,
          .tp = rank.layout.tp,
          .dp = rank.layout.dp};
}

StepPlan PlanOf(uint64_t epoch, uint64_t step_id, const std::vector<SlotId>& slots) {
  StepPlan plan{.step_id = step_id, .epoch = epoch};
  for (const SlotId slot : slots) {
    SequenceWork& work = plan.work.emplace_back();
    work.slot = slot;
    work.num_tokens = 1;
    work.samples = true;
  }
  return plan;
}

GroupOrder OrderOf(uint64_t epoch, const std::vector<const ServedRank*>& ranks) {
  GroupOrder order{.epoch = epoch, .token = absl::StrCat("token-", epoch)};
  for (const ServedRank* rank : ranks) order.addresses.push_back(rank->communicator_address());
  return order;
}

}  // namespace weir::worker
