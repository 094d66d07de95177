#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "kernels/dtype.h"

// Checkpoints of any shape with random weights, for benchmarks and tests: the tensors that a config asks for, in the
// published layout, of sizes that keep activations near 1.  The same options give the same bytes.

namespace weir::tools {

struct RandomCheckpoint {
  // The text of config.json.  With a quantization_config, tensors that may be FP8 are F8_E4M3 with scales.
  std::string config_json;
  kernels::DType dtype = kernels::DType::kBF16;  // of the others: kBF16, kF16 or kF32
  uint64_t seed = 1;
  int64_t max_file_bytes = int64_t{1} << 30;  // of tensor data; larger checkpoints are sharded, with an index
};

// Writes config.json and the weights into `directory`, which appears only when it is complete; what was there under
// that name is an error.  `progress(bytes done, bytes total)` may be null.
absl::Status WriteRandomCheckpoint(const RandomCheckpoint& checkpoint, const std::string& directory,
                                   const std::function<void(int64_t, int64_t)>& progress);

}  // namespace weir::tools
