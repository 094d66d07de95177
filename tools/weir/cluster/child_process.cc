#include "tools/weir/cluster/child_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace weir::tools {
namespace {

struct Pipe {
  int read_end = -1, write_end = -1;
};

bool MakePipe(Pipe& made) {
  std::array<int, 2> ends;
  if (pipe2(ends.data(), O_CLOEXEC) != 0) return false;
  made = {ends[0], ends[1]};
  return true;
}

// In the child: everything up to exec is safe after fork.  What goes wrong is told through `failure` as an errno.
[[noreturn]] void Become(char* const* argv, pid_t parent, int output, int failure) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);  // it was gone before prctl
  setpgid(0, 0);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  signal(SIGPIPE, SIG_DFL);
  const int nothing = open("/dev/null", O_RDONLY);
  if (nothing >= 0 && dup2(nothing, STDIN_FILENO) >= 0 && dup2(output, STDOUT_FILENO) >= 0 &&
      dup2(output, STDERR_FILENO) >= 0) {
    execv(argv[0], argv);
  }
  const int error = errno;
  [[maybe_unused]] const ssize_t ignored = write(failure, &error, sizeof(error));
  _exit(127);
}

absl::Status SystemError(const std::string& what, int error) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(error)));
}

}  // namespace

std::string HowItEnded(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    return absl::StrCat("was killed by signal ", WTERMSIG(wait_status), " (", strsignal(WTERMSIG(wait_status)), ")");
  }
  return absl::StrCat("exited with code ", WEXITSTATUS(wait_status));
}

absl::StatusOr<ChildProcess> ChildProcess::Start(const std::vector<std::string>& argv) {
  std::vector<char*> pointers;
  pointers.reserve(argv.size() + 1);
  for (const std::string& argument : argv) pointers.push_back(const_cast<char*>(argument.c_str()));
  pointers.push_back(nullptr);

  Pipe output, failure;
  if (!MakePipe(output)) return SystemError("pipe", errno);
  ChildProcess child(-1, output.read_end);
  if (!MakePipe(failure)) {
    close(output.write_end);
    return SystemError("pipe", errno);
  }
  const pid_t parent = getpid();
  child.pid_ = fork();
  const int fork_error = errno;
  if (child.pid_ == 0) Become(pointers.data(), parent, output.write_end, failure.write_end);
  close(output.write_end);
  close(failure.write_end);
  int error = child.pid_ < 0 ? fork_error : 0;
  if (child.pid_ > 0) {
    setpgid(child.pid_, child.pid_);  // whoever comes first; after exec it fails, and has happened
    [[maybe_unused]] const ssize_t num_bytes = read(failure.read_end, &error, sizeof(error));
  }
  close(failure.read_end);
  if (error != 0) return SystemError(absl::StrCat("cannot run ", argv[0]), error);
  fcntl(child.output_fd_, F_SETFL, O_NONBLOCK);
  return child;
}

ChildProcess::ChildProcess(ChildProcess&& other) noexcept
    : pid_(std::exchange(other.pid_, -1)),
      output_fd_(std::exchange(other.output_fd_, -1)),
      line_(std::move(other.line_)) {}

ChildProcess& ChildProcess::operator=(ChildProcess&& other) noexcept {
  if (this == &other) return *this;
  Close();
  pid_ = std::exchange(other.pid_, -1);
  output_fd_ = std::exchange(other.output_fd_, -1);
  line_ = std::move(other.line_);
  return *this;
}

ChildProcess::~ChildProcess() { Close(); }

void ChildProcess::Close() {
  if (pid_ > 0) {
    Kill();
    waitpid(pid_, nullptr, 0);
  }
  if (output_fd_ >= 0) close(output_fd_);
  pid_ = output_fd_ = -1;
}

void ChildProcess::ReadLines(const std::function<void(std::string_view)>& on_line) {
  std::array<char, 4096> buffer;
  while (output_fd_ >= 0) {
    const ssize_t num_bytes = read(output_fd_, buffer.data(), buffer.size());
    if (num_bytes < 0 && errno == EINTR) continue;
    if (num_bytes < 0) return;  // nothing there at the moment
    if (num_bytes == 0) {
      if (!line_.empty()) on_line(std::exchange(line_, {}));
      close(std::exchange(output_fd_, -1));
      return;
    }
    for (const char c : std::string_view(buffer.data(), static_cast<size_t>(num_bytes))) {
      if (c == '\n') {
        on_line(std::exchange(line_, {}));
      } else if (line_.size() < kMaxLineBytes) {
        line_.push_back(c);
      }
    }
  }
}

void ChildProcess::Signal(int signal) const {
  if (pid_ > 0) kill(pid_, signal);
}

void ChildProcess::Kill() const {
  if (pid_ <= 0) return;
  kill(-pid_, SIGKILL);
  kill(pid_, SIGKILL);  // in the moment before it has its group
}

std::optional<int> ChildProcess::TryWait() {
  int status = 0;
  if (pid_ <= 0 || waitpid(pid_, &status, WNOHANG) != pid_) return std::nullopt;
  kill(-pid_, SIGKILL);  // what it left behind
  pid_ = -1;
  return status;
}

}  // namespace weir::tools
