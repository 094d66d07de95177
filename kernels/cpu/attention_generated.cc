#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/check.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/attention_parts.h"

// The absorbed form (spec 2.6): generated rows.

namespace weir::kernels::cpu {
namespace {

constexpr int64_t kPiecePositions = 256;     // of a piece, for contexts up to kMaxPieces of them
constexpr int64_t kMaxPieces = 64;           // of one row: longer contexts have longer pieces
constexpr int64_t kPackedPositions = 128;    // scored, or packed as values, at once
constexpr int64_t kPartialBytes = 64 << 20;  // partial results held at once

// What a piece of the context gives for one head: sum of e^(score - max) * latent, and of e^(score - max).
struct Partials {
  float* sums;  // [piece][H][C]
  float* max;   // [piece][H]
  float* norm;  // [piece][H]
};

// One piece of one row's context, all heads.
//
// Scores are computed the other way round: cache rows are the activations, just as they lie in the cache, and the
// heads' queries the weight.  So keys are never rearranged; only the small matrix of scores is turned.
class PieceTask {
 public:
  PieceTask(const Machine& machine, const AttentionTensors& tensors, int64_t max_piece_length, uint8_t* memory)
      : machine_(machine),
        tensors_(tensors),
        shape_(tensors.shape),
        dtype_(OperandType(machine, tensors.cache)),
        cache_dtype_(tensors.cache.rows.dtype),
        num_heads_(RoundUp(shape_.num_heads, kPanelOutputs)),
        max_piece_length_(RoundUp(max_piece_length, kPanelOutputs)),
        probability_bytes_(OperandRowBytes(machine, dtype_, max_piece_length_)) {
    Arena arena(memory);
    queries_ = OnTheFly(dtype_, num_heads_, shape_.cache_width(), nullptr);
    queries_.panels = query_panels_ = arena.Take<uint8_t>(PanelsBytes(queries_));
    key_bytes_ = InputRowBytes(machine, queries_);
    key_rows_ = arena.Take<uint8_t>(kPackedPositions * key_bytes_);
    turned_scores_ = arena.Take<float>(RoundUp(kPackedPositions, kPanelOutputs) * num_heads_);
    lines_ = arena.Take<uint32_t>(kPanelOutputs * kPanelOutputs);
    scores_ = arena.Take<float>(num_heads_ * max_piece_length_);
    probabilities_ = arena.Take<uint8_t>(shape_.num_heads * probability_bytes_);
    values_ = OnTheFly(cache_dtype_, shape_.kv_lora_rank, kPackedPositions, nullptr);
    // A line more than a panel needs: lines of all panels are written in turn, and would fall into the same few sets of
    // the first-level cache.
    values_.panel_stride += kLineBytes;
    values_.panels = value_panels_ = arena.Take<uint8_t>(values_.num_panels() * values_.panel_stride);
    zeros_ = arena.Take<uint8_t>(std::max(shape_.cache_width() * 4, int32_t(key_bytes_)));
    if (memory != nullptr)
      std::memset(zeros_, 0, static_cast<size_t>(std::max<int64_t>(shape_.cache_width() * 4, key_bytes_)));
    num_bytes_ = arena.used();
  }
  int64_t num_bytes() const { return num_bytes_; }

  // queries: the row's H operand rows [C + dr].
  void Run(const AttentionPlan::GeneratedRow& row, int64_t piece, const InputRows& queries, const Partials& partials) {
    const Context context(tensors_, tensors_.batch.sequences[row.sequence]);
    WEIR_CHECK(row.num_visible <= context.num_positions(), "a block table is too short");
    const int64_t begin = piece * row.piece_length,
                  length = std::min<int64_t>(row.piece_length, row.num_visible - begin);
    const int64_t place = (row.first_piece + piece) * shape_.num_heads;
    PackQueries(queries);
    for (int64_t first = 0; first < length; first += kPackedPositions) {
      const int64_t count = std::min(kPackedPositions, length - first);
      Score(context, begin + first, count, row.num_visible);
      TurnScores(first, count);
    }
    for (int64_t h = 0; h < shape_.num_heads; ++h) {
      const float* scores = scores_ + h * max_piece_length_;
      partials.max[place + h] = machine_.ops.max(scores, length) * shape_.softmax_scale;
      partials.norm[place + h] =
          Exponentiate(machine_, dtype_, probabilities_ + h * probability_bytes_, scores, shape_.softmax_scale,
                       partials.max[place + h], length, RoundUp(length, kPanelOutputs));
    }
    for (int64_t first = 0; first < length; first += kPackedPositions) {
      const int64_t count = std::min(kPackedPositions, length - first);
      PackValues(context, begin + first, count);
      AddValues(count, first, partials.sums + place * shape_.kv_lora_rank);
    }
  }

