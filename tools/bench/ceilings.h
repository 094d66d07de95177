#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

// What this machine can do at most, measured in the run that it is compared with: bytes read from memory, and products
// in registers.

namespace weir::tools {

// Seconds by the clock on the wall, or of the calling thread's processor time: with one thread the latter measures
// soundly on a machine that others use as well.
enum class Clock { kWall, kThread };
double Seconds(Clock clock);

// Reads a region much larger than the caches, on several threads.  Each call of Run is one round.
class ReadProbe {
 public:
  ReadProbe(int32_t num_threads, Clock clock);
  ~ReadProbe();
  ReadProbe(const ReadProbe&) = delete;
  ReadProbe& operator=(const ReadProbe&) = delete;
  double Run();  // GB/s (10^9 bytes)

 private:
  int32_t num_threads_;
  Clock clock_;
  int64_t num_bytes_;
  char* region_;
};

// Rounds of multiply-adds in registers.  `isa` is a name that NewCpuBackend takes; "" or one without a known peak gives
// the f32 rate of what the compiler was told to use.
class ArithmeticProbe {
 public:
  ArithmeticProbe(int32_t num_threads, std::string_view isa, Clock clock);
  double Run();  // GFLOP/s, a multiply-add being two
  std::string_view instruction() const { return instruction_; }

 private:
  int32_t num_threads_;
  Clock clock_;
  void (*loop_)(int64_t);
  double flop_per_iteration_;
  std::string_view instruction_;
};

std::string MachineName();  // the processor as the system calls it
double Median(std::vector<double> values);

}  // namespace weir::tools
