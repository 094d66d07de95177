#include "gateway/replica/replica_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace weir::gateway {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

constexpr TimeUs kMs = 1000;

// Notes what is asked of it; the test plays the schedulers.
class FakePort final : public ReplicaPort {
 public:
  struct Sent {
    int32_t replica;
    uint64_t attempt;
    std::vector<TokenId> resumed;
    std::optional<int64_t> deadline_ms;
  };
  struct Cancelled {
    int32_t replica;
    uint64_t attempt;
    bool is_stop;
  };

  uint64_t Open(int32_t replica) override {
    opened.push_back(replica);
    return streams[replica] = ++next_stream;
  }
  void Close(int32_t replica) override { closed.push_back(replica); }
  void Poll(int32_t replica) override { polled.push_back(replica); }
  bool Submit(int32_t replica, uint64_t attempt, const Submission&, const std::vector<TokenId>& resumed,
              std::optional<int64_t> deadline_ms) override {
    if (is_full) return false;
    sent.push_back({replica, attempt, resumed, deadline_ms});
    return true;
  }
  void Cancel(int32_t replica, uint64_t attempt, bool is_stop) override {
    cancelled.push_back({replica, attempt, is_stop});
  }

  std::vector<int32_t> opened, closed, polled;
  std::vector<Sent> sent;
  std::vector<Cancelled> cancelled;
  std::map<int32_t, uint64_t> streams;
  uint64_t next_stream = 0;
  bool is_full = false;
};

class Sink final : public OutputSink {
 public:
  void OnOutput(TimeUs, Output output) override {
    num_admitted += output.is_admitted ? 1 : 0;
    for (const OutputToken& token : output.tokens) {
      EXPECT_EQ(token.index, tokens.size());
      tokens.push_back(token.token);
    }
    if (!output.end) return;
    EXPECT_FALSE(end.has_value()) << "a second end";
    end = output.end;
  }

  int num_admitted = 0;
  std::vector<TokenId> tokens;
  std::optional<Ending> end;
};

class ReplicaSetTest : public testing::Test {
 protected:
  static ReplicaView Ready(int64_t num_requests = 0) {
    return {.build = "b", .max_model_len = 100, .vocab_size = 10, .is_ready = true, .num_requests = num_requests};
  }

  void Make(int32_t num_replicas) {
    ReplicaSet::Options options{.vocab_size = 10, .max_replays = 3};
    for (int32_t i = 0; i < num_replicas; ++i) options.addresses.push_back("r" + std::to_string(i));
    set = std::make_unique<ReplicaSet>(options, &port);
    set->OnTime(now);
  }
  void MakeJoined(int32_t num_replicas) {
    Make(num_replicas);
    for (int32_t i = 0; i < num_replicas; ++i) Say(i, ReplicaJoined{Ready()});
  }

  template <typename What>
  void Say(int32_t replica, What what) {
    set->On(now, {.replica = replica, .stream = port.streams[replica], .what = std::move(what)});
  }
  void Lose(int32_t replica) { Say(replica, ReplicaGone{"killed"}); }
  // Opens the stream that is due, and joins.
  void Return(int32_t replica, ReplicaView view) {
    now += 10'000 * kMs;
    set->OnTime(now);
    Say(replica, ReplicaJoined{std::move(view)});
  }
  void Tokens(const FakePort::Sent& to, uint32_t first, const std::vector<TokenId>& tokens) {
    ReplicaOutput output;
    for (const TokenId token : tokens) output.tokens.push_back({to.attempt, {.index = first++, .token = token}});
    Say(to.replica, output);
  }
  void End(const FakePort::Sent& to, Ending ending) {
    Say(to.replica, ReplicaOutput{.ends = {{to.attempt, std::move(ending)}}});
  }
  void Admit(const FakePort::Sent& to) { Say(to.replica, ReplicaOutput{.admitted = {to.attempt}}); }
  static Ending Refused(Refusal::Reason reason) {
    return {.reason = EndReason::kRefused, .refusal = Refusal{.reason = reason, .retry_after_ms = 500}};
  }

  uint64_t Submit(Submission submission = {.request_id = "a", .max_tokens = 50, .stop_tokens = {9}}) {
    return set->Submit(now, std::make_shared<Submission>(std::move(submission)), sink).ticket;
  }

