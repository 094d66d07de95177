#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "worker/communicator/communicator.h"
#include "worker/communicator/message.h"
#include "worker/communicator/rank_sum.h"

// A collective among threads has two halves.  First all ranks meet and lay open their buffers; this can fail, for all
// or for none.  Then each works on the buffers of all, and none leaves before all are done: from the meeting on nothing
// can fail and nobody waits for anything but copying, so no rank ever touches the buffer of one that has gone.

namespace weir::worker {
namespace {

using Clock = std::chrono::steady_clock;

// What a rank lays open.  Pointers are good until the collective's end.
struct Post {
  MessageHeader header;
  std::span<float> floats;
  std::span<const std::byte> bytes;
  std::span<const std::span<const std::byte>> send;
};

// Where the ranks of one group, or of a subgroup, meet.
struct MeetingPlace {
  explicit MeetingPlace(std::vector<int> ranks)
      : members(std::move(ranks)), posts(members.size()), is_here(members.size()) {}

  const std::vector<int> members;  // ranks of the whole group
  std::vector<Post> posts;
  std::vector<bool> is_here;
  std::atomic<uint64_t> num_meetings{0};
  std::atomic<size_t> num_working{0};
};

// What all ranks of a group and its subgroups share.
class Hub {
 public:
  Hub(int world_size, std::chrono::milliseconds deadline)
      : deadline_(deadline),
        spin_(world_size <= ::sysconf(_SC_NPROCESSORS_ONLN) ? std::chrono::microseconds(50)
                                                            : std::chrono::microseconds(0)),
        has_left_(static_cast<size_t>(world_size)) {}

  // Returns when all members of the place have posted.  `index` is the caller's in the place.
  absl::Status Meet(MeetingPlace& place, size_t index, const Post& post);
  // After Meet: returns when all members have called it.
  void Part(MeetingPlace& place);

  void Abort(int rank, const std::string& reason);
  void Leave(int rank);
  std::shared_ptr<MeetingPlace> FindPlace(const std::vector<int>& members, uint64_t ordinal);

 private:
  absl::Status Arrive(MeetingPlace& place, size_t index, const Post& post);
  absl::Status CheckAbsent(const MeetingPlace& place);
  absl::Status StatusFor(int rank) const;
  absl::Status Die(absl::Status reason, int rank);
  template <typename Done>
  void Spin(const Done& done) const;

