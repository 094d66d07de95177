#include "worker/communicator/mesh_forming.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace weir::worker {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kRetryInterval{10};
constexpr milliseconds kHelloDeadline{1000};
constexpr size_t kMaxUnfinished = 64;

// Reads what is there of a hello, and no byte beyond it.  True when it is whole.
absl::StatusOr<bool> ReadHello(const FileDescriptor& socket, std::string& received, Hello& hello) {
  char buffer[kMaxHelloBytes];
  while (true) {
    const absl::StatusOr<size_t> num_missing = DecodeHello(received, hello);
    if (!num_missing.ok()) return num_missing.status();
    if (*num_missing == 0) return true;
    const ssize_t n = ::recv(socket.get(), buffer, *num_missing, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return false;
    if (n <= 0) return absl::UnavailableError("it closed before its hello was whole");
    received.append(buffer, static_cast<size_t>(n));
  }
}

// A hello always fits into an empty socket buffer.
bool SendWhole(const FileDescriptor& socket, const std::string& bytes) {
  return ::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT) ==
         static_cast<ssize_t>(bytes.size());
}

bool HasHungUp(const FileDescriptor& socket) {
  pollfd entry{socket.get(), POLLRDHUP, 0};
  return ::poll(&entry, 1, 0) > 0;
}

}  // namespace

MeshForming::MeshForming(const SocketGroupOptions& options, std::vector<SocketAddress> addresses)
    : options_(options),
      addresses_(std::move(addresses)),
      mine_{Verdict::kHello, static_cast<uint32_t>(options.rank), static_cast<uint32_t>(addresses_.size()),
            options.epoch, options.token},
      outgoing_(static_cast<size_t>(options.rank)),
      accepted_(addresses_.size()) {}

absl::StatusOr<std::vector<FileDescriptor>> MeshForming::Run() {
  deadline_ = Clock::now() + options_.connect_deadline;
  auto listener = Listener::Open(addresses_[options_.rank], static_cast<int>(addresses_.size() + kMaxUnfinished));
  if (!listener.ok()) return listener.status();
  listener_fd_ = listener->fd();
  while (true) {
    AcceptAll(*listener);
    for (Incoming& incoming : incoming_) AdvanceIncoming(incoming);
    std::erase_if(incoming_, [](const Incoming& incoming) { return !incoming.socket.is_open(); });
    for (int peer = 0; peer < options_.rank; ++peer) {
      if (absl::Status status = AdvanceOutgoing(peer); !status.ok()) return status;
    }
    DropBroken();
    if (IsFormed()) break;
    if (options_.cancelled != nullptr && *options_.cancelled) {
      return absl::AbortedError("epoch " + std::to_string(options_.epoch) + ": forming the group was cancelled");
    }
    if (Clock::now() >= deadline_) return Expired();
    Wait();
  }
  for (int peer = 0; peer < options_.rank; ++peer) accepted_[peer] = std::move(outgoing_[peer].socket);
  return std::move(accepted_);
}

bool MeshForming::IsFormed() const {
  const auto is_formed = [](const Outgoing& outgoing) { return outgoing.state == Outgoing::State::kFormed; };
  return std::all_of(outgoing_.begin(), outgoing_.end(), is_formed) &&
         std::all_of(accepted_.begin() + options_.rank + 1, accepted_.end(),
                     [](const FileDescriptor& socket) { return socket.is_open(); });
}

absl::Status MeshForming::Expired() const {
  std::string text = "epoch " + std::to_string(options_.epoch) + ": after " +
                     std::to_string(options_.connect_deadline.count()) + " ms rank " + std::to_string(options_.rank) +
                     " misses";
  const char* separator = " ";
  for (int peer = 0; peer < static_cast<int>(addresses_.size()); ++peer) {
    const bool is_below = peer < options_.rank;
    if (peer == options_.rank) continue;
    if (is_below ? outgoing_[peer].state == Outgoing::State::kFormed : accepted_[peer].is_open()) continue;
    text += separator + ("rank " + std::to_string(peer)) + " (" + WhyMissing(peer) + ")";
    separator = ", ";
  }
  if (!stranger_.empty()) text += "; refused a connection: " + stranger_;
  return absl::DeadlineExceededError(text);
}

std::string MeshForming::WhyMissing(int peer) const {
  if (peer > options_.rank) return "it did not connect to " + addresses_[options_.rank].ToString();
  const Outgoing& outgoing = outgoing_[peer];
  if (outgoing.refusal.empty() || outgoing.refusal == outgoing.problem) return outgoing.problem;
  return outgoing.problem + "; before: " + outgoing.refusal;
}

// Sleeps until something may have happened, at most kRetryInterval.
void MeshForming::Wait() {
  std::vector<pollfd> entries{{listener_fd_, POLLIN, 0}};
  for (const Incoming& incoming : incoming_) entries.push_back({incoming.socket.get(), POLLIN, 0});
  for (const Outgoing& outgoing : outgoing_) {
    if (outgoing.state == Outgoing::State::kConnecting) entries.push_back({outgoing.socket.get(), POLLOUT, 0});
    if (outgoing.state == Outgoing::State::kAwaitingAnswer) entries.push_back({outgoing.socket.get(), POLLIN, 0});
  }
  (void)::poll(entries.data(), entries.size(), static_cast<int>(kRetryInterval.count()));
}

