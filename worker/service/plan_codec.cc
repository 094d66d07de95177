#include "worker/service/plan_codec.h"

#include <algorithm>
#include <limits>
#include <string>

#include "absl/strings/str_cat.h"

namespace weir::worker {
namespace {

constexpr int64_t kMaxExpertLoads = 1 << 20;  // MoE layers times experts of one rank
constexpr int64_t kMaxErrorBytes = 4096;

// Checks fields one after the other and keeps the first complaint.
class Reader {
 public:
  explicit Reader(std::string where) : where_(std::move(where)) {}

  int32_t Int32(uint64_t value, const char* field) {
    return static_cast<int32_t>(AtMost(value, std::numeric_limits<int32_t>::max(), field));
  }
  int64_t Int64(uint64_t value, const char* field) {
    return static_cast<int64_t>(AtMost(value, std::numeric_limits<int64_t>::max(), field));
  }
  void Count(int64_t count, int64_t max, const char* field) {
    if (count > max) Complain(field, absl::StrCat("has ", count, " entries; at most ", max, " are allowed"));
  }
  // Appends all values; nothing when there are more than `max`.
  template <typename Field>
  std::vector<int32_t> Int32s(const Field& values, int64_t max, const char* field) {
    std::vector<int32_t> result;
    Count(values.size(), max, field);
    if (!status_.ok()) return result;
    result.reserve(static_cast<size_t>(values.size()));
    for (const uint32_t value : values) result.push_back(Int32(value, field));
    return result;
  }
  const absl::Status& status() const { return status_; }

 private:
  uint64_t AtMost(uint64_t value, uint64_t max, const char* field) {
    if (value <= max) return value;
    Complain(field, absl::StrCat("is ", value, "; at most ", max, " is allowed"));
    return 0;
  }
  void Complain(const char* field, const std::string& what) {
    if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(where_, field, " ", what));
  }

