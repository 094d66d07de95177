#pragma once

#include <cstdint>

#include "kernels/cpu/tile_kernels.h"

// The kernels of each instruction set, one file each.  CMake compiles those that the target architecture has.  Calling
// them on a processor without the instructions is the caller's mistake: isa.h knows.

namespace weir::kernels::cpu {

const TileKernels& PortableTiles();
const TileKernels& Avx2Tiles();
const TileKernels& Avx512Tiles();
const TileKernels& Avx512Bf16Tiles();

}  // namespace weir::kernels::cpu
