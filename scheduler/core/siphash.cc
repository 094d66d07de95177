#include "scheduler/core/siphash.h"

#include <bit>
#include <cstddef>

namespace weir::scheduler {
namespace {

struct SipState {
  uint64_t v0, v1, v2, v3;

  void Round() {
    v0 += v1;
    v2 += v3;
    v1 = std::rotl(v1, 13) ^ v0;
    v3 = std::rotl(v3, 16) ^ v2;
    v0 = std::rotl(v0, 32);
    v2 += v1;
    v0 += v3;
    v1 = std::rotl(v1, 17) ^ v2;
    v3 = std::rotl(v3, 21) ^ v0;
    v2 = std::rotl(v2, 32);
  }

  void Absorb(uint64_t word) {
    v3 ^= word;
    Round();
    Round();
    v0 ^= word;
  }

  uint64_t Squeeze() {
    for (int i = 0; i < 4; ++i) Round();
    return v0 ^ v1 ^ v2 ^ v3;
  }
};

uint64_t LittleEndian(const uint8_t* bytes, size_t num_bytes) {
  uint64_t word = 0;
  for (size_t i = 0; i < num_bytes; ++i) word |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  return word;
}

}  // namespace

std::array<uint64_t, 2> SipHash128(const std::array<uint8_t, 16>& key, std::span<const uint8_t> message) {
  const uint64_t k0 = LittleEndian(key.data(), 8), k1 = LittleEndian(key.data() + 8, 8);
  SipState state = {k0 ^ 0x736f6d6570736575u, k1 ^ 0x646f72616e646f6du ^ 0xee, k0 ^ 0x6c7967656e657261u,
                    k1 ^ 0x7465646279746573u};
  const size_t num_whole = message.size() / 8 * 8;
  for (size_t i = 0; i < num_whole; i += 8) state.Absorb(LittleEndian(message.data() + i, 8));
  const uint64_t length = static_cast<uint64_t>(message.size()) << 56;
  state.Absorb(length | LittleEndian(message.data() + num_whole, message.size() - num_whole));
  state.v2 ^= 0xee;
  const uint64_t first = state.Squeeze();
  state.v1 ^= 0xdd;
  return {first, state.Squeeze()};
}

}  // namespace weir::scheduler
