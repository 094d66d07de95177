#include "kernels/cpu/vector_ops.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/vector_ops.cc"
#include "hwy/foreach_target.h"  // compiles the rest of this file once per instruction set
#include "hwy/highway.h"
// After highway.h.
#include "hwy/contrib/math/math-inl.h"
#include "kernels/float_formats.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels::cpu {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::CappedTag<float, 16>;  // a vector never crosses a panel
using U32 = hn::RebindToUnsigned<F32>;
using I32 = hn::RebindToSigned<F32>;
using U16 = hn::Rebind<uint16_t, F32>;
using V = hn::Vec<F32>;

// fn(i, count) for every vector of a row; count < lanes only for the last.
template <class Fn>
HWY_INLINE void ForEachVector(int64_t n, Fn fn) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(F32()));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) fn(i, lanes);
  if (i < n) fn(i, n - i);
}

template <class D>
HWY_INLINE hn::Vec<D> LoadCount(D d, const hn::TFromD<D>* p, int64_t count) {
  if (count == static_cast<int64_t>(hn::Lanes(d))) return hn::LoadU(d, p);
  HWY_ALIGN hn::TFromD<D> buffer[HWY_MAX_BYTES / sizeof(hn::TFromD<D>)] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return hn::Load(d, buffer);
}

template <class D>
HWY_INLINE void StoreCount(hn::Vec<D> v, D d, hn::TFromD<D>* p, int64_t count) {
  if (count == static_cast<int64_t>(hn::Lanes(d))) return hn::StoreU(v, d, p);
  HWY_ALIGN hn::TFromD<D> buffer[HWY_MAX_BYTES / sizeof(hn::TFromD<D>)];
  hn::Store(v, d, buffer);
  for (int64_t i = 0; i < count; ++i) p[i] = buffer[i];
}

// ---- number formats ----

HWY_INLINE hn::Vec<U32> Bf16Bits(V v) {
  const U32 du;
  const auto bits = hn::BitCast(du, v);
  const auto even = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7fff)), even));
  const auto quiet = hn::Or(hn::ShiftRight<16>(bits), hn::Set(du, 0x40));
  return hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), quiet, rounded);
}

HWY_INLINE V FromBf16Bits(hn::Vec<U32> bits) { return hn::BitCast(F32(), hn::ShiftLeft<16>(bits)); }

HWY_INLINE void StoreBf16(V v, uint16_t* out, int64_t count) {
  const U16 d16;
  StoreCount(hn::DemoteTo(d16, hn::BitCast(I32(), Bf16Bits(v))), d16, out, count);
}

// The nearest e4m3 value, ties to even.  |v| <= 448 up to rounding of the division that made it, or NaN.
HWY_INLINE V RoundToE4M3(V v) {
  const F32 d;
  const U32 du;
  const auto bits = hn::BitCast(du, v);
  const auto even = hn::And(hn::ShiftRight<20>(bits), hn::Set(du, 1));
  const auto normal = hn::And(hn::Add(hn::Add(bits, hn::Set(du, 0x7ffff)), even), hn::Set(du, 0xfff00000u));
  // Below 2^-6 the values are multiples of 2^-9, which is the last place of numbers around 1.5 * 2^14.
  const V magic = hn::Set(d, 24576.0f);
  const V subnormal = hn::Sub(hn::Add(v, magic), magic);
  return hn::IfThenElse(hn::Lt(hn::Abs(v), hn::Set(d, 0x1p-6f)), subnormal, hn::BitCast(d, normal));
}

void WidenBf16(float* out, const uint16_t* x, int64_t n) {
  ForEachVector(n, [&](int64_t i, int64_t count) HWY_ATTR {
    StoreCount(FromBf16Bits(hn::PromoteTo(U32(), LoadCount(U16(), x + i, count))), F32(), out + i, count);
  });
}

void RoundToBf16(uint16_t* out, const float* x, int64_t n) {
  ForEachVector(n,
                [&](int64_t i, int64_t count) HWY_ATTR { StoreBf16(LoadCount(F32(), x + i, count), out + i, count); });
}

void RoundThroughBf16(float* out, const float* x, int64_t n) {
  ForEachVector(n, [&](int64_t i, int64_t count) HWY_ATTR {
    StoreCount(FromBf16Bits(Bf16Bits(LoadCount(F32(), x + i, count))), F32(), out + i, count);
  });
}

float ScaleOfBlock(const float* x, int64_t n, ScaleFormat format) {
  const F32 d;
  V largest = hn::Zero(d);
  ForEachVector(
      n, [&](int64_t i, int64_t count) HWY_ATTR { largest = hn::Max(largest, hn::Abs(LoadCount(d, x + i, count))); });
  const float scale = E4M3Scale(hn::GetLane(hn::MaxOfLanes(d, largest)));
  return format == ScaleFormat::kUe8m0 ? RoundUpToPowerOfTwo(scale) : scale;
}

