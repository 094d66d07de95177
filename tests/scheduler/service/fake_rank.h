#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace weir::worker::v1 {
class RunResponse;
}  // namespace weir::worker::v1

// A worker rank over real gRPC whose model is a hash: the next token is a function of all tokens before it, so that the
// right answer of every request is known, and every wrong position, missing token or forgotten slot shows.  Faults are
// scripted.

namespace weir::scheduler {

inline constexpr int32_t kFakeVocabSize = 50000;

// The token after `tokens`.
int32_t FakeNextToken(std::span<const int32_t> tokens);
// The first `n` tokens after `prompt`.
std::vector<int32_t> FakeOutput(std::vector<int32_t> prompt, int n);

struct FakeRankOptions {
  int32_t rank = 0;
  int32_t tp = 1;
  int32_t dp = 1;
  std::string build = "test";
  uint64_t manifest_hash = 7;
  int64_t num_blocks = 64;
  int32_t block_size = 4;
  int32_t max_num_seqs = 8;
  int32_t max_num_batched_tokens = 32;
  int64_t max_model_len = 200;
  uint64_t pid = 0;
  bool sends_results = true;
};

class FakeRank {
 public:
  FakeRank(FakeRankOptions options, std::string socket_path);
  ~FakeRank();

  std::string address() const;
  // As a process: Kill breaks every stream at once; Start listens again, knowing nothing.
  void Start();
  void Kill();

  // ---- faults; from any thread ----
  // From now on it says nothing, not even to a new scheduler, until told otherwise.
  void Hang(bool hangs);
  // Every step takes so long.
  void SetStepTime(int64_t us);
  // Called with each result before it is sent; may change it.  False: it is not sent.
  void Alter(std::function<bool(worker::v1::RunResponse&)> alter);
  // Sent as it is, on the stream that is open.
  void Say(const worker::v1::RunResponse& message);

  // ---- what it has seen ----
  int num_steps() const;
  int num_epochs() const;
  uint64_t epoch() const;
  // Steps that ended while the next plan was here already.
  int num_steps_planned_ahead() const;
  // The first thing a plan said that made no sense; empty while all is well.
  std::string error() const;

 private:
  class Service;
  const FakeRankOptions options_;
  const std::string socket_path_;
  std::unique_ptr<Service> service_;
};

}  // namespace weir::scheduler
