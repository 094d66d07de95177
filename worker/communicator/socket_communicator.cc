#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <utility>

#include "worker/communicator/communicator.h"
#include "worker/communicator/mesh_forming.h"
#include "worker/communicator/rank_sum.h"
#include "worker/communicator/socket_mesh.h"

namespace weir::worker {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

// Up to this many bytes every rank sends all it has to all others and each sums for itself: one exchange.  Above, a
// rank sums one part for all: 2 / world_size of the bytes, for a second exchange.  28 KB between two pinned ranks over
// Unix sockets take 6.8 us, a plain exchange of the same bytes 5.0 us; 4 MiB take 0.56 ms (bench_communicator, AMD EPYC
// with 2 processors).  The border itself is an estimate, not tuned.
constexpr size_t kSumEverywhereBytes = size_t{128} << 10;
// A large sum runs in rounds, so that what the others sent stays in the cache until it is added.
constexpr size_t kRoundElementsPerRank = size_t{64} << 10;

std::span<std::byte> Bytes(std::span<float> data) { return std::as_writable_bytes(data); }

class SocketCommunicator final : public Communicator {
 public:
  // members[i] is the mesh's rank of the group's rank i.
  SocketCommunicator(std::shared_ptr<SocketMesh> mesh, std::vector<int> members, uint32_t group)
      : mesh_(std::move(mesh)), members_(std::move(members)), group_(group) {
    rank_ = static_cast<int>(std::find(members_.begin(), members_.end(), mesh_->rank()) - members_.begin());
  }

  int rank() const override { return rank_; }
  int world_size() const override { return static_cast<int>(members_.size()); }

  absl::Status AllReduceSum(std::span<float> data) override {
    return mesh_->Call([&] {
      MessageHeader header = Next(MessageKind::kAllReduce, data.size_bytes());
      if (world_size() == 1) return absl::OkStatus();
      return data.size_bytes() <= kSumEverywhereBytes ? SumEverywhere(data, header) : SumByParts(data, header);
    });
  }

  absl::Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    return mesh_->Call([&]() -> absl::Status {
      if (all.size() != mine.size() * members_.size()) {
        return absl::InvalidArgumentError("all-gather of " + std::to_string(mine.size()) + " bytes from " +
                                          std::to_string(world_size()) + " ranks into " + std::to_string(all.size()));
      }
      std::copy(mine.begin(), mine.end(), all.begin() + static_cast<ptrdiff_t>(rank_ * mine.size()));
      return ExchangeWithAll(Next(MessageKind::kAllGather, mine.size()), [&](int r, Transfer& transfer) {
        transfer.send[0] = mine;
        transfer.receive[0] = all.subspan(r * mine.size(), mine.size());
      });
    });
  }

  absl::Status AllToAll(std::span<const std::span<const std::byte>> send,
                        std::span<std::vector<std::byte>> receive) override {
    return mesh_->Call([&]() -> absl::Status {
      if (send.size() != members_.size() || receive.size() != members_.size()) {
        return absl::InvalidArgumentError("all-to-all among " + std::to_string(world_size()) + " ranks with " +
                                          std::to_string(send.size()) + " buffers to send and " +
                                          std::to_string(receive.size()) + " to receive");
      }
      receive[rank_].assign(send[rank_].begin(), send[rank_].end());
      return ExchangeWithAll(Next(MessageKind::kAllToAll, 0), [&](int r, Transfer& transfer) {
        transfer.send[0] = send[r];
        transfer.receive_any = &receive[r];
      });
    });
  }

  // The answers of the others keep the root from running ahead.
  absl::Status Broadcast(std::span<std::byte> data, int root) override {
    return mesh_->Call([&]() -> absl::Status {
      if (root < 0 || root >= world_size()) {
        return absl::InvalidArgumentError("broadcast from rank " + std::to_string(root) + " of " +
                                          std::to_string(world_size()));
      }
      MessageHeader header = Next(MessageKind::kBroadcast, data.size());
      header.root = static_cast<uint32_t>(root);
      transfers_.clear();
      for (int r = 0; r < world_size(); ++r) {
        if (r == rank_ || (rank_ != root && r != root)) continue;
        Transfer& transfer = transfers_.emplace_back();
        transfer.peer = members_[r];
        if (rank_ == root) transfer.send[0] = data;
        if (rank_ != root) transfer.receive[0] = data;
      }
      return mesh_->Exchange(header, transfers_, mesh_->deadline());
    });
  }

