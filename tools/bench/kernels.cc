// Each operation of a backend at the shapes of the benchmark model (hidden 1024, 16 heads, 64 experts of 384, 6 chosen,
// vocabulary 32,256), against what the machine can read and multiply, measured between its rounds.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <regex>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "kernels/backend.h"
#include "kernels/check.h"
#include "kernels/float_formats.h"
#include "tools/bench/ceilings.h"

namespace weir::tools {
namespace {

using kernels::Backend;
using kernels::DeviceBuffer;
using kernels::DType;
using kernels::HostMatrix;
using kernels::HostMlp;
using kernels::ScaleFormat;
using kernels::TensorView;

constexpr int64_t kHidden = 1024, kLatents = 512, kQueryRank = 512, kHeads = 16, kNope = 128, kRope = 64, kValue = 128;
constexpr int64_t kExperts = 64, kChosen = 6, kIntermediate = 384, kDense = 4096, kVocabulary = 32256;
constexpr int64_t kBlockSize = 64;

struct Options {
  int32_t threads = 0;
  std::string isa;
  std::string filter = ".*";
  std::string json;
  int32_t rounds = 7;
  double round_ms = 15;
  Clock clock = Clock::kWall;
};

struct Row {
  std::string op, dtype;
  int64_t rows = 0;
  int64_t context = 0;
  double us = 0.0;
  double bytes = 0.0, flop = 0.0;
};

// One thing to measure.  `run(i)` works on the i-th of several copies of the weights, so that they come from memory and
// not from a cache.
struct Case {
  Row row;
  std::function<void(int64_t)> run;
  std::vector<double> us;
};

template <typename T>
T Must(absl::StatusOr<T> value) {
  WEIR_CHECK(value.ok(), std::string(value.status().message()));
  return *std::move(value);
}

// Weights as a checkpoint holds them.
class HostWeights {
 public:
  HostMatrix Make(DType dtype, int64_t rows, int64_t cols) {
    const size_t num_bytes = static_cast<size_t>(rows * cols * kernels::SizeOf(dtype));
    storage_.emplace_back(num_bytes);
    char* data = storage_.back().data();
    for (int64_t i = 0; i < rows * cols; ++i) {
      const uint64_t bits = engine_();
      const float value = (static_cast<float>(bits >> 40) * 0x1p-24f - 0.5f) * 0.1f;
      if (dtype == DType::kBF16) {
        const uint16_t half = kernels::FloatToBFloat16(value);
        std::memcpy(data + 2 * i, &half, 2);
      } else if (dtype == DType::kF32) {
        std::memcpy(data + 4 * i, &value, 4);
      } else {
        data[i] = static_cast<char>(kernels::FloatToE4M3(value * 1000.0f));
      }
    }
    HostMatrix matrix{data, dtype, rows, cols, cols};
    if (dtype == DType::kF8E4M3) {
      scales_.emplace_back(static_cast<size_t>((rows + 127) / 128 * ((cols + 127) / 128)), 1e-3f);
      matrix.scales = scales_.back().data();
      matrix.scales_stride = (cols + 127) / 128;
    }
    return matrix;
  }
  void Clear() { storage_.clear(), scales_.clear(); }

 private:
  std::vector<std::vector<char>> storage_;
  std::vector<std::vector<float>> scales_;
  std::mt19937_64 engine_{1};
};

// Tensors and weights on a backend, and the cases over them.
class Bench {
 public:
  Bench(Backend& backend, const Options& options) : backend_(backend), filter_(options.filter) {}

  void AddAll() {
    for (const DType dtype : {DType::kBF16, DType::kF8E4M3}) {
      for (const int64_t rows : {1, 4, 8, 16, 32, 128, 512}) {
        AddLinear("q_b", dtype, rows, kQueryRank, kHeads * (kNope + kRope));
        AddLinear("o", dtype, rows, kHeads * kValue, kHidden);
        AddMlp("shared", dtype, rows, kIntermediate);
        AddMlp("dense", dtype, rows, kDense);
        AddExperts(dtype, rows);
      }
    }
    for (const int64_t rows : {1, 8, 32}) {
      AddLinear("head", DType::kBF16, rows, kHidden, kVocabulary);
      AddLinear("router", DType::kF32, rows, kHidden, kExperts);
      for (const int64_t context : {160, 4096}) AddGenerated(rows, context);
    }
    AddPrompt(512, 0);
    AddPrompt(512, 3584);
    for (const int64_t rows : {1, 32, 512}) AddRows(rows);
  }

