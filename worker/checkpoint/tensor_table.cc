#include "worker/checkpoint/tensor_table.h"

#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/check.h"

namespace weir::worker {
namespace {

using Config = ModelConfig;
using Size = int64_t (*)(const Config&);
using Condition = bool (*)(const Config&, int32_t layer);

// ---- sizes, with the letters of the papers ----

constexpr Size kOne = nullptr;  // a 1-D tensor has no columns
int64_t V(const Config& c) { return c.vocab_size; }
int64_t D(const Config& c) { return c.hidden_size; }
int64_t TwoD(const Config& c) { return int64_t{2} * c.hidden_size; }
int64_t Rq(const Config& c) { return c.q_lora_rank; }
int64_t C(const Config& c) { return c.kv_lora_rank; }
int64_t CacheWidth(const Config& c) { return c.cache_width(); }
int64_t QueryHeads(const Config& c) { return int64_t{c.num_attention_heads} * c.qk_head_dim(); }
int64_t KeyValueHeads(const Config& c) { return int64_t{c.num_attention_heads} * (c.qk_nope_head_dim + c.v_head_dim); }
int64_t ValueHeads(const Config& c) { return int64_t{c.num_attention_heads} * c.v_head_dim; }
int64_t Id(const Config& c) { return c.intermediate_size; }
int64_t I(const Config& c) { return c.moe_intermediate_size; }
int64_t SharedI(const Config& c) { return int64_t{c.n_shared_experts} * c.moe_intermediate_size; }
int64_t E(const Config& c) { return c.n_routed_experts; }

// ---- which layers have a tensor ----

bool Always(const Config&, int32_t) { return true; }
bool HasQueryRank(const Config& c, int32_t) { return c.q_lora_rank > 0; }
bool HasNoQueryRank(const Config& c, int32_t) { return c.q_lora_rank == 0; }
bool IsDense(const Config& c, int32_t layer) { return !c.IsMoeLayer(layer); }
bool IsMoe(const Config& c, int32_t layer) { return c.IsMoeLayer(layer); }
bool HasBias(const Config& c, int32_t layer) { return c.IsMoeLayer(layer) && c.topk_method == "noaux_tc"; }
bool HasShared(const Config& c, int32_t layer) { return c.IsMoeLayer(layer) && c.n_shared_experts > 0; }

struct Row {
  const char* name;  // after the prefix; '*' stands for an expert's id, and the row for one tensor of every expert
  Size rows;
  Size cols;
  Condition condition;
  bool may_be_fp8;
  TensorGroup group;
  TensorSplit split;
};

constexpr bool kWide = false;  // BF16, F16 or F32 only
constexpr bool kMayFp8 = true;
using enum TensorGroup;
using enum TensorSplit;

// ---- the table ----

constexpr Row kBeforeLayers[] = {
    {"model.embed_tokens.weight", V, D, Always, kWide, kEmbedding, kRows},
};

constexpr Row kLayer[] = {
    // after "model.layers.N."
    {"input_layernorm.weight", D, kOne, Always, kWide, kNorm, kReplicated},
    {"self_attn.q_proj.weight", QueryHeads, D, HasNoQueryRank, kMayFp8, kAttention, kRows},
    {"self_attn.q_a_proj.weight", Rq, D, HasQueryRank, kMayFp8, kAttention, kReplicated},
    {"self_attn.q_a_layernorm.weight", Rq, kOne, HasQueryRank, kWide, kNorm, kReplicated},
    {"self_attn.q_b_proj.weight", QueryHeads, Rq, HasQueryRank, kMayFp8, kAttention, kRows},
    {"self_attn.kv_a_proj_with_mqa.weight", CacheWidth, D, Always, kMayFp8, kAttention, kReplicated},
    {"self_attn.kv_a_layernorm.weight", C, kOne, Always, kWide, kNorm, kReplicated},
    {"self_attn.kv_b_proj.weight", KeyValueHeads, C, Always, kMayFp8, kAttention, kRows},
    {"self_attn.o_proj.weight", D, ValueHeads, Always, kMayFp8, kAttention, kColumns},
    {"post_attention_layernorm.weight", D, kOne, Always, kWide, kNorm, kReplicated},
    {"mlp.gate_proj.weight", Id, D, IsDense, kMayFp8, kDenseFfn, kRows},
    {"mlp.up_proj.weight", Id, D, IsDense, kMayFp8, kDenseFfn, kRows},
    {"mlp.down_proj.weight", D, Id, IsDense, kMayFp8, kDenseFfn, kColumns},
    {"mlp.gate.weight", E, D, IsMoe, kWide, kRouter, kReplicated},
    {"mlp.gate.e_score_correction_bias", E, kOne, HasBias, kWide, kRouter, kReplicated},
    {"mlp.experts.*.gate_proj.weight", I, D, IsMoe, kMayFp8, kRoutedExperts, kExpert},
    {"mlp.experts.*.up_proj.weight", I, D, IsMoe, kMayFp8, kRoutedExperts, kExpert},
    {"mlp.experts.*.down_proj.weight", D, I, IsMoe, kMayFp8, kRoutedExperts, kExpert},
    {"mlp.shared_experts.gate_proj.weight", SharedI, D, HasShared, kMayFp8, kSharedExperts, kRows},
    {"mlp.shared_experts.up_proj.weight", SharedI, D, HasShared, kMayFp8, kSharedExperts, kRows},
    {"mlp.shared_experts.down_proj.weight", D, SharedI, HasShared, kMayFp8, kSharedExperts, kColumns},
};

constexpr Row kAfterLayers[] = {
    {"model.norm.weight", D, kOne, Always, kWide, kNorm, kReplicated},
    {"lm_head.weight", V, D, Always, kWide, kHead, kRows},
};

constexpr Row kMtpLayer[] = {
    // after "model.layers.N.", beside all of kLayer
    {"enorm.weight", D, kOne, Always, kWide, kMtp, kUnused},
    {"hnorm.weight", D, kOne, Always, kWide, kMtp, kUnused},
    {"eh_proj.weight", D, TwoD, Always, kWide, kMtp, kUnused},
    {"shared_head.norm.weight", D, kOne, Always, kWide, kMtp, kUnused},
    {"embed_tokens.weight", V, D, Always, kWide, kMtp, kUnused},      // equals model.embed_tokens.weight
    {"shared_head.head.weight", V, D, Always, kWide, kMtp, kUnused},  // equals lm_head.weight
};

TensorSpec MakeSpec(const Config& config, const Row& row, std::string name, int32_t layer, int32_t expert) {
  TensorSpec spec;
  spec.name = std::move(name);
  spec.shape = row.cols == kOne ? std::vector<int64_t>{row.rows(config)}
                                : std::vector<int64_t>{row.rows(config), row.cols(config)};
  spec.may_be_fp8 = row.may_be_fp8;
  const bool is_mtp = layer >= config.num_hidden_layers;
  spec.group = is_mtp ? kMtp : row.group;
  spec.split = is_mtp ? kUnused : row.split;
  spec.layer = layer;
  spec.expert = expert;
  return spec;
}

// Rows that name an expert stand next to each other: the published order is expert by expert.
void AddRows(const Config& config, std::span<const Row> rows, const std::string& prefix, int32_t layer,
             std::vector<TensorSpec>& table) {
  const auto names_expert = [](const Row& row) {
    return std::string_view(row.name).find('*') != std::string_view::npos;
  };
  for (size_t i = 0; i < rows.size();) {
    size_t end = i + 1;
    const bool is_expert = names_expert(rows[i]);
    while (is_expert && end < rows.size() && names_expert(rows[end])) ++end;
    const int32_t num_experts = is_expert ? config.n_routed_experts : 1;
    for (int32_t expert = 0; expert < num_experts; ++expert) {
      for (const Row& row : rows.subspan(i, end - i)) {
        if (!row.condition(config, layer)) continue;
        std::string name = prefix + row.name;
        if (is_expert) name.replace(name.find('*'), 1, absl::StrCat(expert));
        table.push_back(MakeSpec(config, row, std::move(name), layer, is_expert ? expert : -1));
      }
    }
    i = end;
  }
}

}  // namespace

std::vector<TensorSpec> TensorTable(const ModelConfig& config) {
  std::vector<TensorSpec> table;
  const auto layer_prefix = [](int32_t layer) { return absl::StrFormat("model.layers.%d.", layer); };
  AddRows(config, kBeforeLayers, "", -1, table);
  for (int32_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    AddRows(config, kLayer, layer_prefix(layer), layer, table);
  }
  AddRows(config, kAfterLayers, "", -1, table);
  for (int32_t i = 0; i < config.num_nextn_predict_layers; ++i) {
    const int32_t layer = config.num_hidden_layers + i;
    AddRows(config, kLayer, layer_prefix(layer), layer, table);
    AddRows(config, kMtpLayer, layer_prefix(layer), layer, table);
  }
  return table;
}

TensorPart PartOf(const TensorSpec& spec, const ParallelLayout& layout, const ExpertMap& experts) {
  const bool is_vector = spec.shape.size() == 1;
  const TensorPart whole{0, is_vector ? 1 : spec.shape[0], 0, is_vector ? spec.shape[0] : spec.shape[1]};
  TensorPart part = whole;
  switch (spec.split) {
    case TensorSplit::kReplicated:
      return whole;
    case TensorSplit::kRows:
      WEIR_CHECK(whole.rows % layout.tp == 0, "CheckLayout allows no such tp");
      part.rows = whole.rows / layout.tp;
      part.first_row = part.rows * layout.tp_rank();
      return part;
    case TensorSplit::kColumns:
      WEIR_CHECK(whole.cols % layout.tp == 0, "CheckLayout allows no such tp");
      part.cols = whole.cols / layout.tp;
      part.first_col = part.cols * layout.tp_rank();
      return part;
    case TensorSplit::kExpert:
      for (const int32_t rank : experts.RanksOf(spec.expert)) {
        if (rank == layout.rank) return whole;
      }
      return TensorPart{};
    case TensorSplit::kUnused:
      return TensorPart{};
  }
  return TensorPart{};
}

}  // namespace weir::worker
