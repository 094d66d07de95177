// The engine as a whole: one rank, a model of 754 M parameters (174 M active) in the shape of DeepSeek V3, decoding and
// prefilling.  Its ceilings, bytes read and products, are measured between its rounds.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <regex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "kernels/check.h"
#include "tools/bench/bench_model.h"
#include "tools/bench/ceilings.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/rank.h"

namespace weir::tools {
namespace {

using worker::Checkpoint;
using worker::Rank;
using worker::SequenceWork;
using worker::StepPlan;
using worker::StepResult;

struct Options {
  std::string cache;
  std::string json;
  std::string isa;
  std::vector<std::string> dtypes = {"bf16", "fp8"};
  std::string only = ".*";
  int32_t threads = 0;
  int32_t rounds = 5;
  int32_t batched_tokens = 2048;
  bool pins_threads = false;
  Clock clock = Clock::kWall;
};

template <typename T>
T Must(absl::StatusOr<T> value) {
  if (!value.ok()) {
    std::fprintf(stderr, "\nbench_engine: %s\n", std::string(value.status().message()).c_str());
    std::exit(1);
  }
  return *std::move(value);
}

// A line on standard error that is written over.
void ShowProgress(const std::string& what, int64_t done, int64_t total) {
  std::fprintf(stderr, "\r%s: %3lld %% of %.2f GB%s", what.c_str(),
               static_cast<long long>(100 * done / std::max<int64_t>(total, 1)), static_cast<double>(total) / 1e9,
               done == total ? "\n" : "");
}

// What one step must read and multiply at least.
struct StepCost {
  double bytes = 0.0;
  double flop = 0.0;
};

// One loaded model, and sequences on it.  Slots [0, 32) have room for 256 tokens, slot 32 for a long context, slot 33
// for prompts that are measured.
class Engine {
 public:
  static constexpr int32_t kShortBlocks = 4, kLongBlocks = 68, kLongSlot = 32, kPromptSlot = 33;

  Engine(kernels::Backend& backend, const Options& options, const std::string& dtype) : dtype_(dtype) {
    const std::string directory = Must(MakeBenchModel(options.cache, dtype, [&](int64_t done, int64_t total) {
      ShowProgress("writing the model below " + options.cache, done, total);
    }));
    const std::unique_ptr<Checkpoint> checkpoint = Must(Checkpoint::Open(directory));
    summary_ = worker::Summarize(*checkpoint);
    config_ = checkpoint->config();
    worker::RankOptions rank;
    rank.num_blocks = 32 * kShortBlocks + 2 * kLongBlocks;
    rank.max_num_seqs = 34;
    rank.max_num_batched_tokens = options.batched_tokens;
    const double start = Seconds(options.clock);
    rank_ = Must(Rank::Load(*checkpoint, rank, &backend, nullptr,
                            [&](int64_t done, int64_t total) { ShowProgress("loading " + directory, done, total); }));
    load_seconds_ = Seconds(options.clock) - start;
    batched_tokens_ = options.batched_tokens;
  }

  const std::string& dtype() const { return dtype_; }
  double load_seconds() const { return load_seconds_; }
  double weight_bytes() const { return static_cast<double>(summary_.bytes.total() - summary_.bytes.mtp); }

  // Computes a prompt of `length` tokens from position 0 on.  Returns what it had to do.
  StepCost Prefill(int32_t slot, int32_t length) {
    StepCost cost;
    for (int32_t first = 0; first < length; first += batched_tokens_) {
      SequenceWork work;
      work.slot = slot;
      work.first_position = first;
      work.num_tokens = std::min(batched_tokens_, length - first);
      work.samples = first + work.num_tokens == length;
      if (first == 0) {
        work.has_setup = true;
        work.setup.num_prompt_tokens = length;
        work.setup.token_ids = Tokens(length);
        work.setup.sampling.temperature = 0.0f;
        work.new_block_ids = Blocks(slot);
      }
      StepPlan plan;
      plan.work.push_back(std::move(work));
      const StepCost step = Run(plan);
      cost.bytes += step.bytes;
      cost.flop += step.flop;
    }
    return cost;
  }