  std::vector<Case>& cases() { return cases_; }

 private:
  bool Wanted(const std::string& name) const { return std::regex_search(name, filter_); }

  TensorView Tensor(int64_t rows, int64_t cols, DType dtype = DType::kF32) {
    buffers_.push_back(Must(backend_.Allocate(rows * cols * kernels::SizeOf(dtype))));
    const TensorView view = buffers_.back().View(dtype, rows, cols);
    std::vector<char> host(static_cast<size_t>(rows * cols * kernels::SizeOf(dtype)));
    std::mt19937_64 engine(7);
    for (int64_t i = 0; i < rows * cols; ++i) {
      const float value = static_cast<float>(engine() >> 40) * 0x1p-23f - 1.0f;
      const uint16_t half = kernels::FloatToBFloat16(value);
      dtype == DType::kF32 ? std::memcpy(host.data() + 4 * i, &value, 4) : std::memcpy(host.data() + 2 * i, &half, 2);
    }
    backend_.CopyToDevice(view, host.data());
    return view;
  }

  // Copies of one weight: enough that going through them all overflows the caches.
  static int64_t NumCopies(int64_t num_bytes) { return std::clamp<int64_t>((int64_t{192} << 20) / num_bytes, 1, 64); }

  void Add(Row row, std::function<void(int64_t)> run) { cases_.push_back({std::move(row), std::move(run), {}}); }

  void AddLinear(const std::string& name, DType dtype, int64_t rows, int64_t inputs, int64_t outputs) {
    if (!Wanted(name)) return;
    auto weights = std::make_shared<std::vector<std::unique_ptr<kernels::LinearWeight>>>();
    const HostMatrix matrix = host_.Make(dtype, outputs, inputs);
    const int64_t num_bytes = outputs * inputs * kernels::SizeOf(dtype);
    for (int64_t i = 0; i < NumCopies(num_bytes); ++i) {
      weights->push_back(Must(backend_.PackLinear(matrix, ScaleFormat::kF32)));
    }
    host_.Clear();
    const TensorView x = Tensor(rows, inputs), out = Tensor(rows, outputs);
    Add({"linear " + name, std::string(Name(dtype)), rows, 0, 0.0, static_cast<double>(num_bytes),
         2.0 * rows * inputs * outputs},
        [=, this](int64_t i) { backend_.Linear(out, x, *(*weights)[i % weights->size()]); });
  }

  HostMlp MakeMlp(DType dtype, int64_t intermediate) {
    return {host_.Make(dtype, intermediate, kHidden), host_.Make(dtype, intermediate, kHidden),
            host_.Make(dtype, kHidden, intermediate)};
  }

  void AddMlp(const std::string& name, DType dtype, int64_t rows, int64_t intermediate) {
    if (!Wanted(name)) return;
    auto weights = std::make_shared<std::vector<std::unique_ptr<kernels::MlpWeight>>>();
    const int64_t num_weights = 3 * intermediate * kHidden;
    const HostMlp mlp = MakeMlp(dtype, intermediate);
    for (int64_t i = 0; i < NumCopies(num_weights * kernels::SizeOf(dtype)); ++i) {
      weights->push_back(Must(backend_.PackMlp(mlp, ScaleFormat::kF32)));
    }
    host_.Clear();
    const TensorView x = Tensor(rows, kHidden), out = Tensor(rows, kHidden);
    Add({"mlp " + name, std::string(Name(dtype)), rows, 0, 0.0,
         static_cast<double>(num_weights * kernels::SizeOf(dtype)), 2.0 * rows * num_weights},
        [=, this](int64_t i) { backend_.Mlp(out, x, *(*weights)[i % weights->size()]); });
  }

