#include "worker/model/memory.h"

#include <algorithm>
#include <array>
#include <fstream>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "worker/model/activations.h"
#include "worker/model/expert_exchange.h"
#include "worker/model/weights.h"

namespace weir::worker {
namespace {

constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();

std::string Readable(int64_t num_bytes) {
  const auto bytes = static_cast<double>(num_bytes);
  return bytes < 1e8 ? absl::StrFormat("%.2f MB", bytes / 1e6) : absl::StrFormat("%.2f GB", bytes / 1e9);
}

// A number that stands alone in a file, such as memory.max; kUnlimited for "max" or no file.
int64_t NumberIn(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : kUnlimited;
}

int64_t MemAvailable() {
  std::ifstream file("/proc/meminfo");
  std::string key, unit;
  int64_t kilobytes = 0;
  while (file >> key >> kilobytes) {
    if (key == "MemAvailable:") return kilobytes * 1024;
    std::getline(file, unit);
  }
  return kUnlimited;
}

// Page cache counts as used in a control group, but gives way: only what cannot be dropped is taken off the limit.
int64_t ControlGroupAvailable(const std::string& group) {
  const int64_t limit = NumberIn(group + "/memory.max");
  if (limit == kUnlimited) return kUnlimited;
  int64_t pinned = 0, value = 0;
  std::ifstream stat(group + "/memory.stat");
  std::string key;
  constexpr std::array<const char*, 3> kPinned = {"anon", "unevictable", "slab_unreclaimable"};
  while (stat >> key >> value) {
    if (std::find(kPinned.begin(), kPinned.end(), key) != kPinned.end()) pinned += value;
  }
  return std::max<int64_t>(limit - pinned, 0);
}

// Of this process's control group and all around it: in a container its own is the root of what it sees, under systemd
// it is a service's.
int64_t ControlGroupsAvailable() {
  std::ifstream file("/proc/self/cgroup");
  std::string group;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("0::/")) group = line.substr(sizeof("0::") - 1);
  }
  int64_t available = ControlGroupAvailable("/sys/fs/cgroup");
  for (; group.size() > 1; group.resize(group.rfind('/'))) {
    available = std::min(available, ControlGroupAvailable("/sys/fs/cgroup" + group));
  }
  return available;
}

}  // namespace

ExpertMap ExpertMapOf(const ModelConfig& config, const RankOptions& options) {
  const int32_t world_size = options.layout.world_size();
  return UsedCopies(
      options.expert_map ? *options.expert_map : ExpertMap::Contiguous(config.n_routed_experts, world_size),
      options.layout);
}

kernels::DType CacheDType(const Checkpoint& checkpoint, const RankOptions& options) {
  switch (options.cache_dtype) {
    case RankOptions::CacheDType::kFloat32:
      return kernels::DType::kF32;
    case RankOptions::CacheDType::kBFloat16:
      return kernels::DType::kBF16;
    case RankOptions::CacheDType::kAuto:
      break;
  }
  const TensorInfo& tensor = checkpoint.tensor("model.layers.0.self_attn.kv_b_proj.weight");
  return RunDType(tensor.dtype, options.weight_dtype) == kernels::DType::kF32 ? kernels::DType::kF32
                                                                              : kernels::DType::kBF16;
}

int64_t MaxModelLen(const ModelConfig& config, const RankOptions& options) {
  return options.max_model_len > 0 ? options.max_model_len : config.max_position_embeddings;
}

int64_t AvailableHostBytes() { return std::min(MemAvailable(), ControlGroupsAvailable()); }

int64_t MemoryEstimate::MaxNumBlocks(int64_t num_blocks) const {
  const int64_t block_bytes = std::max<int64_t>(1, cache_bytes / std::max<int64_t>(1, num_blocks));
  return (available_bytes - weights_bytes - workspace_bytes) / block_bytes;
}

std::string MemoryEstimate::ToString() const {
  return absl::StrCat("weights ", Readable(weights_bytes), " + cache ", Readable(cache_bytes), " + workspace ",
                      Readable(workspace_bytes), " = ", Readable(weights_bytes + cache_bytes + workspace_bytes), " of ",
                      available_bytes == kUnlimited ? "unknown" : Readable(available_bytes), " available");
}

MemoryEstimate EstimateMemory(const Checkpoint& checkpoint, const RankOptions& options) {
  const ModelConfig& config = checkpoint.config();
  const ExpertMap experts = ExpertMapOf(config, options);
  const int64_t num_cache_elements =
      options.num_blocks * options.block_size * config.num_hidden_layers * config.cache_width();
  const ExpertExchange::Shape exchange = {.hidden_size = config.hidden_size,
                                          .num_experts_per_tok = config.num_experts_per_tok,
                                          .max_num_rows = options.max_num_batched_tokens};
  return {.weights_bytes =
              WeightsBytes(checkpoint, options.layout, experts, options.weight_dtype, MaxModelLen(config, options)),
          .cache_bytes = num_cache_elements * kernels::SizeOf(CacheDType(checkpoint, options)),
          .workspace_bytes = ActivationBytes(config, options, kernels::DType::kF32) +
                             ExpertExchange::Bytes(exchange, options.layout, kernels::DType::kF32),
          .available_bytes = AvailableHostBytes()};
}

}  // namespace weir::worker
