// Runs the program as a person or a script would.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "tests/worker/checkpoint_writer.h"
#include "tests/worker/tiny_models.h"

namespace weir::worker {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

struct Outcome {
  int exit_code = -1;
  std::string output;
  std::string errors;
};

Outcome Weir(const std::string& arguments) {
  const TestDirectory directory;
  const std::string command = std::string(WEIR_BINARY_DIR) + "/bin/weir " + arguments + " 2>" + (directory / "errors");
  FILE* pipe = popen(command.c_str(), "r");
  EXPECT_NE(pipe, nullptr);
  Outcome outcome;
  std::array<char, 4096> buffer;
  while (const size_t count = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    outcome.output.append(buffer.data(), count);
  }
  const int status = pclose(pipe);
  outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  std::ostringstream errors;
  errors << std::ifstream(directory / "errors").rdbuf();
  outcome.errors = errors.str();
  return outcome;
}

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
  EXPECT_THAT(outcome.errors, HasSubstr("weights 0.00 GB + cache"));
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
