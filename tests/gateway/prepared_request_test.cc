#include "gateway/request/prepared_request.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "gateway/request/limits.h"
#include "tests/gateway/text_samples.h"
#include "weir/v1/inference.pb.h"

namespace weir::gateway {
namespace {

using testing::HasSubstr;

ServedModel Model(ChatDialect dialect) {
  ServedModel model;
  model.name = "demo";
  model.tokenizer = ByteTokenizer();
  model.chat_template = std::move(ChatTemplate::Create(dialect, model.tokenizer.get())).value();
  model.max_model_len = 200;
  model.vocab_size = 300;
  model.eos_tokens = {1};
  model.bos_token = 0;
  return model;
}

v1::ChatRequest Chat(const std::string& text) {
  v1::ChatRequest request;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &request)) << text;
  return request;
}

v1::GenerateRequest Generate(const std::string& text) {
  v1::GenerateRequest request;
  EXPECT_TRUE(google::protobuf::TextFormat::ParseFromString(text, &request)) << text;
  return request;
}

const std::string kHi = "messages { role: ROLE_USER content: 'Hi' } ";

TEST(PrepareChatTest, FillsInWhatTheModelSays) {
  ServedModel model = Model(ChatDialect::kV31);
  model.default_temperature = 0.6f;
  model.default_top_p = 0.95f;
  model.thinks_by_default = true;
  PreparedRequest prepared;
  ASSERT_FALSE(PrepareChat(Chat(kHi), model, prepared).has_value());
  EXPECT_FLOAT_EQ(prepared.sampling.temperature, 0.6f);
  EXPECT_FLOAT_EQ(prepared.sampling.top_p, 0.95f);
  EXPECT_TRUE(prepared.answer.thinks_first);
  EXPECT_THAT(prepared.stop_tokens, testing::ElementsAre(1));
  EXPECT_EQ(prepared.prompt.size() + static_cast<size_t>(prepared.max_tokens), 200u);
  EXPECT_FALSE(prepared.seed.has_value());
  EXPECT_EQ(prepared.priority, Priority::kStandard);
}

TEST(PrepareChatTest, TakesEveryOption) {
  PreparedRequest prepared;
  const auto error = PrepareChat(
      Chat(kHi +
           "sampling { temperature: 0 top_p: 0.5 top_k: 7 min_p: 0.1 repetition_penalty: 1.1 presence_penalty: -1 "
           "frequency_penalty: 2 seed: 9 logit_bias { key: 5 value: -100 } logit_bias { key: 2 value: 3 } } "
           "stop_conditions { max_tokens: 12 min_tokens: 3 stop: 'END' stop_token_ids: 77 ignore_eos: true } "
           "options { request_id: 'a-B_9' priority: PRIORITY_BATCH user: 'x' logprobs: true top_logprobs: 20 }"),
      Model(ChatDialect::kV3), prepared);
  ASSERT_FALSE(error.has_value()) << error->message;
  EXPECT_EQ(prepared.sampling.temperature, 0.0f);
  EXPECT_EQ(prepared.sampling.top_k, 7u);
  EXPECT_THAT(prepared.sampling.logit_bias, testing::ElementsAre(testing::Pair(2, 3.0f), testing::Pair(5, -100.0f)));
  EXPECT_EQ(prepared.seed, 9u);
  EXPECT_EQ(prepared.max_tokens, 12);
  EXPECT_EQ(prepared.min_tokens, 3);
  EXPECT_THAT(prepared.stop_tokens, testing::ElementsAre(77));
  EXPECT_THAT(prepared.answer.stop, testing::ElementsAre("END"));
  EXPECT_EQ(prepared.request_id, "a-B_9");
  EXPECT_EQ(prepared.priority, Priority::kBatch);
  EXPECT_TRUE(prepared.wants_logprobs);
  EXPECT_EQ(prepared.num_top_logprobs, 20u);
}