float QuantizeToBf16(uint16_t* out, const float* x, int64_t n, ScaleFormat format) {
  const float scale = ScaleOfBlock(x, n, format);
  ForEachVector(n, [&](int64_t i, int64_t count) HWY_ATTR {
    StoreBf16(RoundToE4M3(hn::Div(LoadCount(F32(), x + i, count), hn::Set(F32(), scale))), out + i, count);
  });
  return scale;
}

float QuantizeToF32(float* out, const float* x, int64_t n, ScaleFormat format) {
  const float scale = ScaleOfBlock(x, n, format);
  ForEachVector(n, [&](int64_t i, int64_t count) HWY_ATTR {
    StoreCount(RoundToE4M3(hn::Div(LoadCount(F32(), x + i, count), hn::Set(F32(), scale))), F32(), out + i, count);
  });
  return scale;
}

// ---- rows ----

void RmsNorm(float* out, const float* x, const float* weight, int64_t n, float eps) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  V sum0 = hn::Zero(d), sum1 = hn::Zero(d), sum2 = hn::Zero(d), sum3 = hn::Zero(d);
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes) {
    const V x0 = hn::LoadU(d, x + i), x1 = hn::LoadU(d, x + i + lanes);
    const V x2 = hn::LoadU(d, x + i + 2 * lanes), x3 = hn::LoadU(d, x + i + 3 * lanes);
    sum0 = hn::MulAdd(x0, x0, sum0);
    sum1 = hn::MulAdd(x1, x1, sum1);
    sum2 = hn::MulAdd(x2, x2, sum2);
    sum3 = hn::MulAdd(x3, x3, sum3);
  }
  ForEachVector(n - i, [&](int64_t j, int64_t count) HWY_ATTR {
    const V rest = LoadCount(d, x + i + j, count);
    sum0 = hn::MulAdd(rest, rest, sum0);
  });
  const float squares = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3))));
  const V factor = hn::Set(d, 1.0f / std::sqrt(squares / static_cast<float>(n) + eps));
  ForEachVector(n, [&](int64_t j, int64_t count) HWY_ATTR {
    const V normalized = hn::Mul(LoadCount(d, x + j, count), factor);
    StoreCount(hn::Mul(normalized, LoadCount(d, weight + j, count)), d, out + j, count);
  });
}

void Add(float* a, const float* b, int64_t n) {
  const F32 d;
  ForEachVector(n, [&](int64_t i, int64_t count) HWY_ATTR {
    StoreCount(hn::Add(LoadCount(d, a + i, count), LoadCount(d, b + i, count)), d, a + i, count);
  });
}

void AddScaled(float* a, const float* b, float factor, int64_t n) {
  const F32 d;
  const V f = hn::Set(d, factor);
  ForEachVector(n, [&](int64_t i, int64_t count) HWY_ATTR {
    StoreCount(hn::MulAdd(LoadCount(d, b + i, count), f, LoadCount(d, a + i, count)), d, a + i, count);
  });
}

void Scale(float* out, const float* x, float factor, int64_t n) {
  const F32 d;
  const V f = hn::Set(d, factor);
  ForEachVector(n, [&](int64_t i, int64_t count)
                       HWY_ATTR { StoreCount(hn::Mul(LoadCount(d, x + i, count), f), d, out + i, count); });
}

void SiluMultiply(float* out, const float* gate, const float* up, int64_t n) {
  const F32 d;
  const V one = hn::Set(d, 1.0f), limit = hn::Set(d, -88.0f);
  ForEachVector(n, [&](int64_t i, int64_t count) HWY_ATTR {
    const V g = LoadCount(d, gate + i, count);
    // Below -88 e^-x would overflow; there silu is under 1e-36 in magnitude either way.  A NaN gate stays NaN through
    // the numerator.
    const V silu = hn::Div(g, hn::Add(one, hn::Exp(d, hn::Neg(hn::Max(g, limit)))));
    StoreCount(hn::Mul(silu, LoadCount(d, up + i, count)), d, out + i, count);
  });
}

void Rotate(float* x, const float* angles, int64_t n) {
  const F32 d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + 2 * lanes <= n; i += 2 * lanes) {
    V even, odd, cos, sin;
    hn::LoadInterleaved2(d, x + i, even, odd);
    hn::LoadInterleaved2(d, angles + i, cos, sin);
    hn::StoreInterleaved2(hn::Sub(hn::Mul(even, cos), hn::Mul(odd, sin)),
                          hn::Add(hn::Mul(even, sin), hn::Mul(odd, cos)), d, x + i);
  }
  for (; i < n; i += 2) {
    const float even = x[i], odd = x[i + 1], cos = angles[i], sin = angles[i + 1];
    x[i] = even * cos - odd * sin;
    x[i + 1] = even * sin + odd * cos;
  }
}

