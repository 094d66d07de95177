#include "worker/communicator/rank_sum.h"

#include <algorithm>
#include <cstring>

namespace weir::worker {
namespace {

// A tile of sums stays in the first-level cache while the inputs stream by.
constexpr size_t kTile = 1024;

}  // namespace

void SumInRankOrder(std::span<const float* const> inputs, float* out, size_t num_elements) {
  float tile[kTile];
  for (size_t begin = 0; begin < num_elements; begin += kTile) {
    const size_t n = std::min(kTile, num_elements - begin);
    std::memcpy(tile, inputs[0] + begin, n * sizeof(float));
    for (const float* input : inputs.subspan(1)) {
      for (size_t i = 0; i < n; ++i) tile[i] += input[begin + i];
    }
    std::memcpy(out + begin, tile, n * sizeof(float));
  }
}

size_t PartBegin(size_t num_elements, size_t world_size, size_t r) {
  if (r == world_size) return num_elements;
  const size_t num_cuts = num_elements / kCutElements;
  return num_cuts * r / world_size * kCutElements;
}

}  // namespace weir::worker
