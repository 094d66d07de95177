#include "tests/tools/weir/fake_inference_service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <sstream>
#include <thread>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "weir/v1/inference.grpc.pb.h"

namespace weir::tools {
namespace {

using std::chrono::milliseconds;

grpc::Status Refusal(grpc::StatusCode code, const std::string& message, const google::protobuf::Message& detail) {
  google::rpc::Status details;
  details.set_code(code);
  details.set_message(message);
  details.add_details()->PackFrom(detail);
  return {code, message, details.SerializeAsString()};
}

grpc::Status BadField(const std::string& field, const std::string& description) {
  google::rpc::BadRequest bad;
  auto* violation = bad.add_field_violations();
  violation->set_field(field);
  violation->set_description(description);
  return Refusal(grpc::StatusCode::INVALID_ARGUMENT, "the request is wrong", bad);
}

grpc::Status Overload() {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(1);
  retry.mutable_retry_delay()->set_nanos(500'000'000);
  return Refusal(grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full", retry);
}

std::vector<std::string> Words(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> words;
  for (std::string word; in >> word;) words.push_back(word);
  return words;
}

}  // namespace

class FakeGateway::Service final : public v1::InferenceService::Service {
 public:
  explicit Service(Options options) : options_(std::move(options)) {}

  grpc::Status Chat(grpc::ServerContext* call, const v1::ChatRequest* request,
                    grpc::ServerWriter<v1::ChatResponse>* writer) override {
    if (!IsAllowed(*call)) return Stranger();
    {
      const std::lock_guard lock(mutex_);
      chats_.push_back(*request);
    }
    const std::string& question = request->messages(request->messages_size() - 1).content();
    if (question == "refuse") return BadField("messages[0].content", "is 'refuse'; anything else is allowed");
    if (question == "overload") return Overload();
    v1::ChatResponse event;
    auto* started = event.mutable_started();
    started->set_request_id("r1");
    started->set_model(request->model());
    started->set_seed(request->sampling().has_seed() ? request->sampling().seed() : 17);
    writer->Write(event);
    uint32_t num_tokens = 0;
    event.mutable_reasoning_delta()->set_text("hm. ");
    event.mutable_reasoning_delta()->add_token_ids(num_tokens++);
    writer->Write(event);
    const std::vector<std::string> words = Words("You said: " + question);
    const bool is_slow = std::find(words.begin(), words.end(), "slow") != words.end();
    for (size_t i = 0; i < words.size() || is_slow; ++i) {
      event.mutable_content_delta()->Clear();
      event.mutable_content_delta()->set_text((i == 0 ? "" : " ") + (i < words.size() ? words[i] : "more"));
      event.mutable_content_delta()->add_token_ids(num_tokens++);
      if (is_slow) std::this_thread::sleep_for(milliseconds(10));
      if (!writer->Write(event) || call->IsCancelled()) return Cancelled();
    }
    *event.mutable_finished() = FinishedWith(num_tokens);
    event.mutable_finished()->mutable_usage()->set_reasoning_tokens(1);
    if (question == "break") {
      event.mutable_finished()->set_reason(v1::FINISH_REASON_ERROR);
      event.mutable_finished()->mutable_error()->set_message("a worker was lost");
      event.mutable_finished()->mutable_error()->set_is_retriable(true);
    }
    writer->Write(event);
    return grpc::Status::OK;
  }

  grpc::Status Generate(grpc::ServerContext* call, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateResponse>* writer) override {
    if (!IsAllowed(*call)) return Stranger();
    {
      const std::lock_guard lock(mutex_);
      generations_.push_back(*request);
      max_concurrent_ = std::max(max_concurrent_, ++num_running_);
    }
    const grpc::Status status = Generate(*request, *writer);
    const std::lock_guard lock(mutex_);
    --num_running_;
    return status;
  }

  grpc::Status Tokenize(grpc::ServerContext*, const v1::TokenizeRequest* request,
                        v1::TokenizeResponse* response) override {
    std::string text = request->text();
    for (const v1::Message& message : request->chat().messages()) {
      text += v1::Role_Name(message.role()) + ": " + message.content() + "\n";
    }
    if (request->has_chat()) response->set_rendered_text(text);
    for (const char c : text) response->add_token_ids(static_cast<unsigned char>(c));
    return grpc::Status::OK;
  }

