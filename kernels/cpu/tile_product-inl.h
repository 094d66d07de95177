#pragma once

#include <cstdint>

#include "kernels/cpu/tile_kernels.h"

// The loops of TileKernels over a vector type V; each isa's file includes this once.  Everything has internal linkage,
// because each file is compiled for another instruction set: a function shared between them could end up in the wrong
// one.  Includes no standard header that defines functions, for the same reason.
//
// V has
//   Vec                          16 floats: Zero(), Load(p), Store(p, v), LoadFirst(p, n), StoreFirst(p, v, n),
//                                Broadcast(p), MultiplyAdd(a, b, c) = a * b + c, Multiply(a, b)
//   Line                         2 inputs x 16 outputs: LoadLine(p) of BF16, DecodeFp8(p, line) into two of them,
//                                StoreDecoded(p, line), LoadDecoded(p), kDecodedBytes
//   Pair                         2 inputs of one row, broadcast: LoadPair(p), kPairBytes
//   AddProduct(acc, line, pair)  acc + even input + odd input, in the isa's fixed order
//   kDecodedFp8Factor            a power of two that decoded weights still lack
//   kRowsOf*                     rows of a block for 1, 2 and 4 panels: as many as the registers hold

namespace weir::kernels::cpu {
namespace {

// A block of rows and panels in the registers at once.
struct Place {
  int32_t row = 0;
  int32_t panel = 0;
  const uint8_t* ahead = nullptr;  // what to prefetch while this block runs; null = nothing
  int64_t ahead_step = 0;          // bytes per line
};

// Pointers to M rows of activations.  Every third row has one of its own, so that the other two are base + stride and
// base + 2 * stride: addresses that x86 forms for free, and M pointers would not fit its registers.
template <int M>
struct RowPointers {
  const uint8_t* base[(M + 2) / 3];
  int64_t stride;

  RowPointers(const TileProduct& p, int32_t row) : stride(p.x_stride_bytes) {
    for (int i = 0; i < (M + 2) / 3; ++i) base[i] = p.x + (row + 3 * i) * stride;
  }
  const uint8_t* operator[](int m) const { return base[m / 3] + (m % 3) * stride; }
  void Advance(int bytes) {
#pragma GCC unroll 8
    for (int i = 0; i < (M + 2) / 3; ++i) base[i] += bytes;
  }
};

template <class V, int M, int N>
struct Block {
  using Vec = typename V::Vec;
  Vec sum[M][N];

  void Zero() {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[m][n] = V::Zero();
    }
  }

  // fn(float* out, count of outputs that exist, row, panel) for every vector of the block.
  template <class Fn>
  static void ForEachVec(const TileProduct& p, const Place& at, Fn fn) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const int32_t first = (at.panel + n) * kPanelOutputs;
        fn(p.out + (at.row + m) * p.out_stride + first, p.num_outputs - first, m, n);
      }
    }
  }
  void Load(const TileProduct& p, const Place& at) {
    ForEachVec(p, at, [&](const float* out, int32_t count, int m, int n) {
      sum[m][n] = count >= kPanelOutputs ? V::Load(out) : V::LoadFirst(out, count);
    });
  }
  void Store(const TileProduct& p, const Place& at) const {
    ForEachVec(p, at, [&](float* out, int32_t count, int m, int n) {
      count >= kPanelOutputs ? V::Store(out, sum[m][n]) : V::StoreFirst(out, sum[m][n], count);
    });
  }

  void AddLines(const typename V::Line (&line)[N], const RowPointers<M>& x, int offset) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const typename V::Pair pair = V::LoadPair(x[m] + offset);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) V::AddProduct(sum[m][n], line[n], pair);
    }
  }

  // out += sum * (scale of the row's block * scale of the panel's block).
  void AddScaled(const TileProduct& p, const Place& at, int32_t block, bool is_first) const {
    ForEachVec(p, at, [&](float* out, int32_t count, int m, int n) {
      const float* panel_scale = p.panel_scales + (at.panel + n) * p.panel_scales_stride;
      const Vec row_scale = V::Broadcast(p.x_scales + (at.row + m) * p.x_scales_stride + block);
      Vec scale = V::Multiply(row_scale, p.has_scale_per_output ? V::Load(panel_scale + block * kPanelOutputs)
                                                                : V::Broadcast(panel_scale + block));
      if constexpr (V::kDecodedFp8Factor != 1.0f) scale = V::Multiply(scale, V::Set(V::kDecodedFp8Factor));
      if (count >= kPanelOutputs) {
        const Vec before = is_first ? V::Zero() : V::Load(out);
        V::Store(out, V::MultiplyAdd(sum[m][n], scale, before));
      } else {
        const Vec before = is_first ? V::Zero() : V::LoadFirst(out, count);
        V::StoreFirst(out, V::MultiplyAdd(sum[m][n], scale, before), count);
      }
    });
  }
};

