#include "tests/scenarios/interpreter.h"

#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "scheduler/core/block_key.h"

namespace weir::scheduler {
namespace {

constexpr TokenId kStopToken = 2;

struct Line {
  std::string verb;
  std::vector<std::string> names;
  std::map<std::string, std::string> words;
};

Line Parse(const std::string& text) {
  Line line;
  std::istringstream in(text);
  in >> line.verb;
  for (std::string word; in >> word;) {
    const size_t equals = word.find('=');
    if (equals == std::string::npos) {
      line.names.push_back(word);
    } else {
      line.words[word.substr(0, equals)] = word.substr(equals + 1);
    }
  }
  return line;
}

PriorityClass ClassOf(const std::string& name) {
  if (name == "interactive") return PriorityClass::kInteractive;
  if (name == "standard") return PriorityClass::kStandard;
  if (name == "batch") return PriorityClass::kBatch;
  throw std::invalid_argument("no class is called " + name);
}

std::string NameOf(FinishReason reason) {
  constexpr const char* kNames[] = {"stop", "length", "cancelled", "deadline", "not finite", "failed", "quarantined"};
  return kNames[static_cast<int>(reason)];
}

std::string NameOf(RefusalReason reason) {
  constexpr const char* kNames[] = {"invalid",           "too long", "never fits", "queue full",
                                    "tenant queue full", "deadline", "draining"};
  return kNames[static_cast<int>(reason)];
}

std::string Range(int64_t first, int64_t count) {
  return count == 1 ? std::to_string(first) : std::to_string(first) + "-" + std::to_string(first + count - 1);
}

// Sets `value` from the word of this name, and takes the word away.
template <typename T>
void Take(std::map<std::string, std::string>& words, const std::string& name, T& value) {
  const auto found = words.find(name);
  if (found == words.end()) return;
  value = static_cast<T>(std::stod(found->second));
  words.erase(found);
}

void RequireEmpty(const std::map<std::string, std::string>& words) {
  if (!words.empty()) throw std::invalid_argument("unknown word " + words.begin()->first);
}

}  // namespace

std::string Interpreter::Run(const std::string& text) {
  said_.clear();
  const Line line = Parse(text);
  try {
    Command(line.verb, line.names, line.words);
  } catch (const std::exception& error) {
    Say("error: " + text + ": " + error.what());
  }
  return said_;
}

void Interpreter::Command(const std::string& verb, const std::vector<std::string>& names, const Words& words) {
  if (verb == "limits") return SetLimits(words);
  if (verb == "tenant") return AddTenant(names.at(0), words);
  if (verb == "policy") return SetPolicy(words);
  if (verb == "group") return FormGroup(words);
  if (verb == "add") return AddRequests(names, words);
  if (verb == "cancel") return Apply(Cancel{.id = ids_.at(names.at(0))});
  if (verb == "stop") return Apply(Cancel{.id = ids_.at(names.at(0)), .reason = Cancel::Reason::kStopString});
  if (verb == "plan") {
    if (!Plan()) Say("nothing to plan");
    return;
  }
  if (verb == "complete") return Complete(words);
  if (verb == "repeat") return Apply(last_completed_.value());
  if (verb == "step") return Step(names, words);
  if (verb == "run") return RunToTheEnd();
  if (verb == "lose") {
    in_flight_.clear();
    return Apply(WorkerLost{.epoch = epoch_});
  }
  if (verb == "wait") {
    now_ += std::stoll(names.at(0));
    return Apply(Tick{});
  }
  if (verb == "drain") return Apply(DrainStarted{});
  if (verb == "show") return Show();
  if (verb == "service") return ShowService();
  if (verb == "hide" && names.at(0) == "tokens") return void(tells_tokens_ = false);
  if (verb == "tell" && names.at(0) == "waits") return void(tells_waits_ = true);
  throw std::invalid_argument("unknown command");
}

void Interpreter::SetLimits(const Words& given) {
  if (core_) throw std::invalid_argument("limits come first");
  Words words = given;
  Take(words, "block_size", limits_.block_size);
  Take(words, "max_num_seqs", limits_.max_num_seqs);
  Take(words, "max_num_batched_tokens", limits_.max_num_batched_tokens);
  Take(words, "max_model_len", limits_.max_model_len);
  Take(words, "max_steps_in_flight", limits_.max_steps_in_flight);
  Take(words, "max_num_waiting", limits_.max_num_waiting);
  Take(words, "max_waiting_tokens", limits_.max_waiting_tokens);
  RequireEmpty(words);
}

void Interpreter::AddTenant(const std::string& name, const Words& given) {
  Words words = given;
  TenantPolicy tenant;
  Take(words, "weight", tenant.weight);
  Take(words, "max_num_waiting", tenant.max_num_waiting);
  if (words.contains("parent")) {
    const auto parent = std::find(tenant_names_.begin(), tenant_names_.end(), words["parent"]);
    tenant.parent = static_cast<TenantId>(parent - tenant_names_.begin());
    words.erase("parent");
  }
  RequireEmpty(words);
  const auto found = std::find(tenant_names_.begin(), tenant_names_.end(), name);
  const size_t index = found - tenant_names_.begin();
  if (found == tenant_names_.end()) {
    tenant_names_.push_back(name);
    policy_.tenants.emplace_back();
  }
  policy_.tenants[index] = tenant;
  if (core_) Apply(PolicyChanged{policy_});
}

void Interpreter::SetPolicy(const Words& given) {
  Words words = given;
  Take(words, "max_prompt_tokens_while_decoding", policy_.max_prompt_tokens_while_decoding);
  Take(words, "max_preemptions", policy_.max_preemptions);
  Take(words, "max_worker_losses", policy_.max_worker_losses);
  Take(words, "cost_per_prompt_token", policy_.cost_per_prompt_token);
  Take(words, "cost_per_generated_token", policy_.cost_per_generated_token);
  Take(words, "min_standard_share", policy_.min_class_share[1]);
  Take(words, "min_batch_share", policy_.min_class_share[2]);
  Take(words, "step_us", policy_.step_cost.fixed_us);
  Take(words, "us_per_prompt_token", policy_.step_cost.us_per_prompt_token);
  RequireEmpty(words);
  if (core_) Apply(PolicyChanged{policy_});
}

void Interpreter::FormGroup(const Words& given) {
  Words words = given;
  GroupFormed formed{.epoch = ++epoch_};
  Take(words, "blocks", formed.blocks_per_dp_group);
  Take(words, "dp", formed.num_dp_groups);
  RequireEmpty(words);
  num_dp_groups_ = formed.num_dp_groups;
  Apply(formed);
}

// "8": eight tokens of its own.  "manual:8+4": the first eight of the text called manual, then four of its own.
std::vector<TokenId> Interpreter::Prompt(const std::string& text) {
  std::vector<TokenId> prompt;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, '+');) {
    const size_t colon = part.find(':');
    const int count = std::stoi(colon == std::string::npos ? part : part.substr(colon + 1));
    if (colon == std::string::npos) {
      for (int i = 0; i < count; ++i) prompt.push_back(next_token_++);
    } else {
      const auto [shared, is_new] = shared_.try_emplace(part.substr(0, colon), next_token_);
      if (is_new) next_token_ += 1000;
      for (int i = 0; i < count; ++i) prompt.push_back(shared->second + i);
    }
  }
  return prompt;
}

