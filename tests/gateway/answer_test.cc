#include "gateway/answer/answer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <utility>
#include <vector>

#include "tests/gateway/text_samples.h"

namespace weir::gateway {
namespace {

using testing::ElementsAre;
using testing::SizeIs;

// What the frames of a whole stream say together.
struct Told {
  std::string reasoning, content;
  std::vector<TokenId> tokens;
  std::vector<ToolCallFrame> calls;

  void Take(const std::vector<Frame>& frames) {
    for (const Frame& frame : frames) {
      if (const auto* text = std::get_if<TextFrame>(&frame)) Take(*text);
      if (const auto* call = std::get_if<ToolCallFrame>(&frame)) Take(*call);
    }
  }
  void Take(const TextFrame& frame) {
    EXPECT_EQ(frame.first_token_index, tokens.size()) << "frames leave tokens out, or repeat them";
    (frame.is_reasoning ? reasoning : content) += frame.text;
    for (const OutputToken& token : frame.tokens) {
      EXPECT_EQ(token.index, tokens.size());
      tokens.push_back(token.token);
    }
  }
  void Take(const ToolCallFrame& frame) {
    if (frame.index == calls.size()) {
      calls.push_back(frame);
    } else {
      ASSERT_EQ(frame.index + 1, calls.size());
      calls.back().arguments += frame.arguments;
    }
  }
};

class AnswerTest : public testing::Test {
 protected:
  Answer Make(AnswerParser::Options options, Submission submission = {}) const {
    submission.request_id = "r1";
    return Answer(tokenizer.get(), ChatDialect::kV31, options, std::make_shared<Submission>(std::move(submission)));
  }
  std::vector<TokenId> Ids(const std::string& text) const {
    return std::move(tokenizer->EncodeWithAddedTokens(text)).value();
  }
  // In batches of the sizes given over and over.
  static Told Run(Answer answer, const std::vector<TokenId>& ids, const std::vector<size_t>& batches) {
    Told told;
    std::vector<Frame> frames;
    size_t in_batch = 0, batch = 0;
    for (uint32_t i = 0; i < ids.size(); ++i) {
      const bool has_stopped = answer.Append({.index = i, .token = ids[i]}, frames);
      if (++in_batch == batches[batch % batches.size()] || has_stopped) {
        told.Take(std::exchange(frames, {}));
        in_batch = 0;
        ++batch;
      }
      if (has_stopped) break;
    }
    told.Take(std::exchange(frames, {}));
    answer.Finish(frames);
    told.Take(frames);
    EXPECT_EQ(told.tokens.size(), answer.num_tokens());
    return told;
  }

  std::unique_ptr<Tokenizer> tokenizer = ByteTokenizer();
};

TEST_F(AnswerTest, EveryTokenIsInOneFrameAndTheTextIsTheOneShotDecodingOfThem) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    std::vector<TokenId> ids(random() % 60);
    for (TokenId& id : ids) id = static_cast<TokenId>(random() % static_cast<uint32_t>(tokenizer->vocab_size()));
    const std::vector<size_t> batches = {1 + random() % 4, 1 + random() % 4};
    const Told told = Run(Make({.splits_markup = false}), ids, batches);
    ASSERT_EQ(told.tokens, ids);
    ASSERT_EQ(told.content, tokenizer->Decode(ids));
  }
}

TEST_F(AnswerTest, SplitsReasoningFromContentInOneBatchToo) {
  const std::vector<TokenId> ids = Ids("so</think>yes");
  for (const size_t batch : {1u, 2u, 100u}) {
    const Told told = Run(Make({.thinks_first = true}), ids, {batch});
    EXPECT_EQ(told.reasoning, "so");
    EXPECT_EQ(told.content, "yes");
    EXPECT_EQ(told.tokens, ids);
  }
}

TEST_F(AnswerTest, ABatchOfOneKindIsOneFrame) {
  Answer answer = Make({});
  std::vector<Frame> frames;
  for (uint32_t i = 0; i < 3; ++i) answer.Append({.index = i, .token = Ids("abc")[i]}, frames);
  ASSERT_THAT(frames, SizeIs(1));
  EXPECT_EQ(std::get<TextFrame>(frames[0]).text, "abc");
  EXPECT_THAT(std::get<TextFrame>(frames[0]).tokens, SizeIs(3));
}

TEST_F(AnswerTest, AStopTextEndsTheTextBeforeItAndTheTokensWithIt) {
  const std::vector<TokenId> ids = Ids("one STOP two");
  const Told told = Run(Make({.stop = {"STOP"}}), ids, {1});
  EXPECT_EQ(told.content, "one ");
  EXPECT_THAT(told.tokens, SizeIs(8)) << "the tokens that spell the stop text were computed and count";
}

TEST_F(AnswerTest, AStopTokenHasNoTextAlsoInPlainGeneration) {
  std::vector<TokenId> ids = Ids("ab");
  ids.push_back(1);  // end of sequence
  const Told told = Run(Make({.splits_markup = false}, {.stop_tokens = {1}}), ids, {1});
  EXPECT_EQ(told.content, "ab");
  EXPECT_EQ(told.tokens, ids);
  const Told kept = Run(Make({.splits_markup = false}, {.min_tokens = 4, .stop_tokens = {1}}), ids, {1});
  EXPECT_EQ(kept.content, tokenizer->Decode(ids)) << "before min_tokens it is a token like others";
}

TEST_F(AnswerTest, ToolCallsHaveAnIdANameAndTheirArguments) {
  const std::vector<TokenId> ids =
      Ids("Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜>"
          "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>");
  for (const size_t batch : {1u, 3u, 1000u}) {
    const Told told = Run(Make({}), ids, {batch});
    EXPECT_EQ(told.content, "Let me see.");
    EXPECT_EQ(told.tokens, ids);
    ASSERT_THAT(told.calls, SizeIs(2));
    EXPECT_EQ(told.calls[0].id, "call_r1_0");
    EXPECT_EQ(told.calls[0].name, "f");
    EXPECT_EQ(told.calls[0].arguments, "{\"a\": 1}");
    EXPECT_EQ(told.calls[1].name, "g");
    EXPECT_EQ(told.calls[1].arguments, "{}");
  }
}

}  // namespace
}  // namespace weir::gateway
