#include "kernels/cpu/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>

namespace weir::kernels::cpu {
namespace {

constexpr int64_t kHugePageBytes = int64_t{2} << 20;

// The number after `key` in a file of lines "key number ..."; with an empty key, the file's first number.
int64_t ReadNumber(const char* path, const char* key, int64_t otherwise) {
  std::FILE* file = std::fopen(path, "r");
  if (file == nullptr) return otherwise;
  char line[256];
  int64_t value = otherwise;
  while (std::fgets(line, sizeof(line), file) != nullptr) {
    const std::string text(line), prefix(key);
    if (text.compare(0, prefix.size(), prefix) != 0) continue;
    const char* start = line + prefix.size();
    char* end = nullptr;
    const int64_t number = std::strtoll(start, &end, 10);
    if (end != start) value = number;
    break;
  }
  std::fclose(file);
  return value;
}

int64_t Align(int64_t value, int64_t alignment) { return (value + alignment - 1) / alignment * alignment; }

}  // namespace

int64_t AvailableBytes() {
  constexpr int64_t kUnlimited = std::numeric_limits<int64_t>::max();
  const int64_t physical = int64_t{sysconf(_SC_AVPHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  const int64_t kib = ReadNumber("/proc/meminfo", "MemAvailable:", -1);
  int64_t available = kib >= 0 ? kib * 1024 : physical;
  const int64_t limit = ReadNumber("/sys/fs/cgroup/memory.max", "", kUnlimited);  // "max" is not a number
  if (limit != kUnlimited) {
    // Page cache counts as used there, but is given back on demand.
    const int64_t used = ReadNumber("/sys/fs/cgroup/memory.current", "", 0);
    const int64_t cached = ReadNumber("/sys/fs/cgroup/memory.stat", "file ", 0);
    available = std::min(available, limit - used + cached);
  }
  return std::max<int64_t>(available, 0);
}

absl::StatusOr<void*> AllocateBytes(int64_t num_bytes) {
  const bool is_large = num_bytes >= kHugePageBytes;
  const int64_t alignment = is_large ? kHugePageBytes : 64;
  void* data = nullptr;
  // The kernel grants more than there is and kills the process when it is touched, so large sizes are checked first.
  if (!is_large || num_bytes <= AvailableBytes()) {
    data = std::aligned_alloc(static_cast<size_t>(alignment),
                              static_cast<size_t>(Align(std::max<int64_t>(num_bytes, 1), alignment)));
  }
  if (data == nullptr) {
    return absl::ResourceExhaustedError("cannot allocate " + std::to_string(num_bytes) + " bytes; " +
                                        std::to_string(AvailableBytes()) + " bytes are available");
  }
  if (is_large) madvise(data, static_cast<size_t>(Align(num_bytes, alignment)), MADV_HUGEPAGE);
  return data;
}

void FreeBytes(void* data) { std::free(data); }

absl::StatusOr<Memory> Memory::Allocate(int64_t num_bytes) {
  const absl::StatusOr<void*> data = AllocateBytes(num_bytes);
  if (!data.ok()) return data.status();
  Memory memory;
  memory.data_ = *data;
  memory.num_bytes_ = num_bytes;
  return memory;
}

void* Workspace::GetBytes(int64_t num_bytes, absl::Status& status) {
  if (memory_.data() == nullptr || num_bytes > memory_.num_bytes()) {
    memory_ = Memory();  // before the new one: it may be what makes it fit
    absl::StatusOr<Memory> memory = Memory::Allocate(num_bytes + num_bytes / 4);
    if (!memory.ok()) {
      status.Update(memory.status());
      return nullptr;
    }
    memory_ = *std::move(memory);
  }
  return memory_.data();
}

}  // namespace weir::kernels::cpu
