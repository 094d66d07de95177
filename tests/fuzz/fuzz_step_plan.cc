#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "worker/service/plan_codec.h"

// Plans and results as bytes from the other process: decoding refuses or gives what encodes to the same again.
namespace {

void FuzzPlan(const uint8_t* data, int size) {
  weir::worker::v1::StepPlan message;
  if (!message.ParseFromArray(data, size)) return;
  const weir::worker::PlanLimits limits = weir::worker::LimitsFor(2, 64, 4096, 1024);
  const auto plan = weir::worker::DecodePlan(message, limits);
  if (!plan.ok()) return;
  weir::worker::v1::StepPlan again;
  weir::worker::EncodePlan(*plan, again);
  const auto decoded = weir::worker::DecodePlan(again, limits);
  if (!decoded.ok() || decoded->work.size() != plan->work.size()) std::abort();
}

void FuzzResult(const uint8_t* data, int size) {
  weir::worker::v1::StepResult message;
  if (!message.ParseFromArray(data, size)) return;
  const auto result = weir::worker::DecodeResult(message, 128, 4096);
  if (!result.ok()) return;
  weir::worker::v1::StepResult again;
  weir::worker::EncodeResult(*result, again);
  if (!weir::worker::DecodeResult(again, 128, 4096).ok()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0 || size > (1 << 20)) return 0;
  const auto rest = static_cast<int>(size - 1);
  if (data[0] % 2 == 0) {
    FuzzPlan(data + 1, rest);
  } else {
    FuzzResult(data + 1, rest);
  }
  return 0;
}
