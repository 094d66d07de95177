#include "tools/sim/policy_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace weir::sim {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string ErrorOf(const std::string& text) { return std::string(ParsePolicyFile(text).status().message()); }

TEST(PolicyFileTest, WhatIsNotSaidStaysAtItsDefault) {
  const auto file = ParsePolicyFile("limits:\n  block_size: 16\nmax_preemptions: 1\n");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ(file->limits.block_size, 16);
  EXPECT_EQ(file->limits.max_num_seqs, scheduler::Limits().max_num_seqs);
  EXPECT_EQ(file->policy.max_preemptions, 1);
  EXPECT_EQ(file->tenant_names.size(), 20U);
  EXPECT_TRUE(ParsePolicyFile("").ok());
}

TEST(PolicyFileTest, ATreeOfTenantsByName) {
  const auto file = ParsePolicyFile(
      "tenants:\n  - {name: north, weight: 2}\n  - {name: north/police, parent: north}\n  - {name: south}\n");
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT(file->tenant_names, ElementsAre("north", "north/police", "south"));
  EXPECT_EQ(file->policy.tenants[1].parent, 0);
  EXPECT_EQ(file->policy.tenants[0].weight, 2);
  EXPECT_THAT(file->leaves(), ElementsAre(1, 2));
}

TEST(PolicyFileTest, WhatIsPrintedIsReadBackTheSame) {
  const auto file = ParsePolicyFile(
      "min_class_share: {batch: 0.125}\nstep_cost: {fixed_us: 123.5}\nblocks_per_dp_group: 99\n"
      "tenants:\n  - {name: a, weight: 0.25}\n  - {name: b, parent: a, max_num_waiting: 7}\n");
  ASSERT_TRUE(file.ok()) << file.status();
  const std::string text = PrintPolicyFile(*file);
  const auto again = ParsePolicyFile(text);
  ASSERT_TRUE(again.ok()) << again.status() << text;
  EXPECT_EQ(PrintPolicyFile(*again), text);
  EXPECT_EQ(again->policy.min_class_share[2], 0.125);
  EXPECT_EQ(again->policy.step_cost.fixed_us, 123.5);
}

TEST(PolicyFileTest, AnUnknownKeyNamesTheNearest) {
  EXPECT_THAT(ErrorOf("limits: {max_num_seq: 3}"), HasSubstr("did you mean 'max_num_seqs'?"));
  EXPECT_THAT(ErrorOf("\n\nblock_per_dp_group: 3"),
              HasSubstr("line 3: block_per_dp_group is not a known key; did you mean 'blocks_per_dp_group'"));
  EXPECT_THAT(ErrorOf("tenants: [{name: a, wieght: 2}]"),
              HasSubstr("tenants[0].wieght is not a known key; did you mean 'weight'"));
}

TEST(PolicyFileTest, WrongValuesSayWhatIsExpected) {
  EXPECT_THAT(ErrorOf("limits: {block_size: none}"),
              HasSubstr("limits.block_size must be an integer from 1 to 65536, not 'none'"));
  EXPECT_THAT(ErrorOf("limits: {block_size: 1.5}"), HasSubstr("an integer"));
  EXPECT_THAT(ErrorOf("limits: {block_size: .nan}"), HasSubstr("an integer"));
  EXPECT_THAT(ErrorOf("limits: 7"), HasSubstr("limits must be a map"));
  EXPECT_THAT(ErrorOf("limits: {max_num_batched_tokens: 8}"), HasSubstr("must be at least limits.max_num_seqs (256)"));
  EXPECT_THAT(ErrorOf("min_class_share: {standard: 0.7, batch: 0.7}"), HasSubstr("more than 1"));
  EXPECT_THAT(ErrorOf("tenants: []"), HasSubstr("at least one"));
  EXPECT_THAT(ErrorOf("tenants: [{name: a}, {name: a}]"), HasSubstr("used twice"));
  EXPECT_THAT(ErrorOf("tenants: [{name: a, parent: b}, {name: b}]"), HasSubstr("not a tenant above it"));
  EXPECT_THAT(ErrorOf("tenants: [{name: a, weight: 0}]"), HasSubstr("weight must be a number"));
  EXPECT_THAT(ErrorOf("tenants: [{weight: 1}]"), HasSubstr("name is missing"));
  EXPECT_THAT(ErrorOf("tenants: [{name: 'a b'}]"), HasSubstr("letters"));
  EXPECT_THAT(ErrorOf("a: [1"), HasSubstr("not valid YAML"));
  EXPECT_THAT(ErrorOf("[1, 2]"), HasSubstr("must be a map"));
}

}  // namespace
}  // namespace weir::sim
