#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <vector>

// A team of threads that runs one parallel loop at a time.  The calling thread works too.
//
// Tasks are claimed one by one, so a thread that loses its processor delays only the task in its hands; a loop is over
// when its tasks are done, not when every thread has said so.  Waiting spins for a bounded time, then sleeps.
// Which thread runs which task is open: nothing a task computes may depend on it.

namespace weir::kernels::cpu {

class ThreadPool {
 public:
  struct Options {
    int32_t num_threads = 1;    // >= 1, the caller's included
    bool pins_threads = false;  // thread i to the i-th processor this process may run on; the caller is thread 0
  };
  explicit ThreadPool(const Options& options);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int32_t num_threads() const { return static_cast<int32_t>(threads_.size()) + 1; }

  // Calls body(task, thread) for every task in [0, num_tasks), thread in [0, num_threads()), and returns when all are
  // done.  One caller at a time; bodies must not call Run.
  template <typename Body>
  void Run(int64_t num_tasks, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    RunErased(num_tasks, const_cast<void*>(static_cast<const void*>(&body)),
              [](void* context, int64_t task, int32_t thread) { (*static_cast<Plain*>(context))(task, thread); });
  }

 private:
  using Function = void (*)(void* context, int64_t task, int32_t thread);

  // What a thread needs of the loop in progress.  Atomic because a late thread may read it while the next loop is
  // written; its claim then fails, and what it read is not used.
  struct Loop {
    std::atomic<Function> function{nullptr};
    std::atomic<void*> context{nullptr};
    std::atomic<uint32_t> num_tasks{0};
  };

  void RunErased(int64_t num_tasks, void* context, Function function);
  void Work(int32_t thread);                      // of the threads that are not the caller
  void RunTasks(uint32_t epoch, int32_t thread);  // claims and runs until nothing is left to claim
  bool SpinForLoop(uint32_t last_epoch) const;    // true: a loop after `last_epoch` has begun
  void WaitForTasks(uint32_t num_tasks);

  Loop loop_;
  // Epoch of the loop in the upper half, next task to claim in the lower: a claim succeeds only while its loop runs.
  alignas(64) std::atomic<uint64_t> claim_{0};
  alignas(64) std::atomic<uint32_t> num_done_{0};
  alignas(64) std::atomic<uint32_t> epoch_{0};  // what sleeping threads wait on; kStopped at the end
  std::vector<std::thread> threads_;
};

// The processors this process may run on.
std::vector<int32_t> UsableProcessors();

}  // namespace weir::kernels::cpu
