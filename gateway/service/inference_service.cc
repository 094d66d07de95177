#include "gateway/service/inference_service.h"

#include <grpcpp/grpcpp.h>

#include <functional>
#include <string>
#include <utility>
#include <variant>

#include "gateway/request/limits.h"
#include "gateway/request/prepared_request.h"
#include "gateway/request/text_requests.h"
#include "gateway/request/wire_faults.h"
#include "gateway/service/caller.h"
#include "gateway/service/frame_messages.h"
#include "gateway/service/status_details.h"
#include "gateway/service/wire_message.h"
#include "gateway/serving/endings.h"
#include "weir/v1/inference.grpc.pb.h"

namespace weir::gateway {
namespace {

using grpc::ByteBuffer;
using grpc::CallbackServerContext;

// A stream.  gRPC tells it nothing before the method that made it returns, and OnDone last.
template <typename Response>
class StreamCall final : public grpc::ServerWriteReactor<ByteBuffer>, public FramePort {
  using Reactor = grpc::ServerWriteReactor<ByteBuffer>;

 public:
  StreamCall(CallbackServerContext* context, const channels::LiveCalls& live_calls)
      : live_(live_calls), context_(context) {}

  void Begin(FrontDesk& desk, Arrival arrival) {
    tokenizer_ = arrival.offer->model->tokenizer.get();
    request_ = desk.Open(std::move(arrival), this);
  }

  void Write(const Frame& frame) override {
    response_.Clear();
    FillResponse(frame, *tokenizer_, response_);
    WriteMessage(response_, bytes_);
    StartWrite(&bytes_);
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
  const channels::LiveCalls::Call live_;
  CallbackServerContext* const context_;
  const Tokenizer* tokenizer_ = nullptr;
  Response response_;
  ByteBuffer bytes_;                        // of `response_`
  std::shared_ptr<ServedRequest> request_;  // null: refused at the door
};

// One answer, worked out on a thread of the text pool.  Always finished by its job, so it needs no OnCancel.
class TextCall final : public grpc::ServerUnaryReactor {
 public:
  explicit TextCall(const channels::LiveCalls& live_calls) : live_(live_calls) {}
  void OnDone() override { delete this; }

 private:
  const channels::LiveCalls::Call live_;
};

// Every method takes bytes and parses them itself: see wire_message.h.
template <typename Service>
using Raw = v1::InferenceService::WithRawCallbackMethod_Chat<
    v1::InferenceService::WithRawCallbackMethod_Generate<v1::InferenceService::WithRawCallbackMethod_Tokenize<
        v1::InferenceService::WithRawCallbackMethod_Detokenize<v1::InferenceService::WithRawCallbackMethod_ListModels<
            v1::InferenceService::WithRawCallbackMethod_GetModel<Service>>>>>>;

class InferenceService final : public Raw<v1::InferenceService::Service> {
 public:
  InferenceService(const std::vector<Offer>* offers, const Authenticator* authenticator, FrontDesk* desk,
                   const channels::LiveCalls* live_calls)
      : offers_(offers), authenticator_(authenticator), desk_(desk), live_calls_(live_calls) {}

  grpc::ServerWriteReactor<ByteBuffer>* Chat(CallbackServerContext* context, const ByteBuffer* bytes) override {
    return Stream<v1::ChatRequest, v1::ChatResponse>(context, *bytes, Api::kChat, PrepareChat);
  }

  grpc::ServerWriteReactor<ByteBuffer>* Generate(CallbackServerContext* context, const ByteBuffer* bytes) override {
    return Stream<v1::GenerateRequest, v1::GenerateResponse>(context, *bytes, Api::kGenerate, PrepareGenerate);
  }

  grpc::ServerUnaryReactor* Tokenize(CallbackServerContext* context, const ByteBuffer* bytes,
                                     ByteBuffer* answer) override {
    return Work<v1::TokenizeRequest, v1::TokenizeResponse>(context, *bytes, answer, TokenizeInput);
  }

  grpc::ServerUnaryReactor* Detokenize(CallbackServerContext* context, const ByteBuffer* bytes,
                                       ByteBuffer* answer) override {
    return Work<v1::DetokenizeRequest, v1::DetokenizeResponse>(context, *bytes, answer, DetokenizeIds);
  }

