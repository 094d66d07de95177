#include "tests/kernels/cases.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

namespace weir::kernels {

const std::vector<ParityCase>& AllCases() {
  static const std::vector<ParityCase>* cases = [] {
    auto* all = new std::vector<ParityCase>;
    for (auto* make : {LinearCases, AttentionCases, RouterCases, OtherCases}) {
      for (ParityCase& one : make()) all->push_back(std::move(one));
    }
    return all;
  }();
  return *cases;
}

namespace {

// Products of denormals, and what is left of them: BF16 instructions take them for zero.
constexpr double kFlushedToZero = 1e-35;

std::string At(const Result& result, int64_t row, int64_t col, double expected, double found) {
  return result.name + "[" + std::to_string(row) + ", " + std::to_string(col) + "]: expected " +
         std::to_string(expected) + ", found " + std::to_string(found);
}

double MagnitudeOf(const Result& reference, int64_t row) {
  double magnitude = reference.magnitudes.empty() ? 0.0 : reference.magnitudes[row];
  for (const float x : reference.values.row(row)) {
    if (std::isfinite(x)) magnitude = std::max(magnitude, static_cast<double>(std::fabs(x)));
  }
  return std::isfinite(magnitude) ? magnitude : 0.0;
}

std::string ResultDifference(const Result& reference, const Result& result, const Tolerance& tolerance) {
  const Values &a = reference.values, &b = result.values;
  if (a.rows != b.rows || a.cols != b.cols) return result.name + ": another shape";
  double sum_of_squares = 0.0, sum_of_errors = 0.0;
  for (int64_t r = 0; r < a.rows; ++r) {
    const double magnitude = MagnitudeOf(reference, r);
    for (int64_t c = 0; c < a.cols; ++c) {
      const double expected = a.at(r, c), found = b.at(r, c);
      if (std::isfinite(expected) != std::isfinite(found)) return At(result, r, c, expected, found);
      if (!std::isfinite(expected)) continue;
      const double error = std::fabs(expected - found);
      if (error > tolerance.largest * magnitude + (tolerance.largest > 0.0 ? kFlushedToZero : 0.0)) {
        return At(result, r, c, expected, found) + ", which is " + std::to_string(error / magnitude) +
               " of its row's magnitude; allowed " + std::to_string(tolerance.largest);
      }
      if (magnitude == 0.0) continue;
      sum_of_squares += expected / magnitude * (expected / magnitude);
      const double counted = tolerance.largest > 0.0 ? std::max(0.0, error - kFlushedToZero) : error;
      sum_of_errors += counted / magnitude * (counted / magnitude);
    }
  }
  const double rms = sum_of_squares > 0.0 ? std::sqrt(sum_of_errors / sum_of_squares) : 0.0;
  if (rms <= tolerance.rms) return "";
  return result.name + ": errors of " + std::to_string(rms) + " in the mean; allowed " + std::to_string(tolerance.rms);
}

}  // namespace

std::string Difference(const std::vector<Result>& reference, const std::vector<Result>& results,
                       DType activation_dtype) {
  if (reference.size() != results.size()) return "another number of results";
  for (size_t i = 0; i < results.size(); ++i) {
    Tolerance tolerance = results[i].tolerance;
    if (activation_dtype == DType::kBF16) {
      tolerance.largest += 0x1p-8;
      tolerance.rms += 0x1p-8;
    }
    std::string difference = ResultDifference(reference[i], results[i], tolerance);
    if (!difference.empty()) return difference;
  }
  return "";
}

}  // namespace weir::kernels
