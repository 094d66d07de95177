#include "kernels/cpu/attention.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/check.h"

namespace weir::kernels::cpu {
namespace {

constexpr int64_t AlignUp(int64_t value, int64_t alignment) { return (value + alignment - 1) / alignment * alignment; }

// Floats or BF16 for the operands of attention's own products.
DType OperandType(const Machine& machine, const LatentCache& cache) {
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

const float* FloatRow(const TensorView& view, int64_t row) {
  return static_cast<const float*>(view.data) + row * view.row_stride;
}

// A small weight made on the fly: panels of 16 outputs in `memory`.
Matrix OnTheFly(DType dtype, int64_t outputs, int64_t inputs, const uint8_t* memory) {
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
    used_ += AlignUp(count * static_cast<int64_t>(sizeof(T)), kLineBytes);
    return result;
  }
  int64_t used() const { return used_; }

 private:
  uint8_t* memory_;
  int64_t used_ = 0;
};

int64_t OperandRowBytes(const Machine& machine, DType dtype, int64_t inputs) {
  return InputRowBytes(machine, OnTheFly(dtype, 0, inputs, nullptr));
}

// out[n] = elements of a row as f32.
void Widen(const Machine& machine, DType dtype, const uint8_t* row, float* out, int64_t n) {
  if (dtype == DType::kBF16) {
    machine.ops.widen_bf16(out, reinterpret_cast<const uint16_t*>(row), n);
  } else {
    std::memcpy(out, row, static_cast<size_t>(n) * sizeof(float));
  }
}

// e^(score * scale - max) of the first n scores into `out` (an operand row), zeros up to `padded`; returns the sum.
float Exponentiate(const Machine& machine, DType dtype, uint8_t* out, const float* scores, float scale, float max,
                   int64_t n, int64_t padded) {
  const int64_t element_bytes = InputElementBytes(machine, dtype);
  std::memset(out + n * element_bytes, 0, static_cast<size_t>((padded - n) * element_bytes));
  if (dtype == DType::kBF16) return machine.ops.exp_to_bf16(reinterpret_cast<uint16_t*>(out), scores, scale, max, n);
  return machine.ops.exp_to_f32(reinterpret_cast<float*>(out), scores, scale, max, n);
}

// ---- the MHA form ----

constexpr int64_t kTilePositions = 128;   // context positions expanded at once; tiles begin at its multiples
constexpr int64_t kRowsAtOnce = 56;       // query rows whose scores are in cache at once: 4 blocks of 14
constexpr int64_t kMaxPromptRows = 2048;  // of one task

// One head of one sequence, for some of its prompt rows.
class PromptHead {
 public:
  PromptHead(const Machine& machine, const AttentionTensors& tensors, const Matrix& kv_b, uint8_t* memory)
      : machine_(machine),
        tensors_(tensors),
        shape_(tensors.shape),
        kv_b_(kv_b),
        dtype_(OperandType(machine, tensors.cache)),
        head_outputs_(shape_.qk_nope_head_dim + shape_.v_head_dim),
        expanded_stride_(AlignUp(head_outputs_, kPanelOutputs) + kPanelOutputs),
        query_bytes_(OperandRowBytes(machine, dtype_, shape_.qk_head_dim())),
        probability_bytes_(OperandRowBytes(machine, dtype_, kTilePositions)),
        latent_bytes_(InputRowBytes(machine, kv_b)) {
    Arena arena(memory);
    expanded_ = arena.Take<float>(kTilePositions * expanded_stride_);
    latents_ = arena.Take<uint8_t>(kTilePositions * latent_bytes_);
    latent_scales_ = arena.Take<float>(kTilePositions * kv_b.num_blocks);
    latent_row_ = arena.Take<float>(shape_.cache_width());
    keys_ = OnTheFly(dtype_, kTilePositions, shape_.qk_head_dim(), nullptr);
    keys_.panels = key_panels_ = arena.Take<uint8_t>(PanelsBytes(keys_));
    values_ = OnTheFly(dtype_, shape_.v_head_dim, kTilePositions, nullptr);
    values_.panels = value_panels_ = arena.Take<uint8_t>(PanelsBytes(values_));
    key_rows_ = arena.Take<uint8_t>(kPanelOutputs * query_bytes_);
    scores_ = arena.Take<float>(kRowsAtOnce * kTilePositions);
    probabilities_ = arena.Take<uint8_t>(kRowsAtOnce * probability_bytes_);
    decay_ = arena.Take<float>(kRowsAtOnce);
    queries_ = arena.Take<uint8_t>(kMaxPromptRows * query_bytes_);
    sums_ = arena.Take<float>(kMaxPromptRows * shape_.v_head_dim);
    max_ = arena.Take<float>(kMaxPromptRows);
    norm_ = arena.Take<float>(kMaxPromptRows);
    num_bytes_ = arena.used();
  }
  int64_t num_bytes() const { return num_bytes_; }

