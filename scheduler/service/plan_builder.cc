#include "scheduler/service/plan_builder.h"

#include <span>

#include "scheduler/core/check.h"
#include "weir/worker/v1/worker.pb.h"

namespace weir::scheduler {
namespace {

template <typename Field>
void Append(std::span<const TokenId> ids, Field* field) {
  field->Reserve(static_cast<int>(ids.size()));
  for (const TokenId id : ids) field->Add(static_cast<uint32_t>(id));
}

void FillSetup(LiveRequest& request, std::span<const TokenId> tokens, worker::v1::SequenceSetup& setup) {
  setup.set_request_id(request.noise_name);
  setup.set_seed(request.seed);
  setup.set_num_prompt_tokens(static_cast<uint32_t>(request.num_prompt_tokens));
  Append(tokens, setup.mutable_token_ids());
  if (request.sampling != nullptr) *setup.mutable_sampling() = *request.sampling;
  request.num_setup_tokens = static_cast<int32_t>(tokens.size());
}

void FillWork(const PlannedWork& planned, const StepPlan& plan, const Scheduler& core, LiveRequest& request,
              worker::v1::SequenceWork& work) {
  const std::span<const TokenId> tokens = core.tokens(planned.id);
  work.set_slot(static_cast<uint32_t>(planned.slot));
  work.set_dp_rank(static_cast<uint32_t>(planned.dp_group));
  if (planned.is_new) FillSetup(request, tokens, *work.mutable_setup());
  work.set_first_position(static_cast<uint32_t>(planned.first_position));
  work.set_num_tokens(static_cast<uint32_t>(planned.num_tokens));
  const bool is_in_setup = planned.first_position + planned.num_tokens <= request.num_setup_tokens;
  if (!planned.takes_sampled_token && !is_in_setup) {
    Append(tokens.subspan(planned.first_position, planned.num_tokens), work.mutable_token_ids());
  }
  work.set_first_new_block(static_cast<uint32_t>(planned.first_new_block));
  Append(std::span(plan.blocks).subspan(planned.blocks_begin, planned.blocks_end - planned.blocks_begin),
         work.mutable_new_block_ids());
  work.set_samples(planned.samples);
}

}  // namespace

std::shared_ptr<const worker::v1::RunRequest> BuildPlan(const StepPlan& plan, const Scheduler& core,
                                                        RequestTable& requests) {
  auto message = std::make_shared<worker::v1::RunRequest>();
  worker::v1::StepPlan& out = *message->mutable_plan();
  out.set_step_id(plan.step);
  out.set_epoch(plan.epoch);
  for (const PlannedWork& planned : plan.work) {
    LiveRequest* request = requests.Find(planned.id);
    WEIR_CHECK(request != nullptr, "a planned request is live");
    FillWork(planned, plan, core, *request, *out.add_work());
  }
  for (const ReleasedSlot& released : plan.released) {
    worker::v1::ReleasedSlot* entry = out.add_released();
    entry->set_dp_rank(static_cast<uint32_t>(released.dp_group));
    entry->set_slot(static_cast<uint32_t>(released.slot));
  }
  return message;
}

}  // namespace weir::scheduler
