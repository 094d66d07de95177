#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/machine.h"
#include "kernels/cpu/matrix.h"

// What both forms of attention work with: a sequence's cache rows, weights made on the fly, memory cut into parts.

namespace weir::kernels::cpu {

// F32 or BF16 for the operands of attention's own products.
inline DType OperandType(const Machine& machine, const LatentCache& cache) {
  return cache.rows.dtype == DType::kBF16 && StoresInputAsBf16(machine, DType::kBF16) ? DType::kBF16 : DType::kF32;
}

// The cache rows of one sequence.
class Context {
 public:
  Context(const AttentionTensors& tensors, const SequenceRows& sequence)
      : cache_(tensors.cache),
        blocks_(std::span(tensors.batch.block_tables).subspan(sequence.block_table_begin, sequence.num_blocks)) {}

  const uint8_t* Row(int64_t position) const {
    const int64_t block = blocks_[position / cache_.block_size];
    return static_cast<const uint8_t*>(cache_.rows.data) +
           (block * cache_.block_size + position % cache_.block_size) * stride_bytes();
  }
  // Positions from `position` on that lie behind each other in memory, at most `limit`.
  int64_t RunLength(int64_t position, int64_t limit) const {
    return std::min<int64_t>(limit, cache_.block_size - position % cache_.block_size);
  }
  int64_t stride_bytes() const { return cache_.rows.row_stride * SizeOf(cache_.rows.dtype); }
  DType dtype() const { return cache_.rows.dtype; }
  int64_t num_positions() const { return static_cast<int64_t>(blocks_.size()) * cache_.block_size; }

 private:
  const LatentCache& cache_;
  std::span<const int32_t> blocks_;
};

inline const float* FloatRow(const TensorView& view, int64_t row) {
  return static_cast<const float*>(view.data) + row * view.row_stride;
}

// A small weight made on the fly: panels of 16 outputs in `memory`.
inline Matrix OnTheFly(DType dtype, int64_t outputs, int64_t inputs, const uint8_t* memory) {
  HostMatrix shape;
  shape.dtype = dtype;
  shape.rows = outputs;
  shape.cols = inputs;
  Matrix matrix = LayoutOf(shape, ScaleFormat::kF32);
  matrix.panels = memory;
  return matrix;
}

// Hands out parts of one piece of memory, each on a line of its own.  With no memory it only adds up sizes.
class Arena {
 public:
  explicit Arena(uint8_t* memory) : memory_(memory) {}
  template <typename T>
  T* Take(int64_t count) {
    T* result = memory_ == nullptr ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += RoundUp(count * static_cast<int64_t>(sizeof(T)), kLineBytes);
    return result;
  }
  int64_t used() const { return used_; }

 private:
  uint8_t* memory_;
  int64_t used_ = 0;
};

inline int64_t OperandRowBytes(const Machine& machine, DType dtype, int64_t inputs) {
  return InputRowBytes(machine, OnTheFly(dtype, 0, inputs, nullptr));
}

// out[n] = elements of a row as f32.
inline void Widen(const Machine& machine, DType dtype, const uint8_t* row, float* out, int64_t n) {
  if (dtype == DType::kBF16) {
    machine.ops.widen_bf16(out, reinterpret_cast<const uint16_t*>(row), n);
  } else {
    std::memcpy(out, row, static_cast<size_t>(n) * sizeof(float));
  }
}

// e^(score * scale - max) of the first n scores into `out` (an operand row), zeros up to `padded`; returns the sum.
inline float Exponentiate(const Machine& machine, DType dtype, uint8_t* out, const float* scores, float scale,
                          float max, int64_t n, int64_t padded) {
  const int64_t element_bytes = InputElementBytes(machine, dtype);
  std::memset(out + n * element_bytes, 0, static_cast<size_t>((padded - n) * element_bytes));
  if (dtype == DType::kBF16) return machine.ops.exp_to_bf16(reinterpret_cast<uint16_t*>(out), scores, scale, max, n);
  return machine.ops.exp_to_f32(reinterpret_cast<float*>(out), scores, scale, max, n);
}

}  // namespace weir::kernels::cpu
