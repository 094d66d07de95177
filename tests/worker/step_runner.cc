#include "tests/worker/step_runner.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "tests/worker/tiny_models.h"

namespace weir::worker {
namespace {

constexpr int32_t kVocabSize = 96;

Distribution DistributionOf(const kernels::SampleOutput& output) {
  Distribution distribution;
  for (const auto& [token, logprob] : output.top_logprobs) {
    distribution.emplace_back(token, std::bit_cast<uint32_t>(logprob));
  }
  return distribution;
}

SequenceWork WorkOf(TestSequence& sequence, int32_t num_tokens, int32_t block_size) {
  SequenceWork work = {.slot = sequence.slot,
                       .has_setup = sequence.is_new,
                       .first_position = sequence.num_computed,
                       .num_tokens = num_tokens,
                       .first_new_block = sequence.num_blocks_sent,
                       .samples = sequence.num_computed + num_tokens == sequence.num_known(),
                       .reports_prompt_logprobs = true};
  if (work.has_setup) {
    work.setup.num_prompt_tokens = static_cast<int32_t>(sequence.prompt.size());
    work.setup.token_ids = sequence.prompt;
    work.setup.token_ids.insert(work.setup.token_ids.end(), sequence.generated.begin(), sequence.generated.end());
    work.setup.sampling = {.temperature = 0.0f, .num_top_logprobs = kernels::kMaxTopLogprobs, .wants_logprob = true};
  }
  const int32_t num_blocks = (sequence.num_computed + num_tokens + block_size - 1) / block_size;
  WEIR_CHECK(num_blocks <= static_cast<int32_t>(sequence.blocks.size()), "a test sequence needs more blocks");
  for (int32_t i = sequence.num_blocks_sent; i < num_blocks; ++i) work.new_block_ids.push_back(sequence.blocks[i]);
  sequence.num_blocks_sent = std::max(sequence.num_blocks_sent, num_blocks);
  return work;
}

}  // namespace

void TestSequence::Restart(SlotId new_slot, std::vector<int32_t> new_blocks) {
  slot = new_slot;
  blocks = std::move(new_blocks);
  num_computed = 0;
  is_new = true;
  num_blocks_sent = 0;
  distributions.clear();
}

void StepRunner::Run(const std::vector<TestWork>& work) {
  StepPlan plan = {.step_id = ++step_id_, .released = std::exchange(released_, {})};
  for (const TestWork& w : work) plan.work.push_back(WorkOf(*w.sequence, w.num_tokens, rank_->options().block_size));
  absl::StatusOr<StepResult> result = rank_->Run(plan);
  WEIR_CHECK(result.ok(), std::string(result.status().message()));
  for (size_t i = 0; i < work.size(); ++i) {
    TestSequence& sequence = *work[i].sequence;
    const SequenceResult& answer = result->sequences[i];
    WEIR_CHECK(answer.error.empty(), answer.error);
    sequence.is_new = false;
    for (const kernels::SampleOutput& output : answer.prompt_logprobs) {
      sequence.distributions[sequence.num_computed++] = DistributionOf(output);
    }
    if (!answer.has_sampled) continue;
    // The sampled row and the reported row are one and the same.
    WEIR_CHECK(DistributionOf(answer.sampled) == sequence.distributions[sequence.num_computed - 1]);
    sequence.generated.push_back(answer.sampled.token);
  }
}

void StepRunner::RunAlone(TestSequence& sequence, size_t num_generated, int32_t chunk) {
  while (sequence.generated.size() < num_generated) {
    Run({{&sequence, std::min(chunk, sequence.num_known() - sequence.num_computed)}});
  }
}

void StepRunner::Release(const TestSequence& sequence) { released_.push_back({.slot = sequence.slot}); }

std::string Difference(const Distributions& whole, const Distributions& part) {
  for (const auto& [position, distribution] : part) {
    const auto found = whole.find(position);
    if (found == whole.end()) return absl::StrCat("position ", position, " is missing");
    if (distribution.empty()) return absl::StrCat("position ", position, " has no distribution");
    for (size_t i = 0; i < distribution.size(); ++i) {
      if (i < found->second.size() && distribution[i] == found->second[i]) continue;
      return absl::StrCat("position ", position, ", rank ", i, " of 20: token ", distribution[i].first, " with ",
                          std::bit_cast<float>(distribution[i].second), ", expected token ", found->second[i].first,
                          " with ", std::bit_cast<float>(found->second[i].second));
    }
  }
  return "";
}

std::vector<int32_t> SomeTokens(uint32_t seed, int32_t count) {
  std::mt19937 random(seed);  // the standard fixes its output
  std::vector<int32_t> tokens;
  while (static_cast<int32_t>(tokens.size()) < count) {
    const auto token = static_cast<int32_t>(random() % kVocabSize);
    if (token != kNanToken) tokens.push_back(token);
  }
  return tokens;
}

}  // namespace weir::worker
