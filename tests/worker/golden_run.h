#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "tests/kernels/forwarding_backend.h"
#include "tests/worker/golden_case.h"
#include "worker/rank.h"

// Runs golden prompts on a rank through its plans, and compares every logit of every position.

namespace weir::worker {

// Keeps the logits that go to the sampler, by the position of the token that they are for.
class RecordingBackend : public kernels::ForwardingBackend {
 public:
  using ForwardingBackend::ForwardingBackend;
  void Sample(std::span<kernels::SampleOutput> outputs, kernels::TensorView logits,
              std::span<const kernels::SampleRow> rows) override;

  std::map<int64_t, std::vector<float>> logits_by_position;
};

// How a prompt and its continuation are cut into steps.
enum class Cut {
  kWhole,       // the prompt in one step, then one token a step
  kChunks,      // the prompt in steps of 7, then one token a step
  kRecomputed,  // everything in one step, as after a preemption in mid-answer
};

struct GoldenErrors {
  double largest = 0.0;
  double p90 = 0.0;     // over rows, of each row's largest
  double median = 0.0;  // the same
  int64_t row = 0;      // of the largest
};

class GoldenRunner {
 public:
  // `backend` must outlive this.  The rank's backend is `backend` behind a recorder.
  GoldenRunner(kernels::Backend& backend, const Checkpoint& checkpoint, WeightDType weight_dtype);

  // Differences in log-probability of all prompts' rows; the tokens after the prompt are `continuation`'s.
  GoldenErrors Compare(const GoldenCase& golden, const GoldenLogits& expected,
                       GoldenPrompt::Continuation GoldenPrompt::* continuation, Cut cut);

  // The `count` tokens that a greedy sequence samples after a prompt.
  std::vector<int32_t> Greedy(std::span<const int32_t> prompt, int32_t count);

 private:
  void Step(int32_t first_position, int32_t num_tokens, std::span<const int32_t> given);
  void Begin(std::span<const int32_t> prompt, std::span<const int32_t> after);
  StepResult Run(const StepPlan& plan);
  void RunCut(const GoldenPrompt& prompt, std::span<const int32_t> after, Cut cut);

  RecordingBackend recorder_;
  std::unique_ptr<Rank> rank_;
  uint64_t step_id_ = 0;
  SequenceSetup setup_;  // of the sequence to come, sent with its first step
  bool has_setup_ = false;
  int32_t num_blocks_sent_ = 0;
  int32_t last_sampled_ = -1;
};

}  // namespace weir::worker
