#include <cstddef>
#include <cstdint>
#include <string_view>

#include "tools/sim/request_trace.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto trace = weir::sim::ParseTrace({reinterpret_cast<const char*>(data), size});
  if (trace.ok() && trace->requests.empty()) __builtin_trap();
  return 0;
}
