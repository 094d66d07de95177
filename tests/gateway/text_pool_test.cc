#include "gateway/serving/text_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <mutex>
#include <string>
#include <vector>

namespace weir::gateway {
namespace {

// Keeps the pool's only thread busy until it is told.
class Gate {
 public:
  void Shut(TextPool& pool) {
    ASSERT_TRUE(pool.Post("gate", 0, [this] {
      is_shut_.set_value();
      opened_.get_future().wait();
    }));
    is_shut_.get_future().wait();
  }
  void Open() { opened_.set_value(); }

 private:
  std::promise<void> is_shut_, opened_;
};

TEST(TextPoolTest, TenantsTakeTurns) {
  std::mutex mutex;
  std::string order;
  Gate gate;
  {
    TextPool pool(1, 1 << 20);
    gate.Shut(pool);
    const auto post = [&](const std::string& tenant) {
      ASSERT_TRUE(pool.Post(tenant, 10, [&, tenant] {
        std::lock_guard lock(mutex);
        order += tenant;
      }));
    };
    for (int i = 0; i < 4; ++i) post("a");
    for (int i = 0; i < 2; ++i) post("b");
    post("c");
    gate.Open();
  }  // runs what waits
  EXPECT_EQ(order, "abcabaa");
}

TEST(TextPoolTest, TakesNoMoreThanItsBound) {
  Gate gate;
  std::atomic<int> num_run{0};
  {
    TextPool pool(1, 10'000);
    gate.Shut(pool);
    EXPECT_TRUE(pool.Post("a", 4'000, [&] { ++num_run; }));
    EXPECT_TRUE(pool.Post("a", 4'000, [&] { ++num_run; }));
    EXPECT_FALSE(pool.Post("b", 4'000, [&] { ++num_run; }));
    EXPECT_GE(pool.waiting_bytes(), 8'000);
    EXPECT_LE(pool.waiting_bytes(), pool.max_waiting_bytes());
    gate.Open();
  }
  EXPECT_EQ(num_run, 2);
}

TEST(TextPoolTest, MakesRoomWhenWorkIsDone) {
  TextPool pool(2, 2'000);
  for (int i = 0; i < 100; ++i) {
    std::promise<void> done;
    while (!pool.Post("a", 1'000, [&] { done.set_value(); })) std::this_thread::yield();
    done.get_future().wait();
  }
}

}  // namespace
}  // namespace weir::gateway
