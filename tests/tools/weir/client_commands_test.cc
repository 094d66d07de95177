// weir chat, complete and tokenize against a gateway without a model.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/tools/weir/fake_inference_service.h"
#include "tests/tools/weir/program.h"
#include "tests/tools/weir/terminal_program.h"
#include "tests/worker/checkpoint_writer.h"

namespace weir::tools {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using worker::TestDirectory;
using worker::WriteTextFile;

class ClientCommandsTest : public ::testing::Test {
 protected:
  std::string At(const std::string& command) const { return command + " --server " + gateway_.address(); }
  FakeGateway gateway_;
};

// ---- complete ----

TEST_F(ClientCommandsTest, CompleteWritesTheAnswerAloneIntoAPipe) {
  const Outcome outcome = Weir(At("complete 'a prompt' --max-tokens 4"));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
  EXPECT_EQ(outcome.output, " w w w w\n");
  ASSERT_EQ(gateway_.generations().size(), 1U);
  EXPECT_EQ(gateway_.generations()[0].text(), "a prompt");
  EXPECT_EQ(gateway_.generations()[0].model(), "fake");
}

TEST_F(ClientCommandsTest, CompleteReadsThePromptFromStandardInput) {
  EXPECT_EQ(Weir(At("complete"), "from a file\n").exit_code, 0);
  EXPECT_EQ(gateway_.generations().at(0).text(), "from a file\n");
}

TEST_F(ClientCommandsTest, CompleteSendsOnlyTheSamplingThatWasAskedFor) {
  Weir(At("complete x --temperature 0 --seed 5 --stop END"));
  const v1::GenerateRequest request = gateway_.generations().at(0);
  EXPECT_TRUE(request.sampling().has_temperature());
  EXPECT_EQ(request.sampling().temperature(), 0.0F);
  EXPECT_EQ(request.sampling().seed(), 5U);
  EXPECT_FALSE(request.sampling().has_top_p());
  EXPECT_FALSE(request.stop_conditions().has_max_tokens());
  EXPECT_EQ(request.stop_conditions().stop(0), "END");
}

TEST_F(ClientCommandsTest, CompletePrintsJsonWithUsageAndTiming) {
  const Outcome outcome = Weir(At("complete --chat 'a b' --system s --json"));
  const json answer = json::parse(outcome.output);
  EXPECT_EQ(answer["text"], "You said: a b");
  EXPECT_EQ(answer["reasoning"], "hm. ");
  EXPECT_EQ(answer["token_ids"].size(), 5U);
  EXPECT_EQ(answer["finish_reason"], "stop");
  EXPECT_EQ(answer["usage"]["completion_tokens"], 5);
  EXPECT_EQ(answer["timing"]["total_us"], 1'500'000);
  EXPECT_EQ(answer["seed"], 17);
  EXPECT_EQ(gateway_.chats().at(0).messages(0).role(), v1::ROLE_SYSTEM);
}

TEST_F(ClientCommandsTest, SaysWhichFieldIsWrong) {
  const Outcome outcome = Weir(At("complete --chat refuse"));
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_EQ(outcome.output, "");
  EXPECT_THAT(outcome.errors, AllOf(StartsWith("weir complete: the request is wrong (INVALID_ARGUMENT)"),
                                    HasSubstr("messages[0].content: is 'refuse'")));
}

TEST_F(ClientCommandsTest, SaysWhenToComeBack) {
  EXPECT_THAT(Weir(At("complete --chat overload")).errors, HasSubstr("try again in 1.5 s"));
}

TEST_F(ClientCommandsTest, FailsWhenTheAnswerWasCutShort) {
  const Outcome outcome = Weir(At("complete --chat break"));
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_EQ(outcome.output, "You said: break\n");
  EXPECT_THAT(outcome.errors, HasSubstr("a worker was lost; a new attempt may succeed"));
}

TEST_F(ClientCommandsTest, AnEmptyArgumentIsNotReadFromStandardInput) {
  EXPECT_THAT(Weir(At("complete ''"), "from a file").errors, HasSubstr("the prompt is empty"));
  EXPECT_EQ(Weir(At("tokenize ''"), "from a file").output, "0 tokens\n");
}

TEST_F(ClientCommandsTest, AnEmptyPromptIsAnError) {
  const Outcome outcome = Weir(At("complete"));
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.errors, HasSubstr("the prompt is empty"));
}