  TimeUs now = 1'000'000;
  FakePort port;
  std::unique_ptr<ReplicaSet> set;
  std::shared_ptr<Sink> sink = std::make_shared<Sink>();
};

// ---- where a request goes ----

TEST_F(ReplicaSetTest, TakesNothingBeforeAReplicaHasJoined) {
  Make(1);
  EXPECT_EQ(Submit(), 0u);
  EXPECT_EQ(set->view().num_requests, 0);
  Say(0, ReplicaJoined{ReplicaView{.build = "b"}});  // has never had workers
  EXPECT_EQ(Submit(), 0u);
  Say(0, ReplicaPolled{Ready()});
  EXPECT_NE(Submit(), 0u);
}

TEST_F(ReplicaSetTest, ChoosesTheReplicaWithTheLeastToDo) {
  MakeJoined(3);
  Say(0, ReplicaPolled{Ready(5)});
  Say(1, ReplicaPolled{Ready(1)});
  Say(2, ReplicaPolled{Ready(3)});
  for (int i = 0; i < 5; ++i) Submit();  // its own submissions count before the next answer to a question does
  std::map<int32_t, int> sent;
  for (const auto& one : port.sent) ++sent[one.replica];
  EXPECT_EQ(sent[1], 4);
  EXPECT_EQ(sent[2], 1);
  EXPECT_EQ(sent[0], 0);
}

// A conversation of `num_tokens`, of which each has its own tokens.
Submission Turn(TokenId conversation, size_t num_tokens, uint8_t tenant = 0) {
  Submission submission{.request_id = "a", .max_tokens = 50};
  for (size_t i = 0; i < num_tokens; ++i) submission.prompt.push_back(conversation + static_cast<TokenId>(i % 7));
  submission.cache_namespace_key[0] = tenant;
  return submission;
}

TEST_F(ReplicaSetTest, TheNextTurnOfAConversationGoesWhereItsBeginningIs) {
  MakeJoined(3);
  for (TokenId conversation = 0; conversation < 300; conversation += 100) Submit(Turn(conversation, 200));
  ASSERT_THAT(port.sent, SizeIs(3));
  EXPECT_EQ(set->view().num_to_prefix, 0);
  for (TokenId conversation = 200; conversation >= 0; conversation -= 100) Submit(Turn(conversation, 900));
  ASSERT_THAT(port.sent, SizeIs(6));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(port.sent[5 - i].replica, port.sent[i].replica);
  EXPECT_EQ(set->view().num_to_prefix, 3);
}

TEST_F(ReplicaSetTest, TheSamePromptOfAnotherTenantIsAnother) {
  MakeJoined(2);
  Submit(Turn(0, 200, 1));
  Submit(Turn(0, 200, 2));
  EXPECT_NE(port.sent[0].replica, port.sent[1].replica);
  EXPECT_EQ(set->view().num_to_prefix, 0);
}

TEST_F(ReplicaSetTest, AReplicaThatHoldsABeginningIsLeftWhenItHasClearlyMoreToDo) {
  MakeJoined(2);
  Submit(Turn(0, 200));
  const int32_t holder = port.sent[0].replica;
  Say(holder, ReplicaPolled{Ready(12)});
  Say(1 - holder, ReplicaPolled{Ready(7)});
  Submit(Turn(0, 300));
  EXPECT_EQ(port.sent[1].replica, holder) << "12 is within 7, a quarter of it and 4";
  Say(holder, ReplicaPolled{Ready(13)});
  Submit(Turn(0, 300));
  EXPECT_EQ(port.sent[2].replica, 1 - holder);
  Submit(Turn(0, 400));
  EXPECT_EQ(port.sent[3].replica, 1 - holder) << "where it was computed last";
}

TEST_F(ReplicaSetTest, AReplicaThatHoldsABeginningButCannotTakeItIsLeft) {
  MakeJoined(2);
  Submit(Turn(0, 200));
  const int32_t holder = port.sent[0].replica;
  ReplicaView view = Ready();
  view.is_ready = false;
  Say(holder, ReplicaPolled{view});
  Submit(Turn(0, 200));
  EXPECT_EQ(port.sent[1].replica, 1 - holder);
}

