#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/checkpoint/model_config.h"

// How a model is spread over ranks.
//
// world_size = tp * dp ranks; rank = dp_rank * tp + tp_rank.  Attention, dense FFNs, shared experts, embedding and head
// are split tp ways inside a data-parallel group and repeated in each; routed experts are spread over all ranks.

namespace weir::worker {

struct ParallelLayout {
  int32_t tp = 1;
  int32_t dp = 1;
  int32_t rank = 0;

  int32_t world_size() const { return tp * dp; }
  int32_t tp_rank() const { return rank % tp; }
  int32_t dp_rank() const { return rank / tp; }
};

// Logical -> physical experts.  Every logical expert has at least one copy; a rank holds each at most once.
class ExpertMap {
 public:
  // Contiguous: expert e on rank e * world_size / num_experts (counts may be uneven; a rank may hold none).
  static ExpertMap Contiguous(int32_t num_experts, int32_t world_size);
  // ranks_of_expert[e] = the ranks that hold a copy of e.  INVALID_ARGUMENT: empty entry, repeated or unknown rank.
  static absl::StatusOr<ExpertMap> FromCopies(std::vector<std::vector<int32_t>> ranks_of_expert, int32_t world_size);

  int32_t num_experts() const { return static_cast<int32_t>(ranks_of_expert_.size()); }
  const std::vector<int32_t>& RanksOf(int32_t expert) const { return ranks_of_expert_[expert]; }
  const std::vector<int32_t>& ExpertsOn(int32_t rank) const { return experts_on_rank_[rank]; }  // ascending
  // The copy that tokens of `dp_rank` use: fixed, so that results do not depend on load.
  int32_t RankFor(int32_t expert, int32_t dp_rank) const {
    const auto& ranks = ranks_of_expert_[expert];
    return ranks[dp_rank % ranks.size()];
  }

 private:
  std::vector<std::vector<int32_t>> ranks_of_expert_;
  std::vector<std::vector<int32_t>> experts_on_rank_;
};

// What config and layout do not allow together: heads, widths or vocabulary not divisible by tp, more ranks than ...
// INVALID_ARGUMENT says which number to change.
absl::Status CheckLayout(const ModelConfig& config, const ParallelLayout& layout);

}  // namespace weir::worker
