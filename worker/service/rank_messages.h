#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

// What a scheduler and a rank say to each other besides plans and results, as structs.

namespace weir::worker {

// What forms a group; see the message FormGroup.
struct GroupOrder {
  uint64_t epoch = 0;
  std::vector<std::string> addresses;  // by rank
  std::string token;
  std::chrono::milliseconds collective_deadline{2000};
  std::chrono::milliseconds connect_deadline{10000};
};

// What a rank says of itself; see the message WorkerHello.
struct RankHello {
  std::string build;
  uint64_t manifest_hash = 0;
  int32_t rank = 0;
  int32_t tp = 1;
  int32_t dp = 1;
  int64_t num_blocks = 0;
  int32_t block_size = 0;
  int32_t max_num_seqs = 0;
  int32_t max_num_batched_tokens = 0;
  int64_t max_model_len = 0;
  int32_t vocab_size = 0;
  std::vector<int32_t> eos_token_ids;
  std::string device;
  std::string communicator_address;
  uint64_t pid = 0;
};

struct RankFailed {
  uint64_t epoch = 0;
  uint64_t step_id = 0;  // 0: forming the group
  std::string reason;
};

}  // namespace weir::worker
