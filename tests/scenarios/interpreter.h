#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "scheduler/core/scheduler.h"

// Runs the commands of a scenario script (README.md here says how they are written) and says in words what the
// scheduler does.

namespace weir::scheduler {

class Interpreter {
 public:
  // Runs one command line; returns what there is to say about it, in lines.  A command that cannot be read is answered
  // with a line that begins "error:".
  std::string Run(const std::string& line);

 private:
  using Words = std::map<std::string, std::string>;  // name=value

  void Command(const std::string& verb, const std::vector<std::string>& names, const Words& words);
  void SetLimits(const Words& words);
  void AddTenant(const std::string& name, const Words& words);
  void SetPolicy(const Words& words);
  void FormGroup(const Words& words);
  void AddRequests(const std::vector<std::string>& names, const Words& words);
  std::vector<TokenId> Prompt(const std::string& text);
  bool Plan();
  void Complete(const Words& words);
  void Step(const std::vector<std::string>& names, const Words& words);
  void RunToTheEnd();
  void Show();
  void ShowService();

  Scheduler& core();
  void Apply(const Event& event);
  void TellOutputs();
  void Tell(const Token& token);
  void Tell(const Finished& finished);
  void Tell(const Refused& refused);
  void TellPlan(const StepPlan& plan);
  void TellWork(const StepPlan& plan, const PlannedWork& work);
  void TellWait(const WaitSplit& wait);
  void Say(const std::string& line) { said_ += line + "\n"; }

  Limits limits_;
  Policy policy_;
  std::unique_ptr<Scheduler> core_;  // made by the first command that needs it
  std::vector<std::string> tenant_names_;
  std::map<std::string, RequestId> ids_;
  std::map<RequestId, std::string> names_;
  std::map<std::string, TokenId> shared_;  // named beginnings of prompts
  std::deque<StepPlan> in_flight_;
  std::optional<StepCompleted> last_completed_;
  std::vector<Output> outputs_;
  TimeUs now_ = 0;
  Epoch epoch_ = 0;
  TokenId next_token_ = 1000;
  int32_t num_dp_groups_ = 1;
  bool tells_tokens_ = true, tells_waits_ = false;
  std::string said_;
};

}  // namespace weir::scheduler
