#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "weir/v1/inference.pb.h"

namespace CLI {
class App;
}

// How to sample and when to stop, as flags; what is not given is left to the gateway.

namespace weir::tools {

struct SamplingFlags {
  std::optional<float> temperature, top_p, min_p;
  std::optional<uint32_t> top_k, max_tokens;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;

  v1::SamplingParams Params() const;
  v1::StopConditions Stop() const;
};

void AddSamplingFlags(CLI::App& command, SamplingFlags& flags);

}  // namespace weir::tools
