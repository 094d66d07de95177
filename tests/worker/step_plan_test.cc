#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <string>

#include "worker/model/batch_input.h"
#include "worker/step_plan.h"

namespace weir::worker {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

StepPlan SomePlan() {
  SequenceWork work = {.slot = 3,
                       .dp_rank = 1,
                       .has_setup = true,
                       .first_position = 2,
                       .num_tokens = 2,
                       .token_ids = {7, 8},
                       .first_new_block = 1,
                       .new_block_ids = {4},
                       .samples = true};
  work.setup = {.request_id = 9, .seed = 10, .num_prompt_tokens = 3, .token_ids = {1, 2, 3}};
  work.setup.sampling.logit_bias = {{5, 1.0f}};
  return {.step_id = 1, .epoch = 2, .work = {work}, .released = {{.dp_rank = 0, .slot = 5}}};
}

TEST(PlanHash, DependsOnEveryField) {
  using Change = std::function<void(StepPlan&)>;
  const std::vector<Change> changes = {
      [](StepPlan&) {},
      [](StepPlan& p) { p.step_id = 5; },
      [](StepPlan& p) { p.epoch = 5; },
      [](StepPlan& p) { p.released[0].slot = 6; },
      [](StepPlan& p) { p.released[0].dp_rank = 1; },
      [](StepPlan& p) { p.released.clear(); },
      [](StepPlan& p) { p.work.push_back(p.work[0]); },
      [](StepPlan& p) { p.work[0].slot = 4; },
      [](StepPlan& p) { p.work[0].dp_rank = 0; },
      [](StepPlan& p) { p.work[0].has_setup = false; },
      [](StepPlan& p) { p.work[0].first_position = 3; },
      [](StepPlan& p) { p.work[0].num_tokens = 3; },
      [](StepPlan& p) { p.work[0].token_ids = {8, 7}; },
      [](StepPlan& p) { p.work[0].first_new_block = 2; },
      [](StepPlan& p) { p.work[0].new_block_ids = {}; },
      [](StepPlan& p) { p.work[0].samples = false; },
      [](StepPlan& p) { p.work[0].reports_prompt_logprobs = true; },
      [](StepPlan& p) { p.work[0].setup.request_id = 8; },
      [](StepPlan& p) { p.work[0].setup.seed = 8; },
      [](StepPlan& p) { p.work[0].setup.num_prompt_tokens = 2; },
      [](StepPlan& p) { p.work[0].setup.token_ids = {1, 2, 3, 0}; },
      [](StepPlan& p) { p.work[0].setup.sampling.temperature = 0.5f; },
      [](StepPlan& p) { p.work[0].setup.sampling.top_k = 3; },
      [](StepPlan& p) { p.work[0].setup.sampling.top_p = 0.5f; },
      [](StepPlan& p) { p.work[0].setup.sampling.min_p = 0.5f; },
      [](StepPlan& p) { p.work[0].setup.sampling.repetition_penalty = 0.5f; },
      [](StepPlan& p) { p.work[0].setup.sampling.presence_penalty = 0.5f; },
      [](StepPlan& p) { p.work[0].setup.sampling.frequency_penalty = 0.5f; },
      [](StepPlan& p) { p.work[0].setup.sampling.logit_bias[0].first = 6; },
      [](StepPlan& p) { p.work[0].setup.sampling.logit_bias[0].second = 2.0f; },
      [](StepPlan& p) { p.work[0].setup.sampling.num_top_logprobs = 2; },
      [](StepPlan& p) { p.work[0].setup.sampling.wants_logprob = true; },
  };
  std::set<uint64_t> hashes;
  for (const Change& change : changes) {
    StepPlan plan = SomePlan();
    change(plan);
    hashes.insert(PlanHash(plan));
    EXPECT_EQ(PlanHash(plan), PlanHash(StepPlan(plan)));
  }
  EXPECT_EQ(hashes.size(), changes.size());
}

TEST(CheckPlan, CountsRowsOfEachGroup) {
  StepPlan plan;
  plan.work = {{.dp_rank = 0, .num_tokens = 5}, {.dp_rank = 1, .num_tokens = 4}, {.dp_rank = 1, .num_tokens = 4}};
  EXPECT_TRUE(CheckPlan(plan, 2, 8).ok());
  EXPECT_THAT(std::string(CheckPlan(plan, 2, 7).message()), HasSubstr("8 rows for data-parallel group 1"));
  EXPECT_THAT(std::string(CheckPlan(plan, 1, 100).message()), HasSubstr("data-parallel group 1; there are 1"));
}

TEST(BatchInput, CutsASequenceIntoPromptAndGeneratedRows) {
  SlotTable slots({.max_num_seqs = 4, .block_size = 4, .num_blocks = 20, .max_model_len = 100, .vocab_size = 50});
  // Recomputation after a preemption: a prompt of 6 tokens and 3 that were generated, in scattered blocks.
  SequenceWork recomputed = {
      .slot = 1, .dp_rank = 1, .has_setup = true, .num_tokens = 9, .new_block_ids = {9, 3, 5}, .samples = true};
  recomputed.setup = {.num_prompt_tokens = 6, .token_ids = {10, 11, 12, 13, 14, 15, 16, 17, 18}};
  SequenceWork broken = {.slot = 2, .dp_rank = 1, .num_tokens = 1};
  SequenceWork elsewhere = recomputed;
  elsewhere.dp_rank = 0;
  SequenceWork behind = {
      .slot = 3, .dp_rank = 1, .has_setup = true, .first_position = 4, .num_tokens = 1, .new_block_ids = {7, 8}};
  behind.setup = {.num_prompt_tokens = 5, .token_ids = {1, 2, 3, 4, 5}};
  const StepPlan plan = {.work = {elsewhere, recomputed, broken, behind}};

  BatchInput input(4);
  input.Build(plan, 1, slots);
  const kernels::BatchLayout layout = input.layout();
  EXPECT_THAT(layout.token_ids, ElementsAre(10, 11, 12, 13, 14, 15, 16, 17, 18, 5));
  EXPECT_THAT(layout.positions, ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 4));
  EXPECT_THAT(layout.slot_mapping, ElementsAre(36, 37, 38, 39, 12, 13, 14, 15, 20, 32));
  EXPECT_THAT(layout.block_tables, ElementsAre(9, 3, 5, 7, 8));
  EXPECT_THAT(layout.sample_rows, ElementsAre(8));
  ASSERT_EQ(layout.sequences.size(), 2u);
  EXPECT_EQ(layout.sequences[0].num_prompt_rows, 6);
  EXPECT_EQ(layout.sequences[0].num_generated_rows, 3);
  EXPECT_EQ(layout.sequences[0].num_blocks, 3);
  EXPECT_EQ(layout.sequences[1].first_row, 9);
  EXPECT_EQ(layout.sequences[1].first_position, 4);
  EXPECT_EQ(layout.sequences[1].num_prompt_rows, 1);
  EXPECT_EQ(layout.sequences[1].block_table_begin, 3);
  ASSERT_EQ(input.sequences().size(), 3u);
  EXPECT_THAT(input.sequences()[1].error, HasSubstr("holds no sequence"));
}

}  // namespace
}  // namespace weir::worker
