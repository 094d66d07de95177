#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "scheduler/core/types.h"

// How the replica stands, for threads other than the event loop, which alone writes it.

namespace weir::scheduler {

struct ReplicaView {
  // Zero until the first group stood.
  uint64_t manifest_hash = 0;
  int64_t max_model_len = 0;
  int32_t vocab_size = 0;
  int32_t block_size = 0;
  std::vector<TokenId> eos_token_ids;
  int32_t tp = 0;
  int32_t dp = 0;

  bool is_ready = false;
  bool is_draining = false;
  int32_t num_waiting = 0;
  int32_t num_running = 0;
  int64_t num_free_blocks = 0;  // without content or owner
  int64_t num_blocks = 0;
  std::string why_not_ready = "the event loop has not begun";  // for people
  TimeUs heartbeat = 0;                                        // of the event loop's last turn

  bool is_known() const { return vocab_size > 0; }
};

class ReplicaBoard {
 public:
  ReplicaView Read() const {
    std::lock_guard lock(mutex_);
    return view_;
  }
  void Write(ReplicaView view) {
    std::lock_guard lock(mutex_);
    view_ = std::move(view);
  }

 private:
  mutable std::mutex mutex_;
  ReplicaView view_;
};

}  // namespace weir::scheduler
