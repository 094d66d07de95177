#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cpu/machine.h"
#include "kernels/cpu/matrix.h"

// SwiGLU layers: dense, shared and routed.
//
// Two parallel phases.  First gate and up: their panels alternate in memory, so one product gives both for the same 16
// columns, and silu(gate) * up leaves the cache already rounded for the next product.  Then down: a task is a few
// panels of the output for *all* experts, so that skewed loads leave no thread idle, and each token's experts are added
// in ascending id without a buffer between.

namespace weir::kernels::cpu {

// Owns nothing.
struct SwiGlu {
  Matrix gate_up;  // panel 2i of gate, panel 2i + 1 of up
  Matrix down;
  int64_t intermediate = 0;
  int64_t num_panel_pairs() const { return gate_up.num_panels() / 2; }
};

struct PackedMlps {
  std::vector<SwiGlu> mlps;
  Memory panels;
  Memory scales;
  int64_t num_bytes() const { return panels.num_bytes() + scales.num_bytes(); }
};

// INVALID_ARGUMENT names what is wrong with which matrix.
absl::StatusOr<PackedMlps> PackSwiGlus(Machine& machine, std::span<const HostMlp> mlps, ScaleFormat format);

// Lists of work, kept between calls so that they need no memory after the first.
struct SwiGluPlan {
  // Consecutive rows that one SwiGLU serves.
  struct Segment {
    const SwiGlu* mlp = nullptr;
    int64_t first_row = 0;
    int64_t num_rows = 0;
  };
  // A cut of a segment's rows, with the first of its tasks in the list of all.
  struct Cut {
    Segment segment;
    int64_t first_task = 0;
  };
  // A row that an expert computes.
  struct Entry {
    int32_t token = 0;
    float weight = 0.0f;
  };
  std::vector<Segment> segments;
  std::vector<Cut> cuts;
  std::vector<Entry> entries;      // by expert, then by token
  std::vector<int32_t> first_row;  // of each expert held, and one more: entries.size()
  std::vector<int32_t> next_row;
};

// out[T, D] = mlp(x).
void ApplyMlp(Machine& machine, SwiGluPlan& plan, const SwiGlu& mlp, TensorView out, TensorView x);

// Backend::Experts.  local_of_id[id] is the place of a logical expert in `experts`, -1 where it is not held; ids beyond
// it are not held.
void ApplyExperts(Machine& machine, const PackedMlps& experts, std::span<const int32_t> local_of_id, SwiGluPlan& plan,
                  TensorView out, TensorView x, TensorView expert_ids, TensorView expert_weights, int64_t* load);

}  // namespace weir::kernels::cpu
