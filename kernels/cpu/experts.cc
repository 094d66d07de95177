#include "kernels/cpu/experts.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "kernels/check.h"

namespace weir::kernels::cpu {
namespace {

// ---- packing ----

absl::Status Annotated(const absl::Status& status, const char* matrix, size_t mlp, size_t num_mlps) {
  std::string where = std::string(matrix) + "_proj";
  if (num_mlps > 1) where += " of expert " + std::to_string(mlp) + " of those held";
  return absl::Status(status.code(), where + ": " + std::string(status.message()));
}

absl::Status CheckMlp(const HostMlp& mlp, size_t index, size_t count) {
  const struct {
    const HostMatrix& matrix;
    const char* name;
  } matrices[] = {{mlp.gate, "gate"}, {mlp.up, "up"}, {mlp.down, "down"}};
  for (const auto& [matrix, name] : matrices) {
    if (absl::Status status = CheckWeight(matrix); !status.ok()) return Annotated(status, name, index, count);
  }
  WEIR_CHECK(mlp.gate.rows == mlp.up.rows && mlp.gate.cols == mlp.up.cols && mlp.down.cols == mlp.gate.rows,
             "shapes of a SwiGLU");
  if (mlp.gate.dtype != mlp.up.dtype) {
    return Annotated(
        absl::InvalidArgumentError("gate_proj is " + std::string(Name(mlp.gate.dtype)) + " and up_proj is " +
                                   std::string(Name(mlp.up.dtype)) + "; they must have one dtype"),
        "gate", index, count);
  }
  WEIR_CHECK(
      mlp.gate.dtype != DType::kF8E4M3 || mlp.gate.first_col % kFp8BlockInputs == mlp.up.first_col % kFp8BlockInputs,
      "gate and up have the same columns");
  return absl::OkStatus();
}

// Both halves in one form: gate's, with places for as many panels of up.
SwiGlu LayoutOfMlp(const HostMlp& mlp, ScaleFormat format) {
  SwiGlu layout;
  layout.intermediate = mlp.gate.rows;
  layout.gate_up = LayoutOf(mlp.gate, format, NeedsScalePerOutput(mlp.gate) || NeedsScalePerOutput(mlp.up));
  layout.gate_up.outputs = 2 * layout.gate_up.num_panels() * kPanelOutputs;
  layout.down = LayoutOf(mlp.down, format);
  return layout;
}

void Place(Matrix& matrix, uint8_t*& panels, float*& scales) {
  matrix.panels = panels;
  matrix.scales = scales;
  panels += PanelsBytes(matrix);
  scales += ScalesCount(matrix);
}

// Gate into the even panels, up into the odd ones.
absl::Status PackHalf(Machine& machine, const HostMatrix& weight, const Matrix& gate_up, int half) {
  Matrix matrix = gate_up;
  matrix.outputs = weight.rows;
  matrix.panels += half * gate_up.panel_stride;
  matrix.scales += half * gate_up.scales_stride;
  matrix.panel_stride *= 2;
  matrix.scales_stride *= 2;
  return Pack(machine, weight, matrix);
}

absl::Status PackMlpInto(Machine& machine, const HostMlp& mlp, const SwiGlu& layout, size_t index, size_t count) {
  if (absl::Status s = PackHalf(machine, mlp.gate, layout.gate_up, 0); !s.ok())
    return Annotated(s, "gate", index, count);
  if (absl::Status s = PackHalf(machine, mlp.up, layout.gate_up, 1); !s.ok()) return Annotated(s, "up", index, count);
  if (absl::Status s = Pack(machine, mlp.down, layout.down); !s.ok()) return Annotated(s, "down", index, count);
  return absl::OkStatus();
}

// ---- running ----

using Segment = SwiGluPlan::Segment;
using Cut = SwiGluPlan::Cut;

void CutSegments(SwiGluPlan& plan, int64_t pairs_per_task) {
  plan.cuts.clear();
  int64_t task = 0;
  for (const Segment& segment : plan.segments) {
    const int64_t num_cuts = (segment.num_rows + kMaxRowsPerTask - 1) / kMaxRowsPerTask;
    for (int64_t i = 0; i < num_cuts; ++i) {
      const int64_t first = i * segment.num_rows / num_cuts, end = (i + 1) * segment.num_rows / num_cuts;
      plan.cuts.push_back({{segment.mlp, segment.first_row + first, end - first}, task});
      task += (segment.mlp->num_panel_pairs() + pairs_per_task - 1) / pairs_per_task;
    }
  }
  plan.cuts.push_back({{}, task});
}

int64_t PairsPerTask(std::span<const Segment> segments, int32_t num_threads) {
  int64_t num_pairs = 0;
  for (const Segment& segment : segments) {
    num_pairs += segment.mlp->num_panel_pairs() * ((segment.num_rows + kMaxRowsPerTask - 1) / kMaxRowsPerTask);
  }
  const int64_t pairs = std::clamp<int64_t>(num_pairs / (num_threads * 16), 1, 8);
  return pairs >= 2 ? pairs / 2 * 2 : 1;
}

// The middle of a SwiGLU: rows for down, or f32 rows that are still to be quantised.
struct Hidden {
  InputRows rows;
  float* unquantized = nullptr;
  int64_t unquantized_stride = 0;
};

// gate, up and silu(gate) * up for some panel pairs of a cut.
class HiddenTask {
 public:
  static constexpr int64_t kPairsAtOnce = 2;  // 4 panels: what the kernels take at once for few rows
  static constexpr int64_t kTileFloats = kMaxRowsPerTask * kPairsAtOnce * 2 * kPanelOutputs;

