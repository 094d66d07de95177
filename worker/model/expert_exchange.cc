#include "worker/model/expert_exchange.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/check.h"
#include "kernels/float_formats.h"

namespace weir::worker {
namespace {

using kernels::DType;
using kernels::TensorView;

// An id that no rank holds: Backend::Experts passes over it.
constexpr int32_t kNoExpert = -1;

// sum += values, both of the activation dtype; the addition in f32.
void AddTo(std::byte* sum, const std::byte* values, int64_t count, DType dtype) {
  if (dtype == DType::kF32) {
    auto* a = reinterpret_cast<float*>(sum);
    const auto* b = reinterpret_cast<const float*>(values);
    for (int64_t i = 0; i < count; ++i) a[i] += b[i];
    return;
  }
  WEIR_CHECK(dtype == DType::kBF16, "activations are f32 or bf16");
  auto* a = reinterpret_cast<uint16_t*>(sum);
  const auto* b = reinterpret_cast<const uint16_t*>(values);
  for (int64_t i = 0; i < count; ++i) {
    a[i] = kernels::FloatToBFloat16(kernels::BFloat16ToFloat(a[i]) + kernels::BFloat16ToFloat(b[i]));
  }
}

int64_t Align(int64_t num_bytes) { return (num_bytes + 63) / 64 * 64; }

}  // namespace

ExpertMap UsedCopies(const ExpertMap& map, const ParallelLayout& layout) {
  std::vector<std::vector<int32_t>> ranks_of_expert(map.num_experts());
  for (int32_t expert = 0; expert < map.num_experts(); ++expert) {
    std::vector<int32_t> ranks = map.RanksOf(expert);
    // RankFor gives group g the copy g % copies: with fewer groups than copies the last ones are nobody's.
    ranks.resize(std::min<size_t>(ranks.size(), layout.dp));
    ranks_of_expert[expert] = std::move(ranks);
  }
  absl::StatusOr<ExpertMap> used = ExpertMap::FromCopies(std::move(ranks_of_expert), layout.world_size());
  WEIR_CHECK(used.ok(), std::string(used.status().message()));
  return *std::move(used);
}

ExpertExchange::ExpertExchange(kernels::Backend* backend, const ParallelLayout& layout, const ExpertMap* map,
                               const Shape& shape)
    : backend_(backend),
      layout_(layout),
      map_(map),
      shape_(shape),
      x_bytes_(shape.hidden_size * kernels::SizeOf(backend->activation_dtype())),
      k_bytes_(shape.num_experts_per_tok * int64_t{sizeof(int32_t)}),
      rows_of_(layout.world_size()),
      send_(layout.world_size()),
      receive_(layout.world_size()),
      sums_out_(layout.world_size()),
      sums_in_(layout.world_size()) {}

int64_t ExpertExchange::Bytes(const Shape& shape, const ParallelLayout& layout, DType activation_dtype) {
  if (layout.dp == 1) return 0;
  const int64_t x_bytes = Align(shape.max_num_rows * shape.hidden_size * kernels::SizeOf(activation_dtype));
  const int64_t k_bytes = Align(shape.max_num_rows * shape.num_experts_per_tok * int64_t{sizeof(int32_t)});
  return 2 * x_bytes + 2 * k_bytes;
}

absl::StatusOr<std::unique_ptr<ExpertExchange>> ExpertExchange::New(kernels::Backend* backend,
                                                                    const ParallelLayout& layout, const ExpertMap* map,
                                                                    const Shape& shape) {
  std::unique_ptr<ExpertExchange> exchange(new ExpertExchange(backend, layout, map, shape));
  if (layout.dp == 1) return exchange;
  const DType act = backend->activation_dtype();
  absl::StatusOr<kernels::DeviceBuffer> buffer = backend->Allocate(Bytes(shape, layout, act));
  if (!buffer.ok()) return buffer.status();
  const int64_t n = shape.max_num_rows, D = shape.hidden_size, K = shape.num_experts_per_tok;
  const int64_t x_bytes = Align(n * exchange->x_bytes_), k_bytes = Align(n * exchange->k_bytes_);
  exchange->buffer_ = *std::move(buffer);
  exchange->received_x_ = exchange->buffer_.View(act, n, D);
  exchange->received_out_ = exchange->buffer_.View(act, n, D, x_bytes);
  exchange->received_ids_ = exchange->buffer_.View(DType::kI32, n, K, 2 * x_bytes);
  exchange->received_weights_ = exchange->buffer_.View(DType::kF32, n, K, 2 * x_bytes + k_bytes);
  return exchange;
}

void ExpertExchange::Run(TensorView out, TensorView x, TensorView expert_ids, TensorView expert_weights,
                         TensorView shared, const kernels::ExpertsWeight& experts, int64_t* load,
                         Collectives& collectives) {
  const bool has_shared = shared.data != nullptr && out.rows > 0;
  if (layout_.dp == 1) {
    backend_->Experts(out, x, expert_ids, expert_weights, experts, load);
    if (has_shared) backend_->Add(out, shared);
    collectives.AllReduceSum(out);
  } else {
    Distribute(out, x, expert_ids, expert_weights, experts, load, collectives);
    if (!has_shared) return;
    collectives.AllReduceSum(shared);
    backend_->Add(out, shared);
  }
}

void ExpertExchange::Distribute(TensorView out, TensorView x, TensorView expert_ids, TensorView expert_weights,
                                const kernels::ExpertsWeight& experts, int64_t* load, Collectives& collectives) {
  const Collectives::RowRange mine = collectives.MyRows(x.rows);
  FetchMyRows(x.Rows(mine.first, mine.count), expert_ids.Rows(mine.first, mine.count),
              expert_weights.Rows(mine.first, mine.count), collectives);
  for (int32_t r = 0; r < layout_.world_size(); ++r) ChooseRowsFor(r, mine.count);
  collectives.AllToAll(send_, receive_);
  Compute(experts, load, collectives);
  collectives.AllToAll(sums_out_, sums_in_);
  AddSums(out.Rows(mine.first, mine.count), mine.count, collectives);
  collectives.AllGatherRows(out);
}

void ExpertExchange::FetchMyRows(TensorView x, TensorView expert_ids, TensorView expert_weights,
                                 Collectives& collectives) {
  x_.resize(x.rows * x_bytes_);
  ids_.resize(x.rows * shape_.num_experts_per_tok);
  weights_.resize(ids_.size());
  if (x.rows == 0 || !collectives.ok()) return;
  backend_->CopyToHost(x_.data(), x);
  backend_->CopyToHost(ids_.data(), expert_ids);
  backend_->CopyToHost(weights_.data(), expert_weights);
  collectives.Synchronize();
}

void ExpertExchange::ChooseRowsFor(int32_t destination, int64_t num_rows) {
  const int32_t K = shape_.num_experts_per_tok;
  const auto goes_there = [&](int32_t expert) { return map_->RankFor(expert, layout_.dp_rank()) == destination; };
  std::vector<int32_t>& rows = rows_of_[destination];
  rows.clear();
  for (int64_t row = 0; row < num_rows; ++row) {
    const int32_t* ids = ids_.data() + row * K;
    if (std::any_of(ids, ids + K, goes_there)) rows.push_back(static_cast<int32_t>(row));
  }

  std::vector<std::byte>& message = send_[destination];
  message.resize(rows.size() * row_bytes());
  std::byte* to_x = message.data();
  auto* to_ids = reinterpret_cast<int32_t*>(to_x + rows.size() * x_bytes_);
  auto* to_weights = reinterpret_cast<float*>(to_x + rows.size() * (x_bytes_ + k_bytes_));
  std::fill_n(to_ids, rows.size() * K, kNoExpert);
  std::fill_n(to_weights, rows.size() * K, 0.0f);
  for (const int32_t row : rows) {
    std::memcpy(to_x, x_.data() + row * x_bytes_, x_bytes_);
    // From the end, so that the ids stay ascending behind those that are no expert's.
    int32_t at = K;
    for (int32_t k = K - 1; k >= 0; --k) {
      if (!goes_there(ids_[row * K + k])) continue;
      --at;
      to_ids[at] = ids_[row * K + k];
      to_weights[at] = weights_[row * K + k];
    }
    to_x += x_bytes_;
    to_ids += K;
    to_weights += K;
  }
}

void ExpertExchange::JoinReceived() {
  int64_t num_rows = 0;
  for (const std::vector<std::byte>& message : receive_) num_rows += message.size() / row_bytes();
  arrived_x_.resize(num_rows * x_bytes_);
  arrived_ids_.resize(num_rows * k_bytes_);
  arrived_weights_.resize(num_rows * k_bytes_);
  int64_t first = 0;
  for (const std::vector<std::byte>& message : receive_) {
    const int64_t count = message.size() / row_bytes();
    const std::byte* x = message.data();
    const std::byte* ids = x + count * x_bytes_;
    const std::byte* weights = ids + count * k_bytes_;
    std::copy_n(x, count * x_bytes_, arrived_x_.begin() + first * x_bytes_);
    std::copy_n(ids, count * k_bytes_, arrived_ids_.begin() + first * k_bytes_);
    std::copy_n(weights, count * k_bytes_, arrived_weights_.begin() + first * k_bytes_);
    first += count;
  }
}

void ExpertExchange::Compute(const kernels::ExpertsWeight& experts, int64_t* load, Collectives& collectives) {
  if (!collectives.ok()) return;
  JoinReceived();
  const int64_t num_rows = arrived_x_.size() / x_bytes_;
  for (int64_t first = 0; first < num_rows && collectives.ok(); first += shape_.max_num_rows) {
    const int64_t count = std::min(num_rows - first, shape_.max_num_rows);
    const TensorView out = received_out_.Rows(0, count);
    backend_->CopyToDevice(received_x_.Rows(0, count), arrived_x_.data() + first * x_bytes_);
    backend_->CopyToDevice(received_ids_.Rows(0, count), arrived_ids_.data() + first * k_bytes_);
    backend_->CopyToDevice(received_weights_.Rows(0, count), arrived_weights_.data() + first * k_bytes_);
    backend_->Experts(out, received_x_.Rows(0, count), received_ids_.Rows(0, count), received_weights_.Rows(0, count),
                      experts, load);
    backend_->CopyToHost(arrived_x_.data() + first * x_bytes_, out);  // in the place of its input
    collectives.Synchronize();
  }
  auto sums = arrived_x_.begin();
  for (int32_t r = 0; r < layout_.world_size(); ++r) {
    const int64_t num_bytes = receive_[r].size() / row_bytes() * x_bytes_;
    sums_out_[r].assign(sums, sums + num_bytes);
    sums += num_bytes;
  }
}

void ExpertExchange::AddSums(TensorView out, int64_t num_rows, Collectives& collectives) {
  if (num_rows == 0 || !collectives.ok()) return;
  std::fill(x_.begin(), x_.end(), std::byte{0});
  for (int32_t r = 0; r < layout_.world_size(); ++r) {
    const std::byte* sums = sums_in_[r].data();
    WEIR_CHECK(sums_in_[r].size() == rows_of_[r].size() * x_bytes_, "an answer of another size than was asked for");
    for (const int32_t row : rows_of_[r]) {
      AddTo(x_.data() + row * x_bytes_, sums, shape_.hidden_size, out.dtype);
      sums += x_bytes_;
    }
  }
  backend_->CopyToDevice(out, x_.data());
  collectives.Synchronize();
}

}  // namespace weir::worker
