#include "worker/model/slots.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

namespace weir::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr SlotLimits kLimits = {
    .max_num_seqs = 4, .block_size = 4, .num_blocks = 10, .max_model_len = 32, .vocab_size = 100};

// A first step: a prompt of tokens 1, 2, ... and the blocks it needs.
SequenceWork FirstWork(SlotId slot, int32_t num_prompt_tokens) {
  SequenceWork work = {.slot = slot, .has_setup = true, .num_tokens = num_prompt_tokens};
  work.setup.num_prompt_tokens = num_prompt_tokens;
  for (int32_t i = 0; i < num_prompt_tokens; ++i) work.setup.token_ids.push_back(i + 1);
  for (int32_t i = 0; i * kLimits.block_size < num_prompt_tokens; ++i) work.new_block_ids.push_back(i);
  return work;
}

class SlotTableTest : public ::testing::Test {
 protected:
  absl::StatusOr<Slot*> Apply(const SequenceWork& work) {
    table_.BeginStep();
    return table_.Apply(work);
  }
  std::string ErrorOf(const SequenceWork& work) {
    const absl::StatusOr<Slot*> slot = Apply(work);
    return slot.ok() ? "" : std::string(slot.status().message());
  }
  SlotTable table_{kLimits};
};

TEST_F(SlotTableTest, TakesSetupBlocksAndTokens) {
  const absl::StatusOr<Slot*> slot = Apply(FirstWork(2, 6));
  ASSERT_TRUE(slot.ok()) << slot.status();
  EXPECT_THAT((*slot)->tokens, ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT((*slot)->block_table, ElementsAre(0, 1));
  EXPECT_EQ((*slot)->num_computed, 6);
}

TEST_F(SlotTableTest, ContinuesWithTheTokenThatWasSampled) {
  Slot* slot = *Apply(FirstWork(0, 4));
  slot->AppendSampled(42);
  slot = *Apply({.slot = 0, .first_position = 4, .num_tokens = 1, .first_new_block = 1, .new_block_ids = {7}});
  EXPECT_THAT(slot->tokens, ElementsAre(1, 2, 3, 4, 42));
  EXPECT_THAT(slot->block_table, ElementsAre(0, 7));
}

TEST_F(SlotTableTest, ATokenOfThePlanReplacesTheSampledOne) {
  Slot* slot = *Apply(FirstWork(0, 4));
  slot->AppendSampled(42);
  slot = *Apply(
      {.slot = 0, .first_position = 4, .num_tokens = 1, .token_ids = {50}, .first_new_block = 1, .new_block_ids = {7}});
  EXPECT_THAT(slot->tokens, ElementsAre(1, 2, 3, 4, 50));
}

TEST_F(SlotTableTest, GoesBackOverRejectedDrafts) {
  Slot* slot = *Apply(FirstWork(0, 2));
  slot = *Apply({.slot = 0, .first_position = 2, .num_tokens = 2, .token_ids = {60, 61}});
  slot->AppendSampled(62);
  // Position 3 was wrong: another token in its place, and what stood behind it is forgotten.
  slot = *Apply({.slot = 0, .first_position = 3, .num_tokens = 1, .token_ids = {70}});
  EXPECT_THAT(slot->tokens, ElementsAre(1, 2, 60, 70));
  slot->AppendSampled(71);
  EXPECT_THAT(slot->tokens, ElementsAre(1, 2, 60, 70, 71));
}

TEST_F(SlotTableTest, ASampledTokenNeverReplacesOneOfTheSetup) {
  SequenceWork work = FirstWork(0, 6);
  work.num_tokens = 3;
  Slot* slot = *Apply(work);
  slot->AppendSampled(99);
  EXPECT_THAT(slot->tokens, ElementsAre(1, 2, 3, 4, 5, 6));
}

TEST_F(SlotTableTest, StartsBehindACachedPrefix) {
  SequenceWork work = FirstWork(0, 6);
  work.first_position = 4;
  work.num_tokens = 2;
  const absl::StatusOr<Slot*> slot = Apply(work);
  ASSERT_TRUE(slot.ok()) << slot.status();
  EXPECT_EQ((*slot)->num_computed, 6);
}

TEST_F(SlotTableTest, SaysWhatIsWrongWithWork) {
  EXPECT_THAT(ErrorOf({.slot = 4, .num_tokens = 1}), HasSubstr("slots 0 to 3"));
  EXPECT_THAT(ErrorOf({.slot = -1, .num_tokens = 1}), HasSubstr("slots 0 to 3"));
  EXPECT_THAT(ErrorOf({.slot = 1, .num_tokens = 1}), HasSubstr("holds no sequence"));

  ASSERT_EQ(ErrorOf(FirstWork(0, 6)), "");
  EXPECT_THAT(ErrorOf({.slot = 0, .first_position = 7, .num_tokens = 1, .token_ids = {5}}),
              HasSubstr("positions 6 to 6 were never computed"));
  EXPECT_THAT(ErrorOf({.slot = 0, .first_position = 6, .num_tokens = 1}), HasSubstr("only those below 6 are known"));
  EXPECT_THAT(ErrorOf({.slot = 0, .first_position = 6, .num_tokens = 0}), HasSubstr("at least 1 token"));
  EXPECT_THAT(ErrorOf({.slot = 0, .first_position = 6, .num_tokens = 2, .token_ids = {1}}),
              HasSubstr("num_tokens is 2"));
  EXPECT_THAT(ErrorOf({.slot = 0, .first_position = 6, .num_tokens = 1, .token_ids = {100}}),
              HasSubstr("tokens 0 to 99"));
  EXPECT_THAT(ErrorOf({.slot = 0, .first_position = 6, .num_tokens = 3, .token_ids = {1, 2, 3}}),
              HasSubstr("9 positions need 3 blocks; the block table has 2"));
  EXPECT_THAT(ErrorOf({.slot = 0, .first_position = 6, .num_tokens = 27, .token_ids = std::vector<int32_t>(27, 1)}),
              HasSubstr("beyond max_model_len 32"));
  EXPECT_THAT(ErrorOf({.slot = 0,
                       .first_position = 6,
                       .num_tokens = 3,
                       .token_ids = {1, 2, 3},
                       .first_new_block = 2,
                       .new_block_ids = {10}}),
              HasSubstr("blocks 0 to 9"));
  EXPECT_THAT(ErrorOf({.slot = 0,
                       .first_position = 6,
                       .num_tokens = 1,
                       .token_ids = {1},
                       .first_new_block = 3,
                       .new_block_ids = {1}}),
              HasSubstr("first_new_block is 3"));
}

TEST_F(SlotTableTest, SaysWhatIsWrongWithASetup) {
  const auto with = [](auto change) {
    SequenceWork work = FirstWork(0, 4);
    change(work.setup);
    return work;
  };
  EXPECT_THAT(ErrorOf(with([](SequenceSetup& s) { s.num_prompt_tokens = 5; })), HasSubstr("num_prompt_tokens is 5"));
  EXPECT_THAT(ErrorOf(with([](SequenceSetup& s) { s.token_ids[1] = -1; })), HasSubstr("token_ids[1] is -1"));
  EXPECT_THAT(ErrorOf(with([](SequenceSetup& s) { s.token_ids.resize(33); })), HasSubstr("max_model_len is 32"));
  EXPECT_THAT(ErrorOf(with([](SequenceSetup& s) { s.sampling.temperature = -1; })), HasSubstr("sampling.temperature"));
  EXPECT_THAT(ErrorOf(with([](SequenceSetup& s) { s.sampling.temperature = std::numeric_limits<float>::quiet_NaN(); })),
              HasSubstr("sampling.temperature"));
  EXPECT_THAT(ErrorOf(with([](SequenceSetup& s) { s.sampling.top_p = 0; })), HasSubstr("sampling.top_p"));
  EXPECT_THAT(ErrorOf(with([](SequenceSetup& s) { s.sampling.num_top_logprobs = 21; })), HasSubstr("from 0 to 20"));
  EXPECT_THAT(ErrorOf(with([](SequenceSetup& s) { s.sampling.logit_bias = {{100, 1.0f}}; })), HasSubstr("logit_bias"));
  EXPECT_THAT(ErrorOf({.slot = 0, .num_tokens = 1}), HasSubstr("holds no sequence"))
      << "a refused setup left something";
}

TEST_F(SlotTableTest, RefusedWorkChangesNothing) {
  Slot* slot = *Apply(FirstWork(0, 4));
  slot->AppendSampled(42);
  EXPECT_NE(ErrorOf({.slot = 0, .first_position = 4, .num_tokens = 2, .token_ids = {1, 2}, .new_block_ids = {99}}), "");
  SequenceWork again = FirstWork(0, 4);
  again.setup.sampling.top_p = 2;
  EXPECT_NE(ErrorOf(again), "");
  EXPECT_THAT(slot->tokens, ElementsAre(1, 2, 3, 4, 42));
  EXPECT_THAT(slot->block_table, ElementsAre(0));
  EXPECT_EQ(slot->num_computed, 4);
}

TEST_F(SlotTableTest, RefusesWorkTwiceInOneStep) {
  table_.BeginStep();
  ASSERT_TRUE(table_.Apply(FirstWork(0, 4)).ok());
  EXPECT_THAT(std::string(table_.Apply(FirstWork(0, 4)).status().message()), HasSubstr("twice"));
}

TEST_F(SlotTableTest, ForgetsReleasedSlots) {
  ASSERT_EQ(ErrorOf(FirstWork(0, 4)), "");
  table_.Release(0);
  table_.Release(77);
  EXPECT_THAT(ErrorOf({.slot = 0, .first_position = 4, .num_tokens = 1, .token_ids = {1}}), HasSubstr("no sequence"));
}

TEST_F(SlotTableTest, CountsTokensForPenaltiesOnly) {
  Slot* slot = *Apply(FirstWork(0, 2));
  EXPECT_TRUE(slot->History().empty());

  SequenceWork work = FirstWork(1, 3);
  work.setup.token_ids = {5, 3, 5};
  work.setup.sampling.presence_penalty = 0.5f;
  slot = *Apply(work);
  const auto is = [](int32_t token, int32_t in_prompt, int32_t in_output) {
    return ::testing::AllOf(::testing::Field(&kernels::TokenCount::token, token),
                            ::testing::Field(&kernels::TokenCount::num_in_prompt, in_prompt),
                            ::testing::Field(&kernels::TokenCount::num_in_output, in_output));
  };
  EXPECT_THAT(slot->History(), ElementsAre(is(3, 1, 0), is(5, 2, 0)));
  slot->AppendSampled(3);
  EXPECT_THAT(slot->History(), ElementsAre(is(3, 1, 0), is(5, 2, 0))) << "a token counts once it has run";
  slot = *Apply({.slot = 1, .first_position = 3, .num_tokens = 1});
  EXPECT_THAT(slot->History(), ElementsAre(is(3, 1, 1), is(5, 2, 0)));
  // The token is replaced: its count goes.
  slot = *Apply({.slot = 1, .first_position = 3, .num_tokens = 1, .token_ids = {9}});
  EXPECT_THAT(slot->History(), ElementsAre(is(3, 1, 0), is(5, 2, 0), is(9, 0, 1)));
}

}  // namespace
}  // namespace weir::worker