  absl::Status Barrier() override {
    return mesh_->Call([&] { return ExchangeWithAll(Next(MessageKind::kBarrier, 0), [](int, Transfer&) {}); });
  }

  void Abort(std::string reason) override { mesh_->Abort(std::move(reason)); }

  absl::StatusOr<std::unique_ptr<Communicator>> Subgroup(std::span<const int> members) override {
    if (!std::is_sorted(members.begin(), members.end(), std::less_equal<>()) || members.empty() || members[0] < 0 ||
        members.back() >= world_size() || !std::binary_search(members.begin(), members.end(), rank_)) {
      return absl::InvalidArgumentError("the members of a subgroup must be ranks below " +
                                        std::to_string(world_size()) + ", ascending, with rank " +
                                        std::to_string(rank_) + " among them");
    }
    std::vector<int> mesh_ranks;
    uint32_t group = group_ * 16777619u + 1;
    for (const int r : members) {
      mesh_ranks.push_back(members_[r]);
      group = (group ^ static_cast<uint32_t>(members_[r] + 1)) * 16777619u;  // FNV-1a
    }
    return std::make_unique<SocketCommunicator>(mesh_, std::move(mesh_ranks), std::max(group, 1u));
  }

  // Ends the forming of a group: returns when all ranks are through with theirs.
  absl::Status Meet(milliseconds patience, const std::atomic<bool>* cancelled) {
    mesh_->Watch(cancelled);
    absl::Status status = mesh_->Call([&] {
      MessageHeader header;
      header.kind = MessageKind::kBarrier;
      return ExchangeWithAll(header, [](int, Transfer&) {}, patience);
    });
    mesh_->Watch(nullptr);
    return status;
  }

 private:
  MessageHeader Next(MessageKind kind, uint64_t collective_bytes) {
    MessageHeader header;
    header.kind = kind;
    header.group = group_;
    header.sequence = ++sequence_;
    header.collective_bytes = collective_bytes;
    return header;
  }

  // One exchange with every other rank of the group; fill(r, transfer) says what rank r gets and gives.
  template <typename Fill>
  absl::Status ExchangeWithAll(const MessageHeader& header, const Fill& fill, milliseconds patience) {
    transfers_.clear();
    for (int r = 0; r < world_size(); ++r) {
      if (r == rank_) continue;
      Transfer& transfer = transfers_.emplace_back();
      transfer.peer = members_[r];
      fill(r, transfer);
    }
    return mesh_->Exchange(header, transfers_, patience);
  }
  template <typename Fill>
  absl::Status ExchangeWithAll(const MessageHeader& header, const Fill& fill) {
    return ExchangeWithAll(header, fill, mesh_->deadline());
  }

  absl::Status SumEverywhere(std::span<float> data, const MessageHeader& header) {
    scratch_.resize(data.size() * members_.size());
    inputs_.assign(members_.size(), data.data());
    absl::Status status = ExchangeWithAll(header, [&](int r, Transfer& transfer) {
      const std::span<float> theirs(scratch_.data() + r * data.size(), data.size());
      inputs_[r] = theirs.data();
      transfer.send[0] = Bytes(data);
      transfer.receive[0] = Bytes(theirs);
    });
    if (status.ok()) SumInRankOrder(inputs_, data.data(), data.size());
    return status;
  }

  // Reduce-scatter and all-gather, in rounds: in one exchange a rank sends its sums of the round before to everybody,
  // and to each its numbers of this round's part that the other sums.
  absl::Status SumByParts(std::span<float> data, MessageHeader header) {
    const size_t round_elements = kRoundElementsPerRank * members_.size();
    const size_t num_rounds = (data.size() + round_elements - 1) / round_elements;
    const auto slice = [&](size_t round) {
      if (round >= num_rounds) return std::span<float>();
      return data.subspan(round * round_elements, std::min(round_elements, data.size() - round * round_elements));
    };
    std::span<float> before;
    for (size_t round = 0; round <= num_rounds; ++round) {
      header.round = round;
      const std::span<float> here = slice(round);
      if (absl::Status status = SumRound(before, here, header); !status.ok()) return status;
      before = here;
    }
    return absl::OkStatus();
  }