 private:
  void PackQueries(const InputRows& queries) {
    const int64_t words = queries_.padded_inputs * SizeOf(dtype_) / 4;
    for (int64_t first = 0; first < num_heads_; first += kPanelOutputs) {
      const void* rows[kPanelOutputs];
      for (int64_t r = 0; r < kPanelOutputs; ++r) {
        rows[r] = first + r < shape_.num_heads ? queries.From(first + r).x : zeros_;
      }
      uint8_t* panel = query_panels_ + first / kPanelOutputs * queries_.panel_stride;
      machine_.tiles.transpose(reinterpret_cast<uint32_t*>(panel), rows, words);
    }
  }

  // turned_scores_[position][head] of `count` positions from `position` on.
  void Score(const Context& context, int64_t position, int64_t count, int64_t num_visible) {
    TileProduct product;
    product.panels = query_panels_;
    product.panel_bytes = queries_.panel_stride;
    product.num_inputs = queries_.padded_inputs;
    product.num_outputs = static_cast<int32_t>(num_heads_);
    product.out_stride = num_heads_;
    for (int64_t done = 0; done < count; done += product.num_rows) {
      product.num_rows = static_cast<int32_t>(context.RunLength(position + done, count - done));
      product.out = turned_scores_ + done * num_heads_;
      const InputRows keys = Keys(context, position + done, product.num_rows);
      product.x = keys.x;
      product.x_stride_bytes = keys.stride_bytes;
      // The cache rows after these, while these are multiplied.
      const int64_t next = position + done + product.num_rows;
      product.ahead = next < num_visible ? context.Row(next) : nullptr;
      product.ahead_bytes =
          next < num_visible ? context.RunLength(next, num_visible - next) * context.stride_bytes() : 0;
      dtype_ == DType::kBF16 ? machine_.tiles.multiply_bf16(product) : machine_.tiles.multiply_f32(product);
    }
  }

  // Cache rows as activations: where they lie, or widened and padded.
  InputRows Keys(const Context& context, int64_t position, int64_t num_rows) const {
    if (cache_dtype_ == dtype_ && queries_.padded_inputs == queries_.inputs) {
      return {const_cast<uint8_t*>(context.Row(position)), context.stride_bytes()};
    }
    const int64_t width = queries_.inputs, element_bytes = SizeOf(dtype_);
    const InputRows rows{key_rows_, key_bytes_};
    for (int64_t r = 0; r < num_rows; ++r) {
      uint8_t* row = rows.From(r).x;
      if (cache_dtype_ == dtype_) {
        std::memcpy(row, context.Row(position + r), static_cast<size_t>(width * element_bytes));
      } else {
        Widen(machine_, cache_dtype_, context.Row(position + r), reinterpret_cast<float*>(row), width);
      }
      std::memset(row + width * element_bytes, 0,
                  static_cast<size_t>((queries_.padded_inputs - width) * element_bytes));
    }
    return rows;
  }

  // Into scores_[head][first + position], sixteen of each at a time.
  void TurnScores(int64_t first, int64_t count) {
    for (int64_t p = 0; p < count; p += kPanelOutputs) {
      for (int64_t h = 0; h < num_heads_; h += kPanelOutputs) {
        const void* rows[kPanelOutputs];
        for (int64_t r = 0; r < kPanelOutputs; ++r) rows[r] = turned_scores_ + (p + r) * num_heads_ + h;
        machine_.tiles.transpose(lines_, rows, kPanelOutputs);
        for (int64_t r = 0; r < kPanelOutputs; ++r) {
          std::memcpy(scores_ + (h + r) * max_piece_length_ + first + p, lines_ + r * kPanelOutputs, kLineBytes);
        }
      }
    }
  }

