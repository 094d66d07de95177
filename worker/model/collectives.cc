#include "worker/model/collectives.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <utility>

#include "kernels/check.h"
#include "kernels/float_formats.h"

namespace weir::worker {
namespace {

using kernels::DType;
using kernels::TensorView;

int64_t NumBytes(TensorView x) { return x.rows * x.cols * kernels::SizeOf(x.dtype); }

template <typename T>
std::span<T> As(std::span<std::byte> bytes) {
  return {reinterpret_cast<T*>(bytes.data()), bytes.size() / sizeof(T)};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Collectives>> Collectives::New(kernels::Backend* backend, const ParallelLayout& layout,
                                                              Communicator* world) {
  std::unique_ptr<Collectives> collectives(new Collectives(backend, layout));
  if (layout.world_size() == 1) return collectives;
  WEIR_CHECK(world != nullptr && world->world_size() == layout.world_size() && world->rank() == layout.rank,
             "the communicator must span the ranks of the layout, in their order");
  collectives->world_ = world;
  collectives->tp_group_ = world;
  if (layout.dp > 1 && layout.tp > 1) {
    std::vector<int> members(layout.tp);
    std::iota(members.begin(), members.end(), layout.dp_rank() * layout.tp);
    absl::StatusOr<std::unique_ptr<Communicator>> group = world->Subgroup(members);
    if (!group.ok()) return group.status();
    collectives->own_tp_group_ = *std::move(group);
    collectives->tp_group_ = collectives->own_tp_group_.get();
  }
  return collectives;
}

void Collectives::AllReduceSum(TensorView x) {
  if (layout_.tp == 1 || x.rows == 0) return;
  const std::span<std::byte> host = ToHost(x);
  if (!ok()) return;
  if (x.dtype == DType::kF32) {
    Time([&] { return tp_group_->AllReduceSum(As<float>(host)); });
  } else {
    WEIR_CHECK(x.dtype == DType::kBF16, "activations are f32 or bf16");
    const std::span<uint16_t> values = As<uint16_t>(host);
    all_.resize(values.size() * sizeof(float));
    const std::span<float> wide = As<float>(all_);
    std::transform(values.begin(), values.end(), wide.begin(), kernels::BFloat16ToFloat);
    Time([&] { return tp_group_->AllReduceSum(wide); });
    std::transform(wide.begin(), wide.end(), values.begin(), kernels::FloatToBFloat16);
  }
  if (ok()) backend_->CopyToDevice(x, host.data());
  Synchronize();
}

void Collectives::AllGatherRows(TensorView x) {
  if (layout_.tp == 1 || x.rows == 0) return;
  const RowRange my_rows = MyRows(x.rows);
  const int64_t row_bytes = x.cols * kernels::SizeOf(x.dtype);
  ToHost(x.Rows(my_rows.first, my_rows.count));
  if (!ok()) return;
  // Every rank sends as many rows as the one with the most.
  mine_.resize(RowsOf(x.rows, 0).count * row_bytes);
  all_.resize(mine_.size() * layout_.tp);
  Time([&] { return tp_group_->AllGather(mine_, all_); });
  for (int32_t r = 0; r < layout_.tp && ok(); ++r) {
    const RowRange rows = RowsOf(x.rows, r);
    backend_->CopyToDevice(x.Rows(rows.first, rows.count), all_.data() + r * mine_.size());
  }
  Synchronize();
}

void Collectives::AllGatherColumns(TensorView out, TensorView part) {
  if (layout_.tp == 1 || out.rows == 0) return;
  ToHost(part);
  if (!ok()) return;
  all_.resize(mine_.size() * layout_.tp);
  Time([&] { return tp_group_->AllGather(mine_, all_); });
  if (!ok()) return;
  std::vector<std::byte> rows(all_.size());
  const int64_t part_bytes = part.cols * kernels::SizeOf(part.dtype);
  for (int64_t row = 0; row < out.rows; ++row) {
    for (int32_t r = 0; r < layout_.tp; ++r) {
      std::memcpy(rows.data() + (row * layout_.tp + r) * part_bytes, all_.data() + (r * out.rows + row) * part_bytes,
                  part_bytes);
    }
  }
  backend_->CopyToDevice(out, rows.data());
  Synchronize();
}

void Collectives::AllToAll(std::span<const std::vector<std::byte>> send, std::span<std::vector<std::byte>> receive) {
  if (!ok()) return;
  const std::vector<std::span<const std::byte>> spans(send.begin(), send.end());
  Time([&] { return world_->AllToAll(spans, receive); });
}

Collectives::RowRange Collectives::RowsOf(int64_t num_rows, int32_t tp_rank) const {
  // The first num_rows % tp ranks have one row more, so that rank 0 has as many as any.
  const int64_t share = num_rows / layout_.tp, rest = num_rows % layout_.tp;
  return {.first = tp_rank * share + std::min<int64_t>(tp_rank, rest), .count = share + (tp_rank < rest ? 1 : 0)};
}

bool Collectives::Synchronize() {
  status_.Update(backend_->Synchronize());
  return ok();
}

template <typename Call>
void Collectives::Time(Call call) {
  const auto start = std::chrono::steady_clock::now();
  status_.Update(call());
  communication_us_ +=
      std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start).count();
}

std::span<std::byte> Collectives::ToHost(TensorView x) {
  if (!ok()) return {};
  mine_.resize(NumBytes(x));
  if (x.rows > 0) backend_->CopyToHost(mine_.data(), x);
  Synchronize();
  return mine_;
}

}  // namespace weir::worker
