// Products with 512-bit f32 FMA: BF16 and FP8 weights are widened in registers.  Compiled with -mavx512f -mavx512bw
// -mavx512dq -mavx512vl; see tile_product-inl.h for what such a file may include.
#include <immintrin.h>

#include "kernels/cpu/tile_kernels.h"
#include "kernels/cpu/tile_product-inl.h"
#include "kernels/cpu/tiles.h"
#include "kernels/cpu/vec_avx512-inl.h"

namespace weir::kernels::cpu {

const TileKernels& Avx512Tiles() {
  static constexpr TileKernels kKernels{
      .input = TileKernels::Input::kF32,
      .multiply_bf16 = Multiply<Bf16Product<Avx512>>,
      .multiply_bf16_by_f32 = Multiply<Bf16Product<Avx512>>,
      .multiply_f32 = Multiply<F32Product<Avx512>>,
      .multiply_fp8 = MultiplyFp8<Avx512>,
      .transpose = TransposeAvx512,
      .order_fp8 = OrderFp8<InputMajor>,
  };
  return kKernels;
}

}  // namespace weir::kernels::cpu