  const std::chrono::milliseconds deadline_;
  const std::chrono::microseconds spin_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> is_dead_{false};
  absl::Status death_;
  int aborter_ = -1;  // the rank whose Abort it was
  std::vector<bool> has_left_;
  struct Opening {
    std::shared_ptr<MeetingPlace> place;
    size_t num_expected = 0;
  };
  std::map<std::pair<std::vector<int>, uint64_t>, Opening> openings_;  // subgroups not yet found by all members
};

template <typename Done>
void Hub::Spin(const Done& done) const {
  const Clock::time_point until = Clock::now() + spin_;
  while (!done() && Clock::now() < until) ::sched_yield();
}

absl::Status Hub::Meet(MeetingPlace& place, size_t index, const Post& post) {
  const Clock::time_point until = Clock::now() + deadline_;
  const uint64_t before = place.num_meetings.load();
  {
    std::lock_guard lock(mutex_);
    if (absl::Status status = Arrive(place, index, post); !status.ok()) return status;
  }
  const auto is_over = [&] { return place.num_meetings.load() != before || is_dead_.load(); };
  Spin(is_over);
  std::unique_lock lock(mutex_);
  while (!is_over()) {
    if (absl::Status status = CheckAbsent(place); !status.ok()) return Die(status, place.members[index]);
    if (changed_.wait_until(lock, until) == std::cv_status::timeout && !is_over()) {
      std::vector<int> missing;
      for (size_t i = 0; i < place.members.size(); ++i) {
        if (!place.is_here[i]) missing.push_back(place.members[i]);
      }
      return Die(absl::DeadlineExceededError("rank " + std::to_string(place.members[index]) + " waited " +
                                             std::to_string(deadline_.count()) + " ms in " + post.header.ToString() +
                                             " for " + JoinRanks(missing)),
                 place.members[index]);
    }
  }
  // A meeting that took place holds, whatever came after.
  return place.num_meetings.load() != before ? absl::OkStatus() : StatusFor(place.members[index]);
}

absl::Status Hub::Arrive(MeetingPlace& place, size_t index, const Post& post) {
  const int rank = place.members[index];
  if (is_dead_) return StatusFor(rank);
  for (size_t i = 0; i < place.members.size(); ++i) {
    if (!place.is_here[i] || place.posts[i].header.Matches(post.header)) continue;
    return Die(
        absl::InternalError("ranks have diverged: rank " + std::to_string(rank) + " is in " + post.header.ToString() +
                            ", rank " + std::to_string(place.members[i]) + " in " + place.posts[i].header.ToString()),
        rank);
  }
  place.posts[index] = post;
  place.is_here[index] = true;
  if (std::find(place.is_here.begin(), place.is_here.end(), false) == place.is_here.end()) {
    place.is_here.assign(place.members.size(), false);
    place.num_working = place.members.size();
    ++place.num_meetings;
    changed_.notify_all();
  }
  return absl::OkStatus();
}

absl::Status Hub::CheckAbsent(const MeetingPlace& place) {
  for (size_t i = 0; i < place.members.size(); ++i) {
    if (place.is_here[i] || !has_left_[place.members[i]]) continue;
    return absl::UnavailableError("rank " + std::to_string(place.members[i]) + " has left the group");
  }
  return absl::OkStatus();
}

void Hub::Part(MeetingPlace& place) {
  if (place.num_working.fetch_sub(1) == 1) {
    std::lock_guard lock(mutex_);
    changed_.notify_all();
    return;
  }
  // The next meeting cannot take place, and count anew, without this rank.
  const auto is_over = [&] { return place.num_working.load() == 0; };
  Spin(is_over);
  std::unique_lock lock(mutex_);
  changed_.wait(lock, is_over);
}

void Hub::Abort(int rank, const std::string& reason) {
  std::lock_guard lock(mutex_);
  if (is_dead_) return;
  aborter_ = rank;
  (void)Die(absl::AbortedError(reason), rank);
}

void Hub::Leave(int rank) {
  std::lock_guard lock(mutex_);
  has_left_[rank] = true;
  changed_.notify_all();
}

std::shared_ptr<MeetingPlace> Hub::FindPlace(const std::vector<int>& members, uint64_t ordinal) {
  std::lock_guard lock(mutex_);
  const auto [it, is_first] = openings_.try_emplace({members, ordinal});
  Opening& opening = it->second;
  if (is_first) opening = {std::make_shared<MeetingPlace>(members), members.size()};
  std::shared_ptr<MeetingPlace> place = opening.place;
  if (--opening.num_expected == 0) openings_.erase(it);
  return place;
}

absl::Status Hub::StatusFor(int rank) const {
  if (aborter_ < 0 || aborter_ == rank) return death_;
  return absl::UnavailableError("rank " + std::to_string(aborter_) + " aborted: " + std::string(death_.message()));
}

absl::Status Hub::Die(absl::Status reason, int rank) {
  if (!is_dead_) {
    death_ = std::move(reason);
    is_dead_ = true;
    changed_.notify_all();
  }
  return StatusFor(rank);
}

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::shared_ptr<Hub> hub, std::shared_ptr<MeetingPlace> place, size_t index, bool is_whole_group)
      : hub_(std::move(hub)), place_(std::move(place)), index_(index), is_whole_group_(is_whole_group) {}
  ~ThreadCommunicator() override {
    if (is_whole_group_) hub_->Leave(place_->members[index_]);
  }

  int rank() const override { return static_cast<int>(index_); }
  int world_size() const override { return static_cast<int>(place_->members.size()); }

  absl::Status AllReduceSum(std::span<float> data) override {
    Post post{.header = Next(MessageKind::kAllReduce, data.size_bytes()), .floats = data};
    return Run(post, [&] { SumMyPart(data.size()); });
  }

