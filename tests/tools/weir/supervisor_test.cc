// The supervisor with shells as its children.

#include "tools/weir/cluster/supervisor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/registry.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <thread>

#include "metrics/ops_server.h"
#include "tests/worker/checkpoint_writer.h"

namespace weir::tools {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using worker::TestDirectory;

// Runs `script` under a shell that waits for its signals.
ProcessSpec Shell(const std::string& name, const std::string& script, int drain_stage = 0) {
  return {.name = name, .argv = {"/bin/sh", "-c", script}, .ready_text = "ready", .drain_stage = drain_stage};
}

std::string Serving(const std::string& at_the_end = "exit 0") {
  return "trap '" + at_the_end + "' TERM; echo ready; while :; do sleep 0.02; done";
}

// A process that has ended and that nobody waited for yet is not alive; /proc tells it behind the name in parentheses.
bool IsAlive(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const size_t end_of_name = text.rfind(')');
  return end_of_name != std::string::npos && text[end_of_name + 2] != 'Z';
}

bool BecomesTrue(const std::function<bool()>& condition) {
  for (int i = 0; i < 500; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(milliseconds(10));
  }
  return false;
}

struct Story {
  std::vector<std::string> lines;
  std::vector<std::string> deaths;
  int num_ready = 0;
  int num_all_ready = 0;
  std::vector<std::string> kills;

