#include "worker/model/slots.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace weir::worker {
namespace {

absl::Status CheckVocabulary(std::span<const int32_t> tokens, int32_t vocab_size, const char* where) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, "[", i, "] is ", tokens[i], "; the vocabulary has tokens 0 to ", vocab_size - 1));
    }
  }
  return absl::OkStatus();
}

// One line a parameter: what it is called, what it holds, whether that is allowed, what is.
absl::Status CheckSampling(const kernels::SamplingParams& p, int32_t vocab_size) {
  const struct {
    const char* name;
    double value;
    bool is_allowed;
    const char* allowed;
  } rules[] = {
      {"temperature", p.temperature, p.temperature >= 0 && std::isfinite(p.temperature), "a number >= 0"},
      {"top_k", double(p.top_k), p.top_k >= 0, "an integer >= 0"},
      {"top_p", p.top_p, p.top_p > 0 && p.top_p <= 1, "above 0, at most 1"},
      {"min_p", p.min_p, p.min_p >= 0 && p.min_p <= 1, "from 0 to 1"},
      {"repetition_penalty", p.repetition_penalty, p.repetition_penalty > 0 && std::isfinite(p.repetition_penalty),
       "a number > 0"},
      {"presence_penalty", p.presence_penalty, std::isfinite(p.presence_penalty), "a finite number"},
      {"frequency_penalty", p.frequency_penalty, std::isfinite(p.frequency_penalty), "a finite number"},
      {"num_top_logprobs", double(p.num_top_logprobs),
       p.num_top_logprobs >= 0 && p.num_top_logprobs <= kernels::kMaxTopLogprobs, "from 0 to 20"},
  };
  for (const auto& rule : rules) {
    if (!rule.is_allowed) {
      return absl::InvalidArgumentError(
          absl::StrCat("sampling.", rule.name, " is ", rule.value, "; allowed: ", rule.allowed));
    }
  }
  for (const auto& [token, bias] : p.logit_bias) {
    if (token < 0 || token >= vocab_size || !std::isfinite(bias)) {
      return absl::InvalidArgumentError(absl::StrCat("sampling.logit_bias of token ", token, " is ", bias,
                                                     "; allowed: tokens 0 to ", vocab_size - 1, ", finite biases"));
    }
  }
  return absl::OkStatus();
}

bool HasPenalty(const kernels::SamplingParams& p) {
  return p.repetition_penalty != 1.0f || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

Slot MakeSlot(const SequenceWork& work) {
  Slot slot;
  slot.is_live = true;
  slot.request_id = work.setup.request_id;
  slot.noise_key = kernels::NoiseKey(work.setup.seed, work.setup.request_id);
  slot.num_prompt_tokens = work.setup.num_prompt_tokens;
  slot.sampling = work.setup.sampling;
  slot.reporting.num_top_logprobs = work.setup.sampling.num_top_logprobs;
  slot.reporting.wants_logprob = true;
  slot.tokens = work.setup.token_ids;
  slot.num_setup_tokens = static_cast<int32_t>(slot.tokens.size());
  slot.num_computed = work.first_position;  // what stands before is in cached blocks of the table
  return slot;
}

// Tokens that a plan brings replace what was known from their first position on, unless they say the same.
void PutTokens(const SequenceWork& work, Slot& slot) {
  const auto first = static_cast<size_t>(work.first_position);
  const std::vector<int32_t>& ids = work.token_ids;
  if (first + ids.size() <= slot.tokens.size() && std::equal(ids.begin(), ids.end(), slot.tokens.begin() + first))
    return;
  if (first < slot.tokens.size()) slot.history.Forget();
  slot.num_setup_tokens = std::min(slot.num_setup_tokens, work.first_position);
  slot.tokens.resize(first);
  slot.tokens.insert(slot.tokens.end(), ids.begin(), ids.end());
}

void PutBlocks(const SequenceWork& work, Slot& slot) {
  if (work.new_block_ids.empty()) return;
  slot.block_table.resize(work.first_new_block);
  slot.block_table.insert(slot.block_table.end(), work.new_block_ids.begin(), work.new_block_ids.end());
}

}  // namespace

std::span<const kernels::TokenCount> TokenHistory::Count(std::span<const int32_t> tokens, int32_t num_prompt_tokens) {
  if (tokens.size() < num_counted_) Forget();
  for (; num_counted_ < tokens.size(); ++num_counted_) {
    Add(tokens[num_counted_], num_counted_ < static_cast<size_t>(num_prompt_tokens));
  }
  return counts_;
}

void TokenHistory::Forget() {
  counts_.clear();
  num_counted_ = 0;
}

void TokenHistory::Add(int32_t token, bool in_prompt) {
  auto it = std::lower_bound(counts_.begin(), counts_.end(), token,
                             [](const kernels::TokenCount& count, int32_t t) { return count.token < t; });
  if (it == counts_.end() || it->token != token) it = counts_.insert(it, kernels::TokenCount{.token = token});
  ++(in_prompt ? it->num_in_prompt : it->num_in_output);
}

void Slot::AppendSampled(int32_t token) {
  if (num_computed < num_setup_tokens) return;
  tokens.resize(num_computed);
  if (token >= 0) tokens.push_back(token);
}

std::span<const kernels::TokenCount> Slot::History() {
  if (!HasPenalty(sampling)) return {};
  return history.Count(std::span(tokens).first(num_computed), num_prompt_tokens);
}

SlotTable::SlotTable(const SlotLimits& limits) : limits_(limits), slots_(limits.max_num_seqs) {}

