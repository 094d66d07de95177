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

// An order of FP8 lines (TileKernels::fp8_place): the 16 outputs' input 0, then their input 1, 2 and 3.
inline constexpr uint8_t kFp8InputMajor[64] = {0,  16, 32, 48, 1,  17, 33, 49, 2,  18, 34, 50, 3,  19, 35, 51,
                                               4,  20, 36, 52, 5,  21, 37, 53, 6,  22, 38, 54, 7,  23, 39, 55,
                                               8,  24, 40, 56, 9,  25, 41, 57, 10, 26, 42, 58, 11, 27, 43, 59,
                                               12, 28, 44, 60, 13, 29, 45, 61, 14, 30, 46, 62, 15, 31, 47, 63};

}  // namespace weir::kernels::cpu
