#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

// Takes memory from the system before it is used, in a thread of its own that gives way to those that compute.

namespace weir::kernels::cpu {

// The kernel hands out pages when they are first written, zeroed: 80 us for 2 MB on a quiet machine, and 5 ms where a
// virtual machine must ask its host.  A cache of many gigabytes must delay neither the start nor, block by block, the
// answers after it.
class Prefault {
 public:
  Prefault() = default;
  ~Prefault();  // leaves the rest to first use
  Prefault(const Prefault&) = delete;
  Prefault& operator=(const Prefault&) = delete;

  // What the memory holds stays, also what others write meanwhile.
  void Add(void* data, int64_t num_bytes);
  // Before memory is freed; nothing happens if it was never added.
  void Remove(const void* data);

 private:
  struct Range {
    void* data = nullptr;
    char* next = nullptr;
    int64_t bytes_left = 0;
  };

  void Work();

  std::mutex mutex_;  // held while pages are taken: a range that was removed is left alone
  std::condition_variable changed_;
  std::vector<Range> ranges_;
  bool is_stopping_ = false;
  std::thread thread_;  // begins with the first range
};

}  // namespace weir::kernels::cpu