  void Run(const AttentionPlan::PromptTask& task) {
    const SequenceRows& sequence = tensors_.batch.sequences[task.sequence];
    const Context context(tensors_, sequence);
    head_ = task.head;
    num_rows_ = task.num_rows;
    first_position_ = int64_t{sequence.first_position} + task.first_row;
    const int64_t first_row = int64_t{sequence.first_row} + task.first_row;
    WEIR_CHECK(first_position_ + num_rows_ <= context.num_positions(), "a block table is too short");
    TakeQueries(first_row);
    for (int64_t tile = 0; tile < first_position_ + num_rows_; tile += kTilePositions) {
      const int64_t num_positions = std::min(kTilePositions, first_position_ + num_rows_ - tile);
      Expand(context, tile, num_positions);
      MakeKeys(context, tile, num_positions);
      MakeValues(num_positions);
      AttendTile(tile);
    }
    WriteResults(first_row);
  }

 private:
  void TakeQueries(int64_t first_row) {
    for (int64_t r = 0; r < num_rows_; ++r) {
      const float* q = FloatRow(tensors_.q, first_row + r) + int64_t{head_} * shape_.qk_head_dim();
      PrepareRow(machine_, keys_, q, queries_ + r * query_bytes_, nullptr);
    }
    std::memset(sums_, 0, static_cast<size_t>(num_rows_ * shape_.v_head_dim) * sizeof(float));
    std::fill_n(max_, num_rows_, -std::numeric_limits<float>::infinity());
    std::fill_n(norm_, num_rows_, 0.0f);
  }

  // kv_b's outputs of this head for the tile's latents: columns [skipped_, skipped_ + dn + dv) of expanded_.
  void Expand(const Context& context, int64_t tile, int64_t num_positions) {
    const int64_t first_output = int64_t{head_} * head_outputs_, first_panel = first_output / kPanelOutputs;
    skipped_ = first_output % kPanelOutputs;
    Product product{&kv_b_};
    product.first_panel = first_panel;
    product.prefetches_next = false;
    product.num_panels = (first_output + head_outputs_ + kPanelOutputs - 1) / kPanelOutputs - first_panel;
    product.out_stride = expanded_stride_;
    for (int64_t done = 0; done < num_positions; done += product.num_rows) {
      product.num_rows = context.RunLength(tile + done, num_positions - done);
      product.rows = Latents(context, tile + done, product.num_rows);
      product.out = expanded_ + done * expanded_stride_;
      Multiply(machine_, product);
    }
  }

  // Cache rows as kv_b's inputs: as they are where the form is the same, and otherwise converted.
  InputRows Latents(const Context& context, int64_t position, int64_t num_rows) {
    const bool is_same =
        context.dtype() == kv_b_.input && StoresInputAsBf16(machine_, kv_b_.input) == (context.dtype() == DType::kBF16);
    if (is_same && kv_b_.padded_inputs == kv_b_.inputs) {
      return {const_cast<uint8_t*>(context.Row(position)), context.stride_bytes()};
    }
    InputRows rows{latents_, latent_bytes_, latent_scales_, kv_b_.num_blocks};
    for (int64_t r = 0; r < num_rows; ++r) {
      Widen(machine_, context.dtype(), context.Row(position + r), latent_row_, kv_b_.inputs);
      const InputRows row = rows.From(r);
      PrepareRow(machine_, kv_b_, latent_row_, row.x, row.scales);
    }
    return rows;
  }

  // Keys, sixteen positions at a time: the head's own part from expanded_, the rope part from the cache.
  void MakeKeys(const Context& context, int64_t tile, int64_t num_positions) {
    const int64_t element_bytes = SizeOf(dtype_), padded_bytes = keys_.padded_inputs * element_bytes;
    const int64_t nope_bytes = shape_.qk_nope_head_dim * element_bytes;
    const void* rows[kPanelOutputs];
    for (int64_t r = 0; r < kPanelOutputs; ++r) rows[r] = key_rows_ + r * query_bytes_;
    for (int64_t first = 0; first < num_positions; first += kPanelOutputs) {
      for (int64_t r = 0; r < kPanelOutputs; ++r) {
        uint8_t* key = key_rows_ + r * query_bytes_;
        std::memset(key, 0, static_cast<size_t>(padded_bytes));
        if (first + r >= num_positions) continue;
        const float* nope = expanded_ + (first + r) * expanded_stride_ + skipped_;
        const uint8_t* rope = context.Row(tile + first + r) + shape_.kv_lora_rank * SizeOf(context.dtype());
        if (dtype_ == DType::kBF16) {
          machine_.ops.round_to_bf16(reinterpret_cast<uint16_t*>(key), nope, shape_.qk_nope_head_dim);
          std::memcpy(key + nope_bytes, rope, static_cast<size_t>(shape_.qk_rope_head_dim) * 2);
        } else {
          std::memcpy(key, nope, static_cast<size_t>(nope_bytes));
          Widen(machine_, context.dtype(), rope, reinterpret_cast<float*>(key + nope_bytes), shape_.qk_rope_head_dim);
        }
      }
      uint8_t* panel = key_panels_ + first / kPanelOutputs * keys_.panel_bytes;
      machine_.tiles.transpose(reinterpret_cast<uint32_t*>(panel), rows, padded_bytes / 4);
    }
  }

