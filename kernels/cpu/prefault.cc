#include "kernels/cpu/prefault.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

namespace weir::kernels::cpu {
namespace {

constexpr int64_t kStepBytes = int64_t{4} << 20;  // how long Remove, and whoever maps memory meanwhile, may wait
constexpr int kNiceness = 10;

// False where the kernel cannot, or has no more memory: pages then come when they are first written.
bool TakePages(char* data, int64_t num_bytes) {
#ifdef MADV_POPULATE_WRITE
  const auto page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto in_page = static_cast<int64_t>(reinterpret_cast<uintptr_t>(data) % page_bytes);
  return madvise(data - in_page, static_cast<size_t>(num_bytes + in_page), MADV_POPULATE_WRITE) == 0;
#else
  (void)data;
  (void)num_bytes;
  return false;
#endif
}

}  // namespace

Prefault::~Prefault() {
  {
    const std::lock_guard lock(mutex_);
    is_stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Prefault::Add(void* data, int64_t num_bytes) {
  if (num_bytes == 0) return;
  const std::lock_guard lock(mutex_);
  ranges_.push_back({data, static_cast<char*>(data), num_bytes});
  if (!thread_.joinable()) thread_ = std::thread([this] { Work(); });
  changed_.notify_all();
}

void Prefault::Remove(const void* data) {
  const std::lock_guard lock(mutex_);
  std::erase_if(ranges_, [&](const Range& range) { return range.data == data; });
}

void Prefault::Work() {
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kNiceness);
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return is_stopping_ || !ranges_.empty(); });
    if (is_stopping_) return;
    Range& range = ranges_.front();
    const int64_t num_bytes = std::min(range.bytes_left, kStepBytes);
    const bool is_taken = TakePages(range.next, num_bytes);
    range.next += num_bytes;
    range.bytes_left -= num_bytes;
    if (!is_taken || range.bytes_left == 0) ranges_.erase(ranges_.begin());
    // Whoever waits to free memory comes first: a mutex alone is not fair.
    lock.unlock();
    std::this_thread::yield();
    lock.lock();
  }
}

}  // namespace weir::kernels::cpu
