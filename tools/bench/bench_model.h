#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"

// The model that whole-engine benchmarks run: 754 M parameters (174 M active) in the shape of DeepSeek V3, with random
// weights.

namespace weir::tools {

inline constexpr int32_t kBenchModelVocabulary = 32256;

// Its directory below `cache`, "bf16" or "fp8", written (2.3 GB for both) if it is not there or of another shape; with
// a tokenizer whose tokens stand for made-up words.  `progress(bytes done, bytes total)` may be null.
absl::StatusOr<std::string> MakeBenchModel(const std::string& cache, const std::string& dtype,
                                           const std::function<void(int64_t, int64_t)>& progress);

// ~/.cache/weir/bench
std::string DefaultBenchCache();

// A tokenizer.json for models without text: byte-level, a token a byte and then words, as many as the vocabulary has.
std::string PlainTokenizerJson(int32_t vocab_size);

}  // namespace weir::tools
