#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "worker/checkpoint/checkpoint.h"

// What a rank reads of a checkpoint, as byte ranges: made apart from the reading, so that it can be asked.

namespace weir::worker {

struct FileRange {
  int32_t file = 0;  // index into Checkpoint::files()
  int64_t begin = 0;
  int64_t end = 0;
  bool operator==(const FileRange&) const = default;
};

// The bytes of one rank's shard, scales included: ascending, disjoint, ranges that touch joined.
std::vector<FileRange> PlanReads(const Checkpoint& checkpoint, const ParallelLayout& layout, const ExpertMap& experts);

// Reads every range once, through `read`, in pieces of at most kReadPieceBytes, by num_threads threads at once; stops
// at the first error.  See ReadParts for `progress`.
inline constexpr int64_t kReadPieceBytes = 1 << 20;
using ReadFunction = std::function<absl::Status(int32_t file, int64_t offset, std::span<char> out)>;
absl::Status ReadRanges(std::span<const FileRange> ranges, int num_threads, const ReadFunction& read,
                        const std::function<void(int64_t, int64_t)>& progress);

}  // namespace weir::worker
