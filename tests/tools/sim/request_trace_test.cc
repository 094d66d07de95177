#include "tools/sim/request_trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

namespace weir::sim {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr const char* kHeader = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
const std::string kSamples = std::string(WEIR_SOURCE_DIR) + "/tests/sim/testdata/";

std::string ErrorOf(const std::string& text) { return std::string(ParseTrace(text).status().message()); }

TEST(RequestTraceTest, ReadsAzureRowsRelativeToTheFirst) {
  const auto trace =
      ParseTrace(std::string(kHeader) + "2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109\n");
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->requests.size(), 2U);
  EXPECT_EQ(trace->requests[0].arrival_us, 0);
  EXPECT_EQ(trace->requests[1].arrival_us, 4314579);
  EXPECT_EQ(trace->requests[1].num_prompt_tokens, 396);
  EXPECT_EQ(trace->requests[1].num_output_tokens, 109);
  EXPECT_FALSE(trace->has_prefixes);
}

TEST(RequestTraceTest, TimesCrossMidnightAndMonths) {
  const auto trace = ParseTrace(std::string(kHeader) + "2024-02-28 23:59:59,1,1\n2024-03-01 00:00:00,1,1\n");
  ASSERT_TRUE(trace.ok());
  EXPECT_EQ(trace->requests[1].arrival_us, 86401 * int64_t{1000000});  // a leap year
}

TEST(RequestTraceTest, TimesMayHaveADistanceFromUtc) {
  const auto trace = ParseTrace(std::string(kHeader) +
                                "2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 08:00:01.009930+08:00,2399,6\n");
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->requests[1].arrival_us, 1000000);
  EXPECT_EQ(trace->requests[1].num_prompt_tokens, 2399);
  EXPECT_THAT(ErrorOf(std::string(kHeader) + "2024-05-10 00:00:00+0,1,1\n"), HasSubstr("line 2"));
}

TEST(RequestTraceTest, ReadsMooncakeRowsAndTheSharedPrefix) {
  const auto trace = ParseTrace(R"({"timestamp": 5, "input_length": 700, "output_length": 50, "hash_ids": [0, 1]})"
                                "\n"
                                R"({"timestamp": 3, "input_length": 600, "output_length": 40, "hash_ids": [0, 2]})"
                                "\n");
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->requests[0].num_prompt_tokens, 600);  // by arrival
  EXPECT_EQ(trace->requests[1].arrival_us, 2000);
  EXPECT_THAT(trace->requests[1].hash_ids, ElementsAre(0, 1));
  EXPECT_EQ(trace->num_shared_ids, 1);
}

TEST(RequestTraceTest, ReadsTheCommittedSamples) {
  const auto azure = ReadTrace(kSamples + "azure_conversation_sample.csv");
  ASSERT_TRUE(azure.ok()) << azure.status();
  EXPECT_EQ(azure->requests.size(), 200U);
  const auto mooncake = ReadTrace(kSamples + "mooncake_conversation_sample.jsonl", 100);
  ASSERT_TRUE(mooncake.ok()) << mooncake.status();
  EXPECT_EQ(mooncake->requests.size(), 100U);
  EXPECT_EQ(mooncake->num_shared_ids, 1);
}

TEST(RequestTraceTest, ErrorsNameTheLine) {
  EXPECT_THAT(ErrorOf("nonsense"), HasSubstr("line 1"));
  EXPECT_THAT(ErrorOf(std::string(kHeader) + "2023-11-16 18:15:46,374,44\n2023-11-16 18:15:46,-1,44\n"),
              HasSubstr("line 3"));
  EXPECT_THAT(ErrorOf(std::string(kHeader) + "2023-11-16 18:15:46,374\n"), HasSubstr("expected"));
  EXPECT_THAT(ErrorOf(std::string(kHeader) + "2023-11-16 18:15:46,999999999999999999999,1\n"), HasSubstr("line 2"));
  EXPECT_THAT(ErrorOf(kHeader), HasSubstr("no request"));
  EXPECT_THAT(ErrorOf("{\"timestamp\": 1}\n"), HasSubstr("hash_ids"));
  EXPECT_THAT(ErrorOf(R"({"timestamp": 5, "input_length": -7, "output_length": 50, "hash_ids": []})"),
              HasSubstr("line 1"));
  EXPECT_THAT(std::string(ReadTrace("/nowhere/trace.csv").status().message()), HasSubstr("/nowhere/trace.csv"));
}

TEST(RequestTraceTest, TenantsFollowAZipfLawAndConversationsStayTogether) {
  RequestTrace trace;
  trace.num_shared_ids = 1;
  for (uint64_t i = 0; i < 20000; ++i) trace.requests.push_back({0, 10, 10, {0, i / 2}, 0});
  AssignTenants({4, 5, 6, 7}, 1, trace);
  std::map<scheduler::TenantId, int> count;
  for (size_t i = 0; i < trace.requests.size(); i += 2) {
    EXPECT_EQ(trace.requests[i].tenant, trace.requests[i + 1].tenant);
    ++count[trace.requests[i].tenant];
  }
  EXPECT_NEAR(count[4], 10000 * 0.509, 250);  // 1 / (1 + 2^-1.1 + 3^-1.1 + 4^-1.1)
  EXPECT_GT(count[5], count[6]);
  EXPECT_GT(count[6], count[7]);
}

TEST(RequestTraceTest, AnAggressorSendsSoManyTimesAsMuchAndOthersStayAsTheyAre) {
  RequestTrace trace;
  for (int i = 0; i < 100; ++i) trace.requests.push_back({i * 1000, 10, 10, {0, static_cast<uint64_t>(i)}, i % 2});
  trace.num_shared_ids = 1;
  Amplify(1, 5, 1, trace);
  std::map<scheduler::TenantId, int> count;
  for (size_t i = 0; i < trace.requests.size(); ++i) {
    ++count[trace.requests[i].tenant];
    EXPECT_EQ(trace.requests[i].hash_ids[0], 0U);
    if (i > 0) {
      EXPECT_GE(trace.requests[i].arrival_us, trace.requests[i - 1].arrival_us);
    }
  }
  EXPECT_EQ(count[0], 50);
  EXPECT_EQ(count[1], 250);
}

}  // namespace
}  // namespace weir::sim
