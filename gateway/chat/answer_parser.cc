#include "gateway/chat/answer_parser.h"

#include <utility>

namespace weir::gateway {
namespace {

constexpr std::string_view kFenceBegin = "```json\n";
constexpr std::string_view kFenceEnd = "\n```";

std::string_view WithoutLeadingNewlines(std::string_view text) {
  const size_t at = text.find_first_not_of("\r\n");
  return at == std::string_view::npos ? std::string_view() : text.substr(at);
}

std::string Trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  return std::string(text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1));
}

}  // namespace

AnswerParser::AnswerParser(const Tokenizer* tokenizer, ChatDialect dialect, const Options& options)
    : tokenizer_(tokenizer),
      dialect_(dialect),
      splits_markup_(options.splits_markup),
      state_(options.thinks_first ? State::kReasoning : State::kContent),
      stops_(options.stop) {
  const auto id = [&](std::string_view text) { return tokenizer->AddedToken(text).value_or(-1); };
  if (!splits_markup_) return;
  markup_ = {
      id(control::kThink),         id(control::kEndThink),    id(control::kToolCallsBegin), id(control::kToolCallsEnd),
      id(control::kToolCallBegin), id(control::kToolCallEnd), id(control::kToolSep),        id(control::kEos)};
}

bool AnswerParser::Append(TokenId token, std::vector<AnswerDelta>& deltas) {
  if (state_ == State::kReasoning) ++num_reasoning_tokens_;
  if (splits_markup_ && TakeMarkup(token, deltas)) return false;
  std::string text;
  utf8_.Append(tokenizer_->TokenBytes(token), text);
  return TakeText(text, deltas);
}

void AnswerParser::Finish(std::vector<AnswerDelta>& deltas) {
  FlushText(deltas);
  if (state_ == State::kCallBody) EndCall(deltas);
  std::string visible;
  stops_.Finish(visible);
  if (!visible.empty()) deltas.push_back({AnswerDelta::Kind::kContent, std::move(visible)});
}

// True when the token is markup and has been dealt with.
bool AnswerParser::TakeMarkup(TokenId token, std::vector<AnswerDelta>& deltas) {
  if (token < 0) return true;
  if (token == markup_.eos) return true;
  if (token == markup_.think) {  // an answer may open its reasoning itself
    if (state_ == State::kContent && !has_text_) state_ = State::kReasoning;
    return true;
  }
  if (token == markup_.end_think && state_ == State::kReasoning) {
    FlushText(deltas);
    held_newlines_.clear();
    has_text_ = false;
    state_ = State::kContent;
    return true;
  }
  if (token == markup_.calls_begin) {
    FlushText(deltas);
    state_ = State::kBetweenCalls;
    return true;
  }
  if (token == markup_.call_begin) {
    FlushText(deltas);
    call_head_.clear();
    state_ = State::kCallHead;
    return true;
  }
  if (token == markup_.separator && state_ == State::kCallHead) {
    FlushText(deltas);
    BeginCallBody();
    if (dialect_ == ChatDialect::kV31) TakeCallBody({}, deltas);
    return true;
  }
  if (token == markup_.call_end) {
    FlushText(deltas);
    if (state_ == State::kCallBody) EndCall(deltas);
    state_ = State::kBetweenCalls;
    return true;
  }
  if (token == markup_.calls_end) {
    FlushText(deltas);
    state_ = State::kAfterCalls;
    return true;
  }
  return token == markup_.end_think || token == markup_.separator;
}

void AnswerParser::BeginCallBody() {
  state_ = State::kCallBody;
  call_body_.clear();
  name_is_known_ = false;
}

void AnswerParser::EndCall(std::vector<AnswerDelta>& deltas) {
  if (!name_is_known_) {  // no line end after the name: a call without arguments
    deltas.push_back({AnswerDelta::Kind::kToolCallBegin, Trimmed(call_body_), num_tool_calls_});
    call_body_.clear();
  }
  if (dialect_ != ChatDialect::kV31 && call_body_.ends_with("```")) {
    call_body_.erase(call_body_.size() - 3);
    while (call_body_.ends_with("\n")) call_body_.pop_back();
  }
  EmitArguments(call_body_, deltas);
  call_body_.clear();
  ++num_tool_calls_;
  state_ = State::kBetweenCalls;
}