  HiddenTask(const Machine& machine, const InputRows& inputs, const Hidden& hidden, float* tile)
      : machine_(machine), inputs_(inputs), hidden_(hidden), tile_(tile) {}

  void Run(const Segment& segment, int64_t first_pair, int64_t end_pair) {
    for (int64_t pair = first_pair; pair < end_pair; pair += kPairsAtOnce) {
      const int64_t num_pairs = std::min(kPairsAtOnce, end_pair - pair);
      Product product{&segment.mlp->gate_up, inputs_.From(segment.first_row), segment.num_rows, 2 * pair,
                      2 * num_pairs};
      product.out = tile_;
      product.out_stride = kPairsAtOnce * 2 * kPanelOutputs;
      Multiply(machine_, product);
      for (int64_t i = 0; i < num_pairs; ++i)
        Finish(segment, pair + i, tile_ + i * 2 * kPanelOutputs, product.out_stride);
    }
  }

 private:
  void Finish(const Segment& segment, int64_t pair, float* gate, int64_t stride) {
    const int64_t column = pair * kPanelOutputs;
    const int64_t count = std::min<int64_t>(kPanelOutputs, segment.mlp->intermediate - column);
    const DType input = segment.mlp->down.input;
    for (int64_t r = 0; r < segment.num_rows; ++r, gate += stride) {
      const int64_t row = segment.first_row + r;
      if (hidden_.unquantized != nullptr) {
        float* out = hidden_.unquantized + row * hidden_.unquantized_stride + column;
        machine_.ops.silu_multiply(out, gate, gate + kPanelOutputs, count);
        continue;
      }
      machine_.ops.silu_multiply(gate, gate, gate + kPanelOutputs, count);
      PrepareElements(machine_, input, gate, hidden_.rows.From(row).x + column * InputElementBytes(machine_, input),
                      count);
    }
  }

