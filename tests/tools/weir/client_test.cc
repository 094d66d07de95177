// The parts of the client commands that need no gateway.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tools/weir/client/answer.h"
#include "tools/weir/client/chat_json.h"

namespace weir::tools {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

v1::ChatResponse Tokens(const std::string& text, int count) {
  v1::ChatResponse event;
  event.mutable_content_delta()->set_text(text);
  for (int i = 0; i < count; ++i) event.mutable_content_delta()->add_token_ids(static_cast<uint32_t>(i));
  return event;
}

TEST(AnswerTest, MeasuresFromTheQuestionAndCountsTokensAfterTheFirstMessage) {
  const Answer::Clock::time_point asked;
  Answer answer(asked);
  EXPECT_FALSE(answer.ttft_s().has_value());
  answer.Add(Tokens("a", 2), asked + milliseconds(100));
  EXPECT_FALSE(answer.tokens_per_s().has_value());
  answer.Add(Tokens("b", 1), asked + milliseconds(150));
  answer.Add(Tokens("c", 4), asked + milliseconds(200));
  EXPECT_DOUBLE_EQ(*answer.ttft_s(), 0.1);
  EXPECT_DOUBLE_EQ(*answer.tokens_per_s(), 50.0);  // five tokens in 0.1 s
  EXPECT_EQ(answer.text(), "abc");
  EXPECT_EQ(answer.num_tokens(), 7);
}

TEST(AnswerTest, TextWithoutTokensDoesNotCountAsTheFirst) {
  const Answer::Clock::time_point asked;
  Answer answer(asked);
  answer.Add(Tokens("", 0), asked + milliseconds(10));
  EXPECT_FALSE(answer.ttft_s().has_value());
}

TEST(AnswerTest, PutsToolCallsTogether) {
  Answer answer({});
  v1::ChatResponse event;
  auto* delta = event.mutable_tool_call_delta();
  delta->set_index(1);
  delta->set_id("c1");
  delta->set_name("weather");
  delta->set_arguments_delta("{\"city\":");
  answer.Add(event, {});
  delta->clear_id();
  delta->clear_name();
  delta->set_arguments_delta("\"Foshan\"}");
  answer.Add(event, {});
  ASSERT_EQ(answer.tool_calls().size(), 2U);
  EXPECT_EQ(answer.tool_calls()[1].name, "weather");
  EXPECT_EQ(answer.tool_calls()[1].arguments, "{\"city\":\"Foshan\"}");
}

TEST(AnswerTest, SaysWhyAnAnswerEndedWhenNotByItself) {
  Answer answer({});
  v1::ChatResponse event;
  event.mutable_finished()->set_reason(v1::FINISH_REASON_LENGTH);
  answer.Add(event, {});
  EXPECT_THAT(answer.Summary(), HasSubstr("ended by length"));
}

TEST(ChatJsonTest, ReadsAListOfMessages) {
  const auto prompt = ParseChatJson(R"([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}])");
  ASSERT_TRUE(prompt.ok());
  ASSERT_EQ(prompt->messages_size(), 2);
  EXPECT_EQ(prompt->messages(0).role(), v1::ROLE_SYSTEM);
  EXPECT_EQ(prompt->messages(1).content(), "u");
  EXPECT_FALSE(prompt->has_thinking());
}

TEST(ChatJsonTest, ReadsToolsCallsAndThinking) {
  const auto prompt = ParseChatJson(R"({
    "messages": [
      {"role": "assistant", "content": null, "reasoning_content": "r",
       "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
      {"role": "tool", "tool_call_id": "c1", "content": "42"}],
    "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}],
    "thinking": true})");
  ASSERT_TRUE(prompt.ok()) << prompt.status();
  EXPECT_EQ(prompt->messages(0).tool_calls(0).name(), "f");
  EXPECT_EQ(prompt->messages(0).reasoning_content(), "r");
  EXPECT_EQ(prompt->messages(1).tool_call_id(), "c1");
  EXPECT_EQ(prompt->tools(0).parameters_json_schema(), R"({"type":"object"})");
  EXPECT_TRUE(prompt->thinking());
}

TEST(ChatJsonTest, RefusesBracketsThatAreTooDeep) {
  const std::string deep = R"({"messages": [], "tools": [{"function": {"name": "f", "parameters": )" +
                           std::string(1'000'000, '[') + std::string(1'000'000, ']') + "}}]}";
  EXPECT_THAT(std::string(ParseChatJson(deep).status().message()), HasSubstr("at most 128 deep"));
}

TEST(ChatJsonTest, NamesThePlaceThatIsWrong) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "the conversation: expected JSON"},
      {"{}", "the conversation: expected JSON"},
      {"[3]", "messages[0]: expected an object"},
      {R"([{"role": "user", "content": 3}])", "messages[0].content: expected a text"},
      {R"([{"role": 7}])", "messages[0].role: expected a text"},
      {R"([{"content": "x"}])", "messages[0].role: expected system, user, assistant or tool; found ''"},
      {R"([{"role": "assistant", "tool_calls": 1}])", "messages[0].tool_calls: expected a list"},
      {R"([{"role": "assistant", "tool_calls": [{}]}])", "messages[0].tool_calls[0]: expected"},
      {R"({"messages": [], "tools": [1]})", "tools[0]: expected"},
      {R"({"messages": [], "tools": 1})", "tools: expected a list"},
      {R"({"messages": [], "thinking": 1})", "thinking: expected true or false"},
  };
  for (const auto& [text, error] : cases) {
    EXPECT_THAT(std::string(ParseChatJson(text).status().message()), HasSubstr(error)) << text;
  }
}

}  // namespace
}  // namespace weir::tools
