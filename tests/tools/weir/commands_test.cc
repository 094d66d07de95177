// weir keys, doctor and completion as a person or a script runs them.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "gateway/identity/key_ring.h"
#include "tests/tools/weir/program.h"
#include "tests/worker/checkpoint_writer.h"
#include "tests/worker/tiny_models.h"

namespace weir::tools {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using worker::TestDirectory;
using worker::WriteTextFile;

// ---- keys ----

class KeysTest : public ::testing::Test {
 protected:
  std::string Create(const std::string& arguments) {
    const Outcome outcome = Weir("keys create --file " + file_ + " " + arguments);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
    return outcome.output.substr(0, outcome.output.find('\n'));
  }
  json List() { return json::parse(Weir("keys list --json --file " + file_).output); }

  TestDirectory directory_;
  const std::string file_ = directory_ / "keys.yaml";
};

TEST_F(KeysTest, MakesAKeyThatTheGatewayKnows) {
  const std::string key = Create("--tenant guangdong/foshan --highest-priority standard --max-concurrent-requests 3");
  EXPECT_THAT(key, StartsWith("weir_"));
  const auto ring = gateway::KeyFile::Open(file_);
  ASSERT_TRUE(ring.ok());
  const auto identity = (*ring)->ring()->Authenticate(key);
  ASSERT_TRUE(identity.ok());
  EXPECT_EQ(identity->TenantName(), "guangdong/foshan");
  EXPECT_EQ(identity->highest_priority, gateway::Priority::kStandard);
  EXPECT_EQ(identity->max_concurrent_requests, 3);
}

TEST_F(KeysTest, WritesAFileThatOnlyItsOwnerReads) {
  Create("--tenant a");
  struct stat status = {};
  ASSERT_EQ(stat(file_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
}

TEST_F(KeysTest, ListsTenantsAndNeverKeys) {
  const std::string key = Create("--tenant a/b");
  const std::string secret = key.substr(key.rfind('_') + 1);
  const Outcome outcome = Weir("keys list --file " + file_);
  EXPECT_THAT(outcome.output, AllOf(HasSubstr("a/b"), HasSubstr("interactive"), Not(HasSubstr(secret))));
  EXPECT_EQ(List()[0]["tenant"], "a/b");
}

TEST_F(KeysTest, RevokesOneKeyAndLeavesTheOthers) {
  const std::string first = Create("--tenant a").substr(5, 8);
  Create("--tenant b");
  EXPECT_EQ(Weir("keys revoke --file " + file_ + " " + first).exit_code, 0);
  ASSERT_EQ(List().size(), 1U);
  EXPECT_EQ(List()[0]["tenant"], "b");
}

TEST_F(KeysTest, SaysWhichIdWasMeant) {
  std::string id = Create("--tenant a").substr(5, 8);
  id[0] = id[0] == '0' ? '1' : '0';
  const Outcome outcome = Weir("keys revoke --file " + file_ + " " + id);
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.errors, HasSubstr("did you mean"));
}

TEST_F(KeysTest, RefusesATenantThatIsNoPath) {
  const Outcome outcome = Weir("keys create --file " + file_ + " --tenant 'a b'");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.errors, HasSubstr("tenant 'a b'"));
}

TEST_F(KeysTest, SaysHowToMakeAMissingFile) {
  EXPECT_THAT(Weir("keys list --file " + file_).errors, HasSubstr("weir keys create"));
}

// ---- doctor ----

std::map<std::string, json> Findings(const Outcome& outcome) {
  std::map<std::string, json> findings;
  for (const json& finding : json::parse(outcome.output)) findings[finding["check"]] = finding;
  return findings;
}

TEST(DoctorTest, FailsForAModelThatIsNotThere) {
  const Outcome outcome = Weir("doctor --json --model /nowhere");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_EQ(Findings(outcome)["model"]["verdict"], "fail");
  EXPECT_NE(Findings(outcome)["model"]["advice"], "");
}

TEST(DoctorTest, ChecksWeightsTokenizerAndLayout) {
  const std::string model = worker::TinyModel("v3").directory();
  auto findings = Findings(Weir("doctor --json --tp 2 --model " + model));
  EXPECT_EQ(findings["model"]["verdict"], "ok");
  EXPECT_EQ(findings["layout"]["verdict"], "ok");
  EXPECT_EQ(findings["memory"]["verdict"], "ok");
  EXPECT_EQ(findings["tokenizer"]["verdict"], "fail");
  EXPECT_EQ(Findings(Weir("doctor --json --tp 7 --model " + model))["layout"]["verdict"], "fail");
}

TEST(DoctorTest, WarnsOfKeysThatOthersMayRead) {
  const TestDirectory directory;
  const std::string file = directory / "keys.yaml";
  Weir("keys create --tenant a --file " + file);
  EXPECT_EQ(Findings(Weir("doctor --json --keys " + file))["keys"]["verdict"], "ok");
  chmod(file.c_str(), 0644);
  EXPECT_EQ(Findings(Weir("doctor --json --keys " + file))["keys"]["verdict"], "warn");
}

TEST(DoctorTest, FailsForAGatewayThatDoesNotAnswer) {
  const Outcome outcome = Weir("doctor --json --server 127.0.0.1:1");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_EQ(Findings(outcome)["gateway"]["verdict"], "fail");
}

// ---- completion ----

// What bash offers for the last of `words`.
std::string Completions(const std::string& words) {
  const TestDirectory directory;
  WriteTextFile(directory / "completion", Weir("completion bash").output);
  WriteTextFile(directory / "script", "source " + (directory / "completion") + "\nCOMP_WORDS=(" + words +
                                          ")\nCOMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n_weir\necho ${COMPREPLY[@]}\n");
  FILE* pipe = popen(("bash " + (directory / "script")).c_str(), "r");
  std::array<char, 4096> buffer{};
  const size_t count = std::fread(buffer.data(), 1, buffer.size(), pipe);
  pclose(pipe);
  return {buffer.data(), count};
}

TEST(CompletionTest, OffersCommandsOptionsAndSubcommands) {
  EXPECT_EQ(Completions("weir ch"), "chat\n");
  EXPECT_EQ(Completions("weir keys re"), "revoke\n");
  EXPECT_EQ(Completions("weir up --max-num-s"), "--max-num-seqs\n");
  EXPECT_EQ(Completions("weir keys create --ten"), "--tenant\n");
}

TEST(CompletionTest, OffersFilesBehindAnOptionWithAValue) {
  EXPECT_EQ(Completions("weir up --model /etc/host"), Completions("weir inspect --tp /etc/host"));
  EXPECT_THAT(Completions("weir up --model /etc/pass"), HasSubstr("/etc/passwd"));
  EXPECT_EQ(Completions("weir complete --chat --js"), "--json\n") << "--chat has no value here";
}

TEST(CompletionTest, KnowsTwoShells) {
  EXPECT_THAT(Weir("completion zsh").output, StartsWith("#compdef weir"));
  EXPECT_EQ(Weir("completion fish").exit_code, 2);
}

TEST(HelpTest, EveryCommandHasAnExample) {
  for (const std::string command :
       {"", "up", "chat", "complete", "tokenize", "bench", "bench serve", "keys", "keys create", "keys list",
        "keys revoke", "doctor", "inspect", "generate", "sim", "completion"}) {
    const Outcome outcome = Weir(command + " --help");
    EXPECT_EQ(outcome.exit_code, 0) << command;
    EXPECT_THAT(outcome.output, HasSubstr("Example")) << command;
    EXPECT_THAT(outcome.output, HasSubstr("weir " + command)) << command;
  }
}

TEST(HelpTest, SaysItsVersionAndWhichWordIsUnknown) {
  EXPECT_EQ(Weir("--version").exit_code, 0);
  EXPECT_NE(Weir("--version").output, "");
  const Outcome outcome = Weir("bench serve --rat 3");
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.errors, HasSubstr("weir bench serve: unknown option '--rat'; did you mean '--rate'?"));
}

TEST(HelpTest, WrongUsageIsExitCodeTwo) {
  for (const std::string command : {"", "dance", "up", "keys", "keys create", "chat --temperature warm"}) {
    EXPECT_EQ(Weir(command).exit_code, 2) << command;
  }
}

}  // namespace
}  // namespace weir::tools
