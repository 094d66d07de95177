#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cpu/machine.h"
#include "kernels/cpu/matrix.h"

// Multi-head latent attention in its two forms (spec 2.3 and 2.6), over each sequence's own blocks.
//
// Both are products of the same kernels that linear layers use: keys are a weight with a position per output, values
// one with a position per input.  Where the cache is BF16 and the instruction set multiplies BF16, queries, keys,
// values and probabilities are rounded to BF16, as FlashMLA and transformers do; otherwise everything is f32.
//
// Sums are cut at fixed absolute positions, so a row's result depends on nothing but its own position and context.

namespace weir::kernels::cpu {

struct Batch final : DeviceBatch {
  std::vector<int32_t> token_ids, positions, block_tables, sample_rows;
  std::vector<int64_t> slot_mapping;
  std::vector<SequenceRows> sequences;
};

// W_UK and W_UV of each head.
struct Absorbed {
  std::vector<Matrix> keys;    // [C, dn]: takes a head's q_nope to the latents
  std::vector<Matrix> values;  // [dv, C]
  Memory memory;
};
absl::StatusOr<Absorbed> PackAbsorbedHeads(Machine& machine, const HostMatrix& kv_b, const MlaShape& shape);

// Where a step's tensors are.
struct AttentionTensors {
  TensorView out;
  TensorView q;
  const LatentCache& cache;
  const Batch& batch;
  const MlaShape& shape;
};

// Lists of work, kept between calls so that they need no memory after the first.
struct AttentionPlan {
  struct PromptTask {
    int32_t sequence = 0;
    int32_t head = 0;
    int32_t first_row = 0;  // of the sequence's prompt rows
    int32_t num_rows = 0;
  };
  struct GeneratedRow {
    int32_t sequence = 0;
    int32_t row = 0;           // of q and out
    int32_t num_visible = 0;   // positions it attends to
    int32_t piece_length = 0;  // positions per piece
    int32_t first_piece = 0;   // in the list of all pieces
    int32_t num_pieces() const { return (num_visible + piece_length - 1) / piece_length; }
  };
  std::vector<PromptTask> prompt;
  std::vector<GeneratedRow> generated;
};

void AttendPrompt(Machine& machine, AttentionPlan& plan, const AttentionTensors& tensors, const Matrix& kv_b);
void AttendGenerated(Machine& machine, AttentionPlan& plan, const AttentionTensors& tensors, const Absorbed& weight);

}  // namespace weir::kernels::cpu
