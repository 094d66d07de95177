#pragma once

#include <cstdint>
#include <vector>

#include "scheduler/core/prefix_cache.h"
#include "scheduler/core/types.h"

// The KV blocks of one data-parallel group.  Bookkeeping only.  A block is in exactly one of three places:
//
//   free    no owner, no content        handed out first, the last given back first
//   owned   one owner or more           an owner is a slot's block table
//   cached  no owner, holds a key       handed out when none is free, the longest released first
//
// so free + cached + owned == total, always.

namespace weir::scheduler {

class BlockPool {
 public:
  explicit BlockPool(int32_t num_blocks);

  int32_t num_total() const { return static_cast<int32_t>(blocks_.size()); }
  int32_t num_free() const { return num_free_; }
  int32_t num_cached() const { return num_cached_; }
  int32_t num_owned() const { return num_total() - num_free_ - num_cached_; }
  int32_t num_available() const { return num_free_ + num_cached_; }
  int64_t num_evictions() const { return num_evictions_; }

  // A block with one owner and no content.  Requires: num_available() > 0.
  BlockId Take();

  // One owner more.  Requires: the block is owned or cached.
  void Share(BlockId block);

  // One owner less.  Requires: it is owned.
  void Release(BlockId block);

  // Lets others find an owned block by its content, unless another block holds the same key already.
  void Publish(BlockId block, const BlockKey& key);

  // Nobody finds this block any more; its owners keep it.
  void Unpublish(BlockId block);

  BlockId Find(const BlockKey& key) const { return prefix_cache_.Find(key); }
  bool is_published(BlockId block) const { return prefix_cache_.Contains(block); }
  int32_t num_owners(BlockId block) const { return blocks_[block].num_owners; }

 private:
  struct Block {
    int32_t num_owners = 0;
    BlockId previous = kNoBlock;  // in the list of cached blocks
    BlockId next = kNoBlock;      // in the list of cached or of free blocks
  };

  void PushFree(BlockId block);
  void PushCached(BlockId block);
  void UnlinkCached(BlockId block);

  std::vector<Block> blocks_;
  PrefixCache prefix_cache_;
  BlockId first_free_ = kNoBlock;
  BlockId oldest_cached_ = kNoBlock;
  BlockId newest_cached_ = kNoBlock;
  int32_t num_free_ = 0;
  int32_t num_cached_ = 0;
  int64_t num_evictions_ = 0;
};

}  // namespace weir::scheduler
