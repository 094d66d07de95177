#include "worker/communicator/socket_mesh.h"

#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

namespace weir::worker {
namespace {

using std::chrono::milliseconds;

constexpr size_t kMaxFailureBytes = 1000;
// A peer that gives up or leaves sends its last words in one piece; they are waited for at most this long.
constexpr milliseconds kLastWords{50};

constexpr milliseconds kWatchInterval{10};
// How long a rank that gives up goes on sending what it has begun.
constexpr milliseconds kFinishPatience{100};
// How long leaving in order may take when peers are slow to read.
constexpr milliseconds kGoodbyePatience{200};

// A rank that misses several may miss some only because they miss the one at fault.  Whoever is furthest behind in the
// collective misses that one alone; it gives up first, and tells the others the name in this time.
milliseconds Grace(milliseconds patience) { return std::min(patience / 20, milliseconds(100)); }

bool WouldBlock() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

bool WaitReadable(int fd, milliseconds patience) {
  pollfd entry{fd, POLLIN, 0};
  return ::poll(&entry, 1, static_cast<int>(patience.count())) > 0;
}

void WaitWritable(int fd, SocketMesh::Clock::time_point until) {
  const auto left = std::chrono::ceil<milliseconds>(until - SocketMesh::Clock::now());
  pollfd entry{fd, POLLOUT, 0};
  (void)::poll(&entry, 1, static_cast<int>(std::max<int64_t>(left.count(), 0)));
}

// Reads exactly num_bytes, or less when the stream ends or nothing comes any more.
size_t ReadLastWords(int fd, char* out, size_t num_bytes) {
  size_t done = 0;
  while (done < num_bytes && WaitReadable(fd, kLastWords)) {
    const ssize_t n = ::recv(fd, out + done, num_bytes - done, 0);
    if (n == 0 || (n < 0 && !WouldBlock())) break;
    done += n > 0 ? static_cast<size_t>(n) : 0;
  }
  return done;
}

bool Skip(int fd, uint64_t num_bytes) {
  char scratch[16384];
  while (num_bytes > 0) {
    const size_t n = ReadLastWords(fd, scratch, std::min<uint64_t>(num_bytes, sizeof scratch));
    if (n == 0) return false;
    num_bytes -= n;
  }
  return true;
}

// Appends the part of `span` that lies at or after `offset`, counted from the span's begin; returns what is left of the
// offset for the next span.
template <typename Span>
uint64_t AppendRest(Span span, uint64_t offset, iovec* entries, int& count) {
  if (offset >= span.size()) return offset - span.size();
  entries[count++] = {const_cast<std::byte*>(span.data()) + offset, span.size() - offset};
  return 0;
}

template <typename Parts>
uint64_t TotalBytes(const Parts& parts) {
  return parts[0].size() + parts[1].size();
}

// A failure travels as its code in one byte and its message.
std::string EncodeFailure(const absl::Status& status) {
  return (static_cast<char>(status.code()) + std::string(status.message())).substr(0, kMaxFailureBytes);
}

absl::Status DecodeFailure(std::string_view text, int reporter) {
  const auto code = static_cast<absl::StatusCode>(text.empty() ? 0 : text[0]);
  const std::string message(text.substr(std::min<size_t>(1, text.size())));
  const std::string origin = " (reported by rank " + std::to_string(reporter) + ")";
  const bool is_reported = message.find("(reported by rank ") != message.npos;
  const bool is_known = code == absl::StatusCode::kDeadlineExceeded || code == absl::StatusCode::kInternal;
  return absl::Status(is_known ? code : absl::StatusCode::kUnavailable, message + (is_reported ? "" : origin));
}

}  // namespace

SocketMesh::SocketMesh(int rank, std::vector<FileDescriptor> links, milliseconds deadline,
                       std::chrono::microseconds spin)
    : rank_(rank), deadline_(deadline), spin_(spin), wake_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  links_.resize(links.size());
  for (size_t i = 0; i < links.size(); ++i) links_[i].socket = std::move(links[i]);
}

SocketMesh::~SocketMesh() {
  std::lock_guard lock(io_mutex_);
  const Clock::time_point until = Clock::now() + kGoodbyePatience;
  for (Link& link : links_) {
    // The peer may still be reading the last collective; it must find the goodbye behind it.
    if (link.socket.is_open() && !link.has_left) WaitWritable(link.socket.get(), until);
    Tell(link, MessageKind::kGoodbye, "");
  }
}

