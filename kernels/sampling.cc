#include "kernels/sampling.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "kernels/check.h"
#include "kernels/noise.h"

namespace weir::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr size_t kLanes = 16;  // independent partial results, so that the compiler may use vectors; part of the result

// e^x for x <= 0, within 1e-7 of it, and 0 below -87.7.  Exactly 1 at 0, never more.  No library call, so that loops
// become vector code and every build gives the same bits.
inline float Exp(float x) {
  // -x clamped to 88 as an integer: the compiler turns a comparison of floats into a branch.  At -88 n is -127, whose
  // power has no bits: 0.
  const int32_t magnitude = std::min(std::bit_cast<int32_t>(x) & 0x7fffffff, std::bit_cast<int32_t>(88.0f));
  const float clamped = -std::bit_cast<float>(magnitude);
  const float shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer lands in the low bits
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const float power = std::bit_cast<float>((std::bit_cast<uint32_t>(shifted) - 0x4b400000u + 127u) << 23);
  return p * power;
}

struct RowScan {
  float max = -kInfinity;
  bool is_finite = true;  // no NaN, no +inf
};

RowScan Scan(std::span<const float> logits) {
  std::array<float, kLanes> max;
  std::array<uint32_t, kLanes> bad{};
  max.fill(-kInfinity);
  size_t i = 0;
  for (; i + kLanes <= logits.size(); i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const float x = logits[i + lane];
      max[lane] = x > max[lane] ? x : max[lane];
      bad[lane] |= x < kInfinity ? 0u : 1u;
    }
  }
  RowScan scan;
  for (; i < logits.size(); ++i) {
    scan.max = std::max(scan.max, logits[i]);
    scan.is_finite &= logits[i] < kInfinity;
  }
  for (const float x : max) scan.max = std::max(scan.max, x);
  for (const uint32_t x : bad) scan.is_finite &= x == 0;
  return scan;
}

int32_t FirstIndexOf(std::span<const float> logits, float value) {
  return static_cast<int32_t>(std::find(logits.begin(), logits.end(), value) - logits.begin());
}

// weights[i] = e^((logits[i] - max) / temperature), in [0, 1].
void ComputeWeights(std::span<const float> logits, float max, float temperature, float* __restrict weights) {
  const float* __restrict x = logits.data();
  for (size_t i = 0; i < logits.size(); ++i) {
    weights[i] = Exp((x[i] - max) / temperature);
  }
}

// log of the sum of e^logit.
double LogSumExp(std::span<const float> logits, float max) {
  constexpr size_t kChunk = 1024;
  std::array<float, kChunk> weights;
  std::array<double, kLanes> sums{};
  for (size_t first = 0; first < logits.size(); first += kChunk) {
    const size_t count = std::min(kChunk, logits.size() - first);
    weights.fill(0.0f);
    ComputeWeights(logits.subspan(first, count), max, 1.0f, weights.data());
    for (size_t i = 0; i < kChunk; i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) sums[lane] += weights[i + lane];
    }
  }
  double sum = 0.0;
  for (const double x : sums) sum += x;
  return static_cast<double>(max) + std::log(sum);
}

// The `count` largest logits, largest first, lower id first on a tie.  -inf is never among them.
std::vector<std::pair<int32_t, float>> Largest(std::span<const float> logits, int32_t count) {
  std::vector<std::pair<int32_t, float>> top;
  const size_t limit = static_cast<size_t>(std::clamp(count, 0, kMaxTopLogprobs));
  if (limit == 0) return top;
  float threshold = -kInfinity;  // ids ascend, so a later equal never displaces an earlier one
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] > threshold)) continue;
    if (top.size() == limit) top.pop_back();
    const auto place =
        std::find_if(top.begin(), top.end(), [&](const auto& entry) { return entry.second < logits[i]; });
    top.insert(place, {static_cast<int32_t>(i), logits[i]});
    if (top.size() == limit) threshold = top.back().second;
  }
  return top;
}

