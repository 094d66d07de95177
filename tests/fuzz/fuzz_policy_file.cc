#include <cstddef>
#include <cstdint>
#include <string>

#include "tools/sim/policy_file.h"

// What is accepted must print to something that is accepted and prints the same.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto file = weir::sim::ParsePolicyFile(std::string(reinterpret_cast<const char*>(data), size));
  if (!file.ok()) return 0;
  const std::string text = weir::sim::PrintPolicyFile(*file);
  const auto again = weir::sim::ParsePolicyFile(text);
  if (!again.ok() || weir::sim::PrintPolicyFile(*again) != text) __builtin_trap();
  return 0;
}
