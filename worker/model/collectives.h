#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/checkpoint/layout.h"
#include "worker/communicator/communicator.h"

// The Communicator on tensors of a backend: what ranks exchange within a tensor-parallel group and among all.
//
// Like a backend it keeps the first error: after one, every call returns at once and leaves its tensors as they are,
// and status() says why.  So the forward pass reads as a list of steps.

namespace weir::worker {

class Collectives {
 public:
  // `world` spans all ranks of the layout, in rank order; null only when there is one.  It must outlive this.
  static absl::StatusOr<std::unique_ptr<Collectives>> New(kernels::Backend* backend, const ParallelLayout& layout,
                                                          Communicator* world);

  // ---- among the tp ranks of this data-parallel group; with tp == 1 nothing happens ----
  // x becomes the sum over ranks, in rank order.  x is f32 or bf16; sums are f32.
  void AllReduceSum(kernels::TensorView x);
  // Rank r holds the rows [RowsOf(T, r)) of x [T, cols]; afterwards every rank holds all.
  void AllGatherRows(kernels::TensorView x);
  // out[T, tp * n] from each rank's part [T, n], in rank order.
  void AllGatherColumns(kernels::TensorView out, kernels::TensorView part);

  // ---- among all ranks ----
  void AllToAll(std::span<const std::vector<std::byte>> send, std::span<std::vector<std::byte>> receive);

  // How AllGatherRows divides rows among the tp ranks: contiguous ranges, as even as can be.
  struct RowRange {
    int64_t first = 0, count = 0;
  };
  RowRange RowsOf(int64_t num_rows, int32_t tp_rank) const;
  RowRange MyRows(int64_t num_rows) const { return RowsOf(num_rows, layout_.tp_rank()); }

  // Waits for the backend and keeps its error, too.
  bool Synchronize();
  bool ok() const { return status_.ok(); }
  const absl::Status& status() const { return status_; }
  int64_t communication_us() const { return communication_us_; }  // spent in the communicator so far

 private:
  Collectives(kernels::Backend* backend, const ParallelLayout& layout) : backend_(backend), layout_(layout) {}

  template <typename Call>
  void Time(Call call);
  std::span<std::byte> ToHost(kernels::TensorView x);

  kernels::Backend* backend_;
  ParallelLayout layout_;
  Communicator* world_ = nullptr;
  Communicator* tp_group_ = nullptr;            // world_, or the next
  std::unique_ptr<Communicator> own_tp_group_;  // when dp > 1 and tp > 1
  std::vector<std::byte> mine_;                 // host memory of this rank's tensor
  std::vector<std::byte> all_;                  // of all ranks' tensors, or of f32 copies
  absl::Status status_;
  int64_t communication_us_ = 0;
};

}  // namespace weir::worker
