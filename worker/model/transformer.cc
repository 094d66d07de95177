#include "worker/model/transformer.h"

namespace weir::worker {

using kernels::TensorView;

struct Transformer::Step {
  const kernels::DeviceBatch& batch;
  const int64_t num_rows;
  int64_t* load;  // of the next MoE layer
  int64_t num_experts_held;
  Collectives& collectives;

  TensorView h, x, out;  // the residual stream, a block's input, a block's output
  TensorView q_a, q, kv_a, attention;
  TensorView router_logits, expert_ids, expert_weights, shared;
};

Transformer::Transformer(const Parts& parts)
    : config_(*parts.config),
      eps_(static_cast<float>(parts.config->rms_norm_eps)),
      mla_(parts.mla),
      router_(parts.config->Router()),
      backend_(*parts.backend),
      weights_(*parts.weights),
      activations_(*parts.activations),
      caches_(*parts.caches),
      exchange_(parts.exchange) {}

void Transformer::Forward(const kernels::DeviceBatch& batch, int64_t num_rows, std::vector<int64_t>& loads,
                          Collectives& collectives) {
  const Activations& a = activations_;
  const auto rows = [&](TensorView view) { return view.data == nullptr ? view : view.Rows(0, num_rows); };
  Step step = {.batch = batch,
               .num_rows = num_rows,
               .load = loads.data(),
               .num_experts_held = NumMoeLayers(config_) > 0 ? int64_t(loads.size()) / NumMoeLayers(config_) : 0,
               .collectives = collectives,
               .h = rows(a.hidden),
               .x = rows(a.normed),
               .out = rows(a.block_out),
               .q_a = rows(a.q_a),
               .q = rows(a.q),
               .kv_a = rows(a.kv_a),
               .attention = rows(a.attention),
               .router_logits = rows(a.router_logits),
               .expert_ids = rows(a.expert_ids),
               .expert_weights = rows(a.expert_weights),
               .shared = rows(a.shared_out)};
  if (num_rows > 0) {
    backend_.Embed(step.h, batch, weights_.embed_tokens, weights_.first_token_id);
    collectives.AllReduceSum(step.h);  // each token's row is on one rank, and zero on the others: an exact sum
  }
  for (int32_t index = 0; index < config_.num_hidden_layers && collectives.ok(); ++index) Layer(index, step);
}

// h += attention(norm(h));  h += ffn(norm(h))
void Transformer::Layer(int32_t index, Step& step) {
  const LayerWeights& layer = weights_.layers[index];
  if (step.num_rows == 0) {
    if (layer.is_moe()) MoeFfn(layer, step);
    return;
  }
  backend_.RmsNorm(step.x, step.h, layer.input_layernorm, eps_);
  Attention(layer, caches_[index], step);
  backend_.AddRmsNorm(step.x, step.h, step.out, layer.post_attention_layernorm, eps_);
  if (layer.is_moe()) {
    MoeFfn(layer, step);
  } else {
    DenseFfn(layer, step);
  }
  backend_.Add(step.h, step.out);
}

// Multi-head latent attention: V3 section 2.1.1.
void Transformer::Attention(const LayerWeights& layer, const kernels::LatentCache& cache, Step& step) {
  Queries(layer, step);
  backend_.Rope(step.q, step.batch, weights_.rope_table, mla_);

  // The joint latent of keys and values, and the one rope key that all heads share, go to the cache; everything that
  // attention reads comes from there.
  backend_.Linear(step.kv_a, step.x, *layer.kv_a_proj_with_mqa);
  backend_.WriteLatent(cache, step.kv_a, layer.kv_a_layernorm, eps_, step.batch, weights_.rope_table, mla_);

  backend_.PromptAttention(step.attention, step.q, cache, step.batch, *layer.kv_b_proj, mla_);
  backend_.GeneratedAttention(step.attention, step.q, cache, step.batch, *layer.kv_b_absorbed, mla_);

  backend_.Linear(step.out, step.attention, *layer.o_proj);
  step.collectives.AllReduceSum(step.out);  // over the heads of all ranks
}

void Transformer::Queries(const LayerWeights& layer, Step& step) {
  if (layer.q_proj != nullptr) {
    backend_.Linear(step.q, step.x, *layer.q_proj);
    return;
  }
  backend_.Linear(step.q_a, step.x, *layer.q_a_proj);
  backend_.RmsNorm(step.q_a, step.q_a, layer.q_a_layernorm, eps_);
  backend_.Linear(step.q, step.q_a, *layer.q_b_proj);
}

void Transformer::DenseFfn(const LayerWeights& layer, Step& step) {
  backend_.Mlp(step.out, step.x, *layer.dense);
  step.collectives.AllReduceSum(step.out);  // over the widths of all ranks
}

// DeepSeekMoE: V3 section 2.1.2.
void Transformer::MoeFfn(const LayerWeights& layer, Step& step) {
  if (step.num_rows > 0) {
    backend_.Linear(step.router_logits, step.x, *layer.gate);
    backend_.Route(step.expert_ids, step.expert_weights, step.router_logits, layer.e_score_correction_bias, router_);
    if (layer.shared_experts != nullptr) backend_.Mlp(step.shared, step.x, *layer.shared_experts);
  }
  exchange_->Run(step.out, step.x, step.expert_ids, step.expert_weights, step.shared, *layer.experts, step.load,
                 step.collectives);
  step.load += step.num_experts_held;
}

void Transformer::Logits(TensorView logits, TensorView hidden, Collectives& collectives) {
  const TensorView normed = activations_.head_in.Rows(0, hidden.rows);
  const TensorView part = activations_.logits_part.Rows(0, hidden.rows);
  backend_.RmsNorm(normed, hidden, weights_.norm, eps_);
  backend_.Linear(part, normed, *weights_.lm_head);
  collectives.AllGatherColumns(logits, part);  // the vocabulary of all ranks
}

}  // namespace weir::worker
