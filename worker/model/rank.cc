#include "worker/rank.h"

#include <algorithm>
#include <chrono>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/model/activations.h"
#include "worker/model/batch_input.h"
#include "worker/model/collectives.h"
#include "worker/model/expert_exchange.h"
#include "worker/model/memory.h"
#include "worker/model/slots.h"
#include "worker/model/transformer.h"
#include "worker/model/weights.h"

namespace weir::worker {
namespace {

using kernels::SampleOutput;
using kernels::SampleRow;
using kernels::TensorView;

int64_t NowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

absl::Status CheckOptions(const ModelConfig& config, const RankOptions& options) {
  const struct {
    const char* name;
    int64_t value, min, max;
  } rules[] = {
      {"block_size", options.block_size, 1, 1 << 16},
      {"num_blocks", options.num_blocks, 1, int64_t{1} << 31},
      {"max_num_seqs", options.max_num_seqs, 1, 1 << 20},
      {"max_num_batched_tokens", options.max_num_batched_tokens, 1, 1 << 24},
      {"max_model_len", MaxModelLen(config, options), 1, config.max_position_embeddings},
  };
  for (const auto& rule : rules) {
    if (rule.value < rule.min || rule.value > rule.max) {
      return absl::InvalidArgumentError(
          absl::StrCat(rule.name, " is ", rule.value, "; allowed: ", rule.min, " to ", rule.max));
    }
  }
  if (options.expert_map && options.expert_map->num_experts() != config.n_routed_experts) {
    return absl::InvalidArgumentError(absl::StrCat("the expert map has ", options.expert_map->num_experts(),
                                                   " experts; the model has ", config.n_routed_experts));
  }
  return CheckLayout(config, options.layout);
}

absl::Status CheckFits(const MemoryEstimate& memory, const RankOptions& options) {
  if (memory.Fits() || options.allows_overcommit) return absl::OkStatus();
  const int64_t max_num_blocks = memory.MaxNumBlocks(options.num_blocks);
  const std::string advice =
      max_num_blocks > 0
          ? absl::StrCat("num_blocks ", options.num_blocks, " is too much, ", max_num_blocks, " would fit")
          : "use more ranks, or fewer batched tokens, or a machine with more memory";
  return absl::ResourceExhaustedError(
      absl::StrCat("rank ", options.layout.rank, " does not fit: ", memory.ToString(), "; ", advice));
}

class LoadedRank : public Rank {
 public:
  LoadedRank(const Checkpoint& checkpoint, const RankOptions& options, kernels::Backend* backend)
      : config_(checkpoint.config()),
        options_(options),
        memory_(EstimateMemory(checkpoint, options)),
        expert_map_(ExpertMapOf(config_, options)),
        backend_(backend),
        slots_({.max_num_seqs = options.max_num_seqs,
                .block_size = options.block_size,
                .num_blocks = options.num_blocks,
                .max_model_len = MaxModelLen(config_, options),
                .vocab_size = config_.vocab_size}),
        input_(options.block_size),
        batch_(backend->NewBatch()) {}

  absl::Status Load(const Checkpoint& checkpoint, const std::function<void(int64_t, int64_t)>& progress);

  absl::StatusOr<StepResult> Run(const StepPlan& plan) override;
  absl::Status Reform(Communicator* communicator, uint64_t epoch) override;
  const ModelConfig& config() const override { return config_; }
  const RankOptions& options() const override { return options_; }
  const MemoryEstimate& memory() const override { return memory_; }

 private:
  absl::Status AllocateCaches(kernels::DType dtype);
  absl::Status Step(const StepPlan& plan, StepResult& result);
  void Compute(StepResult& result);
  void ReportPrompts(StepResult& result);
  void ReportPrompt(const BatchInput::Sequence& sequence, std::vector<SampleOutput>& outputs);
  void SampleTokens(StepResult& result);
  void Sample(std::span<SampleOutput> outputs, TensorView hidden, std::span<const SampleRow> rows);

  const ModelConfig config_;
  const RankOptions options_;
  const MemoryEstimate memory_;
  const ExpertMap expert_map_;
  kernels::Backend* backend_;

  // Set by Load.
  ModelWeights weights_;
  std::vector<kernels::DeviceBuffer> cache_buffers_;
  std::vector<kernels::LatentCache> caches_;  // one per layer
  Activations activations_;
  std::unique_ptr<ExpertExchange> exchange_;
  std::unique_ptr<Transformer> transformer_;

  // The life of one epoch.
  uint64_t epoch_ = 0;
  absl::Status group_status_;  // not ok: the group is not formed, or broken
  std::unique_ptr<Collectives> collectives_;
  SlotTable slots_;