  void PackValues(const Context& context, int64_t position, int64_t count) {
    const int64_t padded = RoundUp(count, kPanelOutputs), stride_words = values_.panel_stride / 4;
    const auto row_of = [&](int64_t p) { return p < count ? context.Row(position + p) : zeros_; };
    if (cache_dtype_ == DType::kBF16) {
      for (int64_t p = 0; p < padded; p += 2) {
        machine_.ops.interleave(reinterpret_cast<uint32_t*>(value_panels_) + p / 2 * kPanelOutputs, stride_words,
                                reinterpret_cast<const uint16_t*>(row_of(p)),
                                reinterpret_cast<const uint16_t*>(row_of(p + 1)), shape_.kv_lora_rank);
      }
      return;
    }
    for (int64_t p = 0; p < padded; ++p) {
      for (int64_t c = 0; c < shape_.kv_lora_rank; c += kPanelOutputs) {
        const int64_t n = std::min<int64_t>(kPanelOutputs, shape_.kv_lora_rank - c);
        std::memcpy(reinterpret_cast<float*>(value_panels_) + c / kPanelOutputs * stride_words + p * kPanelOutputs,
                    row_of(p) + c * 4, static_cast<size_t>(n) * sizeof(float));
      }
    }
  }

  // sums[head][latent] += probabilities from `first` on * values.
  void AddValues(int64_t count, int64_t first, float* sums) const {
    TileProduct product;
    product.panels = value_panels_;
    product.panel_bytes = values_.panel_stride;
    product.num_inputs = static_cast<int32_t>(RoundUp(count, kPanelOutputs));
    product.num_outputs = shape_.kv_lora_rank;
    product.x = probabilities_ + first * InputElementBytes(machine_, dtype_);
    product.x_stride_bytes = probability_bytes_;
    product.num_rows = shape_.num_heads;
    product.out = sums;
    product.out_stride = shape_.kv_lora_rank;
    product.accumulates = first > 0;
    cache_dtype_ == DType::kBF16 ? machine_.tiles.multiply_bf16(product) : machine_.tiles.multiply_f32(product);
  }

  const Machine& machine_;
  const AttentionTensors& tensors_;
  const MlaShape& shape_;
  const DType dtype_;        // of queries, keys and probabilities
  const DType cache_dtype_;  // of values too
  const int64_t num_heads_;  // rounded up to whole panels
  const int64_t max_piece_length_;
  const int64_t probability_bytes_;
  int64_t key_bytes_ = 0;
  Matrix queries_, values_;
  uint8_t *query_panels_, *value_panels_;
  uint8_t* key_rows_;
  float* turned_scores_;  // [kPackedPositions][num_heads_]
  uint32_t* lines_;
  float* scores_;  // [num_heads_][max_piece_length_]
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
                     RoundUp(latents * 4, kLineBytes));
    scratch_bytes_ = RoundUp(std::max(piece_bytes, head_bytes), kLineBytes);
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
    const int64_t latents = shape_.kv_lora_rank, stride = RoundUp(latents, kPanelOutputs);
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
  const int64_t turned_bytes = latents * dn * element_bytes;  // of a head
  std::vector<char> turned(static_cast<size_t>(shape.num_heads * turned_bytes));
  machine.pool.Run(shape.num_heads, [&](int64_t h, int32_t) {
    char* out = turned.data() + h * turned_bytes;
    for (int64_t c = 0; c < latents; ++c) {
      for (int64_t d = 0; d < dn; ++d, out += element_bytes) {
        std::memcpy(out, element(h * (dn + dv) + d, c), static_cast<size_t>(element_bytes));
      }
    }
  });
  for (int32_t h = 0; h < shape.num_heads; ++h) {
    HostMatrix key = key_shape, value = value_shape;
    key.data = turned.data() + h * turned_bytes;
    value.data = element(h * (dn + dv) + dn, 0);
    if (absl::Status status = Pack(machine, key, absorbed.keys[h]); !status.ok()) return status;
    if (absl::Status status = Pack(machine, value, absorbed.values[h]); !status.ok()) return status;
  }
  return absorbed;
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
