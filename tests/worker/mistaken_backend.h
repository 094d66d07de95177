#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"

// Backends that compute all but one thing rightly.  The mistakes are those that are made when DeepSeek's models are
// written down anew; comparing with golden logits must show each of them.

namespace weir::worker {

struct Mistake {
  std::string name;  // "wrong RoPE pairing"
  // A backend that forwards to `inner`, which must outlive it.
  std::function<std::unique_ptr<kernels::Backend>(kernels::Backend& inner)> plant;
  std::vector<std::string> golden_cases;  // those that must notice
};

const std::vector<Mistake>& Mistakes();

}  // namespace weir::worker
