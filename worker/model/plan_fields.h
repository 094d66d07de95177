#pragma once

#include <string>
#include <utility>
#include <vector>

#include "worker/step_plan.h"

// The fields of plans and results, named once, for everything that goes over all of them: hashing, writing, reading.
//
// A visitor has operator()(fields...) for integers, floats and strings, and Size(vector&), which is told a vector's
// length or sets it.  Order and set of fields are the format; there are no versions: both ends are one build.

namespace weir::worker {

template <typename Visitor, typename T>
void VisitField(Visitor& visit, T& field);

template <typename Visitor, typename... Fields>
void VisitFields(Visitor& visit, Fields&... fields) {
  (VisitField(visit, fields), ...);
}

template <typename Visitor, typename A, typename B>
void VisitParts(Visitor& visit, std::pair<A, B>& pair) {
  VisitFields(visit, pair.first, pair.second);
}
template <typename Visitor>
void VisitParts(Visitor& visit, kernels::SamplingParams& s) {
  VisitFields(visit, s.temperature, s.top_k, s.top_p, s.min_p, s.repetition_penalty, s.presence_penalty,
              s.frequency_penalty, s.logit_bias, s.num_top_logprobs, s.wants_logprob);
}
template <typename Visitor>
void VisitParts(Visitor& visit, SequenceSetup& s) {
  VisitFields(visit, s.request_id, s.seed, s.num_prompt_tokens, s.token_ids, s.sampling);
}
template <typename Visitor>
void VisitParts(Visitor& visit, SequenceWork& w) {
  VisitFields(visit, w.slot, w.dp_rank, w.has_setup);
  if (w.has_setup) VisitField(visit, w.setup);
  VisitFields(visit, w.first_position, w.num_tokens, w.token_ids, w.first_new_block, w.new_block_ids, w.samples,
              w.reports_prompt_logprobs);
}
template <typename Visitor>
void VisitParts(Visitor& visit, StepPlan::ReleasedSlot& r) {
  VisitFields(visit, r.dp_rank, r.slot);
}
template <typename Visitor>
void VisitParts(Visitor& visit, StepPlan& p) {
  VisitFields(visit, p.step_id, p.epoch, p.work, p.released);
}
template <typename Visitor>
void VisitParts(Visitor& visit, kernels::SampleOutput& o) {
  VisitFields(visit, o.token, o.is_finite, o.logprob, o.top_logprobs);
}
template <typename Visitor>
void VisitParts(Visitor& visit, SequenceResult& r) {
  VisitFields(visit, r.slot, r.dp_rank, r.sampled, r.has_sampled, r.prompt_logprobs, r.error);
}
template <typename Visitor>
void VisitParts(Visitor& visit, StepTimings& t) {
  VisitFields(visit, t.total_us, t.communication_us, t.sampling_us);
}
template <typename Visitor>
void VisitParts(Visitor& visit, StepResult& r) {
  VisitFields(visit, r.step_id, r.epoch, r.plan_hash, r.sequences, r.expert_loads, r.timings);
}

template <typename Visitor, typename T>
void VisitParts(Visitor& visit, std::vector<T>& values) {
  visit.Size(values);
  for (T& value : values) VisitField(visit, value);
}

template <typename Visitor, typename T>
void VisitField(Visitor& visit, T& field) {
  if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string>) {
    visit(field);
  } else {
    VisitParts(visit, field);
  }
}

}  // namespace weir::worker
