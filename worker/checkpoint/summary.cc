#include <algorithm>
#include <map>

#include "worker/checkpoint/checkpoint.h"
#include "worker/checkpoint/scale_blocks.h"

namespace weir::worker {
namespace {

int64_t& BytesOf(ByteSums& sums, TensorGroup group) {
  switch (group) {
    case TensorGroup::kEmbedding:
      return sums.embedding;
    case TensorGroup::kHead:
      return sums.head;
    case TensorGroup::kNorm:
      return sums.norms;
    case TensorGroup::kAttention:
      return sums.attention;
    case TensorGroup::kDenseFfn:
      return sums.dense_ffn;
    case TensorGroup::kRouter:
      return sums.routers;
    case TensorGroup::kSharedExperts:
      return sums.shared_experts;
    case TensorGroup::kRoutedExperts:
      return sums.routed_experts;
    case TensorGroup::kMtp:
      break;
  }
  return sums.mtp;
}

int64_t NumElements(const TensorSpec& spec) {
  int64_t elements = 1;
  for (const int64_t size : spec.shape) elements *= size;
  return elements;
}

bool IsMtpDuplicate(const TensorSpec& spec) {
  if (spec.group != TensorGroup::kMtp) return false;
  const std::string_view name = spec.name;
  return name.ends_with(".embed_tokens.weight") || name.ends_with(".shared_head.head.weight");
}

}  // namespace

int64_t ByteSums::total() const {
  return embedding + head + norms + attention + dense_ffn + routers + shared_experts + routed_experts + mtp + scales;
}

CheckpointSummary Summarize(const Checkpoint& checkpoint) {
  const ModelConfig& config = checkpoint.config();
  CheckpointSummary summary;
  std::map<std::string, int64_t> bytes_by_dtype;
  int64_t num_routed_parameters = 0;
  for (const TensorSpec& spec : checkpoint.table()) {
    const TensorInfo& tensor = checkpoint.tensor(spec.name);
    const TensorInfo* scales = checkpoint.ScalesOf(spec);
    const int64_t scale_bytes = scales != nullptr ? scales->num_bytes : 0;
    const bool is_mtp = spec.group == TensorGroup::kMtp;
    BytesOf(summary.bytes, spec.group) += tensor.num_bytes + (is_mtp ? scale_bytes : 0);
    if (!is_mtp) summary.bytes.scales += scale_bytes;
    bytes_by_dtype[std::string(kernels::Name(tensor.dtype))] += tensor.num_bytes;
    if (scales != nullptr) bytes_by_dtype[std::string(kernels::Name(scales->dtype))] += scale_bytes;

    const int64_t elements = NumElements(spec);
    if (IsMtpDuplicate(spec)) {
      summary.mtp_duplicate_bytes += tensor.num_bytes;
    } else if (is_mtp) {
      summary.num_mtp_parameters += elements;
    } else {
      summary.num_parameters += elements;
      if (spec.group == TensorGroup::kRoutedExperts)
        num_routed_parameters += elements;
      else if (spec.group != TensorGroup::kEmbedding)
        summary.num_active_parameters += elements;
    }
  }
  if (config.n_routed_experts > 0) {  // experts are equal in size, so the first division leaves nothing over
    summary.num_active_parameters += num_routed_parameters / config.n_routed_experts * config.num_experts_per_tok;
  }
  summary.bytes_by_dtype.assign(bytes_by_dtype.begin(), bytes_by_dtype.end());
  std::sort(summary.bytes_by_dtype.begin(), summary.bytes_by_dtype.end(), [](const auto& a, const auto& b) {
    return a.second != b.second ? a.second > b.second : a.first < b.first;
  });
  summary.kv_bytes_per_token =
      int64_t{config.num_hidden_layers} * config.cache_width() * kernels::SizeOf(kernels::DType::kBF16);
  return summary;
}

ByteSums RankBytes(const Checkpoint& checkpoint, const ParallelLayout& layout, const ExpertMap& experts) {
  ByteSums sums;
  for (const TensorSpec& spec : checkpoint.table()) {
    const TensorPart part = PartOf(spec, layout, experts);
    const TensorInfo& tensor = checkpoint.tensor(spec.name);
    BytesOf(sums, spec.group) += part.rows * part.cols * kernels::SizeOf(tensor.dtype);
    if (const TensorInfo* scales = checkpoint.ScalesOf(spec); scales != nullptr) {
      const ScaleBlocks blocks = ScaleBlocksOf(part);
      sums.scales += blocks.rows * blocks.cols * kernels::SizeOf(scales->dtype);
    }
  }
  return sums;
}

}  // namespace weir::worker