TEST_F(ReplicaSetTest, AReplicaThatWasLostHoldsNoBeginning) {
  MakeJoined(2);
  Submit(Turn(0, 200));
  const FakePort::Sent first = port.sent[0];
  End(first, {.reason = EndReason::kStop});
  Lose(first.replica);
  now += 1000 * kMs;
  set->OnTime(now);  // opens its stream again
  Say(first.replica, ReplicaJoined{Ready(2)});
  Submit(Turn(0, 200));
  EXPECT_EQ(port.sent[1].replica, 1 - first.replica);
  EXPECT_EQ(set->view().num_to_prefix, 0);
}

TEST(PrefixAffinityTest, KnowsBeginningsOfOneTwoFourChunks) {
  const auto hashes = [](size_t num_tokens) {
    return PrefixAffinity::Hashes({}, std::vector<TokenId>(num_tokens, 5)).size();
  };
  EXPECT_EQ(hashes(63), 0u);
  EXPECT_EQ(hashes(64), 1u);
  EXPECT_EQ(hashes(4 * 64 - 1), 2u);
  EXPECT_EQ(hashes(4 * 64), 3u);
  EXPECT_EQ(hashes(1 << 20), 11u) << "of the first 1,024 chunks";
  const auto longer = PrefixAffinity::Hashes({}, std::vector<TokenId>(300, 5));
  const auto shorter = PrefixAffinity::Hashes({}, std::vector<TokenId>(130, 5));
  EXPECT_THAT(shorter, ElementsAre(longer[0], longer[1]));
}

TEST(PrefixAffinityTest, FindsTheLongestBeginningAndForgetsTheLongestUnused) {
  PrefixAffinity affinity(4);
  affinity.Remember({1, 2}, 0);
  affinity.Remember({1, 3}, 1);
  EXPECT_EQ(affinity.Find({1, 2}), 0);
  EXPECT_EQ(affinity.Find({1, 4}), 1);
  EXPECT_EQ(affinity.Find({5}), -1);
  affinity.Remember({6, 7}, 2);
  EXPECT_EQ(affinity.num_beginnings(), 4u);
  EXPECT_EQ(affinity.Find({2}), -1) << "the longest unused";
  EXPECT_EQ(affinity.Find({1, 3}), 1);
  affinity.Forget(1);
  EXPECT_EQ(affinity.Find({1, 3}), -1);
  EXPECT_EQ(affinity.Find({6}), 2);
  EXPECT_EQ(affinity.num_beginnings(), 2u);
}

TEST_F(ReplicaSetTest, PassesOverReplicasThatAreNotReadyDrainOrServeAnotherModel) {
  MakeJoined(4);
  ReplicaView view = Ready();
  view.is_ready = false;
  Say(0, ReplicaPolled{view});
  view = Ready();
  view.is_draining = true;
  Say(1, ReplicaPolled{view});
  view = Ready();
  view.vocab_size = 11;
  Say(2, ReplicaPolled{view});
  Say(3, ReplicaPolled{Ready(1000)});
  Submit();
  ASSERT_THAT(port.sent, SizeIs(1));
  EXPECT_EQ(port.sent[0].replica, 3);
  EXPECT_EQ(set->view().num_ready, 1);
}

TEST_F(ReplicaSetTest, WithoutAReadyReplicaOneThatLostItsWorkersQueuesTheRequest) {
  MakeJoined(1);
  ReplicaView view = Ready();
  view.is_ready = false;
  Say(0, ReplicaPolled{view});
  EXPECT_NE(Submit(), 0u);
}

TEST_F(ReplicaSetTest, SaysWhenTheOnlyReplicaDrains) {
  MakeJoined(1);
  ReplicaView view = Ready();
  view.is_draining = true;
  Say(0, ReplicaPolled{view});
  const auto taken = set->Submit(now, std::make_shared<Submission>(), sink);
  EXPECT_EQ(taken.ticket, 0u);
  EXPECT_EQ(taken.why, ReplicaSet::NotTaken::kDraining);
}