  const Machine& machine_;
  const InputRows& inputs_;
  const Hidden& hidden_;
  float* tile_;
};

Hidden AllocateHidden(Machine& machine, const Matrix& down, int64_t num_rows) {
  Hidden hidden;
  hidden.rows = AllocateInputs(machine, down, num_rows, machine.hidden, machine.hidden_scales);
  if (down.dtype == DType::kF8E4M3) {
    hidden.unquantized_stride = down.inputs;
    hidden.unquantized = machine.hidden_f32.Get<float>(num_rows * down.inputs, machine.error);
    if (hidden.unquantized == nullptr) hidden.rows.x = nullptr;
  }
  return hidden;
}

// Zeros after the inputs that exist: the products read whole groups of four.
void ClearPadding(const Machine& machine, const Matrix& down, const Hidden& hidden, int64_t num_rows) {
  const int64_t element_bytes = InputElementBytes(machine, down.input);
  const int64_t padding = (down.padded_inputs - down.inputs) * element_bytes;
  for (int64_t r = 0; padding > 0 && r < num_rows; ++r) {
    std::memset(hidden.rows.From(r).x + down.inputs * element_bytes, 0, static_cast<size_t>(padding));
  }
}

// Rows [0, num_rows) of the middle.  All SwiGLUs have one shape.
Hidden ComputeHidden(Machine& machine, SwiGluPlan& plan, const InputRows& inputs, int64_t num_rows) {
  const Matrix& down = plan.segments[0].mlp->down;
  const Hidden hidden = AllocateHidden(machine, down, num_rows);
  float* tiles = machine.Scratch<float>(HiddenTask::kTileFloats);
  if (hidden.rows.x == nullptr || tiles == nullptr) return {};
  if (hidden.unquantized == nullptr) ClearPadding(machine, down, hidden, num_rows);

  const int64_t pairs_per_task = PairsPerTask(plan.segments, machine.pool.num_threads());
  CutSegments(plan, pairs_per_task);
  const std::vector<Cut>& cuts = plan.cuts;
  machine.pool.Run(cuts.back().first_task, [&](int64_t task, int32_t thread) {
    const auto next =
        std::upper_bound(cuts.begin(), cuts.end(), task, [](int64_t t, const Cut& cut) { return t < cut.first_task; });
    const Cut& cut = *(next - 1);
    const int64_t first = (task - cut.first_task) * pairs_per_task;
    HiddenTask(machine, inputs, hidden, tiles + thread * HiddenTask::kTileFloats)
        .Run(cut.segment, first, std::min(first + pairs_per_task, cut.segment.mlp->num_panel_pairs()));
  });
  if (hidden.unquantized != nullptr) {
    machine.ForRows(num_rows, 2 * down.inputs, [&](int64_t r) {
      const InputRows row = hidden.rows.From(r);
      PrepareRow(machine, down, hidden.unquantized + r * hidden.unquantized_stride, row.x, row.scales);
    });
  }
  return hidden;
}

// Fills groups from the router's choice; adds to load.
void GroupByExpert(SwiGluPlan& plan, size_t num_experts, std::span<const int32_t> local_of_id, TensorView expert_ids,
                   TensorView expert_weights, int64_t* load) {
  const auto local_of = [&](int64_t t, int64_t k) {
    const int32_t id = static_cast<const int32_t*>(expert_ids.data)[t * expert_ids.row_stride + k];
    return id >= 0 && static_cast<size_t>(id) < local_of_id.size() ? local_of_id[id] : -1;
  };
  plan.first_row.assign(num_experts + 1, 0);
  for (int64_t t = 0; t < expert_ids.rows; ++t) {
    for (int64_t k = 0; k < expert_ids.cols; ++k) {
      if (const int32_t e = local_of(t, k); e >= 0) ++plan.first_row[e + 1];
    }
  }
  for (size_t e = 0; e < num_experts; ++e) {
    if (load != nullptr) load[e] += plan.first_row[e + 1];
    plan.first_row[e + 1] += plan.first_row[e];
  }
  plan.next_row = plan.first_row;
  plan.entries.resize(static_cast<size_t>(plan.first_row.back()));
  for (int64_t t = 0; t < expert_ids.rows; ++t) {
    for (int64_t k = 0; k < expert_ids.cols; ++k) {
      const int32_t e = local_of(t, k);
      if (e < 0) continue;
      const float weight = static_cast<const float*>(expert_weights.data)[t * expert_weights.row_stride + k];
      plan.entries[plan.next_row[e]++] = {static_cast<int32_t>(t), weight};
    }
  }
}

// The inputs of every entry, each token rounded once and then copied to its experts' rows.
InputRows GatherInputs(Machine& machine, const Matrix& gate_up, std::span<const int32_t> local_of_id, SwiGluPlan& plan,
                       TensorView x, TensorView expert_ids) {
  const InputRows rows =
      AllocateInputs(machine, gate_up, static_cast<int64_t>(plan.entries.size()), machine.inputs, machine.input_scales);
  if (rows.x == nullptr) return rows;
  // Where a token's entries are: its experts' rows ascend with the token, so a search finds them.
  machine.ForRows(x.rows, x.cols + expert_ids.cols * x.cols / 4, [&](int64_t t) {
    InputRows first;
    for (int64_t k = 0; k < expert_ids.cols; ++k) {
      const int32_t id = static_cast<const int32_t*>(expert_ids.data)[t * expert_ids.row_stride + k];
      const int32_t e = id >= 0 && static_cast<size_t>(id) < local_of_id.size() ? local_of_id[id] : -1;
      if (e < 0) continue;
      const auto begin = plan.entries.begin() + plan.first_row[e], end = plan.entries.begin() + plan.first_row[e + 1];
      const auto entry = std::lower_bound(begin, end, t, [](const auto& a, int64_t token) { return a.token < token; });
      const InputRows row = rows.From(entry - plan.entries.begin());
      if (first.x == nullptr) {
        first = row;
        PrepareRow(machine, gate_up, static_cast<const float*>(x.data) + t * x.row_stride, row.x, row.scales);
      } else {
        std::memcpy(row.x, first.x, static_cast<size_t>(rows.stride_bytes));
        std::memcpy(row.scales, first.scales, static_cast<size_t>(rows.scales_stride) * sizeof(float));
      }
    }
  });
  return rows;
}

// Some panels of the output, for all experts.
class CombineTask {
 public:
  static constexpr int64_t kMaxPanels = 4;
  static constexpr int64_t kTileFloats = kMaxRowsPerTask * kMaxPanels * kPanelOutputs;

