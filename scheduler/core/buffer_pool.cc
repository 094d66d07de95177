#include "scheduler/core/buffer_pool.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace weir::scheduler {

void BufferPool::Append(IntBuffer& buffer, std::span<const int32_t> values) {
  const int64_t needed = static_cast<int64_t>(buffer.size_) + static_cast<int64_t>(values.size());
  if (needed > buffer.capacity_) Grow(buffer, needed);
  std::copy(values.begin(), values.end(), buffer.memory_.get() + buffer.size_);
  buffer.size_ = static_cast<int32_t>(needed);
}

void BufferPool::Release(IntBuffer& buffer) {
  if (buffer.capacity_ > 0) GiveBack(std::move(buffer.memory_), buffer.capacity_);
  buffer.size_ = buffer.capacity_ = 0;
}

void BufferPool::Grow(IntBuffer& buffer, int64_t needed) {
  const auto capacity =
      static_cast<int32_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(needed, kMinCapacity))));
  std::unique_ptr<int32_t[]> memory = Take(capacity);
  std::copy_n(buffer.memory_.get(), buffer.size_, memory.get());
  if (buffer.capacity_ > 0) GiveBack(std::move(buffer.memory_), buffer.capacity_);
  buffer.memory_ = std::move(memory);
  buffer.capacity_ = capacity;
}

std::unique_ptr<int32_t[]> BufferPool::Take(int32_t capacity) {
  num_used_ += capacity;
  std::vector<std::unique_ptr<int32_t[]>>& idle = idle_[std::countr_zero(static_cast<uint32_t>(capacity))];
  if (idle.empty()) return std::make_unique_for_overwrite<int32_t[]>(capacity);
  std::unique_ptr<int32_t[]> memory = std::move(idle.back());
  idle.pop_back();
  num_idle_ -= capacity;
  return memory;
}

void BufferPool::GiveBack(std::unique_ptr<int32_t[]> memory, int32_t capacity) {
  num_used_ -= capacity;
  std::vector<std::unique_ptr<int32_t[]>>& idle = idle_[std::countr_zero(static_cast<uint32_t>(capacity))];
  const bool is_full = idle.size() == idle.capacity() || num_idle_ + capacity > num_used_ + kSlack;
  if (is_full) return;  // back to the heap
  num_idle_ += capacity;
  idle.push_back(std::move(memory));
}

}  // namespace weir::scheduler
