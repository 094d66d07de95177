#include "gateway/answer/answer.h"

#include <utility>

namespace weir::gateway {
namespace {

constexpr int64_t kFrameBytes = 64;
constexpr int64_t kTokenBytes = 16;

int64_t Bytes(const StartedFrame& frame) { return static_cast<int64_t>(frame.request_id.size() + frame.model.size()); }
int64_t Bytes(const TextFrame& frame) {
  auto bytes = static_cast<int64_t>(frame.text.size());
  for (const OutputToken& token : frame.tokens) bytes += kTokenBytes * static_cast<int64_t>(1 + token.top.size());
  return bytes;
}
int64_t Bytes(const ToolCallFrame& frame) {
  return static_cast<int64_t>(frame.id.size() + frame.name.size() + frame.arguments.size());
}
int64_t Bytes(const FinishedFrame&) { return 0; }

}  // namespace

int64_t FrameBytes(const Frame& frame) {
  return kFrameBytes + std::visit([](const auto& which) { return Bytes(which); }, frame);
}

Answer::Answer(const Tokenizer* tokenizer, ChatDialect dialect, const AnswerParser::Options& options,
               std::shared_ptr<const Submission> submission)
    : parser_(tokenizer, dialect, options), submission_(std::move(submission)), is_reasoning_(options.thinks_first) {}

bool Answer::Append(OutputToken token, std::vector<Frame>& frames) {
  deltas_.clear();
  // The token that ends an output is no part of its text.
  const bool is_stop = submission_->IsStop(token.token, num_tokens_);
  const bool has_stopped = !is_stop && parser_.Append(token.token, deltas_);
  // The token is in the first text that it brings, or in an empty one: before its second.
  std::optional<OutputToken> unplaced = std::move(token);
  for (AnswerDelta& delta : deltas_) {
    Take(delta, frames);
    if (unplaced && std::holds_alternative<TextFrame>(frames.back())) Place(unplaced, frames);
  }
  if (unplaced) {
    if (frames.empty() || !std::holds_alternative<TextFrame>(frames.back())) Open(is_reasoning_, frames);
    Place(unplaced, frames);
  }
  return has_stopped;
}

void Answer::Finish(std::vector<Frame>& frames) {
  deltas_.clear();
  parser_.Finish(deltas_);
  for (AnswerDelta& delta : deltas_) Take(delta, frames);
}

void Answer::Take(AnswerDelta& delta, std::vector<Frame>& frames) {
  const auto index = static_cast<uint32_t>(delta.call_index);
  switch (delta.kind) {
    case AnswerDelta::Kind::kReasoning:
    case AnswerDelta::Kind::kContent:
      is_reasoning_ = delta.kind == AnswerDelta::Kind::kReasoning;
      Open(is_reasoning_, frames).text += delta.text;
      break;
    case AnswerDelta::Kind::kToolCallBegin:
      is_reasoning_ = false;
      frames.emplace_back(std::in_place_type<ToolCallFrame>,
                          ToolCallFrame{.index = index,
                                        .id = "call_" + submission_->request_id + "_" + std::to_string(index),
                                        .name = std::move(delta.text)});
      break;
    case AnswerDelta::Kind::kToolCallArguments: {
      ToolCallFrame* last = frames.empty() ? nullptr : std::get_if<ToolCallFrame>(&frames.back());
      if (last == nullptr || last->index != index) {
        frames.emplace_back(std::in_place_type<ToolCallFrame>, ToolCallFrame{.index = index});
        last = &std::get<ToolCallFrame>(frames.back());
      }
      last->arguments += delta.text;
      break;
    }
  }
}

TextFrame& Answer::Open(bool is_reasoning, std::vector<Frame>& frames) const {
  if (!frames.empty()) {
    TextFrame* last = std::get_if<TextFrame>(&frames.back());
    if (last != nullptr && last->is_reasoning == is_reasoning) return *last;
  }
  frames.emplace_back(std::in_place_type<TextFrame>,
                      TextFrame{.is_reasoning = is_reasoning, .first_token_index = num_tokens_});
  return std::get<TextFrame>(frames.back());
}

void Answer::Place(std::optional<OutputToken>& token, std::vector<Frame>& frames) {
  std::get<TextFrame>(frames.back()).tokens.push_back(*std::exchange(token, std::nullopt));
  ++num_tokens_;
}

}  // namespace weir::gateway