  // Values: positions are the inputs here.  Those beyond the context are zeros.
  void MakeValues(int64_t num_positions) {
    const int64_t positions_per_line = dtype_ == DType::kBF16 ? 2 : 1;
    const int64_t stride_words = values_.panel_bytes / 4;
    const float* first = expanded_ + skipped_ + shape_.qk_nope_head_dim;
    for (int64_t p = num_positions; p < AlignUp(num_positions, kPanelOutputs); ++p) {
      std::memset(expanded_ + p * expanded_stride_, 0, static_cast<size_t>(expanded_stride_) * sizeof(float));
    }
    for (int64_t p = 0; p < AlignUp(num_positions, kPanelOutputs); p += positions_per_line) {
      uint32_t* line = reinterpret_cast<uint32_t*>(value_panels_) + p / positions_per_line * 16;
      const float* row = first + p * expanded_stride_;
      if (dtype_ == DType::kBF16) {
        machine_.ops.round_and_interleave(line, stride_words, row, row + expanded_stride_, shape_.v_head_dim);
        continue;
      }
      for (int64_t c = 0; c < shape_.v_head_dim; c += kPanelOutputs) {
        const int64_t count = std::min<int64_t>(kPanelOutputs, shape_.v_head_dim - c);
        std::memcpy(line + c / kPanelOutputs * stride_words, row + c, static_cast<size_t>(count) * sizeof(float));
      }
    }
  }

  void AttendTile(int64_t tile) {
    // Rows before the tile do not see it.
    for (int64_t row = std::max<int64_t>(0, tile - first_position_); row < num_rows_; row += kRowsAtOnce) {
      const int64_t count = std::min(kRowsAtOnce, num_rows_ - row);
      const int64_t last_visible = std::min(kTilePositions, first_position_ + row + count - tile);
      AttendRows(tile, row, count, AlignUp(last_visible, kPanelOutputs));
    }
  }

  // Rows [row, row + count) over the tile's first `num_positions` positions: a step of the online softmax.
  void AttendRows(int64_t tile, int64_t row, int64_t count, int64_t num_positions) {
    Product score{&keys_, {queries_ + row * query_bytes_, query_bytes_}, count, 0, num_positions / kPanelOutputs};
    score.out = scores_;
    score.out_stride = kTilePositions;
    score.prefetches_next = false;
    Multiply(machine_, score);

    for (int64_t r = 0; r < count; ++r)
      Soften(r, row + r, std::min(num_positions, first_position_ + row + r + 1 - tile), num_positions);
    machine_.ops.exp_to_f32(decay_, decay_, 1.0f, 0.0f, count);
    for (int64_t r = 0; r < count; ++r) {
      const int64_t place = row + r;
      norm_[place] = norm_[place] * decay_[r] + row_sum_[r];
      if (decay_[r] != 1.0f) {
        float* sum = sums_ + place * shape_.v_head_dim;
        machine_.ops.scale(sum, sum, decay_[r], shape_.v_head_dim);
      }
    }

    TileProduct product = ValueProduct(num_positions);
    product.x = probabilities_;
    product.x_stride_bytes = probability_bytes_;
    product.num_rows = static_cast<int32_t>(count);
    product.out = sums_ + row * shape_.v_head_dim;
    product.out_stride = shape_.v_head_dim;
    dtype_ == DType::kBF16 ? machine_.tiles.multiply_bf16(product) : machine_.tiles.multiply_f32(product);
  }

  // The probabilities of one row; its new maximum and, in decay_, the logarithm of what the old sums shrink by.
  void Soften(int64_t r, int64_t place, int64_t num_visible, int64_t num_positions) {
    const float* scores = scores_ + r * kTilePositions;
    const float max = std::max(max_[place], machine_.ops.max(scores, num_visible) * shape_.softmax_scale);
    decay_[r] = max_[place] - max;
    max_[place] = max;
    row_sum_[r] = Exponentiate(machine_, dtype_, probabilities_ + r * probability_bytes_, scores, shape_.softmax_scale,
                               max, num_visible, num_positions);
  }

  TileProduct ValueProduct(int64_t num_positions) const {
    TileProduct product;
    product.panels = value_panels_;
    product.panel_bytes = values_.panel_bytes;
    product.num_inputs = static_cast<int32_t>(num_positions);
    product.num_outputs = shape_.v_head_dim;
    product.accumulates = true;
    return product;
  }

