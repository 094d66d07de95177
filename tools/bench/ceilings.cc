#include "tools/bench/ceilings.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <thread>

#include "kernels/check.h"
#include "kernels/cpu/memory.h"

namespace weir::tools {
namespace {

// Seconds until the slowest of some threads has done its part.
template <typename Body>
double SecondsTogether(int32_t num_threads, Clock clock, Body body) {
  if (num_threads == 1) {
    const double start_alone = Seconds(clock);
    body(0);
    return Seconds(clock) - start_alone;
  }
  std::atomic<int32_t> num_ready{0};
  std::atomic<bool> may_start{false};
  std::vector<std::thread> threads;
  for (int32_t t = 0; t < num_threads; ++t) {
    threads.emplace_back([&, t] {
      num_ready.fetch_add(1);
      while (!may_start.load(std::memory_order_acquire)) std::this_thread::yield();
      body(t);
    });
  }
  while (num_ready.load() < num_threads) std::this_thread::yield();
  const auto start = std::chrono::steady_clock::now();
  may_start.store(true, std::memory_order_release);
  for (std::thread& thread : threads) thread.join();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

uint64_t Sum(const uint64_t* words, int64_t count) {
  uint64_t sums[32] = {};
  for (int64_t i = 0; i + 32 <= count; i += 32) {
    for (int j = 0; j < 32; ++j) sums[j] ^= words[i + j];
  }
  uint64_t sum = 0;
  for (const uint64_t s : sums) sum ^= s;
  return sum;
}

void PlainLoop(int64_t iterations) {
  float sums[16] = {};
  for (int64_t i = 0; i < iterations; ++i) {
    for (float& sum : sums) sum = sum * 0.5f + 1e-3f;
  }
  volatile float sink = sums[0] + sums[15];
  (void)sink;
}

#if defined(__x86_64__)
// Sixteen independent chains: more than the instruction's latency times its rate on any processor so far.
#define WEIR_SIXTEEN(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
__attribute__((target("avx2,fma"))) void FmaYmmLoop(int64_t iterations) {
  for (int64_t i = 0; i < iterations; ++i) {
#define WEIR_STEP(n) asm volatile("vfmadd231ps %%ymm" #n ",%%ymm" #n ",%%ymm" #n ::: "xmm" #n);
    WEIR_SIXTEEN(WEIR_STEP)
#undef WEIR_STEP
  }
}
__attribute__((target("avx512f"))) void FmaZmmLoop(int64_t iterations) {
  for (int64_t i = 0; i < iterations; ++i) {
#define WEIR_STEP(n) asm volatile("vfmadd231ps %%zmm" #n ",%%zmm" #n ",%%zmm" #n ::: "xmm" #n);
    WEIR_SIXTEEN(WEIR_STEP)
#undef WEIR_STEP
  }
}
__attribute__((target("avx512f,avx512bf16"))) void DotBf16Loop(int64_t iterations) {
  for (int64_t i = 0; i < iterations; ++i) {
#define WEIR_STEP(n) asm volatile("vdpbf16ps %%zmm" #n ",%%zmm" #n ",%%zmm" #n ::: "xmm" #n);
    WEIR_SIXTEEN(WEIR_STEP)
#undef WEIR_STEP
  }
}
#endif

}  // namespace

double Seconds(Clock clock) {
  timespec time{};
  clock_gettime(clock == Clock::kWall ? CLOCK_MONOTONIC : CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

ReadProbe::ReadProbe(int32_t num_threads, Clock clock)
    : num_threads_(num_threads), clock_(clock), num_bytes_(int64_t{512} << 20), region_(nullptr) {
  const absl::StatusOr<void*> region = kernels::cpu::AllocateBytes(num_bytes_);
  WEIR_CHECK(region.ok(), std::string(region.status().message()));
  region_ = static_cast<char*>(*region);
  for (int64_t i = 0; i < num_bytes_; i += 8) *reinterpret_cast<uint64_t*>(region_ + i) = static_cast<uint64_t>(i);
}
ReadProbe::~ReadProbe() { kernels::cpu::FreeBytes(region_); }

double ReadProbe::Run() {
  std::atomic<uint64_t> sink{0};
  // Small pieces, so that a thread that loses its processor does not decide.
  constexpr int64_t kPieceBytes = int64_t{4} << 20;
  std::atomic<int64_t> next{0};
  const double seconds = SecondsTogether(num_threads_, clock_, [&](int32_t) {
    for (int64_t begin; (begin = next.fetch_add(kPieceBytes)) < num_bytes_;) {
      sink.fetch_xor(Sum(reinterpret_cast<const uint64_t*>(region_ + begin), kPieceBytes / 8));
    }
  });
  return static_cast<double>(num_bytes_) / seconds / 1e9;
}

ArithmeticProbe::ArithmeticProbe(int32_t num_threads, std::string_view isa, Clock clock)
    : num_threads_(num_threads),
      clock_(clock),
      loop_(PlainLoop),
      flop_per_iteration_(32),
      instruction_("f32 multiply-add") {
#if defined(__x86_64__)
  if (isa == "avx2") {
    loop_ = FmaYmmLoop, flop_per_iteration_ = 16 * 8 * 2, instruction_ = "vfmadd231ps ymm";
  } else if (isa == "avx512") {
    loop_ = FmaZmmLoop, flop_per_iteration_ = 16 * 16 * 2, instruction_ = "vfmadd231ps zmm";
  } else if (isa == "avx512-bf16") {
    loop_ = DotBf16Loop, flop_per_iteration_ = 16 * 32 * 2, instruction_ = "vdpbf16ps zmm";
  }
#else
  (void)isa;
#endif
}

double ArithmeticProbe::Run() {
  constexpr int64_t kIterations = 5000000;  // some 10 ms: starting threads takes a part of one
  const double seconds = SecondsTogether(num_threads_, clock_, [&](int32_t) { loop_(kIterations); });
  return flop_per_iteration_ * kIterations * num_threads_ / seconds / 1e9;
}

std::string MachineName() {
  std::ifstream file("/proc/cpuinfo");
  std::string line, name = "unknown processor", family, model;
  while (std::getline(file, line)) {
    const size_t colon = line.find(": ");
    if (colon == std::string::npos) continue;
    const std::string value = line.substr(colon + 2);
    if (line.starts_with("cpu family")) family = value;
    if (line.starts_with("model\t")) model = value;
    if (line.starts_with("model name")) name = value;
    if (line.starts_with("processor") && line.find(": 0") == std::string::npos) break;
  }
  if (!family.empty()) name += " (family " + family + ", model " + model + ")";
  return name;
}

double Median(std::vector<double> values) {
  if (values.empty()) return 0.0;
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace weir::tools
