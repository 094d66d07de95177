#pragma once

#include <cstddef>
#include <span>

namespace weir::worker {

// out[i] = ((inputs[0][i] + inputs[1][i]) + inputs[2][i]) + ... for i < num_elements.  out may be one of the inputs.
void SumInRankOrder(std::span<const float* const> inputs, float* out, size_t num_elements);

// Where the part of rank r begins when num_elements are cut into world_size parts; r = world_size gives the end.
// Parts differ by at most kCutElements.
inline constexpr size_t kCutElements = 16;  // a cache line of floats: parts do not share one
size_t PartBegin(size_t num_elements, size_t world_size, size_t r);

}  // namespace weir::worker
