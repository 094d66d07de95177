#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tests/worker/checkpoint_writer.h"
#include "worker/checkpoint/checkpoint.h"

// A folder of tests/worker/goldens, read: a tiny checkpoint, prompts, and the logits that others computed.  The format
// is described there.

namespace weir::worker {

// [rows, vocab_size]
struct GoldenLogits {
  int64_t vocab_size = 0;
  std::vector<float> values;
  const float* row(int64_t r) const { return values.data() + r * vocab_size; }
};

struct GoldenPrompt {
  std::vector<int32_t> prompt_ids;
  int32_t first_row = 0;  // in every logits file
  int32_t row_count = 0;

  // Of one arithmetic ("exact", "stored").
  struct Continuation {
    std::vector<int32_t> ids;
    std::vector<double> leads;       // of the best logit over the second, by step
    std::vector<int32_t> near_ties;  // steps that may fall either way
  };
  Continuation exact, stored;
};

struct GoldenCase {
  std::string name;
  std::string weights;  // "F32", "BF16", "F8_E4M3"
  std::vector<GoldenPrompt> prompts;
  GoldenLogits exact;                  // float64 oracle, nothing rounded
  std::optional<GoldenLogits> stored;  // float64 oracle in the arithmetic of the stored weights; not for F32
  GoldenLogits transformers;           // transformers in float32
};

// v2, v2lite, v3, ...: every folder.
std::vector<std::string> GoldenCaseNames();

// Reads a case once; the same object for the same name.
const GoldenCase& ReadGoldenCase(const std::string& name);

// Its checkpoint, opened; made by the generator, or put together from another case's file, where it is not kept.
const Checkpoint& GoldenCheckpoint(const std::string& name);

// The tensors of a config as the generator that the goldens' README describes makes them.
CheckpointWriter GeneratedCheckpoint(const nlohmann::json& config, double bias_offset);

}  // namespace weir::worker