  // Of one step.
  BatchInput input_;
  std::unique_ptr<kernels::DeviceBatch> batch_;
  int64_t sampling_us_ = 0;
};

absl::Status LoadedRank::Load(const Checkpoint& checkpoint, const std::function<void(int64_t, int64_t)>& progress) {
  absl::StatusOr<ModelWeights> weights = LoadWeights(checkpoint, options_.layout, expert_map_, options_.weight_dtype,
                                                     MaxModelLen(config_, options_), backend_, progress);
  if (!weights.ok()) return weights.status();
  weights_ = *std::move(weights);
  absl::StatusOr<Activations> activations = AllocateActivations(config_, options_, backend_);
  if (!activations.ok()) return activations.status();
  activations_ = *std::move(activations);
  if (absl::Status status = AllocateCaches(CacheDType(checkpoint, options_)); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<ExpertExchange>> exchange =
      ExpertExchange::New(backend_, options_.layout, &expert_map_,
                          {.hidden_size = config_.hidden_size,
                           .num_experts_per_tok = config_.num_experts_per_tok,
                           .max_num_rows = options_.max_num_batched_tokens});
  if (!exchange.ok()) return exchange.status();
  exchange_ = *std::move(exchange);
  transformer_ = std::make_unique<Transformer>(Transformer::Parts{.config = &config_,
                                                                  .mla = RankMlaShape(config_, options_.layout),
                                                                  .backend = backend_,
                                                                  .weights = &weights_,
                                                                  .activations = &activations_,
                                                                  .caches = &caches_,
                                                                  .exchange = exchange_.get()});
  return backend_->Synchronize();
}

absl::Status LoadedRank::AllocateCaches(kernels::DType dtype) {
  const int64_t num_rows = options_.num_blocks * options_.block_size;
  for (int32_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    absl::StatusOr<kernels::DeviceBuffer> buffer =
        backend_->Allocate(num_rows * config_.cache_width() * kernels::SizeOf(dtype));
    if (!buffer.ok()) return buffer.status();
    const TensorView rows = buffer->View(dtype, num_rows, config_.cache_width());
    backend_->Prefault(rows);  // no row reads what it has not written, so nothing needs to be zero
    caches_.push_back({.rows = rows, .block_size = options_.block_size});
    cache_buffers_.push_back(*std::move(buffer));
  }
  return absl::OkStatus();
}

absl::Status LoadedRank::Reform(Communicator* communicator, uint64_t epoch) {
  slots_.Clear();
  epoch_ = epoch;
  if (communicator == nullptr && options_.layout.world_size() > 1) {
    group_status_ = absl::FailedPreconditionError("the group of ranks is not formed");
    return absl::OkStatus();
  }
  absl::StatusOr<std::unique_ptr<Collectives>> collectives = Collectives::New(backend_, options_.layout, communicator);
  group_status_ = collectives.status();
  if (collectives.ok()) collectives_ = *std::move(collectives);
  return group_status_;
}

absl::StatusOr<StepResult> LoadedRank::Run(const StepPlan& plan) {
  const int64_t start_us = NowUs();
  if (!group_status_.ok()) return group_status_;
  if (plan.epoch != epoch_) {
    return absl::InvalidArgumentError(
        absl::StrCat("a plan of epoch ", plan.epoch, " for a rank in epoch ", epoch_, "; its group was formed anew"));
  }
  if (absl::Status status = CheckPlan(plan, options_.layout.dp, options_.max_num_batched_tokens); !status.ok()) {
    return status;
  }
  const int64_t communication_start_us = collectives_->communication_us();
  sampling_us_ = 0;
  StepResult result = {.step_id = plan.step_id, .epoch = plan.epoch, .plan_hash = PlanHash(plan)};
  group_status_ = Step(plan, result);
  if (!group_status_.ok()) return group_status_;
  if (options_.layout.tp_rank() != 0) result.sequences.clear();
  result.timings = {.total_us = NowUs() - start_us,
                    .communication_us = collectives_->communication_us() - communication_start_us,
                    .sampling_us = sampling_us_};
  return result;
}

absl::Status LoadedRank::Step(const StepPlan& plan, StepResult& result) {
  for (const StepPlan::ReleasedSlot& released : plan.released) {
    if (released.dp_rank == options_.layout.dp_rank()) slots_.Release(released.slot);
  }
  input_.Build(plan, options_.layout.dp_rank(), slots_);
  for (const BatchInput::Sequence& sequence : input_.sequences()) {
    result.sequences.push_back(
        {.slot = sequence.work->slot, .dp_rank = sequence.work->dp_rank, .error = sequence.error});
  }
  result.expert_loads.assign(NumMoeLayers(config_) * expert_map_.ExpertsOn(options_.layout.rank).size(), 0);
  // Without rows here, the rows of other groups may still need this rank's experts.
  const bool others_may_have_rows = options_.layout.dp > 1 && !plan.work.empty();
  if (input_.num_rows() > 0 || others_may_have_rows) Compute(result);
  return collectives_->status();
}

void LoadedRank::Compute(StepResult& result) {
  if (input_.num_rows() > 0) backend_->Upload(*batch_, input_.layout());
  transformer_->Forward(*batch_, input_.num_rows(), result.expert_loads, *collectives_);
  if (!collectives_->Synchronize()) return;  // result.expert_loads is complete from here on
  ReportPrompts(result);
  SampleTokens(result);
}

void LoadedRank::ReportPrompts(StepResult& result) {
  for (size_t i = 0; i < result.sequences.size(); ++i) {
    const BatchInput::Sequence& sequence = input_.sequences()[i];
    if (sequence.slot == nullptr || !sequence.work->reports_prompt_logprobs) continue;
    ReportPrompt(sequence, result.sequences[i].prompt_logprobs);
  }
}

// The distributions after each of a sequence's rows, a bounded number of rows at a time.
void LoadedRank::ReportPrompt(const BatchInput::Sequence& sequence, std::vector<SampleOutput>& outputs) {
  const SequenceWork& work = *sequence.work;
  const Slot& slot = *sequence.slot;
  outputs.resize(work.num_tokens);
  std::vector<SampleRow> rows(work.num_tokens);
  for (int32_t i = 0; i < work.num_tokens; ++i) {
    const size_t next = work.first_position + i + 1;
    rows[i] = {.params = &slot.reporting,
               .position = static_cast<int64_t>(next),
               .given_token = next < slot.tokens.size() ? slot.tokens[next] : 0};
  }
  for (int32_t first = 0; first < work.num_tokens; first += kMaxPromptLogitsRows) {
    const int32_t count = std::min(work.num_tokens - first, kMaxPromptLogitsRows);
    Sample(std::span(outputs).subspan(first, count), activations_.hidden.Rows(sequence.first_row + first, count),
           std::span(rows).subspan(first, count));
  }
  // The token after the last row may not be known: then only the alternatives mean something.
  if (slot.num_computed >= static_cast<int64_t>(slot.tokens.size())) {
    outputs.back().token = -1;
    outputs.back().logprob = 0.0f;
  }
}

void LoadedRank::SampleTokens(StepResult& result) {
  const std::vector<BatchInput::Sequence*>& sampled = input_.sampled();
  if (sampled.empty()) return;
  std::vector<SampleRow> rows;
  for (const BatchInput::Sequence* sequence : sampled) {
    Slot& slot = *sequence->slot;
    rows.push_back({.params = &slot.sampling,
                    .history = slot.History(),
                    .noise_key = slot.noise_key,
                    .position = slot.num_computed});
  }
  std::vector<SampleOutput> outputs(rows.size());
  const TensorView hidden = activations_.head_in.Rows(0, static_cast<int64_t>(rows.size()));
  backend_->GatherSampleRows(hidden, activations_.hidden.Rows(0, input_.num_rows()), *batch_);
  Sample(outputs, hidden, rows);
  if (!collectives_->ok()) return;
  for (size_t i = 0; i < sampled.size(); ++i) {
    SequenceResult& sequence = result.sequences[sampled[i] - input_.sequences().data()];
    sampled[i]->slot->AppendSampled(outputs[i].token);
    sequence.has_sampled = true;
    sequence.sampled = std::move(outputs[i]);
  }
}

// Every rank of a tensor-parallel group has all logits and draws the same tokens.
void LoadedRank::Sample(std::span<SampleOutput> outputs, TensorView hidden, std::span<const SampleRow> rows) {
  const TensorView logits = activations_.logits.Rows(0, hidden.rows);
  transformer_->Logits(logits, hidden, *collectives_);
  if (!collectives_->Synchronize()) return;
  const int64_t start_us = NowUs();
  backend_->Sample(outputs, logits, rows);
  collectives_->Synchronize();
  sampling_us_ += NowUs() - start_us;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Rank>> Rank::Load(const Checkpoint& checkpoint, const RankOptions& options,
                                                 kernels::Backend* backend, Communicator* communicator,
                                                 const std::function<void(int64_t, int64_t)>& progress) {
  if (absl::Status status = CheckOptions(checkpoint.config(), options); !status.ok()) return status;
  auto rank = std::make_unique<LoadedRank>(checkpoint, options, backend);
  if (absl::Status status = CheckFits(rank->memory(), options); !status.ok()) return status;
  if (absl::Status status = rank->Load(checkpoint, progress); !status.ok()) return status;
  if (absl::Status status = rank->Reform(communicator, 0); !status.ok()) return status;
  return rank;
}

}  // namespace weir::worker
