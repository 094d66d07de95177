#include "tests/worker/golden_run.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "kernels/check.h"
#include "tests/kernels/rig.h"

namespace weir::worker {
namespace {

constexpr int32_t kBlockSize = 64;
constexpr int32_t kBlockIds[] = {9, 3, 12, 1, 14, 7};  // in no order, and not all there are
constexpr int32_t kNumBlocks = 16;
constexpr int32_t kMaxTokens = kBlockSize * static_cast<int32_t>(std::size(kBlockIds));

std::vector<double> LogProbabilities(std::span<const float> logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float x : logits) sum += std::exp(x - max);
  std::vector<double> result;
  result.reserve(logits.size());
  for (const float x : logits) result.push_back(x - max - std::log(sum));
  return result;
}

double LargestDifference(std::span<const float> a, std::span<const float> b) {
  const std::vector<double> x = LogProbabilities(a), y = LogProbabilities(b);
  double largest = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double difference = std::fabs(x[i] - y[i]);
    largest = std::isnan(difference) ? INFINITY : std::max(largest, difference);
  }
  return largest;
}

GoldenErrors Summarize(std::vector<double> by_row) {
  GoldenErrors errors;
  const auto largest = std::max_element(by_row.begin(), by_row.end());
  errors.largest = *largest;
  errors.row = largest - by_row.begin();
  std::sort(by_row.begin(), by_row.end());
  errors.median = by_row[by_row.size() / 2];
  errors.p90 = by_row[by_row.size() * 9 / 10];
  return errors;
}

}  // namespace

void RecordingBackend::Sample(std::span<kernels::SampleOutput> outputs, kernels::TensorView logits,
                              std::span<const kernels::SampleRow> rows) {
  const kernels::Values values = kernels::ReadTensor(inner_, logits);
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::span<const float> row = values.row(static_cast<int64_t>(i));
    logits_by_position[rows[i].position].assign(row.begin(), row.end());
  }
  inner_.Sample(outputs, logits, rows);
}

GoldenRunner::GoldenRunner(kernels::Backend& backend, const Checkpoint& checkpoint, WeightDType weight_dtype)
    : recorder_(backend) {
  RankOptions options;
  options.weight_dtype = weight_dtype;
  options.block_size = kBlockSize;
  options.num_blocks = kNumBlocks;
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = kMaxTokens;
  options.max_model_len = kMaxTokens;
  absl::StatusOr<std::unique_ptr<Rank>> rank = Rank::Load(checkpoint, options, &recorder_, nullptr, nullptr);
  WEIR_CHECK(rank.ok(), std::string(rank.status().message()));
  rank_ = *std::move(rank);
}

void GoldenRunner::Begin(std::span<const int32_t> prompt, std::span<const int32_t> after) {
  StepPlan plan{.step_id = ++step_id_};
  plan.released = {{.dp_rank = 0, .slot = 0}};
  Run(plan);
  recorder_.logits_by_position.clear();
  setup_ = {};
  setup_.num_prompt_tokens = static_cast<int32_t>(prompt.size());
  setup_.token_ids.assign(prompt.begin(), prompt.end());
  setup_.token_ids.insert(setup_.token_ids.end(), after.begin(), after.end());
  setup_.sampling.temperature = 0.0f;
  has_setup_ = true;
  num_blocks_sent_ = 0;
}

StepResult GoldenRunner::Run(const StepPlan& plan) {
  absl::StatusOr<StepResult> result = rank_->Run(plan);
  WEIR_CHECK(result.ok(), std::string(result.status().message()));
  return *std::move(result);
}

// `given`: the tokens of these positions, where the setup does not have them and the rank did not sample them.
void GoldenRunner::Step(int32_t first_position, int32_t num_tokens, std::span<const int32_t> given) {
  SequenceWork work;
  work.has_setup = std::exchange(has_setup_, false);
  if (work.has_setup) work.setup = setup_;
  work.first_position = first_position;
  work.num_tokens = num_tokens;
  work.token_ids.assign(given.begin(), given.end());
  work.first_new_block = num_blocks_sent_;
  const int32_t num_blocks = (first_position + num_tokens + kBlockSize - 1) / kBlockSize;
  for (; num_blocks_sent_ < num_blocks; ++num_blocks_sent_) work.new_block_ids.push_back(kBlockIds[num_blocks_sent_]);
  work.samples = true;
  work.reports_prompt_logprobs = true;
  StepPlan plan{.step_id = ++step_id_};
  plan.work.push_back(std::move(work));
  const StepResult result = Run(plan);
  WEIR_CHECK(result.sequences.size() == 1 && result.sequences[0].error.empty(), result.sequences[0].error);
  last_sampled_ = result.sequences[0].sampled.token;
}

void GoldenRunner::RunCut(const GoldenPrompt& prompt, std::span<const int32_t> after, Cut cut) {
  const int32_t num_prompt = static_cast<int32_t>(prompt.prompt_ids.size()), num_rows = prompt.row_count;
  if (cut == Cut::kRecomputed) {
    Begin(prompt.prompt_ids, after.first(num_rows - num_prompt));
    return Step(0, num_rows, {});
  }
  Begin(prompt.prompt_ids, {});
  const int32_t chunk = cut == Cut::kChunks ? 7 : num_prompt;
  for (int32_t first = 0; first < num_prompt; first += chunk) Step(first, std::min(chunk, num_prompt - first), {});
  for (int32_t p = num_prompt; p < num_rows; ++p) Step(p, 1, after.subspan(p - num_prompt, 1));
}

GoldenErrors GoldenRunner::Compare(const GoldenCase& golden, const GoldenLogits& expected,
                                   GoldenPrompt::Continuation GoldenPrompt::* continuation, Cut cut) {
  std::vector<double> by_row;
  for (const GoldenPrompt& prompt : golden.prompts) {
    RunCut(prompt, (prompt.*continuation).ids, cut);
    for (int32_t r = 0; r < prompt.row_count; ++r) {
      const auto found = recorder_.logits_by_position.find(r + 1);
      WEIR_CHECK(found != recorder_.logits_by_position.end(), "no logits after position " + std::to_string(r));
      const float* row = expected.row(prompt.first_row + r);
      by_row.push_back(LargestDifference(found->second, {row, static_cast<size_t>(expected.vocab_size)}));
    }
  }
  return Summarize(std::move(by_row));
}

std::vector<int32_t> GoldenRunner::Greedy(std::span<const int32_t> prompt, int32_t count) {
  Begin(prompt, {});
  Step(0, static_cast<int32_t>(prompt.size()), {});
  std::vector<int32_t> tokens = {last_sampled_};
  while (static_cast<int32_t>(tokens.size()) < count) {
    Step(static_cast<int32_t>(prompt.size() + tokens.size()) - 1, 1, {});
    tokens.push_back(last_sampled_);
  }
  return tokens;
}

}  // namespace weir::worker
