#include <google/protobuf/stubs/logging.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "gateway/replica/scheduler_messages.h"
#include "gateway/request/prepared_request.h"
#include "gateway/request/text_requests.h"
#include "gateway/request/wire_faults.h"
#include "gateway/text/utf8.h"
#include "scheduler/service/submission.h"
#include "weir/scheduler/v1/scheduler.pb.h"
#include "weir/v1/inference.pb.h"

// Requests as clients can send them: refused with everything that a client needs to mend them, or prepared, and then a
// scheduler takes them too.
namespace {

using weir::gateway::PreparedRequest;
using weir::gateway::RequestError;
using weir::gateway::ServedModel;

constexpr int32_t kVocabSize = 300;
constexpr int64_t kMaxModelLen = 500;

void Require(bool condition) {
  if (!condition) std::abort();
}

const ServedModel& Model() {
  static const ServedModel& model = *[] {
    auto* made = new ServedModel;
    made->name = "m";
    made->tokenizer = std::move(weir::gateway::Tokenizer::FromFile(std::string(WEIR_SOURCE_DIR) +
                                                                   "/tests/gateway/testdata/byte_tokenizer.json"))
                          .value();
    made->chat_template =
        std::move(weir::gateway::ChatTemplate::Create(weir::gateway::ChatDialect::kV31, made->tokenizer.get())).value();
    made->max_model_len = kMaxModelLen;
    made->vocab_size = kVocabSize;
    made->eos_tokens = {1};
    made->bos_token = 0;
    return made;
  }();
  return model;
}

void CheckError(const RequestError& error) {
  Require(!error.reason.empty() && !error.message.empty());
  Require(weir::gateway::IsValidUtf8(error.message));
  if (error.code == RequestError::Code::kInvalidArgument) Require(!error.violations.empty());
  for (const auto& violation : error.violations) {
    Require(!violation.field.empty() && !violation.description.empty());
    Require(weir::gateway::IsValidUtf8(violation.field) && weir::gateway::IsValidUtf8(violation.description));
  }
}

// Of bytes that are no message.
void CheckFault(const google::protobuf::Message& message, const uint8_t* data, int size) {
  const RequestError error = weir::gateway::MalformedMessage(
      *message.GetDescriptor(), std::string_view(reinterpret_cast<const char*>(data), static_cast<size_t>(size)));
  Require(error.code == RequestError::Code::kInvalidArgument && error.violations.size() == 1);
  Require(weir::gateway::IsValidUtf8(error.message) && error.message.ends_with(error.violations[0].description));
  Require(error.violations[0].description.find("(byte ") != std::string::npos);  // found
}

void CheckThatASchedulerTakesIt(const PreparedRequest& prepared) {
  weir::gateway::Submission submission;
  submission.request_id = prepared.request_id.value_or("r");
  submission.tenant_path = {"t"};
  submission.prompt = prepared.prompt;
  submission.max_tokens = prepared.max_tokens;
  submission.min_tokens = prepared.min_tokens;
  submission.stop_tokens = prepared.stop_tokens;
  submission.sampling = prepared.sampling;
  submission.wants_logprobs = prepared.wants_logprobs;
  submission.num_top_logprobs = prepared.num_top_logprobs;
  weir::scheduler::v1::Submit message;
  weir::gateway::FillSubmit(1, submission, {}, std::nullopt, message);
  weir::scheduler::ReplicaView replica;
  replica.vocab_size = kVocabSize;
  replica.max_model_len = kMaxModelLen;
  replica.block_size = 64;
  weir::scheduler::Submission taken;
  Require(weir::scheduler::ReadSubmission(message, replica, {}, 0, taken).empty());
}

void CheckPrepared(const PreparedRequest& prepared) {
  Require(!prepared.prompt.empty() && prepared.max_tokens >= 1);
  Require(static_cast<int64_t>(prepared.prompt.size()) + prepared.max_tokens <= kMaxModelLen);
  CheckThatASchedulerTakesIt(prepared);
}

template <typename Request, typename Prepare>
void FuzzPrepare(const uint8_t* data, int size, Prepare prepare) {
  Request request;
  if (!request.ParseFromArray(data, size)) return CheckFault(request, data, size);
  PreparedRequest prepared;
  const auto error = prepare(request, Model(), prepared);
  if (error) return CheckError(*error);
  CheckPrepared(prepared);
}

template <typename Request, typename Response, typename Run>
void FuzzText(const uint8_t* data, int size, Run run) {
  Request request;
  if (!request.ParseFromArray(data, size)) return CheckFault(request, data, size);
  Response response;
  if (const auto error = run(request, Model(), response)) return CheckError(*error);
  std::string bytes;
  Require(response.SerializeToString(&bytes));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  namespace v1 = weir::v1;
  static const google::protobuf::LogSilencer silence;
  if (size == 0 || size > (1 << 20)) return 0;
  const auto rest = static_cast<int>(size - 1);
  switch (data[0] % 4) {
    case 0:
      FuzzPrepare<v1::ChatRequest>(data + 1, rest, weir::gateway::PrepareChat);
      break;
    case 1:
      FuzzPrepare<v1::GenerateRequest>(data + 1, rest, weir::gateway::PrepareGenerate);
      break;
    case 2:
      FuzzText<v1::TokenizeRequest, v1::TokenizeResponse>(data + 1, rest, weir::gateway::TokenizeInput);
      break;
    default:
      FuzzText<v1::DetokenizeRequest, v1::DetokenizeResponse>(data + 1, rest, weir::gateway::DetokenizeIds);
      break;
  }
  return 0;
}
