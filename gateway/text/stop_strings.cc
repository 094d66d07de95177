#include "gateway/text/stop_strings.h"

#include <algorithm>
#include <utility>

namespace weir::gateway {

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
  std::erase_if(stops_, [](const std::string& stop) { return stop.empty(); });
}

bool StopStrings::Append(std::string_view text, std::string& visible) {
  if (found_.has_value()) return true;
  held_.append(text);
  // The stop text that is complete first ends the output; of two complete at one place, the longer.
  size_t first_end = std::string::npos;
  size_t begin = 0;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    const size_t end = at + stop.size();
    if (end < first_end || (end == first_end && at < begin)) {
      first_end = end;
      begin = at;
      found_ = stop;
    }
  }
  if (found_.has_value()) {
    visible.append(held_, 0, begin);
    held_.clear();
    return true;
  }
  // Keep back the longest end that begins a stop text.
  size_t keep = 0;
  for (const std::string& stop : stops_) {
    for (size_t size = std::min(stop.size() - 1, held_.size()); size > keep; --size) {
      if (std::string_view(held_).substr(held_.size() - size) == std::string_view(stop).substr(0, size)) {
        keep = size;
        break;
      }
    }
  }
  visible.append(held_, 0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return false;
}

void StopStrings::Finish(std::string& visible) {
  if (found_.has_value()) return;
  visible.append(held_);
  held_.clear();
}

}  // namespace weir::gateway