TEST_F(ReplicaSetTest, TakesARefusedRequestToAnotherReplicaButNotToOneThatRefusedIt) {
  MakeJoined(2);
  Submit();
  const auto first = port.sent[0];
  End(first, Refused(Refusal::Reason::kQueueFull));
  ASSERT_THAT(port.sent, SizeIs(2));
  EXPECT_NE(port.sent[1].replica, first.replica);
  EXPECT_NE(port.sent[1].attempt, first.attempt);
  End(port.sent[1], Refused(Refusal::Reason::kQueueFull));
  EXPECT_THAT(port.sent, SizeIs(2));
  ASSERT_TRUE(sink->end.has_value());
  EXPECT_EQ(sink->end->refusal->reason, Refusal::Reason::kQueueFull);
}

TEST_F(ReplicaSetTest, DoesNotShopAroundForATenantsFullQueue) {
  MakeJoined(2);
  Submit();
  End(port.sent[0], Refused(Refusal::Reason::kTenantQueueFull));
  EXPECT_THAT(port.sent, SizeIs(1));
  EXPECT_EQ(sink->end->refusal->reason, Refusal::Reason::kTenantQueueFull);
}

// ---- losses ----

TEST_F(ReplicaSetTest, ReplaysALostRequestOnAnotherReplicaWithTheTokensItHas) {
  MakeJoined(2);
  Submit();
  const auto first = port.sent[0];
  Admit(first);
  Tokens(first, 0, {1, 2});
  Tokens(first, 2, {3});
  Lose(first.replica);
  ASSERT_THAT(port.sent, SizeIs(2));
  EXPECT_NE(port.sent[1].replica, first.replica);
  EXPECT_THAT(port.sent[1].resumed, ElementsAre(1, 2, 3));
  Admit(port.sent[1]);
  Tokens(port.sent[1], 3, {4});
  End(port.sent[1], {.reason = EndReason::kLength});
  EXPECT_THAT(sink->tokens, ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(sink->num_admitted, 1);
  EXPECT_EQ(sink->end->reason, EndReason::kLength);
  EXPECT_EQ(set->view().num_requests, 0);
  EXPECT_EQ(set->view().num_replays, 1);
}

TEST_F(ReplicaSetTest, WaitsForTheSameReplicaToComeBackAndToHaveWorkers) {
  MakeJoined(1);
  Submit();
  Admit(port.sent[0]);
  Tokens(port.sent[0], 0, {1});
  Lose(0);
  EXPECT_EQ(set->view().num_parked, 1);
  Return(0, ReplicaView{.build = "b"});
  EXPECT_THAT(port.sent, SizeIs(1)) << "it does not know yet what it can serve";
  Say(0, ReplicaPolled{Ready()});
  ASSERT_THAT(port.sent, SizeIs(2));
  EXPECT_THAT(port.sent[1].resumed, ElementsAre(1));
  EXPECT_FALSE(sink->end.has_value());
}

TEST_F(ReplicaSetTest, AParkedRequestThatIsRefusedWaitsOnAndTriesAgain) {
  MakeJoined(1);
  Submit();
  Admit(port.sent[0]);
  Lose(0);
  Return(0, Ready());
  ASSERT_THAT(port.sent, SizeIs(2));
  End(port.sent[1], Refused(Refusal::Reason::kNoWorkers));
  EXPECT_FALSE(sink->end.has_value());
  now += 100 * kMs;
  set->OnTime(now);
  EXPECT_THAT(port.sent, SizeIs(2)) << "before the time that it was told to wait";
  now += 500 * kMs;
  set->OnTime(now);
  EXPECT_THAT(port.sent, SizeIs(3));
}

TEST_F(ReplicaSetTest, GivesUpARequestThatNoReplicaTakesOverInTime) {
  MakeJoined(1);
  Submit();
  Admit(port.sent[0]);
  Lose(0);
  now += 29'000 * kMs;
  set->OnTime(now);
  EXPECT_FALSE(sink->end.has_value());
  now += 2'000 * kMs;
  set->OnTime(now);
  ASSERT_TRUE(sink->end.has_value());
  EXPECT_EQ(sink->end->reason, EndReason::kReplicaLost);
}

TEST_F(ReplicaSetTest, GivesUpARequestThatLosesItsReplicaTooOften) {
  MakeJoined(1);
  Submit();
  for (int i = 0; i < 3; ++i) {
    Lose(0);
    ASSERT_FALSE(sink->end.has_value());
    Return(0, Ready());
  }
  Lose(0);
  ASSERT_TRUE(sink->end.has_value());
  EXPECT_EQ(sink->end->reason, EndReason::kReplicaLost);
}

TEST_F(ReplicaSetTest, AParkedRequestKeepsItsDeadline) {
  MakeJoined(1);
  Submit({.request_id = "a", .deadline = now + 1'000 * kMs, .max_tokens = 50});
  EXPECT_EQ(port.sent[0].deadline_ms, 1000);
  Lose(0);
  now += 1'000 * kMs;
  set->OnTime(now);
  ASSERT_TRUE(sink->end.has_value());
  EXPECT_EQ(sink->end->reason, EndReason::kDeadline);
}

TEST_F(ReplicaSetTest, AnOutputThatWasCompleteWhenItsReplicaWasLostIsNotComputedAgain) {
  MakeJoined(2);
  Submit({.request_id = "a", .max_tokens = 2, .min_tokens = 2, .stop_tokens = {9}});
  Tokens(port.sent[0], 0, {9, 3});
  Lose(port.sent[0].replica);
  EXPECT_EQ(sink->end->reason, EndReason::kLength);
  sink = std::make_shared<Sink>();
  const size_t num_sent = port.sent.size();
  Submit({.request_id = "b", .max_tokens = 5, .stop_tokens = {9}});
  Tokens(port.sent.back(), 0, {9});
  Lose(port.sent.back().replica);
  EXPECT_EQ(sink->end->reason, EndReason::kStop);
  EXPECT_THAT(port.sent, SizeIs(num_sent + 1));
}

TEST_F(ReplicaSetTest, IgnoresTokensItHasAndClosesAStreamThatSkipsSome) {
  MakeJoined(1);
  Submit();
  Tokens(port.sent[0], 0, {1, 2});
  Tokens(port.sent[0], 1, {7});
  EXPECT_THAT(sink->tokens, ElementsAre(1, 2));
  EXPECT_THAT(port.closed, IsEmpty());
  Tokens(port.sent[0], 3, {4});
  EXPECT_THAT(sink->tokens, ElementsAre(1, 2));
  EXPECT_THAT(port.closed, ElementsAre(0));
}

TEST_F(ReplicaSetTest, EventsOfAnEarlierStreamChangeNothing) {
  MakeJoined(1);
  Submit();
  const auto old = port.sent[0];
  const uint64_t old_stream = port.streams[0];
  Lose(0);
  Return(0, Ready());
  set->On(
      now,
      {.replica = 0, .stream = old_stream, .what = ReplicaOutput{.tokens = {{old.attempt, {.index = 0, .token = 5}}}}});
  set->On(now, {.replica = 0, .stream = old_stream, .what = ReplicaGone{"again"}});
  EXPECT_THAT(sink->tokens, IsEmpty());
  EXPECT_EQ(set->view().num_joined, 1);
}

// ---- cancels ----

TEST_F(ReplicaSetTest, CancelsAtTheReplicaAndTellsTheEnd) {
  MakeJoined(1);
  const uint64_t ticket = Submit();
  set->Cancel(now, ticket, /*is_stop=*/true);
  set->Cancel(now, ticket, /*is_stop=*/false);
  ASSERT_THAT(port.cancelled, SizeIs(1));
  EXPECT_TRUE(port.cancelled[0].is_stop);
  EXPECT_FALSE(sink->end.has_value());
  End(port.sent[0], {.reason = EndReason::kStop});
  EXPECT_EQ(sink->end->reason, EndReason::kStop);
}

TEST_F(ReplicaSetTest, ACancelledRequestIsNotReplayed) {
  MakeJoined(2);
  set->Cancel(now, Submit(), /*is_stop=*/false);
  Lose(port.sent[0].replica);
  EXPECT_THAT(port.sent, SizeIs(1));
  EXPECT_EQ(sink->end->reason, EndReason::kCancelled);
}

TEST_F(ReplicaSetTest, AParkedRequestEndsAtOnceWhenItIsCancelled) {
  MakeJoined(1);
  const uint64_t ticket = Submit();
  Lose(0);
  set->Cancel(now, ticket, /*is_stop=*/false);
  EXPECT_EQ(sink->end->reason, EndReason::kCancelled);
  EXPECT_EQ(set->view().num_requests, 0);
}

// ---- streams ----

TEST_F(ReplicaSetTest, ComesBackLaterAndLaterToAReplicaThatIsNotThere) {
  Make(1);
  std::vector<TimeUs> waits;
  for (int i = 0; i < 8; ++i) {
    Lose(0);
    const TimeUs lost_at = now;
    const size_t num_opened = port.opened.size();
    while (port.opened.size() == num_opened) set->OnTime(now += 10 * kMs);
    waits.push_back(now - lost_at);
  }
  EXPECT_GE(waits[0], 90 * kMs);
  EXPECT_LE(waits[0], 120 * kMs);
  EXPECT_GE(waits[1], 170 * kMs);
  EXPECT_GE(waits[7], 1'700 * kMs);
  EXPECT_LE(waits[7], 2'300 * kMs);
}

TEST_F(ReplicaSetTest, ClosesTheStreamOfAReplicaThatSaysNothing) {
  MakeJoined(2);
  for (int i = 0; i < 60; ++i) {
    now += 100 * kMs;
    set->OnTime(now);
    Say(1, ReplicaPolled{Ready()});
  }
  EXPECT_THAT(port.closed, ElementsAre(0));
  Submit();
  EXPECT_EQ(port.sent.back().replica, 1) << "nothing new goes where nothing comes from";
}

TEST_F(ReplicaSetTest, AsksEveryReplicaHowItStands) {
  MakeJoined(1);
  for (int i = 0; i < 50; ++i) set->OnTime(now += 20 * kMs);
  EXPECT_GE(port.polled.size(), 3u);
  EXPECT_LE(port.polled.size(), 4u);
}

TEST_F(ReplicaSetTest, RefusesWhatCannotBeSent) {
  MakeJoined(1);
  port.is_full = true;
  EXPECT_EQ(Submit(), 0u);
}

TEST_F(ReplicaSetTest, KnowsTheShortestContext) {
  MakeJoined(2);
  ReplicaView view = Ready();
  view.max_model_len = 70;
  Say(1, ReplicaPolled{view});
  EXPECT_EQ(set->max_model_len(), 70);
}

// ---- where the time went ----

TEST_F(ReplicaSetTest, TheSplitAddsUpToTheTimeSinceSubmit) {
  MakeJoined(1);
  const TimeUs began = now;
  Submit();
  now += 700;
  End(port.sent[0],
      {.reason = EndReason::kLength, .wait = {.queued_for_share_us = 100, .prefill_us = 200, .decode_us = 300}});
  EXPECT_EQ(sink->end->wait.sum(), now - began);
  EXPECT_EQ(sink->end->wait.decode_us, 300);
  EXPECT_EQ(sink->end->wait.network_us, 100);
}

TEST_F(ReplicaSetTest, TheSplitIsHeldToWhatWasMeasured) {
  MakeJoined(1);
  Submit();
  now += 500;
  End(port.sent[0],
      {.reason = EndReason::kLength, .wait = {.queued_for_share_us = 100, .prefill_us = 200, .decode_us = 300}});
  EXPECT_EQ(sink->end->wait.sum(), 500);
  EXPECT_GE(sink->end->wait.network_us, 0);
}

TEST_F(ReplicaSetTest, TheSplitCoversALossAndThePauseAfterIt) {
  MakeJoined(1);
  const TimeUs began = now;
  Submit();
  now += 10 * kMs;
  Tokens(port.sent[0], 0, {1});
  now += 30 * kMs;
  Tokens(port.sent[0], 1, {2});
  now += 5 * kMs;
  Lose(0);
  Return(0, Ready());
  const TimeUs replayed = now;
  now += 50 * kMs;
  End(port.sent[1], {.reason = EndReason::kLength, .wait = {.prefill_us = 20 * kMs, .decode_us = 30 * kMs}});
  const WaitSplit& wait = sink->end->wait;
  EXPECT_EQ(wait.sum(), now - began);
  EXPECT_EQ(wait.prefill_us, 30 * kMs);
  EXPECT_EQ(wait.decode_us, 60 * kMs);
  EXPECT_EQ(wait.network_us, replayed - began - 40 * kMs);
}

}  // namespace
}  // namespace weir::gateway
