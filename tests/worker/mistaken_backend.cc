#include "tests/worker/mistaken_backend.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

#include "kernels/check.h"
#include "tests/kernels/forwarding_backend.h"
#include "tests/kernels/rig.h"

namespace weir::worker {
namespace {

using kernels::Backend;
using kernels::BatchLayout;
using kernels::DeviceBatch;
using kernels::ForwardingBackend;
using kernels::LatentCache;
using kernels::MlaShape;
using kernels::RouterShape;
using kernels::TensorView;
using kernels::Values;

// Rotates (i, i + dr / 2) instead of (2i, 2i + 1), for queries and keys alike.
class HalfRotation final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  void Rope(TensorView q, const DeviceBatch& batch, TensorView table, const MlaShape& shape) override {
    for (int32_t h = 0; h < shape.num_heads; ++h) {
      Interleave(q.Columns(h * shape.qk_head_dim() + shape.qk_nope_head_dim, shape.qk_rope_head_dim));
    }
    inner_.Rope(q, batch, table, shape);
  }
  void WriteLatent(const LatentCache& cache, TensorView kv_a, TensorView weight, float eps, const DeviceBatch& batch,
                   TensorView table, const MlaShape& shape) override {
    Interleave(kv_a.Columns(shape.kv_lora_rank, shape.qk_rope_head_dim));
    inner_.WriteLatent(cache, kv_a, weight, eps, batch, table, shape);
  }

 private:
  // Brings the two halves' elements beside each other, where the true rotation takes them for a pair.
  void Interleave(const TensorView& view) {
    const Values x = kernels::ReadTensor(inner_, view);
    Values y(x.rows, x.cols);
    for (int64_t r = 0; r < x.rows; ++r) {
      for (int64_t i = 0; i < x.cols / 2; ++i) {
        y.at(r, 2 * i) = x.at(r, i);
        y.at(r, 2 * i + 1) = x.at(r, i + x.cols / 2);
      }
    }
    kernels::WriteTensor(inner_, view, y);
  }
};

// The softmax scale without YaRN's m^2.
class PlainScale final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  void PromptAttention(TensorView out, TensorView q, const LatentCache& cache, const DeviceBatch& batch,
                       const kernels::LinearWeight& kv_b, const MlaShape& shape) override {
    inner_.PromptAttention(out, q, cache, batch, kv_b, Plain(shape));
  }
  void GeneratedAttention(TensorView out, TensorView q, const LatentCache& cache, const DeviceBatch& batch,
                          const kernels::AbsorbedWeight& weight, const MlaShape& shape) override {
    inner_.GeneratedAttention(out, q, cache, batch, weight, Plain(shape));
  }

 private:
  static MlaShape Plain(MlaShape shape) {
    shape.softmax_scale = 1.0f / std::sqrt(static_cast<float>(shape.qk_head_dim()));
    return shape;
  }
};

// Weights from the scores with the bias that is for the choice only.
class BiasedWeights final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  void Route(TensorView expert_ids, TensorView expert_weights, TensorView logits, TensorView bias,
             const RouterShape& shape) override {
    inner_.Route(expert_ids, expert_weights, logits, bias, shape);
    if (bias.data == nullptr) return;
    const Values ids = kernels::ReadTensor(inner_, expert_ids), z = kernels::ReadTensor(inner_, logits);
    const Values b = kernels::ReadTensor(inner_, bias);
    Values weights(ids.rows, ids.cols);
    for (int64_t r = 0; r < ids.rows; ++r) {
      float sum = 0.0f;
      for (int64_t k = 0; k < ids.cols; ++k) {
        const int64_t e = static_cast<int64_t>(ids.at(r, k));
        weights.at(r, k) = 1.0f / (1.0f + std::exp(-z.at(r, e))) + b.at(0, e);
        sum += weights.at(r, k);
      }
      for (float& weight : weights.row(r)) weight *= shape.scaling_factor / (shape.normalizes_weights ? sum : 1.0f);
    }
    kernels::WriteTensor(inner_, expert_weights, weights);
  }
};

// A router of another shape.
class OtherRouter : public ForwardingBackend {
 public:
  using Change = void (*)(RouterShape&);
  OtherRouter(Backend& inner, Change change) : ForwardingBackend(inner), change_(change) {}

  void Route(TensorView expert_ids, TensorView expert_weights, TensorView logits, TensorView bias,
             const RouterShape& shape) override {
    RouterShape changed = shape;
    change_(changed);
    inner_.Route(expert_ids, expert_weights, logits, bias, changed);
  }

 private:
  Change change_;
};

// Attention finds block i where block i - 1 should be; the writes go to the right ones.
class PreviousBlock final : public ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;

  void Upload(DeviceBatch& batch, const BatchLayout& layout) override {
    std::vector<int32_t> tables(layout.block_tables.begin(), layout.block_tables.end());
    for (const kernels::SequenceRows& sequence : layout.sequences) {
      const std::span<int32_t> table = std::span(tables).subspan(sequence.block_table_begin, sequence.num_blocks);
      for (size_t i = table.size(); i-- > 1;) table[i] = table[i - 1];
    }
    BatchLayout changed = layout;
    changed.block_tables = tables;
    inner_.Upload(batch, changed);
  }
};

template <typename Planted>
std::function<std::unique_ptr<Backend>(Backend&)> Plant() {
  return [](Backend& inner) { return std::make_unique<Planted>(inner); };
}

std::function<std::unique_ptr<Backend>(Backend&)> PlantRouter(OtherRouter::Change change) {
  return [change](Backend& inner) { return std::make_unique<OtherRouter>(inner, change); };
}

void SwapGroupScores(RouterShape& shape) {
  using GroupScore = RouterShape::GroupScore;
  if (shape.group_score == GroupScore::kNone) return;
  shape.group_score = shape.group_score == GroupScore::kMax ? GroupScore::kTopTwoSum : GroupScore::kMax;
}

}  // namespace

const std::vector<Mistake>& Mistakes() {
  static const auto* mistakes = new std::vector<Mistake>{
      {"wrong RoPE pairing", Plant<HalfRotation>(), {"v3_odd", "v2lite_odd"}},
      {"missing mscale squared", Plant<PlainScale>(), {"v3_odd", "v2lite_odd"}},
      {"bias used as weight", Plant<BiasedWeights>(), {"v3_odd", "v3"}},
      {"missing routed_scaling_factor",
       PlantRouter([](RouterShape& s) { s.scaling_factor = 1.0f; }),
       {"v3_odd", "v2_odd"}},
      {"missing top-k normalisation",
       PlantRouter([](RouterShape& s) { s.normalizes_weights = false; }),
       {"v3_odd", "v3"}},
      {"wrong group score", PlantRouter(SwapGroupScores), {"v3_odd", "v2_odd", "v3"}},
      {"off-by-one block", Plant<PreviousBlock>(), {"v3_odd", "v3_long"}},
  };
  return *mistakes;
}

}  // namespace weir::worker
