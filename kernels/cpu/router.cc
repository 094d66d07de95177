#include "kernels/cpu/router.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/check.h"

namespace weir::kernels::cpu {

Router::Router(const RouterShape& shape) : shape_(shape) {
  WEIR_CHECK(shape.num_experts_per_tok > 0 && shape.num_experts_per_tok <= shape.num_experts);
  if (shape.group_score != RouterShape::GroupScore::kNone) {
    WEIR_CHECK(shape.num_groups > 0 && shape.num_experts % shape.num_groups == 0);
    const int32_t group_size = shape.num_experts / shape.num_groups;
    WEIR_CHECK(shape.group_score == RouterShape::GroupScore::kMax || group_size >= 2,
               "a top-two sum needs two experts");
    WEIR_CHECK(shape.num_groups_kept > 0 && shape.num_groups_kept <= shape.num_groups);
    WEIR_CHECK(shape.num_groups_kept * group_size >= shape.num_experts_per_tok, "the kept groups hold too few experts");
  }
  scores_.resize(static_cast<size_t>(shape.num_experts));
}

void Router::Score(const float* logits) {
  const size_t count = scores_.size();
  if (shape_.scoring == RouterShape::Scoring::kSigmoid) {
    for (size_t e = 0; e < count; ++e) {
      scores_[e] = static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(logits[e]))));
    }
    return;
  }
  const double max = *std::max_element(logits, logits + count);
  double sum = 0.0;
  for (size_t e = 0; e < count; ++e) sum += std::exp(logits[e] - max);
  for (size_t e = 0; e < count; ++e) scores_[e] = static_cast<float>(std::exp(logits[e] - max) / sum);
}

void Router::Choose(std::span<const float> values, int32_t count) {
  order_.resize(values.size());
  std::iota(order_.begin(), order_.end(), 0);
  // A total order also when values are NaN: those come last.
  const auto key = [&](int32_t i) {
    return std::isnan(values[i]) ? -std::numeric_limits<float>::infinity() : values[i];
  };
  std::partial_sort(order_.begin(), order_.begin() + count, order_.end(), [&](int32_t a, int32_t b) {
    const float ka = key(a), kb = key(b);
    return ka != kb ? ka > kb : a < b;
  });
  chosen_.assign(order_.begin(), order_.begin() + count);
  std::sort(chosen_.begin(), chosen_.end());
}

float Router::GroupScore(std::span<const float> group) const {
  if (shape_.group_score == RouterShape::GroupScore::kMax) return *std::max_element(group.begin(), group.end());
  float first = -std::numeric_limits<float>::infinity(), second = first;
  for (const float score : group) {
    if (score > first) {
      second = first;
      first = score;
    } else if (score > second) {
      second = score;
    }
  }
  return first + second;
}

void Router::MaskGroups() {
  const size_t group_size = scores_.size() / static_cast<size_t>(shape_.num_groups);
  group_scores_.clear();
  for (int32_t g = 0; g < shape_.num_groups; ++g) {
    group_scores_.push_back(GroupScore(std::span(selection_).subspan(g * group_size, group_size)));
  }
  Choose(group_scores_, shape_.num_groups_kept);
  auto kept = chosen_.begin();
  for (int32_t g = 0; g < shape_.num_groups; ++g) {
    if (kept != chosen_.end() && *kept == g) {
      ++kept;
    } else {
      std::fill_n(selection_.begin() + g * group_size, group_size, -std::numeric_limits<float>::infinity());
    }
  }
}

void Router::Route(const float* logits, const float* bias, int32_t* ids, float* weights) {
  Score(logits);
  selection_ = scores_;
  for (size_t e = 0; bias != nullptr && e < selection_.size(); ++e) selection_[e] += bias[e];
  if (shape_.group_score != RouterShape::GroupScore::kNone) MaskGroups();
  Choose(selection_, shape_.num_experts_per_tok);
  double sum = 0.0;
  for (const int32_t e : chosen_) sum += scores_[e];
  const double divisor = shape_.normalizes_weights ? sum + 1e-20 : 1.0;
  for (size_t k = 0; k < chosen_.size(); ++k) {
    ids[k] = chosen_[k];
    weights[k] = static_cast<float>(scores_[chosen_[k]] / divisor * shape_.scaling_factor);
  }
}

}  // namespace weir::kernels::cpu