  void WriteResults(int64_t first_row) {
    for (int64_t r = 0; r < num_rows_; ++r) {
      float* out = static_cast<float*>(tensors_.out.data) + (first_row + r) * tensors_.out.row_stride +
                   int64_t{head_} * shape_.v_head_dim;
      machine_.ops.scale(out, sums_ + r * shape_.v_head_dim, 1.0f / norm_[r], shape_.v_head_dim);
    }
  }

  const Machine& machine_;
  const AttentionTensors& tensors_;
  const MlaShape& shape_;
  const Matrix& kv_b_;
  const DType dtype_;
  const int64_t head_outputs_;
  const int64_t expanded_stride_;
  const int64_t query_bytes_, probability_bytes_, latent_bytes_;

  float* expanded_;  // [tile positions][expanded_stride_]
  uint8_t* latents_;
  float* latent_scales_;
  float* latent_row_;
  Matrix keys_, values_;
  uint8_t *key_panels_, *value_panels_;
  uint8_t* key_rows_;
  float* scores_;           // [rows at once][tile positions]
  uint8_t* probabilities_;  // operand rows
  float* decay_;
  float row_sum_[kRowsAtOnce];
  uint8_t* queries_;  // operand rows of the whole task
  float* sums_;       // [rows][dv]
  float *max_, *norm_;
  int64_t num_bytes_ = 0;

  int32_t head_ = 0;
  int64_t num_rows_ = 0, first_position_ = 0, skipped_ = 0;
};

void PlanPrompt(AttentionPlan& plan, const AttentionTensors& tensors, int32_t num_threads) {
  plan.prompt.clear();
  const std::vector<SequenceRows>& sequences = tensors.batch.sequences;
  int64_t num_heads = 0;
  for (const SequenceRows& sequence : sequences)
    num_heads += sequence.num_prompt_rows > 0 ? tensors.shape.num_heads : 0;
  if (num_heads == 0) return;
  // Each cut of a head's rows expands the context again, so there are no more cuts than threads need.
  const int64_t wanted_cuts = (2 * num_threads + num_heads - 1) / num_heads;
  for (size_t s = 0; s < sequences.size(); ++s) {
    const int32_t num_rows = sequences[s].num_prompt_rows;
    const int64_t cuts =
        std::min<int64_t>(num_rows, std::max((num_rows + kMaxPromptRows - 1) / kMaxPromptRows, wanted_cuts));
    for (int32_t head = 0; head < tensors.shape.num_heads; ++head) {
      for (int64_t cut = 0; cut < cuts; ++cut) {
        const int32_t first = static_cast<int32_t>(cut * num_rows / cuts);
        const int32_t end = static_cast<int32_t>((cut + 1) * num_rows / cuts);
        plan.prompt.push_back({static_cast<int32_t>(s), head, first, end - first});
      }
    }
  }
}

// ---- the absorbed form ----

constexpr int64_t kPiecePositions = 256;     // of a piece, for contexts up to kMaxPieces of them
constexpr int64_t kMaxPieces = 64;           // of one row: longer contexts have longer pieces
constexpr int64_t kPackedPositions = 64;     // packed as keys or values at once
constexpr int64_t kPartialBytes = 64 << 20;  // partial results held at once

// What a piece of the context gives for one head: sum of e^(score - max) * latent, and of e^(score - max).
struct Partials {
  float* sums;  // [piece][H][C]
  float* max;   // [piece][H]
  float* norm;  // [piece][H]
};

// One piece of one row's context, all heads.
class PieceTask {
 public:
  PieceTask(const Machine& machine, const AttentionTensors& tensors, int64_t max_piece_length, uint8_t* memory)
      : machine_(machine),
        tensors_(tensors),
        shape_(tensors.shape),
        dtype_(OperandType(machine, tensors.cache)),
        packed_dtype_(tensors.cache.rows.dtype),
        max_piece_length_(AlignUp(max_piece_length, kPanelOutputs)),
        probability_bytes_(OperandRowBytes(machine, dtype_, max_piece_length_)) {
    Arena arena(memory);
    keys_ = OnTheFly(packed_dtype_, kPackedPositions, shape_.cache_width(), nullptr);
    keys_.panels = key_panels_ = arena.Take<uint8_t>(PanelsBytes(keys_));
    values_ = OnTheFly(packed_dtype_, shape_.kv_lora_rank, kPackedPositions, nullptr);
    values_.panels = value_panels_ = arena.Take<uint8_t>(PanelsBytes(values_));
    scores_ = arena.Take<float>(shape_.num_heads * max_piece_length_);
    probabilities_ = arena.Take<uint8_t>(shape_.num_heads * probability_bytes_);
    zeros_ = arena.Take<uint8_t>(shape_.cache_width() * 4);
    if (memory != nullptr) std::memset(zeros_, 0, static_cast<size_t>(shape_.cache_width()) * 4);
    num_bytes_ = arena.used();
  }
  int64_t num_bytes() const { return num_bytes_; }

