#include "tests/tools/weir/terminal_program.h"

#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <array>

namespace weir::tools {
namespace {

constexpr int kPatienceMs = 10'000;

}  // namespace

TerminalProgram::TerminalProgram(const std::vector<std::string>& argv) {
  winsize size = {.ws_row = 40, .ws_col = 200, .ws_xpixel = 0, .ws_ypixel = 0};
  pid_ = forkpty(&fd_, nullptr, nullptr, &size);
  if (pid_ != 0) return;
  setenv("TERM", "xterm", 1);
  std::vector<char*> pointers;
  for (const std::string& argument : argv) pointers.push_back(const_cast<char*>(argument.c_str()));
  pointers.push_back(nullptr);
  execv(pointers[0], pointers.data());
  _exit(127);
}

TerminalProgram::~TerminalProgram() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  close(fd_);
}

void TerminalProgram::Type(const std::string& keys) const {
  [[maybe_unused]] const ssize_t written = write(fd_, keys.data(), keys.size());
}

bool TerminalProgram::ReadMore() {
  pollfd polled = {.fd = fd_, .events = POLLIN, .revents = 0};
  if (poll(&polled, 1, kPatienceMs) <= 0) return false;
  std::array<char, 4096> buffer;
  const ssize_t count = read(fd_, buffer.data(), buffer.size());
  if (count <= 0) return false;
  screen_.append(buffer.data(), static_cast<size_t>(count));
  return true;
}

bool TerminalProgram::Shows(const std::string& text) {
  while (true) {
    const size_t found = screen_.find(text, seen_);
    if (found != std::string::npos) {
      seen_ = found + text.size();
      return true;
    }
    if (!ReadMore()) return false;
  }
}

bool TerminalProgram::Prompts(const std::string& prompt) {
  if (!Shows(prompt)) return false;
  for (int waited_ms = 0; waited_ms < kPatienceMs; waited_ms += 5) {
    termios mode = {};
    if (tcgetattr(fd_, &mode) == 0 && (mode.c_lflag & ICANON) == 0) return true;
    poll(nullptr, 0, 5);
  }
  return false;
}

int TerminalProgram::WaitForExit() {
  while (ReadMore()) {
  }
  int status = 0;
  if (waitpid(pid_, &status, 0) != pid_) return -1;
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

}  // namespace weir::tools
