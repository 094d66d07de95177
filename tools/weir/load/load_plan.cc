#include "tools/weir/load/load_plan.h"

#include <algorithm>
#include <cmath>

namespace weir::tools {
namespace {

// SplitMix64 (Steele, Lea and Flood, 2014): the same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }  // [0, 1)

 private:
  uint64_t state_;
};

void AppendIds(Random random, int64_t count, uint32_t vocab_size, const std::vector<uint32_t>& avoided,
               std::vector<uint32_t>& ids) {
  for (int64_t i = 0; i < count; ++i) {
    auto id = static_cast<uint32_t>(random.Next() % vocab_size);
    while (std::find(avoided.begin(), avoided.end(), id) != avoided.end()) id = (id + 1) % vocab_size;
    ids.push_back(id);
  }
}

}  // namespace

std::vector<PlannedRequest> PlanPoisson(int32_t count, double rate_per_s, int32_t num_prompt_tokens,
                                        int32_t num_output_tokens, uint64_t seed) {
  Random random(seed);
  std::vector<PlannedRequest> plan(static_cast<size_t>(count));
  double at_s = 0;
  for (PlannedRequest& request : plan) {
    request.at_s = at_s;
    request.num_prompt_tokens = num_prompt_tokens;
    request.num_output_tokens = num_output_tokens;
    if (rate_per_s > 0) at_s += -std::log1p(-random.Uniform()) / rate_per_s;
  }
  return plan;
}

std::vector<PlannedRequest> PlanTrace(const sim::RequestTrace& trace, double scale, int64_t max_model_len) {
  std::vector<PlannedRequest> plan;
  plan.reserve(trace.requests.size());
  for (const sim::TraceRequest& recorded : trace.requests) {
    PlannedRequest request;
    request.at_s = static_cast<double>(recorded.arrival_us) * 1e-6;
    request.num_prompt_tokens =
        static_cast<int32_t>(std::clamp<int64_t>(recorded.num_prompt_tokens, 1, max_model_len - 1));
    request.num_output_tokens = static_cast<int32_t>(
        std::clamp<int64_t>(recorded.num_output_tokens, 1, max_model_len - request.num_prompt_tokens));
    request.hash_ids = recorded.hash_ids;
    request.hash_block_tokens = scale * sim::kHashBlockTokens;
    plan.push_back(std::move(request));
  }
  return plan;
}

int64_t CountShortened(const sim::RequestTrace& trace, int64_t max_model_len) {
  return std::count_if(trace.requests.begin(), trace.requests.end(), [max_model_len](const sim::TraceRequest& request) {
    return int64_t{request.num_prompt_tokens} + request.num_output_tokens > max_model_len;
  });
}

std::vector<uint32_t> PromptIds(const PlannedRequest& request, uint64_t seed, uint64_t index, uint32_t vocab_size,
                                const std::vector<uint32_t>& avoided) {
  std::vector<uint32_t> ids;
  ids.reserve(static_cast<size_t>(request.num_prompt_tokens));
  for (size_t block = 0; block < request.hash_ids.size(); ++block) {
    // Where the block ends depends on its place alone, so that equal prefixes stay equal at any scale.
    const int64_t end = std::llround(static_cast<double>(block + 1) * request.hash_block_tokens);
    const int64_t count = std::min<int64_t>(end, request.num_prompt_tokens) - static_cast<int64_t>(ids.size());
    AppendIds(Random(Random(request.hash_ids[block]).Next()), count, vocab_size, avoided, ids);
  }
  const int64_t left = request.num_prompt_tokens - static_cast<int64_t>(ids.size());
  AppendIds(Random(Random(seed).Next() ^ Random(~index).Next()), left, vocab_size, avoided, ids);
  return ids;
}

}  // namespace weir::tools