void MeshForming::AcceptAll(Listener& listener) {
  for (FileDescriptor socket = listener.Accept(); socket.is_open(); socket = listener.Accept()) {
    // A rank says its hello at once; whoever has been silent longest makes room.
    if (incoming_.size() == kMaxUnfinished) incoming_.erase(incoming_.begin());
    incoming_.push_back({std::move(socket), Clock::now() + kHelloDeadline, ""});
  }
}

void MeshForming::AdvanceIncoming(Incoming& incoming) {
  Hello hello;
  const absl::StatusOr<bool> is_whole = ReadHello(incoming.socket, incoming.received, hello);
  if (is_whole.ok() && *is_whole) return Answer(incoming, hello);
  if (!is_whole.ok()) stranger_ = std::string(is_whole.status().message());
  if (!is_whole.ok() || Clock::now() >= incoming.deadline) incoming.socket.Close();
}

// Closes incoming's socket or moves it to its rank.
void MeshForming::Answer(Incoming& incoming, const Hello& hello) {
  FileDescriptor socket = std::move(incoming.socket);
  Verdict verdict = Judge(mine_, hello);
  if (verdict == Verdict::kAccepted && hello.rank < mine_.rank) verdict = Verdict::kWrongRank;
  Hello answer{verdict, 0, 0, 0, ""};
  if (verdict != Verdict::kWrongToken) {
    answer = mine_;
    answer.verdict = verdict;
  }
  if (verdict != Verdict::kAccepted) stranger_ = Explain(verdict, mine_, hello);
  // A rank that connects again has given up its earlier connection.
  if (SendWhole(socket, EncodeHello(answer)) && verdict == Verdict::kAccepted)
    accepted_[hello.rank] = std::move(socket);
}

absl::Status MeshForming::AdvanceOutgoing(int peer) {
  Outgoing& outgoing = outgoing_[peer];
  if (outgoing.state == Outgoing::State::kFormed) return absl::OkStatus();
  if (outgoing.state == Outgoing::State::kIdle) {
    if (Clock::now() < outgoing.when) return absl::OkStatus();
    Attempt(outgoing, peer);
  }
  if (outgoing.state == Outgoing::State::kConnecting) SendHello(outgoing);
  if (outgoing.state == Outgoing::State::kAwaitingAnswer) return ReadAnswer(outgoing, peer);
  return absl::OkStatus();
}

void MeshForming::Attempt(Outgoing& outgoing, int peer) {
  absl::StatusOr<FileDescriptor> socket = StartConnect(addresses_[peer]);
  if (!socket.ok()) return Retry(outgoing, std::string(socket.status().message()));
  outgoing.socket = *std::move(socket);
  outgoing.state = Outgoing::State::kConnecting;
  outgoing.when = Clock::now() + 2 * kHelloDeadline;
  outgoing.received.clear();
}

void MeshForming::SendHello(Outgoing& outgoing) {
  pollfd entry{outgoing.socket.get(), POLLOUT, 0};
  if (::poll(&entry, 1, 0) == 0) {
    if (Clock::now() >= outgoing.when) Retry(outgoing, "no answer to connecting");
    return;
  }
  if (absl::Status status = ConnectError(outgoing.socket); !status.ok()) {
    return Retry(outgoing, std::string(status.message()));
  }
  if (!SendWhole(outgoing.socket, EncodeHello(mine_))) return Retry(outgoing, "it closed before the hello");
  outgoing.state = Outgoing::State::kAwaitingAnswer;
}

absl::Status MeshForming::ReadAnswer(Outgoing& outgoing, int peer) {
  Hello theirs;
  const absl::StatusOr<bool> is_whole = ReadHello(outgoing.socket, outgoing.received, theirs);
  if (!is_whole.ok()) {
    Refuse(outgoing, std::string(is_whole.status().message()));
  } else if (!*is_whole) {
    if (Clock::now() >= outgoing.when) Retry(outgoing, "no answer to the hello");
  } else if (theirs.verdict == Verdict::kWrongToken) {
    Refuse(outgoing, "it refused the token");
  } else if (const Verdict verdict = Judge(mine_, theirs); verdict != Verdict::kAccepted) {
    if (verdict == Verdict::kWrongEpoch && theirs.epoch > mine_.epoch) {
      return absl::FailedPreconditionError(Explain(verdict, mine_, theirs) + ": form the group of the later epoch");
    }
    Refuse(outgoing, Explain(verdict, mine_, theirs));
  } else if (theirs.verdict != Verdict::kAccepted || theirs.rank != static_cast<uint32_t>(peer)) {
    Refuse(outgoing, Explain(Verdict::kWrongRank, mine_, theirs));
  } else {
    outgoing.state = Outgoing::State::kFormed;
  }
  return absl::OkStatus();
}

void MeshForming::Retry(Outgoing& outgoing, std::string problem) {
  outgoing.socket.Close();
  outgoing.state = Outgoing::State::kIdle;
  outgoing.when = Clock::now() + kRetryInterval;
  outgoing.problem = std::move(problem);
}

void MeshForming::Refuse(Outgoing& outgoing, std::string refusal) {
  outgoing.refusal = refusal;
  Retry(outgoing, std::move(refusal));
}

// A formed connection may end before the group is whole: its rank has started again, and will be back.
void MeshForming::DropBroken() {
  for (Outgoing& outgoing : outgoing_) {
    if (outgoing.state == Outgoing::State::kFormed && HasHungUp(outgoing.socket)) Retry(outgoing, "it closed");
  }
  for (FileDescriptor& socket : accepted_) {
    if (socket.is_open() && HasHungUp(socket)) socket.Close();
  }
}

}  // namespace weir::worker
