#include "worker/checkpoint/unreadable_files.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <mutex>

#include "worker/checkpoint/index_file.h"

namespace weir::worker {
namespace {

struct Mapping {
  std::atomic<uintptr_t> begin{0};  // 0: free; written last
  std::atomic<int64_t> num_bytes{0};
  std::atomic<const char*> path{nullptr};
};

// Room for one whole model and the files of others; a mapping without a place is reported as any other SIGBUS.
std::array<Mapping, 2 * kMaxModelFiles> mappings;
std::mutex mappings_mutex;  // of those who write
std::atomic<void (*)(const char*)> report_unreadable{nullptr};

const char* PathAt(uintptr_t address) {
  for (const Mapping& mapping : mappings) {
    const uintptr_t begin = mapping.begin;
    if (begin != 0 && address >= begin && address - begin < static_cast<uintptr_t>(mapping.num_bytes.load())) {
      return mapping.path;
    }
  }
  return nullptr;
}

void OnBusError(int number, siginfo_t* information, void*) {
  const char* path = PathAt(reinterpret_cast<uintptr_t>(information->si_addr));
  if (path == nullptr) {
    signal(number, SIG_DFL);  // comes again, and ends the process as it would have
    return;
  }
  report_unreadable.load()(path);
  _exit(1);
}

}  // namespace

void ReportUnreadableFiles(void (*report)(const char* path)) {
  report_unreadable = report;
  struct sigaction action = {};
  action.sa_sigaction = OnBusError;
  action.sa_flags = SA_SIGINFO;
  sigemptyset(&action.sa_mask);
  sigaction(SIGBUS, &action, nullptr);
}

void NoteMapping(const void* address, int64_t num_bytes, const char* path) {
  const std::lock_guard lock(mappings_mutex);
  for (Mapping& mapping : mappings) {
    if (mapping.begin != 0) continue;
    mapping.num_bytes = num_bytes;
    mapping.path = path;
    mapping.begin = reinterpret_cast<uintptr_t>(address);
    return;
  }
}

void ForgetMapping(const void* address) {
  const std::lock_guard lock(mappings_mutex);
  for (Mapping& mapping : mappings) {
    if (mapping.begin == reinterpret_cast<uintptr_t>(address)) mapping.begin = 0;
  }
}

}  // namespace weir::worker
