#include "worker/checkpoint/layout.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "kernels/check.h"

namespace weir::worker {
namespace {

constexpr int64_t kMaxWorldSize = 4096;

absl::Status CheckDivides(int32_t tp, int64_t size, const char* name) {
  if (size % tp == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("tp = %d does not divide %s = %d: choose a tp that divides it", tp, name, size));
}

bool HasDenseLayer(const ModelConfig& config) {
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (!config.IsMoeLayer(layer)) return true;
  }
  return false;
}

}  // namespace

ExpertMap ExpertMap::Contiguous(int32_t num_experts, int32_t world_size) {
  WEIR_CHECK(num_experts >= 0 && world_size >= 1);
  std::vector<std::vector<int32_t>> ranks_of_expert(num_experts);
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    ranks_of_expert[expert] = {static_cast<int32_t>(expert * world_size / num_experts)};
  }
  absl::StatusOr<ExpertMap> map = FromCopies(std::move(ranks_of_expert), world_size);
  WEIR_CHECK(map.ok());
  return *std::move(map);
}

absl::StatusOr<ExpertMap> ExpertMap::FromCopies(std::vector<std::vector<int32_t>> ranks_of_expert, int32_t world_size) {
  if (world_size < 1) return absl::InvalidArgumentError(absl::StrFormat("expert map: no rank (%d)", world_size));
  ExpertMap map;
  map.experts_on_rank_.resize(world_size);
  for (size_t expert = 0; expert < ranks_of_expert.size(); ++expert) {
    if (ranks_of_expert[expert].empty()) {
      return absl::InvalidArgumentError(absl::StrFormat("expert map: expert %d has no rank", expert));
    }
    for (const int32_t rank : ranks_of_expert[expert]) {
      if (rank < 0 || rank >= world_size) {
        return absl::InvalidArgumentError(absl::StrFormat(
            "expert map: expert %d: expected ranks from 0 to %d, found %d", expert, world_size - 1, rank));
      }
      std::vector<int32_t>& experts = map.experts_on_rank_[rank];
      if (!experts.empty() && experts.back() == static_cast<int32_t>(expert)) {
        return absl::InvalidArgumentError(
            absl::StrFormat("expert map: expert %d stands twice on rank %d", expert, rank));
      }
      experts.push_back(static_cast<int32_t>(expert));
    }
  }
  map.ranks_of_expert_ = std::move(ranks_of_expert);
  return map;
}

absl::Status CheckLayout(const ModelConfig& config, const ParallelLayout& layout) {
  if (layout.tp < 1 || layout.dp < 1 || int64_t{layout.tp} * layout.dp > kMaxWorldSize) {
    return absl::InvalidArgumentError(
        absl::StrFormat("expected tp and dp of at least 1 and tp * dp of at most %d, found tp = %d, dp = %d",
                        kMaxWorldSize, layout.tp, layout.dp));
  }
  if (layout.rank < 0 || layout.rank >= layout.world_size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("expected a rank from 0 to tp * dp - 1 = %d, found %d", layout.world_size() - 1, layout.rank));
  }
  absl::Status status = CheckDivides(layout.tp, config.num_attention_heads, "num_attention_heads");
  status.Update(CheckDivides(layout.tp, config.vocab_size, "vocab_size"));
  if (HasDenseLayer(config)) status.Update(CheckDivides(layout.tp, config.intermediate_size, "intermediate_size"));
  if (config.n_routed_experts > 0) {
    status.Update(CheckDivides(layout.tp, int64_t{config.n_shared_experts} * config.moe_intermediate_size,
                               "n_shared_experts * moe_intermediate_size"));
  }
  return status;
}

}  // namespace weir::worker
