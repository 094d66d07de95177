#include "tools/weir/client/answer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace weir::tools {
namespace {

using nlohmann::json;

double Seconds(Answer::Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

json ToJson(const v1::Timing& timing) {
  json object = {{"total_us", timing.total_us()},
                 {"gateway_us", timing.gateway_us()},
                 {"queued_for_share_us", timing.queued_for_share_us()},
                 {"queued_for_blocks_us", timing.queued_for_blocks_us()},
                 {"queued_for_slots_us", timing.queued_for_slots_us()},
                 {"queued_for_workers_us", timing.queued_for_workers_us()},
                 {"prefill_us", timing.prefill_us()},
                 {"decode_us", timing.decode_us()},
                 {"preempted_us", timing.preempted_us()},
                 {"recovering_us", timing.recovering_us()},
                 {"network_us", timing.network_us()}};
  if (timing.has_time_to_first_token_us()) object["time_to_first_token_us"] = timing.time_to_first_token_us();
  return object;
}

json ToJson(const v1::Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens()},
          {"cached_tokens", usage.cached_tokens()},
          {"completion_tokens", usage.completion_tokens()},
          {"reasoning_tokens", usage.reasoning_tokens()}};
}

json ToJson(const v1::TokenLogprob& logprob) {
  json top = json::array();
  for (const v1::TopLogprob& other : logprob.top()) {
    top.push_back({{"token_id", other.token_id()}, {"logprob", other.logprob()}});
  }
  return {{"token_id", logprob.token_id()}, {"logprob", logprob.logprob()}, {"top", top}};
}

}  // namespace

std::string NameOf(v1::FinishReason reason) {
  constexpr const char* kNames[] = {"unspecified", "stop", "length", "tool_calls", "cancelled", "deadline", "error"};
  const int index = static_cast<int>(reason);
  return index >= 0 && index < 7 ? kNames[index] : "unspecified";
}

void Answer::Add(const v1::ChatResponse& event, Clock::time_point now) {
  if (event.has_started()) started_ = event.started();
  if (event.has_reasoning_delta()) AddText(event.reasoning_delta(), reasoning_, now);
  if (event.has_content_delta()) AddText(event.content_delta(), text_, now);
  if (event.has_tool_call_delta()) AddToolCall(event.tool_call_delta());
  if (event.has_finished()) finished_ = event.finished();
}

void Answer::Add(const v1::GenerateResponse& event, Clock::time_point now) {
  if (event.has_started()) started_ = event.started();
  if (event.has_content_delta()) AddText(event.content_delta(), text_, now);
  if (event.has_finished()) finished_ = event.finished();
}

void Answer::AddText(const v1::TextDelta& delta, std::string& text, Clock::time_point now) {
  text += delta.text();
  token_ids_.insert(token_ids_.end(), delta.token_ids().begin(), delta.token_ids().end());
  logprobs_.insert(logprobs_.end(), delta.logprobs().begin(), delta.logprobs().end());
  if (delta.token_ids().empty()) return;
  if (!first_token_at_) {
    first_token_at_ = now;
    num_first_tokens_ = delta.token_ids_size();
  }
  last_token_at_ = now;
}

void Answer::AddToolCall(const v1::ToolCallDelta& delta) {
  constexpr uint32_t kMaxCalls = 1024;  // an index that is not one must not eat the memory
  if (delta.index() >= kMaxCalls) return;
  if (tool_calls_.size() <= delta.index()) tool_calls_.resize(delta.index() + 1);
  ToolCall& call = tool_calls_[delta.index()];
  call.id += delta.id();
  call.name += delta.name();
  call.arguments += delta.arguments_delta();
}

std::optional<double> Answer::ttft_s() const {
  if (!first_token_at_) return std::nullopt;
  return Seconds(*first_token_at_ - asked_at_);
}

std::optional<double> Answer::tokens_per_s() const {
  const int64_t num_later = num_tokens() - num_first_tokens_;
  if (num_later <= 0 || *last_token_at_ <= *first_token_at_) return std::nullopt;
  return static_cast<double>(num_later) / Seconds(*last_token_at_ - *first_token_at_);
}

std::string Answer::Summary() const {
  std::string text = absl::StrCat(num_tokens(), num_tokens() == 1 ? " token" : " tokens");
  if (ttft_s()) absl::StrAppend(&text, absl::StrFormat(", %.2f s to the first", *ttft_s()));
  if (tokens_per_s()) absl::StrAppend(&text, absl::StrFormat(", %.1f tokens/s", *tokens_per_s()));
  if (finished_) absl::StrAppend(&text, absl::StrFormat(", %.2f s in all", finished_->timing().total_us() * 1e-6));
  if (!started_.request_id().empty()) absl::StrAppend(&text, "; seed ", started_.seed());
  if (finished_ && finished_->reason() != v1::FINISH_REASON_STOP) {
    absl::StrAppend(&text, "; ended by ", NameOf(finished_->reason()));
  }
  return text;
}

json Answer::ToJson() const {
  json object = {{"request_id", started_.request_id()},
                 {"model", started_.model()},
                 {"seed", started_.seed()},
                 {"text", text_},
                 {"token_ids", token_ids_}};
  if (!reasoning_.empty()) object["reasoning"] = reasoning_;
  if (!tool_calls_.empty()) object["tool_calls"] = json::array();
  for (const ToolCall& call : tool_calls_) {
    object["tool_calls"].push_back({{"id", call.id}, {"name", call.name}, {"arguments", call.arguments}});
  }
  for (const v1::TokenLogprob& logprob : logprobs_) object["logprobs"].push_back(tools::ToJson(logprob));
  if (ttft_s()) object["ttft_ms"] = *ttft_s() * 1e3;
  if (tokens_per_s()) object["tokens_per_s"] = *tokens_per_s();
  if (!finished_) return object;
  object["finish_reason"] = NameOf(finished_->reason());
  object["usage"] = tools::ToJson(finished_->usage());
  object["timing"] = tools::ToJson(finished_->timing());
  if (finished_->has_error()) {
    object["error"] = {{"reason", finished_->error().reason()},
                       {"message", finished_->error().message()},
                       {"is_retriable", finished_->error().is_retriable()}};
  }
  return object;
}

}  // namespace weir::tools