TEST(NoGatewayTest, SaysHowToStartOne) {
  const Outcome outcome = Weir("complete x --server 127.0.0.1:1");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.errors, HasSubstr("no gateway answers at 127.0.0.1:1: start one with `weir up --model DIR`"));
}

TEST(SeveralModelsTest, AsksWhichOneAndListsThem) {
  const FakeGateway gateway({.models = {"one", "two"}});
  EXPECT_THAT(Weir("complete x --server " + gateway.address()).errors, HasSubstr("name one with --model: one, two"));
  EXPECT_THAT(Weir("complete x --model three --server " + gateway.address()).errors,
              HasSubstr("does not serve 'three'; it has: one, two"));
  EXPECT_EQ(Weir("complete x --model two --server " + gateway.address()).exit_code, 0);
}

TEST(KeyTest, TravelsFromFileOrEnvironmentAndIsAskedFor) {
  const FakeGateway gateway({.key = "weir_1_secret"});
  const std::string command = "complete x --server " + gateway.address();
  const Outcome stranger = Weir(command);
  EXPECT_EQ(stranger.exit_code, 1);
  EXPECT_THAT(stranger.errors, HasSubstr("put an API key into WEIR_API_KEY"));
  const TestDirectory directory;
  WriteTextFile(directory / "key", "weir_1_secret\n");
  EXPECT_EQ(Weir(command + " --api-key-file " + (directory / "key")).exit_code, 0);
  setenv("WEIR_API_KEY", "weir_1_secret", 1);
  EXPECT_EQ(Weir(command).exit_code, 0);
  unsetenv("WEIR_API_KEY");
}

// ---- tokenize ----

TEST_F(ClientCommandsTest, TokenizeShowsIdsAndPieces) {
  const Outcome outcome = Weir(At("tokenize 'a\nb'"));
  EXPECT_EQ(outcome.output, "      97  \"a\"\n      10  \"\\n\"\n      98  \"b\"\n3 tokens\n");
}

TEST_F(ClientCommandsTest, TokenizeShowsBytesOfHalfCharacters) {
  EXPECT_THAT(Weir(At("tokenize"), "\xE6\xB0\xB4").output, HasSubstr("     230  \\xe6\n"));
}

TEST_F(ClientCommandsTest, TokenizeRendersAConversation) {
  const Outcome outcome = Weir(At("tokenize --chat - --json"), R"([{"role": "user", "content": "Hi"}])");
  const json answer = json::parse(outcome.output);
  EXPECT_EQ(answer["rendered_text"], "ROLE_USER: Hi\n");
  EXPECT_EQ(answer["token_ids"].size(), answer["pieces"].size());
}

TEST_F(ClientCommandsTest, TokenizePrintsIdsAloneForScripts) {
  EXPECT_EQ(Weir(At("tokenize --ids ab")).output, "97 98\n");
}

TEST_F(ClientCommandsTest, TokenizeNamesTheWrongPlaceOfAConversation) {
  const Outcome outcome = Weir(At("tokenize --chat -"), R"([{"role": "robot"}])");
  EXPECT_EQ(outcome.exit_code, 1);
  EXPECT_THAT(outcome.errors, HasSubstr("messages[0].role: expected system, user, assistant or tool; found 'robot'"));
}

// ---- chat ----

TEST_F(ClientCommandsTest, ChatKeepsTheConversation) {
  const Outcome outcome = Weir(At("chat --system s"), "one\n\ntwo\n");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.errors;
  EXPECT_THAT(outcome.output, HasSubstr("You said: two"));
  ASSERT_EQ(gateway_.chats().size(), 2U);
  const v1::ChatRequest second = gateway_.chats()[1];
  ASSERT_EQ(second.messages_size(), 4);
  EXPECT_EQ(second.messages(1).content(), "one");
  EXPECT_EQ(second.messages(2).content(), "You said: one");
  EXPECT_EQ(second.messages(2).reasoning_content(), "hm. ");
}

