// weir up with its real processes: gateway, scheduler and ranks.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/registry.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "metrics/ops_server.h"
#include "tests/tools/weir/program.h"
#include "tests/worker/checkpoint_writer.h"
#include "tests/worker/tiny_models.h"
#include "tools/bench/bench_model.h"
#include "tools/weir/client/inference_client.h"
#include "tools/weir/cluster/child_process.h"
#include "tools/weir/cluster/ops_probe.h"

namespace weir::tools {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using ::testing::HasSubstr;
using ::testing::Not;
using worker::TestDirectory;
using worker::WriteTextFile;

// A tiny model with a tokenizer, so that a gateway can serve it.
class ServableModel {
 public:
  ServableModel() {
    fs::copy(worker::TinyModel("v3").directory(), directory_.path(), fs::copy_options::recursive);
    WriteTextFile(directory_ / "tokenizer.json", PlainTokenizerJson(96));
  }
  std::string path() const { return directory_.path(); }

 private:
  TestDirectory directory_;
};

// The processes whose parent is `parent`, zombies left out, by the name of their program.
std::vector<pid_t> ChildrenOf(pid_t parent, const std::string& program) {
  std::vector<pid_t> children;
  for (const auto& entry : fs::directory_iterator("/proc")) {
    std::ifstream file(entry.path() / "stat");
    std::string pid, name, state;
    pid_t its_parent = 0;
    if (!(file >> pid >> name >> state >> its_parent)) continue;
    if (its_parent == parent && state != "Z" && name.find(program) != std::string::npos) {
      children.push_back(static_cast<pid_t>(std::stol(pid)));
    }
  }
  return children;
}

bool IsAlive(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string first, name, state;
  return static_cast<bool>(file >> first >> name >> state) && state != "Z";
}

template <typename Condition>
bool BecomesTrue(Condition condition, std::chrono::seconds patience = std::chrono::seconds(30)) {
  const auto end = steady_clock::now() + patience;
  while (!condition()) {
    if (steady_clock::now() > end) return false;
    std::this_thread::sleep_for(milliseconds(20));
  }
  return true;
}

class UpTest : public ::testing::Test {
 protected:
  void Start(const std::string& more) {
    Run("--name tiny --max-num-seqs 8 --num-blocks 64 --max-num-batched-tokens 128 " + more, model_.path());
  }

  void Run(const std::string& options, const std::string& model) {
    std::vector<std::string> argv = {
        std::string(WEIR_BINARY_DIR) + "/bin/weir", "up", "--model", model, "--port", "0", "--ops-port", "0"};
    std::istringstream words(options);
    for (std::string word; words >> word;) argv.push_back(word);
    auto started = ChildProcess::Start(argv);
    ASSERT_TRUE(started.ok()) << started.status();
    up_.emplace(*std::move(started));
  }

  bool Says(const std::string& text) {
    return BecomesTrue([&] {
             up_->ReadLines([&](std::string_view line) { said_ += std::string(line) + "\n"; });
             return said_.find(text) != std::string::npos || up_->output_fd() < 0;
           }) &&
           said_.find(text) != std::string::npos;
  }

  // What follows `word` at the beginning of a line.
  std::string Said(const std::string& word) const {
    const size_t at = ("\n" + said_).find("\n" + word);
    if (at == std::string::npos) return "";
    const size_t text = said_.find_first_not_of(' ', at + word.size());
    return said_.substr(text, said_.find('\n', text) - text);
  }

  int WaitForEnd() {
    std::optional<int> status;
    BecomesTrue([&] {
      up_->ReadLines([&](std::string_view line) { said_ += std::string(line) + "\n"; });
      return (status = up_->TryWait()).has_value();
    });
    return status.value_or(-1);
  }

  // Greedy tokens behind `prompt`; `on_token` after each message with tokens.
  std::vector<uint32_t> Generate(const std::vector<uint32_t>& prompt, uint32_t max_tokens,
                                 const std::function<void(size_t num_tokens)>& on_token) {
    const auto client = InferenceClient::Connect({.address = Said("serving")});
    v1::GenerateRequest request;
    request.set_model("tiny");
    for (const uint32_t id : prompt) request.mutable_token_ids()->add_ids(id);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stop_conditions()->set_max_tokens(max_tokens);
    request.mutable_stop_conditions()->set_ignore_eos(true);
    std::vector<uint32_t> tokens;
    Cancellation cancellation;
    const absl::Status status = (*client)->Generate(
        request,
        [&](const v1::GenerateResponse& event) {
          if (event.has_finished()) finished_ = event.finished();
          const auto& ids = event.content_delta().token_ids();
          tokens.insert(tokens.end(), ids.begin(), ids.end());
          if (!ids.empty() && on_token) on_token(tokens.size());
        },
        cancellation);
    EXPECT_TRUE(status.ok()) << status;
    return tokens;
  }

