#pragma once

#include <cstdint>

// Pseudo-random numbers that are the same on every machine and in every build: integers only, no <random>.

namespace weir::sim {

inline constexpr uint64_t kGolden = 0x9e3779b97f4a7c15;

// One round of splitmix64: a bijection in which every input bit reaches every output bit.
constexpr uint64_t Mix(uint64_t x) {
  x += kGolden;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

constexpr uint64_t Mix(uint64_t a, uint64_t b) { return Mix(a * 0xff51afd7ed558ccd + Mix(b)); }

// Splitmix64.  Two generators of one seed and different streams are independent, so that switching one kind of fault
// off leaves what the others draw as it was.
class Random {
 public:
  explicit Random(uint64_t seed, uint64_t stream = 0) : state_(Mix(seed, stream)) {}

  uint64_t Next() { return Mix(state_ += kGolden); }
  int64_t Below(int64_t bound) {  // uniform in [0, bound)
    return static_cast<int64_t>((static_cast<unsigned __int128>(Next()) * static_cast<uint64_t>(bound)) >> 64);
  }
  int64_t Between(int64_t low, int64_t high) { return low + Below(high - low + 1); }  // both ends included
  // Uniform in the number of digits: as many draws from 1 to 10 as from 10 to 100.
  int64_t Spread(int64_t low, int64_t high) {
    int num_doublings = 0;
    while ((low << num_doublings) < high) ++num_doublings;
    const int64_t top = low << Between(0, num_doublings);
    return Between(low, top < high ? top : high);
  }
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }  // [0, 1)
  bool Chance(double probability) { return Uniform() < probability; }
  // Around `mean`, from 0 to twice it.
  int64_t Around(int64_t mean) { return Below(2 * mean + 1); }

 private:
  uint64_t state_;
};

}  // namespace weir::sim
