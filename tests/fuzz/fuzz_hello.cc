#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "worker/communicator/hello.h"

// The first bytes of a connection between ranks, which anybody may send.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  weir::worker::Hello hello;
  const auto num_missing = weir::worker::DecodeHello(bytes, hello);
  if (!num_missing.ok()) return 0;
  if (*num_missing > weir::worker::kMaxHelloBytes) std::abort();  // nobody makes us read more than a hello
  if (*num_missing > 0) return 0;
  if (hello.token.size() > weir::worker::kMaxTokenBytes) std::abort();
  const std::string again = weir::worker::EncodeHello(hello);
  weir::worker::Hello decoded;
  if (*weir::worker::DecodeHello(again, decoded) != 0 || decoded.token != hello.token) std::abort();
  (void)weir::worker::Explain(weir::worker::Judge({}, hello), {}, hello);
  return 0;
}