  const std::string where_;
  absl::Status status_;
};

// ---- sampling ----

void EncodeSampling(const kernels::SamplingParams& params, v1::SamplingParams& message) {
  message.set_temperature(params.temperature);
  message.set_top_k(static_cast<uint32_t>(params.top_k));
  message.set_top_p(params.top_p);
  message.set_min_p(params.min_p);
  message.set_repetition_penalty(params.repetition_penalty);
  message.set_presence_penalty(params.presence_penalty);
  message.set_frequency_penalty(params.frequency_penalty);
  for (const auto& [token, bias] : params.logit_bias) {
    v1::LogitBias* entry = message.add_logit_bias();
    entry->set_token_id(static_cast<uint32_t>(token));
    entry->set_bias(bias);
  }
  message.set_num_top_logprobs(static_cast<uint32_t>(params.num_top_logprobs));
  message.set_wants_logprob(params.wants_logprob);
}

kernels::SamplingParams DecodeSampling(const v1::SamplingParams& message, const PlanLimits& limits, Reader& reader) {
  kernels::SamplingParams params;
  if (message.has_temperature()) params.temperature = message.temperature();
  params.top_k = reader.Int32(message.top_k(), "setup.sampling.top_k");
  if (message.has_top_p()) params.top_p = message.top_p();
  params.min_p = message.min_p();
  if (message.has_repetition_penalty()) params.repetition_penalty = message.repetition_penalty();
  params.presence_penalty = message.presence_penalty();
  params.frequency_penalty = message.frequency_penalty();
  reader.Count(message.logit_bias_size(), limits.max_logit_biases, "setup.sampling.logit_bias");
  if (!reader.status().ok()) return params;
  for (const v1::LogitBias& entry : message.logit_bias()) {
    params.logit_bias.emplace_back(reader.Int32(entry.token_id(), "setup.sampling.logit_bias.token_id"), entry.bias());
  }
  params.num_top_logprobs = reader.Int32(message.num_top_logprobs(), "setup.sampling.num_top_logprobs");
  params.wants_logprob = message.wants_logprob();
  return params;
}

// ---- plans ----

template <typename Field>
void AppendIds(const std::vector<int32_t>& ids, Field* field) {
  field->Reserve(static_cast<int>(ids.size()));
  for (const int32_t id : ids) field->Add(static_cast<uint32_t>(id));
}

void EncodeSetup(const SequenceSetup& setup, v1::SequenceSetup& message) {
  message.set_request_id(setup.request_id);
  message.set_seed(setup.seed);
  message.set_num_prompt_tokens(static_cast<uint32_t>(setup.num_prompt_tokens));
  AppendIds(setup.token_ids, message.mutable_token_ids());
  EncodeSampling(setup.sampling, *message.mutable_sampling());
}

SequenceSetup DecodeSetup(const v1::SequenceSetup& message, const PlanLimits& limits, Reader& reader) {
  return {.request_id = message.request_id(),
          .seed = message.seed(),
          .num_prompt_tokens = reader.Int32(message.num_prompt_tokens(), "setup.num_prompt_tokens"),
          .token_ids = reader.Int32s(message.token_ids(), limits.max_token_ids, "setup.token_ids"),
          .sampling = DecodeSampling(message.sampling(), limits, reader)};
}

void EncodeWork(const SequenceWork& work, v1::SequenceWork& message) {
  message.set_slot(static_cast<uint32_t>(work.slot));
  message.set_dp_rank(static_cast<uint32_t>(work.dp_rank));
  if (work.has_setup) EncodeSetup(work.setup, *message.mutable_setup());
  message.set_first_position(static_cast<uint32_t>(work.first_position));
  message.set_num_tokens(static_cast<uint32_t>(work.num_tokens));
  AppendIds(work.token_ids, message.mutable_token_ids());
  message.set_first_new_block(static_cast<uint32_t>(work.first_new_block));
  AppendIds(work.new_block_ids, message.mutable_new_block_ids());
  message.set_samples(work.samples);
  message.set_reports_prompt_logprobs(work.reports_prompt_logprobs);
}

SequenceWork DecodeWork(const v1::SequenceWork& message, const PlanLimits& limits, Reader& reader) {
  SequenceWork work;
  work.slot = reader.Int32(message.slot(), "slot");
  work.dp_rank = reader.Int32(message.dp_rank(), "dp_rank");
  work.has_setup = message.has_setup();
  if (work.has_setup) work.setup = DecodeSetup(message.setup(), limits, reader);
  work.first_position = reader.Int32(message.first_position(), "first_position");
  work.num_tokens = reader.Int32(message.num_tokens(), "num_tokens");
  work.token_ids = reader.Int32s(message.token_ids(), limits.max_token_ids, "token_ids");
  work.first_new_block = reader.Int32(message.first_new_block(), "first_new_block");
  work.new_block_ids = reader.Int32s(message.new_block_ids(), limits.max_block_ids, "new_block_ids");
  work.samples = message.samples();
  work.reports_prompt_logprobs = message.reports_prompt_logprobs();
  return work;
}

// ---- results ----

void EncodeOutput(const kernels::SampleOutput& output, v1::TokenLogprobs& message) {
  if (output.token >= 0) message.set_token_id(static_cast<uint32_t>(output.token));
  message.set_logprob(output.logprob);
  for (const auto& [token, logprob] : output.top_logprobs) {
    v1::TopLogprob* entry = message.add_top();
    entry->set_token_id(static_cast<uint32_t>(token));
    entry->set_logprob(logprob);
  }
  message.set_is_not_finite(!output.is_finite);
}

kernels::SampleOutput DecodeOutput(const v1::TokenLogprobs& message, Reader& reader) {
  kernels::SampleOutput output;
  output.token = message.has_token_id() ? reader.Int32(message.token_id(), "token_id") : -1;
  output.is_finite = !message.is_not_finite();
  output.logprob = message.logprob();
  reader.Count(message.top_size(), kernels::kMaxTopLogprobs, "top");
  if (!reader.status().ok()) return output;
  for (const v1::TopLogprob& entry : message.top()) {
    output.top_logprobs.emplace_back(reader.Int32(entry.token_id(), "top.token_id"), entry.logprob());
  }
  return output;
}

void EncodeSequence(const SequenceResult& sequence, v1::SequenceResult& message) {
  message.set_slot(static_cast<uint32_t>(sequence.slot));
  message.set_dp_rank(static_cast<uint32_t>(sequence.dp_rank));
  if (sequence.has_sampled) EncodeOutput(sequence.sampled, *message.mutable_sampled());
  for (const kernels::SampleOutput& output : sequence.prompt_logprobs) {
    EncodeOutput(output, *message.add_prompt_logprobs());
  }
  message.set_error(sequence.error.substr(0, kMaxErrorBytes));
}

SequenceResult DecodeSequence(const v1::SequenceResult& message, int64_t max_prompt_rows, Reader& reader) {
  SequenceResult sequence;
  sequence.slot = reader.Int32(message.slot(), "slot");
  sequence.dp_rank = reader.Int32(message.dp_rank(), "dp_rank");
  sequence.has_sampled = message.has_sampled();
  if (sequence.has_sampled) sequence.sampled = DecodeOutput(message.sampled(), reader);
  reader.Count(message.prompt_logprobs_size(), max_prompt_rows, "prompt_logprobs");
  if (!reader.status().ok()) return sequence;
  for (const v1::TokenLogprobs& output : message.prompt_logprobs()) {
    sequence.prompt_logprobs.push_back(DecodeOutput(output, reader));
  }
  reader.Count(static_cast<int64_t>(message.error().size()), kMaxErrorBytes, "error");
  sequence.error = message.error();
  return sequence;
}

}  // namespace