  grpc::ServerUnaryReactor* ListModels(CallbackServerContext* context, const ByteBuffer* bytes,
                                       ByteBuffer* answer) override {
    Given<v1::ListModelsRequest> given;
    if (const auto error = Take(*context, *bytes, given)) return Answer(context, ToStatus(*error));
    v1::ListModelsResponse response;
    for (const Offer& offer : *offers_) Fill(offer, *response.add_models());
    WriteMessage(response, *answer);
    return Answer(context, grpc::Status::OK);
  }

  grpc::ServerUnaryReactor* GetModel(CallbackServerContext* context, const ByteBuffer* bytes,
                                     ByteBuffer* answer) override {
    Given<v1::GetModelRequest> given;
    if (const auto error = Take(*context, *bytes, given)) return Answer(context, ToStatus(*error));
    const Offer* offer = Find(given.message->model());
    if (offer == nullptr) return Answer(context, ToStatus(UnknownModel(ModelNames())));
    v1::GetModelResponse response;
    Fill(*offer, *response.mutable_model());
    WriteMessage(response, *answer);
    return Answer(context, grpc::Status::OK);
  }

 private:
  // Who calls, and what they say.
  template <typename Request>
  struct Given {
    Identity identity;
    std::string tenant = "unknown";
    std::shared_ptr<Request> message = std::make_shared<Request>();
    int64_t bytes = 0;  // on the wire
  };

  // Nothing is parsed for somebody without a key.
  template <typename Request>
  std::optional<RequestError> Take(const CallbackServerContext& context, const ByteBuffer& bytes,
                                   Given<Request>& given) const {
    if (const int64_t size = MetadataBytes(context); size > limits::kMaxMetadataBytes) return MetadataTooLarge(size);
    auto caller = IdentityOf(context, *authenticator_);
    if (auto* error = std::get_if<RequestError>(&caller)) return std::move(*error);
    given.identity = std::get<Identity>(std::move(caller));
    given.tenant = given.identity.TenantName();
    given.bytes = static_cast<int64_t>(bytes.Length());
    return ReadMessage(bytes, *given.message);
  }

  template <typename Request, typename Response, typename Prepare>
  grpc::ServerWriteReactor<ByteBuffer>* Stream(CallbackServerContext* context, const ByteBuffer& bytes, Api api,
                                               Prepare prepare) {
    const TimeUs now = NowUs();
    auto* call = new StreamCall<Response>(context, *live_calls_);
    Given<Request> given;
    if (const auto error = Take(*context, bytes, given)) return Refuse(call, given.tenant, api, *error);
    const Offer* offer = Find(given.message->model());
    if (offer == nullptr) return Refuse(call, given.tenant, api, UnknownModel(ModelNames()));
    // A stream may go on for minutes: its request does not outlive what is made of it.
    const auto prepare_once = [message = std::move(given.message), offer, prepare](PreparedRequest& prepared) mutable {
      const auto request = std::move(message);
      return prepare(*request, *offer->model, prepared);
    };
    call->Begin(*desk_, {.arrived = now,
                         .deadline = DeadlineOf(*context, now),
                         .identity = std::move(given.identity),
                         .api = api,
                         .offer = offer,
                         .bytes = given.bytes,
                         .traceparent = TraceparentOf(*context),
                         .prepare = prepare_once});
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
  grpc::ServerUnaryReactor* Work(CallbackServerContext* context, const ByteBuffer& bytes, ByteBuffer* answer, Run run) {
    Given<Request> given;
    if (const auto error = Take(*context, bytes, given)) return Answer(context, ToStatus(*error));
    const Offer* offer = Find(given.message->model());
    if (offer == nullptr) return Answer(context, ToStatus(UnknownModel(ModelNames())));
    auto* call = new TextCall(*live_calls_);
    const auto job = [call, request = given.message, answer, offer, run] {
      Response response;
      const std::optional<RequestError> error = run(*request, *offer->model, response);
      if (!error) WriteMessage(response, *answer);
      call->Finish(error ? ToStatus(*error) : grpc::Status::OK);
    };
    if (!desk_->PostText(given.identity, given.bytes, job)) {
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
  const channels::LiveCalls* const live_calls_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewInferenceService(const std::vector<Offer>* offers, const Authenticator* authenticator,
                                                   FrontDesk* desk, const channels::LiveCalls* live_calls) {
  return std::make_unique<InferenceService>(offers, authenticator, desk, live_calls);
}

}  // namespace weir::gateway