template <int N>
inline void Prefetch(const uint8_t*& ahead, int64_t step) {
  if (ahead == nullptr) return;
#pragma GCC unroll 4
  for (int n = 0; n < N; ++n) __builtin_prefetch(ahead + n * step, 0, 2);
  ahead += N * step;
}

template <class V>
struct Bf16Product {
  static constexpr const int (&kRows)[3] = V::kRowsOfBf16;
  static constexpr int kInputsPerLine = 2;

  template <int M, int N>
  static void Run(const TileProduct& p, Place at) {
    Block<V, M, N> block;
    if (p.accumulates) {
      block.Load(p, at);
    } else {
      block.Zero();
    }
    RowPointers<M> x(p, at.row);
    const uint8_t* w = p.panels + at.panel * p.panel_bytes;
    for (int32_t k = 0; k < p.num_inputs; k += 4) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        typename V::Line line[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) line[n] = V::LoadLine(w + n * p.panel_bytes + half * kLineBytes);
        block.AddLines(line, x, half * V::kPairBytes);
        Prefetch<N>(at.ahead, at.ahead_step);
      }
      w += 2 * kLineBytes;
      x.Advance(2 * V::kPairBytes);
    }
    block.Store(p, at);
  }
};

template <class V>
struct F32Product {
  static constexpr const int (&kRows)[3] = V::kRowsOfF32;
  static constexpr int kInputsPerLine = 1;

  template <int M, int N>
  static void Run(const TileProduct& p, Place at) {
    using Vec = typename V::Vec;
    Block<V, M, N> block;
    if (p.accumulates) {
      block.Load(p, at);
    } else {
      block.Zero();
    }
    RowPointers<M> x(p, at.row);
    const uint8_t* w = p.panels + at.panel * p.panel_bytes;
    for (int32_t k = 0; k < p.num_inputs; k += 2) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        Vec line[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          line[n] = V::Load(reinterpret_cast<const float*>(w + n * p.panel_bytes + half * kLineBytes));
        }
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
          const Vec input = V::Broadcast(reinterpret_cast<const float*>(x[m] + half * 4));
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) block.sum[m][n] = V::MultiplyAdd(line[n], input, block.sum[m][n]);
        }
        Prefetch<N>(at.ahead, at.ahead_step);
      }
      w += 2 * kLineBytes;
      x.Advance(2 * 4);
    }
    block.Store(p, at);
  }
};

// Inputs of FP8 block `block`, padding included.
inline int32_t InputsOfBlock(const TileProduct& p, int32_t begin) {
  const int32_t inputs = begin == 0 ? p.first_block_inputs : kFp8BlockInputs;
  return inputs < p.num_inputs - begin ? inputs : p.num_inputs - begin;
}

// Few rows: lines are decoded in registers, once per block of rows.
template <class V>
struct Fp8Product {
  static constexpr const int (&kRows)[3] = V::kRowsOfFp8;
  static constexpr int kInputsPerLine = 4;

  template <int M, int N>
  static void Run(const TileProduct& p, Place at) {
    RowPointers<M> x(p, at.row);
    const uint8_t* w = p.panels + at.panel * p.panel_bytes;
    int32_t block_index = 0;
    for (int32_t begin = 0; begin < p.num_inputs; ++block_index) {
      const int32_t inputs = InputsOfBlock(p, begin);
      Block<V, M, N> block;
      block.Zero();
      for (int32_t k = 0; k < inputs; k += 4) {
        typename V::Line first[N], second[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
          typename V::Line line[2];
          V::DecodeFp8(w + n * p.panel_bytes, line);
          first[n] = line[0];
          second[n] = line[1];
        }
        block.AddLines(first, x, 0);
        block.AddLines(second, x, V::kPairBytes);
        Prefetch<N>(at.ahead, at.ahead_step);
        w += kLineBytes;
        x.Advance(2 * V::kPairBytes);
      }
      block.AddScaled(p, at, block_index, begin == 0 && !p.accumulates);
      begin += inputs;
    }
  }
};

// Panels and rows of a block for `num_rows` rows: as many panels as leave room for a sensible number of rows.
struct Blocking {
  int32_t panels_log2 = 0;
  int32_t num_row_blocks = 1;
};
inline Blocking BlockingOf(const int (&rows)[3], int32_t num_rows) {
  for (int32_t log2 = 2; log2 > 0; --log2) {
    // Several blocks of rows are worth it with two panels (the second block finds the weights in cache), not with four.
    if (num_rows <= rows[log2] || (log2 == 1 && rows[1] >= 4)) {
      return {log2, (num_rows + rows[log2] - 1) / rows[log2]};
    }
  }
  return {0, (num_rows + rows[0] - 1) / rows[0]};
}

