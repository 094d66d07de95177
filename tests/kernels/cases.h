#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tests/kernels/rig.h"

// The parity table: one list of cases that every backend runs and whose results are compared with the reference's.

namespace weir::kernels {

// How far from the reference a result may be.  Exact: both zero.  A backend whose activations are BF16 gets half a unit
// of that format on top.
struct Tolerance {
  double largest = 0.0;  // of any element, as a share of its row's magnitude
  double rms = 0.0;      // root mean square over the whole result, as a share of the reference's
};

// Sums of f32 in another order, elementary functions within a few units: nothing that could hide a different formula.
inline constexpr Tolerance kExact{0.0, 0.0};
inline constexpr Tolerance kNormTolerance{2e-6, 1e-6};
inline constexpr Tolerance kRopeTolerance{1e-6, 3e-7};
inline constexpr Tolerance kLinearTolerance{1e-5, 5e-6};
// A value just between two of BF16 (or e4m3) may round either way after an f32 sum in another order.  Rare, so the mean
// stays small: a rounding left out or done twice shows there.
inline constexpr Tolerance kBF16CacheTolerance{5e-3, 2e-4};
inline constexpr Tolerance kMlpF32Tolerance{2e-5, 1e-5};
inline constexpr Tolerance kMlpHalfTolerance{3e-3, 4e-4};
inline constexpr Tolerance kMlpFp8Tolerance{3e-2, 6e-3};
// Attention is f32.  Over a BF16 cache a backend may round its factors to BF16 (kernels/backend.h), and says so.
inline constexpr Tolerance kAttentionTolerance{3e-5, 1e-5};
inline constexpr Tolerance kRoundedOutputTolerance{4e-3, 2.5e-3};
inline constexpr Tolerance kRoundedAttentionTolerance{1.5e-2, 5e-3};
// Of scores in the hundreds: an error is a share of the score, and e^score is off by that much more.
inline constexpr Tolerance kSharpAttentionTolerance{2e-4, 3e-5};
inline constexpr Tolerance kRoundedSharpAttentionTolerance{0.3, 4e-2};
inline constexpr Tolerance kRouteTolerance{2e-6, 1e-6};
inline constexpr Tolerance kLogprobTolerance{1e-5, 1e-5};

struct Result {
  std::string name;
  Values values;
  Tolerance tolerance;
  // What an error in a row is measured by, where the row's largest element may be small by cancellation; may be empty.
  std::vector<double> magnitudes;
};

struct ParityCase {
  std::string name;  // "Linear/bf16/3x129x5"
  std::function<std::vector<Result>(Rig&)> run;
  int64_t padding = 0;  // columns between the rows of every tensor
};

std::vector<ParityCase> LinearCases();     // Linear, Mlp, Experts
std::vector<ParityCase> AttentionCases();  // WriteLatent, PromptAttention, GeneratedAttention
std::vector<ParityCase> RouterCases();
std::vector<ParityCase> OtherCases();  // memory, Embed, norms, Rope, Add, GatherSampleRows, Sample

const std::vector<ParityCase>& AllCases();

// Empty, or the first result that is too far from the reference's, by the tolerance stated in `results`, and by how
// much.
std::string Difference(const std::vector<Result>& reference, const std::vector<Result>& results,
                       DType activation_dtype);

}  // namespace weir::kernels
