#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace weir::tools {

// OK when 127.0.0.1:`port` can be listened on now; else UNAVAILABLE with the system's words.  Connections that linger
// there hinder nobody.
absl::Status CheckPortIsFree(int32_t port);

// Ports in a row on 127.0.0.1 that nobody listens on and, while this lives, nobody else is given: they are bound here
// with SO_REUSEADDR, not listened on, so that children who ask for them with that option (gRPC and civetweb do) get
// them, and get them again after a restart, while others who look for free ports find them taken.
class HeldPorts {
 public:
  // UNAVAILABLE when there are none.
  static absl::StatusOr<HeldPorts> Take(int32_t count);
  HeldPorts() = default;  // none
  ~HeldPorts();
  HeldPorts(HeldPorts&& other) noexcept;
  HeldPorts& operator=(HeldPorts&& other) noexcept;

  int32_t first() const { return first_; }

 private:
  // False when the port is not to be had.
  bool Hold(int32_t port);
  void LetGo();

  int32_t first_ = 0;
  std::vector<int> fds_;
};

}  // namespace weir::tools