template <class Product, int N, int M>
void RunRows(const TileProduct& p, const Place& at, int32_t rows) {
  constexpr int kLog2 = N == 4 ? 2 : N - 1;
  if constexpr (M > 0) {
    if constexpr (M <= Product::kRows[kLog2]) {
      if (rows == M) return Product::template Run<M, N>(p, at);
    }
    RunRows<Product, N, M - 1>(p, at, rows);
  }
}

// What the blocks of a group of N panels prefetch: each line of theirs `step` bytes.
struct Ahead {
  const uint8_t* first = nullptr;
  int64_t step = 0;
};
inline Ahead AheadOf(const TileProduct& p, int32_t panel, int32_t panels, int32_t num_row_blocks, int64_t num_lines) {
  if (p.ahead != nullptr) {
    const int64_t lines_of_panel = num_row_blocks * num_lines,
                  num_panels = (p.num_outputs + kPanelOutputs - 1) / kPanelOutputs;
    const int64_t step = p.ahead_bytes / (num_panels * lines_of_panel) + 1;
    return {p.ahead + panel * lines_of_panel * step, step};
  }
  if (!p.prefetches_next || num_row_blocks > kLineBytes) return {};
  return {p.panels + (panel + panels) * p.panel_bytes, kLineBytes / num_row_blocks};
}

template <class Product, int N>
void RunGroup(const TileProduct& p, int32_t panel, int32_t num_row_blocks) {
  constexpr int kLog2 = N == 4 ? 2 : N - 1;
  const int32_t rows = p.num_rows / num_row_blocks, longer = p.num_rows % num_row_blocks;
  Place at{0, panel};
  const int64_t num_lines = p.num_inputs / Product::kInputsPerLine;
  const Ahead ahead = AheadOf(p, panel, N, num_row_blocks, num_lines);
  at.ahead_step = ahead.step;
  for (int32_t i = 0; i < num_row_blocks; ++i) {
    const int32_t count = rows + (i < longer ? 1 : 0);
    at.ahead = ahead.first == nullptr ? nullptr : ahead.first + i * num_lines * N * ahead.step;
    RunRows<Product, N, Product::kRows[kLog2]>(p, at, count);
    at.row += count;
  }
}

template <class Product>
void RunPanels(const TileProduct& p, int32_t num_panels, Blocking blocking) {
  int32_t panel = 0;
  if (blocking.panels_log2 == 2) {
    for (; panel + 4 <= num_panels; panel += 4) RunGroup<Product, 4>(p, panel, blocking.num_row_blocks);
  }
  if (blocking.panels_log2 >= 1) {
    for (; panel + 2 <= num_panels; panel += 2) RunGroup<Product, 2>(p, panel, blocking.num_row_blocks);
  }
  for (; panel < num_panels; ++panel) RunGroup<Product, 1>(p, panel, blocking.num_row_blocks);
}

inline int32_t NumPanels(const TileProduct& p) { return (p.num_outputs + kPanelOutputs - 1) / kPanelOutputs; }

template <class Product>
void Multiply(const TileProduct& p) {
  if (p.num_rows > 0) RunPanels<Product>(p, NumPanels(p), BlockingOf(Product::kRows, p.num_rows));
}

// Many rows: a block of 128 inputs is decoded once into L1, and then serves all rows.
template <class V>
struct DecodedFp8Product {
  static constexpr const int (&kRows)[3] = V::kRowsOfBf16;
  static constexpr int kInputsPerLine = 4;

  // p is one block of inputs here; its panels hold decoded lines.
  template <int M, int N>
  static void Run(const TileProduct& p, Place at) {
    Block<V, M, N> block;
    block.Zero();
    RowPointers<M> x(p, at.row);
    const uint8_t* w = p.panels + at.panel * p.panel_bytes;
    for (int32_t k = 0; k < p.num_inputs; k += 2) {
      typename V::Line line[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) line[n] = V::LoadDecoded(w + n * p.panel_bytes);
      block.AddLines(line, x, 0);
      w += V::kDecodedBytes;
      x.Advance(V::kPairBytes);
    }
    block.AddScaled(p, at, 0, !p.accumulates);
  }

