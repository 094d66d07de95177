#include "gateway/chat/answer_parser.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/gateway/text_samples.h"

namespace weir::gateway {
namespace {

// What a client has put together at the end.
struct Seen {
  std::string reasoning, content;
  std::vector<std::pair<std::string, std::string>> calls;
  bool has_stopped = false;
};

class AnswerParserTest : public testing::Test {
 protected:
  Seen Parse(std::string_view answer, ChatDialect dialect, const AnswerParser::Options& options) {
    AnswerParser parser(tokenizer_.get(), dialect, options);
    std::vector<AnswerDelta> deltas;
    Seen seen;
    const std::vector<TokenId> tokens = *tokenizer_->EncodeWithAddedTokens(answer);
    for (const TokenId token : tokens) {
      if (parser.Append(token, deltas)) {
        seen.has_stopped = true;
        break;
      }
    }
    parser.Finish(deltas);
    for (const AnswerDelta& delta : deltas) {
      switch (delta.kind) {
        case AnswerDelta::Kind::kReasoning:
          seen.reasoning += delta.text;
          break;
        case AnswerDelta::Kind::kContent:
          seen.content += delta.text;
          break;
        case AnswerDelta::Kind::kToolCallBegin:
          EXPECT_EQ(delta.call_index, static_cast<int32_t>(seen.calls.size()));
          seen.calls.push_back({delta.text, ""});
          break;
        case AnswerDelta::Kind::kToolCallArguments:
          seen.calls.at(delta.call_index).second += delta.text;
          break;
      }
    }
    return seen;
  }

  std::unique_ptr<Tokenizer> tokenizer_ = ByteTokenizer();
};

TEST_F(AnswerParserTest, SplitsReasoningFromContent) {
  const Seen seen = Parse("two and\ntwo\n</think>\n\n4<｜end▁of▁sentence｜>", ChatDialect::kR1, {.thinks_first = true});
  EXPECT_EQ(seen.reasoning, "two and\ntwo");
  EXPECT_EQ(seen.content, "4");
}

TEST_F(AnswerParserTest, AnAnswerMayOpenItsReasoningItself) {
  const Seen seen = Parse("<think>hm</think>yes", ChatDialect::kV31, {.thinks_first = false});
  EXPECT_EQ(seen.reasoning, "hm");
  EXPECT_EQ(seen.content, "yes");
}

TEST_F(AnswerParserTest, ReasoningThatNeverEndsStaysReasoning) {
  const Seen seen = Parse("and then\n", ChatDialect::kR1, {.thinks_first = true});
  EXPECT_EQ(seen.reasoning, "and then");
  EXPECT_EQ(seen.content, "");
}

TEST_F(AnswerParserTest, MarkupSpelledInLettersStaysContent) {
  AnswerParser parser(tokenizer_.get(), ChatDialect::kV31, {.thinks_first = false});
  std::vector<AnswerDelta> deltas;
  const std::vector<TokenId> tokens = *tokenizer_->EncodePlain("say </think> and <｜tool▁sep｜>");
  for (const TokenId token : tokens) parser.Append(token, deltas);
  parser.Finish(deltas);
  std::string content;
  for (const auto& delta : deltas) content += delta.text;
  EXPECT_EQ(content, "say </think> and <｜tool▁sep｜>");
}

TEST_F(AnswerParserTest, ReadsToolCallsOfV3) {
  const Seen seen = Parse(
      "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": "
      "\"佛山\"}\n"
      "```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n{\"code\": "
      "\"`a`\\n```\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
      ChatDialect::kV3, {});
  EXPECT_EQ(seen.content, "Let me see.");
  ASSERT_EQ(seen.calls.size(), 2u);
  EXPECT_EQ(seen.calls[0], (std::pair<std::string, std::string>("get_weather", "{\"city\": \"佛山\"}")));
  EXPECT_EQ(seen.calls[1], (std::pair<std::string, std::string>("clock", "{\"code\": \"`a`\\n```\"}")));
}

TEST_F(AnswerParserTest, ReadsToolCallsOfV31) {
  const Seen seen = Parse(
      "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>clock<｜tool▁sep｜>{\"tz\": \"UTC\"}<｜tool▁call▁end｜>"
      "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
      ChatDialect::kV31, {});
  EXPECT_EQ(seen.content, "");
  ASSERT_EQ(seen.calls.size(), 2u);
  EXPECT_EQ(seen.calls[0], (std::pair<std::string, std::string>("clock", "{\"tz\": \"UTC\"}")));
  EXPECT_EQ(seen.calls[1], (std::pair<std::string, std::string>("now", "{}")));
}

TEST_F(AnswerParserTest, ACallCutOffAtTheEndIsStillACall) {
  const Seen seen = Parse("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n{\"tz\"",
                          ChatDialect::kV3, {});
  ASSERT_EQ(seen.calls.size(), 1u);
  EXPECT_EQ(seen.calls[0], (std::pair<std::string, std::string>("clock", "{\"tz\"")));
}

TEST_F(AnswerParserTest, StopTextsEndContentAndAreNotLookedForInReasoning) {
  const Seen seen = Parse("a STOP b</think>c STOP d", ChatDialect::kR1, {.thinks_first = true, .stop = {"STOP"}});
  EXPECT_EQ(seen.reasoning, "a STOP b");
  EXPECT_EQ(seen.content, "c ");
  EXPECT_TRUE(seen.has_stopped);
}

TEST_F(AnswerParserTest, PlainGenerationShowsEverything) {
  const Seen seen = Parse("\n<think>x</think>\n", ChatDialect::kR1, {.thinks_first = false, .splits_markup = false});
  EXPECT_EQ(seen.content, "\n<think>x</think>\n");
}

}  // namespace
}  // namespace weir::gateway
