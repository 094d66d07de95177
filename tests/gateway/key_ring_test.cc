#include "gateway/identity/key_ring.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <string>

namespace weir::gateway {
namespace {

class KeyRingTest : public testing::Test {
 protected:
  KeyRingTest() { unlink(path_.c_str()); }
  ~KeyRingTest() override { unlink(path_.c_str()); }
  std::string Text() {
    std::ifstream file(path_);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }
  const std::string path_ = testing::TempDir() + "/weir_key_ring_test_" + std::to_string(getpid()) + ".yaml";
};

TEST_F(KeyRingTest, AKeyOpensItsTenantAndIsNotInTheFile) {
  const auto key = CreateKey(path_, {.tenant = "guangdong/foshan/online", .highest_priority = Priority::kStandard});
  ASSERT_TRUE(key.ok()) << key.status();
  EXPECT_THAT(*key, testing::MatchesRegex("weir_[0-9a-f]{8}_[A-Za-z0-9_-]{43}"));
  EXPECT_THAT(Text(), testing::Not(testing::HasSubstr(key->substr(14))));
  const auto file = std::move(KeyFile::Open(path_)).value();
  const auto identity = file->ring()->Authenticate(*key);
  ASSERT_TRUE(identity.ok());
  EXPECT_THAT(identity->tenant_path, testing::ElementsAre("guangdong", "foshan", "online"));
  EXPECT_THAT(identity->tenant_weights, testing::ElementsAre(1.0, 1.0, 1.0));
  EXPECT_EQ(identity->highest_priority, Priority::kStandard);
}

TEST_F(KeyRingTest, TheFileIsForItsOwnerOnly) {
  ASSERT_TRUE(CreateKey(path_, {.tenant = "a"}).ok());
  struct stat s{};
  ASSERT_EQ(stat(path_.c_str(), &s), 0);
  EXPECT_EQ(s.st_mode & 0777, 0600u);
}

TEST_F(KeyRingTest, EveryWrongKeyGetsTheSameAnswer) {
  const std::string key = *CreateKey(path_, {.tenant = "a"});
  const auto ring = std::move(KeyFile::Open(path_)).value()->ring();
  std::string other = key;
  other.back() = other.back() == 'A' ? 'B' : 'A';
  const absl::Status expected = ring->Authenticate("").status();
  EXPECT_EQ(expected.code(), absl::StatusCode::kUnauthenticated);
  for (const std::string& wrong : {other, key + "x", key.substr(0, key.size() - 1), std::string("weir_00000000_x"),
                                   std::string("weir_"), std::string(5000, 'w'), key.substr(5)}) {
    EXPECT_EQ(ring->Authenticate(wrong).status(), expected) << wrong.size();
  }
  EXPECT_TRUE(ring->Authenticate(key).ok());
}

TEST_F(KeyRingTest, KeysOfOneTenantShareACacheNamespaceAndOthersDoNot) {
  const std::string a1 = *CreateKey(path_, {.tenant = "p/a"});
  const std::string a2 = *CreateKey(path_, {.tenant = "p/a"});
  const std::string b = *CreateKey(path_, {.tenant = "p/b"});
  const auto ring = std::move(KeyFile::Open(path_)).value()->ring();
  EXPECT_EQ(ring->Authenticate(a1)->cache_namespace_key, ring->Authenticate(a2)->cache_namespace_key);
  EXPECT_NE(ring->Authenticate(a1)->cache_namespace_key, ring->Authenticate(b)->cache_namespace_key);
}

TEST_F(KeyRingTest, ARevokedKeyIsRefusedAfterARefresh) {
  const std::string key = *CreateKey(path_, {.tenant = "a"});
  const std::string other = *CreateKey(path_, {.tenant = "a"});
  const auto file = std::move(KeyFile::Open(path_)).value();
  ASSERT_TRUE(RevokeKey(path_, key.substr(5, 8)).ok());
  EXPECT_EQ(RevokeKey(path_, "00000000").code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(file->Refresh().ok());
  EXPECT_FALSE(file->ring()->Authenticate(key).ok());
  EXPECT_TRUE(file->ring()->Authenticate(other).ok());
}

TEST_F(KeyRingTest, AChangeForTheWorseIsReportedAndTheLastGoodKeysStay) {
  const std::string key = *CreateKey(path_, {.tenant = "a"});
  const auto file = std::move(KeyFile::Open(path_)).value();
  std::ofstream(path_) << "keys: 5\n";
  EXPECT_EQ(file->Refresh().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(file->ring()->Authenticate(key).ok());
  unlink(path_.c_str());
  EXPECT_EQ(file->Refresh().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(file->ring()->Authenticate(key).ok());
}

TEST_F(KeyRingTest, BadFilesAreRefusedByName) {
  const std::string hex(64, 'a');
  const std::string head = "pepper: " + hex + "\nnamespace_secret: " + hex + "\n";
  const auto error_of = [&](const std::string& yaml) {
    return std::string(KeyRing::Parse(yaml, "keys.yaml").status().message());
  };
  EXPECT_EQ(error_of(head), "");
  EXPECT_THAT(error_of(": ["), testing::HasSubstr("keys.yaml: not YAML"));
  EXPECT_THAT(error_of("- a"), testing::HasSubstr("a map"));
  EXPECT_THAT(error_of("pepper: 12\n"), testing::HasSubstr("64 hexadecimal digits"));
  EXPECT_THAT(error_of(head + "key: []\n"), testing::HasSubstr("unknown field 'key'"));
  EXPECT_THAT(error_of(head + "keys: [{id: x}]\n"), testing::HasSubstr("keys[0].id"));
  EXPECT_THAT(error_of(head + "keys: [{id: 00000000, hash: 1}]\n"), testing::HasSubstr("keys[0].hash"));
  const std::string entry = "{id: \"00000000\", hash: " + hex + ", tenant: ";
  EXPECT_THAT(error_of(head + "keys: [" + entry + "a//b}]\n"), testing::HasSubstr("keys[0].tenant"));
  EXPECT_THAT(error_of(head + "keys: [" + entry + "a, highest_priority: top}]\n"),
              testing::HasSubstr("highest_priority"));
  EXPECT_THAT(error_of(head + "keys: [" + entry + "a}, " + entry + "b}]\n"), testing::HasSubstr("twice"));
  EXPECT_THAT(error_of(head + "tenants: {a: {weight: 0}}\n"), testing::HasSubstr("tenants.a.weight"));
}

TEST_F(KeyRingTest, WeightsComeFromTheTenantsOfThePath) {
  const std::string key = *CreateKey(path_, {.tenant = "p/a/x"});
  std::ofstream(path_, std::ios::app) << "tenants: {p/a: {weight: 3}}\n";
  const auto ring = std::move(KeyFile::Open(path_)).value()->ring();
  EXPECT_THAT(ring->Authenticate(key)->tenant_weights, testing::ElementsAre(1.0, 3.0, 1.0));
}

}  // namespace
}  // namespace weir::gateway
