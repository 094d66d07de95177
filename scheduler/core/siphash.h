#pragma once

#include <array>
#include <cstdint>
#include <span>

// SipHash-2-4 with 128 bits of output (Aumasson and Bernstein, 2012; reference code of 2014 for the long output): a
// keyed hash.  Who does not know the key can neither predict a hash nor find two inputs that share one.

namespace weir::scheduler {

// The first eight bytes of the published output, then the last eight, each read as a little-endian number.
std::array<uint64_t, 2> SipHash128(const std::array<uint8_t, 16>& key, std::span<const uint8_t> message);

}  // namespace weir::scheduler
