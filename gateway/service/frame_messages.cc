#include "gateway/service/frame_messages.h"

#include <algorithm>

#include "weir/v1/inference.pb.h"

namespace weir::gateway {
namespace {

uint64_t Unsigned(int64_t value) { return static_cast<uint64_t>(std::max<int64_t>(value, 0)); }

void Fill(const StartedFrame& started, v1::Started& out) {
  out.set_request_id(started.request_id);
  out.set_model(started.model);
  out.set_seed(started.seed);
  out.set_num_prompt_tokens(started.num_prompt_tokens);
}

void Fill(const OutputToken& token, const Tokenizer& tokenizer, v1::TokenLogprob& out) {
  out.set_token_id(static_cast<uint32_t>(token.token));
  out.set_logprob(*token.logprob);
  for (const auto& [id, logprob] : token.top) {
    v1::TopLogprob& top = *out.add_top();
    const std::string_view bytes = tokenizer.TokenBytes(id);
    top.set_token_id(static_cast<uint32_t>(id));
    top.set_logprob(logprob);
    top.set_token_bytes(bytes.data(), bytes.size());
  }
}

void Fill(const TextFrame& frame, const Tokenizer& tokenizer, v1::TextDelta& out) {
  out.set_text(frame.text);
  out.set_first_token_index(frame.first_token_index);
  for (const OutputToken& token : frame.tokens) {
    out.add_token_ids(static_cast<uint32_t>(token.token));
    if (token.logprob) Fill(token, tokenizer, *out.add_logprobs());
  }
}

void Fill(const ToolCallFrame& frame, v1::ToolCallDelta& out) {
  out.set_index(frame.index);
  out.set_id(frame.id);
  out.set_name(frame.name);
  out.set_arguments_delta(frame.arguments);
}

v1::FinishReason ReasonOf(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case FinishReason::kToolCalls:
      return v1::FINISH_REASON_TOOL_CALLS;
    case FinishReason::kCancelled:
      return v1::FINISH_REASON_CANCELLED;
    case FinishReason::kDeadline:
      return v1::FINISH_REASON_DEADLINE;
    case FinishReason::kError:
      return v1::FINISH_REASON_ERROR;
  }
  return v1::FINISH_REASON_ERROR;
}

void Fill(const Timing& timing, v1::Timing& out) {
  out.set_total_us(Unsigned(timing.total_us));
  out.set_gateway_us(Unsigned(timing.gateway_us));
  out.set_queued_for_share_us(Unsigned(timing.wait.queued_for_share_us));
  out.set_queued_for_blocks_us(Unsigned(timing.wait.queued_for_blocks_us));
  out.set_queued_for_slots_us(Unsigned(timing.wait.queued_for_slots_us));
  out.set_queued_for_workers_us(Unsigned(timing.wait.queued_for_workers_us));
  out.set_prefill_us(Unsigned(timing.wait.prefill_us));
  out.set_decode_us(Unsigned(timing.wait.decode_us));
  out.set_preempted_us(Unsigned(timing.wait.preempted_us));
  out.set_recovering_us(Unsigned(timing.wait.recovering_us));
  out.set_network_us(Unsigned(timing.wait.network_us));
  if (timing.time_to_first_token_us) out.set_time_to_first_token_us(Unsigned(*timing.time_to_first_token_us));
}

void Fill(const FinishedFrame& finished, v1::Finished& out) {
  out.set_reason(ReasonOf(finished.reason));
  out.mutable_usage()->set_prompt_tokens(finished.usage.prompt_tokens);
  out.mutable_usage()->set_cached_tokens(finished.usage.cached_tokens);
  out.mutable_usage()->set_completion_tokens(finished.usage.completion_tokens);
  out.mutable_usage()->set_reasoning_tokens(finished.usage.reasoning_tokens);
  Fill(finished.timing, *out.mutable_timing());
  if (!finished.error) return;
  out.mutable_error()->set_reason(finished.error->reason);
  out.mutable_error()->set_message(finished.error->message);
  out.mutable_error()->set_is_retriable(finished.error->is_retriable);
}

}  // namespace

void FillResponse(const Frame& frame, const Tokenizer& tokenizer, v1::ChatResponse& out) {
  if (const auto* started = std::get_if<StartedFrame>(&frame)) Fill(*started, *out.mutable_started());
  if (const auto* finished = std::get_if<FinishedFrame>(&frame)) Fill(*finished, *out.mutable_finished());
  if (const auto* call = std::get_if<ToolCallFrame>(&frame)) Fill(*call, *out.mutable_tool_call_delta());
  if (const auto* text = std::get_if<TextFrame>(&frame)) {
    Fill(*text, tokenizer, text->is_reasoning ? *out.mutable_reasoning_delta() : *out.mutable_content_delta());
  }
}

void FillResponse(const Frame& frame, const Tokenizer& tokenizer, v1::GenerateResponse& out) {
  if (const auto* started = std::get_if<StartedFrame>(&frame)) Fill(*started, *out.mutable_started());
  if (const auto* finished = std::get_if<FinishedFrame>(&frame)) Fill(*finished, *out.mutable_finished());
  if (const auto* text = std::get_if<TextFrame>(&frame)) Fill(*text, tokenizer, *out.mutable_content_delta());
}

}  // namespace weir::gateway
