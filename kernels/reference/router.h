#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"

// Which experts a token goes to, and with what weight (spec 2.7, 2.8).

namespace weir::kernels::reference {

struct Choice {
  int32_t expert = 0;
  float weight = 0.0f;
};

// The K choices for logits[E], in ascending expert id.  `bias` may be empty.  Scores, biased scores and group scores
// are f32: they decide ties, which go to the lower id.
std::vector<Choice> Route(std::span<const float> logits, std::span<const float> bias, const RouterShape& shape);

}  // namespace weir::kernels::reference
