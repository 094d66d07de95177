#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/communicator/communicator.h"
#include "worker/step_plan.h"

// One rank: its shard of the weights, its latent cache, and the forward pass.  Knows plans and results, nothing of who
// sends them.  Invents no block: addresses come with the plan.  One thread drives it.

namespace weir::worker {

enum class WeightDType {
  kAuto,      // as stored: FP8 stays FP8 with quantised inputs, BF16 stays BF16
  kBFloat16,  // FP8 dequantised to BF16 at load; no input quantisation
  kFloat32,   // everything widened to F32 at load: exact, slow, for proofs
};

struct RankOptions {
  ParallelLayout layout;
  WeightDType weight_dtype = WeightDType::kAuto;
  // Latent cache element; kF32 only for proofs.  Default: F32 when weights run as F32, BF16 otherwise.
  enum class CacheDType { kAuto, kBFloat16, kFloat32 } cache_dtype = CacheDType::kAuto;
  int32_t block_size = 64;
  int64_t num_blocks = 0;                 // of this rank's cache; all ranks of a dp group must have the same
  int32_t max_num_seqs = 256;             // slots
  int32_t max_num_batched_tokens = 2048;  // rows of one step on this dp group; workspaces are sized by it
  int64_t max_model_len = 0;              // positions; 0 = the model's own
  // Loads although the machine does not seem to have the memory.
  bool allows_overcommit = false;
  // Where the routed experts are, the same on every rank; by default ExpertMap::Contiguous.
  std::optional<ExpertMap> expert_map;
};

// What a rank needs, computed before anything is loaded.
struct MemoryEstimate {
  int64_t weights_bytes = 0;
  int64_t cache_bytes = 0;       // num_blocks * block_size * layers * width * element
  int64_t workspace_bytes = 0;   // activations for max_num_batched_tokens rows
  int64_t available_bytes = 0;   // what the machine has free, for a CPU rank; its processes share it
  std::string ToString() const;  // one line with all sums, for people
  int64_t total_bytes() const { return weights_bytes + cache_bytes + workspace_bytes; }
  bool Fits() const { return total_bytes() <= available_bytes; }
  // The most blocks that fit, when cache_bytes are those of `num_blocks`; zero or less when there is no room for any.
  int64_t MaxNumBlocks(int64_t num_blocks) const;
};
// Requires: CheckLayout allows options.layout.
MemoryEstimate EstimateMemory(const Checkpoint& checkpoint, const RankOptions& options);

class Rank {
 public:
  // Loads this rank's shard.  RESOURCE_EXHAUSTED with the sums, before anything is loaded, when it does not fit;
  // INVALID_ARGUMENT for a layout the model does not allow or weights that are not finite.  `communicator` spans all
  // ranks of the layout; null when there is one, or when the group is formed later, by Reform.  `progress(bytes done,
  // bytes total)` may be null.  checkpoint need not outlive Load; backend and communicator must outlive the rank.  The
  // epoch is 0.
  static absl::StatusOr<std::unique_ptr<Rank>> Load(const Checkpoint& checkpoint, const RankOptions& options,
                                                    kernels::Backend* backend, Communicator* communicator,
                                                    const std::function<void(int64_t, int64_t)>& progress);
  virtual ~Rank() = default;

  // Runs one step.  INVALID_ARGUMENT: the plan as a whole is refused (another epoch, more rows than
  // max_num_batched_tokens for some data-parallel group) and nothing has happened.  Any other error is a fault of the
  // group (communication, device): the epoch is over, and every Run before the next Reform fails with it.  A sequence
  // that cannot run (position beyond max_model_len, unknown slot, block id out of range, token id out of range) has its
  // reason in its own result, its slot is as before, and the others run.  Only the first rank of a data-parallel group
  // (tp_rank 0) fills StepResult::sequences.
  virtual absl::StatusOr<StepResult> Run(const StepPlan& plan) = 0;

  // Forgets all slots and takes a new communicator (null with one rank): a new epoch with the weights at hand.
  virtual absl::Status Reform(Communicator* communicator, uint64_t epoch) = 0;

  virtual const ModelConfig& config() const = 0;
  virtual const RankOptions& options() const = 0;
  virtual const MemoryEstimate& memory() const = 0;
};

}  // namespace weir::worker
