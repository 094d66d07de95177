#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/tile_kernels.h"
#include "kernels/cpu/vector_ops.h"

namespace weir::kernels::cpu {

// What every operation works with: threads, the kernels of the chosen instruction set, memory to work in, and the first
// error, which waits here for Synchronize.
struct Machine {
  Machine(const ThreadPool::Options& options, const TileKernels& tile_kernels, const VectorOps& vector_ops)
      : pool(options), tiles(tile_kernels), ops(vector_ops) {}

  ThreadPool pool;
  const TileKernels& tiles;
  const VectorOps& ops;
  absl::Status error;

  // Workspaces, each for one purpose at a time.
  Workspace inputs, input_scales;   // activations in the form that a product takes
  Workspace hidden, hidden_scales;  // the same, between the two halves of a SwiGLU
  Workspace hidden_f32;             // a SwiGLU's middle before it is quantised
  Workspace partials, queries;      // attention
  Workspace scratch;                // per thread

  // `count` elements for each thread; thread t's begin at t * count.  Null when memory is short.
  template <typename T>
  T* Scratch(int64_t count) {
    return scratch.Get<T>(count * pool.num_threads(), error);
  }

  // body(row) for every row, on all threads when there is enough to do: `cost` is elements touched per row.
  template <typename Body>
  void ForRows(int64_t num_rows, int64_t cost, Body body) {
    // Below some 10 us of work a thread's help costs more than it gives.
    constexpr int64_t kElementsPerTask = 16384;
    const int64_t rows_per_task = std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(cost, 1));
    pool.Run((num_rows + rows_per_task - 1) / rows_per_task, [&](int64_t task, int32_t) {
      const int64_t end = std::min(num_rows, (task + 1) * rows_per_task);
      for (int64_t row = task * rows_per_task; row < end; ++row) body(row);
    });
  }
};

}  // namespace weir::kernels::cpu
