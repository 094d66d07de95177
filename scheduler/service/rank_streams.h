#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "scheduler/service/inbox.h"
#include "scheduler/service/worker_group.h"

// One gRPC stream to each rank.  What ranks say becomes RankEvents in the inbox; what cannot be understood ends the
// stream.

namespace weir::scheduler {

class RankStreams final : public RankPort {
 public:
  // addresses: "unix:/path" or "host:port", in rank order.  `inbox` must outlive this.
  RankStreams(const std::vector<std::string>& addresses, std::string build, Inbox* inbox);
  // Ends all streams and waits until they are over.
  ~RankStreams() override;

  uint64_t Open(int32_t rank) override;
  void Close(int32_t rank) override;
  void FormGroup(int32_t rank, const GroupForm& form) override;
  void Send(int32_t rank, std::shared_ptr<const worker::v1::RunRequest> plan) override;
  void Kill(uint64_t pid) override;

 private:
  class Stream;
  struct Channel;

  // How many streams are not over.
  struct Living {
    std::mutex mutex;
    std::condition_variable changed;
    int num = 0;
  };

  const std::string build_;
  Inbox* const inbox_;
  std::vector<std::unique_ptr<Channel>> channels_;  // by rank
  uint64_t next_stream_ = 1;
  std::shared_ptr<Living> living_ = std::make_shared<Living>();
};

}  // namespace weir::scheduler
