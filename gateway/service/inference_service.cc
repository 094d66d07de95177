#include "gateway/service/inference_service.h"

#include <grpcpp/grpcpp.h>

#include <functional>
#include <string>
#include <utility>
#include <variant>

#include "gateway/request/prepared_request.h"
#include "gateway/request/text_requests.h"
#include "gateway/service/caller.h"
#include "gateway/service/frame_messages.h"
#include "gateway/service/status_details.h"
#include "gateway/serving/endings.h"
#include "weir/v1/inference.grpc.pb.h"

namespace weir::gateway {
namespace {

using grpc::CallbackServerContext;

// A stream.  gRPC tells it nothing before the method that made it returns, and OnDone last.
template <typename Response>
class StreamCall final : public grpc::ServerWriteReactor<Response>, public FramePort {
  using Reactor = grpc::ServerWriteReactor<Response>;

 public:
  explicit StreamCall(CallbackServerContext* context) : context_(context) {}

  void Begin(FrontDesk& desk, Arrival arrival) {
    tokenizer_ = arrival.offer->model->tokenizer.get();
    request_ = desk.Open(std::move(arrival), this);
  }

  void Write(const Frame& frame) override {
    response_.Clear();
    FillResponse(frame, *tokenizer_, response_);
    this->StartWrite(&response_);
  }
  void Finish(const std::optional<RequestError>& error) override {
    Reactor::Finish(error ? ToStatus(*error) : grpc::Status::OK);
  }
  void CutOff() override { context_->TryCancel(); }

  void OnWriteDone(bool ok) override { request_->OnWriteDone(ok); }
  void OnCancel() override {
    if (request_ != nullptr) request_->OnCancel();
  }
  void OnDone() override {
    if (request_ != nullptr) request_->OnDone();
    delete this;
  }

 private:
  CallbackServerContext* const context_;
  const Tokenizer* tokenizer_ = nullptr;
  Response response_;
  std::shared_ptr<ServedRequest> request_;  // null: refused at the door
};

// One answer, worked out on a thread of the text pool.  Always finished by its job, so it needs no OnCancel.
class TextCall final : public grpc::ServerUnaryReactor {
 public:
  void OnDone() override { delete this; }
};

class InferenceService final : public v1::InferenceService::CallbackService {
 public:
  InferenceService(const std::vector<Offer>* offers, const Authenticator* authenticator, FrontDesk* desk)
      : offers_(offers), authenticator_(authenticator), desk_(desk) {}

  grpc::ServerWriteReactor<v1::ChatResponse>* Chat(CallbackServerContext* context,
                                                   const v1::ChatRequest* request) override {
    return Stream<v1::ChatResponse>(context, request, Api::kChat, PrepareChat);
  }

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(CallbackServerContext* context,
                                                           const v1::GenerateRequest* request) override {
    return Stream<v1::GenerateResponse>(context, request, Api::kGenerate, PrepareGenerate);
  }

  grpc::ServerUnaryReactor* Tokenize(CallbackServerContext* context, const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    return Work(context, request, response, TokenizeInput);
  }

