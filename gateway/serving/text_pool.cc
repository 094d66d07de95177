#include "gateway/serving/text_pool.h"

#include <utility>

namespace weir::gateway {
namespace {

constexpr int64_t kBytesPerJob = 512;  // also small requests count

}  // namespace

TextPool::TextPool(int32_t num_threads, int64_t max_waiting_bytes) : max_waiting_bytes_(max_waiting_bytes) {
  for (int32_t i = 0; i < num_threads; ++i) threads_.emplace_back([this] { Work(); });
}

TextPool::~TextPool() {
  {
    std::lock_guard lock(mutex_);
    is_ending_ = true;
  }
  arrived_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

bool TextPool::Post(const std::string& tenant, int64_t bytes, std::function<void()> job) {
  bytes += kBytesPerJob;
  {
    std::lock_guard lock(mutex_);
    if (waiting_bytes_ + bytes > max_waiting_bytes_ || is_ending_) return false;
    waiting_bytes_ += bytes;
    std::deque<Job>& queue = waiting_[tenant];
    if (queue.empty()) turns_.push_back(tenant);
    queue.push_back({bytes, std::move(job)});
  }
  arrived_.notify_one();
  return true;
}

int64_t TextPool::waiting_bytes() const {
  std::lock_guard lock(mutex_);
  return waiting_bytes_;
}

void TextPool::Work() {
  std::unique_lock lock(mutex_);
  while (true) {
    arrived_.wait(lock, [this] { return !turns_.empty() || is_ending_; });
    if (turns_.empty()) return;
    Job job = TakeNext();
    lock.unlock();
    job.run();
    job.run = nullptr;
    lock.lock();
    waiting_bytes_ -= job.bytes;
  }
}

// The lock is held.
TextPool::Job TextPool::TakeNext() {
  const std::string tenant = std::move(turns_.front());
  turns_.pop_front();
  const auto queue = waiting_.find(tenant);
  Job job = std::move(queue->second.front());
  queue->second.pop_front();
  if (queue->second.empty()) {
    waiting_.erase(queue);
  } else {
    turns_.push_back(tenant);
  }
  return job;
}

}  // namespace weir::gateway
