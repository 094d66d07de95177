#include "gateway/chat/chat_template.h"

#include <array>
#include <utility>

#include "absl/status/status.h"

namespace weir::gateway {
namespace {

// Appends segments, joining neighbouring texts.
class PromptWriter {
 public:
  PromptWriter& Control(std::string_view token) {
    segments_.push_back({true, std::string(token)});
    return *this;
  }
  PromptWriter& Text(std::string_view text) {
    if (text.empty()) return *this;
    if (segments_.empty() || segments_.back().is_control) segments_.push_back({false, {}});
    segments_.back().text.append(text);
    return *this;
  }
  std::vector<PromptSegment> Take() { return std::move(segments_); }

 private:
  std::vector<PromptSegment> segments_;
};

// What of an old answer stays in history.  R1 keeps the text after the last </think>, V3.1 after the first; V3 keeps
// all.
std::string_view HistoryText(ChatDialect dialect, std::string_view content) {
  if (dialect == ChatDialect::kV3) return content;
  const size_t at = dialect == ChatDialect::kR1 ? content.rfind(control::kEndThink) : content.find(control::kEndThink);
  return at == std::string_view::npos ? content : content.substr(at + control::kEndThink.size());
}

void WriteTools(ChatDialect dialect, const std::vector<Tool>& tools, PromptWriter& out) {
  out.Text("## Tools\nYou have access to the following tools:\n");
  for (const Tool& tool : tools) {
    const std::string_view schema = tool.parameters_json_schema.empty() ? "{\"type\": \"object\", \"properties\": {}}"
                                                                        : std::string_view(tool.parameters_json_schema);
    out.Text("\n### ").Text(tool.name).Text("\nDescription: ").Text(tool.description);
    out.Text("\n\nParameters: ").Text(schema).Text("\n");
  }
  out.Text("\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n");
  out.Control(control::kToolCallsBegin).Control(control::kToolCallBegin);
  if (dialect == ChatDialect::kV31) {
    out.Text("tool_call_name").Control(control::kToolSep).Text("tool_call_arguments");
  } else {
    out.Text("function").Control(control::kToolSep).Text("tool_call_name\n```json\ntool_call_arguments\n```");
  }
  out.Control(control::kToolCallEnd).Text("{additional_tool_calls}").Control(control::kToolCallsEnd);
  out.Text(
      "\n\nWhere:\n\n- `tool_call_name` must be an exact match to one of the available tools\n- `tool_call_arguments` "
      "must be "
      "valid JSON that strictly follows the tool's Parameters Schema\n- For multiple tool calls, chain them directly "
      "without "
      "separators or spaces\n");
}

void WriteSystem(ChatDialect dialect, const Conversation& conversation, PromptWriter& out) {
  bool is_first = true;
  for (const Message& message : conversation.messages) {
    if (message.role != Role::kSystem) continue;
    if (!is_first) out.Text("\n\n");
    out.Text(message.content);
    is_first = false;
  }
  if (conversation.tools.empty()) return;
  if (!is_first) out.Text("\n\n");
  WriteTools(dialect, conversation.tools, out);
}

void WriteToolCalls(ChatDialect dialect, const std::vector<ToolCall>& calls, PromptWriter& out) {
  out.Control(control::kToolCallsBegin);
  bool is_first = true;
  for (const ToolCall& call : calls) {
    if (dialect == ChatDialect::kV31) {
      out.Control(control::kToolCallBegin).Text(call.name).Control(control::kToolSep).Text(call.arguments);
    } else {
      if (!is_first) out.Text("\n");
      out.Control(control::kToolCallBegin).Text("function").Control(control::kToolSep);
      out.Text(call.name).Text("\n```json\n").Text(call.arguments).Text("\n```");
    }
    out.Control(control::kToolCallEnd);
    is_first = false;
  }
  out.Control(control::kToolCallsEnd).Control(control::kEos);
}

// Walks the conversation.  `after_user`: an answer that follows opens with the assistant's token; one that follows tool
// results goes on directly.
class ConversationWriter {
 public:
  ConversationWriter(ChatDialect dialect, PromptWriter& out) : dialect_(dialect), out_(out) {}

  void Write(const Message& message) {
    if (message.role != Role::kTool) CloseToolOutputs();
    switch (message.role) {
      case Role::kSystem:
        return;  // stands at the front
      case Role::kUser:
        return WriteUser(message);
      case Role::kAssistant:
        return WriteAssistant(message);
      case Role::kTool:
        return WriteToolOutput(message);
    }
  }

  void WriteGenerationPrompt(bool thinking) {
    const bool continues_tools = after_tools_;
    CloseToolOutputs();
    if (continues_tools) return;  // after tool results nothing opens the answer
    out_.Control(control::kAssistant);
    if (dialect_ == ChatDialect::kR1) out_.Control(control::kThink).Text("\n");
    if (dialect_ == ChatDialect::kV31) out_.Control(thinking ? control::kThink : control::kEndThink);
  }

