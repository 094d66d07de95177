#pragma once

#include <cstdint>
#include <vector>

#include "kernels/backend.h"
#include "worker/checkpoint/model_config.h"
#include "worker/model/activations.h"
#include "worker/model/collectives.h"
#include "worker/model/expert_exchange.h"
#include "worker/model/weights.h"

// The forward pass of DeepSeek V2 and V3, as a list of steps in the order of the papers: V2 (arXiv 2405.04434) section
// 2.1 for the attention, V3 (arXiv 2412.19437) section 2.1 for attention and experts.  One code for both families: they
// differ in sizes, in the router's shape, and in whether queries have a latent.
//
// Every rank runs it on the rows of its data-parallel group.  Where a rank has only its share of a sum, `collectives`
// or the exchange completes it.

namespace weir::worker {

class Transformer {
 public:
  // Owns nothing; everything must outlive it.
  struct Parts {
    const ModelConfig* config = nullptr;
    kernels::MlaShape mla;
    kernels::Backend* backend = nullptr;
    const ModelWeights* weights = nullptr;
    Activations* activations = nullptr;
    const std::vector<kernels::LatentCache>* caches = nullptr;  // one per layer
    ExpertExchange* exchange = nullptr;                         // null for a model without experts
  };
  explicit Transformer(const Parts& parts);

  // Runs the batch through all layers; activations.hidden [num_rows, D] then holds the residual stream after the last.
  // num_rows may be 0 when other groups have rows: the rank's experts are still needed.  Adds to loads[layer * experts
  // held + i], MoE layers counted from 0.  Errors are kept in `collectives`.
  void Forward(const kernels::DeviceBatch& batch, int64_t num_rows, std::vector<int64_t>& loads,
               Collectives& collectives);

  // logits [S, V] f32 of hidden rows [S, D].  Uses activations.head_in and logits_part; hidden may be head_in.
  void Logits(kernels::TensorView logits, kernels::TensorView hidden, Collectives& collectives);

 private:
  // What one step's layers share: the batch and the first num_rows rows of each activation.
  struct Step;

  void Layer(int32_t index, Step& step);
  void Attention(const LayerWeights& layer, const kernels::LatentCache& cache, Step& step);
  void Queries(const LayerWeights& layer, Step& step);
  void DenseFfn(const LayerWeights& layer, Step& step);
  void MoeFfn(const LayerWeights& layer, Step& step);

  const ModelConfig& config_;
  const float eps_;
  const kernels::MlaShape mla_;
  const kernels::RouterShape router_;
  kernels::Backend& backend_;
  const ModelWeights& weights_;
  Activations& activations_;
  const std::vector<kernels::LatentCache>& caches_;
  ExpertExchange* exchange_;
};

}  // namespace weir::worker
