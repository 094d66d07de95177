#include "tools/weir/cluster/health_watch.h"

#include "absl/strings/str_cat.h"

namespace weir::tools {

std::optional<std::string> HealthWatch::Silent() {
  if (++num_silences_ < kMaxSilences) return std::nullopt;
  const auto silent_s = std::chrono::duration_cast<std::chrono::seconds>(kInterval * kMaxSilences).count();
  return absl::StrCat("hung (no answer at /healthz for ", silent_s, " s) and was killed");
}

std::optional<std::string> HealthWatch::Complained(const std::string& text) {
  num_silences_ = 0;
  if (++num_complaints_ < kMaxComplaints) return std::nullopt;
  return absl::StrCat("hung (", text, ") and was killed");
}

}  // namespace weir::tools
