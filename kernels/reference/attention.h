#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "kernels/reference/linear.h"
#include "kernels/reference/rows.h"

// Rotation and the two forms of multi-head latent attention (spec 2.3, 2.4, 2.6), for one query row.

namespace weir::kernels::reference {

// Turns the pairs (2i, 2i + 1) of x[dr] by the angles of one row of the table: cos in the even columns, sin in the odd.
void Rotate(std::span<double> x, std::span<const float> angles);

// x / sqrt(mean(x^2) + eps) * weight (spec 2.2).
Row Normalize(std::span<const double> x, std::span<const double> weight, double eps);

// What attention sees of one sequence: its cache rows in the order of their positions, [0, num_tokens).
std::vector<Row> ReadContext(const LatentCache& cache, std::span<const int32_t> block_table, int64_t num_tokens);

// K and V of one context token for all heads: u[H * (dn + dv)] = kv_b * c, rounded to f32, and the shared rope part.
struct KeyValue {
  Row u;
  Row rope;  // [dr]
};
KeyValue Expand(std::span<const double> cache_row, const Matrix& kv_b, const MlaShape& shape);

// o[H * dv] of the query row q[H * (dn + dr)] over `context`.
Row AttendMha(std::span<const double> q, std::span<const KeyValue> context, const MlaShape& shape);
Row AttendAbsorbed(std::span<const double> q, std::span<const Row> context, const Matrix& kv_b, const MlaShape& shape);

}  // namespace weir::kernels::reference
