#pragma once

#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

// A program run as a child: in a process group of its own, so that a terminal's Ctrl-C does not reach it; with standard
// output and error in one pipe, read line by line; and killed by the kernel when the thread that started it ends,
// however that ends.

namespace weir::tools {

// "was killed by signal 9 (Killed)", "exited with code 1".
std::string HowItEnded(int wait_status);

class ChildProcess {
 public:
  static constexpr size_t kMaxLineBytes = 4096;  // longer lines are cut

  // argv[0] is the program's path.  UNAVAILABLE when it cannot be run, with the path and why.
  static absl::StatusOr<ChildProcess> Start(const std::vector<std::string>& argv);
  ChildProcess(ChildProcess&& other) noexcept;
  ChildProcess& operator=(ChildProcess&& other) noexcept;
  ~ChildProcess();  // kills its group

  pid_t pid() const { return pid_; }
  int output_fd() const { return output_fd_; }

  // Hands over the lines that are there, without waiting.
  void ReadLines(const std::function<void(std::string_view)>& on_line);

  // To the process alone.
  void Signal(int signal) const;
  // To its group: what it started ends with it.
  void Kill() const;
  // How waitpid describes its end; nothing while it runs.  Asked once after the end, and never again.
  std::optional<int> TryWait();

 private:
  ChildProcess(pid_t pid, int output_fd) : pid_(pid), output_fd_(output_fd) {}
  void Close();

  pid_t pid_ = -1;
  int output_fd_ = -1;
  std::string line_;  // begun and not ended
};

}  // namespace weir::tools
