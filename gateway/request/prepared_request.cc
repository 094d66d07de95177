#include "gateway/request/prepared_request.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "gateway/request/field_checks.h"
#include "gateway/request/limits.h"
#include "weir/v1/inference.pb.h"

namespace weir::gateway {
namespace {

constexpr double kHuge = 1e9;  // no limit of its own, but finite

std::string At(std::string_view list, int index) { return std::string(list) + "[" + std::to_string(index) + "]"; }

// ---- options and sampling: the same for both kinds of request ----

void TakeOptions(const v1::RequestOptions& options, PreparedRequest& prepared, FieldChecks& checks) {
  if (options.has_request_id()) {
    checks.IsName("options.request_id", options.request_id(), limits::kMaxRequestIdBytes);
    prepared.request_id = options.request_id();
  }
  switch (options.priority()) {
    case v1::PRIORITY_INTERACTIVE:
      prepared.priority = Priority::kInteractive;
      break;
    case v1::PRIORITY_UNSPECIFIED:
    case v1::PRIORITY_STANDARD:
      prepared.priority = Priority::kStandard;
      break;
    case v1::PRIORITY_BATCH:
      prepared.priority = Priority::kBatch;
      break;
    default:
      checks.Add("options.priority", "is not a known priority");
  }
  checks.AtMost("options.user", static_cast<int64_t>(options.user().size()), limits::kMaxUserBytes, "bytes");
  prepared.wants_logprobs = options.logprobs();
  prepared.num_top_logprobs = options.top_logprobs();
  checks.AtMost("options.top_logprobs", options.top_logprobs(), limits::kMaxTopLogprobs, "alternatives");
  if (options.top_logprobs() > 0 && !options.logprobs()) checks.Add("options.top_logprobs", "needs options.logprobs");
}

void TakeSampling(const v1::SamplingParams& from, const ServedModel& model, PreparedRequest& prepared,
                  FieldChecks& checks) {
  SamplingSettings& to = prepared.sampling;
  to.temperature = from.has_temperature() ? from.temperature() : model.default_temperature.value_or(1.0f);
  checks.InRange("sampling.temperature", to.temperature, 0, 2);
  to.top_p = from.has_top_p() ? from.top_p() : model.default_top_p.value_or(1.0f);
  checks.AboveUpTo("sampling.top_p", to.top_p, 0, 1);
  to.top_k = from.top_k();
  checks.InRange("sampling.top_k", to.top_k, 0, std::numeric_limits<int32_t>::max());
  to.min_p = from.min_p();
  checks.InRange("sampling.min_p", to.min_p, 0, 1);
  to.repetition_penalty = from.has_repetition_penalty() ? from.repetition_penalty() : 1.0f;
  checks.AboveUpTo("sampling.repetition_penalty", to.repetition_penalty, 0, 10);
  to.presence_penalty = from.presence_penalty();
  checks.InRange("sampling.presence_penalty", to.presence_penalty, -2, 2);
  to.frequency_penalty = from.frequency_penalty();
  checks.InRange("sampling.frequency_penalty", to.frequency_penalty, -2, 2);
  checks.AtMost("sampling.logit_bias", from.logit_bias_size(), limits::kMaxLogitBias, "entries");
  for (const auto& [id, bias] : from.logit_bias()) {
    const std::string field = "sampling.logit_bias[" + std::to_string(id) + "]";
    checks.InRange(field, bias, -100, 100);
    if (id >= static_cast<uint32_t>(model.vocab_size)) {
      checks.Add(field, "names no token; ids are below " + std::to_string(model.vocab_size));
    }
    to.logit_bias.emplace_back(static_cast<TokenId>(id), bias);
  }
  std::sort(to.logit_bias.begin(), to.logit_bias.end());
  if (from.has_seed()) prepared.seed = from.seed();
}

void TakeStopConditions(const v1::StopConditions& from, const ServedModel& model, PreparedRequest& prepared,
                        FieldChecks& checks) {
  prepared.has_max_tokens = from.has_max_tokens();
  if (from.has_max_tokens()) {
    checks.InRange("stop_conditions.max_tokens", from.max_tokens(), 1, kHuge);
    prepared.max_tokens =
        static_cast<int32_t>(std::min<uint32_t>(from.max_tokens(), std::numeric_limits<int32_t>::max()));
  }
  checks.InRange("stop_conditions.min_tokens", from.min_tokens(), 0, from.has_max_tokens() ? from.max_tokens() : kHuge);
  prepared.min_tokens =
      static_cast<int32_t>(std::min<uint32_t>(from.min_tokens(), std::numeric_limits<int32_t>::max()));
  checks.AtMost("stop_conditions.stop", from.stop_size(), limits::kMaxStopTexts, "texts");
  for (int i = 0; i < from.stop_size(); ++i) {
    const std::string field = At("stop_conditions.stop", i);
    checks.InRange(field + " (its size in bytes)", static_cast<double>(from.stop(i).size()), 1,
                   limits::kMaxStopTextBytes);
    checks.IsUtf8(field, from.stop(i));
    prepared.answer.stop.push_back(from.stop(i));
  }
  if (!from.ignore_eos()) prepared.stop_tokens = model.eos_tokens;
  checks.AtMost("stop_conditions.stop_token_ids", from.stop_token_ids_size(), limits::kMaxStopTokens, "ids");
  for (int i = 0; i < from.stop_token_ids_size(); ++i) {
    const uint32_t id = from.stop_token_ids(i);
    if (id >= static_cast<uint32_t>(model.vocab_size)) {
      checks.Add(At("stop_conditions.stop_token_ids", i),
                 "names no token; ids are below " + std::to_string(model.vocab_size));
    }
    prepared.stop_tokens.push_back(static_cast<TokenId>(id));
  }
}

// ---- the conversation ----

Role RoleOf(v1::Role role) {
  switch (role) {
    case v1::ROLE_SYSTEM:
      return Role::kSystem;
    case v1::ROLE_ASSISTANT:
      return Role::kAssistant;
    case v1::ROLE_TOOL:
      return Role::kTool;
    default:
      return Role::kUser;
  }
}

void CheckToolCalls(const std::string& field, const v1::Message& message, FieldChecks& checks) {
  checks.AtMost(field + ".tool_calls", message.tool_calls_size(), limits::kMaxToolCalls, "calls");
  if (message.tool_calls_size() > 0 && message.role() != v1::ROLE_ASSISTANT) {
    checks.Add(field + ".tool_calls", "only assistant messages make calls");
  }
  for (int i = 0; i < message.tool_calls_size(); ++i) {
    const std::string call = At(field + ".tool_calls", i);
    checks.IsName(call + ".name", message.tool_calls(i).name(), limits::kMaxToolNameBytes);
    checks.IsJsonObject(call + ".arguments", message.tool_calls(i).arguments());
  }
}

void CheckMessage(const std::string& field, const v1::Message& message, const std::set<std::string>& call_ids,
                  FieldChecks& checks) {
  if (message.role() < v1::ROLE_SYSTEM || message.role() > v1::ROLE_TOOL) {
    checks.Add(field + ".role", "must be system, user, assistant or tool");
  }
  checks.IsUtf8(field + ".content", message.content());
  checks.IsUtf8(field + ".reasoning_content", message.reasoning_content());
  if (message.role() == v1::ROLE_USER && message.content().empty()) checks.Add(field + ".content", "is empty");
  CheckToolCalls(field, message, checks);
  if (message.role() == v1::ROLE_TOOL && !message.tool_call_id().empty() &&
      !call_ids.contains(message.tool_call_id())) {
    checks.Add(field + ".tool_call_id", "answers no call of an earlier message");
  }
}

Message MessageOf(const v1::Message& from) {
  Message to;
  to.role = RoleOf(from.role());
  to.content = from.content();
  to.reasoning_content = from.reasoning_content();
  to.tool_call_id = from.tool_call_id();
  for (const v1::ToolCall& call : from.tool_calls())
    to.tool_calls.push_back({call.id(), call.name(), call.arguments()});
  return to;
}

// A conversation makes sense when somebody speaks and the last word is not the model's.
void CheckOrder(const v1::ChatRequest& request, FieldChecks& checks) {
  const auto& messages = request.messages();
  const auto speaks = [](const v1::Message& message) { return message.role() != v1::ROLE_SYSTEM; };
  if (std::none_of(messages.begin(), messages.end(), speaks)) {
    checks.Add("messages", "must hold at least one message that is not a system message");
    return;
  }
  const v1::Message& last = messages[messages.size() - 1];
  if (last.role() == v1::ROLE_ASSISTANT) {
    checks.Add(At("messages", messages.size() - 1),
               "is the assistant's; the last message must be the user's or a tool's");
  }
}

std::optional<RequestError> TakeTokenIds(const v1::TokenIds& from, const ServedModel& model, FieldChecks& checks,
                                         PreparedRequest& prepared) {
  if (from.ids_size() == 0) checks.Add("token_ids", "is empty; a prompt needs at least one token");
  for (int i = 0; i < from.ids_size(); ++i) {
    if (from.ids(i) >= static_cast<uint32_t>(model.vocab_size)) {
      checks.Add(At("token_ids.ids", i), "names no token; ids are below " + std::to_string(model.vocab_size));
    }
  }
  if (!checks.ok()) return checks.Error();
  prepared.prompt.assign(from.ids().begin(), from.ids().end());
  return std::nullopt;
}

std::optional<RequestError> TakeText(const std::string& text, const ServedModel& model, FieldChecks& checks,
                                     PreparedRequest& prepared) {
  checks.IsUtf8("text", text);
  if (text.empty() && !model.bos_token.has_value()) checks.Add("text", "is empty; a prompt needs at least one token");
  if (!checks.ok()) return checks.Error();
  if (model.bos_token.has_value()) prepared.prompt.push_back(*model.bos_token);
  const auto ids = model.tokenizer->EncodePlain(text);
  if (!ids.ok()) {
    checks.Add("text", "cannot be encoded");
    return checks.Error();
  }
  prepared.prompt.insert(prepared.prompt.end(), ids->begin(), ids->end());
  return std::nullopt;
}

}  // namespace

RequestError NoChatTemplate() {
  RequestError error;
  error.code = RequestError::Code::kFailedPrecondition;
  error.reason = "NO_CHAT_TEMPLATE";
  error.message = "this model has no chat template; use Generate with a prompt of your own";
  return error;
}

Conversation ReadConversation(const v1::ChatRequest& request, const ServedModel& model, FieldChecks& checks) {
  Conversation conversation;
  checks.AtMost("messages", request.messages_size(), limits::kMaxMessages, "messages");
  checks.AtMost("tools", request.tools_size(), limits::kMaxTools, "tools");
  if (!checks.ok()) return conversation;
  std::set<std::string> call_ids;
  for (int i = 0; i < request.messages_size(); ++i) {
    CheckMessage(At("messages", i), request.messages(i), call_ids, checks);
    for (const v1::ToolCall& call : request.messages(i).tool_calls()) call_ids.insert(call.id());
    conversation.messages.push_back(MessageOf(request.messages(i)));
  }
  CheckOrder(request, checks);
  for (int i = 0; i < request.tools_size(); ++i) {
    const v1::Tool& tool = request.tools(i);
    const std::string field = At("tools", i);
    checks.IsName(field + ".name", tool.name(), limits::kMaxToolNameBytes);
    checks.IsUtf8(field + ".description", tool.description());
    checks.AtMost(field + ".parameters_json_schema", static_cast<int64_t>(tool.parameters_json_schema().size()),
                  limits::kMaxSchemaBytes, "bytes");
    if (!tool.parameters_json_schema().empty()) {
      checks.IsJsonObject(field + ".parameters_json_schema", tool.parameters_json_schema());
    }
    conversation.tools.push_back({tool.name(), tool.description(), tool.parameters_json_schema()});
  }
  if (request.has_thinking() && request.thinking() && !model.chat_template->can_think()) {
    checks.Add("thinking", "this model does not think before it answers; leave it out or set it to false");
  }
  if (request.has_thinking() && !request.thinking() && model.chat_template->dialect() == ChatDialect::kR1) {
    checks.Add("thinking", "this model always thinks before it answers; leave it out or set it to true");
  }
  conversation.thinking = request.has_thinking() ? request.thinking() : model.thinks_by_default;
  return conversation;
}

std::optional<RequestError> FitToContext(int64_t max_model_len, PreparedRequest& prepared) {
  const auto num_prompt_tokens = static_cast<int64_t>(prepared.prompt.size());
  const int64_t left = max_model_len - num_prompt_tokens;
  const int64_t wanted = prepared.has_max_tokens ? prepared.max_tokens : std::max(prepared.min_tokens, 1);
  if (wanted <= left) {
    if (!prepared.has_max_tokens)
      prepared.max_tokens = static_cast<int32_t>(std::min<int64_t>(left, std::numeric_limits<int32_t>::max()));
    return std::nullopt;
  }
  RequestError error;
  error.code = RequestError::Code::kFailedPrecondition;
  error.reason = "CONTEXT_LENGTH_EXCEEDED";
  error.message = "the prompt has " + std::to_string(num_prompt_tokens) + " tokens and max_tokens is " +
                  std::to_string(wanted) + ": " + std::to_string(num_prompt_tokens + wanted) +
                  " together, over this model's context of " + std::to_string(max_model_len) +
                  "; shorten the prompt or lower max_tokens";
  error.metadata = {{"prompt_tokens", std::to_string(num_prompt_tokens)},
                    {"max_tokens", std::to_string(wanted)},
                    {"max_model_len", std::to_string(max_model_len)}};
  return error;
}

std::optional<RequestError> PrepareChat(const v1::ChatRequest& request, const ServedModel& model,
                                        PreparedRequest& prepared) {
  prepared = PreparedRequest{};
  FieldChecks checks;
  if (model.chat_template == nullptr) return NoChatTemplate();
  const Conversation conversation = ReadConversation(request, model, checks);
  TakeSampling(request.sampling(), model, prepared, checks);
  TakeStopConditions(request.stop_conditions(), model, prepared, checks);
  TakeOptions(request.options(), prepared, checks);
  if (!checks.ok()) return checks.Error();

  const ChatTemplate& chat = *model.chat_template;
  auto prompt = chat.Encode(chat.Segments(conversation));
  if (!prompt.ok()) {
    checks.Add("messages", "cannot be encoded");
    return checks.Error();
  }
  prepared.prompt = *std::move(prompt);
  prepared.dialect = chat.dialect();
  prepared.answer.thinks_first = chat.ThinksFirst(conversation);
  return FitToContext(model.max_model_len, prepared);
}

std::optional<RequestError> PrepareGenerate(const v1::GenerateRequest& request, const ServedModel& model,
                                            PreparedRequest& prepared) {
  prepared = PreparedRequest{};
  FieldChecks checks;
  TakeSampling(request.sampling(), model, prepared, checks);
  TakeStopConditions(request.stop_conditions(), model, prepared, checks);
  TakeOptions(request.options(), prepared, checks);
  std::optional<RequestError> error;
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kTokenIds:
      error = TakeTokenIds(request.token_ids(), model, checks, prepared);
      break;
    case v1::GenerateRequest::kText:
      error = TakeText(request.text(), model, checks, prepared);
      break;
    case v1::GenerateRequest::PROMPT_NOT_SET:
      checks.Add("prompt", "is missing; give text or token_ids");
      error = checks.Error();
      break;
  }
  if (error.has_value()) return error;
  prepared.dialect = model.chat_template != nullptr ? model.chat_template->dialect() : ChatDialect::kV3;
  prepared.answer.splits_markup = false;
  return FitToContext(model.max_model_len, prepared);
}

}  // namespace weir::gateway