float MaxOfRow(const float* x, int64_t n) {
  const F32 d;
  V largest = hn::Set(d, x[0]);
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) largest = hn::Max(largest, hn::LoadU(d, x + i));
  float result = hn::GetLane(hn::MaxOfLanes(d, largest));
  for (; i < n; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

bool IsWithin(const float* x, float limit, int64_t n) {
  const F32 d;
  bool result = true;
  ForEachVector(n, [&](int64_t i, int64_t count) HWY_ATTR {
    result = result && hn::AllTrue(d, hn::Lt(hn::Abs(LoadCount(d, x + i, count)), hn::Set(d, limit)));
  });
  return result;
}

// Highway's Exp gives 0 for a NaN.
HWY_INLINE V ExpKeepingNaN(V v) {
  const V result = hn::Exp(F32(), v);
  return hn::IfThenElse(hn::IsNaN(v), v, result);
}

// e^(x * factor - offset) of `count` elements; zero in the other lanes.
HWY_INLINE V ExpOf(const float* x, V factor, V offset, int64_t count) {
  const F32 d;
  const V result = ExpKeepingNaN(hn::Sub(hn::Mul(LoadCount(d, x, count), factor), offset));
  if (count == static_cast<int64_t>(hn::Lanes(d))) return result;
  return hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(count)), result);
}

float ExpToBf16(uint16_t* out, const float* x, float factor, float offset, int64_t n) {
  const F32 d;
  V sum = hn::Zero(d);
  ForEachVector(n, [&](int64_t i, int64_t count) HWY_ATTR {
    const auto bits = Bf16Bits(ExpOf(x + i, hn::Set(d, factor), hn::Set(d, offset), count));
    sum = hn::Add(sum, FromBf16Bits(bits));
    StoreCount(hn::DemoteTo(U16(), hn::BitCast(I32(), bits)), U16(), out + i, count);
  });
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

float ExpToF32(float* out, const float* x, float factor, float offset, int64_t n) {
  const F32 d;
  V sum = hn::Zero(d);
  ForEachVector(n, [&](int64_t i, int64_t count) HWY_ATTR {
    const V e = ExpOf(x + i, hn::Set(d, factor), hn::Set(d, offset), count);
    sum = hn::Add(sum, e);
    StoreCount(e, d, out + i, count);
  });
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

HWY_INLINE void StorePairs(hn::Vec<U32> low, hn::Vec<U32> high, uint32_t* out, int64_t count) {
  StoreCount(hn::Or(low, hn::ShiftLeft<16>(high)), U32(), out, count);
}

HWY_INLINE int64_t PlaceInPanels(int64_t i, int64_t stride) { return i / 16 * stride + i % 16; }

void Interleave(uint32_t* out, int64_t stride, const uint16_t* a, const uint16_t* b, int64_t n) {
  ForEachVector(n, [&](int64_t i, int64_t count) HWY_ATTR {
    StorePairs(hn::PromoteTo(U32(), LoadCount(U16(), a + i, count)),
               hn::PromoteTo(U32(), LoadCount(U16(), b + i, count)), out + PlaceInPanels(i, stride), count);
  });
}

void RoundAndInterleave(uint32_t* out, int64_t stride, const float* a, const float* b, int64_t n) {
  ForEachVector(n, [&](int64_t i, int64_t count) HWY_ATTR {
    StorePairs(Bf16Bits(LoadCount(F32(), a + i, count)), Bf16Bits(LoadCount(F32(), b + i, count)),
               out + PlaceInPanels(i, stride), count);
  });
}

constexpr VectorOps kOps = {
    RmsNorm,   Add,         AddScaled,        Scale,          SiluMultiply,       Rotate,
    WidenBf16, RoundToBf16, RoundThroughBf16, QuantizeToBf16, QuantizeToF32,      MaxOfRow,
    IsWithin,  ExpToBf16,   ExpToF32,         Interleave,     RoundAndInterleave,
};

}  // namespace

const VectorOps* Ops() { return &kOps; }

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weir::kernels::cpu {

HWY_EXPORT(Ops);

const VectorOps& BestVectorOps() { return *HWY_DYNAMIC_DISPATCH(Ops)(); }

namespace {
[[maybe_unused]] bool Supports(int64_t target) { return (hwy::SupportedTargets() & target) != 0; }
}  // namespace

const VectorOps* Avx2VectorOps() {
#if HWY_TARGETS & HWY_AVX2
  return Supports(HWY_AVX2) ? N_AVX2::Ops() : nullptr;
#else
  return nullptr;
#endif
}

const VectorOps* Avx512VectorOps() {
#if HWY_TARGETS & HWY_AVX3
  return Supports(HWY_AVX3) ? N_AVX3::Ops() : nullptr;
#else
  return nullptr;
#endif
}

}  // namespace weir::kernels::cpu
#endif  // HWY_ONCE
