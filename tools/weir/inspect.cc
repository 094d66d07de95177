// weir inspect: what a model directory holds and what a layout puts on each rank, from the files' headers alone.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "tools/weir/commands.h"
#include "worker/checkpoint/checkpoint.h"

namespace weir::tools {
namespace {

using worker::ByteSums;
using worker::Checkpoint;
using worker::CheckpointSummary;
using worker::ExpertMap;
using worker::ModelConfig;
using worker::ParallelLayout;

constexpr double kGigabyte = 1e9;
constexpr int64_t kGibibyte = int64_t{1} << 30;

struct InspectOptions {
  std::string directory;
  int32_t tp = 1;
  int32_t dp = 1;
  bool json = false;
  bool headers_only = false;
  bool check_scales = false;
};

struct Group {
  const char* title;
  const char* key;
  int64_t ByteSums::* bytes;
};
constexpr Group kGroups[] = {
    {"routed experts", "routed_experts", &ByteSums::routed_experts},
    {"shared experts", "shared_experts", &ByteSums::shared_experts},
    {"dense FFN", "dense_ffn", &ByteSums::dense_ffn},
    {"attention", "attention", &ByteSums::attention},
    {"embedding", "embedding", &ByteSums::embedding},
    {"head", "head", &ByteSums::head},
    {"routers", "routers", &ByteSums::routers},
    {"norms", "norms", &ByteSums::norms},
    {"FP8 scales", "scales", &ByteSums::scales},
};

struct RankShare {
  int32_t rank = 0;
  int32_t num_experts = 0;  // of each MoE layer
  ByteSums bytes;
};

// ---- text for people ----

std::string Grouped(int64_t number) {  // 91991 -> "91,991"
  std::string digits = absl::StrCat(number);
  for (int64_t at = static_cast<int64_t>(digits.size()) - 3; at > 0; at -= 3) digits.insert(at, 1, ',');
  return digits;
}

std::string Bytes(int64_t bytes) {
  if (bytes >= 10'000'000) return absl::StrFormat("%.2f GB", bytes / kGigabyte);
  if (bytes >= 10'000) return absl::StrFormat("%.2f MB", bytes / 1e6);
  return absl::StrFormat("%d B", bytes);
}

std::string Parameters(int64_t count) {
  return count >= 100'000'000 ? absl::StrFormat("%.2f B", count / 1e9) : absl::StrFormat("%.2f M", count / 1e6);
}

std::string Percent(int64_t part, int64_t whole) {
  return absl::StrFormat("%5.1f %%", whole == 0 ? 0.0 : 100.0 * part / whole);
}

void Line(const char* title, const std::string& text) { std::printf("%-14s  %s\n", title, text.c_str()); }

void PrintModel(const Checkpoint& checkpoint, const CheckpointSummary& summary) {
  const ModelConfig& config = checkpoint.config();
  std::printf("%s\n\n", checkpoint.directory().c_str());
  Line("architecture", absl::StrFormat("%s: %d layers, hidden %d, %d heads", config.architecture,
                                       config.num_hidden_layers, config.hidden_size, config.num_attention_heads));
  if (config.n_routed_experts > 0) {
    Line("experts", absl::StrFormat("%d routed in %d groups, %d per token; %d shared", config.n_routed_experts,
                                    config.n_group, config.num_experts_per_tok, config.n_shared_experts));
  }
  Line("context", absl::StrFormat("%s tokens%s", Grouped(config.max_position_embeddings),
                                  config.yarn ? absl::StrFormat(" (YaRN, factor %g over %s)", config.yarn->factor,
                                                                Grouped(config.yarn->original_max_position_embeddings))
                                              : ""));
  Line("parameters", absl::StrFormat("%s, of which %s work on each token", Parameters(summary.num_parameters),
                                     Parameters(summary.num_active_parameters)));
  Line("MTP", summary.bytes.mtp == 0
                  ? "none"
                  : absl::StrFormat("%d layer, %s parameters of its own (not needed to decode)",
                                    config.num_nextn_predict_layers, Parameters(summary.num_mtp_parameters)));
  std::string dtypes;
  for (const auto& [dtype, bytes] : summary.bytes_by_dtype) {
    absl::StrAppend(&dtypes, dtypes.empty() ? "" : ", ", dtype, " ", Bytes(bytes));
  }
  Line("stored as", dtypes);
  Line("files", absl::StrFormat("%s, with %s tensors", Grouped(static_cast<int64_t>(checkpoint.files().size())),
                                Grouped(checkpoint.num_tensors())));
  Line("manifest", absl::StrFormat("%016x", checkpoint.manifest_hash()));
}

void PrintGroups(const CheckpointSummary& summary) {
  const int64_t main_bytes = summary.bytes.total() - summary.bytes.mtp;
  std::printf("\n%-14s  %12s  %7s\n", "bytes", "stored", "share");
  for (const Group& group : kGroups) {
    const int64_t bytes = summary.bytes.*group.bytes;
    if (bytes > 0)
      std::printf("%-14s  %12s  %s\n", group.title, Bytes(bytes).c_str(), Percent(bytes, main_bytes).c_str());
  }
  std::printf("%-14s  %12s  = %.2f GiB\n", "main model", Bytes(main_bytes).c_str(),
              static_cast<double>(main_bytes) / kGibibyte);
  if (summary.bytes.mtp > 0) {
    std::printf("%-14s  %12s  of which %s repeat the embedding and the head\n", "MTP", Bytes(summary.bytes.mtp).c_str(),
                Bytes(summary.mtp_duplicate_bytes).c_str());
  }
}

void PrintCache(const ModelConfig& config, const CheckpointSummary& summary) {
  std::printf("\n");
  Line("KV cache", absl::StrFormat("%s bytes per token (%d layers of %d values in BF16): %s tokens per GiB",
                                   Grouped(summary.kv_bytes_per_token), config.num_hidden_layers, config.cache_width(),
                                   Grouped(kGibibyte / summary.kv_bytes_per_token)));
}

bool HoldTheSame(const RankShare& a, const RankShare& b) {
  return a.num_experts == b.num_experts && a.bytes.total() == b.bytes.total();
}

// Neighbours that hold the same share a line.
void PrintRanks(const InspectOptions& options, const std::vector<RankShare>& shares) {
  std::printf("\ntp %d x dp %d: %d rank%s; each of a tp group caches the same tokens, each dp group its own\n",
              options.tp, options.dp, options.tp * options.dp, shares.size() == 1 ? "" : "s");
  std::printf("%-9s  %9s  %12s  %12s  %12s  %12s\n", "rank", "experts", "routed", "attention", "other", "weights");
  for (size_t first = 0; first < shares.size();) {
    size_t last = first;
    while (last + 1 < shares.size() && HoldTheSame(shares[first], shares[last + 1])) ++last;
    const ByteSums& bytes = shares[first].bytes;
    const std::string ranks = first == last ? absl::StrCat(first) : absl::StrCat(first, "-", last);
    std::printf("%-9s  %9d  %12s  %12s  %12s  %12s\n", ranks.c_str(), shares[first].num_experts,
                Bytes(bytes.routed_experts).c_str(), Bytes(bytes.attention).c_str(),
                Bytes(bytes.total() - bytes.routed_experts - bytes.attention).c_str(), Bytes(bytes.total()).c_str());
    first = last + 1;
  }
}

// ---- JSON for machines ----

nlohmann::json ToJson(const ByteSums& sums) {
  nlohmann::json object;
  for (const Group& group : kGroups) object[group.key] = sums.*group.bytes;
  object["mtp"] = sums.mtp;
  object["total"] = sums.total();
  return object;
}

nlohmann::json ToJson(const Checkpoint& checkpoint, const CheckpointSummary& summary, const InspectOptions& options,
                      const std::vector<RankShare>& shares) {
  const ModelConfig& config = checkpoint.config();
  nlohmann::json ranks = nlohmann::json::array();
  for (const RankShare& share : shares) {
    ranks.push_back({{"rank", share.rank}, {"num_experts", share.num_experts}, {"bytes", ToJson(share.bytes)}});
  }
  return {{"directory", checkpoint.directory()},
          {"architecture", config.architecture},
          {"model_type", config.model_type},
          {"num_hidden_layers", config.num_hidden_layers},
          {"max_position_embeddings", config.max_position_embeddings},
          {"vocab_size", config.vocab_size},
          {"manifest_hash", absl::StrFormat("%016x", checkpoint.manifest_hash())},
          {"num_files", checkpoint.files().size()},
          {"num_tensors", checkpoint.num_tensors()},
          {"num_parameters", summary.num_parameters},
          {"num_active_parameters", summary.num_active_parameters},
          {"num_mtp_parameters", summary.num_mtp_parameters},
          {"mtp_duplicate_bytes", summary.mtp_duplicate_bytes},
          {"bytes", ToJson(summary.bytes)},
          {"bytes_by_dtype", nlohmann::json::object_t(summary.bytes_by_dtype.begin(), summary.bytes_by_dtype.end())},
          {"kv_bytes_per_token", summary.kv_bytes_per_token},
          {"kv_tokens_per_gib", kGibibyte / summary.kv_bytes_per_token},
          {"layout", {{"tp", options.tp}, {"dp", options.dp}}},
          {"ranks", ranks}};
}

// ---- the command ----

absl::Status CheckAllScales(const Checkpoint& checkpoint) {
  for (const worker::TensorSpec& spec : checkpoint.table()) {
    if (!spec.may_be_fp8) continue;
    absl::Status status = checkpoint.CheckScales(spec, {0, spec.shape[0], 0, spec.shape[1]});
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

std::vector<RankShare> Shares(const Checkpoint& checkpoint, const InspectOptions& options) {
  const int32_t world_size = options.tp * options.dp;
  const ExpertMap experts = ExpertMap::Contiguous(checkpoint.config().n_routed_experts, world_size);
  std::vector<RankShare> shares(world_size);
  for (int32_t rank = 0; rank < world_size; ++rank) {
    shares[rank] = {rank, static_cast<int32_t>(experts.ExpertsOn(rank).size()),
                    RankBytes(checkpoint, {options.tp, options.dp, rank}, experts)};
  }
  return shares;
}

absl::Status Inspect(const InspectOptions& options) {
  const auto opened = Checkpoint::Open(options.directory, {.needs_data = !options.headers_only});
  if (!opened.ok()) return opened.status();
  const Checkpoint& checkpoint = **opened;
  absl::Status status = CheckLayout(checkpoint.config(), {options.tp, options.dp, 0});
  if (status.ok() && options.check_scales) status = CheckAllScales(checkpoint);
  if (!status.ok()) return status;

  const CheckpointSummary summary = Summarize(checkpoint);
  const std::vector<RankShare> shares = Shares(checkpoint, options);
  if (options.json) {
    std::printf("%s\n", ToJson(checkpoint, summary, options, shares).dump(2).c_str());
    return absl::OkStatus();
  }
  PrintModel(checkpoint, summary);
  PrintGroups(summary);
  PrintCache(checkpoint.config(), summary);
  PrintRanks(options, shares);
  return absl::OkStatus();
}

}  // namespace

void AddInspect(CLI::App& app) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command = app.add_subcommand("inspect", "Say what a model directory holds and what each rank would hold");
  command->add_option("directory", options->directory, "A HuggingFace directory: config.json and *.safetensors")
      ->required();
  command->add_option("--tp", options->tp, "Attention tensor-parallel size")->check(CLI::Range(1, 4096));
  command->add_option("--dp", options->dp, "Attention data-parallel size")->check(CLI::Range(1, 4096));
  command->add_flag("--json", options->json, "Print one JSON object");
  auto* headers_only = command->add_flag("--headers-only", options->headers_only,
                                         "Accept files shorter than their headers say (a download in progress)");
  command->add_flag("--check-scales", options->check_scales, "Read every FP8 scale and check that it is finite")
      ->excludes(headers_only);
  command->footer(
      "Only the files' headers are read, so it takes a second for any size.\n"
      "Example: weir inspect /models/DeepSeek-V3 --tp 8");
  command->callback([options] {
    const absl::Status status = Inspect(*options);
    if (status.ok()) return;
    std::fprintf(stderr, "weir inspect: %s\n", std::string(status.message()).c_str());
    throw CLI::RuntimeError(1);
  });
}

}  // namespace weir::tools
