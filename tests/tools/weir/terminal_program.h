#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

// A program in a terminal of its own, typed at by a test.

namespace weir::tools {

class TerminalProgram {
 public:
  explicit TerminalProgram(const std::vector<std::string>& argv);
  ~TerminalProgram();  // kills it
  TerminalProgram(const TerminalProgram&) = delete;
  TerminalProgram& operator=(const TerminalProgram&) = delete;

  void Type(const std::string& keys) const;
  // Waits until `text` shows behind what was waited for before; false after ten seconds without.
  bool Shows(const std::string& text);
  // Waits until it shows `prompt` and takes keys one by one, which a line editor does a moment after it shows the
  // prompt.
  bool Prompts(const std::string& prompt);
  int WaitForExit();  // its exit code, or minus the signal
  const std::string& screen() const { return screen_; }

 private:
  bool ReadMore();
  pid_t pid_ = -1;
  int fd_ = -1;
  std::string screen_;
  size_t seen_ = 0;
};

}  // namespace weir::tools