void Interpreter::AddRequests(const std::vector<std::string>& names, const Words& given) {
  if (tenant_names_.empty()) AddTenant("default", {});
  for (const std::string& name : names) {
    Words words = given;
    Arrival arrival{.id = ids_.size() + 1, .max_tokens = 1, .stop_tokens = {kStopToken}};
    arrival.prompt = Prompt(words.contains("prompt") ? words["prompt"] : "1");
    words.erase("prompt");
    Take(words, "max_tokens", arrival.max_tokens);
    Take(words, "min_tokens", arrival.min_tokens);
    int num_resumed = 0;
    Take(words, "resumed", num_resumed);
    arrival.resumed.assign(num_resumed, 7);
    if (words.contains("tenant")) {
      const auto tenant = std::find(tenant_names_.begin(), tenant_names_.end(), words["tenant"]);
      arrival.tenant = static_cast<TenantId>(tenant - tenant_names_.begin());
      words.erase("tenant");
    }
    if (words.contains("class")) {
      arrival.priority = ClassOf(words["class"]);
      words.erase("class");
    }
    if (words.contains("deadline")) {
      arrival.deadline = now_;
      arrival.deadline += std::stoll(words["deadline"]);
      words.erase("deadline");
    }
    RequireEmpty(words);
    arrival.block_keys =
        PromptBlockKeys({}, std::to_string(arrival.tenant), "model", arrival.prompt, limits_.block_size);
    ids_[name] = arrival.id;
    names_[arrival.id] = name;
    Apply(arrival);
  }
}

