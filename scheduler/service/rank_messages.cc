#include "scheduler/service/rank_messages.h"

#include <limits>
#include <numeric>
#include <utility>

#include "weir/worker/v1/worker.pb.h"

namespace weir::scheduler {
namespace {

constexpr int kMaxTopLogprobs = 64;
constexpr size_t kMaxErrorBytes = 4096;
constexpr uint64_t kMaxInt32 = std::numeric_limits<int32_t>::max();
constexpr uint64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

// Reads numbers and remembers the first that is beyond its type.
class Reader {
 public:
  int32_t Int32(uint64_t value, const char* field) { return static_cast<int32_t>(AtMost(kMaxInt32, value, field)); }
  int64_t Int64(uint64_t value, const char* field) { return static_cast<int64_t>(AtMost(kMaxInt64, value, field)); }
  const std::string& error() const { return error_; }

 private:
  uint64_t AtMost(uint64_t max, uint64_t value, const char* field) {
    if (value <= max) return value;
    if (error_.empty()) error_ = std::string(field) + " is " + std::to_string(value);
    return 0;
  }
  std::string error_;
};

RankHello ReadHello(const worker::v1::WorkerHello& message, Reader& reader) {
  RankHello hello{.build = message.build(),
                  .manifest_hash = message.manifest_hash(),
                  .rank = reader.Int32(message.rank(), "rank"),
                  .tp = reader.Int32(message.tensor_parallel_size(), "tensor_parallel_size"),
                  .dp = reader.Int32(message.data_parallel_size(), "data_parallel_size"),
                  .num_blocks = reader.Int64(message.num_blocks(), "num_blocks"),
                  .block_size = reader.Int32(message.block_size(), "block_size"),
                  .max_num_seqs = reader.Int32(message.max_num_seqs(), "max_num_seqs"),
                  .max_num_batched_tokens = reader.Int32(message.max_num_batched_tokens(), "max_num_batched_tokens"),
                  .max_model_len = reader.Int64(message.max_model_len(), "max_model_len"),
                  .vocab_size = reader.Int32(message.vocab_size(), "vocab_size"),
                  .device = message.device().substr(0, 256),
                  .communicator_address = message.communicator_address(),
                  .pid = message.pid()};
  for (const uint32_t token : message.eos_token_ids()) {
    hello.eos_token_ids.push_back(reader.Int32(token, "eos_token_ids"));
  }
  return hello;
}

void ReadSampled(const worker::v1::TokenLogprobs& message, SequenceOutcome& outcome, Reader& reader) {
  outcome.has_sampled = true;
  outcome.is_finite = !message.is_not_finite();
  if (message.has_token_id() && outcome.is_finite) outcome.token = reader.Int32(message.token_id(), "token_id");
  if (message.has_logprob()) outcome.logprobs.logprob = message.logprob();
  for (const worker::v1::TopLogprob& top : message.top()) {
    if (outcome.logprobs.top.size() >= kMaxTopLogprobs) break;
    outcome.logprobs.top.emplace_back(reader.Int32(top.token_id(), "top.token_id"), top.logprob());
  }
}

RankResult ReadResult(const worker::v1::StepResult& message, Reader& reader) {
  RankResult result{
      .epoch = message.epoch(),
      .step = message.step_id(),
      .plan_hash = message.plan_hash(),
      .num_expert_rows = std::accumulate(message.expert_loads().begin(), message.expert_loads().end(), uint64_t{0}),
      .total_us = reader.Int64(message.total_us(), "total_us"),
      .communication_us = reader.Int64(message.communication_us(), "communication_us"),
      .sampling_us = reader.Int64(message.sampling_us(), "sampling_us")};
  result.sequences.reserve(message.sequences_size());
  for (const worker::v1::SequenceResult& sequence : message.sequences()) {
    SequenceOutcome outcome{.slot = reader.Int32(sequence.slot(), "slot"),
                            .dp_group = reader.Int32(sequence.dp_rank(), "dp_rank"),
                            .error = sequence.error().substr(0, kMaxErrorBytes)};
    if (sequence.has_sampled()) ReadSampled(sequence.sampled(), outcome, reader);
    result.sequences.push_back(std::move(outcome));
  }
  return result;
}

}  // namespace

std::string ReadRankMessage(const worker::v1::RunResponse& message, decltype(RankEvent::what)& what) {
  Reader reader;
  switch (message.message_case()) {
    case worker::v1::RunResponse::kHello:
      what = ReadHello(message.hello(), reader);
      break;
    case worker::v1::RunResponse::kResult:
      what = ReadResult(message.result(), reader);
      break;
    case worker::v1::RunResponse::kGroupFormed:
      what = RankFormed{.epoch = message.group_formed().epoch()};
      break;
    case worker::v1::RunResponse::kFailed:
      what = RankFailed{.epoch = message.failed().epoch(),
                        .step = message.failed().step_id(),
                        .reason = message.failed().reason().substr(0, kMaxErrorBytes)};
      break;
    case worker::v1::RunResponse::kLoadProgress:
      what = RankLoading{.bytes_done = message.load_progress().bytes_done(),
                         .bytes_total = message.load_progress().bytes_total()};
      break;
    case worker::v1::RunResponse::MESSAGE_NOT_SET:
      return "a message that says nothing";
  }
  return reader.error();
}

}  // namespace weir::scheduler
