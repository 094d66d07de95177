#include "scheduler/core/block_key.h"

#include "scheduler/core/check.h"
#include "scheduler/core/siphash.h"

namespace weir::scheduler {
namespace {

enum Tag : uint8_t { kRoot = 1, kBlock = 2 };

void AppendNumber(std::vector<uint8_t>& message, uint64_t number, int num_bytes) {
  for (int i = 0; i < num_bytes; ++i) message.push_back(static_cast<uint8_t>(number >> (8 * i)));
}

// With its length before it: two fields side by side must not read as two others.
void AppendField(std::vector<uint8_t>& message, std::string_view field) {
  AppendNumber(message, field.size(), 8);
  message.insert(message.end(), field.begin(), field.end());
}

BlockKey KeyOf(const BlockKeySecret& secret, const std::vector<uint8_t>& message) {
  const std::array<uint64_t, 2> hash = SipHash128(secret.bytes, message);
  return {.high = hash[0], .low = hash[1]};
}

}  // namespace

std::vector<BlockKey> PromptBlockKeys(const BlockKeySecret& secret, std::string_view cache_namespace,
                                      std::string_view model_hash, std::span<const TokenId> prompt,
                                      int32_t block_size) {
  WEIR_CHECK(block_size >= 1, "a block has tokens");
  std::vector<uint8_t> message = {kRoot};
  AppendField(message, cache_namespace);
  AppendField(message, model_hash);
  AppendNumber(message, static_cast<uint64_t>(block_size), 4);
  BlockKey parent = KeyOf(secret, message);

  std::vector<BlockKey> keys;
  keys.reserve(prompt.size() / block_size);
  for (size_t begin = 0; begin + block_size <= prompt.size(); begin += block_size) {
    message = {kBlock};
    AppendNumber(message, parent.high, 8);
    AppendNumber(message, parent.low, 8);
    for (const TokenId token : prompt.subspan(begin, block_size))
      AppendNumber(message, static_cast<uint32_t>(token), 4);
    parent = KeyOf(secret, message);
    keys.push_back(parent);
  }
  return keys;
}

}  // namespace weir::scheduler