absl::Status SocketMesh::Call(const std::function<absl::Status()>& collective) {
  {
    std::lock_guard lock(io_mutex_);
    if (is_aborted_) return Die(AbortStatus());
    if (!death_.ok()) return death_;
    started_ = Clock::now();
    if (absl::Status status = collective(); !status.ok()) return Die(std::move(status));
  }
  // An Abort that came meanwhile found the mutex taken and left the burial to this thread.
  if (!is_aborted_) return absl::OkStatus();
  std::lock_guard lock(io_mutex_);
  return Die(AbortStatus());
}

void SocketMesh::Abort(std::string reason) {
  {
    std::lock_guard lock(abort_mutex_);
    if (is_aborted_) return;
    abort_reason_ = std::move(reason);
    is_aborted_ = true;
  }
  const uint64_t one = 1;
  (void)!::write(wake_.get(), &one, sizeof one);
  std::unique_lock lock(io_mutex_, std::try_to_lock);
  if (lock.owns_lock()) (void)Die(AbortStatus());
}

absl::Status SocketMesh::AbortStatus() {
  std::lock_guard lock(abort_mutex_);
  return absl::AbortedError(abort_reason_);
}

absl::Status SocketMesh::Exchange(const MessageHeader& header, std::span<const Transfer> transfers,
                                  milliseconds patience) {
  Begin(header, transfers);
  Clock::time_point spin_until = Clock::now() + spin_;
  while (true) {
    const absl::StatusOr<bool> progress = AdvanceAll(header);
    if (!progress.ok()) return progress.status();
    if (NumMissing() == 0) return absl::OkStatus();
    if (is_aborted_) return AbortStatus();
    if (cancelled_ != nullptr && *cancelled_) return absl::AbortedError("cancelled");
    const Clock::time_point now = Clock::now();
    const Clock::time_point deadline = started_ + (NumMissing() == 1 ? patience : patience + Grace(patience));
    if (now >= deadline) return Expired(header, patience);
    if (*progress) {
      spin_until = now + spin_;
    } else if (now < spin_until) {
      // If the peer waits for this very processor, this lets it run.
      ::sched_yield();
    } else if (absl::Status status = Sleep(deadline); !status.ok()) {
      return status;
    }
  }
}

int SocketMesh::NumMissing() const {
  return static_cast<int>(
      std::count_if(flows_.begin(), flows_.end(), [](const Flow& flow) { return !flow.is_done(); }));
}

void SocketMesh::Begin(const MessageHeader& header, std::span<const Transfer> transfers) {
  flows_.clear();
  for (const Transfer& transfer : transfers) {
    Flow& flow = flows_.emplace_back();
    flow.transfer = &transfer;
    flow.link = &links_[transfer.peer];
    flow.out = header;
    flow.out.payload_bytes = TotalBytes(transfer.send);
  }
}

absl::StatusOr<bool> SocketMesh::AdvanceAll(const MessageHeader& expected) {
  bool has_progress = false;
  for (Flow& flow : flows_) {
    if (flow.is_done()) continue;
    if (flow.link->has_left) {
      return HasLeft(flow.transfer->peer);
    }
    // Reading first: a peer that gave up has sent its reason, and writing to it would only say that the pipe is broken.
    if (!flow.is_received) {
      const absl::StatusOr<bool> received = Receive(flow, expected);
      if (!received.ok()) return received;
      has_progress |= *received;
    }
    if (!flow.is_sent) {
      const absl::StatusOr<bool> sent = Send(flow);
      if (!sent.ok()) return sent;
      has_progress |= *sent;
    }
  }
  return has_progress;
}

