#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

// What a load test measured, and its numbers.  Times are seconds since the start of the test.

namespace weir::tools {

struct RequestRecord {
  double due_s = 0;  // when it should have been sent: latencies count from here, so a client that is late hides nothing
  double sent_s = 0;  // when it was
  std::optional<double> first_token_s, last_token_s;
  double ended_s = 0;
  int64_t num_prompt_tokens = 0;
  int64_t num_output_tokens = 0;
  std::vector<double> gaps_s;  // between messages with tokens
  std::string error;           // empty: served
  bool was_cancelled = false;  // by the end of an interrupted test: says nothing about the server
};

struct Percentiles {
  double mean = 0, p50 = 0, p90 = 0, p99 = 0, max = 0;
};
// By the nearest rank: p99 of 100 values is the 99th.  All 0 without values.
Percentiles PercentilesOf(std::vector<double> values);

struct Slo {
  double ttft_ms = 0, tpot_ms = 0;  // 0: no bound
};

struct LoadReport {
  double wall_s = 0;                          // from the first request that was due to the last that ended
  int64_t num_requests = 0, num_failed = 0;   // that ended by themselves
  int64_t num_cancelled = 0, num_unsent = 0;  // because the test was interrupted; in none of the other numbers
  int64_t num_prompt_tokens = 0, num_output_tokens = 0;  // of served requests
  Percentiles ttft_ms, tpot_ms, itl_ms, e2e_ms;          // of served requests
  double max_late_ms = 0;                                // how late the client itself sent
  int64_t num_good = 0;                                  // served within the SLO
  std::vector<std::pair<std::string, int64_t>> errors;   // how often each, most frequent first

  double requests_per_s() const { return wall_s > 0 ? static_cast<double>(num_requests - num_failed) / wall_s : 0; }
  double output_tokens_per_s() const { return wall_s > 0 ? static_cast<double>(num_output_tokens) / wall_s : 0; }
  double prompt_tokens_per_s() const { return wall_s > 0 ? static_cast<double>(num_prompt_tokens) / wall_s : 0; }
  double good_per_s() const { return wall_s > 0 ? static_cast<double>(num_good) / wall_s : 0; }
};

// Of a whole test; `num_unsent` is for the caller to say.
LoadReport Summarize(const std::vector<RequestRecord>& records, const Slo& slo);
std::string Table(const LoadReport& report, const Slo& slo);
nlohmann::json ToJson(const LoadReport& report, const Slo& slo);
// Every request, in the order of their sending: what the report can be made from again, but for ITL.
nlohmann::json ToJson(const std::vector<RequestRecord>& records);

}  // namespace weir::tools
