#pragma once

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <prometheus/registry.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gateway/service/gateway_server.h"
#include "google/rpc/error_details.pb.h"
#include "tests/gateway/fake_scheduler.h"
#include "weir/v1/inference.grpc.pb.h"

// A gateway, schedulers that tests play, and a real gRPC client.

namespace weir::gateway {

// The details of a status.
struct Details {
  google::rpc::ErrorInfo info;
  std::optional<google::rpc::BadRequest> bad_request;
  std::optional<google::rpc::QuotaFailure> quota;
  std::optional<google::rpc::RetryInfo> retry;
};
Details DetailsOf(const grpc::Status& status);

// A stream that has been read to its end.
struct Heard {
  std::optional<v1::Started> started;
  std::string reasoning, content;
  std::vector<uint32_t> tokens;
  std::vector<v1::TokenLogprob> logprobs;
  std::optional<v1::Finished> finished;
  grpc::Status status;
  int num_frames = 0;

  // Checks what holds for every stream: order, one end, no token left out.
  void Take(const v1::ChatResponse& response);
  void Take(const v1::GenerateResponse& response);

 private:
  template <typename Response>
  void TakeEvent(const Response& response);
  void TakeDelta(const v1::TextDelta& delta, std::string& text);
};

class GatewayTest : public testing::Test {
 protected:
  GatewayTest();
  ~GatewayTest() override;

  // Writes the model directory: a tokenizer of bytes (300 ids, end of sequence 1), a context of 2,000 tokens.
  void WriteModel(const std::string& generation_config) const;
  // Starts the gateway with `num_schedulers` and waits until it is ready.
  void Start(int num_schedulers = 1, const std::function<void(GatewayOptions&)>& change = {});
  void StartGateway(const std::function<void(GatewayOptions&)>& change);
  void WaitUntil(const std::function<bool()>& condition, const char* what) const;

  std::shared_ptr<grpc::Channel> NewChannel() const;
  static v1::GenerateRequest Generate(const std::string& text);
  static v1::ChatRequest Chat(const std::string& text);
  Heard Run(const v1::GenerateRequest& request, const std::string& key = "") const;
  Heard Run(const v1::ChatRequest& request, const std::string& key = "") const;
  Heard Read(grpc::ClientReader<v1::GenerateResponse>& reader) const;

  // Token ids of a text.
  static std::vector<uint32_t> Ids(const std::string& text);
  // Answers every request with these tokens and this end.
  void AnswerWith(FakeScheduler& scheduler, const std::vector<uint32_t>& tokens,
                  scheduler::v1::EndReason reason = scheduler::v1::END_REASON_LENGTH) const;
  std::string Metrics() const;

  FakeScheduler& scheduler(int index = 0) { return *schedulers[index]; }

  std::string directory;
  std::vector<std::unique_ptr<FakeScheduler>> schedulers;
  std::shared_ptr<prometheus::Registry> registry;
  std::unique_ptr<GatewayServer> gateway;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::InferenceService::Stub> stub;
};

}  // namespace weir::gateway