TEST(PrepareChatTest, EveryBadFieldIsNamedWithWhatIsAllowed) {
  struct Case {
    std::string request, field, description;
  };
  const std::string long_text(300, 'x');
  const std::string deep = std::string(100, '[') + std::string(100, ']');
  const Case cases[] = {
      {"", "messages", "at least one message"},
      {"messages { role: ROLE_SYSTEM content: 's' }", "messages", "not a system message"},
      {"messages { content: 'x' }", "messages[0].role", "must be system, user, assistant or tool"},
      {"messages { role: ROLE_USER }", "messages[0].content", "is empty"},
      {kHi + "messages { role: ROLE_ASSISTANT content: 'x' }", "messages[1]", "the last message must be"},
      {kHi + "messages { role: ROLE_TOOL content: 'x' tool_call_id: 'c' }", "messages[1].tool_call_id", "no call"},
      {"messages { role: ROLE_USER content: 'x' tool_calls { name: 'f' arguments: '{}' } }", "messages[0].tool_calls",
       "assistant"},
      {"messages { role: ROLE_ASSISTANT tool_calls { name: 'f g' arguments: '{}' } } " + kHi,
       "messages[0].tool_calls[0].name", "letters"},
      {"messages { role: ROLE_ASSISTANT tool_calls { name: 'f' arguments: '[1' } } " + kHi,
       "messages[0].tool_calls[0].arguments", "JSON object"},
      {kHi + "tools { name: '' }", "tools[0].name", "1 to 64"},
      {kHi + "tools { name: 'f' parameters_json_schema: '3' }", "tools[0].parameters_json_schema", "JSON object"},
      {kHi + "tools { name: 'f' parameters_json_schema: '{\"a\":" + deep + "}' }", "tools[0].parameters_json_schema",
       "deeper"},
      {kHi + "thinking: true", "thinking", "does not think"},
      {kHi + "sampling { temperature: 2.5 }", "sampling.temperature", "from 0 to 2"},
      {kHi + "sampling { temperature: nan }", "sampling.temperature", "from 0 to 2"},
      {kHi + "sampling { top_p: 0 }", "sampling.top_p", "above 0 and at most 1"},
      {kHi + "sampling { top_k: 4294967295 }", "sampling.top_k", "from 0 to"},
      {kHi + "sampling { min_p: 1.5 }", "sampling.min_p", "from 0 to 1"},
      {kHi + "sampling { repetition_penalty: 0 }", "sampling.repetition_penalty", "above 0"},
      {kHi + "sampling { presence_penalty: 3 }", "sampling.presence_penalty", "from -2 to 2"},
      {kHi + "sampling { frequency_penalty: inf }", "sampling.frequency_penalty", "from -2 to 2"},
      {kHi + "sampling { logit_bias { key: 300 value: 1 } }", "sampling.logit_bias[300]", "below 300"},
      {kHi + "sampling { logit_bias { key: 3 value: 101 } }", "sampling.logit_bias[3]", "from -100 to 100"},
      {kHi + "stop_conditions { max_tokens: 0 }", "stop_conditions.max_tokens", "from 1"},
      {kHi + "stop_conditions { max_tokens: 4 min_tokens: 5 }", "stop_conditions.min_tokens", "from 0 to 4"},
      {kHi + "stop_conditions { stop: '' }", "stop_conditions.stop[0] (its size in bytes)", "from 1 to 256"},
      {kHi + "stop_conditions { stop: '" + long_text + "' }", "stop_conditions.stop[0] (its size in bytes)",
       "from 1 to 256"},
      {kHi + "stop_conditions { stop_token_ids: 301 }", "stop_conditions.stop_token_ids[0]", "below 300"},
      {kHi + "options { request_id: '' }", "options.request_id", "1 to 64"},
      {kHi + "options { request_id: 'a b' }", "options.request_id", "letters"},
      {kHi + "options { top_logprobs: 21 logprobs: true }", "options.top_logprobs", "at most 20"},
      {kHi + "options { top_logprobs: 2 }", "options.top_logprobs", "needs options.logprobs"},
  };
  const ServedModel model = Model(ChatDialect::kV3);
  for (const Case& c : cases) {
    PreparedRequest prepared;
    const auto error = PrepareChat(Chat(c.request), model, prepared);
    ASSERT_TRUE(error.has_value()) << c.request;
    EXPECT_EQ(error->code, RequestError::Code::kInvalidArgument);
    EXPECT_EQ(error->reason, "INVALID_PARAMETER");
    ASSERT_EQ(error->violations.size(), 1u) << c.request << ": " << error->message;
    EXPECT_EQ(error->violations[0].field, c.field);
    EXPECT_THAT(error->violations[0].description, HasSubstr(c.description)) << c.request;
  }
}