  void AddExperts(DType dtype, int64_t rows) {
    if (!Wanted("experts")) return;
    std::vector<HostMlp> mlps;
    std::vector<int32_t> ids;
    for (int32_t e = 0; e < kExperts; ++e) {
      mlps.push_back(MakeMlp(dtype, kIntermediate));
      ids.push_back(e);
    }
    auto weights = std::make_shared<std::vector<std::unique_ptr<kernels::ExpertsWeight>>>();
    for (int i = 0; i < 2; ++i) weights->push_back(Must(backend_.PackExperts(mlps, ids, ScaleFormat::kF32)));
    host_.Clear();

    // Several choices, so that few rows do not always find the same experts in cache.
    constexpr int64_t kChoices = 16;
    std::mt19937_64 engine(3);
    std::vector<TensorView> choices;
    double num_experts = 0.0;
    for (int64_t c = 0; c < kChoices; ++c) {
      std::vector<int32_t> chosen;
      std::vector<bool> is_used(kExperts);
      for (int64_t t = 0; t < rows; ++t) {
        std::shuffle(ids.begin(), ids.end(), engine);
        std::sort(ids.begin(), ids.begin() + kChosen);
        chosen.insert(chosen.end(), ids.begin(), ids.begin() + kChosen);
        for (int64_t k = 0; k < kChosen; ++k) is_used[ids[k]] = true;
      }
      num_experts += static_cast<double>(std::count(is_used.begin(), is_used.end(), true)) / kChoices;
      choices.push_back(Tensor(rows, kChosen, DType::kF32));
      choices.back().dtype = DType::kI32;
      backend_.CopyToDevice(choices.back(), chosen.data());
    }
    const TensorView x = Tensor(rows, kHidden), out = Tensor(rows, kHidden), shares = Tensor(rows, kChosen);
    const double num_weights = 3.0 * kIntermediate * kHidden;
    Add({"experts", std::string(Name(dtype)), rows, 0, 0.0, num_experts * num_weights * kernels::SizeOf(dtype),
         2.0 * rows * kChosen * num_weights},
        [=, this](int64_t i) {
          backend_.Experts(out, x, choices[i % kChoices], shares, *(*weights)[i / kChoices % 2], nullptr);
        });
  }

  kernels::MlaShape Shape() const { return {kHeads, kLatents, kNope, kRope, kValue, 0.0721687836f}; }

  // A batch of sequences with `context` tokens in the cache before their rows.
  std::unique_ptr<kernels::DeviceBatch> MakeBatch(int64_t num_sequences, int64_t context, int64_t prompt_rows,
                                                  int64_t generated_rows) {
    const int64_t length = context + prompt_rows + generated_rows, blocks = (length + kBlockSize - 1) / kBlockSize;
    std::vector<int32_t> ids, positions, table, sample_rows;
    std::vector<int64_t> slots;
    std::vector<kernels::SequenceRows> sequences;
    for (int64_t s = 0; s < num_sequences; ++s) {
      sequences.push_back({static_cast<int32_t>(positions.size()), static_cast<int32_t>(prompt_rows),
                           static_cast<int32_t>(generated_rows), static_cast<int32_t>(context),
                           static_cast<int32_t>(s * blocks), static_cast<int32_t>(blocks)});
      for (int64_t b = 0; b < blocks; ++b) table.push_back(static_cast<int32_t>(s * blocks + b));
      for (int64_t p = context; p < length; ++p) {
        ids.push_back(0);
        positions.push_back(static_cast<int32_t>(p));
        slots.push_back(s * blocks * kBlockSize + p);
      }
    }
    std::unique_ptr<kernels::DeviceBatch> batch = backend_.NewBatch();
    backend_.Upload(*batch, {ids, positions, slots, sequences, table, sample_rows});
    return batch;
  }

  static kernels::LatentCache Cache(TensorView rows) { return {rows, kBlockSize}; }

  void AddPrompt(int64_t rows, int64_t context) {
    if (!Wanted("prompt attention")) return;
    const auto weight = std::shared_ptr<kernels::LinearWeight>(
        Must(backend_.PackLinear(host_.Make(DType::kBF16, kHeads * (kNope + kValue), kLatents), ScaleFormat::kF32)));
    host_.Clear();
    const std::shared_ptr<kernels::DeviceBatch> batch = MakeBatch(1, context, rows, 0);
    const TensorView q = Tensor(rows, kHeads * (kNope + kRope)), out = Tensor(rows, kHeads * kValue);
    const TensorView cache = Tensor(context + rows, kLatents + kRope, DType::kBF16);
    const double pairs = static_cast<double>(rows) * (context + (rows + 1) / 2.0);
    const double expanded = static_cast<double>(context + rows) * kHeads * (kNope + kValue) * kLatents;
    Add({"prompt attention", "BF16", rows, context, 0.0, 0.0,
         2.0 * (pairs * kHeads * (kNope + kRope + kValue) + expanded)},
        [=, this](int64_t) { backend_.PromptAttention(out, q, Cache(cache), *batch, *weight, Shape()); });
  }