bool Interpreter::Plan() {
  StepPlan plan;
  const bool has_plan = core().Plan(now_, plan, outputs_);
  if (has_plan) {
    TellPlan(plan);
    in_flight_.push_back(plan);
  }
  TellOutputs();
  return has_plan;
}

// The words say what is special: r1=stop, r1=nan, r1=failed.
void Interpreter::Complete(const Words& words) {
  if (in_flight_.empty()) throw std::invalid_argument("no step is in flight");
  const bool newest_first = words.contains("order");
  const StepPlan plan = newest_first ? in_flight_.back() : in_flight_.front();
  newest_first ? in_flight_.pop_back() : in_flight_.pop_front();
  StepCompleted completed{.epoch = plan.epoch, .step = plan.step};
  for (const PlannedWork& work : plan.work) {
    if (!work.samples) continue;
    SampledToken sampled{.dp_group = work.dp_group, .slot = work.slot, .token = 10};
    const auto special = words.find(names_[work.id]);
    const std::string what = special == words.end() ? "" : special->second;
    if (what == "stop") sampled.token = kStopToken;
    if (what == "nan") sampled.is_finite = false;
    if (what == "failed") sampled.has_failed = true;
    completed.sampled.push_back(sampled);
  }
  last_completed_ = completed;
  Apply(completed);
}

void Interpreter::Step(const std::vector<std::string>& names, const Words& words) {
  const int count = names.empty() ? 1 : std::stoi(names[0]);
  for (int i = 0; i < count; ++i) {
    if (!Plan()) Say("nothing to plan");
    if (!in_flight_.empty()) Complete(words);
  }
}

void Interpreter::RunToTheEnd() {
  for (int i = 0; i < 10000; ++i) {
    const bool has_plan = Plan();
    if (!has_plan && in_flight_.empty()) return;
    if (!in_flight_.empty()) Complete({});
  }
  Say("error: no end in sight");
}

void Interpreter::Show() {
  for (const Scheduler::SequenceView& view : core().Sequences()) {
    std::string line = names_[view.id] + ": ";
    if (view.dp_group < 0) {
      line += "waiting, " + std::to_string(view.num_tokens) + " tokens";
    } else {
      line += "running, " + std::to_string(view.num_computed_tokens) + " of " + std::to_string(view.num_tokens) +
              " tokens computed, blocks";
      for (const BlockId block : view.block_table) line += " " + std::to_string(block);
    }
    Say(line);
  }
  const Stats& stats = core().stats();
  Say("blocks: " + std::to_string(stats.blocks_free) + " free, " + std::to_string(stats.blocks_cached) + " cached, " +
      std::to_string(stats.blocks_owned) + " owned");
}

void Interpreter::ShowService() {
  for (size_t i = 0; i < tenant_names_.size(); ++i) {
    std::ostringstream line;
    line << tenant_names_[i] << ": service " << core().service(static_cast<TenantId>(i)) << ", counter "
         << core().virtual_counter(static_cast<TenantId>(i));
    Say(line.str());
  }
}