  // The same by `weir generate`, which has no gateway and no scheduler.
  std::vector<uint32_t> Expected(const std::string& prompt, int max_tokens, const std::string& layout) const {
    const Outcome outcome = Weir("generate --json --ignore-eos --model " + model_.path() + " --prompt-ids " + prompt +
                                 " --max-tokens " + std::to_string(max_tokens) + " " + layout);
    EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
    const json answer = json::parse(outcome.output, nullptr, /*allow_exceptions=*/false);
    return answer["generated_ids"].get<std::vector<uint32_t>>();
  }

  ServableModel model_;
  std::optional<ChildProcess> up_;
  std::string said_;
  v1::Finished finished_;  // of the last Generate
};

TEST_F(UpTest, ServesTheTokensOfWeirGenerateAndDrains) {
  Start("--tp 2 --threads 1");
  ASSERT_TRUE(Says("stop       Ctrl-C")) << said_;
  EXPECT_EQ(Generate({5, 6, 7, 8}, 24, nullptr), Expected("5,6,7,8", 24, "--tp 2 --threads 1"));
  const auto page =
      GetOpsPage(Said("metrics").substr(7, Said("metrics").find("/metrics") - 7), "/metrics", milliseconds(2000));
  ASSERT_TRUE(page.ok()) << page.status();
  EXPECT_THAT(page->text, HasSubstr("weir_gateway_requests_total"));
  const pid_t pid = up_->pid();
  EXPECT_EQ(ChildrenOf(pid, "weir-").size(), 4U);
  up_->Signal(SIGTERM);
  EXPECT_EQ(WaitForEnd(), 0) << said_;
  EXPECT_THAT(said_, Not(HasSubstr(" W "))) << "nothing happened that anybody must know";
}

TEST_F(UpTest, AStreamSurvivesTheDeathOfARank) {
  Start("--tp 2 --threads 1");
  ASSERT_TRUE(Says("stop       Ctrl-C")) << said_;
  const std::vector<pid_t> ranks = ChildrenOf(up_->pid(), "weir-worker");
  ASSERT_EQ(ranks.size(), 2U);
  const std::vector<uint32_t> tokens = Generate({5, 6, 7, 8}, 60, [&](size_t num_tokens) {
    if (num_tokens == 5) kill(ranks[1], SIGKILL);
  });
  EXPECT_EQ(tokens, Expected("5,6,7,8", 60, "--tp 2 --threads 1"));
  EXPECT_GT(finished_.timing().recovering_us(), 0U) << "the rank died while the stream ran";
  EXPECT_TRUE(Says("rank 1     was killed by signal 9 (Killed); starting again in 0.1 s")) << said_;
  up_->Signal(SIGTERM);
  EXPECT_EQ(WaitForEnd(), 0) << said_;
}

// About 8 s: five probes without an answer.
TEST_F(UpTest, AStreamSurvivesASchedulerThatStandsStill) {
  Start("--tp 2 --threads 1");
  ASSERT_TRUE(Says("stop       Ctrl-C")) << said_;
  const std::vector<pid_t> schedulers = ChildrenOf(up_->pid(), "weir-scheduler");
  ASSERT_EQ(schedulers.size(), 1U);
  const std::vector<uint32_t> tokens = Generate({5, 6, 7, 8}, 60, [&](size_t num_tokens) {
    if (num_tokens == 5) kill(schedulers[0], SIGSTOP);
  });
  EXPECT_EQ(tokens, Expected("5,6,7,8", 60, "--tp 2 --threads 1"));
  EXPECT_GT(finished_.timing().network_us(), 1'000'000U) << "the scheduler stood still while the stream ran";
  EXPECT_TRUE(Says("scheduler  hung (no answer at /healthz for 5 s) and was killed; starting again in 0.1 s")) << said_;
  EXPECT_FALSE(IsAlive(schedulers[0]));
  EXPECT_EQ(Generate({5, 6, 7, 8}, 10, nullptr).size(), 10U);
  up_->Signal(SIGTERM);
  EXPECT_EQ(WaitForEnd(), 0) << said_;
}

// About 8 s.
TEST_F(UpTest, AGatewayThatStandsStillIsStartedAgain) {
  Start("--threads 1");
  ASSERT_TRUE(Says("stop       Ctrl-C")) << said_;
  const std::vector<pid_t> gateways = ChildrenOf(up_->pid(), "weir-gateway");
  ASSERT_EQ(gateways.size(), 1U);
  kill(gateways[0], SIGSTOP);
  EXPECT_TRUE(Says("gateway    hung (no answer at /healthz for 5 s) and was killed; starting again in 0.1 s")) << said_;
  EXPECT_TRUE(BecomesTrue([&] {
    up_->ReadLines([&](std::string_view line) { said_ += std::string(line) + "\n"; });
    return said_.rfind("gateway    ready after") > said_.find("gateway    hung");
  })) << said_;
  EXPECT_EQ(Generate({5, 6, 7, 8}, 24, nullptr), Expected("5,6,7,8", 24, "--threads 1"));
  up_->Signal(SIGTERM);
  EXPECT_EQ(WaitForEnd(), 0) << said_;
}

TEST_F(UpTest, LeavesNoProcessWhenItIsKilled) {
  Start("--threads 1");
  ASSERT_TRUE(Says("stop       Ctrl-C")) << said_;
  const std::vector<pid_t> children = ChildrenOf(up_->pid(), "weir-");
  ASSERT_EQ(children.size(), 3U);
  up_->Signal(SIGKILL);
  for (const pid_t child : children) EXPECT_TRUE(BecomesTrue([&] { return !IsAlive(child); })) << child;
}

TEST_F(UpTest, StopsByItselfForScripts) {
  Start("--threads 1 --run-for 0");
  EXPECT_EQ(WaitForEnd(), 0);
}

TEST_F(UpTest, EndsWithTheMessageOfAProcessThatCannotStart) {
  const TestDirectory directory;
  WriteTextFile(directory / "gateway.yaml", "max_request: 3\n");
  Start("--threads 1 --gateway-config " + (directory / "gateway.yaml"));
  EXPECT_TRUE(Says("gateway exited with code 2 before it was ready; its last lines:")) << said_;
  EXPECT_TRUE(Says("did you mean 'max_requests'?")) << said_;
  EXPECT_NE(WaitForEnd(), 0);
}

TEST_F(UpTest, KeepsLogsInFiles) {
  const TestDirectory directory;
  Start("--threads 1 --run-for 0 --log-dir " + (directory / "logs"));
  EXPECT_EQ(WaitForEnd(), 0);
  for (const char* name : {"logs/rank-0.log", "logs/scheduler.log", "logs/gateway.log"}) {
    EXPECT_GT(fs::file_size(directory / name), 0U) << name;
  }
}

// What tools/dev demo shows.
TEST_F(UpTest, TheBuiltInModelAnswersTheQuestionOfTheDemo) {
  const std::string model = std::string(WEIR_SOURCE_DIR) + "/tools/demo_model/weights";
  if (!fs::exists(model)) GTEST_SKIP() << "the built-in model is not in this checkout";
  Run("--name demo --tp 2 --threads 1", model);
  ASSERT_TRUE(Says("stop       Ctrl-C")) << said_;
  const Outcome outcome = Weir(
      "complete --chat --temperature 0 --max-tokens 200 'Which province is Guangzhou in?' --server " + Said("serving"));
  EXPECT_THAT(outcome.output, HasSubstr("Guangdong"));
  up_->Signal(SIGTERM);
  EXPECT_EQ(WaitForEnd(), 0) << said_;
}

TEST(UpUsageTest, RefusesAPortThatIsTakenBeforeItStartsAnything) {
  const ServableModel model;
  const auto other = metrics::OpsServer::Start({.listen = "127.0.0.1:0"}, std::make_shared<prometheus::Registry>());
  ASSERT_TRUE(other.ok()) << other.status();
  const std::string taken = std::to_string((*other)->port());
  for (const auto& [flag, other_flag] : {std::pair<std::string, std::string>{"--port", "--ops-port"},
                                         std::pair<std::string, std::string>{"--ops-port", "--port"}}) {
    const Outcome outcome =
        Weir("up " + other_flag + " 0 " + flag + " " + taken + " --model " + model.path() + " --run-for 0");
    EXPECT_EQ(outcome.exit_code, 1);
    EXPECT_EQ(outcome.output, "");
    EXPECT_THAT(outcome.errors, HasSubstr("port " + taken + " is in use"));
    EXPECT_THAT(outcome.errors, HasSubstr(flag));
  }
}

TEST(UpUsageTest, NamesWhatIsWrongBeforeItStartsAnything) {
  const ServableModel model;
  EXPECT_THAT(Weir("up --model /nowhere").errors, HasSubstr("/nowhere"));
  EXPECT_THAT(Weir("up --tp 7 --model " + model.path()).errors, HasSubstr("tp"));
  EXPECT_EQ(Weir("up --tp 7 --model " + model.path()).exit_code, 1);
  EXPECT_EQ(Weir("up --keys /nowhere --model " + model.path()).exit_code, 2);
}

}  // namespace
}  // namespace weir::tools
