#include "kernels/cpu/isa.h"
#include "kernels/cpu/tiles.h"

namespace weir::kernels::cpu {
namespace {

bool Always() { return true; }
bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
         Avx2VectorOps() != nullptr;
}
bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && Avx512VectorOps() != nullptr;
}
// Without VBMI (Cooper Lake only) there would be no fast way from FP8 to BF16.
bool HasAvx512Bf16() {
  return HasAvx512() && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vbmi");
}
const VectorOps* BestOps() { return &BestVectorOps(); }

constexpr Isa kIsas[] = {
    {"portable", Always, PortableTiles, BestOps},
    {"avx2", HasAvx2, Avx2Tiles, Avx2VectorOps},
    {"avx512", HasAvx512, Avx512Tiles, Avx512VectorOps},
    {"avx512-bf16", HasAvx512Bf16, Avx512Bf16Tiles, Avx512VectorOps},
};

}  // namespace

std::span<const Isa> KnownIsas() { return kIsas; }

}  // namespace weir::kernels::cpu
