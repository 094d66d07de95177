#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tools/weir/rank_channel.h"
#include "tools/weir/rank_group.h"
#include "worker/communicator/communicator.h"

namespace weir::tools {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using worker::Communicator;
using worker::Rank;
using worker::StepPlan;
using worker::StepResult;

// Ranks load equally much, but not equally fast.
constexpr milliseconds kConnectDeadline{120'000};
// A rank that dies says nothing; those that waited for it do.  After the first complaint the tool looks this long for a
// death, which is the better answer.
constexpr milliseconds kDeathDeadline{150};
// How often the tool looks whether a rank that keeps it waiting stands still.
constexpr milliseconds kLookInterval{500};

// ---- in a rank's process -----------------------------------------------------------------------------------------

struct Seat {
  int32_t rank = 0;
  std::vector<std::string> addresses;  // of all ranks
  RankChannel tool;
};

// A rank from start to end.  Returns when the tool closes the channel or something has failed.
class RankProcess {
 public:
  RankProcess(const worker::Checkpoint& checkpoint, const RankGroupOptions& options, Seat seat)
      : checkpoint_(checkpoint), options_(options), seat_(std::move(seat)) {}

  absl::Status Run() {
    absl::Status status = Start();
    while (status.ok()) {
      Message message;
      if (!seat_.tool.Receive(message).ok()) return absl::OkStatus();  // the tool is done
      status = Step(message);
    }
    const std::string text(status.message());
    return seat_.tool.Send(MessageOf(MessageKind::kFailed, std::pair(static_cast<int32_t>(status.code()), text)));
  }

 private:
  absl::Status Start() {
    absl::StatusOr<std::unique_ptr<kernels::Backend>> backend = worker::NewBackend(options_.backend);
    if (!backend.ok()) return backend.status();
    backend_ = *std::move(backend);
    worker::RankOptions rank_options = options_.rank;
    rank_options.layout = {.tp = options_.tp, .dp = options_.dp, .rank = seat_.rank};
    absl::StatusOr<std::unique_ptr<Rank>> rank =
        Rank::Load(checkpoint_, rank_options, backend_.get(), nullptr, [this](int64_t done, int64_t total) {
          seat_.tool.Send(MessageOf(MessageKind::kProgress, std::pair(done, total))).IgnoreError();
        });
    if (!rank.ok()) return rank.status();
    rank_ = *std::move(rank);
    absl::StatusOr<std::unique_ptr<Communicator>> group =
        worker::NewSocketGroup({.rank = seat_.rank,
                                .addresses = seat_.addresses,
                                .deadline = options_.collective_deadline,
                                .connect_deadline = kConnectDeadline});
    if (!group.ok()) return group.status();
    communicator_ = *std::move(group);
    if (absl::Status status = rank_->Reform(communicator_.get(), 0); !status.ok()) return status;
    const std::string device = absl::StrCat(std::string(backend_->name()), ": ", std::string(backend_->detail()));
    return seat_.tool.Send(MessageOf(MessageKind::kReady, device));
  }

  // INVALID_ARGUMENT refuses the plan and harms nothing: an answer, not an end.
  absl::Status Step(const Message& message) {
    StepPlan plan;
    if (!Read(message, plan)) return absl::InternalError("the tool sent bytes that are not a plan");
    absl::StatusOr<StepResult> result = rank_->Run(plan);
    if (result.ok()) return seat_.tool.Send(MessageOf(MessageKind::kResult, *std::move(result)));
    if (!absl::IsInvalidArgument(result.status())) return result.status();
    return seat_.tool.Send(MessageOf(MessageKind::kRefused, std::string(result.status().message())));
  }

  const worker::Checkpoint& checkpoint_;
  const RankGroupOptions& options_;
  Seat seat_;
  // In order of construction: a rank holds on to its backend and communicator.
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<Communicator> communicator_;
  std::unique_ptr<Rank> rank_;
};

// ---- in the tool -------------------------------------------------------------------------------------------------

struct Child {
  pid_t pid = -1;
  RankChannel channel;
};

// A fresh directory for the ranks' sockets, which only this user can enter; removed with what it holds.
class SocketDirectory {
 public:
  SocketDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "weir-ranks-XXXXXX").string();
    if (mkdtemp(pattern.data()) != nullptr) path_ = pattern;
  }
  ~SocketDirectory() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  SocketDirectory(const SocketDirectory&) = delete;
  SocketDirectory& operator=(const SocketDirectory&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

std::string HowItEnded(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    return absl::StrCat("was killed by signal ", WTERMSIG(wait_status), " (", strsignal(WTERMSIG(wait_status)), ")");
  }
  return absl::StrCat("exited with code ", WEXITSTATUS(wait_status));
}

// Takes a process from the table if it ends within a moment.
bool HasEnded(pid_t pid, int& wait_status) {
  for (int i = 0; i < 30; ++i) {
    if (waitpid(pid, &wait_status, WNOHANG) == pid) return true;
    poll(nullptr, 0, 10);
  }
  return false;
}

// By a signal such as SIGSTOP; Linux tells it in the field behind the program's name in parentheses.
bool IsStopped(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const size_t end_of_name = text.rfind(')');
  return end_of_name != std::string::npos && end_of_name + 2 < text.size() &&
         (text[end_of_name + 2] == 'T' || text[end_of_name + 2] == 't');
}

// Nothing blocks for ever on a rank that does not move.
void LimitWaits(const RankChannel& channel, milliseconds limit) {
  const timeval time = {.tv_sec = limit.count() / 1000, .tv_usec = limit.count() % 1000 * 1000};
  setsockopt(channel.fd(), SOL_SOCKET, SO_SNDTIMEO, &time, sizeof(time));
  setsockopt(channel.fd(), SOL_SOCKET, SO_RCVTIMEO, &time, sizeof(time));
}

class ProcessRanks : public RankGroup {
 public:
  ~ProcessRanks() override {
    for (Child& child : children_) child.channel.Close();  // a rank that is well ends by itself
    for (const Child& child : children_) End(child.pid);
  }

