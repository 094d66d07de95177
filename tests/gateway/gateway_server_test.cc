// The gateway as operators see it: keys, health, reflection, draining, metrics, logs.

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>
#include <spdlog/sinks/ostream_sink.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <fstream>
#include <future>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "gateway/identity/key_ring.h"
#include "gateway/service/listen_address.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "tests/gateway/gateway_rig.h"

namespace weir::gateway {
namespace {

namespace wire = scheduler::v1;
namespace health = grpc::health::v1;
using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

class GatewayServerTest : public GatewayTest {
 protected:
  // With a keys file; returns a key of the tenant.
  std::string CreateKeyFor(const NewKey& key) const { return std::move(CreateKey(KeysPath(), key)).value(); }
  std::string KeysPath() const { return directory + "/keys.yaml"; }
  void StartWithKeys() {
    Start(1, [this](GatewayOptions& options) { options.keys = std::move(KeyFile::Open(KeysPath())).value(); });
  }

  grpc::Status Check(const std::string& service, health::HealthCheckResponse& response) const {
    const auto its_stub = health::Health::NewStub(channel);
    grpc::ClientContext context;
    health::HealthCheckRequest request;
    request.set_service(service);
    return its_stub->Check(&context, request, &response);
  }
};

// ---- who calls ----

TEST_F(GatewayServerTest, WithKeysNobodyIsServedWithoutOne) {
  const std::string key = CreateKeyFor({.tenant = "guangdong/foshan"});
  StartWithKeys();
  AnswerWith(scheduler(), Ids("x"));
  for (const std::string& wrong : {std::string(), std::string("weir_00000000_nonsense"), key + "x",
                                   key.substr(0, key.size() - 1), std::string("nonsense")}) {
    const Heard heard = Run(Generate("a"), wrong);
    EXPECT_EQ(heard.status.error_code(), grpc::StatusCode::UNAUTHENTICATED) << wrong;
    EXPECT_EQ(DetailsOf(heard.status).info.reason(), "INVALID_API_KEY");
    v1::ListModelsResponse models;
    grpc::ClientContext context;
    if (!wrong.empty()) context.AddMetadata("authorization", "Bearer " + wrong);
    EXPECT_EQ(stub->ListModels(&context, {}, &models).error_code(), grpc::StatusCode::UNAUTHENTICATED);
    v1::TokenizeResponse ids;
    grpc::ClientContext again;
    EXPECT_EQ(stub->Tokenize(&again, {}, &ids).error_code(), grpc::StatusCode::UNAUTHENTICATED);
  }
  EXPECT_TRUE(Run(Generate("a"), key).status.ok());
}

TEST_F(GatewayServerTest, TheTenantAndItsPriorityComeFromTheKey) {
  const std::string key =
      CreateKeyFor({.tenant = "guangdong/foshan/online-services", .highest_priority = Priority::kBatch});
  StartWithKeys();
  v1::GenerateRequest request = Generate("a");
  request.mutable_options()->set_priority(v1::PRIORITY_INTERACTIVE);
  request.mutable_options()->set_user("root");
  auto heard = std::async(std::launch::async, [&] { return Run(request, key); });
  const auto submit = scheduler().NextSubmit();
  ASSERT_TRUE(submit.has_value());
  EXPECT_THAT(submit->tenant_path(), ElementsAre("guangdong", "foshan", "online-services"));
  EXPECT_EQ(submit->priority(), wire::PRIORITY_CLASS_BATCH);
  scheduler().Admit(submit->stream_request_id());
  scheduler().End(submit->stream_request_id(), wire::END_REASON_LENGTH);
  EXPECT_TRUE(heard.get().status.ok());
}

TEST_F(GatewayServerTest, AKeysBoundOnRequestsAtOnceIsItsOwn) {
  const std::string narrow = CreateKeyFor({.tenant = "a", .max_concurrent_requests = 1});
  const std::string other = CreateKeyFor({.tenant = "a"});
  StartWithKeys();
  auto first = std::async(std::launch::async, [&] { return Run(Generate("a"), narrow); });
  const uint64_t number = scheduler().NextSubmit()->stream_request_id();
  scheduler().Admit(number);
  const Heard second = Run(Generate("a"), narrow);
  EXPECT_EQ(second.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  const Details details = DetailsOf(second.status);
  EXPECT_EQ(details.info.reason(), "TOO_MANY_CONCURRENT_REQUESTS");
  ASSERT_TRUE(details.quota.has_value());
  EXPECT_EQ(details.quota->violations(0).subject(), "tenant:a");
  EXPECT_TRUE(details.retry.has_value());
  AnswerWith(scheduler(), Ids("x"));
  EXPECT_TRUE(Run(Generate("a"), other).status.ok());
  scheduler().End(number, wire::END_REASON_LENGTH);
  EXPECT_TRUE(first.get().status.ok());
  WaitUntil([this] { return gateway->num_requests() == 0; }, "the first has let go");
  EXPECT_TRUE(Run(Generate("a"), narrow).status.ok());
}

TEST_F(GatewayServerTest, TheSameRequestIdOfTwoTenantsIsTwoRequests) {
  const std::string one = CreateKeyFor({.tenant = "one"}), two = CreateKeyFor({.tenant = "two"});
  StartWithKeys();
  v1::GenerateRequest request = Generate("a");
  request.mutable_options()->set_request_id("same");
  auto first = std::async(std::launch::async, [&] { return Run(request, one); });
  auto second = std::async(std::launch::async, [&] { return Run(request, two); });
  for (int i = 0; i < 2; ++i) {
    const auto submit = scheduler().NextSubmit();
    ASSERT_TRUE(submit.has_value());
    scheduler().Admit(submit->stream_request_id());
    scheduler().End(submit->stream_request_id(), wire::END_REASON_LENGTH);
  }
  EXPECT_TRUE(first.get().status.ok());
  EXPECT_TRUE(second.get().status.ok());
}

TEST_F(GatewayServerTest, SeesKeysThatAreMadeAndRevokedWhileItRuns) {
  const std::string old = CreateKeyFor({.tenant = "a"});
  StartWithKeys();
  AnswerWith(scheduler(), Ids("x"));
  const std::string made = CreateKeyFor({.tenant = "b"});
  WaitUntil([&] { return Run(Generate("a"), made).status.ok(); }, "the new key works");
  ASSERT_TRUE(RevokeKey(KeysPath(), old.substr(5, 8)).ok());
  WaitUntil([&] { return !Run(Generate("a"), old).status.ok(); }, "the revoked key does not work");
}

TEST(ListenAddressTest, KnowsWhatOnlyThisMachineCanReach) {
  for (const char* local :
       {"127.0.0.1:7000", "localhost:1", "[::1]:80", "unix:/run/x", "127.1.2.3:0", "ipv4:127.0.0.1:5"}) {
    EXPECT_TRUE(IsLocalAddress(local)) << local;
  }
  for (const char* open : {"0.0.0.0:7000", "[::]:7000", "10.0.0.1:7000", "127.0.0.1.evil.org:80",
                           "localhost.evil.org:1", "127.0.0:1", "gateway:7000", ":7000", "*:7000", "128.0.0.1:1"}) {
    EXPECT_FALSE(IsLocalAddress(open)) << open;
  }
}

// ---- health and reflection ----

TEST_F(GatewayServerTest, HealthFollowsTheReplicas) {
  Start();
  health::HealthCheckResponse response;
  for (const char* service : {"", "weir.v1.InferenceService"}) {
    WaitUntil(
        [&] { return Check(service, response).ok() && response.status() == health::HealthCheckResponse::SERVING; },
        "it serves");
  }
  EXPECT_EQ(Check("no.such.Service", response).error_code(), grpc::StatusCode::NOT_FOUND);
  scheduler().Kill();
  WaitUntil([&] { return Check("", response).ok() && response.status() == health::HealthCheckResponse::NOT_SERVING; },
            "it does not serve");
  EXPECT_THAT(gateway->WhyNotReady(), Not(testing::IsEmpty()));
}

TEST_F(GatewayServerTest, HealthCanBeWatchedAndListed) {
  Start();
  const auto its_stub = health::Health::NewStub(channel);
  grpc::ClientContext context, unknown_context, list_context;
  health::HealthCheckRequest request;
  request.set_service("weir.v1.InferenceService");
  const auto watch = its_stub->Watch(&context, request);
  health::HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  if (response.status() == health::HealthCheckResponse::NOT_SERVING) {
    ASSERT_TRUE(watch->Read(&response));
  }
  EXPECT_EQ(response.status(), health::HealthCheckResponse::SERVING);
  gateway->StartDrain();
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), health::HealthCheckResponse::NOT_SERVING);

