#include "scheduler/service/inbox.h"

#include <utility>

namespace weir::scheduler {
namespace {

bool SaysSomethingIsOver(const Message& message) {
  if (const auto* event = std::get_if<RankEvent>(&message)) return std::holds_alternative<RankGone>(event->what);
  return std::holds_alternative<GatewayGone>(message) || std::holds_alternative<DrainOrder>(message);
}

}  // namespace

bool Inbox::Push(Message message) {
  std::lock_guard lock(mutex_);
  if (!HasRoomFor(message)) return false;
  if (std::holds_alternative<Submission>(message)) ++num_submissions_;
  messages_.push_back(std::move(message));
  arrived_.notify_one();
  return true;
}

bool Inbox::HasRoomFor(const Message& message) const {
  if (SaysSomethingIsOver(message)) return true;
  if (messages_.size() >= bounds_.max_messages) return false;
  return !std::holds_alternative<Submission>(message) || num_submissions_ < bounds_.max_submissions;
}

std::vector<Message> Inbox::TakeAll(std::chrono::steady_clock::time_point until) {
  std::unique_lock lock(mutex_);
  arrived_.wait_until(lock, until, [this] { return !messages_.empty(); });
  num_submissions_ = 0;
  return std::exchange(messages_, {});
}

size_t Inbox::size() const {
  std::lock_guard lock(mutex_);
  return messages_.size();
}

}  // namespace weir::scheduler
