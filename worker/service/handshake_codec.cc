#include "worker/service/handshake_codec.h"

#include <cstdint>
#include <limits>

#include "absl/strings/str_cat.h"

namespace weir::worker {
namespace {

constexpr int kMaxRanks = 4096;
constexpr int kMaxEosTokens = 1024;
constexpr uint32_t kMaxDeadlineMs = 3'600'000;

struct Rule {
  const char* field;
  uint64_t value;
  uint64_t min;
  uint64_t max;
};

template <size_t kCount>
absl::Status Check(const char* message, const Rule (&rules)[kCount]) {
  for (const Rule& rule : rules) {
    if (rule.value >= rule.min && rule.value <= rule.max) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(message, ": ", rule.field, " is ", rule.value, "; allowed: ", rule.min, " to ", rule.max));
  }
  return absl::OkStatus();
}

}  // namespace

void EncodeRankHello(const RankHello& hello, v1::WorkerHello& message) {
  message.set_build(hello.build);
  message.set_manifest_hash(hello.manifest_hash);
  message.set_rank(static_cast<uint32_t>(hello.rank));
  message.set_tensor_parallel_size(static_cast<uint32_t>(hello.tp));
  message.set_data_parallel_size(static_cast<uint32_t>(hello.dp));
  message.set_num_blocks(static_cast<uint64_t>(hello.num_blocks));
  message.set_block_size(static_cast<uint32_t>(hello.block_size));
  message.set_max_num_seqs(static_cast<uint32_t>(hello.max_num_seqs));
  message.set_max_num_batched_tokens(static_cast<uint32_t>(hello.max_num_batched_tokens));
  message.set_max_model_len(static_cast<uint64_t>(hello.max_model_len));
  message.set_vocab_size(static_cast<uint32_t>(hello.vocab_size));
  for (const int32_t id : hello.eos_token_ids) message.add_eos_token_ids(static_cast<uint32_t>(id));
  message.set_device(hello.device);
  message.set_communicator_address(hello.communicator_address);
  message.set_pid(hello.pid);
}

absl::StatusOr<RankHello> DecodeRankHello(const v1::WorkerHello& message) {
  constexpr auto kInt32 = static_cast<uint64_t>(std::numeric_limits<int32_t>::max());
  constexpr auto kInt64 = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  const Rule rules[] = {
      {"tensor_parallel_size", message.tensor_parallel_size(), 1, kMaxRanks},
      {"data_parallel_size", message.data_parallel_size(), 1, kMaxRanks},
      {"rank", message.rank(), 0, uint64_t{message.tensor_parallel_size()} * message.data_parallel_size() - 1},
      {"num_blocks", message.num_blocks(), 1, kInt64},
      {"block_size", message.block_size(), 1, kInt32},
      {"max_num_seqs", message.max_num_seqs(), 1, kInt32},
      {"max_num_batched_tokens", message.max_num_batched_tokens(), 1, kInt32},
      {"max_model_len", message.max_model_len(), 1, kInt64},
      {"vocab_size", message.vocab_size(), 1, kInt32},
      {"eos_token_ids (count)", static_cast<uint64_t>(message.eos_token_ids_size()), 0, kMaxEosTokens},
  };
  if (absl::Status status = Check("hello of a rank", rules); !status.ok()) return status;
  RankHello hello{.build = message.build(),
                  .manifest_hash = message.manifest_hash(),
                  .rank = static_cast<int32_t>(message.rank()),
                  .tp = static_cast<int32_t>(message.tensor_parallel_size()),
                  .dp = static_cast<int32_t>(message.data_parallel_size()),
                  .num_blocks = static_cast<int64_t>(message.num_blocks()),
                  .block_size = static_cast<int32_t>(message.block_size()),
                  .max_num_seqs = static_cast<int32_t>(message.max_num_seqs()),
                  .max_num_batched_tokens = static_cast<int32_t>(message.max_num_batched_tokens()),
                  .max_model_len = static_cast<int64_t>(message.max_model_len()),
                  .vocab_size = static_cast<int32_t>(message.vocab_size()),
                  .device = message.device(),
                  .communicator_address = message.communicator_address(),
                  .pid = message.pid()};
  for (const uint32_t id : message.eos_token_ids()) {
    if (id >= message.vocab_size()) {
      return absl::InvalidArgumentError(absl::StrCat("hello of a rank: eos_token_ids holds ", id,
                                                     "; the vocabulary has ", message.vocab_size(), " tokens"));
    }
    hello.eos_token_ids.push_back(static_cast<int32_t>(id));
  }
  return hello;
}

void EncodeGroupOrder(const GroupOrder& order, v1::FormGroup& message) {
  message.set_epoch(order.epoch);
  for (const std::string& address : order.addresses) message.add_addresses(address);
  message.set_token(order.token);
  message.set_collective_deadline_ms(static_cast<uint32_t>(order.collective_deadline.count()));
  message.set_connect_deadline_ms(static_cast<uint32_t>(order.connect_deadline.count()));
}

absl::StatusOr<GroupOrder> DecodeGroupOrder(const v1::FormGroup& message) {
  const Rule rules[] = {
      {"epoch", message.epoch(), 1, std::numeric_limits<uint64_t>::max()},
      {"addresses (count)", static_cast<uint64_t>(message.addresses_size()), 1, kMaxRanks},
      {"collective_deadline_ms", message.collective_deadline_ms(), 1, kMaxDeadlineMs},
      {"connect_deadline_ms", message.connect_deadline_ms(), 1, kMaxDeadlineMs},
  };
  if (absl::Status status = Check("form_group", rules); !status.ok()) return status;
  return GroupOrder{.epoch = message.epoch(),
                    .addresses = {message.addresses().begin(), message.addresses().end()},
                    .token = message.token(),
                    .collective_deadline = std::chrono::milliseconds(message.collective_deadline_ms()),
                    .connect_deadline = std::chrono::milliseconds(message.connect_deadline_ms())};
}

}  // namespace weir::worker
