#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "scheduler/core/buffer_pool.h"
#include "scheduler/core/types.h"
#include "scheduler/core/wait_clock.h"

// One live request: its tokens, how far they are computed, and where it stands.

namespace weir::scheduler {

using SequenceIndex = int32_t;  // place in the SequencePool; used again after the request has ended
inline constexpr SequenceIndex kNoSequence = -1;

// Names one stay of one request in a slot.  What was planned for an earlier stay (before a preemption or a loss) or for
// an earlier request in the same place no longer matches.
struct SequenceRef {
  SequenceIndex index = kNoSequence;
  uint32_t request = 0;  // counts the requests that used this place
  uint32_t stay = 0;     // counts the stays of this request
};

// What a sequence is doing.  There is no prefill mode: a step closes the gap between its tokens and its computed
// tokens.  Prefilling and decoding differ in whose turn decides: rows up to the last known token are dealt by fair
// share, then one row a step comes first of all.
enum class Phase : uint8_t { kFree, kWaiting, kPrefilling, kDecoding };

// [0, num_computed) is computed by completed steps, [num_computed, num_planned) by steps in flight.  Of the tokens,
// [0, num_tokens) are known; each sample in flight stands for one more that is not known yet.
struct alignas(64) Sequence {
  // ---- what every step of a running sequence touches: two cache lines ----
  Phase phase = Phase::kFree;
  PriorityClass priority = PriorityClass::kStandard;
  bool is_new_in_slot = false;   // no work planned yet in this stay
  bool is_returned = false;      // came back to the queue after a preemption or a loss
  bool must_be_pinned = false;   // preempted as often as allowed: runs again only as a pinned sequence
  bool is_pinned = false;        // in this stay: not to be preempted
  bool is_plain_decode = false;  // in this stay: its time counts as decoding until it leaves
  uint32_t request = 0;
  uint32_t stay = 0;
  TenantId tenant = 0;
  int32_t dp_group = -1;
  SlotId slot = -1;
  int32_t num_prompt_tokens = 0;
  int32_t max_tokens = 0;
  int32_t num_computed = 0;
  int32_t num_planned = 0;
  int32_t num_samples_in_flight = 0;
  int32_t num_blocks_sent = 0;        // entries of the block table that plans of this stay have carried
  int32_t num_blocks_published = 0;   // entries whose keys are in the prefix cache, or were offered to it
  int32_t num_blocks_to_publish = 0;  // full blocks of the prompt that have a key
  int32_t planned_before = 0;         // the most rows planned in an earlier stay
  StepId last_sampling_step = 0;      // in this stay
  StepId last_planned_step = 0;       // in this stay
  RequestId id = 0;
  int64_t num_rows_run = 0;
  uint64_t stop_token_bits = 0;  // bit (token mod 64) is set for each stop token
  IntBuffer tokens;              // prompt, then output

  // ---- the rest ----
  std::vector<TokenId> stop_tokens;
  int32_t min_tokens = 0;
  int32_t num_resumed_tokens = 0;
  int32_t num_promised_blocks = 0;  // set aside for the known tokens, not yet taken
  int32_t computed_before = 0;      // the most rows completed in an earlier stay: until there it recomputes
  WaitClock wait;
  uint64_t last_pass = 0;                // the last planning pass that served it
  uint64_t marked_in_pass = 0;           // the last planning pass that found it first in line and without room
  SequenceIndex previous = kNoSequence;  // in one of its tenant's lists
  SequenceIndex next = kNoSequence;
  uint64_t arrival_number = 0;
  TimeUs deadline = kNever;
  std::vector<BlockKey> block_keys;
  int32_t num_cached_tokens = -1;  // at first admission; -1: not admitted yet
  int32_t num_overtakes = 0;       // admissions of others while it had the claim
  int32_t num_preemptions = 0;
  int32_t num_worker_losses = 0;

  int32_t num_tokens() const { return tokens.size(); }
  int32_t num_output_tokens() const { return tokens.size() - num_prompt_tokens; }
  bool is_running() const { return phase == Phase::kPrefilling || phase == Phase::kDecoding; }
  bool has_own_output() const { return num_output_tokens() > num_resumed_tokens; }
};

// Members up to stop_tokens fit two cache lines: a step touches no more of a sequence (tested).

// Owns the sequences.  Places are used again, the last freed first; addresses stay.
class SequencePool {
 public:
  SequenceIndex Add();
  void Free(SequenceIndex index);

  Sequence& operator[](SequenceIndex index) {
    return chunks_[static_cast<uint32_t>(index) / kChunk][static_cast<uint32_t>(index) % kChunk];
  }
  const Sequence& operator[](SequenceIndex index) const {
    return chunks_[static_cast<uint32_t>(index) / kChunk][static_cast<uint32_t>(index) % kChunk];
  }
  int32_t size() const { return size_; }  // places, free ones included

  SequenceRef Ref(SequenceIndex index) const { return {index, (*this)[index].request, (*this)[index].stay}; }
  // Starts to bring into the cache what a step touches of a sequence that comes up a few turns later.
  void Prefetch(SequenceIndex index) const {
    const char* sequence = reinterpret_cast<const char*>(&(*this)[index]);
    for (int i = 0; i < 2; ++i) __builtin_prefetch(sequence + 64 * i, 1);
  }

  // The request is alive, in whatever stay.
  bool IsAlive(const SequenceRef& ref) const { return (*this)[ref.index].request == ref.request; }
  // ... and in the same stay.
  bool IsCurrent(const SequenceRef& ref) const { return IsAlive(ref) && (*this)[ref.index].stay == ref.stay; }

 private:
  static constexpr uint32_t kChunk = 256;

  std::vector<std::unique_ptr<Sequence[]>> chunks_;
  SequenceIndex first_free_ = kNoSequence;  // a list through Sequence::next
  int32_t size_ = 0;
};

// A list linked through Sequence::previous and next.  A sequence is in one list at most.
class SequenceList {
 public:
  bool empty() const { return first_ == kNoSequence; }
  SequenceIndex first() const { return first_; }

  void PushBack(SequencePool& pool, SequenceIndex index) { InsertBefore(pool, index, kNoSequence); }
  // `next` kNoSequence: at the end.
  void InsertBefore(SequencePool& pool, SequenceIndex index, SequenceIndex next);
  void Remove(SequencePool& pool, SequenceIndex index);

 private:
  SequenceIndex first_ = kNoSequence;
  SequenceIndex last_ = kNoSequence;
};

}  // namespace weir::scheduler