Scheduler& Interpreter::core() {
  if (!core_) {
    if (tenant_names_.empty()) AddTenant("default", {});
    core_ = std::make_unique<Scheduler>(limits_, policy_);
  }
  return *core_;
}

void Interpreter::Apply(const Event& event) {
  core().Apply(now_, event, outputs_);
  TellOutputs();
}

void Interpreter::TellOutputs() {
  for (const Output& output : outputs_) std::visit([this](const auto& said) { Tell(said); }, output);
  outputs_.clear();
  if (const std::string difference = core().CheckBooks(); !difference.empty()) Say("error: " + difference);
}

void Interpreter::Tell(const Token& token) {
  if (tells_tokens_) Say("  " + names_[token.id] + " gets token " + std::to_string(token.index));
}

void Interpreter::Tell(const Finished& finished) {
  std::string line = "  " + names_[finished.id] + " finished: " + NameOf(finished.reason) + ", " +
                     std::to_string(finished.num_output_tokens) + " tokens";
  if (finished.num_cached_tokens > 0) line += ", " + std::to_string(finished.num_cached_tokens) + " cached";
  if (finished.num_preemptions > 0) line += ", preempted " + std::to_string(finished.num_preemptions) + "x";
  if (finished.num_worker_losses > 0) line += ", workers lost " + std::to_string(finished.num_worker_losses) + "x";
  Say(line);
  if (tells_waits_) TellWait(finished.wait);
}

void Interpreter::TellWait(const WaitSplit& wait) {
  std::string line = "    of its time:";
  const auto part = [&line](const char* name, TimeUs time) {
    if (time > 0) line += std::string(" ") + name + " " + std::to_string(time);
  };
  part("others' turn", wait.queued_for_share_us);
  part("no blocks", wait.queued_for_blocks_us);
  part("no slot or budget", wait.queued_for_slots_us);
  part("no workers", wait.queued_for_workers_us);
  part("prefill", wait.prefill_us);
  part("decode", wait.decode_us);
  part("preempted", wait.preempted_us);
  part("recovering", wait.recovering_us);
  Say(line);
}

void Interpreter::Tell(const Refused& refused) {
  std::string line = "  " + names_[refused.id] + " refused: " + NameOf(refused.reason);
  if (refused.limit > 0 || refused.needed > 0) {
    line += ", " + std::to_string(refused.needed) + " needed, limit " + std::to_string(refused.limit);
  }
  if (refused.retry_after_us > 0) line += ", retry after " + std::to_string(refused.retry_after_us) + " us";
  Say(line);
}

void Interpreter::TellPlan(const StepPlan& plan) {
  Say("step " + std::to_string(plan.step));
  for (const PlannedWork& work : plan.work) TellWork(plan, work);
}

void Interpreter::TellWork(const StepPlan& plan, const PlannedWork& work) {
  int32_t num_prompt_tokens = 0;
  for (const Scheduler::SequenceView& view : core().Sequences()) {
    if (view.id == work.id) num_prompt_tokens = view.num_prompt_tokens;
  }
  const int32_t num_prompt = std::clamp(num_prompt_tokens - work.first_position, 0, work.num_tokens);
  std::string line = "  " + names_[work.id];
  if (num_dp_groups_ > 1) line += " on dp " + std::to_string(work.dp_group);
  if (num_prompt > 0) line += " prompt " + Range(work.first_position, num_prompt);
  if (num_prompt < work.num_tokens) {
    line += " output " + Range(work.first_position + num_prompt, work.num_tokens - num_prompt);
  }
  if (work.takes_sampled_token) line += " (token of the step before)";
  if (work.blocks_end > work.blocks_begin) {
    line += work.is_new && work.first_position > 0 ? ", cached " + Range(0, work.first_position) : "";
    line += ", blocks";
    for (int32_t i = work.blocks_begin; i < work.blocks_end; ++i) line += " " + std::to_string(plan.blocks[i]);
  }
  Say(line);
}

}  // namespace weir::scheduler
