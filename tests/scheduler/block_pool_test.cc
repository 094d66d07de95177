#include "scheduler/core/block_pool.h"

#include <gtest/gtest.h>

#include <vector>

namespace weir::scheduler {
namespace {

BlockKey Key(uint64_t n) { return {.high = n, .low = n * 1000}; }

TEST(BlockPool, HandsOutEachBlockOnce) {
  BlockPool pool(3);
  EXPECT_EQ(pool.Take(), 0);
  EXPECT_EQ(pool.Take(), 1);
  EXPECT_EQ(pool.Take(), 2);
  EXPECT_EQ(pool.num_available(), 0);
  EXPECT_EQ(pool.num_owned(), 3);
}

TEST(BlockPool, ABlockWithoutKeyIsFreeOnceItsLastOwnerIsGone) {
  BlockPool pool(2);
  const BlockId block = pool.Take();
  pool.Share(block);
  pool.Release(block);
  EXPECT_EQ(pool.num_owned(), 1);
  pool.Release(block);
  EXPECT_EQ(pool.num_owned(), 0);
  EXPECT_EQ(pool.num_free(), 2);
}

TEST(BlockPool, APublishedBlockStaysCachedAndCanBeFoundAndSharedAgain) {
  BlockPool pool(2);
  const BlockId block = pool.Take();
  pool.Publish(block, Key(1));
  pool.Release(block);
  EXPECT_EQ(pool.num_cached(), 1);
  EXPECT_EQ(pool.Find(Key(1)), block);
  pool.Share(block);
  EXPECT_EQ(pool.num_cached(), 0);
  EXPECT_EQ(pool.num_owned(), 1);
}

TEST(BlockPool, TakesFreeBlocksBeforeCachedOnes) {
  BlockPool pool(2);
  const BlockId block = pool.Take();
  pool.Publish(block, Key(1));
  pool.Release(block);
  EXPECT_NE(pool.Take(), block);
  EXPECT_EQ(pool.num_evictions(), 0);
  EXPECT_EQ(pool.Take(), block);
  EXPECT_EQ(pool.num_evictions(), 1);
  EXPECT_EQ(pool.Find(Key(1)), kNoBlock);
}

TEST(BlockPool, EvictsTheLongestReleased) {
  BlockPool pool(3);
  for (uint64_t i = 0; i < 3; ++i) pool.Publish(pool.Take(), Key(i));
  pool.Release(1);
  pool.Release(0);
  pool.Release(2);
  pool.Share(1);  // used again: it is the newest once more when released
  pool.Release(1);
  EXPECT_EQ(pool.Take(), 0);
  EXPECT_EQ(pool.Take(), 2);
  EXPECT_EQ(pool.Take(), 1);
}

TEST(BlockPool, TheFirstBlockOfAContentKeepsTheKey) {
  BlockPool pool(2);
  const BlockId first = pool.Take(), second = pool.Take();
  pool.Publish(first, Key(1));
  pool.Publish(second, Key(1));
  EXPECT_EQ(pool.Find(Key(1)), first);
  pool.Release(second);
  EXPECT_EQ(pool.num_free(), 1) << "the second has no key, so nothing to be kept for";
}

TEST(BlockPool, AnUnpublishedBlockIsNotFoundAgain) {
  BlockPool pool(2);
  const BlockId owned = pool.Take(), cached = pool.Take();
  pool.Publish(owned, Key(1));
  pool.Publish(cached, Key(2));
  pool.Release(cached);
  pool.Unpublish(owned);
  pool.Unpublish(cached);
  EXPECT_EQ(pool.Find(Key(1)), kNoBlock);
  EXPECT_EQ(pool.Find(Key(2)), kNoBlock);
  EXPECT_EQ(pool.num_owned(), 1);
  EXPECT_EQ(pool.num_free(), 1);
}

TEST(BlockPoolDeathTest, StopsAtABlockReleasedTwice) {
  BlockPool pool(1);
  const BlockId block = pool.Take();
  pool.Release(block);
  EXPECT_DEATH(pool.Release(block), "released twice");
}

TEST(BlockPoolDeathTest, StopsWhenAFreeBlockIsShared) {
  BlockPool pool(1);
  EXPECT_DEATH(pool.Share(0), "no content to share");
}

TEST(PrefixCache, KeepsKeysApartThatFallIntoOneBucket) {
  PrefixCache cache(4);
  const BlockKey a = {.high = 1, .low = 8}, b = {.high = 2, .low = 8}, c = {.high = 3, .low = 8};
  EXPECT_TRUE(cache.Insert(0, a));
  EXPECT_TRUE(cache.Insert(1, b));
  EXPECT_TRUE(cache.Insert(2, c));
  EXPECT_FALSE(cache.Insert(3, b));
  cache.Erase(1);
  EXPECT_EQ(cache.Find(a), 0);
  EXPECT_EQ(cache.Find(b), kNoBlock);
  EXPECT_EQ(cache.Find(c), 2);
  EXPECT_TRUE(cache.Insert(3, b));
  EXPECT_EQ(cache.Find(b), 3);
}

}  // namespace
}  // namespace weir::scheduler