  absl::Status Start(const worker::Checkpoint& checkpoint, const RankGroupOptions& options,
                     const LoadProgress& progress) {
    const int num_ranks = options.tp * options.dp;
    deadline_ = options.collective_deadline;
    const SocketDirectory directory;
    if (directory.path().empty()) return absl::UnavailableError("cannot make a directory for the ranks' sockets");
    std::vector<std::string> addresses;
    for (int r = 0; r < num_ranks; ++r) addresses.push_back(absl::StrCat("unix:", directory.path(), "/rank-", r));
    for (int r = 0; r < num_ranks; ++r) {
      if (absl::Status status = Fork(checkpoint, options, r, addresses); !status.ok()) return status;
    }
    return WaitUntilReady(progress);
  }

  absl::StatusOr<StepResult> Run(const StepPlan& plan) override;
  std::string device() const override { return device_; }
  std::vector<int> pids() const override {
    std::vector<int> pids;
    for (const Child& child : children_) pids.push_back(child.pid);
    return pids;
  }

 private:
  absl::Status Fork(const worker::Checkpoint& checkpoint, const RankGroupOptions& options, int rank,
                    const std::vector<std::string>& addresses);
  absl::Status WaitUntilReady(const LoadProgress& progress);
  // The next message of a rank that is still `awaited`, and which one's.  A rank's death or complaint is the error; so
  // is one that stands still when `patience` is over.
  absl::StatusOr<int> Receive(const std::vector<bool>& awaited, steady_clock::time_point patience, Message& message);
  absl::Status WaitForAny(std::vector<pollfd>& polled, steady_clock::time_point patience) const;
  absl::Status Complaint(int rank, const Message& message);
  absl::Status Death(int rank);
  static void End(pid_t pid);

  std::vector<Child> children_;
  milliseconds deadline_{0};
  std::string device_;
};

absl::Status ProcessRanks::Fork(const worker::Checkpoint& checkpoint, const RankGroupOptions& options, int rank,
                                const std::vector<std::string>& addresses) {
  std::array<int, 2> ends;
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) {
    return absl::UnavailableError(absl::StrCat("socketpair: ", std::strerror(errno)));
  }
  RankChannel tool_end(ends[0]), rank_end(ends[1]);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return absl::UnavailableError(absl::StrCat("fork: ", std::strerror(errno)));
  if (pid > 0) {
    LimitWaits(tool_end, options.collective_deadline);
    children_.push_back({pid, std::move(tool_end)});
    return absl::OkStatus();
  }
  // The rank dies with the tool, however that ends.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);
  tool_end.Close();
  for (Child& child : children_) child.channel.Close();
  const absl::Status status = RankProcess(checkpoint, options, {rank, addresses, std::move(rank_end)}).Run();
  _exit(status.ok() ? 0 : 1);  // without the tool's own clean-up
}

absl::Status ProcessRanks::WaitUntilReady(const LoadProgress& progress) {
  std::vector<std::pair<int64_t, int64_t>> loads(children_.size());
  std::vector<bool> awaited(children_.size(), true);
  while (std::find(awaited.begin(), awaited.end(), true) != awaited.end()) {
    Message message;
    const absl::StatusOr<int> rank = Receive(awaited, steady_clock::time_point::max(), message);
    if (!rank.ok()) return rank.status();
    if (message.kind == MessageKind::kReady && Read(message, device_)) awaited[*rank] = false;
    if (message.kind != MessageKind::kProgress || !Read(message, loads[*rank]) || !progress) continue;
    int64_t done = 0, total = 0;
    for (const auto& [rank_done, rank_total] : loads) {
      done += rank_done;
      total += rank_total;
    }
    progress(done, total);
  }
  return absl::OkStatus();
}