  grpc::Status Detokenize(grpc::ServerContext*, const v1::DetokenizeRequest* request,
                          v1::DetokenizeResponse* response) override {
    for (const uint32_t id : request->token_ids()) response->mutable_text_bytes()->push_back(static_cast<char>(id));
    return grpc::Status::OK;
  }

  grpc::Status ListModels(grpc::ServerContext* call, const v1::ListModelsRequest*,
                          v1::ListModelsResponse* response) override {
    if (!IsAllowed(*call)) return Stranger();
    for (const std::string& name : options_.models) {
      v1::Model& model = *response->add_models();
      model.set_name(name);
      model.set_max_model_len(4096);
      model.set_vocab_size(1000);
      model.set_is_ready(true);
      model.add_eos_token_ids(1);
    }
    return grpc::Status::OK;
  }

  std::vector<v1::ChatRequest> chats() const {
    const std::lock_guard lock(mutex_);
    return chats_;
  }
  std::vector<v1::GenerateRequest> generations() const {
    const std::lock_guard lock(mutex_);
    return generations_;
  }
  int num_cancelled() const {
    const std::lock_guard lock(mutex_);
    return num_cancelled_;
  }
  int max_concurrent() const {
    const std::lock_guard lock(mutex_);
    return max_concurrent_;
  }

 private:
  bool IsAllowed(const grpc::ServerContext& call) const {
    if (options_.key.empty()) return true;
    const auto found = call.client_metadata().find("authorization");
    return found != call.client_metadata().end() &&
           std::string(found->second.data(), found->second.size()) == "Bearer " + options_.key;
  }
  static grpc::Status Stranger() { return {grpc::StatusCode::UNAUTHENTICATED, "the API key is not known"}; }

  grpc::Status Cancelled() {
    const std::lock_guard lock(mutex_);
    ++num_cancelled_;
    return grpc::Status::CANCELLED;
  }

  static v1::Finished FinishedWith(uint32_t num_tokens) {
    v1::Finished finished;
    finished.set_reason(v1::FINISH_REASON_STOP);
    finished.mutable_usage()->set_prompt_tokens(3);
    finished.mutable_usage()->set_completion_tokens(num_tokens);
    finished.mutable_timing()->set_total_us(1'500'000);
    return finished;
  }

  grpc::Status Generate(const v1::GenerateRequest& request, grpc::ServerWriter<v1::GenerateResponse>& writer) const {
    v1::GenerateResponse event;
    event.mutable_started()->set_request_id("r2");
    writer.Write(event);
    const uint32_t count = request.stop_conditions().has_max_tokens() ? request.stop_conditions().max_tokens() : 3;
    for (uint32_t i = 0; i < count; ++i) {
      std::this_thread::sleep_for(std::chrono::microseconds(options_.token_interval_us));
      event.mutable_content_delta()->Clear();
      event.mutable_content_delta()->set_text(" w");
      event.mutable_content_delta()->add_token_ids(i);
      if (!writer.Write(event)) return grpc::Status::CANCELLED;
    }
    *event.mutable_finished() = FinishedWith(count);
    writer.Write(event);
    return grpc::Status::OK;
  }

  const Options options_;
  mutable std::mutex mutex_;
  std::vector<v1::ChatRequest> chats_;
  std::vector<v1::GenerateRequest> generations_;
  int num_cancelled_ = 0;
  int num_running_ = 0;
  int max_concurrent_ = 0;
};

struct FakeGateway::Server {
  std::unique_ptr<grpc::Server> server;
};

FakeGateway::FakeGateway(const Options& options)
    : service_(std::make_unique<Service>(options)), server_(std::make_unique<Server>()) {
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(service_.get());
  server_->server = builder.BuildAndStart();
  address_ = "127.0.0.1:" + std::to_string(port);
}

FakeGateway::~FakeGateway() { server_->server->Shutdown(std::chrono::system_clock::now()); }

std::vector<v1::ChatRequest> FakeGateway::chats() const { return service_->chats(); }
std::vector<v1::GenerateRequest> FakeGateway::generations() const { return service_->generations(); }
int FakeGateway::num_cancelled() const { return service_->num_cancelled(); }
int FakeGateway::max_concurrent() const { return service_->max_concurrent(); }

}  // namespace weir::tools