absl::StatusOr<bool> SocketMesh::Send(Flow& flow) {
  iovec entries[3];
  int count = 0;
  uint64_t offset = flow.num_sent;
  offset = AppendRest(std::as_bytes(std::span(&flow.out, 1)), offset, entries, count);
  for (const auto& part : flow.transfer->send) offset = AppendRest(part, offset, entries, count);
  msghdr message{};
  message.msg_iov = entries;
  message.msg_iovlen = static_cast<size_t>(count);
  const ssize_t n = ::sendmsg(flow.link->socket.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (n < 0) {
    if (WouldBlock()) return false;
    // The peer's end is closed; it may have said goodbye after the last look at what it sent.
    if (absl::Status last_words = LookAtHangup(flow.transfer->peer); !last_words.ok()) return last_words;
    return HasLeft(flow.transfer->peer);
  }
  flow.num_sent += static_cast<uint64_t>(n);
  flow.is_sent = flow.num_sent == sizeof(MessageHeader) + flow.out.payload_bytes;
  flow.link->in_message = !flow.is_sent;
  return true;
}

absl::StatusOr<bool> SocketMesh::Receive(Flow& flow, const MessageHeader& expected) {
  const uint64_t before = flow.num_received;
  if (flow.num_received < sizeof(MessageHeader)) {
    const absl::StatusOr<bool> is_whole = ReceiveHeader(flow, expected);
    if (!is_whole.ok()) return is_whole;
    if (!*is_whole) return flow.num_received > before;
  }
  const absl::StatusOr<bool> is_whole = ReceivePayload(flow);
  if (!is_whole.ok()) return is_whole;
  flow.is_received = *is_whole;
  return flow.num_received > before;
}

absl::StatusOr<bool> SocketMesh::ReceiveHeader(Flow& flow, const MessageHeader& expected) {
  const ssize_t n = ::recv(flow.link->socket.get(), reinterpret_cast<char*>(&flow.in) + flow.num_received,
                           sizeof(MessageHeader) - flow.num_received, MSG_DONTWAIT);
  if (n < 0 && WouldBlock()) return false;
  if (n <= 0) return Broken(flow.transfer->peer, n == 0 ? "it closed" : std::generic_category().message(errno));
  flow.num_received += static_cast<uint64_t>(n);
  if (flow.num_received < sizeof(MessageHeader)) return false;
  if (absl::Status status = CheckHeader(flow, expected); !status.ok()) return status;
  return true;
}

absl::Status SocketMesh::CheckHeader(Flow& flow, const MessageHeader& expected) {
  const int peer = flow.transfer->peer;
  if (flow.in.magic == MessageHeader::kMagic && flow.in.kind == MessageKind::kGoodbye) {
    flow.link->has_left = true;
    return HasLeft(peer);
  }
  if (flow.in.magic == MessageHeader::kMagic && flow.in.kind == MessageKind::kFailure) {
    return ReadFailure(peer, flow.in.payload_bytes);
  }
  if (!flow.in.Matches(expected)) {
    return absl::InternalError("ranks have diverged: rank " + std::to_string(rank_) + " is in " + expected.ToString() +
                               ", rank " + std::to_string(peer) + " in " + flow.in.ToString());
  }
  std::vector<std::byte>* any = flow.transfer->receive_any;
  const uint64_t allowed = any != nullptr ? kMaxAnyBytes : TotalBytes(flow.transfer->receive);
  if (any != nullptr ? flow.in.payload_bytes > allowed : flow.in.payload_bytes != allowed) {
    return absl::InternalError("ranks have diverged: in " + expected.ToString() + " rank " + std::to_string(peer) +
                               " sends " + std::to_string(flow.in.payload_bytes) + " bytes where rank " +
                               std::to_string(rank_) + " expects " + (any != nullptr ? "at most " : "") +
                               std::to_string(allowed));
  }
  if (any != nullptr) any->resize(flow.in.payload_bytes);
  return absl::OkStatus();
}

absl::StatusOr<bool> SocketMesh::ReceivePayload(Flow& flow) {
  const uint64_t total = sizeof(MessageHeader) + flow.in.payload_bytes;
  if (flow.num_received == total) return true;
  iovec entries[2];
  int count = 0;
  uint64_t offset = flow.num_received - sizeof(MessageHeader);
  if (flow.transfer->receive_any != nullptr) {
    AppendRest(std::span(*flow.transfer->receive_any), offset, entries, count);
  } else {
    for (const auto& part : flow.transfer->receive) offset = AppendRest(part, offset, entries, count);
  }
  const ssize_t n = ::readv(flow.link->socket.get(), entries, count);
  if (n < 0 && WouldBlock()) return false;
  if (n <= 0) {
    return Broken(flow.transfer->peer,
                  n == 0 ? "it closed in the middle of a message" : std::generic_category().message(errno));
  }
  flow.num_received += static_cast<uint64_t>(n);
  return flow.num_received == total;
}

// Sleeps until a wanted socket is ready, any rank's connection breaks, or Abort is called.
absl::Status SocketMesh::Sleep(Clock::time_point until) {
  std::vector<pollfd> entries(links_.size());
  for (size_t peer = 0; peer < links_.size(); ++peer) {
    // A rank that has left in order hangs up for good; poll skips negative numbers.
    entries[peer] = {links_[peer].has_left ? -1 : links_[peer].socket.get(), POLLRDHUP, 0};
  }
  for (const Flow& flow : flows_) {
    short& events = entries[flow.transfer->peer].events;
    if (!flow.is_received) events |= POLLIN;
    if (!flow.is_sent) events |= POLLOUT;
  }
  entries[rank_] = {wake_.get(), POLLIN, 0};
  auto left = std::max(std::chrono::ceil<milliseconds>(until - Clock::now()), milliseconds(0));
  if (cancelled_ != nullptr) left = std::min(left, kWatchInterval);
  if (::poll(entries.data(), entries.size(), static_cast<int>(left.count())) <= 0) {
    return absl::OkStatus();
  }
  for (size_t peer = 0; peer < links_.size(); ++peer) {
    const short events = entries[peer].revents;
    const bool is_read_anyway = (entries[peer].events & POLLIN) != 0 && (events & POLLIN) != 0;
    if (static_cast<int>(peer) == rank_ || is_read_anyway) continue;
    if ((events & (POLLRDHUP | POLLHUP | POLLERR)) == 0) continue;
    if (absl::Status status = LookAtHangup(static_cast<int>(peer)); !status.ok()) return status;
  }
  return absl::OkStatus();
}

// A peer's connection has ended although nothing is wanted from it at this moment.  Its last words tell whether it left
// in order, which is no failure until it is needed, or why it gave up; without any it broke.
absl::Status SocketMesh::LookAtHangup(int peer) {
  Link& link = links_[peer];
  MessageHeader header;
  for (int num_skipped = 0;
       ReadLastWords(link.socket.get(), reinterpret_cast<char*>(&header), sizeof header) == sizeof header;
       ++num_skipped) {
    if (header.magic != MessageHeader::kMagic) break;
    if (header.kind == MessageKind::kFailure) return ReadFailure(peer, header.payload_bytes);
    if (header.kind == MessageKind::kGoodbye && num_skipped == 0) {
      link.has_left = true;
      return absl::OkStatus();
    }
    if (!Skip(link.socket.get(), header.payload_bytes)) break;
  }
  return Broken(peer, "it closed");
}

absl::Status SocketMesh::ReadFailure(int peer, uint64_t num_bytes) {
  std::string text(std::min<uint64_t>(num_bytes, kMaxFailureBytes), '\0');
  text.resize(ReadLastWords(links_[peer].socket.get(), text.data(), text.size()));
  return DecodeFailure(text, peer);
}

absl::Status SocketMesh::Expired(const MessageHeader& header, milliseconds patience) const {
  std::vector<int> missing;
  for (const Flow& flow : flows_) {
    if (!flow.is_done()) missing.push_back(flow.transfer->peer);
  }
  return absl::DeadlineExceededError("rank " + std::to_string(rank_) + " waited " + std::to_string(patience.count()) +
                                     " ms in " + header.ToString() + " for " + JoinRanks(missing));
}

absl::Status SocketMesh::Broken(int peer, const std::string& how) const {
  return absl::UnavailableError("the connection to rank " + std::to_string(peer) + " broke: " + how);
}

absl::Status SocketMesh::HasLeft(int peer) const {
  return absl::UnavailableError("rank " + std::to_string(peer) + " has left the group");
}

absl::Status SocketMesh::Die(absl::Status reason) {
  if (!death_.ok()) return death_;
  death_ = std::move(reason);
  const absl::Status told =
      absl::IsAborted(death_)
          ? absl::UnavailableError("rank " + std::to_string(rank_) + " aborted: " + std::string(death_.message()))
          : death_;
  const std::string text = EncodeFailure(told);
  FinishMessages();
  for (Link& link : links_) Tell(link, MessageKind::kFailure, text);
  return death_;
}

// Last words cannot stand in the middle of a message.  Peers that live are reading, so what is begun is soon sent.
void SocketMesh::FinishMessages() {
  const Clock::time_point until = Clock::now() + kFinishPatience;
  std::vector<Flow*> unfinished;
  for (Flow& flow : flows_) {
    if (flow.link->in_message) unfinished.push_back(&flow);
  }
  std::vector<pollfd> entries;
  while (!unfinished.empty() && Clock::now() < until) {
    std::erase_if(unfinished, [this](Flow* flow) { return !Send(*flow).ok() || flow->is_sent; });
    entries.clear();
    for (const Flow* flow : unfinished) entries.push_back({flow->link->socket.get(), POLLOUT, 0});
    (void)::poll(entries.data(), entries.size(), 1);
  }
}

// The last words to a peer.  They fit into an empty socket buffer; if the buffer is full, only the closing is seen.
void SocketMesh::Tell(Link& link, MessageKind kind, const std::string& text) {
  if (!link.socket.is_open()) return;
  MessageHeader header;
  header.kind = kind;
  header.payload_bytes = text.size();
  iovec entries[2] = {{&header, sizeof header}, {const_cast<char*>(text.data()), text.size()}};
  msghdr message{};
  message.msg_iov = entries;
  message.msg_iovlen = 2;
  if (!link.in_message && !link.has_left) {
    (void)!::sendmsg(link.socket.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  ::shutdown(link.socket.get(), SHUT_RDWR);
  link.socket.Close();
}

}  // namespace weir::worker
