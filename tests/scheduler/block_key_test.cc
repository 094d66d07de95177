#include "scheduler/core/block_key.h"

#include <gtest/gtest.h>

#include <string>

#include "scheduler/core/siphash.h"

namespace weir::scheduler {
namespace {

std::string Hex(const std::array<uint64_t, 2>& hash) {
  std::string hex;
  for (const uint64_t half : hash) {
    for (int i = 0; i < 8; ++i) {
      const auto byte = static_cast<uint8_t>(half >> (8 * i));
      hex += "0123456789abcdef"[byte / 16];
      hex += "0123456789abcdef"[byte % 16];
    }
  }
  return hex;
}

// vectors_sip128 of the reference implementation: key 00 01 .. 0f, message i is 00 01 .. (i - 1).
TEST(SipHash, AgreesWithThePublishedVectors) {
  std::array<uint8_t, 16> key;
  std::vector<uint8_t> message;
  for (size_t i = 0; i < key.size(); ++i) key[i] = static_cast<uint8_t>(i);
  for (uint8_t i = 0; i < 64; ++i) message.push_back(i);
  const std::span<const uint8_t> bytes(message);
  EXPECT_EQ(Hex(SipHash128(key, bytes.first(0))), "a3817f04ba25a8e66df67214c7550293");
  EXPECT_EQ(Hex(SipHash128(key, bytes.first(1))), "da87c1d86b99af44347659119b22fc45");
  EXPECT_EQ(Hex(SipHash128(key, bytes.first(2))), "8177228da4a45dc7fca38bdef60affe4");
  EXPECT_EQ(Hex(SipHash128(key, bytes.first(3))), "9c70b60c5267a94e5f33b6b02985ed51");
  EXPECT_EQ(Hex(SipHash128(key, bytes.first(7))), "a1f1ebbed8dbc153c0b84aa61ff08239");
  EXPECT_EQ(Hex(SipHash128(key, bytes.first(8))), "3b62a9ba6258f5610f83e264f31497b4");
  EXPECT_EQ(Hex(SipHash128(key, bytes.first(15))), "5493e99933b0a8117e08ec0f97cfc3d9");
  EXPECT_EQ(Hex(SipHash128(key, bytes.first(16))), "6ee2a4ca67b054bbfd3315bf85230577");
  EXPECT_EQ(Hex(SipHash128(key, bytes.first(63))), "5150d1772f50834a503e069a973fbd7c");
}

class BlockKeyTest : public testing::Test {
 protected:
  std::vector<BlockKey> Keys(std::span<const TokenId> prompt) const {
    return PromptBlockKeys(secret_, "tenant", "model", prompt, 2);
  }
  BlockKeySecret secret_ = {.bytes = {1, 2, 3}};
};

TEST_F(BlockKeyTest, NamesOnlyFullBlocks) {
  EXPECT_EQ(Keys(std::vector<TokenId>{1}).size(), 0u);
  EXPECT_EQ(Keys(std::vector<TokenId>{1, 2, 3}).size(), 1u);
  EXPECT_EQ(Keys(std::vector<TokenId>{1, 2, 3, 4}).size(), 2u);
}

TEST_F(BlockKeyTest, EqualBeginningsHaveEqualKeysAndDifferentOnesNeverAgain) {
  const std::vector<BlockKey> a = Keys(std::vector<TokenId>{1, 2, 3, 4, 5, 6});
  const std::vector<BlockKey> b = Keys(std::vector<TokenId>{1, 2, 3, 9, 5, 6});
  EXPECT_EQ(a[0], b[0]);
  EXPECT_NE(a[1], b[1]);
  EXPECT_NE(a[2], b[2]) << "equal tokens behind a different beginning";
}

TEST_F(BlockKeyTest, EqualTokensAtDifferentPlacesHaveDifferentKeys) {
  const std::vector<BlockKey> keys = Keys(std::vector<TokenId>{1, 2, 1, 2});
  EXPECT_NE(keys[0], keys[1]);
}

TEST_F(BlockKeyTest, SecretNamespaceModelAndBlockSizeAllCount) {
  const std::vector<TokenId> prompt = {1, 2, 3, 4};
  const BlockKey key = Keys(prompt)[0];
  EXPECT_NE(PromptBlockKeys({.bytes = {1, 2, 4}}, "tenant", "model", prompt, 2)[0], key);
  EXPECT_NE(PromptBlockKeys(secret_, "tenanu", "model", prompt, 2)[0], key);
  EXPECT_NE(PromptBlockKeys(secret_, "tenant", "modem", prompt, 2)[0], key);
  EXPECT_NE(PromptBlockKeys(secret_, "tenant", "model", prompt, 4)[0], key);
  EXPECT_NE(PromptBlockKeys(secret_, "tenantm", "odel", prompt, 2)[0], key) << "fields run into each other";
}

}  // namespace
}  // namespace weir::scheduler
