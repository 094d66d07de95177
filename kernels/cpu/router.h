#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"

namespace weir::kernels::cpu {

// The router of spec 2.7 and 2.8 for one row at a time.  Scores are computed in double and rounded to f32 once: they
// decide ties.  Keeps its memory between rows.
class Router {
 public:
  explicit Router(const RouterShape& shape);

  // bias may be null.  ids[K] ascending, weights[K].
  void Route(const float* logits, const float* bias, int32_t* ids, float* weights);

 private:
  void Score(const float* logits);
  void MaskGroups();
  float GroupScore(std::span<const float> group) const;
  // The `count` largest of `values` into chosen_, lower index first on a tie, in ascending index.
  void Choose(std::span<const float> values, int32_t count);

  RouterShape shape_;
  std::vector<float> scores_, selection_, group_scores_;
  std::vector<int32_t> order_, chosen_;
};

}  // namespace weir::kernels::cpu