  // queries: the row's H operand rows [C + dr].
  void Run(const AttentionPlan::GeneratedRow& row, int64_t piece, InputRows queries, const Partials& partials) {
    const Context context(tensors_, tensors_.batch.sequences[row.sequence]);
    WEIR_CHECK(row.num_visible <= context.num_positions(), "a block table is too short");
    const int64_t begin = piece * row.piece_length,
                  length = std::min<int64_t>(row.piece_length, row.num_visible - begin);
    const int64_t place = (row.first_piece + piece) * shape_.num_heads;
    for (int64_t first = 0; first < length; first += kPackedPositions) {
      Score(context, begin + first, std::min(kPackedPositions, length - first), queries, scores_ + first);
    }
    for (int64_t h = 0; h < shape_.num_heads; ++h) {
      const float* scores = scores_ + h * max_piece_length_;
      partials.max[place + h] = machine_.ops.max(scores, length) * shape_.softmax_scale;
      partials.norm[place + h] =
          Exponentiate(machine_, dtype_, probabilities_ + h * probability_bytes_, scores, shape_.softmax_scale,
                       partials.max[place + h], length, AlignUp(length, kPanelOutputs));
    }
    for (int64_t first = 0; first < length; first += kPackedPositions) {
      AddValues(context, begin + first, std::min(kPackedPositions, length - first), first,
                partials.sums + place * shape_.kv_lora_rank);
    }
  }

 private:
  void Score(const Context& context, int64_t position, int64_t count, const InputRows& queries, float* scores) {
    const int64_t words = shape_.cache_width() * SizeOf(packed_dtype_) / 4,
                  padded = keys_.padded_inputs * SizeOf(packed_dtype_) / 4;
    const int64_t panels = (count + kPanelOutputs - 1) / kPanelOutputs;
    for (int64_t panel = 0; panel < panels; ++panel) {
      const void* rows[kPanelOutputs];
      for (int64_t r = 0; r < kPanelOutputs; ++r) {
        const int64_t p = panel * kPanelOutputs + r;
        rows[r] = p < count ? context.Row(position + p) : zeros_;
      }
      uint32_t* lines = reinterpret_cast<uint32_t*>(key_panels_ + panel * keys_.panel_bytes);
      machine_.tiles.transpose(lines, rows, words);
      FinishLines(lines + words * 16, rows, words, padded - words);
    }
    Product product{&keys_, queries, shape_.num_heads, 0, panels, scores, max_piece_length_, false};
    Multiply(machine_, product);
  }

  // The last inputs of rows whose width is not a whole number of words or groups.
  void FinishLines(uint32_t* lines, const void* const* rows, int64_t done, int64_t count) const {
    if (count == 0) return;
    std::memset(lines, 0, static_cast<size_t>(count * kLineBytes));
    const int64_t rest = shape_.cache_width() * SizeOf(packed_dtype_) % 4;
    for (int r = 0; r < kPanelOutputs && rest > 0; ++r) {
      std::memcpy(lines + r, static_cast<const uint8_t*>(rows[r]) + done * 4, static_cast<size_t>(rest));
    }
  }

  void AddValues(const Context& context, int64_t position, int64_t count, int64_t first, float* sums) {
    const int64_t padded = AlignUp(count, kPanelOutputs), stride_words = values_.panel_bytes / 4;
    const auto row_of = [&](int64_t p) { return p < count ? context.Row(position + p) : zeros_; };
    if (packed_dtype_ == DType::kBF16) {
      for (int64_t p = 0; p < padded; p += 2) {
        machine_.ops.interleave(reinterpret_cast<uint32_t*>(value_panels_) + p / 2 * 16, stride_words,
                                reinterpret_cast<const uint16_t*>(row_of(p)),
                                reinterpret_cast<const uint16_t*>(row_of(p + 1)), shape_.kv_lora_rank);
      }
    } else {
      for (int64_t p = 0; p < padded; ++p) {
        for (int64_t c = 0; c < shape_.kv_lora_rank; c += kPanelOutputs) {
          const int64_t n = std::min<int64_t>(kPanelOutputs, shape_.kv_lora_rank - c);
          std::memcpy(reinterpret_cast<float*>(value_panels_) + c / kPanelOutputs * stride_words + p * 16,
                      row_of(p) + c * 4, static_cast<size_t>(n) * sizeof(float));
        }
      }
    }
    TileProduct product;
    product.panels = value_panels_;
    product.panel_bytes = values_.panel_bytes;
    product.num_inputs = static_cast<int32_t>(padded);
    product.num_outputs = shape_.kv_lora_rank;
    product.x = probabilities_ + first * InputElementBytes(machine_, dtype_);
    product.x_stride_bytes = probability_bytes_;
    product.num_rows = shape_.num_heads;
    product.out = sums;
    product.out_stride = shape_.kv_lora_rank;
    product.accumulates = first > 0;
    packed_dtype_ == DType::kBF16 ? machine_.tiles.multiply_bf16(product) : machine_.tiles.multiply_f32(product);
  }

