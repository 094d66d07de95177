#include "gateway/chat/chat_template.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/gateway/text_samples.h"

namespace weir::gateway {
namespace {

Conversation FromSample(const nlohmann::json& sample) {
  Conversation conversation;
  conversation.thinking = sample["thinking"];
  conversation.add_generation_prompt = sample["add_generation_prompt"];
  for (const auto& from : sample["messages"]) {
    Message message;
    const std::string role = from["role"];
    message.role = role == "system"      ? Role::kSystem
                   : role == "assistant" ? Role::kAssistant
                   : role == "tool"      ? Role::kTool
                                         : Role::kUser;
    if (from["content"].is_string()) message.content = from["content"];
    if (from.contains("tool_calls")) {
      for (const auto& call : from["tool_calls"]) {
        message.tool_calls.push_back({call["id"], call["function"]["name"], call["function"]["arguments"]});
      }
    }
    conversation.messages.push_back(std::move(message));
  }
  return conversation;  // the published templates render no tools
}

TEST(ChatTemplateTest, RendersWhatThePublishedTemplatesRender) {
  const auto tokenizer = ByteTokenizer();
  int num_samples = 0;
  for (const auto& sample : Samples("template_samples.jsonl")) {
    const auto dialect = ChatTemplate::DialectByName(sample["template"].get<std::string>());
    ASSERT_TRUE(dialect.ok());
    const auto chat = std::move(ChatTemplate::Create(*dialect, tokenizer.get())).value();
    EXPECT_EQ(ChatTemplate::RenderedText(chat->Segments(FromSample(sample))), sample["text"].get<std::string>())
        << sample["name"];
    ++num_samples;
  }
  EXPECT_GE(num_samples, 13);
}

TEST(ChatTemplateTest, EncodesToTheIdsOfThePublishedTokenizer) {
  const auto plain = PublishedTokenizer(/*thinks=*/false);
  if (plain == nullptr) GTEST_SKIP() << "the published tokenizer is not here: run tools/fetch_tokenizer.sh";
  const auto thinking = PublishedTokenizer(/*thinks=*/true);
  for (const auto& sample : Samples("template_samples.jsonl")) {
    const auto dialect = *ChatTemplate::DialectByName(sample["template"].get<std::string>());
    const auto chat =
        std::move(ChatTemplate::Create(dialect, dialect == ChatDialect::kV3 ? plain.get() : thinking.get())).value();
    EXPECT_EQ(*chat->Encode(chat->Segments(FromSample(sample))), sample["ids_safe"].get<std::vector<TokenId>>())
        << sample["name"];
  }
}

// Every control token, in every place where a person or a tool can write, whole and split over two messages.
TEST(ChatTemplateTest, NothingThatIsSaidBecomesAControlToken) {
  const auto tokenizer = ByteTokenizer();
  const std::vector<std::string_view> tokens = {
      control::kBos,
      control::kEos,
      control::kUser,
      control::kAssistant,
      control::kThink,
      control::kEndThink,
      control::kToolCallsBegin,
      control::kToolCallsEnd,
      control::kToolCallBegin,
      control::kToolCallEnd,
      control::kToolOutputsBegin,
      control::kToolOutputsEnd,
      control::kToolOutputBegin,
      control::kToolOutputEnd,
      control::kToolSep,
  };
  const auto conversation_with = [](const std::string& a, const std::string& b) {
    Conversation conversation;
    conversation.tools = {{"f" + a, "does " + a, "{\"x\": \"" + a + "\"}"}};
    conversation.messages = {{Role::kSystem, "s" + a},
                             {Role::kSystem, b},
                             {Role::kUser, a},
                             {Role::kAssistant, "", "", {{"1", "f" + a, "{\"x\": \"" + a + "\"}"}}},
                             {Role::kTool, a + b, "", {}, "1"},
                             {Role::kTool, b, "", {}, "1"},
                             {Role::kUser, b + a}};
    return conversation;
  };
  const auto controls_in = [&](const std::vector<TokenId>& ids) {
    std::vector<TokenId> controls;
    for (const TokenId id : ids) {
      if (id < 3 || id >= 259) controls.push_back(id);  // the byte tokenizer's added tokens
    }
    return controls;
  };
  for (const ChatDialect dialect : {ChatDialect::kV3, ChatDialect::kR1, ChatDialect::kV31}) {
    const auto chat = std::move(ChatTemplate::Create(dialect, tokenizer.get())).value();
    const auto expected = controls_in(*chat->Encode(chat->Segments(conversation_with("hello", "there"))));
    for (const std::string_view token : tokens) {
      const std::string text(token);
      for (size_t cut = 0; cut <= text.size(); ++cut) {
        if (cut < text.size() && (text[cut] & 0xC0) == 0x80) continue;  // not inside a character
        const auto conversation = conversation_with(text.substr(0, cut), text.substr(cut));
        EXPECT_EQ(controls_in(*chat->Encode(chat->Segments(conversation))), expected) << text << " cut at " << cut;
      }
      const auto whole = conversation_with(text, "x" + text + "y");
      EXPECT_EQ(controls_in(*chat->Encode(chat->Segments(whole))), expected) << text;
    }
  }
}

TEST(ChatTemplateTest, ATokenizerWithoutTheControlTokensIsRefusedByName) {
  std::ifstream file(TestData("byte_tokenizer.json"));
  auto json = nlohmann::json::parse(file);
  json["added_tokens"].erase(json["added_tokens"].size() - 1);  // tool▁sep
  const auto tokenizer = std::move(Tokenizer::FromJson(json.dump())).value();
  const auto chat = ChatTemplate::Create(ChatDialect::kV3, tokenizer.get());
  ASSERT_FALSE(chat.ok());
  EXPECT_NE(std::string(chat.status().message()).find("<｜tool▁sep｜>"), std::string::npos);
}

}  // namespace
}  // namespace weir::gateway
