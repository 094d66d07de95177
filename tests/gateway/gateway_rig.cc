#include "tests/gateway/gateway_rig.h"

#include <prometheus/text_serializer.h>
#include <stdlib.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "gateway/models/model_directory.h"
#include "google/rpc/status.pb.h"
#include "tests/gateway/text_samples.h"

namespace weir::gateway {
namespace {

namespace wire = scheduler::v1;

template <typename Detail>
std::optional<Detail> Find(const google::rpc::Status& status) {
  std::optional<Detail> found;
  for (const auto& any : status.details()) {
    if (!any.Is<Detail>()) continue;
    EXPECT_FALSE(found.has_value()) << "a detail comes twice";
    any.UnpackTo(&found.emplace());
  }
  return found;
}

void AddKey(grpc::ClientContext& context, const std::string& key) {
  if (!key.empty()) context.AddMetadata("authorization", "Bearer " + key);
}

}  // namespace

Details DetailsOf(const grpc::Status& status) {
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details())) << status.error_message();
  EXPECT_EQ(details.code(), status.error_code());
  EXPECT_EQ(details.message(), status.error_message());
  auto info = Find<google::rpc::ErrorInfo>(details);
  EXPECT_TRUE(info.has_value()) << "every error has an ErrorInfo";
  EXPECT_EQ(info.value_or(google::rpc::ErrorInfo()).domain(), "weir");
  return {.info = info.value_or(google::rpc::ErrorInfo()),
          .bad_request = Find<google::rpc::BadRequest>(details),
          .quota = Find<google::rpc::QuotaFailure>(details),
          .retry = Find<google::rpc::RetryInfo>(details)};
}

// ---- streams ----

void Heard::TakeDelta(const v1::TextDelta& delta, std::string& text) {
  EXPECT_EQ(delta.first_token_index(), tokens.size());
  text += delta.text();
  tokens.insert(tokens.end(), delta.token_ids().begin(), delta.token_ids().end());
  logprobs.insert(logprobs.end(), delta.logprobs().begin(), delta.logprobs().end());
}

template <typename Response>
void Heard::TakeEvent(const Response& response) {
  ++num_frames;
  EXPECT_FALSE(finished.has_value()) << "something comes after the end";
  EXPECT_EQ(response.has_started(), num_frames == 1) << "a stream begins with `started`, once";
  if (response.has_started()) started = response.started();
  if (response.has_content_delta()) TakeDelta(response.content_delta(), content);
  if (response.has_finished()) finished = response.finished();
}

void Heard::Take(const v1::ChatResponse& response) {
  TakeEvent(response);
  if (response.has_reasoning_delta()) TakeDelta(response.reasoning_delta(), reasoning);
}

void Heard::Take(const v1::GenerateResponse& response) { TakeEvent(response); }

// ---- the rig ----

GatewayTest::GatewayTest() {
  char name[] = "/tmp/weir_gateway_test_XXXXXX";
  directory = mkdtemp(name);
  WriteModel("{}");
}

GatewayTest::~GatewayTest() {
  stub.reset();
  channel.reset();
  gateway.reset();
  schedulers.clear();
  std::filesystem::remove_all(directory);
}

void GatewayTest::WriteModel(const std::string& generation_config) const {
  std::filesystem::copy_file(TestData("byte_tokenizer.json"), directory + "/tokenizer.json",
                             std::filesystem::copy_options::overwrite_existing);
  std::ofstream(directory + "/config.json")
      << R"({"vocab_size": 300, "max_position_embeddings": 2000, "bos_token_id": 0, "eos_token_id": 1})";
  std::ofstream(directory + "/generation_config.json") << generation_config;
}

