#include <bit>
#include <cstdint>

#include "worker/model/plan_fields.h"
#include "worker/step_plan.h"

namespace weir::worker {
namespace {

// Mixes 64-bit words one after the other, with the finaliser of splitmix64 between them.  Every list goes in with its
// length, so that no two plans are cut from the same words.
class Hash {
 public:
  template <typename T>
  void operator()(const T& value) {
    if constexpr (std::is_same_v<T, float>) {
      Mix(std::bit_cast<uint32_t>(value));
    } else {
      Mix(static_cast<uint64_t>(value));
    }
  }
  template <typename T>
  void Size(const std::vector<T>& values) {
    Mix(values.size());
  }
  uint64_t value() const { return state_; }

 private:
  void Mix(uint64_t word) {
    uint64_t z = (state_ ^ word) + 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    state_ = z ^ (z >> 31);
  }
  uint64_t state_ = 0;
};

}  // namespace

uint64_t PlanHash(const StepPlan& plan) {
  Hash hash;
  VisitField(hash, const_cast<StepPlan&>(plan));  // a hash changes nothing
  return hash.value();
}

}  // namespace weir::worker
