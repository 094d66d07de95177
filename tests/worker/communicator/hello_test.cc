#include "worker/communicator/hello.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

namespace weir::worker {
namespace {

Hello SomeHello() { return {Verdict::kHello, 2, 4, 7, "secret"}; }

TEST(Hello, ComesBackAsItWas) {
  Hello decoded;
  const std::string bytes = EncodeHello(SomeHello());
  ASSERT_LE(bytes.size(), kMaxHelloBytes);
  ASSERT_EQ(*DecodeHello(bytes, decoded), 0);
  EXPECT_EQ(decoded.verdict, Verdict::kHello);
  EXPECT_EQ(decoded.rank, 2);
  EXPECT_EQ(decoded.world_size, 4);
  EXPECT_EQ(decoded.epoch, 7);
  EXPECT_EQ(decoded.token, "secret");
}

TEST(Hello, EveryPrefixAsksForMoreAndNeverForTooMuch) {
  const std::string bytes = EncodeHello(SomeHello());
  for (size_t n = 0; n < bytes.size(); ++n) {
    Hello decoded;
    const auto num_missing = DecodeHello(std::string_view(bytes).substr(0, n), decoded);
    ASSERT_TRUE(num_missing.ok()) << n;
    EXPECT_GT(*num_missing, 0);
    EXPECT_LE(n + *num_missing, bytes.size());
  }
}

TEST(Hello, GarbageIsKnownByItsFirstBytes) {
  Hello decoded;
  EXPECT_FALSE(DecodeHello("G", decoded).ok());
  EXPECT_FALSE(DecodeHello("GET / HTTP/1.1\r\n", decoded).ok());
}

TEST(Hello, AnyChangedByteIsSurvived) {
  std::mt19937 random(1);
  for (int i = 0; i < 20000; ++i) {
    std::string bytes = EncodeHello(SomeHello());
    for (int k = 0; k < 3; ++k) bytes[random() % bytes.size()] = static_cast<char>(random());
    Hello decoded;
    const auto num_missing = DecodeHello(bytes, decoded);
    if (num_missing.ok() && *num_missing == 0) {
      EXPECT_LE(decoded.token.size(), kMaxTokenBytes);
    }
  }
}

TEST(Hello, IsJudgedByTokenFirst) {
  const Hello mine{Verdict::kHello, 0, 4, 8, "secret"};
  const auto judge = [&](const Hello& theirs) { return Judge(mine, theirs); };
  EXPECT_EQ(judge({Verdict::kHello, 2, 4, 8, "secret"}), Verdict::kAccepted);
  EXPECT_EQ(judge({Verdict::kHello, 2, 4, 7, "secreT"}), Verdict::kWrongToken);
  EXPECT_EQ(judge({Verdict::kHello, 2, 4, 8, "secret2"}), Verdict::kWrongToken);
  EXPECT_EQ(judge({Verdict::kHello, 2, 4, 7, "secret"}), Verdict::kWrongEpoch);
  EXPECT_EQ(judge({Verdict::kHello, 2, 5, 8, "secret"}), Verdict::kWrongWorldSize);
  EXPECT_EQ(judge({Verdict::kHello, 4, 4, 8, "secret"}), Verdict::kWrongRank);
  EXPECT_EQ(judge({Verdict::kHello, 0, 4, 8, "secret"}), Verdict::kWrongRank);
}

TEST(Hello, ExplanationsHoldBothNumbers) {
  const Hello mine{Verdict::kHello, 0, 4, 8, ""};
  const Hello theirs{Verdict::kHello, 2, 5, 7, ""};
  EXPECT_EQ(Explain(Verdict::kWrongEpoch, mine, theirs), "rank 2 is in epoch 7, this rank in epoch 8");
  EXPECT_EQ(Explain(Verdict::kWrongWorldSize, mine, theirs), "rank 2 belongs to a group of 5, this rank to one of 4");
}

}  // namespace
}  // namespace weir::worker