  void AddGenerated(int64_t sequences, int64_t context) {
    if (!Wanted("generated attention")) return;
    const auto weight = std::shared_ptr<kernels::AbsorbedWeight>(
        Must(backend_.PackAbsorbed(host_.Make(DType::kBF16, kHeads * (kNope + kValue), kLatents), Shape())));
    host_.Clear();
    const std::shared_ptr<kernels::DeviceBatch> batch = MakeBatch(sequences, context - 1, 0, 1);
    const TensorView q = Tensor(sequences, kHeads * (kNope + kRope)), out = Tensor(sequences, kHeads * kValue);
    const int64_t cache_rows = sequences * ((context + kBlockSize - 1) / kBlockSize) * kBlockSize;
    const TensorView cache = Tensor(cache_rows, kLatents + kRope, DType::kBF16);
    const double absorbed = static_cast<double>(kHeads * (kNope + kValue) * kLatents);
    Add({"generated attention", "BF16", sequences, context, 0.0,
         static_cast<double>(sequences * context * (kLatents + kRope) * 2) + 2.0 * absorbed,
         2.0 * static_cast<double>(sequences) *
             (absorbed + static_cast<double>(context * kHeads * (2 * kLatents + kRope)))},
        [=, this](int64_t) { backend_.GeneratedAttention(out, q, Cache(cache), *batch, *weight, Shape()); });
  }

  void AddRows(int64_t rows) {
    if (!Wanted("rms_norm")) return;
    const TensorView x = Tensor(rows, kHidden), delta = Tensor(rows, kHidden), out = Tensor(rows, kHidden);
    const TensorView weight = Tensor(1, kHidden);
    Add({"add_rms_norm", "F32", rows, 0, 0.0, 16.0 * rows * kHidden, 5.0 * rows * kHidden},
        [=, this](int64_t) { backend_.AddRmsNorm(out, x, delta, weight, 1e-6f); });
  }