  const Machine& machine_;
  const AttentionTensors& tensors_;
  const MlaShape& shape_;
  const DType dtype_;         // of queries and probabilities
  const DType packed_dtype_;  // of keys and values: the cache's
  const int64_t max_piece_length_;
  const int64_t probability_bytes_;
  Matrix keys_, values_;
  uint8_t *key_panels_, *value_panels_;
  float* scores_;  // [H][max_piece_length_]
  uint8_t* probabilities_;
  uint8_t* zeros_;
  int64_t num_bytes_ = 0;
};

// The whole of GeneratedAttention for some rows at a time.
class GeneratedRows {
 public:
  GeneratedRows(Machine& machine, const AttentionTensors& tensors, const Absorbed& weight,
                std::span<const AttentionPlan::GeneratedRow> rows)
      : machine_(machine),
        tensors_(tensors),
        shape_(tensors.shape),
        weight_(weight),
        rows_(rows),
        num_rows_(static_cast<int64_t>(rows.size())) {
    const DType dtype = OperandType(machine, tensors.cache);
    query_form_ = OnTheFly(dtype, 0, shape_.cache_width(), nullptr);
    num_pieces_ = rows.back().first_piece + rows.back().num_pieces();
    for (const auto& row : rows)
      longest_piece_ = std::max<int64_t>(longest_piece_, std::min(row.piece_length, row.num_visible));
  }

  void Run() {
    if (!Allocate()) return;
    machine_.pool.Run(shape_.num_heads, [&](int64_t head, int32_t thread) { MakeQueries(head, thread); });
    machine_.pool.Run(num_pieces_, [&](int64_t piece, int32_t thread) { AttendPiece(piece, thread); });
    machine_.pool.Run(shape_.num_heads, [&](int64_t head, int32_t thread) { WriteHead(head, thread); });
  }

 private:
  bool Allocate() {
    const int64_t heads = shape_.num_heads, latents = shape_.kv_lora_rank;
    queries_.stride_bytes = InputRowBytes(machine_, query_form_);
    queries_.x = machine_.queries.Get<uint8_t>(num_rows_ * heads * queries_.stride_bytes, machine_.error);
    partials_.sums = machine_.partials.Get<float>(num_pieces_ * heads * (latents + 2), machine_.error);
    // Per thread: a piece's work, or a head's rows.
    const int64_t piece_bytes = PieceTask(machine_, tensors_, longest_piece_, nullptr).num_bytes();
    const int64_t head_bytes =
        num_rows_ * (std::max(InputRowBytes(machine_, KeysOf(0)), InputRowBytes(machine_, ValuesOf(0))) +
                     AlignUp(latents * 4, kLineBytes));
    scratch_bytes_ = AlignUp(std::max(piece_bytes, head_bytes), kLineBytes);
    scratch_ = machine_.Scratch<uint8_t>(scratch_bytes_);
    if (queries_.x == nullptr || partials_.sums == nullptr || scratch_ == nullptr) return false;
    partials_.max = partials_.sums + num_pieces_ * heads * latents;
    partials_.norm = partials_.max + num_pieces_ * heads;
    return true;
  }

  // Neither rounds its input, except that o_lat may be BF16 where the cache is (kernels/backend.h).
  Matrix KeysOf(int64_t head) const {
    Matrix keys = weight_.keys[head];
    keys.input = DType::kF32;
    return keys;
  }
  Matrix ValuesOf(int64_t head) const {
    Matrix values = weight_.values[head];
    if (tensors_.cache.rows.dtype != DType::kBF16 || values.dtype != DType::kBF16) values.input = DType::kF32;
    return values;
  }

  uint8_t* Scratch(int32_t thread) const { return scratch_ + thread * scratch_bytes_; }

  // q_nope * W_UK and q_pe, side by side, as operand rows.
  void MakeQueries(int64_t head, int32_t thread) {
    const Matrix keys = KeysOf(head);
    Arena arena(Scratch(thread));
    const InputRows inputs{arena.Take<uint8_t>(num_rows_ * InputRowBytes(machine_, keys)),
                           InputRowBytes(machine_, keys)};
    const int64_t latents = shape_.kv_lora_rank, stride = AlignUp(latents, kPanelOutputs);
    float* products = arena.Take<float>(num_rows_ * stride);
    for (int64_t r = 0; r < num_rows_; ++r) PrepareRow(machine_, keys, Query(r, head), inputs.From(r).x, nullptr);
    Multiply(machine_, {&keys, inputs, num_rows_, 0, keys.num_panels(), products, stride});

    const int64_t element_bytes = InputElementBytes(machine_, query_form_.input);
    for (int64_t r = 0; r < num_rows_; ++r) {
      uint8_t* query = queries_.From(r * shape_.num_heads + head).x;
      PrepareElements(machine_, query_form_.input, products + r * stride, query, latents);
      PrepareElements(machine_, query_form_.input, Query(r, head) + shape_.qk_nope_head_dim,
                      query + latents * element_bytes, shape_.qk_rope_head_dim);
      const int64_t padding = query_form_.padded_inputs - query_form_.inputs;
      std::memset(query + query_form_.inputs * element_bytes, 0, static_cast<size_t>(padding * element_bytes));
    }
  }