void GatewayTest::Start(int num_schedulers, const std::function<void(GatewayOptions&)>& change) {
  for (int i = 0; i < num_schedulers; ++i) {
    schedulers.push_back(std::make_unique<FakeScheduler>("unix:" + directory + "/scheduler" + std::to_string(i)));
  }
  StartGateway(change);
  WaitUntil([this] { return gateway->WhyNotReady().empty(); }, "the gateway is ready");
  for (auto& one : schedulers) ASSERT_TRUE(one->NextHello().has_value());
}

void GatewayTest::StartGateway(const std::function<void(GatewayOptions&)>& change) {
  std::vector<std::string> notes;
  auto model = LoadServedModel({.name = "demo", .path = directory}, notes);
  ASSERT_TRUE(model.ok()) << model.status();
  GatewayOptions options;
  options.models.push_back({.model = *std::move(model)});
  for (auto& one : schedulers) options.models[0].schedulers.push_back(one->address());
  options.build = "test";
  options.name = "test-gateway";
  options.listen = "unix:" + directory + "/gateway";
  options.replicas.poll_interval_us = 50'000;
  if (change) change(options);
  registry = std::make_shared<prometheus::Registry>();
  std::string error;
  gateway = GatewayServer::Start(std::move(options), registry, error);
  ASSERT_NE(gateway, nullptr) << error;
  channel = NewChannel();
  stub = v1::InferenceService::NewStub(channel);
}

void GatewayTest::WaitUntil(const std::function<bool()>& condition, const char* what) const {
  for (int i = 0; i < 1000; ++i) {
    if (condition()) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  FAIL() << "waited in vain until " << what;
}

std::shared_ptr<grpc::Channel> GatewayTest::NewChannel() const {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // a client that does not read must not take on ever more
  arguments.SetInt(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 64 << 10);
  return grpc::CreateCustomChannel("unix:" + directory + "/gateway", grpc::InsecureChannelCredentials(), arguments);
}

v1::GenerateRequest GatewayTest::Generate(const std::string& text) {
  v1::GenerateRequest request;
  request.set_model("demo");
  request.set_text(text);
  return request;
}

v1::ChatRequest GatewayTest::Chat(const std::string& text) {
  v1::ChatRequest request;
  request.set_model("demo");
  v1::Message& message = *request.add_messages();
  message.set_role(v1::ROLE_USER);
  message.set_content(text);
  return request;
}

Heard GatewayTest::Run(const v1::GenerateRequest& request, const std::string& key) const {
  grpc::ClientContext context;
  AddKey(context, key);
  const auto reader = stub->Generate(&context, request);
  return Read(*reader);
}

Heard GatewayTest::Read(grpc::ClientReader<v1::GenerateResponse>& reader) const {
  Heard heard;
  v1::GenerateResponse response;
  while (reader.Read(&response)) heard.Take(response);
  heard.status = reader.Finish();
  return heard;
}

Heard GatewayTest::Run(const v1::ChatRequest& request, const std::string& key) const {
  grpc::ClientContext context;
  AddKey(context, key);
  const auto reader = stub->Chat(&context, request);
  Heard heard;
  v1::ChatResponse response;
  while (reader->Read(&response)) heard.Take(response);
  heard.status = reader->Finish();
  return heard;
}

std::vector<uint32_t> GatewayTest::Ids(const std::string& text) {
  static const std::unique_ptr<Tokenizer> tokenizer = ByteTokenizer();
  const auto ids = std::move(tokenizer->EncodeWithAddedTokens(text)).value();
  return {ids.begin(), ids.end()};
}

void GatewayTest::AnswerWith(FakeScheduler& one, const std::vector<uint32_t>& tokens, wire::EndReason reason) const {
  one.OnSubmit([&one, tokens, reason](const wire::Submit& submit) {
    const uint64_t number = submit.stream_request_id();
    one.Admit(number);
    for (uint32_t i = 0; i < tokens.size(); ++i) one.Token(number, i, tokens[i]);
    one.End(number, reason);
  });
}

std::string GatewayTest::Metrics() const { return prometheus::TextSerializer().Serialize(registry->Collect()); }

}  // namespace weir::gateway
