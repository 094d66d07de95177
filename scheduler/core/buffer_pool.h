#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

// Growable arrays of 32-bit integers (token ids, block tables) whose memory is used again by the next array, so that a
// scheduler that has warmed up takes none from the heap.

namespace weir::scheduler {

// Contiguous integers, grown only through the pool they came from.  Give them back with BufferPool::Release.
class IntBuffer {
 public:
  int32_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  int32_t operator[](int32_t i) const { return memory_[i]; }
  // Starts to bring the place of the next integer into the cache.
  void PrefetchEnd() const { __builtin_prefetch(memory_.get() + size_, 1); }
  std::span<const int32_t> view() const { return {memory_.get(), static_cast<size_t>(size_)}; }

 private:
  friend class BufferPool;
  std::unique_ptr<int32_t[]> memory_;
  int32_t size_ = 0;
  int32_t capacity_ = 0;  // 0 or a power of two
};

class BufferPool {
 public:
  BufferPool() {
    for (auto& idle : idle_) idle.reserve(kMaxIdle);
  }

  void Append(IntBuffer& buffer, int32_t value) {
    if (buffer.size_ == buffer.capacity_) Grow(buffer, buffer.size_ + 1);
    buffer.memory_[buffer.size_++] = value;
  }
  void Append(IntBuffer& buffer, std::span<const int32_t> values);

  // Makes room for `size` integers in all.
  void Reserve(IntBuffer& buffer, int64_t size) {
    if (size > buffer.capacity_) Grow(buffer, size);
  }

  // Empties the buffer, which keeps its memory.
  static void Clear(IntBuffer& buffer) { buffer.size_ = 0; }

  // Empties the buffer and keeps its memory for others.  Memory that lies idle is at most what is in use plus kSlack.
  void Release(IntBuffer& buffer);

 private:
  static constexpr int64_t kSlack = 1 << 22;  // integers
  static constexpr int kMinCapacity = 16;
  static constexpr int kMaxIdle = 4096;  // of one capacity

  void Grow(IntBuffer& buffer, int64_t needed);
  std::unique_ptr<int32_t[]> Take(int32_t capacity);
  void GiveBack(std::unique_ptr<int32_t[]> memory, int32_t capacity);

  std::array<std::vector<std::unique_ptr<int32_t[]>>, 32> idle_;  // by log2 of the capacity
  int64_t num_idle_ = 0;                                          // integers
  int64_t num_used_ = 0;
};

}  // namespace weir::scheduler