void ReportLogprobs(std::span<const float> logits, float max, const SamplingParams& params, SampleOutput& output) {
  if (!params.wants_logprob && params.num_top_logprobs <= 0) return;
  const double log_sum = LogSumExp(logits, max);
  if (output.token >= 0) output.logprob = static_cast<float>(static_cast<double>(logits[output.token]) - log_sum);
  output.top_logprobs = Largest(logits, params.num_top_logprobs);
  for (auto& [token, logprob] : output.top_logprobs) {
    logprob = static_cast<float>(static_cast<double>(logprob) - log_sum);
  }
}

// ---- penalties, bias, mask ----

bool HasPenalties(const SamplingParams& params) {
  return params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f;
}

void ApplyPenalties(std::span<float> logits, const SamplingParams& params, std::span<const TokenCount> history) {
  for (const TokenCount& count : history) {
    WEIR_CHECK(count.token >= 0 && static_cast<size_t>(count.token) < logits.size(), "history beyond the vocabulary");
    float& logit = logits[count.token];
    logit = logit > 0.0f ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    if (count.num_in_output > 0) {
      logit -= params.presence_penalty + params.frequency_penalty * static_cast<float>(count.num_in_output);
    }
  }
}

void ApplyBias(std::span<float> logits, std::span<const std::pair<int32_t, float>> bias) {
  for (const auto& [token, value] : bias) {
    if (token >= 0 && static_cast<size_t>(token) < logits.size()) logits[token] += value;
  }
}

void ApplyMask(std::span<float> logits, std::span<const uint32_t> allowed) {
  WEIR_CHECK(allowed.size() == (logits.size() + 31) / 32, "a mask has one bit per token");
  for (size_t word = 0; word < allowed.size(); ++word) {
    if (allowed[word] == ~0u) continue;
    const size_t end = std::min(logits.size(), word * 32 + 32);
    for (size_t i = word * 32; i < end; ++i) {
      if ((allowed[word] >> (i % 32) & 1u) == 0) logits[i] = -kInfinity;
    }
  }
}

// The logits that the choice is made from: `logits` itself where nothing changes them, `scratch` otherwise.
std::span<const float> Adjust(std::span<const float> logits, const SampleRow& row, std::vector<float>& scratch) {
  const SamplingParams& params = *row.params;
  if (!HasPenalties(params) && params.logit_bias.empty() && row.allowed_tokens.empty()) return logits;
  scratch.assign(logits.begin(), logits.end());
  if (HasPenalties(params)) ApplyPenalties(scratch, params, row.history);
  ApplyBias(scratch, params.logit_bias);
  if (!row.allowed_tokens.empty()) ApplyMask(scratch, row.allowed_tokens);
  return scratch;
}

// ---- the draw ----

// Tokens in descending weight, by buckets of nearly equal weight; only the buckets where something is decided are ever
// sorted.  Weights lie in [0, 1], the largest is 1; tokens of weight 0 do not take part.
class Ranking {
 public:
  // The tokens of all buckets before `bucket`, and the first `within` of that bucket.
  struct Prefix {
    size_t bucket = 0;
    size_t within = 0;
    double mass = 0.0;
  };

  void Fill(std::span<const float> logits, float max, float temperature);

  Prefix All() const;
  Prefix FirstCount(int64_t count);
  Prefix FirstMass(double mass);                     // the smallest prefix of at least `mass`, one token at least
  Prefix HeaviestFrom(float weight);                 // the tokens of at least `weight`, at most 1
  int32_t TokenAt(double mass, const Prefix& kept);  // the first whose cumulative mass exceeds `mass`

 private:
  static constexpr int kBucketBits = 17;  // 64 buckets for each halving of the weight
  static constexpr uint32_t kOne = 0x3f800000u;
  static constexpr size_t kNumBuckets = (kOne >> kBucketBits) + 1;
  static size_t BucketOf(float weight) { return (kOne - std::bit_cast<uint32_t>(weight)) >> kBucketBits; }

  void AppendMembers(size_t bucket);
  const std::vector<int32_t>& Sorted(size_t bucket);

