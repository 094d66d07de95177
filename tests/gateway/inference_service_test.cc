// The gateway as clients see it: one gateway, schedulers played by the test, real gRPC on both sides.

#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <string>
#include <thread>
#include <vector>

#include "tests/gateway/gateway_rig.h"
#include "tests/gateway/text_samples.h"

namespace weir::gateway {
namespace {

namespace wire = scheduler::v1;
using std::chrono::milliseconds;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

uint64_t Parts(const v1::Timing& timing) {
  return timing.gateway_us() + timing.queued_for_share_us() + timing.queued_for_blocks_us() +
         timing.queued_for_slots_us() + timing.queued_for_workers_us() + timing.prefill_us() + timing.decode_us() +
         timing.preempted_us() + timing.recovering_us() + timing.network_us();
}

using InferenceServiceTest = GatewayTest;

// ---- streams ----

TEST_F(InferenceServiceTest, StreamsAChatFromStartedToFinished) {
  Start();
  scheduler().OnSubmit([this](const wire::Submit& submit) {
    const uint64_t number = submit.stream_request_id();
    scheduler().Admit(number);
    const auto ids = Ids("Hi!");
    for (uint32_t i = 0; i < ids.size(); ++i) scheduler().Token(number, i, ids[i]);
    scheduler().Token(number, 3, 1);
    wire::StepOutput output;
    wire::RequestEnd& end = *output.add_ends();
    end.set_stream_request_id(number);
    end.set_reason(wire::END_REASON_STOP);
    end.set_num_cached_tokens(2);
    end.mutable_wait()->set_queued_for_blocks_us(3);
    end.mutable_wait()->set_prefill_us(20);
    end.mutable_wait()->set_decode_us(10);
    scheduler().Send(output);
  });
  const auto began = std::chrono::steady_clock::now();
  const Heard heard = Run(Chat("Hello"));
  const auto wall_us = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - began);
  ASSERT_TRUE(heard.status.ok()) << heard.status.error_message();
  ASSERT_TRUE(heard.started && heard.finished);
  EXPECT_EQ(heard.started->model(), "demo");
  EXPECT_EQ(heard.started->request_id().size(), 32u);
  EXPECT_EQ(heard.started->num_prompt_tokens(), 9u);  // begin, user, five letters, assistant, end of thinking
  EXPECT_EQ(heard.content, "Hi!");
  EXPECT_EQ(heard.tokens.size(), 4u);
  EXPECT_EQ(heard.finished->reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(heard.finished->usage().prompt_tokens(), 9u);
  EXPECT_EQ(heard.finished->usage().cached_tokens(), 2u);
  EXPECT_EQ(heard.finished->usage().completion_tokens(), 4u);
  EXPECT_EQ(heard.finished->usage().reasoning_tokens(), 0u);
  const v1::Timing& timing = heard.finished->timing();
  EXPECT_EQ(Parts(timing), timing.total_us());
  EXPECT_LE(timing.total_us(), static_cast<uint64_t>(wall_us.count()));
  EXPECT_EQ(timing.prefill_us(), 20u);
  EXPECT_EQ(timing.queued_for_blocks_us(), 3u);
  EXPECT_TRUE(timing.has_time_to_first_token_us());
  EXPECT_LE(timing.time_to_first_token_us(), timing.total_us());
}

TEST_F(InferenceServiceTest, SendsTheReplicaWhatTheClientAskedFor) {
  Start();
  v1::GenerateRequest request = Generate("ab");
  request.mutable_sampling()->set_temperature(0.5f);
  request.mutable_sampling()->set_top_p(0.9f);
  request.mutable_sampling()->set_top_k(7);
  request.mutable_sampling()->set_seed(42);
  (*request.mutable_sampling()->mutable_logit_bias())[5] = -2;
  request.mutable_stop_conditions()->set_max_tokens(11);
  request.mutable_stop_conditions()->set_min_tokens(2);
  request.mutable_stop_conditions()->add_stop_token_ids(77);
  request.mutable_options()->set_request_id("mine");
  request.mutable_options()->set_priority(v1::PRIORITY_BATCH);
  request.mutable_options()->set_logprobs(true);
  request.mutable_options()->set_top_logprobs(3);
  auto heard = std::async(std::launch::async, [&] { return Run(request); });
  const auto submit = scheduler().NextSubmit();
  ASSERT_TRUE(submit.has_value());
  EXPECT_EQ(submit->request_id(), "mine");
  EXPECT_THAT(submit->tenant_path(), ElementsAre("local"));
  EXPECT_EQ(submit->priority(), wire::PRIORITY_CLASS_BATCH);
  EXPECT_FALSE(submit->has_deadline_ms());
  EXPECT_THAT(submit->prompt_token_ids(), ElementsAre(0, Ids("a")[0], Ids("b")[0]));
  EXPECT_TRUE(submit->resumed_token_ids().empty());
  EXPECT_EQ(submit->max_tokens(), 11u);
  EXPECT_EQ(submit->min_tokens(), 2u);
  EXPECT_THAT(submit->stop_token_ids(), ElementsAre(1, 77));
  EXPECT_FLOAT_EQ(submit->sampling().temperature(), 0.5f);
  EXPECT_FLOAT_EQ(submit->sampling().top_p(), 0.9f);
  EXPECT_EQ(submit->sampling().top_k(), 7u);
  EXPECT_EQ(submit->sampling().logit_bias(0).token_id(), 5u);
  EXPECT_TRUE(submit->sampling().wants_logprob());
  EXPECT_EQ(submit->sampling().num_top_logprobs(), 3u);
  EXPECT_EQ(submit->seed(), 42u);
  EXPECT_TRUE(submit->has_noise_name());
  EXPECT_EQ(submit->noise_name(), 0u) << "the seed alone decides the noise";
  EXPECT_EQ(submit->cache_namespace_key().size(), 16u);
  scheduler().Admit(submit->stream_request_id());
  scheduler().End(submit->stream_request_id(), wire::END_REASON_LENGTH);
  const Heard all = heard.get();
  EXPECT_EQ(all.started->seed(), 42u);
  EXPECT_EQ(all.started->request_id(), "mine");
  EXPECT_FALSE(all.finished->timing().has_time_to_first_token_us());
}

TEST_F(InferenceServiceTest, TakesDefaultsFromTheModelAndDrawsSeedsThatDiffer) {
  WriteModel(R"({"temperature": 0.25, "top_p": 0.75, "eos_token_id": [1, 2]})");
  Start();
  std::vector<wire::Submit> submits;
  for (int i = 0; i < 2; ++i) {
    auto heard = std::async(std::launch::async, [&] { return Run(Generate("a")); });
    submits.push_back(*scheduler().NextSubmit());
    scheduler().Admit(submits.back().stream_request_id());
    scheduler().End(submits.back().stream_request_id(), wire::END_REASON_LENGTH);
    EXPECT_EQ(heard.get().started->seed(), submits.back().seed());
  }
  EXPECT_FLOAT_EQ(submits[0].sampling().temperature(), 0.25f);
  EXPECT_FLOAT_EQ(submits[0].sampling().top_p(), 0.75f);
  EXPECT_THAT(submits[0].stop_token_ids(), ElementsAre(1, 2));
  EXPECT_EQ(submits[0].max_tokens(), 1998u);
  EXPECT_NE(submits[0].seed(), submits[1].seed());
  EXPECT_NE(submits[0].request_id(), submits[1].request_id());
}

TEST_F(InferenceServiceTest, StreamsReasoningApart) {
  Start();
  AnswerWith(scheduler(), Ids("hm</think>ok"));
  v1::ChatRequest request = Chat("Hello");
  request.set_thinking(true);
  const Heard heard = Run(request);
  EXPECT_EQ(heard.reasoning, "hm");
  EXPECT_EQ(heard.content, "ok");
  EXPECT_EQ(heard.finished->usage().reasoning_tokens(), 3u);
  EXPECT_EQ(heard.finished->reason(), v1::FINISH_REASON_LENGTH);
}

TEST_F(InferenceServiceTest, AnAnswerInToolCallsSaysSo) {
  Start();
  AnswerWith(
      scheduler(),
      Ids("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\":1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"),
      wire::END_REASON_STOP);
  grpc::ClientContext context;
  const auto reader = stub->Chat(&context, Chat("call f"));
  v1::ChatResponse response;
  std::string name, id, arguments;
  while (reader->Read(&response)) {
    name += response.tool_call_delta().name();
    id += response.tool_call_delta().id();
    arguments += response.tool_call_delta().arguments_delta();
  }
  EXPECT_EQ(name, "f");
  EXPECT_THAT(id, testing::StartsWith("call_"));
  EXPECT_EQ(arguments, "{\"a\":1}");
  EXPECT_EQ(response.finished().reason(), v1::FINISH_REASON_TOOL_CALLS);
}

TEST_F(InferenceServiceTest, ReportsLogprobsWithTheBytesOfAlternatives) {
  Start();
  scheduler().OnSubmit([this](const wire::Submit& submit) {
    wire::StepOutput output;
    output.add_admitted(submit.stream_request_id());
    wire::TokenOutput& token = *output.add_tokens();
    token.set_stream_request_id(submit.stream_request_id());
    token.mutable_token()->set_token_id(Ids("x")[0]);
    token.mutable_token()->set_logprob(-0.5f);
    auto& top = *token.mutable_token()->add_top();
    top.set_token_id(Ids("y")[0]);
    top.set_logprob(-0.25f);
    auto& end = *output.add_ends();
    end.set_stream_request_id(submit.stream_request_id());
    end.set_reason(wire::END_REASON_LENGTH);
    scheduler().Send(output);
  });
  v1::GenerateRequest request = Generate("a");
  request.mutable_options()->set_logprobs(true);
  request.mutable_options()->set_top_logprobs(1);
  const Heard heard = Run(request);
  ASSERT_EQ(heard.logprobs.size(), 1u);
  EXPECT_FLOAT_EQ(heard.logprobs[0].logprob(), -0.5f);
  EXPECT_EQ(heard.logprobs[0].top(0).token_bytes(), "y");
}

TEST_F(InferenceServiceTest, AStopTextEndsTheAnswerAndTheWork) {
  Start();
  v1::GenerateRequest request = Generate("a");
  request.mutable_stop_conditions()->add_stop("END");
  auto future = std::async(std::launch::async, [&] { return Run(request); });
  const uint64_t number = scheduler().NextSubmit()->stream_request_id();
  scheduler().Admit(number);
  const auto ids = Ids("so EN END");
  for (uint32_t i = 0; i < ids.size(); ++i) scheduler().Token(number, i, ids[i]);
  const auto cancel = scheduler().NextCancel();
  ASSERT_TRUE(cancel.has_value());
  EXPECT_EQ(cancel->stream_request_id(), number);
  EXPECT_TRUE(cancel->is_stop());
  scheduler().Token(number, static_cast<uint32_t>(ids.size()), Ids("!")[0]);  // was on its way
  scheduler().End(number, wire::END_REASON_STOP);
  const Heard heard = future.get();
  EXPECT_EQ(heard.content, "so EN ");
  EXPECT_EQ(heard.finished->reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(heard.finished->usage().completion_tokens(), ids.size());
}

TEST_F(InferenceServiceTest, ManyStreamsAtOnceEachGetTheirOwnText) {
  Start();
  scheduler().OnSubmit([this](const wire::Submit& submit) {
    const uint64_t number = submit.stream_request_id();
    scheduler().Admit(number);
    for (uint32_t i = 0; i < submit.max_tokens(); ++i) {
      scheduler().Token(number, i, static_cast<uint32_t>((submit.seed() * 7 + i * 13) % 299 + 2) % 259);
    }
    scheduler().End(number, wire::END_REASON_LENGTH);
  });
  const auto tokenizer = ByteTokenizer();
  std::vector<std::future<Heard>> all;
  for (uint64_t seed = 0; seed < 64; ++seed) {
    v1::GenerateRequest request = Generate("a");
    request.mutable_sampling()->set_seed(seed);
    request.mutable_stop_conditions()->set_max_tokens(5 + seed % 40);
    request.mutable_stop_conditions()->set_ignore_eos(true);
    all.push_back(std::async(std::launch::async, [this, request] { return Run(request); }));
  }
  for (uint64_t seed = 0; seed < 64; ++seed) {
    const Heard heard = all[seed].get();
    ASSERT_TRUE(heard.status.ok()) << heard.status.error_message();
    std::vector<TokenId> expected;
    for (uint32_t i = 0; i < 5 + seed % 40; ++i) {
      expected.push_back(static_cast<TokenId>((seed * 7 + i * 13) % 299 + 2) % 259);
    }
    EXPECT_EQ(std::vector<TokenId>(heard.tokens.begin(), heard.tokens.end()), expected);
    EXPECT_EQ(heard.content, tokenizer->Decode(expected));
    EXPECT_EQ(Parts(heard.finished->timing()), heard.finished->timing().total_us());
  }
}

// ---- refusals ----

TEST_F(InferenceServiceTest, NamesEveryBadField) {
  Start();
  v1::ChatRequest request = Chat("Hello");
  request.mutable_sampling()->set_temperature(3);
  request.mutable_messages(0)->set_role(v1::ROLE_UNSPECIFIED);
  const Heard heard = Run(request);
  EXPECT_EQ(heard.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const Details details = DetailsOf(heard.status);
  EXPECT_EQ(details.info.reason(), "INVALID_PARAMETER");
  ASSERT_TRUE(details.bad_request.has_value());
  std::vector<std::string> fields;
  for (const auto& violation : details.bad_request->field_violations()) fields.push_back(violation.field());
  EXPECT_THAT(fields, testing::UnorderedElementsAre("messages[0].role", "sampling.temperature"));
  EXPECT_FALSE(scheduler().HasSubmit());
}

TEST_F(InferenceServiceTest, SaysBothCountsWhenThePromptIsTooLong) {
  Start();
  const Heard heard = Run(Generate(std::string(3000, 'a')));
  EXPECT_EQ(heard.status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  const Details details = DetailsOf(heard.status);
  EXPECT_EQ(details.info.reason(), "CONTEXT_LENGTH_EXCEEDED");
  EXPECT_EQ(details.info.metadata().at("prompt_tokens"), "3001");
  EXPECT_EQ(details.info.metadata().at("max_model_len"), "2000");
  EXPECT_FALSE(details.retry.has_value());
}

TEST_F(InferenceServiceTest, KeepsToTheContextOfTheReplicaWhenItIsShorter) {
  Start();
  wire::Replica replica = FakeScheduler::Ready();
  replica.set_max_model_len(100);
  scheduler().SetReplica(replica);
  v1::GetModelRequest question;
  question.set_model("demo");
  v1::GetModelResponse answer;
  WaitUntil(
      [&] {
        grpc::ClientContext context;
        return stub->GetModel(&context, question, &answer).ok() && answer.model().max_model_len() == 100;
      },
      "the gateway has heard of the shorter context");
  EXPECT_EQ(DetailsOf(Run(Generate(std::string(150, 'a'))).status).info.reason(), "CONTEXT_LENGTH_EXCEEDED");
  auto heard = std::async(std::launch::async, [&] { return Run(Generate("a")); });
  const auto submit = scheduler().NextSubmit();
  EXPECT_EQ(submit->max_tokens(), 98u);
  scheduler().End(submit->stream_request_id(), wire::END_REASON_CANCELLED);
  heard.get();
}

TEST_F(InferenceServiceTest, UnknownModelsAreNotFound) {
  Start();
  v1::GenerateRequest request = Generate("a");
  request.set_model("other");
  const Heard heard = Run(request);
  EXPECT_EQ(heard.status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(DetailsOf(heard.status).info.reason(), "MODEL_NOT_FOUND");
  EXPECT_THAT(heard.status.error_message(), HasSubstr("demo"));
}

TEST_F(InferenceServiceTest, WithoutAReplicaSaysWhenToComeBack) {
  StartGateway([](GatewayOptions& options) { options.models[0].schedulers = {"unix:/nowhere/at/all"}; });
  const Heard heard = Run(Generate("a"));
  EXPECT_EQ(heard.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  const Details details = DetailsOf(heard.status);
  EXPECT_EQ(details.info.reason(), "NO_REPLICA");
  EXPECT_TRUE(details.retry.has_value());
  EXPECT_THAT(heard.status.error_message(), Not(HasSubstr("nowhere"))) << "addresses are none of the client's business";
}

TEST_F(InferenceServiceTest, MessagesBeyondTheBoundAreRefusedWithBothSizes) {
  Start();
  const grpc::Status status = Run(Generate(std::string(9 << 20, 'a'))).status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const Details details = DetailsOf(status);
  EXPECT_EQ(details.info.reason(), "MESSAGE_TOO_LARGE");
  EXPECT_EQ(details.info.metadata().at("limit"), "8388608");
  ASSERT_TRUE(details.bad_request.has_value());
  EXPECT_THAT(details.bad_request->field_violations(0).description(), HasSubstr("at most 8388608 are allowed"));
  EXPECT_FALSE(details.retry.has_value()) << "it will not get smaller";
  EXPECT_THAT(Metrics(), HasSubstr(R"(weir_gateway_rejected_total{reason="MESSAGE_TOO_LARGE",tenant="local"} 1)"));
}

TEST_F(InferenceServiceTest, WhatIsFarBeyondTheBoundIsNotEvenReceived) {
  Start();
  const grpc::Status status = Run(Generate(std::string(17 << 20, 'a'))).status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("larger than max"));
}

// A call whose message is these bytes, or nothing at all.
grpc::Status CallWith(const std::shared_ptr<grpc::Channel>& channel, const std::string& method,
                      const std::optional<std::string>& bytes) {
  grpc::GenericStub generic(channel);
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
  grpc::CompletionQueue queue;
  const auto call = generic.PrepareCall(&context, "/weir.v1.InferenceService/" + method, &queue);
  void* tag = nullptr;
  bool ok = false;
  call->StartCall(nullptr);
  queue.Next(&tag, &ok);
  if (bytes) {
    const grpc::Slice slice(*bytes);
    call->WriteLast(grpc::ByteBuffer(&slice, 1), {}, nullptr);
  } else {
    call->WritesDone(nullptr);
  }
  queue.Next(&tag, &ok);
  grpc::Status status;
  call->Finish(&status, nullptr);
  queue.Next(&tag, &ok);
  return status;
}

TEST_F(InferenceServiceTest, BytesThatAreNoMessageAreRefusedByEveryMethod) {
  Start();
  for (const char* method : {"Chat", "Generate", "Tokenize", "Detokenize", "ListModels", "GetModel"}) {
    const grpc::Status status = CallWith(channel, method, "\x0a\x50short");
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << method;
    const Details details = DetailsOf(status);
    EXPECT_EQ(details.info.reason(), "MALFORMED_MESSAGE") << method;
    ASSERT_TRUE(details.bad_request.has_value()) << method;
    EXPECT_THAT(details.bad_request->field_violations(0).description(),
                HasSubstr("80 bytes long, but only 5 are left"));
    EXPECT_THAT(status.error_message(), HasSubstr("weir.v1." + std::string(method) + "Request"));
  }
  EXPECT_THAT(Metrics(), HasSubstr(R"(weir_gateway_rejected_total{reason="MALFORMED_MESSAGE",tenant="local"} 2)"))
      << "of the streams, as other refusals";
}

TEST_F(InferenceServiceTest, ACallWithoutAMessageEnds) {
  Start();
  for (const char* method : {"Chat", "Tokenize"}) {
    EXPECT_FALSE(CallWith(channel, method, std::nullopt).ok()) << method;
  }
  AnswerWith(scheduler(), Ids("x"));
  EXPECT_TRUE(Run(Generate("a")).status.ok());
}

TEST_F(InferenceServiceTest, TextThatIsNotUtf8IsNamed) {
  Start();
  // messages { role: USER content: "ok" } messages { content: "\377" }
  const std::string bytes("\x12\x06\x08\x02\x12\x02ok\x12\x03\x12\x01\xff", 13);
  const Details details = DetailsOf(CallWith(channel, "Chat", bytes));
  ASSERT_TRUE(details.bad_request.has_value());
  EXPECT_EQ(details.bad_request->field_violations(0).field(), "messages[1].content");
  EXPECT_THAT(details.bad_request->field_violations(0).description(), HasSubstr("is not valid UTF-8"));
}

struct RefusalCase {
  wire::RefusalReason reason;
  grpc::StatusCode code;
  std::string expected;
  bool is_retriable = false;
  bool is_quota = false;
};

TEST_F(InferenceServiceTest, EveryRefusalOfAReplicaHasItsStatus) {
  using grpc::StatusCode;
  Start();
  const std::vector<RefusalCase> cases = {
      {wire::REFUSAL_REASON_INVALID, StatusCode::INVALID_ARGUMENT, "INVALID_PARAMETER"},
      {wire::REFUSAL_REASON_TOO_LONG, StatusCode::FAILED_PRECONDITION, "CONTEXT_LENGTH_EXCEEDED"},
      {wire::REFUSAL_REASON_NEVER_FITS, StatusCode::FAILED_PRECONDITION, "NEVER_FITS"},
      {wire::REFUSAL_REASON_QUEUE_FULL, StatusCode::RESOURCE_EXHAUSTED, "OVERLOADED", true},
      {wire::REFUSAL_REASON_TENANT_QUEUE_FULL, StatusCode::RESOURCE_EXHAUSTED, "TENANT_QUEUE_FULL", true, true},
      {wire::REFUSAL_REASON_DEADLINE, StatusCode::DEADLINE_EXCEEDED, "DEADLINE_INFEASIBLE"},
      {wire::REFUSAL_REASON_DRAINING, StatusCode::UNAVAILABLE, "DRAINING", true},
      {wire::REFUSAL_REASON_NO_WORKERS, StatusCode::UNAVAILABLE, "NO_WORKERS", true},
  };
  for (const RefusalCase& one : cases) {
    scheduler().OnSubmit([this, one](const wire::Submit& submit) {
      wire::StepOutput output;
      wire::RequestEnd& end = *output.add_ends();
      end.set_stream_request_id(submit.stream_request_id());
      end.set_reason(wire::END_REASON_REFUSED);
      end.mutable_refusal()->set_reason(one.reason);
      end.mutable_refusal()->set_needed(12);
      end.mutable_refusal()->set_limit(7);
      end.mutable_refusal()->set_retry_after_ms(2500);
      scheduler().Send(output);
    });
    const Heard heard = Run(Generate("a"));
    EXPECT_EQ(heard.status.error_code(), one.code) << one.expected;
    EXPECT_FALSE(heard.started.has_value());
    const Details details = DetailsOf(heard.status);
    EXPECT_EQ(details.info.reason(), one.expected);
    EXPECT_EQ(details.retry.has_value(), one.is_retriable) << one.expected;
    EXPECT_EQ(details.quota.has_value(), one.is_quota) << one.expected;
    if (one.reason == wire::REFUSAL_REASON_QUEUE_FULL) {
      EXPECT_EQ(details.retry->retry_delay().seconds(), 2);
      EXPECT_EQ(details.retry->retry_delay().nanos(), 500'000'000);
    }
    if (one.is_quota) {
      EXPECT_EQ(details.quota->violations(0).subject(), "tenant:local");
    }
    if (one.reason == wire::REFUSAL_REASON_TOO_LONG) {
      EXPECT_THAT(heard.status.error_message(), testing::AllOf(HasSubstr("12"), HasSubstr("7")));
    }
  }
}

TEST_F(InferenceServiceTest, EveryEndOfAStreamHasItsReason) {
  struct Case {
    wire::EndReason reason;
    v1::FinishReason expected;
    std::string error;
    bool is_retriable = false;
  };
  const std::vector<Case> cases = {
      {wire::END_REASON_STOP, v1::FINISH_REASON_STOP, ""},
      {wire::END_REASON_LENGTH, v1::FINISH_REASON_LENGTH, ""},
      {wire::END_REASON_CANCELLED, v1::FINISH_REASON_CANCELLED, ""},
      {wire::END_REASON_DEADLINE, v1::FINISH_REASON_DEADLINE, ""},
      {wire::END_REASON_NOT_FINITE, v1::FINISH_REASON_ERROR, "NOT_FINITE", true},
      {wire::END_REASON_FAILED, v1::FINISH_REASON_ERROR, "REQUEST_FAILED"},
      {wire::END_REASON_QUARANTINED, v1::FINISH_REASON_ERROR, "QUARANTINED"},
  };
  Start();
  for (const Case& one : cases) {
    AnswerWith(scheduler(), Ids("ab"), one.reason);
    const Heard heard = Run(Generate("a"));
    EXPECT_TRUE(heard.status.ok());
    ASSERT_TRUE(heard.finished.has_value());
    EXPECT_EQ(heard.content, "ab");
    EXPECT_EQ(heard.finished->reason(), one.expected);
    EXPECT_EQ(heard.finished->has_error(), !one.error.empty());
    EXPECT_EQ(heard.finished->error().reason(), one.error);
    EXPECT_EQ(heard.finished->error().is_retriable(), one.is_retriable) << one.error;
    EXPECT_EQ(heard.finished->usage().completion_tokens(), 2u);
  }
}

TEST_F(InferenceServiceTest, TheSameRequestIdTwiceAtOnceIsAClearError) {
  Start();
  v1::GenerateRequest request = Generate("a");
  request.mutable_options()->set_request_id("twice");
  auto first = std::async(std::launch::async, [&] { return Run(request); });
  const uint64_t number = scheduler().NextSubmit()->stream_request_id();
  const Heard second = Run(request);
  EXPECT_EQ(second.status.error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(DetailsOf(second.status).info.reason(), "REQUEST_ID_IN_USE");
  scheduler().Admit(number);
  scheduler().End(number, wire::END_REASON_LENGTH);
  EXPECT_TRUE(first.get().status.ok());
  WaitUntil([this] { return gateway->num_requests() == 0; }, "the first has let go");
  AnswerWith(scheduler(), Ids("b"));
  EXPECT_TRUE(Run(request).status.ok());
}

TEST_F(InferenceServiceTest, BeyondItsRequestsTheServerIsOverloaded) {
  Start(1, [](GatewayOptions& options) { options.desk.max_requests = 1; });
  auto first = std::async(std::launch::async, [&] { return Run(Generate("a")); });
  const uint64_t number = scheduler().NextSubmit()->stream_request_id();
  const Heard second = Run(Generate("a"));
  EXPECT_EQ(second.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailsOf(second.status).info.reason(), "OVERLOADED");
  EXPECT_TRUE(DetailsOf(second.status).retry.has_value());
  scheduler().Admit(number);
  scheduler().End(number, wire::END_REASON_LENGTH);
  EXPECT_TRUE(first.get().status.ok());
}

// ---- deadlines and cancels ----

TEST_F(InferenceServiceTest, TheDeadlineGoesToTheReplicaAndItsEndReachesTheClient) {
  Start();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + milliseconds(5000));
  const auto reader = stub->Generate(&context, Generate("a"));
  const auto submit = scheduler().NextSubmit();
  ASSERT_TRUE(submit.has_value());
  EXPECT_TRUE(submit->has_deadline_ms());
  EXPECT_LT(submit->deadline_ms(), 5000u);
  EXPECT_GT(submit->deadline_ms(), 1000u);
  scheduler().Admit(submit->stream_request_id());
  scheduler().Token(submit->stream_request_id(), 0, Ids("x")[0]);
  scheduler().End(submit->stream_request_id(), wire::END_REASON_DEADLINE);
  const Heard heard = Read(*reader);
  EXPECT_TRUE(heard.status.ok());
  EXPECT_EQ(heard.finished->reason(), v1::FINISH_REASON_DEADLINE);
}

TEST_F(InferenceServiceTest, WhenTheDeadlinePassesTheReplicaIsTold) {
  Start();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + milliseconds(300));
  const auto reader = stub->Generate(&context, Generate("a"));
  const uint64_t number = scheduler().NextSubmit()->stream_request_id();
  scheduler().Admit(number);
  EXPECT_EQ(Read(*reader).status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  const auto cancel = scheduler().NextCancel();
  ASSERT_TRUE(cancel.has_value());
  EXPECT_FALSE(cancel->is_stop());
  scheduler().End(number, wire::END_REASON_CANCELLED);
  WaitUntil([this] { return gateway->num_requests() == 0; }, "the request has let go");
}

TEST_F(InferenceServiceTest, AClientThatCancelsIsCancelledAtTheReplica) {
  Start();
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, Generate("a"));
  const uint64_t number = scheduler().NextSubmit()->stream_request_id();
  scheduler().Admit(number);
  scheduler().Token(number, 0, Ids("x")[0]);
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  context.TryCancel();
  const auto cancel = scheduler().NextCancel();
  ASSERT_TRUE(cancel.has_value());
  EXPECT_EQ(cancel->stream_request_id(), number);
  EXPECT_FALSE(cancel->is_stop());
  EXPECT_EQ(gateway->num_requests(), 1) << "its place is taken until the replica has let go";
  scheduler().Token(number, 1, Ids("y")[0]);
  scheduler().End(number, wire::END_REASON_CANCELLED);
  WaitUntil([this] { return gateway->num_requests() == 0; }, "the request has let go");
  EXPECT_EQ(Read(*reader).status.error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(InferenceServiceTest, AClientWhoseConnectionVanishesIsCancelledAtTheReplica) {
  Start();
  {
    auto doomed = NewChannel();
    auto its_stub = v1::InferenceService::NewStub(doomed);
    grpc::ClientContext context;
    auto reader = its_stub->Generate(&context, Generate("a"));
    scheduler().Admit(scheduler().NextSubmit()->stream_request_id());
    v1::GenerateResponse response;
    ASSERT_TRUE(reader->Read(&response));
    context.TryCancel();
  }
  ASSERT_TRUE(scheduler().NextCancel().has_value());
}

// ---- clients that do not read ----

TEST_F(InferenceServiceTest, AClientThatDoesNotReadIsCancelledAndLaterLearnsWhy) {
  Start(1, [](GatewayOptions& options) { options.desk.max_unread_bytes = 64 << 10; });
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, Generate("a"));
  const uint64_t number = scheduler().NextSubmit()->stream_request_id();
  scheduler().Admit(number);
  std::atomic<bool> is_cancelled{false};
  auto flood = std::async(std::launch::async, [&] {
    uint32_t index = 0;
    for (int after_cancel = 0; after_cancel < 2; after_cancel += is_cancelled ? 1 : 0) {
      wire::StepOutput output;
      for (int i = 0; i < 100; ++i) {
        wire::TokenOutput& token = *output.add_tokens();
        token.set_stream_request_id(number);
        token.set_index(index++);
        token.mutable_token()->set_token_id(Ids("x")[0]);
      }
      scheduler().Send(output);
      std::this_thread::sleep_for(milliseconds(1));
    }
    scheduler().End(number, wire::END_REASON_CANCELLED);
    return index;
  });
  const auto cancel = scheduler().NextCancel();
  is_cancelled = true;
  const uint32_t num_sent = flood.get();
  ASSERT_TRUE(cancel.has_value());
  const Heard heard = Read(*reader);
  EXPECT_TRUE(heard.status.ok());
  ASSERT_TRUE(heard.finished.has_value());
  EXPECT_EQ(heard.finished->error().reason(), "SLOW_READER");
  EXPECT_TRUE(heard.finished->error().is_retriable());
  EXPECT_EQ(heard.tokens.size(), heard.finished->usage().completion_tokens()) << "delivered is what is counted";
  EXPECT_LT(heard.tokens.size(), num_sent);
  EXPECT_THAT(Metrics(), HasSubstr("weir_gateway_slow_readers_total 1"));
}

TEST_F(InferenceServiceTest, AClientThatNeverReadsIsCutOff) {
  Start(1, [](GatewayOptions& options) {
    options.desk.max_unread_bytes = 64 << 10;
    options.desk.slow_reader_timeout_us = 200'000;
  });
  scheduler().OnSubmit([this](const wire::Submit& submit) {
    const uint64_t number = submit.stream_request_id();
    wire::StepOutput output;
    output.add_admitted(number);
    for (uint32_t i = 0; i < 200'000; ++i) {
      wire::TokenOutput& token = *output.add_tokens();
      token.set_stream_request_id(number);
      token.set_index(i);
      token.mutable_token()->set_token_id(Ids("x")[0]);
      if (i % 1000 == 999) {
        scheduler().Send(output);
        output.Clear();
      }
    }
    scheduler().End(number, wire::END_REASON_CANCELLED);
  });
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, Generate("a"));
  WaitUntil([this] { return Metrics().find("weir_gateway_slow_readers_total 1") != std::string::npos; }, "it is seen");
  WaitUntil([this] { return gateway->num_requests() == 0; }, "the call is over");
  context.TryCancel();
  Read(*reader);
}

// ---- replicas that die ----

TEST_F(InferenceServiceTest, AStreamOutlivesItsSchedulerWithTheSameTokens) {
  Start();
  auto future = std::async(std::launch::async, [&] { return Run(Generate("a")); });
  const auto first = scheduler().NextSubmit();
  scheduler().Admit(first->stream_request_id());
  for (uint32_t i = 0; i < 3; ++i) scheduler().Token(first->stream_request_id(), i, Ids("abc")[i]);
  WaitUntil([this] { return Metrics().find("weir_inter_token_latency_seconds_count 2") != std::string::npos; },
            "the tokens have come");
  scheduler().Kill();
  std::this_thread::sleep_for(milliseconds(200));
  scheduler().Restart();
  const auto second = scheduler().NextSubmit();
  ASSERT_TRUE(second.has_value());
  EXPECT_THAT(second->resumed_token_ids(), testing::ElementsAreArray(Ids("abc")));
  EXPECT_EQ(second->seed(), first->seed());
  EXPECT_EQ(second->request_id(), first->request_id());
  EXPECT_THAT(second->prompt_token_ids(), testing::ElementsAreArray(first->prompt_token_ids()));
  scheduler().Admit(second->stream_request_id());
  scheduler().Token(second->stream_request_id(), 3, Ids("d")[0]);
  scheduler().End(second->stream_request_id(), wire::END_REASON_LENGTH);
  const Heard heard = future.get();
  EXPECT_TRUE(heard.status.ok());
  EXPECT_EQ(heard.content, "abcd");
  EXPECT_EQ(heard.finished->reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(Parts(heard.finished->timing()), heard.finished->timing().total_us());
  EXPECT_GE(heard.finished->timing().network_us(), 200'000u);
  EXPECT_THAT(Metrics(), HasSubstr("weir_gateway_replays_total{model=\"demo\"} 1"));
}

TEST_F(InferenceServiceTest, AStreamGoesToAnotherReplicaWhenItsOwnDies) {
  Start(2);
  auto future = std::async(std::launch::async, [&] { return Run(Generate("a")); });
  WaitUntil([this] { return scheduler(0).HasSubmit() || scheduler(1).HasSubmit(); }, "a replica has it");
  const int first = scheduler(0).HasSubmit() ? 0 : 1;
  const uint64_t number = scheduler(first).NextSubmit()->stream_request_id();
  scheduler(first).Admit(number);
  scheduler(first).Token(number, 0, Ids("a")[0]);
  WaitUntil([this] { return Metrics().find("weir_request_ttft_seconds_count 1") != std::string::npos; }, "it began");
  scheduler(first).Kill();
  const auto again = scheduler(1 - first).NextSubmit();
  ASSERT_TRUE(again.has_value());
  EXPECT_THAT(again->resumed_token_ids(), ElementsAre(Ids("a")[0]));
  scheduler(1 - first).Admit(again->stream_request_id());
  scheduler(1 - first).Token(again->stream_request_id(), 1, Ids("b")[0]);
  scheduler(1 - first).End(again->stream_request_id(), wire::END_REASON_LENGTH);
  EXPECT_EQ(future.get().content, "ab");
}

TEST_F(InferenceServiceTest, AStreamThatNobodyTakesOverEndsWithAClearError) {
  Start(1, [](GatewayOptions& options) { options.replicas.recovery_timeout_us = 300'000; });
  auto future = std::async(std::launch::async, [&] { return Run(Generate("a")); });
  const uint64_t number = scheduler().NextSubmit()->stream_request_id();
  scheduler().Admit(number);
  scheduler().Token(number, 0, Ids("a")[0]);
  WaitUntil([this] { return Metrics().find("weir_request_ttft_seconds_count 1") != std::string::npos; }, "it began");
  scheduler().Kill();
  const Heard heard = future.get();
  EXPECT_TRUE(heard.status.ok());
  EXPECT_EQ(heard.content, "a");
  EXPECT_EQ(heard.finished->error().reason(), "REPLICA_LOST");
  EXPECT_TRUE(heard.finished->error().is_retriable());
}

// ---- texts and models ----

TEST_F(InferenceServiceTest, TokenizesAndDetokenizes) {
  Start();
  v1::TokenizeRequest request;
  request.set_model("demo");
  request.set_text("a<think>");
  v1::TokenizeResponse ids;
  grpc::ClientContext first;
  ASSERT_TRUE(stub->Tokenize(&first, request, &ids).ok());
  EXPECT_EQ(ids.token_ids_size(), 8) << "what a person writes is never a control token";

  *request.mutable_chat()->add_messages() = Chat("Hi").messages(0);
  v1::TokenizeResponse chat;
  grpc::ClientContext second;
  ASSERT_TRUE(stub->Tokenize(&second, request, &chat).ok());
  EXPECT_EQ(chat.rendered_text(), "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜></think>");
  EXPECT_EQ(chat.token_ids_size(), 6);

  v1::DetokenizeRequest back;
  back.set_model("demo");
  *back.mutable_token_ids() = chat.token_ids();
  v1::DetokenizeResponse text;
  grpc::ClientContext third;
  ASSERT_TRUE(stub->Detokenize(&third, back, &text).ok());
  EXPECT_EQ(text.text(), chat.rendered_text());
}

TEST_F(InferenceServiceTest, ErrorsOfTextsNameTheFieldAsTheCallerWroteIt) {
  Start();
  v1::TokenizeRequest request;
  request.set_model("demo");
  request.mutable_chat()->add_messages()->set_role(v1::ROLE_USER);
  v1::TokenizeResponse response;
  grpc::ClientContext first;
  const grpc::Status status = stub->Tokenize(&first, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(DetailsOf(status).bad_request->field_violations(0).field(), "chat.messages[0].content");

  v1::DetokenizeRequest back;
  back.set_model("demo");
  back.add_token_ids(5);
  back.add_token_ids(300);
  v1::DetokenizeResponse text;
  grpc::ClientContext second;
  const grpc::Status bad = stub->Detokenize(&second, back, &text);
  EXPECT_EQ(DetailsOf(bad).bad_request->field_violations(0).field(), "token_ids[1]");
}

TEST_F(InferenceServiceTest, TellsItsModels) {
  Start();
  v1::ListModelsResponse list;
  grpc::ClientContext first;
  ASSERT_TRUE(stub->ListModels(&first, {}, &list).ok());
  ASSERT_EQ(list.models_size(), 1);
  const v1::Model& model = list.models(0);
  EXPECT_EQ(model.name(), "demo");
  EXPECT_EQ(model.max_model_len(), 2000u);
  EXPECT_EQ(model.vocab_size(), 300u);
  EXPECT_EQ(model.chat_template(), "deepseek_v31");
  EXPECT_TRUE(model.can_think());
  EXPECT_TRUE(model.is_ready());
  EXPECT_THAT(model.eos_token_ids(), ElementsAre(1));
  v1::GetModelRequest request;
  request.set_model("none");
  v1::GetModelResponse response;
  grpc::ClientContext second;
  EXPECT_EQ(stub->GetModel(&second, request, &response).error_code(), grpc::StatusCode::NOT_FOUND);
}

}  // namespace
}  // namespace weir::gateway
