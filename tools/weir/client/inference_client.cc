#include "tools/weir/client/inference_client.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "weir/v1/inference.grpc.pb.h"

namespace weir::tools {
namespace {

using Stub = v1::InferenceService::Stub;

constexpr std::chrono::seconds kUnaryDeadline{30};
constexpr int kMaxMessageBytes = 64 << 20;

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file.good() && !file.eof()) return absl::InvalidArgumentError("cannot read " + path);
  return text;
}

absl::StatusOr<std::string> ReadKey(const ServerOptions& options) {
  if (options.key_file.empty()) {
    const char* key = std::getenv("WEIR_API_KEY");
    return std::string(key == nullptr ? "" : key);
  }
  absl::StatusOr<std::string> key = ReadFile(options.key_file);
  if (!key.ok()) return key;
  key->erase(std::find_if(key->begin(), key->end(), [](unsigned char c) { return std::isspace(c) != 0; }), key->end());
  if (key->empty()) return absl::InvalidArgumentError("the key file " + options.key_file + " is empty");
  return key;
}

const char* CodeName(grpc::StatusCode code) {
  constexpr const char* kNames[] = {
      "OK",        "CANCELLED",      "UNKNOWN",           "INVALID_ARGUMENT",   "DEADLINE_EXCEEDED",
      "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
      "ABORTED",   "OUT_OF_RANGE",   "UNIMPLEMENTED",     "INTERNAL",           "UNAVAILABLE",
      "DATA_LOSS", "UNAUTHENTICATED"};
  return code >= 0 && code <= 16 ? kNames[code] : "UNKNOWN";
}

// What the details add to the message: fields, reason, when to come back.  `has_details` tells the gateway's own errors
// from those of the way to it.
// A message that has said it all is not said again.
std::string DetailsOf(const grpc::Status& status, bool& has_details) {
  google::rpc::Status details;
  has_details = details.ParseFromString(status.error_details()) && details.details_size() > 0;
  std::string text;
  for (const auto& detail : details.details()) {
    google::rpc::BadRequest bad;
    google::rpc::RetryInfo retry;
    if (detail.UnpackTo(&bad)) {
      for (const auto& violation : bad.field_violations()) {
        if (status.error_message() == violation.field() + " " + violation.description()) continue;
        absl::StrAppend(&text, "\n  ", violation.field(), ": ", violation.description());
      }
    } else if (detail.UnpackTo(&retry)) {
      const double seconds =
          static_cast<double>(retry.retry_delay().seconds()) + static_cast<double>(retry.retry_delay().nanos()) * 1e-9;
      absl::StrAppend(&text, absl::StrFormat("\n  try again in %.1f s", seconds));
    }
  }
  return text;
}

}  // namespace

// ---- cancellation ----

bool Cancellation::Cancel() {
  const std::lock_guard lock(mutex_);
  if (call_ == nullptr) return false;
  was_cancelled_ = true;
  call_->TryCancel();
  return true;
}

bool Cancellation::was_cancelled() const {
  const std::lock_guard lock(mutex_);
  return was_cancelled_;
}

void Cancellation::Begin(grpc::ClientContext* call) {
  const std::lock_guard lock(mutex_);
  call_ = call;
  was_cancelled_ = false;
}

void Cancellation::End() {
  const std::lock_guard lock(mutex_);
  call_ = nullptr;
}

// ---- the client ----

