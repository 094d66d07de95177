#pragma once

#include "gateway/answer/frames.h"
#include "gateway/text/tokenizer.h"

namespace weir::v1 {
class ChatResponse;
class GenerateResponse;
}  // namespace weir::v1

// Frames as messages of weir.v1.

namespace weir::gateway {

// `tokenizer` tells the bytes of alternatives.
void FillResponse(const Frame& frame, const Tokenizer& tokenizer, v1::ChatResponse& out);
// Plain generation has no reasoning and no tool calls.
void FillResponse(const Frame& frame, const Tokenizer& tokenizer, v1::GenerateResponse& out);

}  // namespace weir::gateway
