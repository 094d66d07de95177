#include "kernels/reference/router.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/check.h"

namespace weir::kernels::reference {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

std::vector<float> Sigmoid(std::span<const float> logits) {
  std::vector<float> scores;
  for (const float z : logits) scores.push_back(static_cast<float>(1.0 / (1.0 + std::exp(-static_cast<double>(z)))));
  return scores;
}

std::vector<float> Softmax(std::span<const float> logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float z : logits) sum += std::exp(z - max);
  std::vector<float> scores;
  for (const float z : logits) scores.push_back(static_cast<float>(std::exp(z - max) / sum));
  return scores;
}

// The indices of the `count` largest values, largest first, lower index first on a tie.
std::vector<int32_t> Largest(std::span<const float> values, int32_t count) {
  std::vector<int32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return values[a] > values[b]; });
  order.resize(static_cast<size_t>(count));
  return order;
}

float ScoreOfGroup(std::span<const float> scores, RouterShape::GroupScore rule) {
  if (rule == RouterShape::GroupScore::kMax) return *std::max_element(scores.begin(), scores.end());
  const std::vector<int32_t> best = Largest(scores, 2);
  return scores[best[0]] + scores[best[1]];
}

// Leaves only the experts of the best groups in the running.
void MaskGroups(std::span<float> selection, const RouterShape& shape) {
  const size_t group_size = selection.size() / static_cast<size_t>(shape.num_groups);
  std::vector<float> group_scores;
  group_scores.reserve(static_cast<size_t>(shape.num_groups));
  for (int32_t g = 0; g < shape.num_groups; ++g) {
    group_scores.push_back(ScoreOfGroup(selection.subspan(g * group_size, group_size), shape.group_score));
  }
  std::vector<bool> is_kept(static_cast<size_t>(shape.num_groups));
  for (const int32_t g : Largest(group_scores, shape.num_groups_kept)) is_kept[g] = true;
  for (size_t e = 0; e < selection.size(); ++e) {
    if (!is_kept[e / group_size]) selection[e] = kMasked;
  }
}

void CheckShape(std::span<const float> logits, std::span<const float> bias, const RouterShape& shape) {
  WEIR_CHECK(static_cast<int32_t>(logits.size()) == shape.num_experts);
  WEIR_CHECK(bias.empty() || bias.size() == logits.size());
  WEIR_CHECK(shape.num_experts_per_tok > 0 && shape.num_experts_per_tok <= shape.num_experts);
  if (shape.group_score == RouterShape::GroupScore::kNone) return;
  WEIR_CHECK(shape.num_groups > 0 && shape.num_experts % shape.num_groups == 0);
  const int32_t group_size = shape.num_experts / shape.num_groups;
  WEIR_CHECK(shape.group_score == RouterShape::GroupScore::kMax || group_size >= 2, "a top-two sum needs two experts");
  WEIR_CHECK(shape.num_groups_kept > 0 && shape.num_groups_kept <= shape.num_groups);
  WEIR_CHECK(shape.num_groups_kept * group_size >= shape.num_experts_per_tok, "the kept groups hold too few experts");
}

}  // namespace

std::vector<Choice> Route(std::span<const float> logits, std::span<const float> bias, const RouterShape& shape) {
  CheckShape(logits, bias, shape);
  const std::vector<float> scores = shape.scoring == RouterShape::Scoring::kSigmoid ? Sigmoid(logits) : Softmax(logits);
  std::vector<float> selection = scores;
  for (size_t e = 0; e < bias.size(); ++e) selection[e] += bias[e];
  if (shape.group_score != RouterShape::GroupScore::kNone) MaskGroups(selection, shape);

  std::vector<int32_t> chosen = Largest(selection, shape.num_experts_per_tok);
  std::sort(chosen.begin(), chosen.end());
  double sum = 0.0;
  for (const int32_t e : chosen) sum += scores[e];
  const double divisor = shape.normalizes_weights ? sum + 1e-20 : 1.0;
  std::vector<Choice> choices;
  choices.reserve(chosen.size());
  for (const int32_t e : chosen) {
    choices.push_back({e, static_cast<float>(scores[e] / divisor * shape.scaling_factor)});
  }
  return choices;
}

}  // namespace weir::kernels::reference