  Backend& backend_;
  std::regex filter_;
  HostWeights host_;
  std::vector<DeviceBuffer> buffers_;
  std::vector<Case> cases_;
};

double MicrosecondsOf(const Case& c, Backend& backend, const Options& options, int64_t& next) {
  const auto now = [&] { return Seconds(options.clock) * 1e6; };
  const double end = now() + options.round_ms * 1000;
  std::vector<double> us;
  do {
    const double start = now();
    c.run(next++);
    WEIR_CHECK(backend.Synchronize().ok());
    us.push_back(now() - start);
  } while (now() < end);
  return Median(us);
}

struct Ceilings {
  double gb_per_s = 0.0, gflop_per_s = 0.0;
};

void Print(const Row& row, const Ceilings& ceilings) {
  const double gb = row.bytes / row.us / 1e3, gflop = row.flop / row.us / 1e3;
  std::printf("%-20s %-8s %5lld %6lld %10.1f %8.1f %5.0f%% %9.1f %5.0f%%\n", row.op.c_str(), row.dtype.c_str(),
              static_cast<long long>(row.rows), static_cast<long long>(row.context), row.us, gb,
              100 * gb / ceilings.gb_per_s, gflop, 100 * gflop / ceilings.gflop_per_s);
}

bool WriteJson(const std::string& path, const std::string& detail, std::string_view instruction,
               const std::vector<Case>& cases, const Ceilings& ceilings) {
  nlohmann::json rows = nlohmann::json::array();
  for (const Case& c : cases) {
    const Row& row = c.row;
    const double gb = row.bytes / row.us / 1e3, gflop = row.flop / row.us / 1e3;
    rows.push_back({{"op", row.op},
                    {"dtype", row.dtype},
                    {"rows", row.rows},
                    {"context", row.context},
                    {"us", row.us},
                    {"gb_per_s", gb},
                    {"gflop_per_s", gflop},
                    {"share_of_read", gb / ceilings.gb_per_s},
                    {"share_of_arithmetic", gflop / ceilings.gflop_per_s}});
  }
  const nlohmann::json document = {
      {"machine", MachineName()},
      {"backend", detail},
      {"ceilings",
       {{"read_gb_per_s", ceilings.gb_per_s}, {"gflop_per_s", ceilings.gflop_per_s}, {"instruction", instruction}}},
      {"rows", rows}};
  std::ofstream file(path);
  file << document.dump(2) << "\n";
  return file.good();
}

int Run(const Options& options) {
  if (options.clock == Clock::kThread && options.threads != 1) {
    std::fprintf(stderr, "bench_kernels: --cpu-time counts one thread; add --threads 1\n");
    return 2;
  }
  const absl::StatusOr<std::unique_ptr<Backend>> backend = kernels::NewCpuBackend({options.threads, options.isa});
  if (!backend.ok()) {
    std::fprintf(stderr, "bench_kernels: %s\n", std::string(backend.status().message()).c_str());
    return 1;
  }
  const std::string detail((*backend)->detail());
  const std::string isa = detail.substr(0, detail.find(','));
  const int32_t threads = std::stoi(detail.substr(detail.find(',') + 1));
  ReadProbe read(threads, options.clock);
  ArithmeticProbe arithmetic(threads, isa, options.clock);
  Bench bench(**backend, options);
  std::fprintf(stderr, "packing weights\n");
  bench.AddAll();

  std::vector<double> gb, gflop;
  std::vector<int64_t> next(bench.cases().size());
  for (int32_t round = 0; round < options.rounds; ++round) {
    std::fprintf(stderr, "\rround %d of %d ", round + 1, options.rounds);
    for (size_t i = 0; i < bench.cases().size(); ++i) {
      if (i % 16 == 0) gb.push_back(read.Run()), gflop.push_back(arithmetic.Run());
      Case& c = bench.cases()[i];
      c.us.push_back(MicrosecondsOf(c, **backend, options, next[i]));
    }
  }
  const Ceilings ceilings{Median(gb), Median(gflop)};
  std::fprintf(stderr, "\r");
  std::printf("%s; %s\nread %.1f GB/s, %s %.0f GFLOP/s (medians of %zu probes between the rounds)\n\n",
              MachineName().c_str(), detail.c_str(), ceilings.gb_per_s, std::string(arithmetic.instruction()).c_str(),
              ceilings.gflop_per_s, gb.size());
  std::printf("%-20s %-8s %5s %6s %10s %8s %6s %9s %6s\n", "operation", "dtype", "rows", "ctx", "us", "GB/s", "read",
              "GFLOP/s", "peak");
  for (Case& c : bench.cases()) {
    c.row.us = Median(c.us);
    Print(c.row, ceilings);
  }
  if (!options.json.empty() && !WriteJson(options.json, detail, arithmetic.instruction(), bench.cases(), ceilings)) {
    std::fprintf(stderr, "bench_kernels: cannot write %s\n", options.json.c_str());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace weir::tools

int main(int argc, char** argv) {
  CLI::App app(
      "Operations of the CPU backend: microseconds, GB/s of weights, GFLOP/s, and their shares of what this machine "
      "reads "
      "and multiplies.\n\nExample: bench_kernels --filter experts --isa avx512 --json kernels.json");
  weir::tools::Options options;
  app.add_option("--threads", options.threads, "threads (default: all processors)");
  app.add_option("--isa", options.isa, "instruction set: avx2, avx512, avx512-bf16, portable (default: the fastest)");
  app.add_option("--filter", options.filter, "only operations whose name matches this regular expression");
  app.add_option("--rounds", options.rounds, "interleaved rounds; the median counts (default 7)")
      ->check(CLI::Range(1, 1000));
  app.add_option("--round-ms", options.round_ms, "milliseconds of one operation in one round (default 15)");
  app.add_flag_callback(
      "--cpu-time", [&] { options.clock = weir::tools::Clock::kThread; },
      "count the processor time of one thread instead of the clock: for a machine that others use as well");
  app.add_option("--json", options.json, "write the table to this file as well");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return weir::tools::Run(options);
}