  static void Decode(uint8_t* decoded, const uint8_t* lines, int32_t num_inputs, const uint8_t* ahead) {
    for (int32_t k = 0; k < num_inputs; k += 4, lines += kLineBytes, decoded += 2 * V::kDecodedBytes) {
      typename V::Line line[2];
      V::DecodeFp8(lines, line);
      V::StoreDecoded(decoded, line[0]);
      V::StoreDecoded(decoded + V::kDecodedBytes, line[1]);
      if (ahead != nullptr) __builtin_prefetch(ahead + (k / 4) * kLineBytes, 0, 2);
    }
  }
};

template <class V>
void MultiplyDecodedFp8(const TileProduct& p) {
  constexpr int kPanels = 2, kBytes = kFp8BlockInputs / 2 * V::kDecodedBytes;
  alignas(64) uint8_t decoded[kPanels * kBytes];
  for (int32_t panel = 0; panel < NumPanels(p); panel += kPanels) {
    const int32_t first_output = panel * kPanelOutputs;
    TileProduct block = p;
    block.panels = decoded;
    block.panel_bytes = kBytes;
    block.out = p.out + first_output;
    const int32_t outputs = p.num_outputs - first_output;
    block.num_outputs = outputs < kPanels * kPanelOutputs ? outputs : kPanels * kPanelOutputs;
    block.prefetches_next = false;
    block.ahead = nullptr;
    block.panel_scales = p.panel_scales + panel * p.panel_scales_stride;
    for (int32_t begin = 0; begin < p.num_inputs; begin += block.num_inputs) {
      block.num_inputs = InputsOfBlock(p, begin);
      for (int32_t n = 0; n < NumPanels(block); ++n) {
        const uint8_t* lines = p.panels + (panel + n) * p.panel_bytes + begin / 4 * kLineBytes;
        DecodedFp8Product<V>::Decode(decoded + n * kBytes, lines, block.num_inputs,
                                     p.prefetches_next ? lines + kPanels * p.panel_bytes : nullptr);
      }
      block.accumulates = p.accumulates || begin > 0;
      Multiply<DecodedFp8Product<V>>(block);
      block.x += block.num_inputs / 2 * V::kPairBytes;
      ++block.x_scales;
      block.panel_scales += p.has_scale_per_output ? kPanelOutputs : 1;
    }
  }
}

template <class V>
void MultiplyFp8(const TileProduct& p) {
  // Decoding in registers costs each block of rows again; from the third block on, decoding into L1 is cheaper.
  constexpr int kRows = V::kRowsOfFp8[1] > 1 ? V::kRowsOfFp8[1] : V::kRowsOfFp8[0];
  p.num_rows <= 2 * kRows ? Multiply<Fp8Product<V>>(p) : MultiplyDecodedFp8<V>(p);
}

// ---- the order of FP8 lines ----

typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef uint32_t Words4 __attribute__((vector_size(16)));

// The 16 outputs' input 0, then their input 1, 2 and 3.
struct InputMajor {
  static void Order(Bytes16 (&lane)[4]) {  // lane l: the inputs of outputs 4l to 4l + 3
    Words4 words[4];
#pragma GCC unroll 4
    for (int l = 0; l < 4; ++l) {
      words[l] = reinterpret_cast<Words4>(
          __builtin_shufflevector(lane[l], lane[l], 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      lane[i] = reinterpret_cast<Bytes16>(Words4{words[0][i], words[1][i], words[2][i], words[3][i]});
    }
  }
};

// As the unpacks of Avx512Bf16::DecodeFp8 work inside 128-bit lanes: lane l holds outputs 4l to 4l + 3, first their
// inputs 0 and 1, then 2 and 3.
struct PairsInLanes {
  static void Order(Bytes16 (&lane)[4]) {
#pragma GCC unroll 4
    for (int l = 0; l < 4; ++l) {
      lane[l] = __builtin_shufflevector(lane[l], lane[l], 0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    }
  }
};

template <class Form>
bool OrderFp8(uint32_t* lines, int64_t num_lines) {
  Bytes16 nan = {};
  for (; num_lines > 0; --num_lines, lines += kPanelOutputs) {
    Bytes16 lane[4];
#pragma GCC unroll 4
    for (int l = 0; l < 4; ++l) {
      __builtin_memcpy(&lane[l], lines + 4 * l, sizeof(Bytes16));
      nan |= reinterpret_cast<Bytes16>((lane[l] & 0x7f) == 0x7f);
    }
    Form::Order(lane);
#pragma GCC unroll 4
    for (int l = 0; l < 4; ++l) __builtin_memcpy(lines + 4 * l, &lane[l], sizeof(Bytes16));
  }
  for (int i = 0; i < 16; ++i) {
    if (nan[i] != 0) return false;
  }
  return true;
}

}  // namespace
}  // namespace weir::kernels::cpu