  std::span<const float> logits_;
  std::vector<float> weights_;
  std::vector<int32_t> counts_;
  std::vector<double> masses_;
  std::vector<int32_t> sorted_;  // the tokens of sorted_bucket_
  size_t sorted_bucket_ = kNumBuckets;
};

void Ranking::Fill(std::span<const float> logits, float max, float temperature) {
  logits_ = logits;
  weights_.resize(logits.size());
  ComputeWeights(logits, max, temperature, weights_.data());
  counts_.assign(kNumBuckets, 0);
  masses_.assign(kNumBuckets, 0.0);
  sorted_bucket_ = kNumBuckets;
  for (const float weight : weights_) {
    if (weight == 0.0f) continue;
    const size_t bucket = BucketOf(weight);
    ++counts_[bucket];
    masses_[bucket] += weight;
  }
}

// Looks at kLanes weights at a time: most hold no member of the bucket.
void Ranking::AppendMembers(size_t bucket) {
  const auto is_member = [&](float weight) { return weight != 0.0f && BucketOf(weight) == bucket; };
  size_t i = 0;
  for (; i + kLanes <= weights_.size(); i += kLanes) {
    uint32_t has_member = 0;
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const uint32_t bits = std::bit_cast<uint32_t>(weights_[i + lane]);
      has_member |= (kOne - bits) >> kBucketBits == bucket ? 1u : 0u;
    }
    if (has_member == 0) continue;
    for (size_t lane = 0; lane < kLanes; ++lane) {
      if (is_member(weights_[i + lane])) sorted_.push_back(static_cast<int32_t>(i + lane));
    }
  }
  for (; i < weights_.size(); ++i) {
    if (is_member(weights_[i])) sorted_.push_back(static_cast<int32_t>(i));
  }
}

const std::vector<int32_t>& Ranking::Sorted(size_t bucket) {
  if (bucket == sorted_bucket_) return sorted_;
  sorted_bucket_ = bucket;
  sorted_.clear();
  AppendMembers(bucket);
  std::sort(sorted_.begin(), sorted_.end(),
            [this](int32_t a, int32_t b) { return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b; });
  return sorted_;
}

Ranking::Prefix Ranking::All() const {
  Prefix prefix{kNumBuckets, 0, 0.0};
  for (const double mass : masses_) prefix.mass += mass;
  return prefix;
}

Ranking::Prefix Ranking::FirstCount(int64_t count) {
  Prefix prefix;
  for (; prefix.bucket < kNumBuckets && count > counts_[prefix.bucket]; ++prefix.bucket) {
    count -= counts_[prefix.bucket];
    prefix.mass += masses_[prefix.bucket];
  }
  if (prefix.bucket == kNumBuckets) return prefix;
  for (const int32_t token : std::span(Sorted(prefix.bucket)).first(static_cast<size_t>(count))) {
    prefix.mass += weights_[token];
    ++prefix.within;
  }
  return prefix;
}

Ranking::Prefix Ranking::FirstMass(double mass) {
  Prefix prefix;
  for (; prefix.bucket + 1 < kNumBuckets && prefix.mass + masses_[prefix.bucket] < mass; ++prefix.bucket) {
    prefix.mass += masses_[prefix.bucket];
  }
  for (const int32_t token : Sorted(prefix.bucket)) {
    if (prefix.mass >= mass && prefix.mass > 0.0) break;
    prefix.mass += weights_[token];
    ++prefix.within;
  }
  return prefix;
}

Ranking::Prefix Ranking::HeaviestFrom(float weight) {
  Prefix prefix;
  for (; prefix.bucket < BucketOf(weight); ++prefix.bucket) prefix.mass += masses_[prefix.bucket];
  for (const int32_t token : Sorted(prefix.bucket)) {
    if (weights_[token] < weight) break;
    prefix.mass += weights_[token];
    ++prefix.within;
  }
  return prefix;
}