absl::StatusOr<std::unique_ptr<InferenceClient>> InferenceClient::Connect(const ServerOptions& options) {
  std::unique_ptr<InferenceClient> client(new InferenceClient(options));
  absl::StatusOr<std::string> key = ReadKey(options);
  if (!key.ok()) return key.status();
  client->key_ = *std::move(key);
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (options.uses_tls) {
    grpc::SslCredentialsOptions tls;
    for (const auto& [path, content] : {std::pair{&options.ca_file, &tls.pem_root_certs},
                                        {&options.certificate_file, &tls.pem_cert_chain},
                                        {&options.certificate_key_file, &tls.pem_private_key}}) {
      if (path->empty()) continue;
      absl::StatusOr<std::string> file = ReadFile(*path);
      if (!file.ok()) return file.status();
      *content = *std::move(file);
    }
    credentials = grpc::SslCredentials(tls);
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  client->channel_ = grpc::CreateCustomChannel(options.address, credentials, arguments);
  return client;
}

void InferenceClient::Authorize(grpc::ClientContext& call) const {
  if (!key_.empty()) call.AddMetadata("authorization", "Bearer " + key_);
}

absl::Status InferenceClient::Explain(const grpc::Status& status) const {
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());
  bool is_from_gateway = false;
  const std::string details = DetailsOf(status, is_from_gateway);
  std::string text = absl::StrCat(status.error_message(), " (", CodeName(status.error_code()), ")", details);
  if (code == absl::StatusCode::kUnavailable && !is_from_gateway) {
    constexpr std::string_view kLast = "last error: UNKNOWN: ";
    const size_t last = status.error_message().find(kLast);
    text = absl::StrCat(
        "no gateway answers at ", options_.address,
        ": start one with `weir up --model DIR`, or name another with --server (",
        last == std::string::npos ? status.error_message() : status.error_message().substr(last + kLast.size()), ")");
  } else if (code == absl::StatusCode::kUnauthenticated) {
    absl::StrAppend(
        &text, "\n  put an API key into WEIR_API_KEY or a file named by --api-key-file; `weir keys create` makes one");
  }
  return {code, text};
}

namespace {

template <typename Request, typename Response>
absl::StatusOr<Response> Unary(const InferenceClient& client, const Request& request,
                               grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*)) {
  Stub stub(client.channel());
  grpc::ClientContext call;
  call.set_deadline(std::chrono::system_clock::now() + kUnaryDeadline);
  client.Authorize(call);
  Response response;
  const grpc::Status status = (stub.*method)(&call, request, &response);
  if (!status.ok()) return client.Explain(status);
  return response;
}

template <typename Response>
grpc::Status ReadAll(grpc::ClientReader<Response>& reader, const std::function<void(const Response&)>& on_event) {
  Response event;
  while (reader.Read(&event)) on_event(event);
  return reader.Finish();
}

}  // namespace

absl::StatusOr<v1::ListModelsResponse> InferenceClient::ListModels() const {
  return Unary<v1::ListModelsRequest, v1::ListModelsResponse>(*this, {}, &Stub::ListModels);
}

absl::StatusOr<v1::Model> InferenceClient::FindModel(const std::string& name) const {
  const auto response = ListModels();
  if (!response.ok()) return response.status();
  std::string names;
  for (const v1::Model& model : response->models()) {
    if (model.name() == name || (name.empty() && response->models_size() == 1)) return model;
    absl::StrAppend(&names, names.empty() ? "" : ", ", model.name());
  }
  if (names.empty()) return absl::NotFoundError(absl::StrCat("the gateway at ", options_.address, " serves no model"));
  if (name.empty())
    return absl::InvalidArgumentError("the gateway serves several models: name one with --model: " + names);
  return absl::NotFoundError(absl::StrCat("the gateway does not serve '", name, "'; it has: ", names));
}

absl::Status InferenceClient::Chat(const v1::ChatRequest& request,
                                   const std::function<void(const v1::ChatResponse&)>& on_event,
                                   Cancellation& cancellation) const {
  Stub stub(channel_);
  grpc::ClientContext call;
  Authorize(call);
  cancellation.Begin(&call);
  const grpc::Status status = ReadAll(*stub.Chat(&call, request), on_event);
  cancellation.End();
  return Explain(status);
}

absl::Status InferenceClient::Generate(const v1::GenerateRequest& request,
                                       const std::function<void(const v1::GenerateResponse&)>& on_event,
                                       Cancellation& cancellation) const {
  Stub stub(channel_);
  grpc::ClientContext call;
  Authorize(call);
  cancellation.Begin(&call);
  const grpc::Status status = ReadAll(*stub.Generate(&call, request), on_event);
  cancellation.End();
  return Explain(status);
}

absl::StatusOr<v1::TokenizeResponse> InferenceClient::Tokenize(const v1::TokenizeRequest& request) const {
  return Unary<v1::TokenizeRequest, v1::TokenizeResponse>(*this, request, &Stub::Tokenize);
}

absl::StatusOr<std::string> InferenceClient::TokenBytes(const std::string& model, uint32_t token_id) const {
  v1::DetokenizeRequest request;
  request.set_model(model);
  request.add_token_ids(token_id);
  auto response = Unary<v1::DetokenizeRequest, v1::DetokenizeResponse>(*this, request, &Stub::Detokenize);
  if (!response.ok()) return response.status();
  return std::move(*response->mutable_text_bytes());
}

}  // namespace weir::tools
