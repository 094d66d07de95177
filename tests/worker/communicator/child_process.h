#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace weir::worker {

// A child process whose output is read line by line.  Killed on destruction.
class ChildProcess {
 public:
  // command[0] is the program's path.
  explicit ChildProcess(const std::vector<std::string>& command);
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const { return pid_; }
  void Signal(int number) const;
  // The next line of standard output or error; false when the process ended or nothing came within 30 s.
  bool ReadLine(std::string& line);
  // The same; empty instead of false.
  std::string ReadLine();
  // Reads lines until one holds `text` and returns it; empty when none came.
  std::string ReadUntil(const std::string& text);
  // The exit status, 128 + the signal's number, or -1 when it does not end within 30 s.
  int Wait();

 private:
  pid_t pid_ = -1;
  int output_ = -1;
  std::string buffer_;
};

}  // namespace weir::worker
