#include "worker/checkpoint/read_plan.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <tuple>

#include "worker/checkpoint/scale_blocks.h"

namespace weir::worker {
namespace {

// The bytes of rows and columns of a row-major tensor: one range when whole rows are kept, else one a row.
void AddRanges(const TensorInfo& tensor, int64_t num_cols, const TensorPart& part, std::vector<FileRange>& ranges) {
  if (part.rows == 0 || part.cols == 0) return;
  const int64_t element = kernels::SizeOf(tensor.dtype);
  const int64_t first = tensor.file_offset + (part.first_row * num_cols + part.first_col) * element;
  if (part.cols == num_cols) {
    ranges.push_back({tensor.file, first, first + part.rows * num_cols * element});
    return;
  }
  for (int64_t row = 0; row < part.rows; ++row) {
    const int64_t begin = first + row * num_cols * element;
    ranges.push_back({tensor.file, begin, begin + part.cols * element});
  }
}

std::vector<FileRange> SortedAndJoined(std::vector<FileRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const FileRange& a, const FileRange& b) {
    return std::tie(a.file, a.begin) < std::tie(b.file, b.begin);
  });
  std::vector<FileRange> joined;
  for (const FileRange& range : ranges) {
    if (!joined.empty() && joined.back().file == range.file && joined.back().end >= range.begin) {
      joined.back().end = std::max(joined.back().end, range.end);
    } else {
      joined.push_back(range);
    }
  }
  return joined;
}

// The state that the reading threads share.
class ParallelReader {
 public:
  ParallelReader(std::span<const FileRange> ranges, const ReadFunction& read) : ranges_(ranges), read_(read) {}

  absl::Status Run(int num_threads, int64_t total, const std::function<void(int64_t, int64_t)>& progress) {
    std::vector<std::thread> threads;
    threads.reserve(num_threads);
    num_running_ = num_threads;
    for (int i = 0; i < num_threads; ++i) threads.emplace_back([this] { ReadUntilDone(); });
    WaitAndReport(total, progress);
    for (std::thread& thread : threads) thread.join();
    return status_;
  }

 private:
  void ReadUntilDone() {
    std::vector<char> scratch(kReadPieceBytes);  // the page cache keeps the bytes; the copy is thrown away
    std::vector<FileRange> batch;
    while (TakeBatch(batch)) {
      absl::Status status;
      int64_t num_bytes = 0;
      for (const FileRange& piece : batch) {
        status = read_(piece.file, piece.begin, std::span(scratch).first(piece.end - piece.begin));
        if (!status.ok()) break;
        num_bytes += piece.end - piece.begin;
      }
      const std::lock_guard lock(mutex_);
      status_.Update(status);
      done_bytes_ += num_bytes;
    }
    const std::lock_guard lock(mutex_);
    --num_running_;
    finished_.notify_one();
  }

  // The next pieces in file order, of kReadPieceBytes together: a column slice has a piece of a few hundred bytes in
  // each row, and one turn at the lock must serve many of them.  False when there is none or something has failed.
  bool TakeBatch(std::vector<FileRange>& batch) {
    batch.clear();
    const std::lock_guard lock(mutex_);
    if (!status_.ok()) return false;
    for (int64_t room = kReadPieceBytes; room > 0 && next_range_ < ranges_.size();) {
      FileRange piece = ranges_[next_range_];
      piece.begin += next_byte_;
      piece.end = std::min(piece.end, piece.begin + room);
      const int64_t num_bytes = piece.end - piece.begin;
      room -= num_bytes;
      next_byte_ += num_bytes;
      if (piece.end == ranges_[next_range_].end) {
        ++next_range_;
        next_byte_ = 0;
      }
      batch.push_back(piece);
    }
    return !batch.empty();
  }

  void WaitAndReport(int64_t total, const std::function<void(int64_t, int64_t)>& progress) {
    constexpr auto kInterval = std::chrono::milliseconds(50);
    std::unique_lock lock(mutex_);
    while (!finished_.wait_for(lock, kInterval, [this] { return num_running_ == 0; })) {
      const int64_t done = done_bytes_;
      lock.unlock();
      if (progress) progress(done, total);
      lock.lock();
    }
    const int64_t done = done_bytes_;
    lock.unlock();
    if (progress) progress(done, total);
  }

  const std::span<const FileRange> ranges_;
  const ReadFunction& read_;
  std::mutex mutex_;
  std::condition_variable finished_;
  size_t next_range_ = 0;
  int64_t next_byte_ = 0;  // within ranges_[next_range_]
  int64_t done_bytes_ = 0;
  int num_running_ = 0;
  absl::Status status_;
};

}  // namespace

std::vector<FileRange> PlanReads(const Checkpoint& checkpoint, const ParallelLayout& layout, const ExpertMap& experts) {
  std::vector<FileRange> ranges;
  for (const TensorSpec& spec : checkpoint.table()) {
    const TensorPart part = PartOf(spec, layout, experts);
    AddRanges(checkpoint.tensor(spec.name), spec.shape.back(), part, ranges);
    if (const TensorInfo* scales = checkpoint.ScalesOf(spec); scales != nullptr) {
      const ScaleBlocks blocks = ScaleBlocksOf(part);
      AddRanges(*scales, scales->shape[1], {blocks.first_row, blocks.rows, blocks.first_col, blocks.cols}, ranges);
    }
  }
  return SortedAndJoined(std::move(ranges));
}

absl::Status ReadRanges(std::span<const FileRange> ranges, int num_threads, const ReadFunction& read,
                        const std::function<void(int64_t, int64_t)>& progress) {
  int64_t total = 0;
  for (const FileRange& range : ranges) total += range.end - range.begin;
  return ParallelReader(ranges, read).Run(std::max(num_threads, 1), total, progress);
}

absl::Status ReadParts(const Checkpoint& checkpoint, const ParallelLayout& layout, const ExpertMap& experts,
                       int num_threads, const std::function<void(int64_t, int64_t)>& progress) {
  constexpr int kDiskThreads = 8;  // keeps a fast disk's queue full; they wait, they do not compute
  const ReadFunction read = [&](int32_t file, int64_t offset, std::span<char> out) {
    return checkpoint.Read(file, offset, out);
  };
  return ReadRanges(PlanReads(checkpoint, layout, experts), num_threads > 0 ? num_threads : kDiskThreads, read,
                    progress);
}

}  // namespace weir::worker
