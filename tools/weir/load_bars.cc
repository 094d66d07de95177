#include "tools/weir/load_bars.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "absl/strings/str_format.h"

namespace weir::tools {
namespace {

constexpr int kBarWidth = 32;
constexpr std::chrono::seconds kLineInterval{5};

std::string Size(double gigabytes) {
  return gigabytes >= 1 ? absl::StrFormat("%.1f GB", gigabytes) : absl::StrFormat("%.1f MB", 1000 * gigabytes);
}

}  // namespace

LoadBars::LoadBars(int32_t num_ranks)
    : is_terminal_(isatty(STDOUT_FILENO) == 1), bars_(static_cast<size_t>(num_ranks)) {
  for (Bar& bar : bars_) bar.next_line = std::chrono::steady_clock::now() + kLineInterval;
}

void LoadBars::Update(int32_t rank, const LoadLine& load) {
  Bar& bar = bars_[rank];
  bar.load = load;
  bar.is_shown = true;
  if (!is_terminal_) {
    const auto now = std::chrono::steady_clock::now();
    if (now < bar.next_line) return;
    bar.next_line = now + kLineInterval;
    std::printf("rank %-4d  loading %3d %% of %s, %.1f GB/s\n", rank, load.percent, Size(load.total_gb).c_str(),
                load.gb_per_s);
    std::fflush(stdout);
    return;
  }
  Clear();
  Draw();
}

void LoadBars::Done(int32_t rank) {
  Clear();
  bars_[rank].is_shown = false;
  Draw();
}

void LoadBars::Print(const std::string& line) {
  Clear();
  std::printf("%s\n", line.c_str());
  Draw();
  std::fflush(stdout);
}

void LoadBars::Draw() {
  if (!is_terminal_) return;
  for (size_t rank = 0; rank < bars_.size(); ++rank) {
    if (!bars_[rank].is_shown) continue;
    const LoadLine& load = bars_[rank].load;
    const double left_gb = load.total_gb * (100 - load.percent) / 100;
    const std::string bar(static_cast<size_t>(std::clamp(load.percent, 0, 100) * kBarWidth / 100), '#');
    std::printf("rank %-4zu  [%-*s] %3d %% of %s, %.1f GB/s, %.0f s left\n", rank, kBarWidth, bar.c_str(), load.percent,
                Size(load.total_gb).c_str(), load.gb_per_s, load.gb_per_s > 0 ? left_gb / load.gb_per_s : 0.0);
    ++num_drawn_;
  }
  std::fflush(stdout);
}

void LoadBars::Clear() {
  if (num_drawn_ > 0) std::printf("\033[%dA\033[J", num_drawn_);
  num_drawn_ = 0;
}

}  // namespace weir::tools