  absl::Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all) override {
    if (all.size() != mine.size() * place_->members.size()) {
      return Fail("all-gather of " + std::to_string(mine.size()) + " bytes from " + std::to_string(world_size()) +
                  " ranks into " + std::to_string(all.size()));
    }
    Post post{.header = Next(MessageKind::kAllGather, mine.size()), .bytes = mine};
    return Run(post, [&] {
      for (size_t r = 0; r < place_->posts.size(); ++r) Copy(place_->posts[r].bytes, all.data() + r * mine.size());
    });
  }

  absl::Status AllToAll(std::span<const std::span<const std::byte>> send,
                        std::span<std::vector<std::byte>> receive) override {
    if (send.size() != place_->members.size() || receive.size() != place_->members.size()) {
      return Fail("all-to-all among " + std::to_string(world_size()) + " ranks with " + std::to_string(send.size()) +
                  " buffers to send and " + std::to_string(receive.size()) + " to receive");
    }
    Post post{.header = Next(MessageKind::kAllToAll, 0), .send = send};
    return Run(post, [&] {
      for (size_t r = 0; r < receive.size(); ++r) {
        const std::span<const std::byte> theirs = place_->posts[r].send[index_];
        receive[r].assign(theirs.begin(), theirs.end());
      }
    });
  }

  absl::Status Broadcast(std::span<std::byte> data, int root) override {
    if (root < 0 || root >= world_size()) {
      return Fail("broadcast from rank " + std::to_string(root) + " of " + std::to_string(world_size()));
    }
    Post post{.header = Next(MessageKind::kBroadcast, data.size()), .bytes = data};
    post.header.root = static_cast<uint32_t>(root);
    return Run(post, [&] {
      if (rank() != root) Copy(place_->posts[root].bytes, data.data());
    });
  }

  absl::Status Barrier() override {
    return Run({.header = Next(MessageKind::kBarrier, 0)}, [] {});
  }

  void Abort(std::string reason) override { hub_->Abort(place_->members[index_], reason); }

  absl::StatusOr<std::unique_ptr<Communicator>> Subgroup(std::span<const int> members) override {
    const auto me = std::find(members.begin(), members.end(), rank());
    if (!std::is_sorted(members.begin(), members.end(), std::less_equal<>()) || me == members.end() ||
        members.front() < 0 || members.back() >= world_size()) {
      return absl::InvalidArgumentError("the members of a subgroup must be ranks below " +
                                        std::to_string(world_size()) + ", ascending, with rank " +
                                        std::to_string(rank()) + " among them");
    }
    std::vector<int> ranks;
    for (const int r : members) ranks.push_back(place_->members[r]);
    std::shared_ptr<MeetingPlace> place = hub_->FindPlace(ranks, num_subgroups_[ranks]++);
    return std::make_unique<ThreadCommunicator>(hub_, std::move(place), me - members.begin(), false);
  }

 private:
  MessageHeader Next(MessageKind kind, uint64_t collective_bytes) {
    MessageHeader header;
    header.kind = kind;
    header.sequence = ++sequence_;
    header.collective_bytes = collective_bytes;
    return header;
  }

  template <typename Work>
  absl::Status Run(const Post& post, const Work& work) {
    if (absl::Status status = hub_->Meet(*place_, index_, post); !status.ok()) return status;
    work();
    hub_->Part(*place_);
    return absl::OkStatus();
  }

  // A wrong call ends the group: the others cannot be served any more.
  absl::Status Fail(const std::string& what) {
    hub_->Abort(place_->members[index_], what);
    return absl::InvalidArgumentError(what);
  }

  // Sums this rank's part of the elements and hands it to all.  Nobody else reads or writes that part of any buffer.
  void SumMyPart(size_t num_elements) {
    const size_t world_size = place_->members.size();
    const size_t begin = PartBegin(num_elements, world_size, index_);
    const size_t num_mine = PartBegin(num_elements, world_size, index_ + 1) - begin;
    std::vector<const float*> inputs;
    for (const Post& post : place_->posts) inputs.push_back(post.floats.data() + begin);
    float* sum = place_->posts[index_].floats.data() + begin;
    SumInRankOrder(inputs, sum, num_mine);
    for (const Post& post : place_->posts) {
      if (post.floats.data() + begin != sum) std::copy_n(sum, num_mine, post.floats.data() + begin);
    }
  }

  static void Copy(std::span<const std::byte> from, std::byte* to) {
    if (!from.empty() && from.data() != to) std::memcpy(to, from.data(), from.size());
  }

  const std::shared_ptr<Hub> hub_;
  const std::shared_ptr<MeetingPlace> place_;
  const size_t index_;
  const bool is_whole_group_;
  uint64_t sequence_ = 0;
  std::map<std::vector<int>, uint64_t> num_subgroups_;  // opened so far, by members
};

}  // namespace

std::vector<std::unique_ptr<Communicator>> NewThreadGroup(int world_size, std::chrono::milliseconds deadline) {
  std::vector<int> members;
  for (int r = 0; r < world_size; ++r) members.push_back(r);
  auto hub = std::make_shared<Hub>(world_size, deadline);
  auto place = std::make_shared<MeetingPlace>(members);
  std::vector<std::unique_ptr<Communicator>> communicators;
  for (int r = 0; r < world_size; ++r) {
    communicators.push_back(std::make_unique<ThreadCommunicator>(hub, place, r, true));
  }
  return communicators;
}

}  // namespace weir::worker
