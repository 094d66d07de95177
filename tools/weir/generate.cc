#include <CLI/CLI.hpp>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "tools/weir/commands.h"
#include "tools/weir/generation.h"
#include "tools/weir/progress_bar.h"
#include "tools/weir/rank_group.h"

namespace weir::tools {
namespace {

using nlohmann::json;

struct Options {
  std::string model;
  std::vector<std::string> prompts;  // comma-separated ids
  std::vector<std::string> logit_bias;
  int32_t max_tokens = 16;
  kernels::SamplingParams sampling;
  uint64_t seed = 0;
  bool ignores_eos = false;
  bool echoes = false;
  bool prints_json = false;
  std::string weight_dtype = "auto";
  std::string cache_dtype = "auto";
  int32_t collective_deadline_ms = 2000;
  RankGroupOptions group;
};

struct Timings {
  int64_t load_us = 0;
  int64_t prefill_us = 0;  // until every prompt had its first token
  int64_t decode_us = 0;   // the rest
  int64_t num_prompt_tokens = 0;
  int64_t num_generated_tokens = 0;
  int64_t num_prefill_generated = 0;  // of them, those that came with the prefill
};

int64_t NowUs() {
  return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

[[noreturn]] void Fail(const absl::Status& status) {
  std::fprintf(stderr, "weir generate: %s\n", std::string(status.message()).c_str());
  throw CLI::RuntimeError(1);
}

// ---- what the command line says ----

// "1,2,3"; empty when it is anything else.
std::optional<std::vector<int32_t>> ParseIds(const std::string& text) {
  std::vector<int32_t> ids;
  const char* at = text.data();
  const char* const end = at + text.size();
  while (true) {
    int32_t id = 0;
    const auto [next, error] = std::from_chars(at, end, id);
    if (error != std::errc() || id < 0) return std::nullopt;
    ids.push_back(id);
    if (next == end) return ids;
    if (*next != ',') return std::nullopt;
    at = next + 1;
  }
}

std::string CheckIds(const std::string& text) {
  return ParseIds(text) ? "" : "expected token ids such as 1,2,3; found '" + text + "'";
}

std::optional<std::pair<int32_t, float>> ParseBias(const std::string& text) {
  int32_t id = 0;
  const auto [next, error] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (error != std::errc() || next == text.data() + text.size() || *next != '=') return std::nullopt;
  char* end = nullptr;
  const float bias = std::strtof(next + 1, &end);
  if (end == next + 1 || *end != '\0') return std::nullopt;
  return std::pair(id, bias);
}

std::string CheckBias(const std::string& text) {
  return ParseBias(text) ? "" : "expected TOKEN=BIAS such as 42=-1.5; found '" + text + "'";
}

void AddModelOptions(CLI::App& command, Options& o) {
  const std::string group = "Model and ranks";
  command.add_option("--model", o.model, "HuggingFace directory of the checkpoint")->required()->group(group);
  command.add_option("--tp", o.group.tp, "tensor-parallel ranks")->check(CLI::Range(1, 1024))->group(group);
  command.add_option("--dp", o.group.dp, "data-parallel groups")->check(CLI::Range(1, 1024))->group(group);
  command.add_option("--backend", o.group.backend.name, "what computes: cpu, reference or cuda")
      ->check(CLI::IsMember({"cpu", "reference", "cuda"}))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--threads", o.group.backend.num_threads, "threads of each rank (0: share this machine's processors)")
      ->check(CLI::Range(0, 4096))
      ->group(group);
  command.add_option("--isa", o.group.backend.isa, "force an instruction set of the cpu backend, e.g. avx2")
      ->group(group);
  command.add_option("--weight-dtype", o.weight_dtype, "auto (as stored), bf16 (FP8 dequantised) or f32 (exact, slow)")
      ->check(CLI::IsMember({"auto", "bf16", "f32"}))
      ->group(group);
  command.add_option("--cache-dtype", o.cache_dtype, "element of the latent cache: auto, bf16 or f32")
      ->check(CLI::IsMember({"auto", "bf16", "f32"}))
      ->group(group);
  command.add_option("--max-num-batched-tokens", o.group.rank.max_num_batched_tokens, "rows of one step")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str()
      ->group(group);
  command.add_option("--block-size", o.group.rank.block_size, "tokens of a cache block")
      ->check(CLI::Range(1, 1 << 16))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--collective-deadline-ms", o.collective_deadline_ms,
                  "how long ranks wait for one another before they name the one that is missing")
      ->check(CLI::Range(1, 3'600'000))
      ->capture_default_str()
      ->group(group);
}

void AddSamplingOptions(CLI::App& command, Options& o) {
  const std::string group = "Sampling";
  kernels::SamplingParams& s = o.sampling;
  s.temperature = 0.0f;
  command.add_option("--temperature", s.temperature, "0 = greedy (default)")
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  command.add_option("--top-k", s.top_k, "keep the K most likely tokens; 0 = all")
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  command.add_option("--top-p", s.top_p, "keep the smallest set of at least this probability")
      ->check(CLI::Range(0.0, 1.0))
      ->group(group);
  command.add_option("--min-p", s.min_p, "drop tokens below this share of the most likely one's probability")
      ->check(CLI::Range(0.0, 1.0))
      ->group(group);
  command.add_option("--repetition-penalty", s.repetition_penalty, "over prompt and answer; 1 = off")
      ->check(CLI::PositiveNumber)
      ->group(group);
  command.add_option("--presence-penalty", s.presence_penalty, "over the answer; 0 = off")->group(group);
  command.add_option("--frequency-penalty", s.frequency_penalty, "over the answer; 0 = off")->group(group);
  command.add_option("--logit-bias", o.logit_bias, "TOKEN=BIAS, added to a logit; may be repeated")
      ->allow_extra_args(false)
      ->check(CheckBias)
      ->group(group);
  command.add_option("--seed", o.seed, "of the first prompt's noise; the next prompts have the next seeds")
      ->group(group);
}

void AddOutputOptions(CLI::App& command, Options& o) {
  command.add_option("--prompt-ids", o.prompts, "token ids of a prompt, e.g. 1,2,3; repeat it for a batch")
      ->required()
      ->allow_extra_args(false)
      ->check(CheckIds);
  command.add_option("--max-tokens", o.max_tokens, "tokens to generate; 0 with --echo scores the prompt only")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  command.add_flag("--ignore-eos", o.ignores_eos, "go on after an end-of-sequence token");
  command.add_option("--top-logprobs", o.sampling.num_top_logprobs, "alternatives to report for each position")
      ->check(CLI::Range(0, kernels::kMaxTopLogprobs));
  command.add_flag("--echo", o.echoes, "report the prompt's positions, too");
  command.add_flag("--json", o.prints_json, "print one JSON object: prompt_ids, generated_ids, positions, ...");
}

worker::WeightDType WeightDTypeOf(const Options& o) {
  if (o.weight_dtype == "bf16") return worker::WeightDType::kBFloat16;
  return o.weight_dtype == "f32" ? worker::WeightDType::kFloat32 : worker::WeightDType::kAuto;
}

worker::RankOptions::CacheDType CacheDTypeOf(const Options& o) {
  using CacheDType = worker::RankOptions::CacheDType;
  if (o.cache_dtype == "bf16") return CacheDType::kBFloat16;
  return o.cache_dtype == "f32" ? CacheDType::kFloat32 : CacheDType::kAuto;
}

std::vector<GenerationRequest> Requests(const Options& o) {
  std::vector<GenerationRequest> requests;
  kernels::SamplingParams sampling = o.sampling;
  sampling.wants_logprob = true;
  for (const std::string& text : o.logit_bias) sampling.logit_bias.push_back(*ParseBias(text));
  for (const std::string& text : o.prompts) {
    requests.push_back({.prompt_ids = *ParseIds(text),
                        .max_tokens = o.max_tokens,
                        .seed = o.seed + requests.size(),
                        .sampling = sampling});
  }
  return requests;
}

// ---- running ----

void CheckLengths(const std::vector<GenerationRequest>& requests, const worker::ModelConfig& config) {
  for (size_t i = 0; i < requests.size(); ++i) {
    const auto length = static_cast<int64_t>(requests[i].prompt_ids.size()) + requests[i].max_tokens;
    if (length > config.max_position_embeddings) {
      Fail(absl::InvalidArgumentError("prompt " + std::to_string(i) + " and --max-tokens make " +
                                      std::to_string(length) + " tokens; the model has " +
                                      std::to_string(config.max_position_embeddings) + " positions"));
    }
  }
}

// No more positions than are used: the rope table of a model's full length takes its time and memory.
int64_t LongestSequence(const std::vector<GenerationRequest>& requests) {
  size_t longest = 1;
  for (const GenerationRequest& r : requests) longest = std::max(longest, r.prompt_ids.size() + r.max_tokens);
  return static_cast<int64_t>(longest);
}

void FillIn(RankGroupOptions& group, const Options& o, const Generation& generation) {
  group.collective_deadline = std::chrono::milliseconds(o.collective_deadline_ms);
  group.rank.weight_dtype = WeightDTypeOf(o);
  group.rank.cache_dtype = CacheDTypeOf(o);
  group.rank.num_blocks = generation.num_blocks();
  group.rank.max_num_seqs = generation.max_num_seqs();
  group.rank.max_num_batched_tokens = std::max(group.rank.max_num_batched_tokens, generation.max_num_seqs());
  if (group.backend.num_threads == 0) {
    const auto num_processors = static_cast<int32_t>(std::thread::hardware_concurrency());
    group.backend.num_threads = std::max(1, num_processors / (group.tp * group.dp));
  }
}

// The ranks share this machine: together they must fit.
void CheckAndPrintMemory(const worker::Checkpoint& checkpoint, const RankGroupOptions& group) {
  worker::RankOptions rank = group.rank;
  rank.layout = {.tp = group.tp, .dp = group.dp, .rank = 0};
  if (absl::Status status = worker::CheckLayout(checkpoint.config(), rank.layout); !status.ok()) Fail(status);
  worker::MemoryEstimate all = worker::EstimateMemory(checkpoint, rank);
  for (rank.layout.rank = 1; rank.layout.rank < rank.layout.world_size(); ++rank.layout.rank) {
    const worker::MemoryEstimate one = worker::EstimateMemory(checkpoint, rank);
    all.weights_bytes += one.weights_bytes;
    all.cache_bytes += one.cache_bytes;
    all.workspace_bytes += one.workspace_bytes;
  }
  const std::string sums =
      std::to_string(group.tp * group.dp) + (group.tp * group.dp == 1 ? " rank: " : " ranks: ") + all.ToString();
  if (all.weights_bytes + all.cache_bytes + all.workspace_bytes > all.available_bytes) {
    Fail(absl::ResourceExhaustedError("the model does not fit: " + sums +
                                      "; use another machine, fewer --max-tokens or fewer --max-num-batched-tokens"));
  }
  std::fprintf(stderr, "%s\n", sums.c_str());
}

std::unique_ptr<RankGroup> StartRanks(const worker::Checkpoint& checkpoint, const RankGroupOptions& group) {
  ProgressBar bar("loading");
  const auto start = group.tp * group.dp == 1 ? NewThreadRanks : NewProcessRanks;
  absl::StatusOr<std::unique_ptr<RankGroup>> ranks =
      start(checkpoint, group, [&](int64_t done, int64_t total) { bar.Update(done, total); });
  if (!ranks.ok()) Fail(ranks.status());
  return *std::move(ranks);
}

void PrintRanks(const RankGroup& ranks) {
  std::fprintf(stderr, "%s\n", ranks.device().c_str());
  const std::vector<int> pids = ranks.pids();
  for (size_t r = 0; r < pids.size(); ++r) std::fprintf(stderr, "rank %zu: process %d\n", r, pids[r]);
}

void RunAll(RankGroup& ranks, Generation& generation, Timings& timings) {
  const auto num_generated = [&] {
    int64_t count = 0;
    for (const Answer& answer : generation.answers()) count += static_cast<int64_t>(answer.token_ids.size());
    return count;
  };
  while (!generation.done()) {
    const bool is_prefill = !generation.all_started();
    const int64_t start_us = NowUs();
    absl::StatusOr<worker::StepResult> result = ranks.Run(generation.Next());
    if (!result.ok()) Fail(result.status());
    generation.Take(*result);
    (is_prefill ? timings.prefill_us : timings.decode_us) += NowUs() - start_us;
    if (is_prefill) timings.num_prefill_generated = num_generated();
  }
  timings.num_generated_tokens = num_generated();
}

// ---- output ----

double PerSecond(int64_t count, int64_t us) { return us > 0 ? static_cast<double>(count) * 1e6 / double(us) : 0.0; }

// JSON has no infinity and no NaN.
json Number(float value) { return std::isfinite(value) ? json(value) : json(nullptr); }

json Position(int32_t token, const kernels::SampleOutput& output) {
  json top = json::array();
  for (const auto& [id, logprob] : output.top_logprobs) top.push_back({id, Number(logprob)});
  return {{"id", token}, {"logprob", Number(output.logprob)}, {"top", std::move(top)}};
}

json TimingsJson(const Timings& t) {
  const int64_t num_decoded = t.num_generated_tokens - t.num_prefill_generated;
  return {{"load_ms", double(t.load_us) / 1e3},
          {"prefill_ms", double(t.prefill_us) / 1e3},
          {"decode_ms", double(t.decode_us) / 1e3},
          {"prefill_tokens_per_s", PerSecond(t.num_prompt_tokens, t.prefill_us)},
          {"decode_tokens_per_s", PerSecond(num_decoded, t.decode_us)}};
}

json AnswerJson(const GenerationRequest& request, const Answer& answer, bool echoes) {
  json positions = json::array();
  if (echoes) {
    for (size_t i = 0; i < answer.prompt_logprobs.size(); ++i) {
      positions.push_back(Position(request.prompt_ids[i + 1], answer.prompt_logprobs[i]));
    }
  }
  for (size_t i = 0; i < answer.logprobs.size(); ++i) {
    positions.push_back(Position(answer.token_ids[i], answer.logprobs[i]));
  }
  json result = {{"prompt_ids", request.prompt_ids},
                 {"generated_ids", answer.token_ids},
                 {"positions", std::move(positions)},
                 {"finish_reason", answer.finish_reason}};
  if (!answer.error.empty()) result["error"] = answer.error;
  return result;
}

// One prompt: its answer.  Several: {"answers": [...]}.  Both with timings.
void PrintJson(const std::vector<GenerationRequest>& requests, const Generation& generation, const Options& o,
               const Timings& timings) {
  json result;
  if (requests.size() == 1) {
    result = AnswerJson(requests[0], generation.answers()[0], o.echoes);
  } else {
    result["answers"] = json::array();
    for (size_t i = 0; i < requests.size(); ++i) {
      result["answers"].push_back(AnswerJson(requests[i], generation.answers()[i], o.echoes));
    }
  }
  result["timings"] = TimingsJson(timings);
  std::printf("%s\n", result.dump().c_str());
}

void PrintPositions(const json& positions) {
  for (size_t i = 0; i < positions.size(); ++i) {
    const json& position = positions[i];
    std::printf("  %6zu  token %6d  logprob %10s  top", i, position["id"].get<int>(),
                position["logprob"].dump().c_str());
    for (const json& top : position["top"]) std::printf("  %d:%s", top[0].get<int>(), top[1].dump().c_str());
    std::printf("\n");
  }
}

void PrintText(const std::vector<GenerationRequest>& requests, const Generation& generation, const Options& o,
               const Timings& t) {
  for (size_t i = 0; i < requests.size(); ++i) {
    const Answer& answer = generation.answers()[i];
    std::printf("prompt %zu: %zu tokens, answer: %zu tokens (%s)\n ", i, requests[i].prompt_ids.size(),
                answer.token_ids.size(), answer.error.empty() ? answer.finish_reason.c_str() : answer.error.c_str());
    for (const int32_t id : answer.token_ids) std::printf(" %d", id);
    std::printf("\n");
    if (o.echoes || o.sampling.num_top_logprobs > 0)
      PrintPositions(AnswerJson(requests[i], answer, o.echoes)["positions"]);
  }
  std::printf(
      "load %.2f s; prefill %lld tokens in %.1f ms (%.1f tokens/s); decode %lld tokens in %.1f ms (%.1f tokens/s)\n",
      double(t.load_us) / 1e6, static_cast<long long>(t.num_prompt_tokens), double(t.prefill_us) / 1e3,
      PerSecond(t.num_prompt_tokens, t.prefill_us),
      static_cast<long long>(t.num_generated_tokens - t.num_prefill_generated), double(t.decode_us) / 1e3,
      PerSecond(t.num_generated_tokens - t.num_prefill_generated, t.decode_us));
}

void Generate(Options o) {
  Timings timings;
  const int64_t start_us = NowUs();
  absl::StatusOr<std::unique_ptr<worker::Checkpoint>> checkpoint = worker::Checkpoint::Open(o.model);
  if (!checkpoint.ok()) Fail(checkpoint.status());
  const worker::ModelConfig config = (*checkpoint)->config();

  const std::vector<GenerationRequest> requests = Requests(o);
  CheckLengths(requests, config);
  Generation generation(requests, {.dp = o.group.dp,
                                   .block_size = o.group.rank.block_size,
                                   .max_num_batched_tokens = o.group.rank.max_num_batched_tokens,
                                   .reports_prompts = o.echoes,
                                   .stop_token_ids = o.ignores_eos ? std::vector<int32_t>{} : config.eos_token_ids});
  FillIn(o.group, o, generation);
  o.group.rank.max_model_len = LongestSequence(requests);
  CheckAndPrintMemory(**checkpoint, o.group);
  const std::unique_ptr<RankGroup> ranks = StartRanks(**checkpoint, o.group);
  PrintRanks(*ranks);
  timings.load_us = NowUs() - start_us;
  for (const GenerationRequest& request : requests) {
    timings.num_prompt_tokens += static_cast<int64_t>(request.prompt_ids.size());
  }

  RunAll(*ranks, generation, timings);
  (o.prints_json ? PrintJson : PrintText)(requests, generation, o, timings);
  for (const Answer& answer : generation.answers()) {
    if (!answer.error.empty()) throw CLI::RuntimeError(1);
  }
}

}  // namespace

void AddGenerate(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("generate", "Generate tokens from a checkpoint, without a server");
  command->footer(
      "Examples:\n"
      "  weir generate --model /models/DeepSeek-V2-Lite --prompt-ids 100000,549,6077 --max-tokens 32\n"
      "  weir generate --model DIR --prompt-ids 1,2,3 --max-tokens 0 --echo --top-logprobs 5 --json\n"
      "  weir generate --model DIR --prompt-ids 1,2 --prompt-ids 3,4 --tp 2 --temperature 0.7 --seed 1");
  AddOutputOptions(*command, *options);
  AddSamplingOptions(*command, *options);
  AddModelOptions(*command, *options);
  command->callback([options] { Generate(*options); });
}

}  // namespace weir::tools
