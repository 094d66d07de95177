#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "scheduler/service/submission.h"
#include "weir/scheduler/v1/scheduler.pb.h"

// A gateway's request as bytes: it is refused with a reason, or everything in it is within bounds.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  weir::scheduler::v1::Submit message;
  if (size > (1 << 20) || !message.ParseFromArray(data, static_cast<int>(size))) return 0;
  weir::scheduler::ReplicaView replica;
  replica.max_model_len = 4096;
  replica.vocab_size = 1000;
  replica.block_size = 64;
  weir::scheduler::Submission submission;
  const weir::scheduler::TimeUs now = 5'000'000;
  if (!weir::scheduler::ReadSubmission(message, replica, {}, now, submission).empty()) return 0;
  for (const auto* ids : {&submission.prompt, &submission.resumed}) {
    for (const weir::scheduler::TokenId id : *ids) {
      if (id < 0 || id >= replica.vocab_size) std::abort();
    }
  }
  const bool has_lengths = submission.max_tokens >= 1 && submission.min_tokens <= submission.max_tokens &&
                           submission.min_tokens >= 0 && !submission.prompt.empty();
  if (!has_lengths || submission.deadline < now) std::abort();
  if (submission.block_keys.size() > submission.prompt.size() / 64) std::abort();
  for (const double weight : submission.tenant_weights) {
    if (!(weight > 0)) std::abort();
  }
  return 0;
}
