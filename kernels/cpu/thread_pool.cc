#include "kernels/cpu/thread_pool.h"

#include <sched.h>

#include <chrono>

#include "kernels/check.h"

namespace weir::kernels::cpu {
namespace {

constexpr uint32_t kStopped = ~0u;

// How long a thread spins before it sleeps.  Loops of one forward pass follow each other within microseconds, and a
// wake-up costs some 50 us on a virtual machine; a neighbour on the same processor gets it back after this time.
constexpr std::chrono::microseconds kSpinTime{50};

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until `is_ready` or the time is over.
template <typename IsReady>
bool Spin(IsReady is_ready) {
  const auto end = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 64; ++i) {
      if (is_ready()) return true;
      Pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

void PinToProcessor(int32_t processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  sched_setaffinity(0, sizeof(set), &set);  // refused pinning costs speed, nothing else
}

}  // namespace

std::vector<int32_t> UsableProcessors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int32_t> processors;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) {
    for (int32_t i = 0; i < CPU_SETSIZE; ++i) {
      if (CPU_ISSET(i, &set)) processors.push_back(i);
    }
  }
  if (processors.empty()) processors.push_back(0);
  return processors;
}

ThreadPool::ThreadPool(const Options& options) {
  WEIR_CHECK(options.num_threads >= 1);
  const std::vector<int32_t> processors = UsableProcessors();
  const auto processor_of = [&](int32_t thread) { return processors[static_cast<size_t>(thread) % processors.size()]; };
  for (int32_t thread = 1; thread < options.num_threads; ++thread) {
    threads_.emplace_back([this, thread, pins = options.pins_threads, processor = processor_of(thread)] {
      if (pins) PinToProcessor(processor);
      Work(thread);
    });
  }
  if (options.pins_threads) PinToProcessor(processor_of(0));
}

ThreadPool::~ThreadPool() {
  epoch_.store(kStopped, std::memory_order_release);
  epoch_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::RunErased(int64_t num_tasks, void* context, Function function) {
  WEIR_CHECK(num_tasks < int64_t{1} << 31);
  if (num_tasks <= 1 || threads_.empty()) {
    for (int64_t task = 0; task < num_tasks; ++task) function(context, task, 0);
    return;
  }
  uint32_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
  if (epoch == kStopped) epoch = 0;
  // Between the loops nothing can be claimed: the last one has handed out all its tasks.  So these stores harm nobody,
  // and the claim counter publishes them.
  loop_.function.store(function, std::memory_order_relaxed);
  loop_.context.store(context, std::memory_order_relaxed);
  num_done_.store(0, std::memory_order_relaxed);
  // The number of tasks of a loop that is over must not grow before the epoch changes: a late thread would claim one.
  claim_.store(uint64_t{epoch} << 32 | ~0u, std::memory_order_release);
  loop_.num_tasks.store(static_cast<uint32_t>(num_tasks), std::memory_order_release);
  claim_.store(uint64_t{epoch} << 32, std::memory_order_release);
  epoch_.store(epoch, std::memory_order_release);
  epoch_.notify_all();
  RunTasks(epoch, 0);
  WaitForTasks(static_cast<uint32_t>(num_tasks));
}

void ThreadPool::RunTasks(uint32_t epoch, int32_t thread) {
  uint64_t claim = claim_.load(std::memory_order_acquire);
  while (static_cast<uint32_t>(claim >> 32) == epoch) {
    const uint32_t task = static_cast<uint32_t>(claim);
    const Function function = loop_.function.load(std::memory_order_relaxed);
    void* context = loop_.context.load(std::memory_order_relaxed);
    const uint32_t num_tasks = loop_.num_tasks.load(std::memory_order_acquire);
    if (task >= num_tasks) return;
    if (!claim_.compare_exchange_weak(claim, claim + 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
    function(context, task, thread);
    if (num_done_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_tasks) num_done_.notify_all();
    claim = claim_.load(std::memory_order_acquire);
  }
}

bool ThreadPool::SpinForLoop(uint32_t last_epoch) const {
  return Spin([&] { return epoch_.load(std::memory_order_acquire) != last_epoch; });
}

void ThreadPool::Work(int32_t thread) {
  uint32_t last_epoch = 0;
  while (true) {
    if (!SpinForLoop(last_epoch)) epoch_.wait(last_epoch, std::memory_order_acquire);
    const uint32_t epoch = epoch_.load(std::memory_order_acquire);
    if (epoch == kStopped) return;
    if (epoch != last_epoch) RunTasks(epoch, thread);
    last_epoch = epoch;
  }
}

void ThreadPool::WaitForTasks(uint32_t num_tasks) {
  const auto is_done = [&] { return num_done_.load(std::memory_order_acquire) == num_tasks; };
  while (!Spin(is_done)) {
    const uint32_t num_done = num_done_.load(std::memory_order_acquire);
    if (num_done != num_tasks) num_done_.wait(num_done, std::memory_order_acquire);
  }
}

}  // namespace weir::kernels::cpu