PlanLimits LimitsFor(int32_t dp, int64_t max_num_seqs, int64_t max_model_len, int64_t num_blocks) {
  return {.max_work = dp * max_num_seqs,
          .max_released = dp * max_num_seqs,
          .max_token_ids = max_model_len,
          .max_block_ids = num_blocks,
          .max_logit_biases = 10000};
}

void EncodePlan(const StepPlan& plan, v1::StepPlan& message) {
  message.Clear();
  message.set_step_id(plan.step_id);
  message.set_epoch(plan.epoch);
  for (const SequenceWork& work : plan.work) EncodeWork(work, *message.add_work());
  for (const StepPlan::ReleasedSlot& released : plan.released) {
    v1::ReleasedSlot* entry = message.add_released();
    entry->set_dp_rank(static_cast<uint32_t>(released.dp_rank));
    entry->set_slot(static_cast<uint32_t>(released.slot));
  }
}

absl::StatusOr<StepPlan> DecodePlan(const v1::StepPlan& message, const PlanLimits& limits) {
  StepPlan plan{.step_id = message.step_id(), .epoch = message.epoch()};
  Reader reader("plan: ");
  reader.Count(message.work_size(), limits.max_work, "work");
  reader.Count(message.released_size(), limits.max_released, "released");
  if (!reader.status().ok()) return reader.status();
  for (int i = 0; i < message.work_size(); ++i) {
    Reader work_reader(absl::StrCat("plan: work[", i, "]."));
    plan.work.push_back(DecodeWork(message.work(i), limits, work_reader));
    if (!work_reader.status().ok()) return work_reader.status();
  }
  for (const v1::ReleasedSlot& released : message.released()) {
    plan.released.push_back(
        {reader.Int32(released.dp_rank(), "released.dp_rank"), reader.Int32(released.slot(), "released.slot")});
  }
  if (!reader.status().ok()) return reader.status();
  return plan;
}

void EncodeResult(const StepResult& result, v1::StepResult& message) {
  message.Clear();
  message.set_step_id(result.step_id);
  message.set_epoch(result.epoch);
  message.set_plan_hash(result.plan_hash);
  for (const SequenceResult& sequence : result.sequences) EncodeSequence(sequence, *message.add_sequences());
  for (const int64_t load : result.expert_loads) message.add_expert_loads(static_cast<uint64_t>(load));
  message.set_total_us(static_cast<uint64_t>(result.timings.total_us));
  message.set_communication_us(static_cast<uint64_t>(result.timings.communication_us));
  message.set_sampling_us(static_cast<uint64_t>(result.timings.sampling_us));
}

absl::StatusOr<StepResult> DecodeResult(const v1::StepResult& message, int64_t max_sequences, int64_t max_prompt_rows) {
  StepResult result{.step_id = message.step_id(), .epoch = message.epoch(), .plan_hash = message.plan_hash()};
  Reader reader("result: ");
  reader.Count(message.sequences_size(), max_sequences, "sequences");
  reader.Count(message.expert_loads_size(), kMaxExpertLoads, "expert_loads");
  if (!reader.status().ok()) return reader.status();
  for (int i = 0; i < message.sequences_size(); ++i) {
    Reader sequence_reader(absl::StrCat("result: sequences[", i, "]."));
    result.sequences.push_back(DecodeSequence(message.sequences(i), max_prompt_rows, sequence_reader));
    if (!sequence_reader.status().ok()) return sequence_reader.status();
  }
  for (const uint64_t load : message.expert_loads()) {
    result.expert_loads.push_back(reader.Int64(load, "expert_loads"));
  }
  result.timings = {.total_us = reader.Int64(message.total_us(), "total_us"),
                    .communication_us = reader.Int64(message.communication_us(), "communication_us"),
                    .sampling_us = reader.Int64(message.sampling_us(), "sampling_us")};
  if (!reader.status().ok()) return reader.status();
  return result;
}

}  // namespace weir::worker