  Supervisor::Listener Listener() {
    return {.on_line =
                [this](size_t process, std::string_view line) {
                  lines.push_back(std::to_string(process) + ": " + std::string(line));
                },
            .on_ready = [this](size_t, milliseconds) { ++num_ready; },
            .on_all_ready = [this] { ++num_all_ready; },
            .on_death = [this](size_t, const std::string& how, std::optional<milliseconds>) { deaths.push_back(how); },
            .on_drain = nullptr,
            .on_kill = [this](const std::string& why) { kills.push_back(why); }};
  }
};

TEST(SupervisorTest, WaitsUntilAllAreReadyAndDrainsAfterTheGivenTime) {
  Story story;
  Supervisor supervisor({Shell("a", Serving()), Shell("b", "sleep 0.1; " + Serving())}, {.run_for = milliseconds(50)},
                        story.Listener());
  EXPECT_TRUE(supervisor.Run().ok());
  EXPECT_EQ(story.num_ready, 2);
  EXPECT_EQ(story.num_all_ready, 1);
  EXPECT_THAT(story.deaths, SizeIs(0));
}

TEST(SupervisorTest, DrainsStageByStage) {
  Story story;
  Supervisor supervisor({Shell("last", Serving("echo last ends; exit 0"), 2),
                         Shell("first", Serving("sleep 0.1; echo first ends; exit 0"), 0),
                         Shell("second", Serving("echo second ends; exit 0"), 1)},
                        {.run_for = milliseconds(0)}, story.Listener());
  EXPECT_TRUE(supervisor.Run().ok());
  ASSERT_THAT(story.lines, SizeIs(6));
  EXPECT_THAT(std::vector(story.lines.begin() + 3, story.lines.end()),
              ElementsAre("1: first ends", "2: second ends", "0: last ends"));
}

TEST(SupervisorTest, StartsAProcessThatDiedAgain) {
  const TestDirectory directory;
  const std::string mark = directory / "was-here";
  Story story;
  Supervisor supervisor(
      {Shell("a", "if [ ! -e " + mark + " ]; then touch " + mark + "; echo dying; kill -KILL $$; fi; " + Serving())},
      {.run_for = milliseconds(0)}, story.Listener());
  EXPECT_TRUE(supervisor.Run().ok());
  EXPECT_THAT(story.deaths, ElementsAre("was killed by signal 9 (Killed)"));
  EXPECT_EQ(story.num_all_ready, 1);
}

// About 3 s.
TEST(SupervisorTest, KillsAndRestartsAProcessWhoseLoopStandsStill) {
  const TestDirectory directory;
  const std::string mark = directory / "restarted";
  const auto stands_still = [&] { return std::string(std::ifstream(mark) ? "" : "the loop stands still"); };
  const auto ops = metrics::OpsServer::Start({.listen = "127.0.0.1:0", .liveness = stands_still, .readiness = nullptr},
                                             std::make_shared<prometheus::Registry>());
  ASSERT_TRUE(ops.ok()) << ops.status();
  ProcessSpec spec = Shell("a", "if [ -e " + (directory / "first") + " ]; then touch " + mark + "; fi; touch " +
                                    (directory / "first") + "; " + Serving());
  spec.ready_address = "127.0.0.1:" + std::to_string((*ops)->port());
  Story story;
  Supervisor supervisor({spec}, {.run_for = seconds(4)}, story.Listener());
  EXPECT_TRUE(supervisor.Run().ok());
  EXPECT_THAT(story.deaths, ElementsAre("hung (the loop stands still) and was killed"));
  EXPECT_EQ(story.num_ready, 2);
}

TEST(SupervisorTest, GivesUpAfterThreeQuickDeathsWithTheLastLinesAndEndsTheOthers) {
  const TestDirectory directory;
  const std::string pid_file = directory / "pid";
  Story story;
  Supervisor supervisor(
      {Shell("good", "echo $$ > " + pid_file + "; " + Serving()), Shell("bad", "echo the disk is full; kill -ABRT $$")},
      {}, story.Listener());
  const absl::Status status = supervisor.Run();
  EXPECT_THAT(std::string(status.message()), HasSubstr("bad was killed by signal 6 (Aborted), 3 times in a row"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("the disk is full"));
  EXPECT_THAT(story.deaths, SizeIs(3));
  pid_t pid = 0;
  std::ifstream(pid_file) >> pid;
  ASSERT_GT(pid, 0);
  EXPECT_FALSE(IsAlive(pid));
}

TEST(SupervisorTest, GivesUpAtOnceWhenAProcessExitsBeforeAnythingServed) {
  Story story;
  Supervisor supervisor({Shell("good", Serving()), Shell("bad", "echo no such flag; exit 2")}, {}, story.Listener());
  EXPECT_EQ(std::string(supervisor.Run().message()),
            "bad exited with code 2 before it was ready; its last lines:\n  no such flag");
  EXPECT_THAT(story.deaths, SizeIs(0)) << "said once, at the end";
}

TEST(SupervisorTest, SaysWhichProgramCannotBeRun) {
  ProcessSpec spec = Shell("a", "");
  spec.argv[0] = "/nowhere/program";
  Supervisor supervisor({spec}, {}, {});
  EXPECT_THAT(std::string(supervisor.Run().message()),
              HasSubstr("cannot run /nowhere/program: No such file or directory"));
}

TEST(SupervisorTest, KillsThoseThatDoNotEndInTime) {
  Story story;
  Supervisor supervisor({Shell("deaf", "trap '' TERM; echo ready; while :; do sleep 0.02; done")},
                        {.run_for = milliseconds(0), .drain_timeout = milliseconds(100)}, story.Listener());
  EXPECT_THAT(std::string(supervisor.Run().message()), HasSubstr("the drain took longer"));
  EXPECT_THAT(story.deaths, ElementsAre(HasSubstr("killed by signal 9")));
}

// In a process of its own, for the signals.
pid_t ForkSupervisor(const std::vector<ProcessSpec>& specs) {
  const pid_t pid = fork();
  if (pid != 0) return pid;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  Supervisor supervisor(specs, {}, {});
  _exit(supervisor.Run().ok() ? 0 : 1);
}

int ExitCodeOf(pid_t pid) {
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

pid_t PidIn(const std::string& file) {
  pid_t pid = 0;
  BecomesTrue([&] { return static_cast<bool>(std::ifstream(file) >> pid); });
  return pid;
}

TEST(SupervisorTest, DrainsAtTheFirstSignal) {
  const TestDirectory directory;
  const pid_t supervisor = ForkSupervisor({Shell("a", "echo $$ > " + (directory / "pid") + "; " + Serving())});
  const pid_t child = PidIn(directory / "pid");
  std::this_thread::sleep_for(milliseconds(50));  // the shell sets its trap after it wrote
  kill(supervisor, SIGINT);
  EXPECT_EQ(ExitCodeOf(supervisor), 0);
  EXPECT_FALSE(IsAlive(child));
}

TEST(SupervisorTest, KillsAtTheSecondSignal) {
  const TestDirectory directory;
  const pid_t supervisor = ForkSupervisor(
      {Shell("a", "echo $$ > " + (directory / "pid") + "; trap '' TERM; echo ready; while :; do sleep 0.02; done")});
  const pid_t child = PidIn(directory / "pid");
  kill(supervisor, SIGINT);
  std::this_thread::sleep_for(milliseconds(100));
  EXPECT_TRUE(IsAlive(child));
  kill(supervisor, SIGINT);
  EXPECT_EQ(ExitCodeOf(supervisor), 1);
  EXPECT_FALSE(IsAlive(child));
}

TEST(SupervisorTest, LeavesNoChildBehindWhenItIsKilled) {
  const TestDirectory directory;
  const pid_t supervisor = ForkSupervisor({Shell("a", "echo $$ > " + (directory / "pid") + "; " + Serving())});
  const pid_t child = PidIn(directory / "pid");
  ASSERT_TRUE(IsAlive(child));
  kill(supervisor, SIGKILL);
  EXPECT_EQ(ExitCodeOf(supervisor), -SIGKILL);
  EXPECT_TRUE(BecomesTrue([&] { return !IsAlive(child); }));
}

TEST(SupervisorTest, ForgetsLinesOfProgressAndKeepsTheOthers) {
  ProcessSpec spec =
      Shell("a", "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do echo 50 %; done; echo no memory; exit 1");
  spec.is_progress = [](std::string_view line) { return line == "50 %"; };
  Supervisor supervisor({spec}, {}, {});
  EXPECT_THAT(std::string(supervisor.Run().message()), HasSubstr("last lines:\n  no memory"));
}

}  // namespace
}  // namespace weir::tools
