#include "scheduler/service/step_cost_estimate.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace weir::scheduler {
namespace {

constexpr double kMemorySteps = 512;          // after so many, and ...
constexpr double kMemoryUs = 120'000'000;     // ... after so long, a step counts 1/e
constexpr int32_t kStepsPerFit = 32;          // and no fit sooner after the last than that ...
constexpr TimeUs kLongestFitUs = 60'000'000;  // ... unless so much time has passed
constexpr double kPriorSteps = 0.05;          // what "as it is" weighs against steps that consist of one part alone
constexpr double kMaxFactor = 2;              // of a part in one fit
constexpr double kFarthest = 64;              // from where they are, parts are looked for
constexpr double kWorthTelling = 0.05;        // relative change of a part
constexpr int kSweeps = 60;                   // of coordinate descent; four unknowns settle in far fewer

// Microseconds.  From a rank that answers at once to one that pages its weights in.
constexpr std::array<double, 4> kLeast = {1, 1e-3, 1e-3, 1e-6};
constexpr std::array<double, 4> kMost = {6e7, 1e7, 1e7, 1e4};

StepCost CostOf(const std::array<double, 4>& parts) {
  return {.fixed_us = parts[0],
          .us_per_prompt_token = parts[1],
          .us_per_generated_token = parts[2],
          .us_per_context_token = parts[3]};
}

std::array<double, 4> PartsOf(const StepCost& cost) {
  std::array<double, 4> parts = {cost.fixed_us, cost.us_per_prompt_token, cost.us_per_generated_token,
                                 cost.us_per_context_token};
  for (size_t i = 0; i < parts.size(); ++i) parts[i] = std::clamp(parts[i], kLeast[i], kMost[i]);
  return parts;
}

}  // namespace

StepCostEstimate::StepCostEstimate(const StepCost& assumed)
    : assumed_(PartsOf(assumed)), parts_(assumed_), cost_(assumed) {}

bool StepCostEstimate::Record(TimeUs now, const StepSize& size, TimeUs took_us) {
  if (last_at_ == 0) last_at_ = fitted_at_ = now;
  Fade(now - std::exchange(last_at_, now));
  const Parts sizes = {1, static_cast<double>(size.num_prompt_rows), static_cast<double>(size.num_generated_rows),
                       size.num_context};
  double expected = 0;
  for (int i = 0; i < kNumParts; ++i) expected += sizes[i] * parts_[i];
  const double took = std::max(static_cast<double>(took_us), 1.0);
  const double scale = std::max(took, expected);  // slow steps by their own length: of a stall, little is left
  for (int i = 0; i < kNumParts; ++i) {
    moment_[i] += sizes[i] / scale * (took / scale);
    for (int j = 0; j < kNumParts; ++j) normal_[i][j] += sizes[i] / scale * (sizes[j] / scale);
  }
  if (++num_since_fit_ < kStepsPerFit && now - fitted_at_ < kLongestFitUs) return false;
  num_since_fit_ = 0;
  fitted_at_ = now;
  Fit();
  return Publish();
}

void StepCostEstimate::Fade(TimeUs since_us) {
  const double left = std::exp(-1 / kMemorySteps - static_cast<double>(since_us) / kMemoryUs);
  for (double& sum : moment_) sum *= left;
  for (Parts& row : normal_) {
    for (double& sum : row) sum *= left;
  }
}

// Finds the factors f, within bounds, that minimise  sum over steps (sum_i z_i parts_i f_i - took)^2 + prior, by
// coordinate descent: the function is convex and the bounds are a box, so it ends at the least value.  All parts then
// go the same way towards it, so that none takes up what another is not allowed to.
void StepCostEstimate::Fit() {
  Parts factors;
  factors.fill(1);
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    for (int i = 0; i < kNumParts; ++i) {
      double pull = parts_[i] * moment_[i] + kPriorSteps * std::min(1.0, assumed_[i] / parts_[i]);
      for (int j = 0; j < kNumParts; ++j) {
        if (j != i) pull -= parts_[i] * normal_[i][j] * parts_[j] * factors[j];
      }
      const double stiffness = parts_[i] * normal_[i][i] * parts_[i] + kPriorSteps;
      factors[i] = std::clamp(pull / stiffness, 1 / kFarthest, kFarthest);
    }
  }
  double farthest = std::log(kMaxFactor);
  for (const double factor : factors) farthest = std::max(farthest, std::abs(std::log(factor)));
  const double way = std::log(kMaxFactor) / farthest;
  for (int i = 0; i < kNumParts; ++i) {
    parts_[i] = std::clamp(parts_[i] * std::pow(factors[i], way), kLeast[i], kMost[i]);
  }
}

bool StepCostEstimate::Publish() {
  const Parts told = PartsOf(cost_);
  for (int i = 0; i < kNumParts; ++i) {
    if (std::abs(parts_[i] - told[i]) <= kWorthTelling * told[i]) continue;
    cost_ = CostOf(parts_);
    return true;
  }
  return false;
}

}  // namespace weir::scheduler
