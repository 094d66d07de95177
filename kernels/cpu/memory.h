#pragma once

#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// Memory for weights, caches and workspaces: aligned to 64 bytes, in huge pages where it is large enough to fill them.

namespace weir::kernels::cpu {

// Bytes this process may still take: what the machine has free, or its control group if that allows less.
int64_t AvailableBytes();

// RESOURCE_EXHAUSTED, with the bytes asked for and those available, when they do not fit.  Not zeroed.
absl::StatusOr<void*> AllocateBytes(int64_t num_bytes);
void FreeBytes(void* data);

// Owns such memory.
class Memory {
 public:
  static absl::StatusOr<Memory> Allocate(int64_t num_bytes);
  Memory() = default;
  Memory(Memory&& other) noexcept { *this = std::move(other); }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(num_bytes_, other.num_bytes_);
    return *this;
  }
  ~Memory() { FreeBytes(data_); }

  uint8_t* data() const { return static_cast<uint8_t*>(data_); }
  int64_t num_bytes() const { return num_bytes_; }

 private:
  void* data_ = nullptr;
  int64_t num_bytes_ = 0;
};

// Memory that grows to the largest size ever asked for, and then stays: no allocation in the steady state.  What it
// held is lost when it grows.
class Workspace {
 public:
  // Null when memory is short; `status` then says so, unless it holds an earlier error.
  template <typename T>
  T* Get(int64_t count, absl::Status& status) {
    return static_cast<T*>(GetBytes(count * static_cast<int64_t>(sizeof(T)), status));
  }

 private:
  void* GetBytes(int64_t num_bytes, absl::Status& status);
  Memory memory_;
};

}  // namespace weir::kernels::cpu
