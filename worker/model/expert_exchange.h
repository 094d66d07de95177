#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "worker/checkpoint/layout.h"
#include "worker/model/collectives.h"

// Brings rows to the experts and the experts' sums back.
//
// With one data-parallel group every rank has every row: each computes the experts it holds, and one sum over ranks
// (in rank order) does the rest.
//
// With several, the rows of a group are divided among its tp ranks.  Each row goes once to every rank that computes one
// of its experts, with the ids meant for that rank; what comes back is that rank's weighted sum.  The source adds the
// sums in ascending rank order, so that the result depends on where the experts are, and on nothing else.

namespace weir::worker {

// The map without the copies that no group of the layout would choose: with dp == 1 one copy of each expert.
ExpertMap UsedCopies(const ExpertMap& map, const ParallelLayout& layout);

class ExpertExchange {
 public:
  struct Shape {
    int32_t hidden_size = 0;          // D
    int32_t num_experts_per_tok = 0;  // K
    int64_t max_num_rows = 0;         // computed at once; more that arrive are computed in pieces
  };
  // collectives, map and backend must outlive it.
  static absl::StatusOr<std::unique_ptr<ExpertExchange>> New(kernels::Backend* backend, const ParallelLayout& layout,
                                                             const ExpertMap* map, const Shape& shape);
  // Device bytes of the buffers for received rows.
  static int64_t Bytes(const Shape& shape, const ParallelLayout& layout, kernels::DType activation_dtype);

  // out[T, D] = sum over k of expert_weights[t, k] * expert(expert_ids[t, k])(x[t]), over the experts of all ranks,
  // plus the sum over the tp ranks of shared[T, D] (each rank's part of the shared expert; a null view when there is
  // none). Every rank of the layout must call it, with T = 0 where there are no rows.  `load` as in Backend::Experts.
  void Run(kernels::TensorView out, kernels::TensorView x, kernels::TensorView expert_ids,
           kernels::TensorView expert_weights, kernels::TensorView shared, const kernels::ExpertsWeight& experts,
           int64_t* load, Collectives& collectives);

 private:
  ExpertExchange(kernels::Backend* backend, const ParallelLayout& layout, const ExpertMap* map, const Shape& shape);

  void Distribute(kernels::TensorView out, kernels::TensorView x, kernels::TensorView expert_ids,
                  kernels::TensorView expert_weights, const kernels::ExpertsWeight& experts, int64_t* load,
                  Collectives& collectives);
  void FetchMyRows(kernels::TensorView x, kernels::TensorView expert_ids, kernels::TensorView expert_weights,
                   Collectives& collectives);
  void ChooseRowsFor(int32_t destination, int64_t num_rows);
  void JoinReceived();
  void Compute(const kernels::ExpertsWeight& experts, int64_t* load, Collectives& collectives);
  void AddSums(kernels::TensorView out, int64_t num_rows, Collectives& collectives);

  // A message holds n rows, block after block: x [n, D], ids [n, K], weights [n, K].
  int64_t row_bytes() const { return x_bytes_ + 2 * k_bytes_; }

  kernels::Backend* backend_;
  ParallelLayout layout_;
  const ExpertMap* map_;
  Shape shape_;
  int64_t x_bytes_ = 0;  // of one row of x
  int64_t k_bytes_ = 0;  // of one row of ids or of weights

  // Device memory for received rows, max_num_rows of them.
  kernels::DeviceBuffer buffer_;
  kernels::TensorView received_x_, received_ids_, received_weights_, received_out_;

  // Host memory of one Run, by rank where there are several.
  std::vector<std::byte> x_;                            // this rank's share of the group's rows
  std::vector<int32_t> ids_;                            // their experts
  std::vector<float> weights_;                          // and weights
  std::vector<std::vector<int32_t>> rows_of_;           // [destination]: which of them went there, ascending
  std::vector<std::vector<std::byte>> send_, receive_;  // rows out, rows in
  std::vector<std::byte> arrived_x_, arrived_ids_,
      arrived_weights_;  // received rows of all sources, one after the other
  std::vector<std::vector<std::byte>> sums_out_, sums_in_;
};

}  // namespace weir::worker
