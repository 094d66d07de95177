#include "scheduler/core/block_pool.h"

#include "scheduler/core/check.h"

namespace weir::scheduler {

BlockPool::BlockPool(int32_t num_blocks) : blocks_(num_blocks), prefix_cache_(num_blocks) {
  for (BlockId block = num_blocks - 1; block >= 0; --block) PushFree(block);
}

BlockId BlockPool::Take() {
  WEIR_CHECK(num_available() > 0, "the caller looks before it takes");
  BlockId block = first_free_;
  if (block != kNoBlock) {
    first_free_ = blocks_[block].next;
    --num_free_;
  } else {
    block = oldest_cached_;
    UnlinkCached(block);
    prefix_cache_.Erase(block);
    ++num_evictions_;
  }
  blocks_[block].num_owners = 1;
  return block;
}

void BlockPool::Share(BlockId block) {
  if (blocks_[block].num_owners == 0) {
    WEIR_CHECK(is_published(block), "a free block has no content to share");
    UnlinkCached(block);
  }
  ++blocks_[block].num_owners;
}

void BlockPool::Release(BlockId block) {
  WEIR_CHECK(blocks_[block].num_owners > 0, "released twice");
  if (--blocks_[block].num_owners > 0) return;
  if (is_published(block)) {
    PushCached(block);
  } else {
    PushFree(block);
  }
}

void BlockPool::Publish(BlockId block, const BlockKey& key) {
  WEIR_CHECK(blocks_[block].num_owners > 0, "only its owner publishes a block");
  prefix_cache_.Insert(block, key);
}

void BlockPool::Unpublish(BlockId block) {
  if (!is_published(block)) return;
  prefix_cache_.Erase(block);
  if (blocks_[block].num_owners > 0) return;
  UnlinkCached(block);
  PushFree(block);
}

void BlockPool::PushFree(BlockId block) {
  blocks_[block] = {.num_owners = 0, .previous = kNoBlock, .next = first_free_};
  first_free_ = block;
  ++num_free_;
}

void BlockPool::PushCached(BlockId block) {
  blocks_[block] = {.num_owners = 0, .previous = newest_cached_, .next = kNoBlock};
  (newest_cached_ == kNoBlock ? oldest_cached_ : blocks_[newest_cached_].next) = block;
  newest_cached_ = block;
  ++num_cached_;
}

void BlockPool::UnlinkCached(BlockId block) {
  const Block& entry = blocks_[block];
  (entry.previous == kNoBlock ? oldest_cached_ : blocks_[entry.previous].next) = entry.next;
  (entry.next == kNoBlock ? newest_cached_ : blocks_[entry.next].previous) = entry.previous;
  --num_cached_;
}

}  // namespace weir::scheduler
