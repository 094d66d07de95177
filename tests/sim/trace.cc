#include "tests/sim/trace.h"

#include <array>

#include "absl/strings/str_format.h"

namespace weir::sim {

using scheduler::Event;
using scheduler::Output;
using scheduler::StepPlan;
using scheduler::TimeUs;

namespace {

constexpr std::array kFinishNames = {"stop", "length", "cancelled", "deadline", "not_finite", "failed", "quarantined"};
constexpr std::array kRefusalNames = {"invalid",           "too_long", "never_fits", "queue_full",
                                      "tenant_queue_full", "deadline", "draining"};
constexpr std::array kClassNames = {"interactive", "standard", "batch"};
constexpr const char* kIndent = "                      ";

}  // namespace

void Trace::Add(TimeUs now, const Event& event) {
  Fold(static_cast<uint64_t>(now));
  Fold(event.index());
  if (const auto* arrival = std::get_if<scheduler::Arrival>(&event)) {
    Fold(arrival->id);
    Fold(static_cast<uint64_t>(arrival->max_tokens));
    for (const scheduler::TokenId token : arrival->prompt) Fold(static_cast<uint64_t>(token));
  } else if (const auto* cancel = std::get_if<scheduler::Cancel>(&event)) {
    Fold(cancel->id);
  } else if (const auto* completed = std::get_if<scheduler::StepCompleted>(&event)) {
    Fold(completed->epoch);
    Fold(completed->step);
    for (const scheduler::SampledToken& sampled : completed->sampled) Fold(static_cast<uint64_t>(sampled.token));
  }
}

void Trace::Add(const Output& output) {
  Fold(output.index());
  if (const auto* token = std::get_if<scheduler::Token>(&output)) {
    Fold(token->id);
    Fold(static_cast<uint64_t>(token->token));
  } else if (const auto* finished = std::get_if<scheduler::Finished>(&output)) {
    Fold(finished->id);
    Fold(static_cast<uint64_t>(finished->reason));
    Fold(static_cast<uint64_t>(finished->num_computed_tokens));
    Fold(static_cast<uint64_t>(finished->wait.queued_for_share_us));
  } else {
    const auto& refused = std::get<scheduler::Refused>(output);
    Fold(refused.id);
    Fold(static_cast<uint64_t>(refused.reason));
    Fold(static_cast<uint64_t>(refused.retry_after_us));
  }
}

void Trace::Add(const StepPlan& plan) {
  Fold(plan.epoch);
  Fold(plan.step);
  for (const scheduler::PlannedWork& work : plan.work) {
    Fold(work.id);
    Fold(static_cast<uint64_t>(work.dp_group) << 32 | static_cast<uint64_t>(work.slot));
    Fold(static_cast<uint64_t>(work.first_position) << 32 | static_cast<uint64_t>(work.num_tokens));
    Fold((work.is_new ? 1U : 0U) | (work.takes_sampled_token ? 2U : 0U) | (work.samples ? 4U : 0U));
  }
  for (const scheduler::BlockId block : plan.blocks) Fold(static_cast<uint64_t>(block));
  for (const scheduler::ReleasedSlot& slot : plan.released) Fold(static_cast<uint64_t>(slot.slot));
}

std::string Trace::Line(int64_t number, TimeUs now, const char* what) {
  return absl::StrFormat("#%-6d %9.3f ms  %s", number + 1, static_cast<double>(now) / 1000, what);
}

std::string Trace::Line(int64_t number, TimeUs now, const char* what, uint64_t epoch_or_id, uint64_t step) {
  const std::string line = Line(number, now, what) + absl::StrFormat(" %d", epoch_or_id);
  return step == 0 ? line : line + absl::StrFormat(".%d", step);
}

std::string Trace::Line(int64_t number, TimeUs now, const char* what, const scheduler::GroupFormed& formed) {
  return Line(number, now, what) + absl::StrFormat(" epoch %d, %d dp groups of %d blocks", formed.epoch,
                                                   formed.num_dp_groups, formed.blocks_per_dp_group);
}

std::string Trace::Line(int64_t number, TimeUs now, const Request& arriving) {
  const scheduler::Arrival& arrival = arriving.arrival;
  std::string line =
      Line(number, now, "arrival") +
      absl::StrFormat(" r%d tenant %d %s prompt %d, keys %d, resumed %d, max_tokens %d", arrival.id, arrival.tenant,
                      kClassNames[static_cast<size_t>(arrival.priority)], arrival.prompt.size(),
                      arrival.block_keys.size(), arrival.resumed.size(), arrival.max_tokens);
  if (arrival.deadline != scheduler::kNever) {
    absl::StrAppendFormat(&line, ", deadline %.3f ms", static_cast<double>(arrival.deadline) / 1000);
  }
  return line;
}

std::string Trace::Note(TimeUs now, const char* what) {
  return absl::StrFormat("        %9.3f ms  (%s)", static_cast<double>(now) / 1000, what);
}

std::string Trace::Note(TimeUs /*now*/, const Output& output) {
  if (const auto* token = std::get_if<scheduler::Token>(&output)) {
    return absl::StrFormat("%sr%d token %d = %d", kIndent, token->id, token->index, token->token);
  }
  if (const auto* finished = std::get_if<scheduler::Finished>(&output)) {
    return absl::StrFormat("%sr%d ends: %s, %d tokens", kIndent, finished->id,
                           kFinishNames[static_cast<size_t>(finished->reason)], finished->num_output_tokens);
  }
  const auto& refused = std::get<scheduler::Refused>(output);
  return absl::StrFormat("%sr%d refused: %s, needs %d of %d, retry after %d us", kIndent, refused.id,
                         kRefusalNames[static_cast<size_t>(refused.reason)], refused.needed, refused.limit,
                         refused.retry_after_us);
}

std::string Trace::Note(TimeUs /*now*/, const StepPlan& plan) {
  std::string line = absl::StrFormat("%splan %d.%d", kIndent, plan.epoch, plan.step);
  for (const scheduler::ReleasedSlot& slot : plan.released) {
    absl::StrAppendFormat(&line, " -g%d.s%d", slot.dp_group, slot.slot);
  }
  for (const scheduler::PlannedWork& work : plan.work) {
    absl::StrAppendFormat(&line, " r%d%s@g%d.s%d:%s%d", work.id, work.is_new ? "!" : "", work.dp_group, work.slot,
                          work.takes_sampled_token ? "<" : "", work.first_position);
    if (work.num_tokens != 1) absl::StrAppendFormat(&line, "-%d", work.first_position + work.num_tokens - 1);
    if (work.samples) line += '*';
    for (int32_t i = work.blocks_begin; i < work.blocks_end; ++i) {
      absl::StrAppendFormat(&line, "%sb%d", i == work.blocks_begin ? "[" : " ", plan.blocks[static_cast<size_t>(i)]);
    }
    if (work.blocks_begin < work.blocks_end) line += ']';
  }
  return line;
}

const char* Trace::Legend() {
  return "Legend: #event  time  what; below it what followed.  A plan reads `plan EPOCH.STEP`, then released slots "
         "(-gGROUP.sSLOT),\n"
         "then work: rID@gGROUP.sSLOT:FIRST-LAST positions, ! = new in its slot, < = takes the token sampled by the "
         "step "
         "before,\n"
         "* = chooses the next token, [b...] = blocks added to its table.\n";
}

}  // namespace weir::sim
