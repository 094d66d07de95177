#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "gateway/replica/messages.h"

// One gRPC stream to each scheduler.  What schedulers say becomes ReplicaEvents; what cannot be understood ends the
// stream.

namespace weir::gateway {

class SchedulerStreams final : public ReplicaPort {
 public:
  struct Options {
    std::vector<std::string> addresses;  // "host:port" or "unix:/path"
    std::string build;
    std::string gateway_name;
    int64_t max_waiting_bytes = 64 << 20;  // to one scheduler that does not read; beyond it nothing is submitted
  };
  // `on_event` is called on gRPC's threads, for one stream by one thread at a time.
  SchedulerStreams(Options options, std::function<void(ReplicaEvent)> on_event);
  // Ends all streams and waits until they are over.
  ~SchedulerStreams() override;

  uint64_t Open(int32_t replica) override;
  void Close(int32_t replica) override;
  void Poll(int32_t replica) override;
  bool Submit(int32_t replica, uint64_t attempt, const Submission& submission, const std::vector<TokenId>& resumed,
              std::optional<int64_t> deadline_ms) override;
  void Cancel(int32_t replica, uint64_t attempt, bool is_stop) override;

 private:
  class Stream;
  struct Question;
  struct Channel;

  // How many streams and questions are not over.
  struct Living {
    std::mutex mutex;
    std::condition_variable changed;
    int num = 0;

    void Add();
    void Remove();
  };

  std::shared_ptr<Stream> StreamOf(int32_t replica);

  const Options options_;
  const std::function<void(ReplicaEvent)> on_event_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Channel>> channels_;  // by replica
  uint64_t next_stream_ = 1;
  std::shared_ptr<Living> living_ = std::make_shared<Living>();
};

}  // namespace weir::gateway
