#include "gateway/request/text_requests.h"

#include <string>
#include <vector>

#include "gateway/request/field_checks.h"
#include "gateway/request/prepared_request.h"
#include "gateway/text/utf8.h"
#include "weir/v1/inference.pb.h"

namespace weir::gateway {
namespace {

std::optional<RequestError> TokenizeText(const std::string& text, const ServedModel& model,
                                         v1::TokenizeResponse& response) {
  FieldChecks checks;
  checks.IsUtf8("text", text);
  if (!checks.ok()) return checks.Error();
  const auto ids = model.tokenizer->EncodePlain(text);
  if (!ids.ok()) {
    checks.Add("text", "cannot be encoded");
    return checks.Error();
  }
  response.mutable_token_ids()->Add(ids->begin(), ids->end());
  return std::nullopt;
}

// Paths of fields as the caller wrote them.
RequestError Under(const std::string& field, RequestError error) {
  for (RequestError::FieldViolation& violation : error.violations) violation.field = field + "." + violation.field;
  error.message = field + "." + error.message;
  return error;
}

std::optional<RequestError> TokenizeChat(const v1::ChatPrompt& prompt, const ServedModel& model,
                                         v1::TokenizeResponse& response) {
  if (model.chat_template == nullptr) return NoChatTemplate();
  v1::ChatRequest request;
  *request.mutable_messages() = prompt.messages();
  *request.mutable_tools() = prompt.tools();
  if (prompt.has_thinking()) request.set_thinking(prompt.thinking());
  FieldChecks checks;
  const Conversation conversation = ReadConversation(request, model, checks);
  if (!checks.ok()) return Under("chat", checks.Error());
  const std::vector<PromptSegment> segments = model.chat_template->Segments(conversation);
  const auto ids = model.chat_template->Encode(segments);
  if (!ids.ok()) {
    checks.Add("chat.messages", "cannot be encoded");
    return checks.Error();
  }
  response.mutable_token_ids()->Add(ids->begin(), ids->end());
  response.set_rendered_text(ChatTemplate::RenderedText(segments));
  return std::nullopt;
}

}  // namespace

std::optional<RequestError> TokenizeInput(const v1::TokenizeRequest& request, const ServedModel& model,
                                          v1::TokenizeResponse& response) {
  switch (request.input_case()) {
    case v1::TokenizeRequest::kText:
      return TokenizeText(request.text(), model, response);
    case v1::TokenizeRequest::kChat:
      return TokenizeChat(request.chat(), model, response);
    case v1::TokenizeRequest::INPUT_NOT_SET:
      break;
  }
  FieldChecks checks;
  checks.Add("input", "is missing; give text or chat");
  return checks.Error();
}

std::optional<RequestError> DetokenizeIds(const v1::DetokenizeRequest& request, const ServedModel& model,
                                          v1::DetokenizeResponse& response) {
  FieldChecks checks;
  for (int i = 0; i < request.token_ids_size(); ++i) {
    if (request.token_ids(i) < static_cast<uint32_t>(model.vocab_size)) continue;
    checks.Add("token_ids[" + std::to_string(i) + "]",
               "names no token; ids are below " + std::to_string(model.vocab_size));
  }
  if (!checks.ok()) return checks.Error();
  std::string& bytes = *response.mutable_text_bytes();
  for (const uint32_t id : request.token_ids()) bytes += model.tokenizer->TokenBytes(static_cast<TokenId>(id));
  Utf8Stream utf8;
  utf8.Append(bytes, *response.mutable_text());
  utf8.Finish(*response.mutable_text());
  return std::nullopt;
}

}  // namespace weir::gateway
