#include "tools/weir/rank_group.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <numeric>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/communicator/communicator.h"

namespace weir::tools {
namespace {

using worker::Communicator;
using worker::Rank;
using worker::StepPlan;
using worker::StepResult;

// Adds up what the ranks report, each from its own thread.
class SharedProgress {
 public:
  SharedProgress(int num_ranks, const LoadProgress& progress)
      : done_(num_ranks), total_(num_ranks), progress_(progress) {}

  void Report(int rank, int64_t done, int64_t total) {
    const std::lock_guard lock(mutex_);
    done_[rank] = done;
    total_[rank] = total;
    if (!progress_) return;
    progress_(std::accumulate(done_.begin(), done_.end(), int64_t{0}),
              std::accumulate(total_.begin(), total_.end(), int64_t{0}));
  }

 private:
  std::mutex mutex_;
  std::vector<int64_t> done_, total_;
  const LoadProgress& progress_;
};

class ThreadRanks : public RankGroup {
 public:
  absl::Status Load(const worker::Checkpoint& checkpoint, const RankGroupOptions& options,
                    const LoadProgress& progress) {
    const int num_ranks = options.tp * options.dp;
    if (num_ranks > 1) communicators_ = worker::NewThreadGroup(num_ranks, options.collective_deadline);
    communicators_.resize(num_ranks);
    for (int r = 0; r < num_ranks; ++r) {
      absl::StatusOr<std::unique_ptr<kernels::Backend>> backend = worker::NewBackend(options.backend);
      if (!backend.ok()) return backend.status();
      backends_.push_back(*std::move(backend));
    }
    SharedProgress shared(num_ranks, progress);
    ranks_.resize(num_ranks);
    return OnEveryRank([&](int r) {
      worker::RankOptions rank_options = options.rank;
      rank_options.layout = {.tp = options.tp, .dp = options.dp, .rank = r};
      absl::StatusOr<std::unique_ptr<Rank>> rank =
          Rank::Load(checkpoint, rank_options, backends_[r].get(), communicators_[r].get(),
                     [&, r](int64_t done, int64_t total) { shared.Report(r, done, total); });
      if (!rank.ok()) return rank.status();
      ranks_[r] = *std::move(rank);
      return absl::OkStatus();
    });
  }

  absl::StatusOr<StepResult> Run(const StepPlan& plan) override {
    std::vector<StepResult> results(ranks_.size());
    absl::Status status = OnEveryRank([&](int r) {
      absl::StatusOr<StepResult> result = ranks_[r]->Run(plan);
      if (!result.ok()) return result.status();
      results[r] = *std::move(result);
      return absl::OkStatus();
    });
    if (!status.ok()) return status;
    return MergeResults(plan, std::move(results));
  }

  std::string device() const override {
    return std::string(backends_[0]->name()) + ": " + std::string(backends_[0]->detail());
  }

 private:
  // Calls `work(rank)` in a thread for each rank.  The first rank that fails wakes the others.
  absl::Status OnEveryRank(const std::function<absl::Status(int)>& work) {
    std::mutex mutex;
    absl::Status first_error;
    const auto run = [&](int r) {
      const absl::Status status = work(r);
      if (status.ok()) return;
      const std::lock_guard lock(mutex);
      if (first_error.ok()) {
        first_error = absl::Status(status.code(), absl::StrCat("rank ", r, ": ", status.message()));
      }
      if (communicators_[r] != nullptr && !absl::IsInvalidArgument(status)) {
        communicators_[r]->Abort(std::string(status.message()));
      }
    };
    std::vector<std::thread> threads;
    for (size_t r = 1; r < backends_.size(); ++r) threads.emplace_back(run, static_cast<int>(r));
    run(0);
    for (std::thread& thread : threads) thread.join();
    return first_error;
  }

  // In order of construction: a rank holds on to its backend and communicator.
  std::vector<std::unique_ptr<kernels::Backend>> backends_;
  std::vector<std::unique_ptr<Communicator>> communicators_;
  std::vector<std::unique_ptr<Rank>> ranks_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RankGroup>> NewThreadRanks(const worker::Checkpoint& checkpoint,
                                                          const RankGroupOptions& options,
                                                          const LoadProgress& progress) {
  auto ranks = std::make_unique<ThreadRanks>();
  if (absl::Status status = ranks->Load(checkpoint, options, progress); !status.ok()) return status;
  return ranks;
}

absl::StatusOr<StepResult> MergeResults(const StepPlan& plan, std::vector<StepResult> results) {
  StepResult merged = std::move(results[0]);
  std::map<std::pair<int32_t, worker::SlotId>, worker::SequenceResult> by_slot;
  const auto take = [&](std::vector<worker::SequenceResult>& sequences) {
    for (worker::SequenceResult& sequence : sequences) {
      by_slot.insert_or_assign({sequence.dp_rank, sequence.slot}, std::move(sequence));
    }
    sequences.clear();
  };
  take(merged.sequences);
  for (size_t r = 1; r < results.size(); ++r) {
    if (results[r].plan_hash != merged.plan_hash) {
      return absl::InternalError(absl::StrCat("rank ", r, " ran another plan than rank 0 in step ", plan.step_id));
    }
    take(results[r].sequences);
    worker::StepTimings& most = merged.timings;
    most.total_us = std::max(most.total_us, results[r].timings.total_us);
    most.communication_us = std::max(most.communication_us, results[r].timings.communication_us);
    most.sampling_us = std::max(most.sampling_us, results[r].timings.sampling_us);
  }
  for (const worker::SequenceWork& work : plan.work) {
    const auto found = by_slot.find({work.dp_rank, work.slot});
    if (found == by_slot.end()) {
      return absl::InternalError(absl::StrCat("no rank answered for slot ", work.slot, " of group ", work.dp_rank));
    }
    merged.sequences.push_back(found->second);
  }
  return merged;
}

}  // namespace weir::tools
