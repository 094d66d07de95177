// Runs the program as a person or a script would.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/tools/weir/program.h"
#include "tests/worker/checkpoint_writer.h"
#include "tests/worker/tiny_models.h"

namespace weir::worker {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using tools::Outcome;
using tools::Weir;

// On the reference backend, which every build has.
Outcome Generate(const std::string& model, const std::string& arguments) {
  return Weir("generate --backend reference --model " + TinyModel(model).directory() + " " + arguments);
}

json GenerateJson(const std::string& model, const std::string& arguments) {
  const Outcome outcome = Generate(model, arguments + " --json");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
  return json::parse(outcome.output, nullptr, /*allow_exceptions=*/false);
}

TEST(GenerateTest, DescribesEveryPositionWithEcho) {
  const json result = GenerateJson("v3", "--prompt-ids 5,17,33,2 --max-tokens 6 --echo --top-logprobs 20");
  EXPECT_EQ(result["prompt_ids"], json({5, 17, 33, 2}));
  EXPECT_EQ(result["finish_reason"], "length");
  ASSERT_EQ(result["generated_ids"].size(), 6u);
  ASSERT_EQ(result["positions"].size(), 4u - 1u + 6u);
  for (size_t i = 0; i < result["positions"].size(); ++i) {
    const json& position = result["positions"][i];
    EXPECT_EQ(position["id"], i < 3 ? result["prompt_ids"][i + 1] : result["generated_ids"][i - 3]);
    ASSERT_EQ(position["top"].size(), 20u);
    for (int k = 1; k < 20; ++k)
      EXPECT_GE(position["top"][k - 1][1].get<double>(), position["top"][k][1].get<double>());
    if (i < 3) continue;
    EXPECT_EQ(position["id"], position["top"][0][0]) << "greedy";
    EXPECT_EQ(position["logprob"], position["top"][0][1]);
  }
  EXPECT_GT(result["timings"]["prefill_tokens_per_s"].get<double>(), 0.0);
  EXPECT_GT(result["timings"]["decode_tokens_per_s"].get<double>(), 0.0);
}

TEST(GenerateTest, ScoresAPromptWithoutGenerating) {
  const json whole = GenerateJson("v3", "--prompt-ids 5,17,33,2 --max-tokens 3 --echo --top-logprobs 5");
  const json scored = GenerateJson("v3", "--prompt-ids 5,17,33,2 --max-tokens 0 --echo --top-logprobs 5");
  EXPECT_THAT(scored["generated_ids"], IsEmpty());
  ASSERT_EQ(scored["positions"].size(), 3u);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(scored["positions"][i], whole["positions"][i]);
}

// A batch, any chunking, and any number of ranks: the answers of each prompt alone.
TEST(GenerateTest, AnswersABatchAsItAnswersEachPromptAlone) {
  const std::string prompts[] = {"7,8,9", "40,41,42,43,44,45,46,47,48,49,50", "1"};
  std::string batch;
  for (const std::string& prompt : prompts) batch += " --prompt-ids " + prompt;
  const std::string options = " --max-tokens 5 --top-logprobs 3 --echo";
  for (const char* how : {"", " --max-num-batched-tokens 3", " --block-size 4"}) {
    const json result = GenerateJson("v2_lite", batch + options + how);
    ASSERT_EQ(result["answers"].size(), 3u);
    for (int i = 0; i < 3; ++i) {
      const json alone = GenerateJson("v2_lite", "--prompt-ids " + prompts[i] + options);
      for (const char* field : {"prompt_ids", "generated_ids", "positions", "finish_reason"}) {
        EXPECT_EQ(result["answers"][i][field], alone[field]) << how << " prompt " << i;
      }
    }
  }
}

// Real processes, connected by sockets.
TEST(GenerateTest, AnswersOnSeveralRanksAsOnOne) {
  const std::string arguments =
      "--prompt-ids 7,8,9 --prompt-ids 40,41,42,43,44,45,46,47 --prompt-ids 1 --max-tokens 6 --top-logprobs 20 --echo"
      " --weight-dtype f32";
  for (const char* model : {"v3", "v2_lite"}) {
    const json expected = GenerateJson(model, arguments);
    for (const char* layout : {" --tp 2", " --tp 4", " --dp 2", " --tp 2 --dp 2", " --dp 3"}) {
      const json result = GenerateJson(model, arguments + layout);
      for (int i = 0; i < 3; ++i) {
        const json& one = expected["answers"][i];
        const json& many = result["answers"][i];
        EXPECT_EQ(many["generated_ids"], one["generated_ids"]) << model << layout << " prompt " << i;
        ASSERT_EQ(many["positions"].size(), one["positions"].size());
        for (size_t p = 0; p < one["positions"].size(); ++p) {
          EXPECT_NEAR(many["positions"][p]["logprob"].get<double>(), one["positions"][p]["logprob"].get<double>(),
                      2e-5);
        }
      }
    }
  }
}

// A run that would last long, with a rank that a test can harm.
class GenerateFaultTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string model = TinyModel("v3_fp8").directory();
    std::vector<std::string> words = {std::string(WEIR_BINARY_DIR) + "/bin/weir",
                                      "generate",
                                      "--backend",
                                      "reference",
                                      "--model",
                                      model,
                                      "--tp",
                                      "2",
                                      "--prompt-ids",
                                      "5,6,7",
                                      "--max-tokens",
                                      "1270",
                                      "--ignore-eos"};
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    pid_ = fork();
    ASSERT_GE(pid_, 0);
    if (pid_ == 0) {
      dup2(ends[1], STDERR_FILENO);
      close(ends[0]);
      close(ends[1]);
      execv(arguments[0], arguments.data());
      _exit(127);
    }
    close(ends[1]);
    errors_ = fdopen(ends[0], "r");
    // "rank 1: process 1234" is the last line before it runs.
    for (int rank = 0; rank < 2; ++rank) {
      const std::string mark = "rank " + std::to_string(rank) + ": process ";
      const std::string line = LineWith(mark);
      ASSERT_THAT(line, HasSubstr(mark));
      ranks_[rank] = std::stoi(line.substr(mark.size()));
    }
    usleep(100'000);
  }
  void TearDown() override {
    if (errors_ != nullptr) fclose(errors_);
  }

