#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "tests/sim/search.h"
#include "tests/sim/trace.h"

// The simulator as a program: many seeds for CI, one seed for a person.

namespace weir::sim {
namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  sim_test --first-seed 1 --seeds 1000              a thousand worlds of 2,000 events\n"
    "  sim_test --seed 42 --log                          one world, a line for every event\n"
    "  sim_test --seed 42 --events 311 --without cancel  what a failure's report says to run\n"
    "  sim_test --seed 42 --describe                     what the seed draws\n";

struct Flags {
  uint64_t first_seed = 1;
  uint64_t seed = 0;
  int64_t num_seeds = 100;
  int64_t num_events = 2000;
  std::vector<std::string> without;
  int32_t check_every = 1;
  std::string program;  // as it was called
  int32_t tail = 40;
  double cpu_seconds = 0;
  bool log = false;
  bool describe = false;
  bool no_shrink = false;
  bool summary = false;
  bool expect_failure = false;
};

FaultSet ParseFaults(const std::vector<std::string>& names) {
  FaultSet faults;
  for (const std::string& name : names) {
    int i = 0;
    while (i < kNumFaults && name != Name(static_cast<Fault>(i))) ++i;
    if (i == kNumFaults) throw CLI::ValidationError("--without", "no fault is called '" + name + "'");
    faults.insert(static_cast<Fault>(i));
  }
  return faults;
}

void AddFlags(CLI::App& app, Flags& flags) {
  app.footer(kExamples);
  app.add_option("--first-seed", flags.first_seed, "first of the seeds to run")->capture_default_str();
  app.add_option("--seeds", flags.num_seeds, "how many")->capture_default_str();
  app.add_option("--seed", flags.seed, "run this seed alone");
  app.add_option("--events", flags.num_events, "events of chaos before the world heals")->capture_default_str();
  app.add_option("--without", flags.without, "faults that may not happen (see --describe)")->delimiter(',');
  app.add_option("--check-every", flags.check_every, "calls between two full comparisons of all books")
      ->capture_default_str();
  app.add_option("--cpu-seconds", flags.cpu_seconds, "start no further seed after so much CPU time; 0: never stop");
  app.add_option("--tail", flags.tail, "lines of the log that a failure prints")->capture_default_str();
  app.add_flag("--log", flags.log, "print one line an event (with --seed)");
  app.add_flag("--describe", flags.describe, "print what the seed draws and stop");
  app.add_flag("--no-shrink", flags.no_shrink, "report a failure as it was found");
  app.add_flag("--expect-failure", flags.expect_failure, "succeed if a seed fails: for cores with a planted bug");
  app.add_flag("--summary", flags.summary,
               "end with one line for programs: failed checker seeds events cpu_seconds hash");
}

std::string RerunLine(const RunOptions& run, const Flags& flags) {
  std::string line = absl::StrFormat("%s --seed %d --events %d", flags.program, run.seed, run.num_events);
  if (!run.without.empty()) line += " --without " + run.without.ToString();
  if (run.full_check_every != 1) line += absl::StrFormat(" --check-every %d", run.full_check_every);
  return line + " --log";
}

void PrintFailure(const SearchResult& failure, const SearchOptions& options, const Flags& flags) {
  std::printf("\nFAILED seed %s at event %s: [%s] %s\n", absl::StrFormat("%d", failure.seed).c_str(),
              absl::StrFormat("%d", failure.event).c_str(), failure.violation.checker.c_str(),
              failure.violation.text.c_str());
  RunOptions run;
  run.seed = failure.seed;
  run.num_events = options.num_events;
  run.without = options.without;
  run.full_check_every = options.full_check_every;
  std::printf("Run it again:  %s\n", RerunLine(run, flags).c_str());
  if (flags.no_shrink) return;
  run = Shrink(failure, options);
  std::printf("As short as it gets:  %s\n\n%s\n%s\n", RerunLine(run, flags).c_str(),
              DrawWorld(run.seed, run.without).Describe().c_str(), Trace::Legend());
  std::fflush(stdout);
  const SearchResult shortest = Replay(run, flags.tail);
  std::printf("[%s] %s\n", shortest.violation.checker.c_str(), shortest.violation.text.c_str());
}

int RunLogged(const SearchOptions& options) {
  RunOptions run;
  run.seed = options.first_seed;
  run.num_events = options.num_events;
  run.without = options.without;
  run.full_check_every = options.full_check_every;
  std::printf("%s%s", DrawWorld(run.seed, run.without).Describe().c_str(), Trace::Legend());
  const SearchResult result = Replay(run, 0);
  if (result.has_failed) std::printf("[%s] %s\n", result.violation.checker.c_str(), result.violation.text.c_str());
  return result.has_failed ? 1 : 0;
}

int RunSeeds(SearchOptions options, const Flags& flags) {
  if (isatty(STDERR_FILENO) != 0) {
    options.progress = [&, shown = int64_t{-1}](int64_t num_done) mutable {
      if (num_done == shown) return;
      shown = num_done;
      std::fprintf(stderr, "\r  %lld/%lld seeds ", static_cast<long long>(num_done),
                   static_cast<long long>(options.num_seeds));
    };
  }
  const SearchResult result = Search(options);
  if (options.progress) std::fprintf(stderr, "\r%40s\r", "");
  if (result.has_failed) PrintFailure(result, options, flags);
  std::printf("%s",
              absl::StrFormat(
                  "%d seeds, %d events, %d requests, %d tokens, %d preemptions in %.1f CPU s (%.0f events/s); "
                  "service gap at most %.2f U, class lag at most %.2f of its bound\n",
                  result.num_seeds, result.num_events, result.num_requests, result.num_tokens, result.num_preemptions,
                  result.cpu_seconds, static_cast<double>(result.num_events) / std::max(result.cpu_seconds, 1e-9),
                  result.max_gap_over_u, result.max_class_lag_over_bound)
                  .c_str());
  if (flags.summary) {
    std::printf("%s", absl::StrFormat("summary %d %s %d %d %.2f %016x\n", result.has_failed ? 1 : 0,
                                      result.has_failed ? result.violation.checker : "-", result.num_seeds,
                                      result.num_events, result.cpu_seconds, result.trace_hash)
                          .c_str());
  }
  return result.has_failed == flags.expect_failure ? 0 : 1;
}

int Main(int argc, char** argv) {
  CLI::App app{
      "Runs the scheduler's core against workers and clients made of integers, with faults drawn from a seed."};
  Flags flags;
  flags.program = argv[0];
  AddFlags(app, flags);
  SearchOptions options;
  try {
    app.parse(argc, argv);
    options.without = ParseFaults(flags.without);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  const bool is_single = app.count("--seed") > 0;
  options.first_seed = is_single ? flags.seed : flags.first_seed;
  options.num_seeds = is_single ? 1 : flags.num_seeds;
  options.num_events = flags.num_events;
  options.full_check_every = std::max(1, flags.check_every);
  options.cpu_seconds = flags.cpu_seconds;
  if (flags.describe) {
    std::printf("%s", DrawWorld(options.first_seed, options.without).Describe().c_str());
    return 0;
  }
  return flags.log ? RunLogged(options) : RunSeeds(options, flags);
}

}  // namespace
}  // namespace weir::sim

int main(int argc, char** argv) { return weir::sim::Main(argc, argv); }