  grpc::ServerUnaryReactor* Detokenize(CallbackServerContext* context, const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override {
    return Work(context, request, response, DetokenizeIds);
  }

  grpc::ServerUnaryReactor* ListModels(CallbackServerContext* context, const v1::ListModelsRequest*,
                                       v1::ListModelsResponse* response) override {
    const auto caller = IdentityOf(*context, *authenticator_);
    if (const auto* error = std::get_if<RequestError>(&caller)) return Answer(context, ToStatus(*error));
    for (const Offer& offer : *offers_) Fill(offer, *response->add_models());
    return Answer(context, grpc::Status::OK);
  }

  grpc::ServerUnaryReactor* GetModel(CallbackServerContext* context, const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override {
    const auto caller = IdentityOf(*context, *authenticator_);
    if (const auto* error = std::get_if<RequestError>(&caller)) return Answer(context, ToStatus(*error));
    const Offer* offer = Find(request->model());
    if (offer == nullptr) return Answer(context, ToStatus(UnknownModel(ModelNames())));
    Fill(*offer, *response->mutable_model());
    return Answer(context, grpc::Status::OK);
  }

 private:
  // `request` lives until the call is over, and the call ends after `prepare` has run.
  template <typename Response, typename Request, typename Prepare>
  grpc::ServerWriteReactor<Response>* Stream(CallbackServerContext* context, const Request* request, Api api,
                                             Prepare prepare) {
    const TimeUs now = NowUs();
    auto* call = new StreamCall<Response>(context);
    auto caller = IdentityOf(*context, *authenticator_);
    if (const auto* error = std::get_if<RequestError>(&caller)) return Refuse(call, "unknown", api, *error);
    auto& identity = std::get<Identity>(caller);
    const Offer* offer = Find(request->model());
    if (offer == nullptr) return Refuse(call, identity.TenantName(), api, UnknownModel(ModelNames()));
    call->Begin(*desk_, {.arrived = now,
                         .deadline = DeadlineOf(*context, now),
                         .identity = std::move(identity),
                         .api = api,
                         .offer = offer,
                         .bytes = static_cast<int64_t>(request->ByteSizeLong()),
                         .traceparent = TraceparentOf(*context),
                         .prepare = [request, offer, prepare](PreparedRequest& prepared) {
                           return prepare(*request, *offer->model, prepared);
                         }});
    return call;
  }

  template <typename Response>
  StreamCall<Response>* Refuse(StreamCall<Response>* call, const std::string& tenant, Api api,
                               const RequestError& error) {
    desk_->metrics().RequestRefused(tenant, api, error);
    call->Finish(error);
    return call;
  }

  template <typename Request, typename Response, typename Run>
  grpc::ServerUnaryReactor* Work(CallbackServerContext* context, const Request* request, Response* response, Run run) {
    const auto caller = IdentityOf(*context, *authenticator_);
    if (const auto* error = std::get_if<RequestError>(&caller)) return Answer(context, ToStatus(*error));
    const Offer* offer = Find(request->model());
    if (offer == nullptr) return Answer(context, ToStatus(UnknownModel(ModelNames())));
    auto* call = new TextCall;
    const auto job = [call, request, response, offer, run] {
      const std::optional<RequestError> error = run(*request, *offer->model, *response);
      call->Finish(error ? ToStatus(*error) : grpc::Status::OK);
    };
    if (!desk_->PostText(std::get<Identity>(caller), static_cast<int64_t>(request->ByteSizeLong()), job)) {
      call->Finish(ToStatus(Overloaded("too many requests arrive at once")));
    }
    return call;
  }

  static grpc::ServerUnaryReactor* Answer(CallbackServerContext* context, const grpc::Status& status) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(status);
    return reactor;
  }

  const Offer* Find(const std::string& name) const {
    for (const Offer& offer : *offers_) {
      if (offer.model->name == name) return &offer;
    }
    return nullptr;
  }

  std::string ModelNames() const {
    std::string names;
    for (const Offer& offer : *offers_) names += (names.empty() ? "" : ", ") + offer.model->name;
    return names;
  }

  static void Fill(const Offer& offer, v1::Model& out) {
    const ServedModel& model = *offer.model;
    const int64_t of_replicas = offer.replicas->max_model_len();
    out.set_name(model.name);
    out.set_max_model_len(
        static_cast<uint64_t>(of_replicas > 0 ? std::min(of_replicas, model.max_model_len) : model.max_model_len));
    out.set_vocab_size(static_cast<uint32_t>(model.vocab_size));
    if (model.chat_template != nullptr) {
      const std::string_view name = ChatTemplate::Name(model.chat_template->dialect());
      out.set_chat_template(std::string(name));
      out.set_can_think(model.chat_template->can_think());
    }
    out.set_is_ready(offer.replicas->view().num_ready > 0);
    for (const TokenId token : model.eos_tokens) out.add_eos_token_ids(static_cast<uint32_t>(token));
  }

  const std::vector<Offer>* const offers_;
  const Authenticator* const authenticator_;
  FrontDesk* const desk_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewInferenceService(const std::vector<Offer>* offers, const Authenticator* authenticator,
                                                   FrontDesk* desk) {
  return std::make_unique<InferenceService>(offers, authenticator, desk);
}

}  // namespace weir::gateway
