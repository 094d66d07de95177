#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tools/weir/client/server_options.h"
#include "weir/v1/inference.pb.h"

namespace grpc {
class Channel;
class ClientContext;
class Status;
}  // namespace grpc

// weir.v1.InferenceService for the commands that talk to a gateway.  Errors are for people: what the gateway said,
// field by field where it says so, and what to do.

namespace weir::tools {

// Ends the call that runs under it, from any thread.
class Cancellation {
 public:
  // False when no call runs.
  bool Cancel();
  // The last call was cancelled here.
  bool was_cancelled() const;

 private:
  friend class InferenceClient;
  void Begin(grpc::ClientContext* call);
  void End();
  mutable std::mutex mutex_;
  grpc::ClientContext* call_ = nullptr;
  bool was_cancelled_ = false;
};

class InferenceClient {
 public:
  // Does not wait for the gateway.  INVALID_ARGUMENT for an empty or unreadable key or certificate file.
  static absl::StatusOr<std::unique_ptr<InferenceClient>> Connect(const ServerOptions& options);

  absl::StatusOr<v1::ListModelsResponse> ListModels() const;
  // The model of this name; with an empty name the only one.
  absl::StatusOr<v1::Model> FindModel(const std::string& name) const;

  // Calls `on_event` with every message, `finished` included, until the stream ends.  A call that was cancelled ends
  // with CANCELLED.
  absl::Status Chat(const v1::ChatRequest& request, const std::function<void(const v1::ChatResponse&)>& on_event,
                    Cancellation& cancellation) const;
  absl::Status Generate(const v1::GenerateRequest& request,
                        const std::function<void(const v1::GenerateResponse&)>& on_event,
                        Cancellation& cancellation) const;

  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request) const;
  // The bytes of one token.
  absl::StatusOr<std::string> TokenBytes(const std::string& model, uint32_t token_id) const;

  const std::shared_ptr<grpc::Channel>& channel() const { return channel_; }
  // What every call carries: the key.
  void Authorize(grpc::ClientContext& call) const;
  // A call's status for people.
  absl::Status Explain(const grpc::Status& status) const;

 private:
  explicit InferenceClient(const ServerOptions& options) : options_(options) {}
  const ServerOptions options_;
  std::string key_;
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace weir::tools
