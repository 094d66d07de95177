#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "scheduler/core/types.h"

// Names for the content of prompt blocks, so that equal prompts of one tenant find each other's cached blocks and
// nobody else's.
//
//   root     = H(secret, "root", namespace, model, block_size)
//   key[0]   = H(secret, "block", root,   tokens of block 0)
//   key[i]   = H(secret, "block", key[i-1], tokens of block i)
//
// H is SipHash-2-4 with 128 bits.  A key covers everything from the start of the prompt to the end of its block.  The
// secret belongs to one replica: without it no tenant can construct two prompts whose keys collide, or a prompt whose
// key is another tenant's.

namespace weir::scheduler {

struct BlockKeySecret {
  std::array<uint8_t, 16> bytes = {};
};

// The keys of the full blocks of a prompt, in order.  `cache_namespace`: whose cache (any bytes; equal for tenants that
// may share).  `model_hash`: which weights and parallel layout the blocks are computed with (any bytes).
std::vector<BlockKey> PromptBlockKeys(const BlockKeySecret& secret, std::string_view cache_namespace,
                                      std::string_view model_hash, std::span<const TokenId> prompt, int32_t block_size);

}  // namespace weir::scheduler