TEST_F(ClientCommandsTest, ChatForgetsOnReset) {
  Weir(At("chat"), "one\n/system be kind\ntwo\n/reset\nthree\n/quit\nfour\n");
  ASSERT_EQ(gateway_.chats().size(), 3U);
  const v1::ChatRequest third = gateway_.chats()[2];
  ASSERT_EQ(third.messages_size(), 2);
  EXPECT_EQ(third.messages(0).content(), "be kind");
  EXPECT_EQ(third.messages(1).content(), "three");
}

TEST_F(ClientCommandsTest, ChatTakesAQuestionOverLines) {
  Weir(At("chat"), "one\\\ntwo\n");
  EXPECT_EQ(gateway_.chats().at(0).messages(0).content(), "one\ntwo");
}

TEST_F(ClientCommandsTest, ChatGoesOnWithoutAQuestionThatWasRefused) {
  const Outcome outcome = Weir(At("chat"), "refuse\nagain\n");
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_THAT(outcome.errors, HasSubstr("messages[0].content: is 'refuse'"));
  EXPECT_EQ(gateway_.chats().at(1).messages_size(), 1);
}

TEST_F(ClientCommandsTest, ChatShowsTimesAfterAnAnswer) {
  EXPECT_THAT(Weir(At("chat"), "one\n").output, AllOf(HasSubstr("[4 tokens, "), HasSubstr("1.50 s in all; seed 17]")));
}

class ChatTerminalTest : public ::testing::Test {
 protected:
  // The history goes into a directory of the test.
  ChatTerminalTest() { setenv("XDG_STATE_HOME", state_.path().c_str(), 1); }
  FakeGateway gateway_;
  TestDirectory state_;
  TerminalProgram chat_{{std::string(WEIR_BINARY_DIR) + "/bin/weir", "chat", "--server", gateway_.address()}};
};

TEST_F(ChatTerminalTest, CtrlCEndsTheAnswerAndNotTheProgram) {
  ASSERT_TRUE(chat_.Prompts("> "));
  chat_.Type("slow\n");
  ASSERT_TRUE(chat_.Shows("more more")) << chat_.screen();
  chat_.Type("\x03");
  ASSERT_TRUE(chat_.Shows("cancelled]")) << chat_.screen();
  ASSERT_TRUE(chat_.Prompts("> "));
  chat_.Type("next\n");
  EXPECT_TRUE(chat_.Shows("You said: next")) << chat_.screen();
  EXPECT_EQ(gateway_.chats().at(1).messages_size(), 3) << "what came of the answer is kept";
  chat_.Type("/quit\n");
  EXPECT_EQ(chat_.WaitForExit(), 0);
}

TEST_F(ChatTerminalTest, CtrlCForgetsTheLineThatIsTyped) {
  ASSERT_TRUE(chat_.Prompts("> "));
  chat_.Type("wrong\x03right\n");
  EXPECT_TRUE(chat_.Shows("You said: right")) << chat_.screen();
  EXPECT_EQ(gateway_.chats().at(0).messages(0).content(), "right");
}

TEST_F(ChatTerminalTest, ShowsThoughtsDim) {
  ASSERT_TRUE(chat_.Prompts("> "));
  chat_.Type("hello\n");
  EXPECT_TRUE(chat_.Shows("\033[2mhm. \033[0m")) << chat_.screen();
}

TEST_F(ChatTerminalTest, ArrowUpBringsBackTheLastLine) {
  ASSERT_TRUE(chat_.Prompts("> "));
  chat_.Type("hello\n");
  ASSERT_TRUE(chat_.Shows("seed 17]"));
  ASSERT_TRUE(chat_.Prompts("> "));
  chat_.Type("\033[A\n");
  ASSERT_TRUE(chat_.Shows("seed 17]"));
  EXPECT_EQ(gateway_.chats().at(1).messages(2).content(), "hello");
}

TEST_F(ChatTerminalTest, EndsAtCtrlD) {
  ASSERT_TRUE(chat_.Prompts("> "));
  chat_.Type("\x04");
  EXPECT_EQ(chat_.WaitForExit(), 0);
}

}  // namespace
}  // namespace weir::tools
