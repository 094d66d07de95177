// The input is config.json, and after a zero byte, when there is one, generation_config.json.  Whatever is accepted
// must work: finite numbers, a table of positive sizes, parts inside their tensors.

#include <cmath>
#include <cstdint>
#include <string_view>

#include "kernels/check.h"
#include "worker/checkpoint/layout.h"
#include "worker/checkpoint/model_config.h"
#include "worker/checkpoint/tensor_table.h"

namespace weir::worker {
namespace {

void CheckNumbers(const ModelConfig& config) {
  WEIR_CHECK(std::isfinite(config.SoftmaxScale()) && config.SoftmaxScale() > 0.0);
  WEIR_CHECK(std::isfinite(config.RopeAmplitude()) && config.RopeAmplitude() > 0.0);
  for (const double frequency : config.RopeFrequencies()) WEIR_CHECK(std::isfinite(frequency) && frequency >= 0.0);
  for (const int32_t id : config.eos_token_ids) WEIR_CHECK(id >= 0 && id < config.vocab_size);
  if (config.n_routed_experts == 0) return;
  const kernels::RouterShape router = config.Router();
  WEIR_CHECK(router.num_experts % router.num_groups == 0);
  WEIR_CHECK(router.num_experts_per_tok <= router.num_experts / router.num_groups * router.num_groups_kept);
}

void CheckTable(const ModelConfig& config) {
  const ParallelLayout layout{2, 2, 3};
  const bool fits = CheckLayout(config, layout).ok();
  const ExpertMap experts = ExpertMap::Contiguous(config.n_routed_experts, layout.world_size());
  for (const TensorSpec& spec : TensorTable(config)) {
    for (const int64_t size : spec.shape) WEIR_CHECK(size > 0);
    if (!fits) continue;
    const TensorPart part = PartOf(spec, layout, experts);
    WEIR_CHECK(part.first_col + part.cols <= spec.shape.back());
    WEIR_CHECK(spec.shape.size() == 1 || part.first_row + part.rows <= spec.shape[0]);
  }
}

}  // namespace
}  // namespace weir::worker

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace weir::worker;
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = input.find('\0');
  const std::string_view generation = zero == std::string_view::npos ? "" : input.substr(zero + 1);
  const auto config = ParseModelConfig(input.substr(0, zero), generation, "input");
  if (!config.ok()) return 0;
  CheckNumbers(*config);
  constexpr int32_t kLargestTable = 2000;  // experts of all layers: keeps each run in milliseconds
  if (config->n_routed_experts * config->num_hidden_layers <= kLargestTable) CheckTable(*config);
  return 0;
}