  std::string LineWith(const std::string& mark) {
    std::array<char, 4096> line;
    while (std::fgets(line.data(), line.size(), errors_) != nullptr) {
      if (std::string(line.data()).find(mark) != std::string::npos) return line.data();
    }
    return "";
  }
  int ExitCode() const {
    int status = 0;
    waitpid(pid_, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  static bool Exists(pid_t pid) { return kill(pid, 0) == 0; }

  pid_t pid_ = -1;
  pid_t ranks_[2] = {-1, -1};
  FILE* errors_ = nullptr;
};

TEST_F(GenerateFaultTest, NamesARankThatIsKilled) {
  kill(ranks_[1], SIGKILL);
  EXPECT_THAT(LineWith("weir generate:"),
              HasSubstr("rank 1 (process " + std::to_string(ranks_[1]) + ") was killed by signal 9"));
  EXPECT_EQ(ExitCode(), 1);
  EXPECT_FALSE(Exists(ranks_[0]));
  EXPECT_FALSE(Exists(ranks_[1]));
}

TEST_F(GenerateFaultTest, NamesARankThatStandsStill) {
  kill(ranks_[1], SIGSTOP);
  EXPECT_THAT(LineWith("weir generate:"), ::testing::ContainsRegex("rank 0: .*2000 ms.* 1|rank 1 .* is stopped"));
  EXPECT_EQ(ExitCode(), 1);
  EXPECT_FALSE(Exists(ranks_[0]));
  EXPECT_FALSE(Exists(ranks_[1]));
}

TEST_F(GenerateFaultTest, LeavesNoRankBehindWhenItIsKilledItself) {
  kill(pid_, SIGKILL);
  EXPECT_EQ(ExitCode(), -SIGKILL);
  for (int i = 0; i < 500 && (Exists(ranks_[0]) || Exists(ranks_[1])); ++i) usleep(10'000);
  EXPECT_FALSE(Exists(ranks_[0]));
  EXPECT_FALSE(Exists(ranks_[1]));
}

TEST(GenerateTest, SamplesBySeed) {
  const std::string options = "--prompt-ids 7,8,9 --max-tokens 12 --temperature 2 --seed ";
  const json first = GenerateJson("v3", options + "1");
  EXPECT_EQ(GenerateJson("v3", options + "1")["generated_ids"], first["generated_ids"]);
  EXPECT_NE(GenerateJson("v3", options + "2")["generated_ids"], first["generated_ids"]);
  // Prompt i of a batch has seed + i.
  const json batch = GenerateJson("v3", "--prompt-ids 3 --prompt-ids 7,8,9 --max-tokens 12 --temperature 2 --seed 0");
  EXPECT_EQ(batch["answers"][1]["generated_ids"], first["generated_ids"]);
}

TEST(GenerateTest, StopsAtTheEndOfTheSequenceUnlessToldOtherwise) {
  // The end-of-sequence token of the tiny models is 1.
  const std::string options = "--prompt-ids 7,8,9 --max-tokens 3 --logit-bias 1=1000";
  const json stopped = GenerateJson("v3", options);
  EXPECT_EQ(stopped["generated_ids"], json({1}));
  EXPECT_EQ(stopped["finish_reason"], "stop");
  const json going = GenerateJson("v3", options + " --ignore-eos");
  EXPECT_EQ(going["generated_ids"], json({1, 1, 1}));
  EXPECT_EQ(going["finish_reason"], "length");
}

TEST(GenerateTest, TellsAPersonIdsAndSpeed) {
  const Outcome outcome = Generate("v3", "--prompt-ids 5,17 --max-tokens 3");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
  EXPECT_THAT(outcome.output, HasSubstr("prompt 0: 2 tokens, answer: 3 tokens (length)"));
  EXPECT_THAT(outcome.output, HasSubstr("tokens/s"));
  EXPECT_THAT(outcome.errors, ::testing::ContainsRegex("1 rank: weights .* MB . cache .* MB . workspace .* available"));
}

TEST(GenerateTest, ReportsASequenceWhoseLogitsAreNotFinite) {
  const Outcome outcome =
      Generate("v3_nan", "--prompt-ids 5,17 --prompt-ids " + std::to_string(kNanToken) + " --max-tokens 3 --json");
  EXPECT_EQ(outcome.exit_code, 1);
  const json result = json::parse(outcome.output);
  EXPECT_EQ(result["answers"][0]["finish_reason"], "length");
  EXPECT_EQ(result["answers"][1]["finish_reason"], "error");
  EXPECT_THAT(result["answers"][1]["error"].get<std::string>(), HasSubstr("not finite"));
}

TEST(GenerateTest, ExitsWithOneAndSaysWhatToChange) {
  Outcome outcome = Weir("generate --model /nonexistent --prompt-ids 1");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.errors, HasSubstr("/nonexistent"));
  outcome = Generate("v3", "--prompt-ids 1,2 --max-tokens 2000");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.errors, HasSubstr("the model has 1280 positions"));
  outcome = Generate("v3", "--prompt-ids 1,96");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.errors + outcome.output, HasSubstr("token_ids[1] is 96; the vocabulary has tokens 0 to 95"));
  outcome = Generate("v3", "--prompt-ids 1 --tp 3");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.errors, HasSubstr("tp = 3 does not divide"));
  outcome = Weir("generate --backend cuda --model " + TinyModel("v3").directory() + " --prompt-ids 1");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.errors, HasSubstr("not in this build"));
}

TEST(GenerateTest, ExitsWithTwoOnWrongUsage) {
  EXPECT_EQ(Weir("generate").exit_code, 2);
  for (const char* wrong :
       {"--prompt-ids 1,,2", "--prompt-ids one", "--prompt-ids -1", "--prompt-ids ''", "--prompt-ids 1 --backend gpu",
        "--prompt-ids 1 --top-logprobs 21", "--prompt-ids 1 --top-p 2", "--prompt-ids 1 --max-tokens -1",
        "--prompt-ids 1 --tp 0", "--prompt-ids 1 --logit-bias 4", "--prompt-ids 1 --unknown"}) {
    const Outcome outcome = Weir("generate --model /tmp " + std::string(wrong));
    EXPECT_EQ(outcome.exit_code, 2) << wrong << ": " << outcome.errors;
  }
}

TEST(GenerateTest, ShowsAnExampleInItsHelp) {
  const Outcome outcome = Weir("generate --help");
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_THAT(outcome.output, HasSubstr("weir generate --model"));
}

}  // namespace
}  // namespace weir::worker
