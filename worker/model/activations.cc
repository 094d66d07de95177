#include "worker/model/activations.h"

#include <algorithm>
#include <utility>

#include "worker/model/weights.h"

namespace weir::worker {
namespace {

using kernels::DType;

constexpr int64_t kAlignment = 64;  // of each tensor: a cache line, and more than any vector instruction asks for

struct Shape {
  kernels::TensorView Activations::* view;
  DType dtype;
  int64_t rows, cols;

  int64_t num_bytes() const {
    return (rows * cols * kernels::SizeOf(dtype) + kAlignment - 1) / kAlignment * kAlignment;
  }
};

std::vector<Shape> Shapes(const ModelConfig& config, const RankOptions& options, DType act) {
  const kernels::MlaShape mla = RankMlaShape(config, options.layout);
  const int64_t T = options.max_num_batched_tokens, S = MaxLogitsRows(options);
  const int64_t D = config.hidden_size, E = config.n_routed_experts, K = config.num_experts_per_tok;
  const int64_t V = config.vocab_size, tp = options.layout.tp;
  using A = Activations;
  std::vector<Shape> shapes = {
      {&A::hidden, act, T, D},
      {&A::normed, act, T, D},
      {&A::block_out, act, T, D},
      {&A::q_a, act, T, config.q_lora_rank},
      {&A::q, act, T, int64_t{mla.num_heads} * mla.qk_head_dim()},
      {&A::kv_a, act, T, mla.cache_width()},
      {&A::attention, act, T, int64_t{mla.num_heads} * mla.v_head_dim},
      {&A::router_logits, DType::kF32, T, E},
      {&A::expert_ids, DType::kI32, T, E > 0 ? K : 0},
      {&A::expert_weights, DType::kF32, T, E > 0 ? K : 0},
      {&A::shared_out, act, T, config.n_shared_experts > 0 ? D : 0},
      {&A::head_in, act, S, D},
      {&A::logits_part, DType::kF32, S, tp > 1 ? V / tp : 0},
      {&A::logits, DType::kF32, S, V},
  };
  std::erase_if(shapes, [](const Shape& shape) { return shape.cols == 0; });
  return shapes;
}

}  // namespace

int64_t MaxLogitsRows(const RankOptions& options) {
  return std::max(kMaxPromptLogitsRows, std::min(options.max_num_seqs, options.max_num_batched_tokens));
}

int64_t ActivationBytes(const ModelConfig& config, const RankOptions& options, DType activation_dtype) {
  int64_t num_bytes = 0;
  for (const Shape& shape : Shapes(config, options, activation_dtype)) num_bytes += shape.num_bytes();
  return num_bytes;
}

absl::StatusOr<Activations> AllocateActivations(const ModelConfig& config, const RankOptions& options,
                                                kernels::Backend* backend) {
  const DType act = backend->activation_dtype();
  absl::StatusOr<kernels::DeviceBuffer> buffer = backend->Allocate(ActivationBytes(config, options, act));
  if (!buffer.ok()) return buffer.status();
  Activations activations;
  activations.buffer = *std::move(buffer);
  int64_t first_byte = 0;
  for (const Shape& shape : Shapes(config, options, act)) {
    activations.*shape.view = activations.buffer.View(shape.dtype, shape.rows, shape.cols, first_byte);
    first_byte += shape.num_bytes();
  }
  if (options.layout.tp == 1) activations.logits_part = activations.logits;
  return activations;
}

}  // namespace weir::worker
