#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "tests/kernels/rig.h"

// Sequences with a query and a cache row at every position, and steps that compute any part of them: the same rows can
// be asked for in one piece or in many, alone or among others.

namespace weir::kernels {

struct AttentionSequences {
  AttentionSequences(Random& random, const MlaShape& mla_shape, const WeightKind& weights, DType cache_element,
                     const std::vector<int32_t>& lengths, float query_scale = 1.0f);

  MlaShape shape;
  HostWeight kv_b;
  DType cache_dtype;
  int32_t block_size = 64;
  std::vector<Values> queries;  // per sequence, [length, H * (dn + dr)], rotated
  std::vector<Values> latents;  // per sequence, [length, C + dr], as the cache holds them
};

// One sequence's share of a step.
struct SequencePart {
  int32_t sequence = 0;
  int32_t first_position = 0;
  int32_t num_prompt_rows = 0;
  int32_t num_generated_rows = 0;

  int32_t num_rows() const { return num_prompt_rows + num_generated_rows; }
  int32_t end() const { return first_position + num_rows(); }
};

// out[rows of all parts, H * dv] of one step.  Block ids are drawn by `block_order`; what the step may not look at in
// the cache is NaN.
Values Attend(Rig& rig, const AttentionSequences& sequences, std::span<const SequencePart> parts,
              std::string_view block_order);

}  // namespace weir::kernels