bool AnswerParser::TakeText(std::string_view text, std::vector<AnswerDelta>& deltas) {
  if (text.empty()) return false;
  switch (state_) {
    case State::kReasoning:
      TakeReasoning(text, deltas);
      return false;
    case State::kContent:
      return TakeContent(text, deltas);
    case State::kCallHead:
      call_head_.append(text);
      return false;
    case State::kCallBody:
      TakeCallBody(text, deltas);
      return false;
    case State::kBetweenCalls:
      return false;  // line ends between calls
    case State::kAfterCalls:
      return TakeContent(WithoutLeadingNewlines(text), deltas);
  }
  return false;
}

void AnswerParser::TakeReasoning(std::string_view text, std::vector<AnswerDelta>& deltas) {
  if (!has_text_) text = WithoutLeadingNewlines(text);
  if (text.empty()) return;
  has_text_ = true;
  std::string shown = std::exchange(held_newlines_, {});
  shown.append(text);
  const size_t last = shown.find_last_not_of("\r\n");
  const size_t keep = last == std::string::npos ? 0 : last + 1;
  held_newlines_ = shown.substr(keep);
  shown.resize(keep);
  if (!shown.empty()) deltas.push_back({AnswerDelta::Kind::kReasoning, std::move(shown)});
}

bool AnswerParser::TakeContent(std::string_view text, std::vector<AnswerDelta>& deltas) {
  // Line ends between reasoning and content belong to neither.
  if (splits_markup_ && !has_text_ && num_reasoning_tokens_ > 0) text = WithoutLeadingNewlines(text);
  if (text.empty()) return false;
  has_text_ = true;
  std::string visible;
  const bool has_stopped = stops_.Append(text, visible);
  if (!visible.empty()) deltas.push_back({AnswerDelta::Kind::kContent, std::move(visible)});
  return has_stopped;
}

// V3.1: the head is the name, the body the arguments.  V3, R1: the body is name, line end, fenced arguments.
void AnswerParser::TakeCallBody(std::string_view text, std::vector<AnswerDelta>& deltas) {
  call_body_.append(text);
  if (dialect_ == ChatDialect::kV31) {
    if (!name_is_known_) {
      deltas.push_back({AnswerDelta::Kind::kToolCallBegin, Trimmed(call_head_), num_tool_calls_});
      name_is_known_ = true;
    }
    EmitArguments(std::exchange(call_body_, {}), deltas);
    return;
  }
  if (!name_is_known_) {
    const size_t line_end = call_body_.find('\n');
    if (line_end == std::string::npos) return;
    const size_t body = line_end + 1;
    const std::string_view rest = std::string_view(call_body_).substr(body);
    if (rest.size() < kFenceBegin.size() && kFenceBegin.starts_with(rest)) return;  // the fence is not whole yet
    deltas.push_back({AnswerDelta::Kind::kToolCallBegin, Trimmed(std::string_view(call_body_).substr(0, line_end)),
                      num_tool_calls_});
    name_is_known_ = true;
    call_body_.erase(0, body + (rest.starts_with(kFenceBegin) ? kFenceBegin.size() : 0));
  }
  // The end of the body may be the closing fence: hold back as much as it could be, line ends before it included.
  size_t keep = call_body_.size();
  while (keep > 0 && (call_body_[keep - 1] == '`' || call_body_[keep - 1] == '\n') &&
         call_body_.size() - keep < kFenceEnd.size()) {
    --keep;
  }
  EmitArguments(std::string_view(call_body_).substr(0, keep), deltas);
  call_body_.erase(0, keep);
}

void AnswerParser::FlushText(std::vector<AnswerDelta>& deltas) {
  std::string text;
  utf8_.Finish(text);
  TakeText(text, deltas);
}

void AnswerParser::EmitArguments(std::string_view text, std::vector<AnswerDelta>& deltas) {
  if (!text.empty()) deltas.push_back({AnswerDelta::Kind::kToolCallArguments, std::string(text), num_tool_calls_});
}

}  // namespace weir::gateway
