#include "kernels/cpu/isa.h"
#include "kernels/cpu/tiles.h"

namespace weir::kernels::cpu {
namespace {

bool Always() { return true; }
const VectorOps* BestOps() { return &BestVectorOps(); }

constexpr Isa kIsas[] = {{"portable", Always, PortableTiles, BestOps}};

}  // namespace

std::span<const Isa> KnownIsas() { return kIsas; }

}  // namespace weir::kernels::cpu
