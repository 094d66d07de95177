#include "kernels/reference/attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/check.h"

namespace weir::kernels::reference {
namespace {

// e^(score - max), divided by their sum.
void Softmax(std::span<double> scores) {
  const double max = *std::max_element(scores.begin(), scores.end());
  double sum = 0.0;
  for (double& score : scores) sum += score = std::exp(score - max);
  for (double& score : scores) score /= sum;
}

// The parts of a query row that belong to one head.
struct HeadQuery {
  std::span<const double> nope;  // [dn]
  std::span<const double> rope;  // [dr]
};

HeadQuery QueryOf(std::span<const double> q, int32_t head, const MlaShape& shape) {
  const std::span<const double> all = q.subspan(static_cast<size_t>(head) * shape.qk_head_dim(), shape.qk_head_dim());
  return {all.first(shape.qk_nope_head_dim), all.last(shape.qk_rope_head_dim)};
}

// Row `row` of W_kv_b, seen as [H, dn + dv, C], for one head: rows below dn are W_UK, the others W_UV.
std::span<const float> UpRow(const Matrix& kv_b, int32_t head, int32_t row, const MlaShape& shape) {
  return kv_b.Row(static_cast<int64_t>(head) * (shape.qk_nope_head_dim + shape.v_head_dim) + row);
}

}  // namespace

void Rotate(std::span<double> x, std::span<const float> angles) {
  for (size_t i = 0; i + 1 < x.size(); i += 2) {
    const double cos = angles[i], sin = angles[i + 1], even = x[i], odd = x[i + 1];
    x[i] = even * cos - odd * sin;
    x[i + 1] = even * sin + odd * cos;
  }
}

Row Normalize(std::span<const double> x, std::span<const double> weight, double eps) {
  WEIR_CHECK(x.size() == weight.size());
  const double scale = 1.0 / std::sqrt(Dot(x, x) / static_cast<double>(x.size()) + eps);
  Row out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] * scale * weight[i];
  return out;
}

std::vector<Row> ReadContext(const LatentCache& cache, std::span<const int32_t> block_table, int64_t num_tokens) {
  WEIR_CHECK(num_tokens <= static_cast<int64_t>(block_table.size()) * cache.block_size, "a block table is too short");
  std::vector<Row> context;
  for (int64_t position = 0; position < num_tokens; ++position) {
    const int64_t block = block_table[position / cache.block_size];
    context.push_back(ReadRow(cache.rows, block * cache.block_size + position % cache.block_size));
  }
  return context;
}

KeyValue Expand(std::span<const double> cache_row, const Matrix& kv_b, const MlaShape& shape) {
  KeyValue result{Multiply(kv_b, cache_row.first(shape.kv_lora_rank)), Row(shape.qk_rope_head_dim)};
  RoundToF32(result.u);
  std::copy_n(cache_row.begin() + shape.kv_lora_rank, shape.qk_rope_head_dim, result.rope.begin());
  return result;
}

Row AttendMha(std::span<const double> q, std::span<const KeyValue> context, const MlaShape& shape) {
  const int32_t dn = shape.qk_nope_head_dim, dv = shape.v_head_dim;
  Row out(static_cast<size_t>(shape.num_heads) * dv);
  for (int32_t h = 0; h < shape.num_heads; ++h) {
    const HeadQuery query = QueryOf(q, h, shape);
    Row p;
    for (const KeyValue& token : context) {
      const std::span<const double> k_nope = std::span(token.u).subspan(static_cast<size_t>(h) * (dn + dv), dn);
      p.push_back((Dot(query.nope, k_nope) + Dot(query.rope, token.rope)) * shape.softmax_scale);
    }
    Softmax(p);
    for (size_t s = 0; s < context.size(); ++s) {
      const std::span<const double> v = std::span(context[s].u).subspan(static_cast<size_t>(h) * (dn + dv) + dn, dv);
      for (int32_t j = 0; j < dv; ++j) out[static_cast<size_t>(h) * dv + j] += p[s] * v[j];
    }
  }
  return out;
}

Row AttendAbsorbed(std::span<const double> q, std::span<const Row> context, const Matrix& kv_b, const MlaShape& shape) {
  const int32_t dn = shape.qk_nope_head_dim, dv = shape.v_head_dim;
  const size_t num_latents = static_cast<size_t>(shape.kv_lora_rank);
  Row out(static_cast<size_t>(shape.num_heads) * dv);
  for (int32_t h = 0; h < shape.num_heads; ++h) {
    const HeadQuery query = QueryOf(q, h, shape);
    Row q_lat(num_latents);
    for (int32_t j = 0; j < dn; ++j) {
      const std::span<const float> w_uk = UpRow(kv_b, h, j, shape);
      for (size_t c = 0; c < num_latents; ++c) q_lat[c] += query.nope[j] * w_uk[c];
    }
    Row p;
    for (const Row& token : context) {
      const std::span<const double> latent(token.data(), num_latents), rope = std::span(token).subspan(num_latents);
      p.push_back((Dot(q_lat, latent) + Dot(query.rope, rope)) * shape.softmax_scale);
    }
    Softmax(p);
    Row o_lat(num_latents);
    for (size_t s = 0; s < context.size(); ++s) {
      for (size_t c = 0; c < num_latents; ++c) o_lat[c] += p[s] * context[s][c];
    }
    for (int32_t j = 0; j < dv; ++j) {
      const std::span<const float> w_uv = UpRow(kv_b, h, dn + j, shape);
      for (size_t c = 0; c < num_latents; ++c) out[static_cast<size_t>(h) * dv + j] += o_lat[c] * w_uv[c];
    }
  }
  return out;
}

}  // namespace weir::kernels::reference
