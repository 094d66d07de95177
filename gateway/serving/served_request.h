#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "gateway/answer/answer.h"
#include "gateway/answer/frames.h"
#include "gateway/identity/identity.h"
#include "gateway/replica/replica_set.h"
#include "gateway/request/prepared_request.h"
#include "gateway/request/request_error.h"
#include "gateway/serving/endings.h"
#include "gateway/serving/gateway_metrics.h"

namespace weir::gateway {

class FrontDesk;

// A model and who computes it.
struct Offer {
  std::shared_ptr<const ServedModel> model;
  ReplicaSet* replicas = nullptr;
};

// A request as it comes in.
struct Arrival {
  TimeUs arrived = 0;
  std::optional<TimeUs> deadline;
  Identity identity;
  Api api = Api::kChat;
  const Offer* offer = nullptr;
  int64_t bytes = 0;  // on the wire
  std::string traceparent;
  // Checks, renders and tokenizes; called once, on a thread of the TextPool.
  std::function<std::optional<RequestError>(PreparedRequest&)> prepare;
};

// The client's side of a stream.  Called with the request's lock held: must not call back from inside a call.
class FramePort {
 public:
  virtual ~FramePort() = default;
  // One at a time: ServedRequest::OnWriteDone follows.
  virtual void Write(const Frame& frame) = 0;
  // The last call; ServedRequest::OnDone follows.  Without an error, all is well.
  virtual void Finish(const std::optional<RequestError>& error) = 0;
  // The client does not read: ends the call.
  virtual void CutOff() = 0;
};

// One request, from its arrival to its last frame.
//
//   preparing --> waiting --> streaming --> ending --> over
//
// Frames queue up to a bound while the client does not read.  A request whose queue is full is cancelled: what it has
// computed is still delivered, then a last frame that says why.  Thread-safe.
class ServedRequest final : public OutputSink, public std::enable_shared_from_this<ServedRequest> {
 public:
  ServedRequest(Arrival arrival, FramePort* port, FrontDesk* desk);

  // ---- from the front desk and the text pool ----
  void Prepare();
  // Requires: not submitted.
  void Refuse(const RequestError& error);
  // Cuts off a client that has not read for too long.
  void OnTime(TimeUs now);
  // The gateway stops: what has been computed is delivered, then the last frame.
  void StopShort();

  // ---- from replicas ----
  void OnOutput(TimeUs now, Output output) override;

  // ---- from the port ----
  void OnWriteDone(bool ok);
  void OnCancel();
  void OnDone();

  const Identity& identity() const { return arrival_.identity; }
  Api api() const { return arrival_.api; }

 private:
  enum class State { kPreparing, kWaiting, kStreaming, kEnding, kOver };

  std::optional<RequestError> WhyNotPrepare();
  std::optional<RequestError> Check(PreparedRequest& prepared) const;
  bool Claim(const std::string& request_id);
  std::shared_ptr<const Submission> MakeSubmission(PreparedRequest& prepared) const;
  void Submit(std::shared_ptr<const Submission> submission, const PreparedRequest& prepared);

  // The lock is held in all that follow, up to the next line.
  void Begin();
  void TakeTokens(TimeUs now, std::vector<OutputToken>& tokens);
  void MeasureTokens(TimeUs now, size_t num_tokens);
  void TakeEnd(TimeUs now, const Ending& ending);
  void Queue(std::vector<Frame> frames);
  void Queue(Frame frame);
  void StartNext();
  void FinishWith(const RequestError& error);
  FinishedFrame LastFrame() const;
  StreamEnd HowItEnded() const;
  Timing TimingAt(TimeUs now) const;
  void WantCancel(bool is_stop);
  void Account(const RequestError& error);
  void Account(const FinishedFrame& finished);

  void CancelIfWanted();
  void ReleaseIfOver();

  const Arrival arrival_;
  const std::string tenant_;
  FrontDesk* const desk_;

  std::mutex mutex_;
  FramePort* port_;  // nullptr: the call is over
  State state_ = State::kPreparing;
  bool is_gone_ = false;         // the client
  bool replica_has_it_ = false;  // until its end
  bool has_stopped_ = false;     // a stop text is complete
  bool is_unread_ = false;       // its queue was full
  bool is_cut_short_ = false;    // the gateway stops
  bool is_accounted_ = false;
  std::string claimed_id_;

  enum class CancelWish { kNone, kCancel, kStop, kDone } cancel_wish_ = CancelWish::kNone;
  uint64_t ticket_ = 0;

  std::shared_ptr<const Submission> submission_;
  std::optional<Answer> answer_;
  std::optional<Ending> ending_;
  TimeUs first_token_at_ = 0;  // 0: none yet
  TimeUs last_token_at_ = 0;

  std::deque<Frame> queue_;
  int64_t queue_bytes_ = 0;
  bool is_writing_ = false;
  TimeUs write_began_ = 0;
};

}  // namespace weir::gateway
