#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "tools/weir/cluster/local_cluster.h"

// One bar a rank while they load, at the bottom of the terminal; on something that is not a terminal, a line every
// few seconds.  Other lines go above the bars, through Print.

namespace weir::tools {

class LoadBars {
 public:
  explicit LoadBars(int32_t num_ranks);  // loading begins
  ~LoadBars() { Clear(); }

  void Update(int32_t rank, const LoadLine& load);
  void Done(int32_t rank);
  // A line on standard output that stays.
  void Print(const std::string& line);

 private:
  struct Bar {
    LoadLine load;
    bool is_shown = false;
    std::chrono::steady_clock::time_point next_line;  // not a terminal
  };
  void Draw();
  void Clear();

  const bool is_terminal_;
  std::vector<Bar> bars_;
  int num_drawn_ = 0;  // lines
};

}  // namespace weir::tools
