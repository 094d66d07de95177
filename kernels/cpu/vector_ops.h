#pragma once

#include <cstdint>

#include "kernels/backend.h"

// Operations on one row of f32, for one instruction set: everything that is not a product with a weight.  Each has one
// fixed order of additions for a length.  Rows need not be aligned.

namespace weir::kernels::cpu {

struct VectorOps {
  // out = x / sqrt(mean(x^2) + eps) * weight; out may be x.
  void (*rms_norm)(float* out, const float* x, const float* weight, int64_t n, float eps);
  void (*add)(float* a, const float* b, int64_t n);                       // a += b
  void (*add_scaled)(float* a, const float* b, float factor, int64_t n);  // a += factor * b
  void (*scale)(float* out, const float* x, float factor, int64_t n);     // out = factor * x; out may be x
  void (*silu_multiply)(float* out, const float* gate, const float* up,
                        int64_t n);  // silu(gate) * up; out may be either
  // Turns the pairs (2i, 2i + 1) by angles: cos in the even places, sin in the odd.  n is even.
  void (*rotate)(float* x, const float* angles, int64_t n);

  void (*widen_bf16)(float* out, const uint16_t* x, int64_t n);
  void (*round_to_bf16)(uint16_t* out, const float* x, int64_t n);  // nearest, ties to even; NaN stays NaN
  void (*round_through_bf16)(float* out, const float* x, int64_t n);
  // One block of an FP8 layer's input (spec 4.2): its e4m3 values, as BF16 or f32; returns the scale.
  float (*quantize_to_bf16)(uint16_t* out, const float* x, int64_t n, ScaleFormat format);
  float (*quantize_to_f32)(float* out, const float* x, int64_t n, ScaleFormat format);

  float (*max)(const float* x, int64_t n);                    // n > 0
  bool (*is_within)(const float* x, float limit, int64_t n);  // every |x| < limit; false for NaN
  // out = e^(x * factor - offset); returns the sum of what was written.  To BF16: the sum of the rounded values.
  float (*exp_to_bf16)(uint16_t* out, const float* x, float factor, float offset, int64_t n);
  float (*exp_to_f32)(float* out, const float* x, float factor, float offset, int64_t n);

  // Two rows to pairs of BF16: a[i] in the lower half of the word, b[i] in the upper.  Word i goes to
  // out[i / 16 * stride + i % 16]: a line of each panel.
  void (*interleave)(uint32_t* out, int64_t stride, const uint16_t* a, const uint16_t* b, int64_t n);
  void (*round_and_interleave)(uint32_t* out, int64_t stride, const float* a, const float* b, int64_t n);
};

// The fastest of this processor, and those of fixed instruction sets (null where this build or processor lacks it).
const VectorOps& BestVectorOps();
const VectorOps* Avx2VectorOps();
const VectorOps* Avx512VectorOps();

}  // namespace weir::kernels::cpu
