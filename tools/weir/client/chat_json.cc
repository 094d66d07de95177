#include "tools/weir/client/chat_json.h"

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace weir::tools {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 128;  // of brackets; schemas of tools need the most, and printing them recurses

const std::map<std::string, v1::Role> kRoles = {
    {"system", v1::ROLE_SYSTEM}, {"user", v1::ROLE_USER}, {"assistant", v1::ROLE_ASSISTANT}, {"tool", v1::ROLE_TOOL}};

absl::Status Wrong(const std::string& place, const std::string& expected) {
  return absl::InvalidArgumentError(absl::StrCat(place, ": expected ", expected));
}

// The text under `key`; empty when it is absent or null.
absl::Status ReadText(const json& object, const std::string& place, const char* key, std::string& text) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return absl::OkStatus();
  if (!found->is_string()) return Wrong(absl::StrCat(place, ".", key), "a text");
  text = found->get<std::string>();
  return absl::OkStatus();
}

absl::Status ReadToolCall(const json& object, const std::string& place, v1::ToolCall& call) {
  if (!object.is_object() || !object.contains("function") || !object["function"].is_object()) {
    return Wrong(place, R"({"id": "...", "function": {"name": "...", "arguments": "..."}})");
  }
  absl::Status status = ReadText(object, place, "id", *call.mutable_id());
  if (status.ok()) status = ReadText(object["function"], place + ".function", "name", *call.mutable_name());
  if (status.ok()) status = ReadText(object["function"], place + ".function", "arguments", *call.mutable_arguments());
  return status;
}

absl::Status ReadMessage(const json& object, const std::string& place, v1::Message& message) {
  if (!object.is_object()) return Wrong(place, R"(an object such as {"role": "user", "content": "..."})");
  std::string role;
  absl::Status status = ReadText(object, place, "role", role);
  if (!status.ok()) return status;
  const auto found = kRoles.find(role);
  if (found == kRoles.end()) return Wrong(place + ".role", "system, user, assistant or tool; found '" + role + "'");
  message.set_role(found->second);
  for (const auto& [key, text] : {std::pair{"content", message.mutable_content()},
                                  {"reasoning_content", message.mutable_reasoning_content()},
                                  {"tool_call_id", message.mutable_tool_call_id()},
                                  {"name", message.mutable_name()}}) {
    if (status = ReadText(object, place, key, *text); !status.ok()) return status;
  }
  const auto calls = object.find("tool_calls");
  if (calls == object.end()) return absl::OkStatus();
  if (!calls->is_array()) return Wrong(place + ".tool_calls", "a list");
  for (size_t i = 0; i < calls->size() && status.ok(); ++i) {
    status = ReadToolCall((*calls)[i], absl::StrCat(place, ".tool_calls[", i, "]"), *message.add_tool_calls());
  }
  return status;
}

absl::Status ReadTool(const json& object, const std::string& place, v1::Tool& tool) {
  if (!object.is_object() || !object.contains("function") || !object["function"].is_object()) {
    return Wrong(place, R"({"type": "function", "function": {"name": "...", "parameters": {...}}})");
  }
  const json& function = object["function"];
  absl::Status status = ReadText(function, place + ".function", "name", *tool.mutable_name());
  if (status.ok()) status = ReadText(function, place + ".function", "description", *tool.mutable_description());
  if (function.contains("parameters")) tool.set_parameters_json_schema(function["parameters"].dump());
  return status;
}

}  // namespace

absl::StatusOr<v1::ChatPrompt> ParseChatJson(std::string_view text) {
  bool is_too_deep = false;
  const auto is_kept = [&](int depth, json::parse_event_t, const json&) {
    is_too_deep |= depth > kMaxDepth;
    return depth <= kMaxDepth;
  };
  json root = json::parse(text, is_kept, /*allow_exceptions=*/false);
  if (is_too_deep) return Wrong("the conversation", absl::StrCat("brackets at most ", kMaxDepth, " deep"));
  if (root.is_array()) root = json{{"messages", std::move(root)}};
  if (root.is_discarded() || !root.is_object() || !root.contains("messages") || !root["messages"].is_array()) {
    return Wrong("the conversation",
                 R"(JSON: a list of messages, or {"messages": [{"role": "user", "content": "..."}]})");
  }
  v1::ChatPrompt prompt;
  absl::Status status;
  for (size_t i = 0; i < root["messages"].size() && status.ok(); ++i) {
    status = ReadMessage(root["messages"][i], absl::StrCat("messages[", i, "]"), *prompt.add_messages());
  }
  const json tools = root.value("tools", json::array());
  if (!tools.is_array()) return Wrong("tools", "a list");
  for (size_t i = 0; i < tools.size() && status.ok(); ++i) {
    status = ReadTool(tools[i], absl::StrCat("tools[", i, "]"), *prompt.add_tools());
  }
  if (!status.ok()) return status;
  if (const auto thinking = root.find("thinking"); thinking != root.end()) {
    if (!thinking->is_boolean()) return Wrong("thinking", "true or false");
    prompt.set_thinking(thinking->get<bool>());
  }
  return prompt;
}

}  // namespace weir::tools
