#include "scheduler/core/prefix_cache.h"

#include <algorithm>
#include <bit>

#include "scheduler/core/check.h"

namespace weir::scheduler {

PrefixCache::PrefixCache(int32_t num_blocks)
    : entries_(num_blocks),
      buckets_(std::bit_ceil(static_cast<uint64_t>(std::max(num_blocks, 1))), kNoBlock),
      mask_(buckets_.size() - 1) {}

BlockId PrefixCache::Find(const BlockKey& key) const {
  BlockId block = buckets_[key.low & mask_];
  while (block != kNoBlock && entries_[block].key != key) block = entries_[block].next;
  return block;
}

bool PrefixCache::Insert(BlockId block, const BlockKey& key) {
  WEIR_CHECK(!entries_[block].is_held, "a block holds one key");
  if (Find(key) != kNoBlock) return false;
  BlockId& bucket = Bucket(key);
  entries_[block] = {.key = key, .next = bucket, .is_held = true};
  bucket = block;
  return true;
}

void PrefixCache::Erase(BlockId block) {
  Entry& entry = entries_[block];
  WEIR_CHECK(entry.is_held, "only a key that is held can be erased");
  BlockId* link = &Bucket(entry.key);
  while (*link != block) link = &entries_[*link].next;
  *link = entry.next;
  entry = {};
}

}  // namespace weir::scheduler
