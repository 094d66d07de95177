#include "tests/worker/communicator/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <thread>

namespace weir::worker {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kPatience{30000};

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& command) {
  int pipe[2];
  if (::pipe2(pipe, O_CLOEXEC) != 0) std::abort();
  std::vector<char*> argv;
  for (const std::string& argument : command) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_ = ::fork();
  if (pid_ == 0) {
    ::dup2(pipe[1], STDOUT_FILENO);
    ::dup2(pipe[1], STDERR_FILENO);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  ::close(pipe[1]);
  output_ = pipe[0];
}

ChildProcess::~ChildProcess() {
  Signal(SIGKILL);
  if (pid_ > 0) ::waitpid(pid_, nullptr, 0);
  ::close(output_);
}

void ChildProcess::Signal(int number) const {
  if (pid_ > 0) ::kill(pid_, number);
}

bool ChildProcess::ReadLine(std::string& line) {
  const auto until = steady_clock::now() + kPatience;
  while (buffer_.find('\n') == buffer_.npos) {
    pollfd entry{output_, POLLIN, 0};
    const auto left = std::chrono::duration_cast<milliseconds>(until - steady_clock::now()).count();
    char chunk[4096];
    if (left <= 0 || ::poll(&entry, 1, static_cast<int>(left)) <= 0) return false;
    const ssize_t n = ::read(output_, chunk, sizeof chunk);
    if (n <= 0) return false;
    buffer_.append(chunk, static_cast<size_t>(n));
  }
  const size_t end = buffer_.find('\n');
  line = buffer_.substr(0, end);
  buffer_.erase(0, end + 1);
  return true;
}

std::string ChildProcess::ReadLine() {
  std::string line;
  return ReadLine(line) ? line : "";
}

std::string ChildProcess::ReadUntil(const std::string& text) {
  for (std::string line; ReadLine(line);) {
    if (line.find(text) != line.npos) return line;
  }
  return "";
}

int ChildProcess::Wait() {
  for (const auto until = steady_clock::now() + kPatience; steady_clock::now() < until;) {
    int status = 0;
    if (::waitpid(pid_, &status, WNOHANG) == pid_) {
      pid_ = -1;
      return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    std::this_thread::sleep_for(milliseconds(1));
  }
  return -1;
}

}  // namespace weir::worker