int32_t Ranking::TokenAt(double mass, const Prefix& kept) {
  size_t bucket = 0, last = 0;  // last: the last bucket before `bucket` that holds a token
  double before = 0.0;
  for (; bucket < kept.bucket && before + masses_[bucket] <= mass; ++bucket) {
    before += masses_[bucket];
    if (counts_[bucket] > 0) last = bucket;
  }
  size_t limit = kept.within;  // of the kept tokens in `bucket`
  if (bucket < kept.bucket) {
    limit = static_cast<size_t>(counts_[bucket]);
  } else if (limit == 0) {  // rounding carried past the end
    bucket = last;
    limit = static_cast<size_t>(counts_[last]);
  }
  const std::vector<int32_t>& tokens = Sorted(bucket);
  for (size_t i = 0; i + 1 < limit; ++i) {
    before += weights_[tokens[i]];
    if (before > mass) return tokens[i];
  }
  return tokens[limit - 1];
}

bool IsShorter(const Ranking::Prefix& a, const Ranking::Prefix& b) {
  return a.bucket != b.bucket ? a.bucket < b.bucket : a.within < b.within;
}

// top_k, then top_p of what top_k left, then min_p: each keeps the beginning of the ranking.
Ranking::Prefix Cut(Ranking& ranking, const SamplingParams& params, size_t vocab_size) {
  Ranking::Prefix kept = ranking.All();
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < vocab_size) kept = ranking.FirstCount(params.top_k);
  if (params.top_p < 1.0f) {
    const Ranking::Prefix nucleus = ranking.FirstMass(static_cast<double>(params.top_p) * kept.mass);
    if (IsShorter(nucleus, kept)) kept = nucleus;
  }
  if (params.min_p > 0.0f) {
    const Ranking::Prefix heavy = ranking.HeaviestFrom(std::min(params.min_p, 1.0f));
    if (IsShorter(heavy, kept)) kept = heavy;
  }
  return kept;
}

int32_t Draw(std::span<const float> logits, float max, const SampleRow& row) {
  thread_local Ranking ranking;
  ranking.Fill(logits, max, row.params->temperature);
  const Ranking::Prefix kept = Cut(ranking, *row.params, logits.size());
  return ranking.TokenAt(UniformNoise(row.noise_key, row.position) * kept.mass, kept);
}

int32_t Choose(std::span<const float> logits, float max, const SampleRow& row) {
  if (max == -kInfinity) return -1;
  if (row.params->temperature <= 0.0f || row.params->top_k == 1) return FirstIndexOf(logits, max);
  return Draw(logits, max, row);
}

}  // namespace

uint64_t NoiseKey(uint64_t seed, uint64_t request_id) {
  const std::array<uint32_t, 4> block =
      Philox({static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), static_cast<uint32_t>(request_id),
              static_cast<uint32_t>(request_id >> 32)},
             {0x57656972u, 0x6e6f6973u});  // "Weir", "nois": apart from the draws
  return uint64_t{block[1]} << 32 | block[0];
}

void SampleFromLogits(std::span<const float> logits, const SampleRow& row, SampleOutput& output) {
  output = SampleOutput{};
  RowScan scan = Scan(logits);
  output.is_finite = scan.is_finite;
  if (!scan.is_finite) return;
  if (row.given_token >= 0) {
    WEIR_CHECK(static_cast<size_t>(row.given_token) < logits.size(), "a given token beyond the vocabulary");
    output.token = row.given_token;
    SamplingParams params = *row.params;
    params.wants_logprob = true;
    ReportLogprobs(logits, scan.max, params, output);
    return;
  }
  thread_local std::vector<float> scratch;
  const std::span<const float> adjusted = Adjust(logits, row, scratch);
  if (adjusted.data() != logits.data()) scan = Scan(adjusted);
  output.is_finite = scan.is_finite;  // a penalty or a bias may overflow
  if (!scan.is_finite) return;
  output.token = Choose(adjusted, scan.max, row);
  if (output.token >= 0) ReportLogprobs(adjusted, scan.max, *row.params, output);
}

}  // namespace weir::kernels