  absl::Status SumRound(std::span<float> before, std::span<float> here, const MessageHeader& header) {
    const std::span<float> my_part = Part(here, rank_);
    scratch_.resize(my_part.size() * members_.size());
    inputs_.assign(members_.size(), my_part.data());
    absl::Status status = ExchangeWithAll(header, [&](int r, Transfer& transfer) {
      const std::span<float> theirs(scratch_.data() + r * my_part.size(), my_part.size());
      inputs_[r] = theirs.data();
      transfer.send = {Bytes(Part(before, rank_)), Bytes(Part(here, r))};
      transfer.receive = {Bytes(Part(before, r)), Bytes(theirs)};
    });
    if (status.ok()) SumInRankOrder(inputs_, my_part.data(), my_part.size());
    return status;
  }

  std::span<float> Part(std::span<float> data, int r) const {
    const size_t begin = PartBegin(data.size(), members_.size(), r);
    return data.subspan(begin, PartBegin(data.size(), members_.size(), r + 1) - begin);
  }

  const std::shared_ptr<SocketMesh> mesh_;
  const std::vector<int> members_;
  const uint32_t group_;
  int rank_ = 0;
  uint64_t sequence_ = 0;
  std::vector<Transfer> transfers_;
  std::vector<float> scratch_;        // what the others sent, by rank
  std::vector<const float*> inputs_;  // of a sum, by rank
};

bool IsOnThisHost(const SocketAddress& address, const SocketAddress& mine) {
  return address.is_unix || address.host == mine.host;
}

// Spinning pays when every rank of this host has a processor of its own.
microseconds ChooseSpin(const SocketGroupOptions& options, const std::vector<SocketAddress>& addresses) {
  constexpr microseconds kSpin{50};
  if (options.spin.count() > 0) return options.spin;
  const auto num_here = std::count_if(addresses.begin(), addresses.end(), [&](const SocketAddress& address) {
    return IsOnThisHost(address, addresses[options.rank]);
  });
  return num_here <= ::sysconf(_SC_NPROCESSORS_ONLN) ? kSpin : microseconds(0);
}

absl::StatusOr<std::vector<SocketAddress>> CheckOptions(const SocketGroupOptions& options) {
  if (options.rank < 0 || options.rank >= static_cast<int>(options.addresses.size())) {
    return absl::InvalidArgumentError("rank " + std::to_string(options.rank) + " of a group with " +
                                      std::to_string(options.addresses.size()) + " addresses");
  }
  if (options.token.size() > kMaxTokenBytes) {
    return absl::InvalidArgumentError("the token has " + std::to_string(options.token.size()) + " bytes; at most " +
                                      std::to_string(kMaxTokenBytes) + " are allowed");
  }
  if (options.deadline.count() <= 0 || options.connect_deadline.count() <= 0) {
    return absl::InvalidArgumentError("deadlines of a group must be positive");
  }
  std::vector<SocketAddress> addresses;
  for (const std::string& text : options.addresses) {
    absl::StatusOr<SocketAddress> address = ParseSocketAddress(text);
    if (!address.ok()) return address.status();
    addresses.push_back(*std::move(address));
  }
  return addresses;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> NewSocketGroup(const SocketGroupOptions& options) {
  absl::StatusOr<std::vector<SocketAddress>> addresses = CheckOptions(options);
  if (!addresses.ok()) return addresses.status();
  const auto deadline = SocketMesh::Clock::now() + options.connect_deadline;
  const microseconds spin = ChooseSpin(options, *addresses);
  std::vector<int> members(addresses->size());
  for (size_t r = 0; r < members.size(); ++r) members[r] = static_cast<int>(r);

  std::vector<FileDescriptor> links(1);
  if (members.size() > 1) {
    absl::StatusOr<std::vector<FileDescriptor>> formed = MeshForming(options, *std::move(addresses)).Run();
    if (!formed.ok()) return formed.status();
    links = *std::move(formed);
  }
  auto mesh = std::make_shared<SocketMesh>(options.rank, std::move(links), options.deadline, spin);
  auto communicator = std::make_unique<SocketCommunicator>(std::move(mesh), std::move(members), 0);
  const auto left = std::chrono::ceil<milliseconds>(deadline - SocketMesh::Clock::now());
  if (absl::Status status = communicator->Meet(std::max(left, milliseconds(1)), options.cancelled); !status.ok())
    return status;
  return communicator;
}

}  // namespace weir::worker
