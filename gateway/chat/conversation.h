#pragma once

#include <optional>
#include <string>
#include <vector>

// A conversation as clients send it, apart from any wire format.

namespace weir::gateway {

enum class Role { kSystem, kUser, kAssistant, kTool };

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;  // a JSON object, as text
};

struct Message {
  Role role = Role::kUser;
  std::string content;
  std::string reasoning_content;     // assistant
  std::vector<ToolCall> tool_calls;  // assistant
  std::string tool_call_id;          // tool
};

struct Tool {
  std::string name;
  std::string description;
  std::string parameters_json_schema;  // empty = no arguments
};

struct Conversation {
  std::vector<Message> messages;
  std::vector<Tool> tools;
  bool thinking = false;              // where the template knows it
  bool add_generation_prompt = true;  // end with the beginning of an answer
};

}  // namespace weir::gateway