TEST(PrepareChatTest, AllBadFieldsAreReportedAtOnce) {
  PreparedRequest prepared;
  const auto error = PrepareChat(Chat(kHi + "sampling { top_p: 2 min_p: 2 } options { top_logprobs: 3 }"),
                                 Model(ChatDialect::kV3), prepared);
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->violations.size(), 3u);
  EXPECT_THAT(error->message, HasSubstr("and 2 more"));
}

TEST(PrepareChatTest, TextThatIsNotUtf8IsRefused) {
  v1::ChatRequest request = Chat(kHi);
  request.mutable_messages(0)->set_content("\xFF");
  PreparedRequest prepared;
  const auto error = PrepareChat(request, Model(ChatDialect::kV3), prepared);
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->violations.at(0).field, "messages[0].content");
}

TEST(PrepareChatTest, ErrorsHoldNothingOfWhatWasSaid) {
  v1::ChatRequest request = Chat(
      "messages { role: ROLE_USER content: 'secret-canary' } messages { role: ROLE_ASSISTANT content: "
      "'secret-canary' tool_calls { name: 'secret canary' arguments: 'secret-canary' } }");
  PreparedRequest prepared;
  const auto error = PrepareChat(request, Model(ChatDialect::kV3), prepared);
  ASSERT_TRUE(error.has_value());
  std::string all = error->message;
  for (const auto& violation : error->violations) all += violation.field + violation.description;
  EXPECT_THAT(all, testing::Not(HasSubstr("canary")));
}

TEST(PrepareChatTest, TooManyMessagesAreRefusedBeforeTheyAreLookedAt) {
  v1::ChatRequest request;
  for (int i = 0; i <= limits::kMaxMessages; ++i) request.add_messages();
  PreparedRequest prepared;
  const auto error = PrepareChat(request, Model(ChatDialect::kV3), prepared);
  ASSERT_TRUE(error.has_value());
  ASSERT_EQ(error->violations.size(), 1u);
  EXPECT_THAT(error->violations[0].description, HasSubstr("at most 2048"));
}

TEST(PrepareChatTest, OverTheContextBothCountsAreGiven) {
  PreparedRequest prepared;
  const ServedModel model = Model(ChatDialect::kV3);
  auto error = PrepareChat(Chat(kHi + "stop_conditions { max_tokens: 196 }"), model, prepared);
  ASSERT_TRUE(error.has_value());  // BOS, User, 'H', 'i', Assistant
  EXPECT_EQ(error->code, RequestError::Code::kFailedPrecondition);
  EXPECT_EQ(error->reason, "CONTEXT_LENGTH_EXCEEDED");
  EXPECT_THAT(error->message, HasSubstr("the prompt has 5 tokens and max_tokens is 196: 201 together"));
  EXPECT_FALSE(PrepareChat(Chat(kHi + "stop_conditions { max_tokens: 195 }"), model, prepared).has_value());
  v1::ChatRequest full = Chat(kHi);
  full.mutable_messages(0)->set_content(std::string(197, 'x'));
  error = PrepareChat(full, model, prepared);
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->reason, "CONTEXT_LENGTH_EXCEEDED");
}

TEST(PrepareGenerateTest, TextIsPlainAndGetsItsBos) {
  PreparedRequest prepared;
  ASSERT_FALSE(PrepareGenerate(Generate("text: '<think>'"), Model(ChatDialect::kR1), prepared).has_value());
  EXPECT_EQ(prepared.prompt.size(), 1 + std::string("<think>").size());
  EXPECT_EQ(prepared.prompt[0], 0);
  EXPECT_FALSE(prepared.answer.splits_markup);
}

TEST(PrepareGenerateTest, TokenIdsAreTakenAsTheyAre) {
  PreparedRequest prepared;
  const ServedModel model = Model(ChatDialect::kR1);
  ASSERT_FALSE(PrepareGenerate(Generate("token_ids { ids: 299 ids: 4 }"), model, prepared).has_value());
  EXPECT_THAT(prepared.prompt, testing::ElementsAre(299, 4));
  const auto error = PrepareGenerate(Generate("token_ids { ids: 4 ids: 300 }"), model, prepared);
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->violations.at(0).field, "token_ids.ids[1]");
  EXPECT_EQ(PrepareGenerate(Generate("token_ids { }"), model, prepared)->violations.at(0).field, "token_ids");
  EXPECT_EQ(PrepareGenerate(Generate(""), model, prepared)->violations.at(0).field, "prompt");
}

}  // namespace
}  // namespace weir::gateway