  const float* Query(int64_t r, int64_t head) const {
    return FloatRow(tensors_.q, rows_[r].row) + head * shape_.qk_head_dim();
  }

  void AttendPiece(int64_t piece, int32_t thread) {
    const auto next = std::upper_bound(rows_.begin(), rows_.end(), piece,
                                       [](int64_t p, const auto& row) { return p < row.first_piece; });
    const int64_t r = next - rows_.begin() - 1;
    PieceTask(machine_, tensors_, longest_piece_, Scratch(thread))
        .Run(rows_[r], piece - rows_[r].first_piece, queries_.From(r * shape_.num_heads), partials_);
  }

  // Merges the pieces of each row in ascending order, then W_UV.
  void WriteHead(int64_t head, int32_t thread) {
    const Matrix values = ValuesOf(head);
    Arena arena(Scratch(thread));
    const InputRows inputs{arena.Take<uint8_t>(num_rows_ * InputRowBytes(machine_, values)),
                           InputRowBytes(machine_, values)};
    float* latents = arena.Take<float>(shape_.kv_lora_rank);
    for (int64_t r = 0; r < num_rows_; ++r) {
      Merge(rows_[r], head, latents);
      PrepareRow(machine_, values, latents, inputs.From(r).x, nullptr);
    }
    // Rows of `out` need not be neighbours, but rows of one sequence are.
    for (int64_t r = 0, end; r < num_rows_; r = end) {
      for (end = r + 1; end < num_rows_ && rows_[end].row == rows_[end - 1].row + 1;) ++end;
      float* out =
          static_cast<float*>(tensors_.out.data) + rows_[r].row * tensors_.out.row_stride + head * shape_.v_head_dim;
      Multiply(machine_, {&values, inputs.From(r), end - r, 0, values.num_panels(), out, tensors_.out.row_stride});
    }
  }

  void Merge(const AttentionPlan::GeneratedRow& row, int64_t head, float* latents) const {
    const int64_t width = shape_.kv_lora_rank, heads = shape_.num_heads;
    float max = -std::numeric_limits<float>::infinity();
    for (int64_t piece = 0; piece < row.num_pieces(); ++piece) {
      max = std::max(max, partials_.max[(row.first_piece + piece) * heads + head]);
    }
    float norm = 0.0f;
    std::memset(latents, 0, static_cast<size_t>(width) * sizeof(float));
    for (int64_t piece = 0; piece < row.num_pieces(); ++piece) {
      const int64_t place = (row.first_piece + piece) * heads + head;
      float weight = partials_.max[place];
      machine_.ops.exp_to_f32(&weight, &weight, 1.0f, max, 1);
      norm += weight * partials_.norm[place];
      machine_.ops.add_scaled(latents, partials_.sums + place * width, weight, width);
    }
    machine_.ops.scale(latents, latents, 1.0f / norm, width);
  }