absl::StatusOr<StepResult> ProcessRanks::Run(const StepPlan& plan) {
  const Message message = MessageOf(MessageKind::kPlan, plan);
  for (size_t r = 0; r < children_.size(); ++r) {
    if (!children_[r].channel.Send(message).ok()) return Death(static_cast<int>(r));
  }
  std::vector<StepResult> results(children_.size());
  std::vector<bool> awaited(children_.size(), true);
  // While no rank has its result, the ranks watch each other.
  steady_clock::time_point patience = steady_clock::time_point::max();
  std::string refusal;
  for (size_t i = 0; i < children_.size(); ++i) {
    Message answer;
    const absl::StatusOr<int> rank = Receive(awaited, patience, answer);
    if (!rank.ok()) return rank.status();
    awaited[*rank] = false;
    if (answer.kind == MessageKind::kRefused && Read(answer, refusal)) continue;
    if (answer.kind != MessageKind::kResult || !Read(answer, results[*rank])) {
      return absl::InternalError(absl::StrCat("rank ", *rank, " gave an answer that is none"));
    }
    if (i == 0) patience = steady_clock::now() + deadline_;
  }
  if (!refusal.empty()) return absl::InvalidArgumentError(refusal);
  return MergeResults(plan, std::move(results));
}

absl::StatusOr<int> ProcessRanks::Receive(const std::vector<bool>& awaited, steady_clock::time_point patience,
                                          Message& message) {
  std::vector<pollfd> polled;
  for (size_t r = 0; r < children_.size(); ++r) {
    polled.push_back({.fd = awaited[r] ? children_[r].channel.fd() : -1, .events = POLLIN, .revents = 0});
  }
  if (absl::Status status = WaitForAny(polled, patience); !status.ok()) return status;
  const auto found = std::find_if(polled.begin(), polled.end(), [](const pollfd& p) { return p.revents != 0; });
  const auto rank = static_cast<int>(found - polled.begin());
  if (!children_[rank].channel.Receive(message).ok()) return Death(rank);
  if (message.kind == MessageKind::kFailed) return Complaint(rank, message);
  return rank;
}

absl::Status ProcessRanks::WaitForAny(std::vector<pollfd>& polled, steady_clock::time_point patience) const {
  while (true) {
    const int num_ready = poll(polled.data(), polled.size(), static_cast<int>(kLookInterval.count()));
    if (num_ready > 0) return absl::OkStatus();
    if (num_ready < 0 && errno != EINTR) return absl::InternalError(absl::StrCat("poll: ", std::strerror(errno)));
    if (steady_clock::now() < patience) continue;
    for (size_t r = 0; r < children_.size(); ++r) {
      if (polled[r].fd < 0 || !IsStopped(children_[r].pid)) continue;
      return absl::DeadlineExceededError(
          absl::StrCat("rank ", r, " (process ", children_[r].pid, ") is stopped while the others have their results"));
    }
  }
}

absl::Status ProcessRanks::Complaint(int rank, const Message& message) {
  const steady_clock::time_point deadline = steady_clock::now() + kDeathDeadline;
  while (steady_clock::now() < deadline) {
    for (size_t r = 0; r < children_.size(); ++r) {
      siginfo_t info = {};
      // Looks without taking the process from the table: the destructor does.
      const bool has_ended =
          waitid(P_PID, children_[r].pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0;
      if (has_ended && info.si_code != CLD_EXITED) return Death(static_cast<int>(r));
    }
    poll(nullptr, 0, 5);
  }
  std::pair<int32_t, std::string> failure;
  if (!Read(message, failure)) return absl::InternalError(absl::StrCat("rank ", rank, " failed and did not say how"));
  return absl::Status(static_cast<absl::StatusCode>(failure.first), absl::StrCat("rank ", rank, ": ", failure.second));
}

// The channel is closed or blocked: the process has ended, is about to, or does not move.
absl::Status ProcessRanks::Death(int rank) {
  Child& child = children_[rank];
  const std::string name = absl::StrCat("rank ", rank, " (process ", child.pid, ") ");
  int status = 0;
  if (!HasEnded(child.pid, status)) return absl::UnavailableError(name + "does not take or give messages");
  child.pid = -1;
  return absl::UnavailableError(name + HowItEnded(status));
}

void ProcessRanks::End(pid_t pid) {
  int status = 0;
  if (pid <= 0 || HasEnded(pid, status)) return;
  kill(pid, SIGKILL);
  waitpid(pid, &status, 0);
}

}  // namespace

absl::StatusOr<std::unique_ptr<RankGroup>> NewProcessRanks(const worker::Checkpoint& checkpoint,
                                                           const RankGroupOptions& options,
                                                           const LoadProgress& progress) {
  auto ranks = std::make_unique<ProcessRanks>();
  if (absl::Status status = ranks->Start(checkpoint, options, progress); !status.ok()) return status;
  return ranks;
}

}  // namespace weir::tools