  void CloseToolOutputs() {
    if (tool_outputs_open_) out_.Control(control::kToolOutputsEnd);
    tool_outputs_open_ = false;
  }

 private:
  void WriteUser(const Message& message) {
    out_.Control(control::kUser).Text(message.content);
    after_user_ = true;
    after_tools_ = false;
  }

  void WriteAssistant(const Message& message) {
    if (!after_tools_) {
      out_.Control(control::kAssistant);
      if (dialect_ == ChatDialect::kV31 && after_user_) out_.Control(control::kEndThink);
    }
    after_user_ = after_tools_ = false;
    out_.Text(HistoryText(dialect_, message.content));
    if (message.tool_calls.empty()) {
      out_.Control(control::kEos);
    } else {
      WriteToolCalls(dialect_, message.tool_calls, out_);
    }
  }

  void WriteToolOutput(const Message& message) {
    if (dialect_ != ChatDialect::kV31) {
      if (tool_outputs_open_) {
        out_.Text("\n");
      } else {
        out_.Control(control::kToolOutputsBegin);
      }
      tool_outputs_open_ = true;
    }
    out_.Control(control::kToolOutputBegin).Text(message.content).Control(control::kToolOutputEnd);
    after_tools_ = true;
    after_user_ = false;
  }

  ChatDialect dialect_;
  PromptWriter& out_;
  bool after_user_ = false;
  bool after_tools_ = false;
  bool tool_outputs_open_ = false;
};

constexpr std::array kDialects = {
    std::pair{std::string_view("deepseek_v3"), ChatDialect::kV3},
    std::pair{std::string_view("deepseek_r1"), ChatDialect::kR1},
    std::pair{std::string_view("deepseek_v31"), ChatDialect::kV31},
};

}  // namespace

absl::StatusOr<ChatDialect> ChatTemplate::DialectByName(std::string_view name) {
  std::string known;
  for (const auto& [known_name, dialect] : kDialects) {
    if (known_name == name) return dialect;
    known.append(known.empty() ? "" : ", ").append(known_name);
  }
  return absl::InvalidArgumentError("unknown chat template '" + std::string(name) + "'; known: " + known);
}

std::string_view ChatTemplate::Name(ChatDialect dialect) {
  for (const auto& [name, known] : kDialects) {
    if (known == dialect) return name;
  }
  return "?";
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Create(ChatDialect dialect, const Tokenizer* tokenizer) {
  std::vector<std::string_view> needed = {
      control::kBos,           control::kEos,
      control::kUser,          control::kAssistant,
      control::kToolSep,       control::kToolCallsBegin,
      control::kToolCallsEnd,  control::kToolCallBegin,
      control::kToolCallEnd,   control::kToolOutputBegin,
      control::kToolOutputEnd,
  };
  if (dialect != ChatDialect::kV31) needed.insert(needed.end(), {control::kToolOutputsBegin, control::kToolOutputsEnd});
  if (dialect != ChatDialect::kV3) needed.insert(needed.end(), {control::kThink, control::kEndThink});
  std::string missing;
  for (const std::string_view token : needed) {
    if (!tokenizer->AddedToken(token).has_value()) missing.append(missing.empty() ? "" : ", ").append(token);
  }
  if (!missing.empty()) {
    return absl::InvalidArgumentError("chat template " + std::string(Name(dialect)) +
                                      " needs control tokens that tokenizer.json lacks: " + missing);
  }
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(dialect, tokenizer));
}

std::vector<PromptSegment> ChatTemplate::Segments(const Conversation& conversation) const {
  PromptWriter out;
  out.Control(control::kBos);
  WriteSystem(dialect_, conversation, out);
  ConversationWriter writer(dialect_, out);
  for (const Message& message : conversation.messages) writer.Write(message);
  if (conversation.add_generation_prompt) {
    writer.WriteGenerationPrompt(conversation.thinking);
  } else {
    writer.CloseToolOutputs();
  }
  return out.Take();
}

absl::StatusOr<std::vector<TokenId>> ChatTemplate::Encode(const std::vector<PromptSegment>& segments) const {
  std::vector<TokenId> ids;
  for (const PromptSegment& segment : segments) {
    if (segment.is_control) {
      ids.push_back(*tokenizer_->AddedToken(segment.text));  // Create has checked that it is there
      continue;
    }
    auto encoded = tokenizer_->EncodePlain(segment.text);
    if (!encoded.ok()) return encoded.status();
    ids.insert(ids.end(), encoded->begin(), encoded->end());
  }
  return ids;
}

std::string ChatTemplate::RenderedText(const std::vector<PromptSegment>& segments) {
  std::string text;
  for (const PromptSegment& segment : segments) text.append(segment.text);
  return text;
}

}  // namespace weir::gateway
