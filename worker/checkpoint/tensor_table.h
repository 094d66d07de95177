#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "worker/checkpoint/layout.h"
#include "worker/checkpoint/model_config.h"

// Every tensor of a checkpoint, as data: name, shape, how it is split over ranks, which group of bytes it belongs to
// (spec 3.2 and 3.3).  The loader, `weir inspect` and the memory sums all read this one table.

namespace weir::worker {

enum class TensorGroup {
  kEmbedding,
  kHead,
  kNorm,
  kAttention,
  kDenseFfn,
  kRouter,
  kSharedExperts,
  kRoutedExperts,
  kMtp
};

// How ranks divide a tensor.
enum class TensorSplit {
  kReplicated,  // whole on every rank
  kRows,        // dim 0 in tp equal parts
  kColumns,     // dim 1 in tp equal parts
  kExpert,      // whole, on the ranks that the ExpertMap gives its expert
  kUnused,      // listed and checked, not loaded: the MTP layer for now
};

struct TensorSpec {
  std::string name;            // "model.layers.3.mlp.experts.17.gate_proj.weight"
  std::vector<int64_t> shape;  // [out, in] or [n]
  bool may_be_fp8 = false;     // F8_E4M3 with a companion <name>_scale_inv, F32, [ceil(out/128), ceil(in/128)]
  TensorGroup group = TensorGroup::kAttention;
  TensorSplit split = TensorSplit::kReplicated;
  int32_t layer = -1;   // -1: outside the layers
  int32_t expert = -1;  // logical id, for kExpert
};

// In file order of the published checkpoints: embedding, layers ascending, norm, head, MTP layers last.  Scale tensors
// are not listed: they follow their weight.
std::vector<TensorSpec> TensorTable(const ModelConfig& config);

// The part [first_row, +rows) x [first_col, +cols) that a rank keeps; 0 x 0 when it keeps nothing.  1-D tensors: cols =
// n.
struct TensorPart {
  int64_t first_row = 0, rows = 0;
  int64_t first_col = 0, cols = 0;
};
TensorPart PartOf(const TensorSpec& spec, const ParallelLayout& layout, const ExpertMap& experts);

}  // namespace weir::worker
