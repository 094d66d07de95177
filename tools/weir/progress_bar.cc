#include "tools/weir/progress_bar.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace weir::tools {
namespace {

constexpr double kTerminalIntervalS = 0.1;
constexpr double kLineIntervalS = 5.0;
constexpr int kBarWidth = 24;

}  // namespace

ProgressBar::ProgressBar(std::string label)
    : label_(std::move(label)),
      is_terminal_(isatty(STDERR_FILENO) == 1),
      start_(std::chrono::steady_clock::now()),
      last_(start_) {}

ProgressBar::~ProgressBar() {
  if (is_terminal_ && has_line_) std::fputc('\n', stderr);
}

void ProgressBar::Update(int64_t bytes_done, int64_t bytes_total) {
  const auto now = std::chrono::steady_clock::now();
  const double since_last_s = std::chrono::duration<double>(now - last_).count();
  const bool is_last = bytes_done >= bytes_total && has_line_;
  if (!is_last && since_last_s < (is_terminal_ ? kTerminalIntervalS : kLineIntervalS)) return;
  last_ = now;
  has_line_ = true;
  const double elapsed_s = std::max(1e-3, std::chrono::duration<double>(now - start_).count());
  const double share = bytes_total > 0 ? static_cast<double>(bytes_done) / static_cast<double>(bytes_total) : 1.0;
  const double bytes_per_s = static_cast<double>(bytes_done) / elapsed_s;
  const double left_s = bytes_per_s > 0 ? static_cast<double>(bytes_total - bytes_done) / bytes_per_s : 0.0;
  const std::string bar(static_cast<size_t>(share * kBarWidth), '#');
  std::fprintf(stderr, "%s%s [%-*s] %3.0f %%  %.2f of %.2f GB, %.2f GB/s, %.0f s left %s", is_terminal_ ? "\r" : "",
               label_.c_str(), kBarWidth, bar.c_str(), share * 100, static_cast<double>(bytes_done) / 1e9,
               static_cast<double>(bytes_total) / 1e9, bytes_per_s / 1e9, left_s, is_terminal_ ? "" : "\n");
  std::fflush(stderr);
}

}  // namespace weir::tools
