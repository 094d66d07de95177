#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/communicator/communicator.h"
#include "worker/rank.h"
#include "worker/service/rank_messages.h"
#include "worker/step_plan.h"

// The one thread that drives a Rank: it takes plans and orders from a bounded queue and runs them in order.  What came
// of them another thread tells a listener, in the same order: to encode and send a result takes 0.4 ms on a machine
// whose processors are all busy, in which the next step runs already.  Knows nothing of streams and messages.
//
// Orders belong to a session, the time in which one scheduler is listened to.  A new session ends the one before: its
// orders are dropped, a collective in progress is aborted, and its listener hears no more of the work.

namespace weir::worker {

// Hears of the work, from one thread, in order.  While it does not come back, at most kMaxOutcomes more steps run.
class EngineListener {
 public:
  virtual ~EngineListener() = default;
  virtual void OnGroupFormed(uint64_t epoch) = 0;
  virtual void OnResult(const StepResult& result) = 0;
  virtual void OnFailed(const RankFailed& failure) = 0;  // the epoch is over; a GroupOrder is waited for
  virtual void OnDrained() = 0;                          // everything ordered before is done; nothing more will run
};

// What an order says of the group, for the communicator of this rank.
SocketGroupOptions SocketGroupOptionsOf(const GroupOrder& order, int32_t rank, const std::atomic<bool>& cancelled);

class RankEngine {
 public:
  // Makes the communicator of an order, or fails.  Gives up early when the flag becomes true.  Not called for a group
  // of one rank.
  using FormCommunicator = std::function<absl::StatusOr<std::unique_ptr<Communicator>>(
      const GroupOrder&, const std::atomic<bool>& cancelled)>;
  static constexpr size_t kMaxOrders = 64;    // waiting; a scheduler is at most a few steps ahead
  static constexpr size_t kMaxOutcomes = 64;  // waiting to be told; then the engine waits too

  // rank is of `world_size` ranks.
  RankEngine(std::unique_ptr<Rank> rank, int world_size, FormCommunicator form_communicator);
  // Aborts what runs and waits for the threads.
  ~RankEngine();

  // Begins a session; returns its number, which all its orders carry.
  uint64_t BeginSession(std::shared_ptr<EngineListener> listener);
  // Ends it, unless another has begun: what waits is dropped, what runs is aborted.
  void EndSession(uint64_t session, const std::string& reason);

  // Orders of a session that is over are dropped.  RESOURCE_EXHAUSTED when kMaxOrders wait already.
  absl::Status Run(uint64_t session, StepPlan plan);
  // Drops what waits and aborts what runs: the group is formed next.
  absl::Status FormGroup(uint64_t session, GroupOrder order);
  absl::Status Drain(uint64_t session);

  // How long the thread has been busy with one order; zero when it waits for one.
  std::chrono::milliseconds BusyFor() const;

 private:
  using Clock = std::chrono::steady_clock;
  struct DrainOrder {};
  struct Order {
    uint64_t session = 0;
    std::variant<StepPlan, GroupOrder, DrainOrder> what;
  };
  struct GroupFormed {
    uint64_t epoch = 0;
  };
  struct Drained {};
  struct Outcome {
    using What = std::variant<StepResult, GroupFormed, RankFailed, Drained>;
    uint64_t session = 0;
    What what;
  };

  absl::Status Push(uint64_t session, std::variant<StepPlan, GroupOrder, DrainOrder> what);
  void AbortWork(const std::string& reason);  // mutex_ is held
  void AbortCommunicator(const std::string& reason);
  void Loop();
  bool Take(Order& order);
  void Do(const StepPlan& plan, uint64_t session);
  void Do(const GroupOrder& order, uint64_t session);
  void Do(const DrainOrder& order, uint64_t session);
  absl::Status Form(const GroupOrder& order);
  void SetCommunicator(std::unique_ptr<Communicator> communicator);
  void Fail(RankFailed failure, uint64_t session);
  // To the telling thread.
  void Report(uint64_t session, Outcome::What what);
  void TellLoop();
  bool TakeOutcome(Outcome& outcome);
  void Tell(const Outcome& outcome);
  // The session's listener; null when the session is over.
  std::shared_ptr<EngineListener> Listener(uint64_t session) const;

  const std::unique_ptr<Rank> rank_;
  const int world_size_;
  const FormCommunicator form_communicator_;

  // Of the thread.
  bool is_formed_ = false;
  uint64_t epoch_ = 0;
  uint64_t epoch_session_ = 0;  // the session that formed the epoch
  bool is_drained_ = false;

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Order> orders_;
  std::shared_ptr<EngineListener> listener_;
  uint64_t session_ = 0;
  bool is_stopping_ = false;
  std::unique_ptr<Communicator> communicator_;  // the thread uses it without the mutex, others abort it with
  std::atomic<bool> forming_cancelled_{false};
  std::atomic<Clock::rep> busy_since_{0};  // 0: idle

  std::mutex outcomes_mutex_;  // never held with the other
  std::condition_variable outcomes_changed_;
  std::deque<Outcome> outcomes_;
  bool is_telling_over_ = false;  // nothing more comes

  std::thread telling_thread_;
  std::thread thread_;
};

}  // namespace weir::worker