  CombineTask(const Machine& machine, const SwiGluPlan& plan, const InputRows& hidden, TensorView out, float* tile)
      : machine_(machine), plan_(plan), hidden_(hidden), out_(out), tile_(tile) {}

  void Run(std::span<const Segment> segments, int64_t first_panel, int64_t num_panels) {
    column_ = first_panel * kPanelOutputs;
    num_columns_ = std::min(num_panels * kPanelOutputs, out_.cols - column_);
    for (int64_t t = 0; t < out_.rows; ++t)
      std::memset(OutRow(t), 0, static_cast<size_t>(num_columns_) * sizeof(float));
    for (const Segment& segment : segments) {
      for (int64_t first = 0; first < segment.num_rows; first += kMaxRowsPerTask) {
        const int64_t num_rows = std::min(kMaxRowsPerTask, segment.num_rows - first);
        AddRows(segment.mlp->down, segment.first_row + first, num_rows, first_panel, num_panels);
      }
    }
  }

 private:
  float* OutRow(int64_t token) const { return static_cast<float*>(out_.data) + token * out_.row_stride + column_; }

  void AddRows(const Matrix& down, int64_t first_row, int64_t num_rows, int64_t first_panel, int64_t num_panels) {
    Product product{&down, hidden_.From(first_row),   num_rows, first_panel, num_panels,
                    tile_, num_panels * kPanelOutputs};
    Multiply(machine_, product);
    for (int64_t r = 0; r < num_rows; ++r) {
      const SwiGluPlan::Entry& entry = plan_.entries[first_row + r];
      machine_.ops.add_scaled(OutRow(entry.token), tile_ + r * product.out_stride, entry.weight, num_columns_);
    }
  }

