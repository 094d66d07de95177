#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "scheduler/service/event_loop.h"
#include "tests/scheduler/service/fake_rank.h"

// A scheduler with fake ranks and real gRPC between all of them, in one process.

namespace prometheus {
class Registry;
}

namespace weir::scheduler {

struct TestEnd {
  std::string reason;  // "STOP", "LENGTH", ..., for refusals "REFUSED INVALID" and the like
  std::string error;
  int64_t needed = 0;
  int64_t limit = 0;
  uint64_t retry_after_ms = 0;
  int num_output_tokens = 0;
  int num_cached_tokens = 0;
  int num_worker_losses = 0;
  uint64_t wait_us = 0;  // all parts
};

struct TestAnswer {
  bool is_admitted = false;
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;  // where there were any
  int first_index = -1;
  std::optional<TestEnd> end;
};

struct TestRequest {
  std::vector<int32_t> prompt = {1, 2, 3};
  std::vector<int32_t> resumed;
  int max_tokens = 8;
  std::vector<int32_t> stop;
  std::vector<std::string> tenant = {"city", "desk"};
  std::string name = "r";
  std::string cache_key;
  std::string constraint;
  std::optional<uint64_t> deadline_ms;
  bool wants_logprob = false;
};

// A gateway's stream, over real gRPC.
class TestGateway {
 public:
  explicit TestGateway(const std::string& target);
  ~TestGateway();  // cancels the stream

  uint64_t Submit(const TestRequest& request);
  void Cancel(uint64_t number, bool is_stop = false);
  void SubmitAs(uint64_t number, const TestRequest& request);
  // Reads nothing from now on.
  void StopReading();

  TestAnswer Answer(uint64_t number) const;
  // Waits for the end of the request; fails the test after 20 s.
  TestAnswer WaitForEnd(uint64_t number) const;
  bool WaitFor(const std::function<bool()>& condition) const;
  bool is_over() const;
  std::string status() const;  // once it is over

 private:
  class Client;
  std::shared_ptr<Client> client_;
  uint64_t next_ = 1;
};

struct ClusterOptions {
  int tp = 1;
  int dp = 1;
  FakeRankOptions rank;                         // of all; rank, tp and dp are filled in
  std::function<void(FakeRankOptions&)> adapt;  // of each
  EventLoopOptions loop;
  int64_t max_output_bytes = 16 << 20;
  std::string build = "test";
};

class TestCluster {
 public:
  explicit TestCluster(ClusterOptions options);
  ~TestCluster();

  FakeRank& rank(int i) { return *ranks_[i]; }
  int num_ranks() const { return static_cast<int>(ranks_.size()); }
  std::string target() const;
  std::unique_ptr<TestGateway> Connect() const { return std::make_unique<TestGateway>(target()); }

  bool WaitUntilReady() const;
  ReplicaView view() const;
  std::string metrics() const;
  // The value of a series as the text says it; -1: there is none.
  double metric(const std::string& series) const;

  void StartScheduler();
  // Tells it to drain and waits for the end; returns what EventLoop::Run said.
  bool DrainScheduler(int64_t patience_ms);
  void BeginDrain(int64_t patience_ms);
  bool IsDrained() const;

 private:
  struct Process;
  const ClusterOptions options_;
  std::string directory_;
  std::vector<std::unique_ptr<FakeRank>> ranks_;
  std::unique_ptr<Process> process_;
};

bool WaitFor(const std::function<bool()>& condition, std::chrono::milliseconds patience = std::chrono::seconds(20));

}  // namespace weir::scheduler