  Machine& machine_;
  const AttentionTensors& tensors_;
  const MlaShape& shape_;
  const Absorbed& weight_;
  std::span<const AttentionPlan::GeneratedRow> rows_;
  const int64_t num_rows_;
  int64_t num_pieces_ = 0, longest_piece_ = 0;
  Matrix query_form_;
  InputRows queries_;
  Partials partials_{};
  uint8_t* scratch_ = nullptr;
  int64_t scratch_bytes_ = 0;
};

// A row's pieces depend on its own position only.
int32_t PieceLength(int64_t num_visible) {
  const int64_t unit = kPiecePositions * kMaxPieces;
  return static_cast<int32_t>(kPiecePositions * ((num_visible + unit - 1) / unit));
}

void PlanGenerated(AttentionPlan& plan, const Batch& batch) {
  plan.generated.clear();
  for (size_t s = 0; s < batch.sequences.size(); ++s) {
    const SequenceRows& sequence = batch.sequences[s];
    for (int32_t i = sequence.num_prompt_rows; i < sequence.num_prompt_rows + sequence.num_generated_rows; ++i) {
      const int32_t num_visible = sequence.first_position + i + 1;
      plan.generated.push_back(
          {static_cast<int32_t>(s), sequence.first_row + i, num_visible, PieceLength(num_visible)});
    }
  }
}

}  // namespace

absl::StatusOr<Absorbed> PackAbsorbedHeads(Machine& machine, const HostMatrix& kv_b, const MlaShape& shape) {
  const int64_t dn = shape.qk_nope_head_dim, dv = shape.v_head_dim, latents = shape.kv_lora_rank;
  WEIR_CHECK(kv_b.rows == shape.num_heads * (dn + dv) && kv_b.cols == latents, "the shape of kv_b");
  if (absl::Status status = CheckWeight(kv_b); !status.ok()) return status;

  // FP8 is dequantised first; then W_UK is turned around, because its outputs are the latents.
  HostMatrix source = kv_b;
  std::vector<uint16_t> dequantized;
  if (kv_b.dtype == DType::kF8E4M3) {
    dequantized.resize(static_cast<size_t>(kv_b.rows * latents));
    Dequantize(machine, kv_b, dequantized.data());
    source = {dequantized.data(), DType::kBF16, kv_b.rows, latents, latents};
  }
  const int64_t element_bytes = SizeOf(source.dtype);
  const auto element = [&](int64_t row, int64_t col) {
    return static_cast<const char*>(source.data) + (row * source.row_stride + col) * element_bytes;
  };

  Absorbed absorbed;
  const HostMatrix key_shape{nullptr, source.dtype, latents, dn, dn},
      value_shape{nullptr, source.dtype, dv, latents, source.row_stride};
  const Matrix keys = LayoutOf(key_shape, ScaleFormat::kF32), values = LayoutOf(value_shape, ScaleFormat::kF32);
  absl::StatusOr<Memory> memory = Memory::Allocate(shape.num_heads * (PanelsBytes(keys) + PanelsBytes(values)));
  if (!memory.ok()) return memory.status();
  absorbed.memory = *std::move(memory);
  uint8_t* next = absorbed.memory.data();
  for (std::vector<Matrix>* list : {&absorbed.keys, &absorbed.values}) {
    for (int32_t h = 0; h < shape.num_heads; ++h) {
      list->push_back(list == &absorbed.keys ? keys : values);
      list->back().panels = next;
      next += PanelsBytes(list->back());
    }
  }
  std::vector<char> turned(static_cast<size_t>(latents * dn * element_bytes));
  for (int32_t h = 0; h < shape.num_heads; ++h) {
    for (int64_t d = 0; d < dn; ++d) {
      for (int64_t c = 0; c < latents; ++c) {
        std::memcpy(turned.data() + (c * dn + d) * element_bytes, element(h * (dn + dv) + d, c),
                    static_cast<size_t>(element_bytes));
      }
    }
    HostMatrix key = key_shape, value = value_shape;
    key.data = turned.data();
    value.data = element(h * (dn + dv) + dn, 0);
    if (absl::Status status = Pack(machine, key, absorbed.keys[h]); !status.ok()) return status;
    if (absl::Status status = Pack(machine, value, absorbed.values[h]); !status.ok()) return status;
  }
  return absorbed;
}

void AttendPrompt(Machine& machine, AttentionPlan& plan, const AttentionTensors& tensors, const Matrix& kv_b) {
  const MlaShape& shape = tensors.shape;
  WEIR_CHECK(kv_b.inputs == shape.kv_lora_rank);
  WEIR_CHECK(kv_b.outputs == int64_t{shape.num_heads} * (shape.qk_nope_head_dim + shape.v_head_dim));
  PlanPrompt(plan, tensors, machine.pool.num_threads());
  if (plan.prompt.empty()) return;
  const int64_t bytes = PromptHead(machine, tensors, kv_b, nullptr).num_bytes();
  uint8_t* scratch = machine.Scratch<uint8_t>(bytes);
  if (scratch == nullptr) return;
  machine.pool.Run(static_cast<int64_t>(plan.prompt.size()), [&](int64_t task, int32_t thread) {
    PromptHead(machine, tensors, kv_b, scratch + thread * bytes).Run(plan.prompt[task]);
  });
}

void AttendGenerated(Machine& machine, AttentionPlan& plan, const AttentionTensors& tensors, const Absorbed& weight) {
  PlanGenerated(plan, tensors.batch);
  const int64_t piece_bytes = int64_t{tensors.shape.num_heads} * (tensors.shape.kv_lora_rank + 2) * 4;
  std::span<AttentionPlan::GeneratedRow> rest(plan.generated);
  while (!rest.empty()) {
    // As many rows at a time as the partial results have room for.
    size_t count = 0;
    int64_t num_pieces = 0;
    do {
      rest[count].first_piece = static_cast<int32_t>(num_pieces);
      num_pieces += rest[count].num_pieces();
      ++count;
    } while (count < rest.size() && (num_pieces + rest[count].num_pieces()) * piece_bytes <= kPartialBytes);
    GeneratedRows(machine, tensors, weight, rest.first(count)).Run();
    rest = rest.subspan(count);
  }
}

}  // namespace weir::kernels::cpu
