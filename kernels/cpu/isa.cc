#include "kernels/cpu/isa.h"

#include <algorithm>
#include <chrono>
#include <vector>

namespace weir::kernels::cpu {
namespace {

std::vector<const Isa*> SupportedIsas() {
  std::vector<const Isa*> supported;
  for (const Isa& isa : KnownIsas()) {
    if (isa.is_supported()) supported.push_back(&isa);
  }
  return supported;
}

// A product that lives in the first-level cache and keeps all registers busy: 12 rows, 2 panels, 256 inputs.
class Probe {
 public:
  explicit Probe(const TileKernels& kernels) : kernels_(kernels) {
    product_.panels = weights_;
    product_.panel_bytes = kInputs / 2 * kLineBytes;
    product_.num_inputs = kInputs;
    product_.num_outputs = 2 * kPanelOutputs;
    product_.x = x_;
    product_.x_stride_bytes = kInputs * 4;
    product_.num_rows = kRows;
    product_.out = out_;
    product_.out_stride = 2 * kPanelOutputs;
  }

  // Seconds of the fastest of a few short runs: a neighbour that takes the processor spoils some of them, not all.
  double Seconds() {
    double fastest = 1.0;
    for (int run = 0; run < 12; ++run) {
      const auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < 8; ++i) kernels_.multiply_bf16(product_);
      fastest = std::min(fastest, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return fastest;
  }

 private:
  static constexpr int kInputs = 256, kRows = 12;
  const TileKernels& kernels_;
  TileProduct product_;
  alignas(64) uint8_t weights_[2 * kInputs / 2 * kLineBytes] = {};
  alignas(64) uint8_t x_[kRows * kInputs * 4] = {};
  alignas(64) float out_[kRows * 2 * kPanelOutputs] = {};
};

// Flags say what a processor has, not what is fast on it: on some Xeons vdpbf16ps runs at a third of the rate of f32
// FMA for the same products (96-124 against 246 GFLOP/s a core), on Zen 5 at twice its rate.  The ratios are far from
// 1, so that a noisy measurement does not turn the choice, and with it the last bits of every result.
const Isa* Fastest(const std::vector<const Isa*>& isas) {
  const Isa* fastest = nullptr;
  double seconds = 0.0;
  for (const Isa* isa : isas) {
    Probe probe(isa->tiles());
    const double candidate = probe.Seconds();
    if (fastest == nullptr || candidate < seconds) {
      fastest = isa;
      seconds = candidate;
    }
  }
  return fastest;
}

}  // namespace

absl::StatusOr<const Isa*> ChooseIsa(std::string_view name) {
  const std::vector<const Isa*> supported = SupportedIsas();
  if (name.empty()) {
    // Only the two fastest entries can be in doubt.
    const auto first = supported.size() > 2 ? supported.end() - 2 : supported.begin();
    return Fastest({first, supported.end()});
  }
  std::string names;
  for (const Isa* isa : supported) {
    if (isa->name == name) return isa;
    names += (names.empty() ? "" : ", ") + std::string(isa->name);
  }
  return absl::InvalidArgumentError("instruction set '" + std::string(name) +
                                    "' is unknown or this processor lacks it; it has: " + names);
}

}  // namespace weir::kernels::cpu
