#include "tests/sim/clients.h"

#include <gtest/gtest.h>

#include <memory>

// The clients must notice every answer that no scheduler may give.

namespace weir::sim {
namespace {

using scheduler::Finished;
using scheduler::FinishReason;
using scheduler::RefusalReason;
using scheduler::Refused;
using scheduler::TimeUs;

class ClientsTest : public ::testing::Test {
 protected:
  ClientsTest()
      : clients_(limits_, report_), workers_(limits_, 50, [this](auto id) { return clients_.Find(id); }, report_) {
    policy_.tenants.resize(1);
    policy_.tenants[0].max_num_waiting = 2;
    clients_.set_on_end([](Request&) {});
    workers_.Form(1, 1, 8);
    clients_.BeforeGroupFormed({1, 1, 8});
  }

  Request& Arrive(TimeUs now = 0, bool is_admitted = true) {
    auto drawn = std::make_unique<Request>();
    drawn->arrival.id = clients_.num_requests() + 1;
    drawn->arrival.prompt = {1, 2, 3};
    for (const auto token : drawn->arrival.prompt) drawn->Append(token);
    drawn->arrival.max_tokens = 2;
    drawn->num_known = drawn->num_sampled = 3;
    drawn->arrived_at = now;
    Request& request = clients_.Add(std::move(drawn));
    clients_.BeforeArrival(request, policy_, workers_, false, now);
    if (is_admitted) clients_.AfterApply(now);
    return request;
  }
  // As if a completed step had sampled the next token.
  void Sample(Request& request) {
    request.Foresee(request.num_sampled - 1, 50);
    ++request.num_sampled;
  }
  void Tell(const Request& request, int32_t index, int32_t error = 0) {
    const auto position = static_cast<size_t>(request.num_prompt()) + static_cast<size_t>(index);
    const auto token = position < request.tokens.size() ? request.tokens[position] + error : 0;
    clients_.Deliver(scheduler::Token{request.id(), index, token}, policy_, 0);
  }
  static Finished Ending(const Request& request, FinishReason reason, TimeUs lived) {
    Finished finished;
    finished.id = request.id();
    finished.reason = reason;
    finished.num_prompt_tokens = 3;
    finished.num_output_tokens = request.num_known - 3;
    finished.wait.decode_us = lived;
    return finished;
  }
  void ExpectBroken(const char* checker) {
    EXPECT_EQ(report_.violation().checker, checker) << report_.violation().text;
  }

  scheduler::Limits limits_;
  scheduler::Policy policy_;
  Report report_;
  Clients clients_;
  Workers workers_;
};

TEST_F(ClientsTest, TokensInOrderThenOneTerminalIsRight) {
  Request& request = Arrive();
  Sample(request);
  Tell(request, 0);
  Sample(request);
  Tell(request, 1);
  clients_.Deliver(Ending(request, FinishReason::kLength, 10), policy_, 10);
  clients_.AfterApply(10);
  EXPECT_TRUE(report_.ok()) << report_.violation().text;
  EXPECT_TRUE(clients_.live().empty());
}

TEST_F(ClientsTest, ARepeatedTokenIsNoticed) {
  Request& request = Arrive();
  Sample(request);
  Tell(request, 0);
  Sample(request);
  Tell(request, 0);
  ExpectBroken("tokens");
}

TEST_F(ClientsTest, AMissingTokenIsNoticed) {
  Request& request = Arrive();
  Sample(request);
  Sample(request);
  Tell(request, 1);
  ExpectBroken("tokens");
}

TEST_F(ClientsTest, AWrongTokenIsNoticed) {
  Request& request = Arrive();
  Sample(request);
  Tell(request, 0, 1);
  ExpectBroken("tokens");
}

TEST_F(ClientsTest, ATokenBeforeItsStepCompletedIsNoticed) {
  Request& request = Arrive();
  request.Foresee(2, 50);
  Tell(request, 0);
  ExpectBroken("tokens");
}

TEST_F(ClientsTest, ASecondTerminalIsNoticed) {
  Request& request = Arrive();
  clients_.BeforeCancel({request.id()});
  clients_.Deliver(Ending(request, FinishReason::kCancelled, 5), policy_, 5);
  EXPECT_TRUE(report_.ok());
  clients_.Deliver(Ending(request, FinishReason::kCancelled, 5), policy_, 5);
  ExpectBroken("terminal");
}

TEST_F(ClientsTest, AReasonThatDoesNotHoldIsNoticed) {
  for (const auto reason :
       {FinishReason::kStop, FinishReason::kLength, FinishReason::kCancelled, FinishReason::kDeadline,
        FinishReason::kNotFinite, FinishReason::kFailed, FinishReason::kQuarantined}) {
    report_ = Report();
    Request& request = Arrive();
    clients_.Deliver(Ending(request, reason, 5), policy_, 5);
    ExpectBroken("terminal");
  }
}

TEST_F(ClientsTest, AWaitSplitThatDoesNotAddUpIsNoticed) {
  Request& request = Arrive();
  clients_.BeforeCancel({request.id()});
  clients_.Deliver(Ending(request, FinishReason::kCancelled, 4), policy_, 5);
  ExpectBroken("wait_split");
}

TEST_F(ClientsTest, ACancelThatEndsNothingIsNoticed) {
  Request& request = Arrive();
  clients_.BeforeCancel({request.id()});
  clients_.AfterApply(5);
  ExpectBroken("terminal");
}

TEST_F(ClientsTest, ARefusalWithoutReasonIsNoticed) {
  Request& request = Arrive(0, false);
  clients_.Deliver(Refused{request.id(), RefusalReason::kQueueFull, 10, 2, 1}, policy_, 0);
  ExpectBroken("refusal");
}

TEST_F(ClientsTest, AFullQueueMustRefuseAndSayWhenToRetry) {
  Arrive();
  Arrive();
  Request& third = Arrive(0, false);
  clients_.Deliver(Refused{third.id(), RefusalReason::kTenantQueueFull, 10, 3, 2}, policy_, 0);
  clients_.AfterApply(0);
  EXPECT_TRUE(report_.ok()) << report_.violation().text;
  Request& fourth = Arrive(0, false);
  clients_.Deliver(Refused{fourth.id(), RefusalReason::kTenantQueueFull, 0, 3, 2}, policy_, 0);
  ExpectBroken("refusal");
  report_ = Report();
  Arrive();  // admitted as if there were room
  ExpectBroken("refusal");
}

TEST_F(ClientsTest, ADeadlineThatPassedIsNoticed) {
  Request& request = Arrive();
  request.arrival.deadline = 100;
  clients_.AfterPlan(100, 100);
  EXPECT_TRUE(report_.ok());
  clients_.AfterPlan(101, 101);
  ExpectBroken("deadline");
}

TEST_F(ClientsTest, ALateWakeTimeIsNoticed) {
  Request& request = Arrive();
  request.arrival.deadline = 100;
  clients_.AfterPlan(50, scheduler::kNever);
  ExpectBroken("deadline");
}

}  // namespace
}  // namespace weir::sim