absl::StatusOr<Slot*> SlotTable::Apply(const SequenceWork& work) {
  if (work.slot < 0 || work.slot >= limits_.max_num_seqs) {
    return absl::InvalidArgumentError(
        absl::StrCat("slot ", work.slot, " does not exist; there are slots 0 to ", limits_.max_num_seqs - 1));
  }
  Slot& kept = slots_[work.slot];
  if (!work.has_setup && !kept.is_live) {
    return absl::NotFoundError(absl::StrCat("slot ", work.slot, " holds no sequence; its first work needs a setup"));
  }
  if (kept.last_step == step_) {
    return absl::InvalidArgumentError(absl::StrCat("slot ", work.slot, " has work twice in one plan"));
  }
  if (work.has_setup) {
    if (absl::Status status = CheckSetup(work.setup); !status.ok()) return status;
  }
  Slot fresh = work.has_setup ? MakeSlot(work) : Slot{};
  Slot& slot = work.has_setup ? fresh : kept;
  if (absl::Status status = CheckPositions(slot, work); !status.ok()) return status;
  if (absl::Status status = CheckTokens(slot, work); !status.ok()) return status;
  if (absl::Status status = CheckBlocks(slot, work); !status.ok()) return status;

  PutTokens(work, slot);
  PutBlocks(work, slot);
  slot.num_computed = work.first_position + work.num_tokens;
  slot.last_step = step_;
  if (work.has_setup) kept = std::move(fresh);
  return &kept;
}

absl::Status SlotTable::CheckSetup(const SequenceSetup& setup) const {
  if (setup.num_prompt_tokens < 0 || static_cast<size_t>(setup.num_prompt_tokens) > setup.token_ids.size()) {
    return absl::InvalidArgumentError(absl::StrCat("setup.num_prompt_tokens is ", setup.num_prompt_tokens,
                                                   "; setup.token_ids has ", setup.token_ids.size()));
  }
  if (static_cast<int64_t>(setup.token_ids.size()) > limits_.max_model_len) {
    return absl::InvalidArgumentError(absl::StrCat("setup.token_ids has ", setup.token_ids.size(),
                                                   " tokens; max_model_len is ", limits_.max_model_len));
  }
  if (absl::Status status = CheckVocabulary(setup.token_ids, limits_.vocab_size, "setup.token_ids"); !status.ok()) {
    return status;
  }
  return CheckSampling(setup.sampling, limits_.vocab_size);
}

absl::Status SlotTable::CheckPositions(const Slot& slot, const SequenceWork& work) const {
  if (work.num_tokens < 1 || work.first_position < 0) {
    return absl::InvalidArgumentError(absl::StrCat("num_tokens is ", work.num_tokens, " from position ",
                                                   work.first_position, "; at least 1 token from position 0 on"));
  }
  if (int64_t{work.first_position} + work.num_tokens > limits_.max_model_len) {
    return absl::InvalidArgumentError(absl::StrCat("position ", int64_t{work.first_position} + work.num_tokens - 1,
                                                   " is beyond max_model_len ", limits_.max_model_len));
  }
  if (work.first_position > slot.num_computed) {
    return absl::InvalidArgumentError(absl::StrCat("positions ", slot.num_computed, " to ", work.first_position - 1,
                                                   " were never computed; first_position may be at most ",
                                                   slot.num_computed));
  }
  return absl::OkStatus();
}

absl::Status SlotTable::CheckTokens(const Slot& slot, const SequenceWork& work) const {
  const int64_t end = int64_t{work.first_position} + work.num_tokens;
  const auto num_known = static_cast<int64_t>(slot.tokens.size());
  if (work.token_ids.empty()) {
    if (end <= num_known) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("token_ids is empty, but of positions ", work.first_position, " to ",
                                                   end - 1, " only those below ", num_known, " are known"));
  }
  if (static_cast<int64_t>(work.token_ids.size()) != work.num_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("token_ids has ", work.token_ids.size(), " entries; num_tokens is ", work.num_tokens));
  }
  if (work.first_position > num_known) {
    return absl::InvalidArgumentError(absl::StrCat("the tokens of positions ", num_known, " to ",
                                                   work.first_position - 1,
                                                   " are not known; setup.token_ids must hold"
                                                   " those of cached blocks too"));
  }
  return CheckVocabulary(work.token_ids, limits_.vocab_size, "token_ids");
}

absl::Status SlotTable::CheckBlocks(const Slot& slot, const SequenceWork& work) const {
  const auto num_kept = static_cast<int64_t>(slot.block_table.size());
  if (work.first_new_block < 0 || (!work.new_block_ids.empty() && work.first_new_block > num_kept)) {
    return absl::InvalidArgumentError(
        absl::StrCat("first_new_block is ", work.first_new_block, "; the block table has ", num_kept, " entries"));
  }
  for (const int32_t id : work.new_block_ids) {
    if (id < 0 || id >= limits_.num_blocks) {
      return absl::InvalidArgumentError(
          absl::StrCat("block ", id, " does not exist; there are blocks 0 to ", limits_.num_blocks - 1));
    }
  }
  const int64_t num_blocks =
      work.new_block_ids.empty() ? num_kept : work.first_new_block + static_cast<int64_t>(work.new_block_ids.size());
  const int64_t num_positions = int64_t{work.first_position} + work.num_tokens;
  if (num_blocks * limits_.block_size < num_positions) {
    return absl::InvalidArgumentError(absl::StrCat(num_positions, " positions need ",
                                                   (num_positions + limits_.block_size - 1) / limits_.block_size,
                                                   " blocks; the block table has ", num_blocks));
  }
  return absl::OkStatus();
}

void SlotTable::Release(SlotId slot) {
  if (slot >= 0 && slot < limits_.max_num_seqs) slots_[slot] = Slot{};
}

void SlotTable::Clear() { slots_.assign(slots_.size(), Slot{}); }

}  // namespace weir::worker
