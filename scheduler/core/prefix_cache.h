#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/core/types.h"

// Which block holds the content that a key names.  One per data-parallel group.
//
// Chains through an array with one entry a block, so that publishing and forgetting never allocate, never rehash and
// cost the same however many blocks are cached (a general hash map pays for erasures with a rehash of everything: a
// stall of milliseconds at a million blocks).  Keys are keyed hashes already and are not hashed again.

namespace weir::scheduler {

inline constexpr BlockId kNoBlock = -1;

class PrefixCache {
 public:
  explicit PrefixCache(int32_t num_blocks);

  // The block that holds `key`, or kNoBlock.
  BlockId Find(const BlockKey& key) const;

  // Requires: the block holds no key yet.  False, and nothing changes, when another block holds this key.
  bool Insert(BlockId block, const BlockKey& key);

  // Requires: the block holds a key.
  void Erase(BlockId block);

  bool Contains(BlockId block) const { return entries_[block].is_held; }

 private:
  struct Entry {
    BlockKey key;
    BlockId next = kNoBlock;  // in the chain of the bucket
    bool is_held = false;
  };

  BlockId& Bucket(const BlockKey& key) { return buckets_[key.low & mask_]; }

  std::vector<Entry> entries_;  // by block
  std::vector<BlockId> buckets_;
  uint64_t mask_;
};

}  // namespace weir::scheduler