  const Machine& machine_;
  const SwiGluPlan& plan_;
  const InputRows& hidden_;
  TensorView out_;
  float* tile_;
  int64_t column_ = 0, num_columns_ = 0;
};

void Combine(Machine& machine, const SwiGluPlan& plan, const InputRows& hidden, TensorView out) {
  float* tiles = machine.Scratch<float>(CombineTask::kTileFloats);
  if (tiles == nullptr) return;
  const int64_t num_panels = plan.segments[0].mlp->down.num_panels();
  const int64_t panels = std::min(CombineTask::kMaxPanels, PanelsPerTask(num_panels, machine.pool.num_threads()));
  machine.pool.Run((num_panels + panels - 1) / panels, [&](int64_t task, int32_t thread) {
    const int64_t first = task * panels;
    CombineTask(machine, plan, hidden, out, tiles + thread * CombineTask::kTileFloats)
        .Run(plan.segments, first, std::min(panels, num_panels - first));
  });
}

}  // namespace

absl::StatusOr<PackedMlps> PackSwiGlus(Machine& machine, std::span<const HostMlp> mlps, ScaleFormat format) {
  PackedMlps packed;
  int64_t panels_bytes = 0, scales_count = 0;
  for (size_t i = 0; i < mlps.size(); ++i) {
    if (absl::Status status = CheckMlp(mlps[i], i, mlps.size()); !status.ok()) return status;
    packed.mlps.push_back(LayoutOfMlp(mlps[i], format));
    for (const Matrix* matrix : {&packed.mlps[i].gate_up, &packed.mlps[i].down}) {
      panels_bytes += PanelsBytes(*matrix);
      scales_count += ScalesCount(*matrix);
    }
  }
  absl::StatusOr<Memory> panels = Memory::Allocate(panels_bytes);
  if (!panels.ok()) return panels.status();
  absl::StatusOr<Memory> scales = Memory::Allocate(scales_count * static_cast<int64_t>(sizeof(float)));
  if (!scales.ok()) return scales.status();
  packed.panels = *std::move(panels);
  packed.scales = *std::move(scales);

  uint8_t* next_panel = packed.panels.data();
  float* next_scale = reinterpret_cast<float*>(packed.scales.data());
  for (size_t i = 0; i < mlps.size(); ++i) {
    SwiGlu& mlp = packed.mlps[i];
    WEIR_CHECK(mlp.gate_up.inputs == packed.mlps[0].gate_up.inputs && mlp.intermediate == packed.mlps[0].intermediate &&
                   mlp.down.outputs == packed.mlps[0].down.outputs &&
                   mlp.gate_up.dtype == packed.mlps[0].gate_up.dtype && mlp.down.dtype == packed.mlps[0].down.dtype &&
                   mlp.gate_up.first_block_inputs == packed.mlps[0].gate_up.first_block_inputs &&
                   mlp.down.first_block_inputs == packed.mlps[0].down.first_block_inputs,
               "the experts of a layer have one shape and dtype");
    Place(mlp.gate_up, next_panel, next_scale);
    Place(mlp.down, next_panel, next_scale);
    if (absl::Status status = PackMlpInto(machine, mlps[i], mlp, i, mlps.size()); !status.ok()) return status;
  }
  return packed;
}

void ApplyMlp(Machine& machine, SwiGluPlan& plan, const SwiGlu& mlp, TensorView out, TensorView x) {
  WEIR_CHECK(out.rows == x.rows && x.cols == mlp.gate_up.inputs && out.cols == mlp.down.outputs);
  if (x.rows == 0) return;
  const InputRows inputs = PrepareInputs(machine, mlp.gate_up, x);
  if (inputs.x == nullptr) return;
  plan.segments.assign(1, {&mlp, 0, x.rows});
  const Hidden hidden = ComputeHidden(machine, plan, inputs, x.rows);
  if (hidden.rows.x != nullptr) MultiplyAll(machine, mlp.down, hidden.rows, out);
}

void ApplyExperts(Machine& machine, const PackedMlps& experts, std::span<const int32_t> local_of_id, SwiGluPlan& plan,
                  TensorView out, TensorView x, TensorView expert_ids, TensorView expert_weights, int64_t* load) {
  GroupByExpert(plan, experts.mlps.size(), local_of_id, expert_ids, expert_weights, load);
  plan.segments.clear();
  for (size_t e = 0; e < experts.mlps.size(); ++e) {
    const int32_t num_rows = plan.first_row[e + 1] - plan.first_row[e];
    if (num_rows > 0) plan.segments.push_back({&experts.mlps[e], plan.first_row[e], num_rows});
  }
  if (plan.segments.empty()) {
    for (int64_t t = 0; t < out.rows; ++t) {
      std::memset(static_cast<float*>(out.data) + t * out.row_stride, 0, static_cast<size_t>(out.cols) * sizeof(float));
    }
    return;
  }
  const Matrix& gate_up = plan.segments[0].mlp->gate_up;
  WEIR_CHECK(x.cols == gate_up.inputs && out.cols == plan.segments[0].mlp->down.outputs);
  const InputRows inputs = GatherInputs(machine, gate_up, local_of_id, plan, x, expert_ids);
  if (inputs.x == nullptr) return;
  const Hidden hidden = ComputeHidden(machine, plan, inputs, static_cast<int64_t>(plan.entries.size()));
  if (hidden.rows.x != nullptr) Combine(machine, plan, hidden.rows, out);
}

}  // namespace weir::kernels::cpu
