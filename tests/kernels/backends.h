#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/kernels/rig.h"

// Every backend that this build has: one line each in backends.cc is all that a new one needs to be tested.

namespace weir::kernels {

struct BackendUnderTest {
  std::string name;  // "reference", "cpu:avx2"; the column's name
  // Null when this machine lacks what it needs: its tests are skipped.
  std::function<std::unique_ptr<Backend>()> make;
  // The name of a backend whose every bit it must repeat (the same code with another number of threads), or empty.
  std::string same_bits_as;
  AttentionRounding attention_rounding = AttentionRounding::kNone;
};

const std::vector<BackendUnderTest>& Backends();
const BackendUnderTest& BackendNamed(const std::string& name);

// A name that GoogleTest takes: letters, digits and underscores.
std::string TestName(std::string name);

}  // namespace weir::kernels