  // The token at `position` of slots [first, first + count).
  StepCost Decode(int32_t first, int32_t count, int32_t position) {
    StepPlan plan;
    for (int32_t slot = first; slot < first + count; ++slot) {
      SequenceWork work;
      work.slot = slot;
      work.first_position = position;
      work.num_tokens = 1;
      work.token_ids = Tokens(1);
      work.samples = true;
      plan.work.push_back(std::move(work));
    }
    return Run(plan);
  }

 private:
  std::vector<int32_t> Tokens(int32_t count) {
    std::vector<int32_t> tokens(static_cast<size_t>(count));
    for (int32_t& token : tokens) token = static_cast<int32_t>(engine_() % kBenchModelVocabulary);
    return tokens;
  }

  static std::vector<int32_t> Blocks(int32_t slot) {
    const bool is_short = slot < kLongSlot;
    const int32_t first = is_short ? slot * kShortBlocks : 32 * kShortBlocks + (slot - kLongSlot) * kLongBlocks;
    std::vector<int32_t> blocks(static_cast<size_t>(is_short ? kShortBlocks : kLongBlocks));
    for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = first + static_cast<int32_t>(i);
    return blocks;
  }

  StepCost Run(StepPlan& plan) {
    plan.step_id = ++step_id_;
    const StepResult result = Must(rank_->Run(plan));
    for (const worker::SequenceResult& sequence : result.sequences) WEIR_CHECK(sequence.error.empty(), sequence.error);
    return CostOf(plan, result);
  }

  StepCost CostOf(const StepPlan& plan, const StepResult& result) const {
    const worker::ByteSums& sums = summary_.bytes;
    const double moe_layers = config_.num_hidden_layers - config_.first_k_dense_replace;
    const double expert_bytes = static_cast<double>(sums.routed_experts) / (moe_layers * config_.n_routed_experts);
    const double expert_parameters = 3.0 * config_.hidden_size * config_.moe_intermediate_size;
    const double head_parameters = static_cast<double>(config_.vocab_size) * config_.hidden_size;
    const double others = static_cast<double>(summary_.num_active_parameters) - head_parameters -
                          moe_layers * config_.num_experts_per_tok * expert_parameters;
    StepCost cost;
    cost.bytes = static_cast<double>(sums.attention + sums.dense_ffn + sums.shared_experts + sums.routers + sums.norms +
                                     sums.head);
    for (const int64_t rows : result.expert_loads) {
      cost.bytes += rows > 0 ? expert_bytes : 0.0;
      cost.flop += 2.0 * static_cast<double>(rows) * expert_parameters;
    }
    for (const SequenceWork& work : plan.work) {
      const double rows = work.num_tokens, context = work.first_position + (rows + 1) / 2;
      const bool is_prompt = work.num_tokens > 1;
      const double per_pair =
          is_prompt ? config_.qk_head_dim() + config_.v_head_dim : config_.cache_width() + config_.kv_lora_rank;
      cost.flop += 2.0 * rows * others + 2.0 * head_parameters * (work.samples ? 1 : 0);
      cost.flop += 2.0 * rows * context * per_pair * config_.num_attention_heads * config_.num_hidden_layers;
      cost.bytes +=
          static_cast<double>(work.first_position + work.num_tokens) * static_cast<double>(summary_.kv_bytes_per_token);
    }
    return cost;
  }

