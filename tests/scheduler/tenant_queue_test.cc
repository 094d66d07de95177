#include "scheduler/core/tenant_queue.h"

#include <gtest/gtest.h>

namespace weir::scheduler {
namespace {

constexpr PriorityClass kHigh = PriorityClass::kInteractive, kMiddle = PriorityClass::kStandard,
                        kLow = PriorityClass::kBatch;

class TenantQueueTest : public testing::Test {
 protected:
  SequenceIndex Add(PriorityClass priority, bool is_returned = false, uint64_t arrival_number = 0) {
    const SequenceIndex index = pool_.Add();
    pool_[index].phase = Phase::kWaiting;
    tokens_.Append(pool_[index].tokens, std::vector<TokenId>(100, 1));
    pool_[index].priority = priority;
    pool_[index].is_returned = is_returned;
    pool_[index].arrival_number = arrival_number != 0 ? arrival_number : ++num_arrivals_;
    queue_.AddWaiting(pool_, index);
    return index;
  }
  // Serves whatever class comes first, `cost` at a time; returns what each class got.
  std::array<double, 3> Serve(int times, double cost) {
    std::array<double, 3> served = {};
    for (int i = 0; i < times; ++i) {
      for (const PriorityClass priority : queue_.ClassOrder(pool_, 1, 10)) {
        if (!queue_.of(priority).has_work()) continue;
        served[static_cast<int>(priority)] += cost;
        queue_.Charge(priority, cost, shares_, 1000);
        break;
      }
    }
    return served;
  }
  BufferPool tokens_;
  SequencePool pool_;
  TenantQueue queue_;
  std::array<double, 3> shares_ = {0, 0.10, 0.05};
  uint64_t num_arrivals_ = 0;
};

TEST_F(TenantQueueTest, ServesTheHighestClassFirst) {
  Add(kLow);
  Add(kHigh);
  EXPECT_EQ(queue_.ClassOrder(pool_, 1, 10)[0], kHigh);
}

TEST_F(TenantQueueTest, EachLowerClassGetsItsMinimumWhileItWaits) {
  Add(kHigh);
  Add(kMiddle);
  Add(kLow);
  const std::array<double, 3> served = Serve(1000, 10);
  EXPECT_NEAR(served[1], 1000, 20);
  EXPECT_NEAR(served[2], 500, 20);
  EXPECT_NEAR(served[0], 8500, 40);
}

TEST_F(TenantQueueTest, ALowerClassComesFirstOnlyWhenItsNextChunkIsOwed) {
  Add(kHigh);
  Add(kMiddle);
  for (int i = 0; i < 9; ++i) queue_.Charge(kHigh, 10, shares_, 1000);
  EXPECT_EQ(queue_.ClassOrder(pool_, 1, 10)[0], kHigh);
  queue_.Charge(kHigh, 10, shares_, 1000);
  EXPECT_EQ(queue_.ClassOrder(pool_, 1, 10)[0], kMiddle);
  EXPECT_EQ(queue_.ClassOrder(pool_, 1, 20)[0], kHigh) << "a larger chunk takes longer to be owed";
}

TEST_F(TenantQueueTest, AMinimumIsNotSavedUpWhileNothingWaits) {
  Add(kHigh);
  Serve(1000, 10);
  Add(kLow);
  EXPECT_EQ(queue_.ClassOrder(pool_, 1, 10)[0], kHigh);
}

TEST_F(TenantQueueTest, OneRequestAtATimeDoesNotEscapeWhatItWasServedBefore) {
  Add(kHigh);
  double high = 0, low = 0;
  for (int i = 0; i < 2000; ++i) {
    const SequenceIndex index = Add(kLow);
    const std::array<double, 3> served = Serve(1, 10);
    high += served[0];
    low += served[2];
    queue_.RemoveWaiting(pool_, index);
  }
  EXPECT_LT(low, 0.06 * (high + low));
}

TEST_F(TenantQueueTest, ServiceAloneIsNotPaidBackForEver) {
  Add(kLow);
  Serve(100000, 10);
  Add(kHigh);
  const std::array<double, 3> served = Serve(10000, 10);
  EXPECT_GT(served[2], 0.03 * 100000);
}

TEST_F(TenantQueueTest, ReturnedRequestsComeFirstInOrderOfArrival) {
  const SequenceIndex fresh = Add(kMiddle, false, 5);
  const SequenceIndex late = Add(kMiddle, true, 4);
  const SequenceIndex early = Add(kMiddle, true, 2);
  const SequenceIndex middle = Add(kMiddle, true, 3);
  const SequenceList& waiting = queue_.of(kMiddle).waiting;
  EXPECT_EQ(waiting.first(), early);
  EXPECT_EQ(pool_[early].next, middle);
  EXPECT_EQ(pool_[middle].next, late);
  EXPECT_EQ(pool_[late].next, fresh);
  EXPECT_EQ(queue_.num_waiting(), 4);
}

}  // namespace
}  // namespace weir::scheduler
