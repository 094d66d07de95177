#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "gateway/text/tokenizer.h"

// Which replica is likely to hold the beginning of a prompt in its prefix cache: the one that computed it last.
//
// A prompt is known by hashes of its beginnings, of 1, 2, 4, 8, ... chunks, keyed with the tenant's namespace.  The
// next turn of a conversation begins with the one before, so it finds at least half of it again.  What is remembered is
// bounded; the longest unused goes first.  A hash that is wrong costs a replica's cache hit and nothing else.  Not
// thread-safe.

namespace weir::gateway {

class PrefixAffinity {
 public:
  static constexpr size_t kChunkTokens = 64;  // a block of the cache
  static constexpr size_t kMaxChunks = 1024;  // longer prompts are known by their first 65,536 tokens
  static constexpr size_t kMaxBeginnings = 1 << 16;

  // Of the beginnings, the shortest first; empty for a prompt shorter than a chunk.
  static std::vector<uint64_t> Hashes(const std::array<uint8_t, 16>& key, std::span<const TokenId> prompt);

  explicit PrefixAffinity(size_t max_beginnings = kMaxBeginnings) : max_beginnings_(max_beginnings) {}

  // Of the longest beginning that is known; -1: none is.
  int32_t Find(const std::vector<uint64_t>& hashes) const;
  // The replica computes this prompt.
  void Remember(const std::vector<uint64_t>& hashes, int32_t replica);
  // The replica's cache is gone.
  void Forget(int32_t replica);
  size_t num_beginnings() const { return places_.size(); }

 private:
  const size_t max_beginnings_;
  std::list<std::pair<uint64_t, int32_t>> used_;  // (hash, replica), the last used first
  std::unordered_map<uint64_t, std::list<std::pair<uint64_t, int32_t>>::iterator> places_;
};

}  // namespace weir::gateway
