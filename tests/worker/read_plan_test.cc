#include "worker/checkpoint/read_plan.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>
#include <numeric>
#include <set>

#include "kernels/check.h"
#include "tests/worker/checkpoint_writer.h"
#include "worker/checkpoint/scale_blocks.h"

namespace weir::worker {
namespace {

struct OpenCheckpoint {
  TestDirectory directory;
  std::unique_ptr<Checkpoint> checkpoint;

  explicit OpenCheckpoint(CheckpointWriter writer, int num_files = 3) {
    writer.Shard(num_files);
    writer.Write(directory.path());
    auto opened = Checkpoint::Open(directory.path());
    WEIR_CHECK(opened.ok(), opened.status().ToString());
    checkpoint = *std::move(opened);
  }
  ExpertMap Experts(int32_t world_size) const {
    return ExpertMap::Contiguous(checkpoint->config().n_routed_experts, world_size);
  }
};

// For each file, how often each of its bytes was met.
using ByteCounts = std::vector<std::vector<uint8_t>>;

ByteCounts NoBytes(const Checkpoint& checkpoint) {
  ByteCounts counts;
  for (const std::string& file : checkpoint.files()) counts.emplace_back(std::filesystem::file_size(file));
  return counts;
}

// Every byte a rank may touch, one by one, from the parts alone.
ByteCounts BytesOfShard(const Checkpoint& checkpoint, const ParallelLayout& layout, const ExpertMap& experts) {
  ByteCounts counts = NoBytes(checkpoint);
  const auto set = [&](const TensorInfo& tensor, int64_t row, int64_t col, int64_t num_cols) {
    const int64_t size = kernels::SizeOf(tensor.dtype);
    for (int64_t i = 0; i < size; ++i) counts[tensor.file][tensor.file_offset + (row * num_cols + col) * size + i] = 1;
  };
  for (const TensorSpec& spec : checkpoint.table()) {
    const TensorPart part = PartOf(spec, layout, experts);
    const TensorInfo& tensor = checkpoint.tensor(spec.name);
    const TensorInfo* scales = checkpoint.ScalesOf(spec);
    for (int64_t row = part.first_row; row < part.first_row + part.rows; ++row) {
      for (int64_t col = part.first_col; col < part.first_col + part.cols; ++col) {
        set(tensor, row, col, spec.shape.back());
        if (scales != nullptr) set(*scales, row / kScaleBlock, col / kScaleBlock, scales->shape[1]);
      }
    }
  }
  return counts;
}

int64_t Sum(const ByteCounts& counts) {
  int64_t sum = 0;
  for (const auto& file : counts) sum = std::accumulate(file.begin(), file.end(), sum);
  return sum;
}

TEST(ReadPlanTest, ReadsEveryByteOfTheShardOnceAndNoOther) {
  const OpenCheckpoint open((CheckpointWriter(TinyV3Fp8Config())));
  for (const ParallelLayout layout : {ParallelLayout{1, 1, 0}, {2, 1, 1}, {4, 1, 2}, {2, 2, 3}, {1, 3, 2}}) {
    const ExpertMap experts = open.Experts(layout.world_size());
    ByteCounts read_bytes = NoBytes(*open.checkpoint);
    std::mutex mutex;
    const ReadFunction read = [&](int32_t file, int64_t offset, std::span<char> out) {
      const std::lock_guard lock(mutex);
      for (size_t i = 0; i < out.size(); ++i) ++read_bytes[file][offset + i];
      return open.checkpoint->Read(file, offset, out);
    };
    const auto plan = PlanReads(*open.checkpoint, layout, experts);
    ASSERT_TRUE(ReadRanges(plan, 3, read, nullptr).ok());
    EXPECT_TRUE(read_bytes == BytesOfShard(*open.checkpoint, layout, experts));
    EXPECT_EQ(Sum(read_bytes), RankBytes(*open.checkpoint, layout, experts).total());
  }
}

// Which pages of a file the kernel holds in memory.
std::vector<bool> ResidentPages(const std::string& path) {
  const int64_t size = static_cast<int64_t>(std::filesystem::file_size(path));
  const int descriptor = open(path.c_str(), O_RDONLY);
  void* address = mmap(nullptr, size, PROT_READ, MAP_SHARED, descriptor, 0);
  std::vector<unsigned char> pages((size + sysconf(_SC_PAGESIZE) - 1) / sysconf(_SC_PAGESIZE));
  EXPECT_EQ(mincore(address, size, pages.data()), 0);
  munmap(address, size);
  close(descriptor);
  std::vector<bool> resident(pages.size());
  for (size_t i = 0; i < pages.size(); ++i) resident[i] = pages[i] & 1;
  return resident;
}

bool Evict(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDWR);
  fsync(descriptor);
  posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
  close(descriptor);
  const std::vector<bool> resident = ResidentPages(path);
  return std::none_of(resident.begin(), resident.end(), [](bool page) { return page; });
}

// The same promise, asked of the kernel: only pages that hold bytes of the shard have come from the disk, and all that
// packing touches has.
TEST(ReadPlanTest, BringsOnlyPagesOfTheShardIntoMemory) {
  nlohmann::json config = TinyV3Config();
  config["hidden_size"] = 1024;
  config["v_head_dim"] = 2048;  // o_proj's rows are four pages long, and each rank keeps two of them
  const OpenCheckpoint open(CheckpointWriter(config), 2);
  const Checkpoint& checkpoint = *open.checkpoint;
  for (const std::string& file : checkpoint.files()) {
    if (!Evict(file)) GTEST_SKIP() << "this file system keeps its pages";
  }
  const ParallelLayout layout{2, 1, 1};
  ASSERT_TRUE(ReadParts(checkpoint, layout, open.Experts(2), 2, nullptr).ok());

  const int64_t page = sysconf(_SC_PAGESIZE);
  std::vector<std::set<int64_t>> allowed(checkpoint.files().size());
  for (const FileRange& range : PlanReads(checkpoint, layout, open.Experts(2))) {
    for (int64_t at = range.begin / page; at <= (range.end - 1) / page; ++at) allowed[range.file].insert(at);
  }
  int64_t num_left = 0;
  for (size_t file = 0; file < checkpoint.files().size(); ++file) {
    const std::vector<bool> resident = ResidentPages(checkpoint.files()[file]);
    for (size_t i = 0; i < resident.size(); ++i) {
      EXPECT_EQ(resident[i], allowed[file].contains(static_cast<int64_t>(i))) << "page " << i;
      num_left += !resident[i];
    }
  }
  EXPECT_GT(num_left, 1000);
}

TEST(ReadPlanTest, JoinsRangesThatTouch) {
  const OpenCheckpoint open((CheckpointWriter(TinyV2LiteConfig())));
  const std::vector<FileRange> plan = PlanReads(*open.checkpoint, {1, 1, 0}, open.Experts(1));
  EXPECT_EQ(plan.size(), open.checkpoint->files().size());  // no MTP layer: one rank reads all data of every file
}

TEST(ReadPlanTest, ReportsProgressToTheEnd) {
  const OpenCheckpoint open((CheckpointWriter(TinyV3Config())));
  std::vector<std::pair<int64_t, int64_t>> reports;
  ASSERT_TRUE(ReadParts(*open.checkpoint, {1, 1, 0}, open.Experts(1), 0, [&](int64_t done, int64_t total) {
                reports.emplace_back(done, total);
              }).ok());
  const int64_t total = RankBytes(*open.checkpoint, {1, 1, 0}, open.Experts(1)).total();
  ASSERT_FALSE(reports.empty());
  EXPECT_EQ(reports.back(), std::pair(total, total));
  EXPECT_TRUE(std::is_sorted(reports.begin(), reports.end()));
}

TEST(ReadPlanTest, NamesTheFileThatWasCutWhileOpen) {
  const OpenCheckpoint open((CheckpointWriter(TinyV3Config())));
  const std::string& last = open.checkpoint->files().front();
  std::filesystem::resize_file(last, std::filesystem::file_size(last) / 2);
  const absl::Status status = ReadParts(*open.checkpoint, {1, 1, 0}, open.Experts(1), 2, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), ::testing::StartsWith(last + ": expected data at byte "));
}

TEST(ReadPlanTest, StopsAtTheFirstError) {
  const std::vector<FileRange> ranges = {{0, 0, 64 * kReadPieceBytes}};
  std::mutex mutex;
  int num_calls = 0;
  const ReadFunction read = [&](int32_t, int64_t, std::span<char>) {
    const std::lock_guard lock(mutex);
    return ++num_calls == 3 ? absl::DataLossError("disk") : absl::OkStatus();
  };
  EXPECT_EQ(ReadRanges(ranges, 2, read, nullptr).message(), "disk");
  EXPECT_LE(num_calls, 4);
}

}  // namespace
}  // namespace weir::worker
