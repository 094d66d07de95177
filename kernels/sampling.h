#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

// Choosing a token from a row of logits.  A pure function of its arguments: the same row, parameters and noise key give
// the same token on every backend, whatever else is in the batch.

namespace weir::kernels {

struct SamplingParams {
  float temperature = 1.0f;                           // 0 = greedy: the largest logit, lower id on a tie
  int32_t top_k = 0;                                  // keep the k most likely; 0 = all
  float top_p = 1.0f;                                 // keep the smallest set of at least this probability
  float min_p = 0.0f;                                 // drop tokens under min_p times the most likely one's probability
  float repetition_penalty = 1.0f;                    // over prompt and output: logit > 0 ? logit / p : logit * p
  float presence_penalty = 0.0f;                      // over output: logit - p if the token occurred
  float frequency_penalty = 0.0f;                     // over output: logit - p * count
  std::vector<std::pair<int32_t, float>> logit_bias;  // token id, added to its logit after the penalties
  int32_t num_top_logprobs = 0;                       // alternatives to report, at most kMaxTopLogprobs
  bool wants_logprob = false;                         // report the chosen token's log-probability
};
inline constexpr int32_t kMaxTopLogprobs = 20;

// How often a token occurred in one sequence; only tokens that occurred are listed, in ascending id.
struct TokenCount {
  int32_t token = 0;
  int32_t num_in_prompt = 0;
  int32_t num_in_output = 0;
};

// One row to sample.  All pointers must live until the backend's Synchronize returns.
struct SampleRow {
  const SamplingParams* params = nullptr;
  std::span<const TokenCount> history;  // may be empty when no penalty is set
  uint64_t noise_key = 0;               // NoiseKey(seed, request id)
  int64_t position = 0;                 // of the token to be chosen: the counter of the noise
  // >= 0: choose nothing; report the log-probability of this token (a prompt's next token), before penalties and cuts.
  int32_t given_token = -1;
  // When not empty: bit t set = token t may be chosen; (vocab_size + 31) / 32 words.  The others count as -inf, in the
  // log-probabilities too.
  std::span<const uint32_t> allowed_tokens;
};

// What came of one row.  Log-probabilities are of the row's softmax at temperature 1 with bias and penalties applied,
// before temperature, top_k, top_p and min_p: what OpenAI's API reports.
struct SampleOutput {
  int32_t token = -1;     // -1 when the row was not finite or no token was allowed
  bool is_finite = true;  // false: the logits held NaN or infinity (other than masked -inf); token is -1
  float logprob = 0.0f;
  std::vector<std::pair<int32_t, float>> top_logprobs;  // most likely first, lower id first on a tie
};

// A 64-bit key for the counter-based noise of one request: mixes both arguments, so that equal seeds of different
// requests and different seeds of one request draw unrelated noise.
uint64_t NoiseKey(uint64_t seed, uint64_t request_id);

// The specification, used by the backends on a CPU.  logits[vocab_size] in f32; -inf marks tokens that cannot be
// chosen. The cuts follow one another: top_k, then top_p of what top_k left, then min_p, all at the row's temperature.
// The draw is by inversion of one uniform number in [0, 1) from (noise_key, position), kernels/noise.h, over the kept
// tokens in descending probability, ascending id on a tie, with double accumulation.
void SampleFromLogits(std::span<const float> logits, const SampleRow& row, SampleOutput& output);

}  // namespace weir::kernels