  request.set_service("unknown");
  const auto other = its_stub->Watch(&unknown_context, request);
  ASSERT_TRUE(other->Read(&response));
  EXPECT_EQ(response.status(), health::HealthCheckResponse::SERVICE_UNKNOWN);

  health::HealthListResponse list;
  ASSERT_TRUE(its_stub->List(&list_context, {}, &list).ok());
  EXPECT_TRUE(list.statuses().contains("weir.v1.InferenceService"));

  gateway->Stop(500);
  EXPECT_FALSE(watch->Read(&response));
  EXPECT_EQ(watch->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(other->Read(&response));
  other->Finish();
}

// Asks for the list of services: field 7 of a ServerReflectionRequest, an empty text.
TEST_F(GatewayServerTest, ReflectionListsTheServices) {
  Start();
  grpc::GenericStub generic(channel);
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  const auto call =
      generic.PrepareCall(&context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  const auto done = [&] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  call->StartCall(nullptr);
  ASSERT_TRUE(done());
  grpc::Slice slice(std::string("\x3a\x00", 2));
  call->Write(grpc::ByteBuffer(&slice, 1), nullptr);
  ASSERT_TRUE(done());
  grpc::ByteBuffer answer;
  call->Read(&answer, nullptr);
  ASSERT_TRUE(done());
  grpc::Slice bytes;
  ASSERT_TRUE(answer.DumpToSingleSlice(&bytes).ok());
  const std::string text(bytes.begin(), bytes.end());
  EXPECT_THAT(text, HasSubstr("weir.v1.InferenceService"));
  EXPECT_THAT(text, HasSubstr("grpc.health.v1.Health"));
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  done();
}

// ---- the end ----

TEST_F(GatewayServerTest, ADrainLetsStreamsEndAndRefusesWhoComesAfter) {
  Start();
  auto running = std::async(std::launch::async, [&] { return Run(Generate("a")); });
  const uint64_t number = scheduler().NextSubmit()->stream_request_id();
  scheduler().Admit(number);
  scheduler().Token(number, 0, Ids("x")[0]);
  gateway->StartDrain();
  health::HealthCheckResponse response;
  ASSERT_TRUE(Check("", response).ok());
  EXPECT_EQ(response.status(), health::HealthCheckResponse::NOT_SERVING);
  const Heard late = Run(Generate("a"));
  EXPECT_EQ(late.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(DetailsOf(late.status).info.reason(), "DRAINING");
  EXPECT_TRUE(DetailsOf(late.status).retry.has_value());
  WaitUntil([this] { return gateway->num_requests() == 1; }, "the refused call is over");
  scheduler().Token(number, 1, Ids("y")[0]);
  scheduler().End(number, wire::END_REASON_LENGTH);
  const Heard heard = running.get();
  EXPECT_EQ(heard.content, "xy");
  EXPECT_EQ(heard.finished->reason(), v1::FINISH_REASON_LENGTH);
  WaitUntil([this] { return gateway->num_requests() == 0; }, "all have ended");
}

TEST_F(GatewayServerTest, WhatTheDrainCutsShortGetsALastFrame) {
  Start();
  auto running = std::async(std::launch::async, [&] { return Run(Generate("a")); });
  const uint64_t number = scheduler().NextSubmit()->stream_request_id();
  scheduler().Admit(number);
  scheduler().Token(number, 0, Ids("x")[0]);
  auto stop = std::async(std::launch::async, [&] { gateway->Stop(5000); });
  ASSERT_TRUE(scheduler().NextCancel().has_value());
  scheduler().End(number, wire::END_REASON_CANCELLED);
  const Heard heard = running.get();
  stop.get();
  EXPECT_TRUE(heard.status.ok()) << heard.status.error_code() << " " << heard.status.error_message();
  EXPECT_EQ(heard.content, "x");
  ASSERT_TRUE(heard.finished.has_value());
  EXPECT_EQ(heard.finished->error().reason(), "DRAINING");
  EXPECT_TRUE(heard.finished->error().is_retriable());
}

TEST_F(GatewayServerTest, StopsWithCallsInEveryState) {
  Start();
  std::vector<std::future<Heard>> all;
  for (int i = 0; i < 8; ++i) all.push_back(std::async(std::launch::async, [&] { return Run(Generate("a")); }));
  for (int i = 0; i < 4; ++i) {  // some admitted, some waiting, nobody ever answered
    const uint64_t number = scheduler().NextSubmit()->stream_request_id();
    if (i % 2 == 0) scheduler().Admit(number);
  }
  gateway->Stop(100);
  for (auto& one : all) EXPECT_FALSE(one.get().status.ok());
}

// ---- what is kept secret, and what is measured ----

TEST_F(GatewayServerTest, NoTextOfARequestIsInLogsMetricsOrErrors) {
  const std::string canary = "Zq7CanaryText";
  std::ostringstream log;
  const auto former = spdlog::default_logger();
  const auto logger = std::make_shared<spdlog::logger>("test", std::make_shared<spdlog::sinks::ostream_sink_mt>(log));
  logger->set_level(spdlog::level::trace);
  spdlog::set_default_logger(logger);
  Start();
  AnswerWith(scheduler(), Ids(canary));
  EXPECT_EQ(Run(Generate(canary)).content, canary);
  EXPECT_EQ(Run(Chat(canary)).content, canary);
  std::vector<grpc::Status> errors;
  v1::ChatRequest request = Chat(canary);
  request.mutable_messages(0)->set_tool_call_id(canary);
  request.mutable_messages(0)->add_tool_calls()->set_name(canary);
  v1::Tool& tool = *request.add_tools();
  tool.set_name(canary + "?");
  tool.set_parameters_json_schema(canary);
  request.mutable_options()->set_request_id(canary + "!");
  request.mutable_options()->set_user(canary + std::string(1000, 'x'));
  request.mutable_stop_conditions()->add_stop(canary + std::string(1000, 'x'));
  errors.push_back(Run(request).status);
  v1::GenerateRequest unknown = Generate(canary);
  unknown.set_model(canary);
  errors.push_back(Run(unknown).status);
  errors.push_back(Run(Generate(canary + std::string(3000, 'x'))).status);
  for (const grpc::Status& status : errors) {
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(status.error_message(), Not(HasSubstr(canary)));
    EXPECT_THAT(status.error_details(), Not(HasSubstr(canary)));
  }
  gateway->Stop(0);
  spdlog::set_default_logger(former);
  EXPECT_THAT(log.str(), HasSubstr("prompt tokens"));
  EXPECT_THAT(log.str(), Not(HasSubstr(canary)));
  EXPECT_THAT(Metrics(), HasSubstr("weir_gateway_requests_total"));
  EXPECT_THAT(Metrics(), Not(HasSubstr(canary)));
}

TEST_F(GatewayServerTest, CountsWhatWasServedAndWhatWasNot) {
  Start();
  AnswerWith(scheduler(), Ids("xyz"));
  Run(Generate("ab"));
  v1::GenerateRequest bad = Generate("a");
  bad.mutable_sampling()->set_temperature(-1);
  Run(bad);
  WaitUntil([this] { return gateway->num_requests() == 0; }, "all have ended");
  const std::string metrics = Metrics();
  for (const char* line :
       {R"(weir_gateway_requests_total{api="generate",code="OK",finish_reason="length",tenant="local"} 1)",
        R"(weir_gateway_requests_total{api="generate",code="INVALID_ARGUMENT",finish_reason="none",tenant="local"} 1)",
        R"(weir_gateway_rejected_total{reason="INVALID_PARAMETER",tenant="local"} 1)",
        R"(weir_tokens_total{kind="prompt",tenant="local"} 3)",
        R"(weir_tokens_total{kind="generated",tenant="local"} 3)", "weir_request_ttft_seconds_count 1",
        "weir_inter_token_latency_seconds_count 2", "weir_request_duration_seconds_count 1",
        R"(weir_build_info{version="test"} 1)", "weir_gateway_max_requests 4096"}) {
    EXPECT_THAT(metrics, HasSubstr(line));
  }
}

}  // namespace
}  // namespace weir::gateway