  std::string dtype_;
  worker::CheckpointSummary summary_;
  worker::ModelConfig config_;
  std::unique_ptr<Rank> rank_;
  double load_seconds_ = 0.0;
  int32_t batched_tokens_ = 0;
  uint64_t step_id_ = 0;
  std::mt19937_64 engine_{5};
};

// What is measured: a row of the table.
struct Case {
  std::string name, dtype;
  int32_t batch = 1, context = 0;
  std::function<StepCost()> run;  // one round
  double tokens = 0.0;            // of one round
  std::vector<double> seconds;
  std::vector<double> bytes, flop;
};

void AddCases(Engine& engine, std::vector<Case>& cases) {
  constexpr int32_t kPrompt = 128;
  for (int32_t slot = 0; slot < 32; ++slot) engine.Prefill(slot, kPrompt);
  engine.Prefill(Engine::kLongSlot, 4096);
  const auto decode = [&](int32_t first, int32_t batch, int32_t context, int32_t steps) {
    Case c{"decode", engine.dtype(), batch, context};
    c.tokens = static_cast<double>(batch) * steps;
    c.run = [&engine, first, batch, context, steps] {
      StepCost sum;
      for (int32_t i = 0; i < steps; ++i) {
        const StepCost step = engine.Decode(first, batch, context + i);
        sum.bytes += step.bytes;
        sum.flop += step.flop;
      }
      return sum;
    };
    cases.push_back(std::move(c));
  };
  decode(0, 1, kPrompt, 32);
  decode(0, 8, kPrompt, 16);
  decode(0, 32, kPrompt, 8);
  decode(Engine::kLongSlot, 1, 4096, 16);
  for (const int32_t length : {512, 4096}) {
    Case c{"prefill", engine.dtype(), 1, length};
    c.tokens = length;
    c.run = [&engine, length] { return engine.Prefill(Engine::kPromptSlot, length); };
    cases.push_back(std::move(c));
  }
}

struct Ceilings {
  double gb_per_s = 0.0, gflop_per_s = 0.0;
};

// A line of the table and of the JSON.
struct Row {
  std::string name, dtype;
  int32_t batch = 0, context = 0;
  double tokens_per_s = 0.0, gb_per_s = 0.0, gflop_per_s = 0.0, share = 0.0, seconds = 0.0;
};

Row RowOf(const Case& c, const Ceilings& ceilings) {
  const double seconds = Median(c.seconds), bytes = Median(c.bytes), flop = Median(c.flop);
  const double least = std::max(bytes / (ceilings.gb_per_s * 1e9), flop / (ceilings.gflop_per_s * 1e9));
  return {c.name,          c.dtype, c.batch, c.context, c.tokens / seconds, bytes / seconds / 1e9, flop / seconds / 1e9,
          least / seconds, seconds};
}

Row LoadRow(const Engine& engine, const Ceilings& ceilings) {
  const double gb_per_s = engine.weight_bytes() / engine.load_seconds() / 1e9;
  return {"load", engine.dtype(), 0, 0, 0.0, gb_per_s, 0.0, gb_per_s / ceilings.gb_per_s, engine.load_seconds()};
}

void Print(const std::vector<Row>& rows) {
  std::printf("%-8s %-5s %6s %8s %10s %10s %8s %9s %8s\n", "what", "dtype", "batch", "context", "tokens/s", "s/round",
              "GB/s", "GFLOP/s", "ceiling");
  for (const Row& row : rows) {
    std::printf("%-8s %-5s %6d %8d %10.1f %10.4f %8.1f %9.0f %7.0f%%\n", row.name.c_str(), row.dtype.c_str(), row.batch,
                row.context, row.tokens_per_s, row.seconds, row.gb_per_s, row.gflop_per_s, 100 * row.share);
  }
}

bool WriteJson(const std::string& path, const std::string& detail, const ArithmeticProbe& arithmetic,
               const Ceilings& ceilings, const std::vector<Row>& rows) {
  nlohmann::json list = nlohmann::json::array();
  for (const Row& row : rows) {
    list.push_back({{"name", row.name},
                    {"dtype", row.dtype},
                    {"batch", row.batch},
                    {"context", row.context},
                    {"tokens_per_s", row.tokens_per_s},
                    {"gb_per_s", row.gb_per_s},
                    {"gflop_per_s", row.gflop_per_s},
                    {"seconds", row.seconds},
                    {"share_of_ceiling", row.share}});
  }
  const nlohmann::json document = {{"machine", MachineName()},
                                   {"backend", detail},
                                   {"ceilings",
                                    {{"read_gb_per_s", ceilings.gb_per_s},
                                     {"gflop_per_s", ceilings.gflop_per_s},
                                     {"instruction", std::string(arithmetic.instruction())}}},
                                   {"rows", list}};
  std::ofstream file(path);
  file << document.dump(2) << "\n";
  return file.good();
}

int Run(const Options& options) {
  if (options.clock == Clock::kThread && options.threads != 1) {
    std::fprintf(stderr, "bench_engine: --cpu-time counts one thread; add --threads 1\n");
    return 2;
  }
  kernels::CpuOptions cpu;
  cpu.num_threads = options.threads;
  cpu.isa = options.isa;
  cpu.pins_threads = options.pins_threads;
  const std::unique_ptr<kernels::Backend> backend = Must(kernels::NewCpuBackend(cpu));
  const std::string detail(backend->detail());
  const int32_t threads = std::stoi(detail.substr(detail.find(',') + 1));
  std::vector<std::unique_ptr<Engine>> engines;
  std::vector<Case> cases;
  for (const std::string& dtype : options.dtypes) {
    engines.push_back(std::make_unique<Engine>(*backend, options, dtype));
    AddCases(*engines.back(), cases);
  }

  const std::regex only(options.only);
  std::erase_if(cases, [&](const Case& c) {
    return !std::regex_search(absl::StrCat(c.name, " ", c.dtype, " ", c.batch, " ", c.context), only);
  });

  ReadProbe read(threads, options.clock);
  ArithmeticProbe arithmetic(threads, detail.substr(0, detail.find(',')), options.clock);
  std::vector<double> gb, gflop;
  for (int32_t round = 0; round < options.rounds; ++round) {
    for (size_t i = 0; i < cases.size(); ++i) {
      std::fprintf(stderr, "\rround %d of %d, %zu of %zu ", round + 1, options.rounds, i + 1, cases.size());
      if (i % 4 == 0) gb.push_back(read.Run()), gflop.push_back(arithmetic.Run());
      const double start = Seconds(options.clock);
      const StepCost cost = cases[i].run();
      cases[i].seconds.push_back(Seconds(options.clock) - start);
      cases[i].bytes.push_back(cost.bytes);
      cases[i].flop.push_back(cost.flop);
    }
  }
  std::fprintf(stderr, "\r                              \r");
  const Ceilings ceilings{Median(gb), Median(gflop)};
  std::vector<Row> rows;
  for (const Case& c : cases) rows.push_back(RowOf(c, ceilings));
  for (const auto& engine : engines) rows.push_back(LoadRow(*engine, ceilings));
  std::printf("%s; %s\nread %.1f GB/s, %s %.0f GFLOP/s (medians of %zu probes between the rounds)\n\n",
              MachineName().c_str(), detail.c_str(), ceilings.gb_per_s, std::string(arithmetic.instruction()).c_str(),
              ceilings.gflop_per_s, gb.size());
  Print(rows);
  if (!options.json.empty() && !WriteJson(options.json, detail, arithmetic, ceilings, rows)) {
    std::fprintf(stderr, "bench_engine: cannot write %s\n", options.json.c_str());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace weir::tools

int main(int argc, char** argv) {
  CLI::App app(
      "Decode, prefill and load of one rank, with a random model of 754 M parameters in the shape of DeepSeek V3.  "
      "The ceiling of a row is the longer of reading its bytes and multiplying its products, at the rates measured in "
      "the same run.\n\nExample: bench_engine --dtype bf16 --threads 2 --json engine.json");
  weir::tools::Options options;
  options.cache = weir::tools::DefaultBenchCache();
  app.add_option("--cache", options.cache, "where the models are kept, 2.3 GB (default: ~/.cache/weir/bench)");
  app.add_option("--dtype", options.dtypes, "bf16, fp8 or both, separated by commas")
      ->delimiter(',')
      ->check(CLI::IsMember({"bf16", "fp8"}));
  app.add_option("--threads", options.threads, "threads (default: all processors)")->check(CLI::Range(0, 4096));
  app.add_flag_callback(
      "--cpu-time", [&] { options.clock = weir::tools::Clock::kThread; },
      "count the processor time of one thread instead of the clock: for a machine that others use");
  app.add_flag("--pin", options.pins_threads, "pin threads to processors");
  app.add_option("--isa", options.isa, "instruction set: avx2, avx512, avx512-bf16, portable (default: the fastest)");
  app.add_option("--rounds", options.rounds, "interleaved rounds; the median counts (default 5)")
      ->check(CLI::Range(1, 1000));
  app.add_option("--only", options.only,
                 "only rows whose \"what dtype batch context\" matches, e.g. \"decode bf16 32\"");
  app.add_option("--max-num-batched-tokens", options.batched_tokens, "rows of a prefill step (default 2048)")
      ->check(CLI::Range(32, 1 << 16));
  app.add_option("--json", options.json, "write the table to this file as well");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return weir::tools::Run(options);
}
