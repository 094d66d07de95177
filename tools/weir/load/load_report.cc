#include "tools/weir/load/load_report.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <map>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace weir::tools {
namespace {

using nlohmann::json;

double TpotMs(const RequestRecord& record) {
  if (record.num_output_tokens < 2) return 0;
  return 1e3 * (*record.last_token_s - *record.first_token_s) / static_cast<double>(record.num_output_tokens - 1);
}

bool IsGood(const RequestRecord& record, const Slo& slo) {
  const double ttft_ms = 1e3 * (*record.first_token_s - record.due_s);
  return (slo.ttft_ms == 0 || ttft_ms <= slo.ttft_ms) && (slo.tpot_ms == 0 || TpotMs(record) <= slo.tpot_ms);
}

bool IsServed(const RequestRecord& record) { return record.error.empty() && record.first_token_s.has_value(); }

std::vector<std::pair<std::string, int64_t>> CountErrors(const std::vector<RequestRecord>& records) {
  std::map<std::string, int64_t> counts;
  for (const RequestRecord& record : records) {
    if (!IsServed(record)) ++counts[record.error.empty() ? "no token came" : record.error];
  }
  std::vector<std::pair<std::string, int64_t>> errors(counts.begin(), counts.end());
  std::stable_sort(errors.begin(), errors.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  return errors;
}

json ToJson(const Percentiles& p) {
  return {{"mean", p.mean}, {"p50", p.p50}, {"p90", p.p90}, {"p99", p.p99}, {"max", p.max}};
}

std::string Row(const char* name, const Percentiles& p) {
  return absl::StrFormat("%-6s %10.1f %10.1f %10.1f %10.1f %10.1f\n", name, p.mean, p.p50, p.p90, p.p99, p.max);
}

}  // namespace

Percentiles PercentilesOf(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const auto at = [&](double part) {
    const auto rank = static_cast<size_t>(std::ceil(part * static_cast<double>(values.size())));
    return values[std::clamp<size_t>(rank, 1, values.size()) - 1];
  };
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  return {sum / static_cast<double>(values.size()), at(0.5), at(0.9), at(0.99), values.back()};
}

LoadReport Summarize(const std::vector<RequestRecord>& all, const Slo& slo) {
  std::vector<RequestRecord> records;
  std::copy_if(all.begin(), all.end(), std::back_inserter(records), [](const auto& r) { return !r.was_cancelled; });
  LoadReport report;
  report.num_cancelled = std::ssize(all) - std::ssize(records);
  if (records.empty()) return report;
  std::vector<double> ttft, tpot, itl, e2e;
  double first_s = records.front().due_s, last_s = 0;
  for (const RequestRecord& record : records) {
    first_s = std::min(first_s, record.due_s);
    last_s = std::max(last_s, record.ended_s);
    report.max_late_ms = std::max(report.max_late_ms, 1e3 * (record.sent_s - record.due_s));
    if (!IsServed(record)) continue;
    report.num_prompt_tokens += record.num_prompt_tokens;
    report.num_output_tokens += record.num_output_tokens;
    report.num_good += IsGood(record, slo) ? 1 : 0;
    ttft.push_back(1e3 * (*record.first_token_s - record.due_s));
    e2e.push_back(1e3 * (record.ended_s - record.due_s));
    if (record.num_output_tokens > 1) tpot.push_back(TpotMs(record));
    for (const double gap_s : record.gaps_s) itl.push_back(1e3 * gap_s);
  }
  report.wall_s = last_s - first_s;
  report.num_requests = static_cast<int64_t>(records.size());
  report.num_failed = report.num_requests - static_cast<int64_t>(ttft.size());
  report.errors = CountErrors(records);
  report.ttft_ms = PercentilesOf(std::move(ttft));
  report.tpot_ms = PercentilesOf(std::move(tpot));
  report.itl_ms = PercentilesOf(std::move(itl));
  report.e2e_ms = PercentilesOf(std::move(e2e));
  return report;
}

std::string Table(const LoadReport& report, const Slo& slo) {
  std::string text = absl::StrFormat(
      "%d requests in %.2f s: %.2f requests/s, %.1f output tokens/s, %.1f prompt tokens/s\n\n"
      "ms           mean        p50        p90        p99        max\n",
      report.num_requests, report.wall_s, report.requests_per_s(), report.output_tokens_per_s(),
      report.prompt_tokens_per_s());
  absl::StrAppend(&text, Row("TTFT", report.ttft_ms), Row("TPOT", report.tpot_ms), Row("ITL", report.itl_ms),
                  Row("E2E", report.e2e_ms));
  if (slo.ttft_ms > 0 || slo.tpot_ms > 0) {
    absl::StrAppend(
        &text, absl::StrFormat("\ngoodput %.2f requests/s: %d of %d within TTFT %g ms, TPOT %g ms\n",
                               report.good_per_s(), report.num_good, report.num_requests, slo.ttft_ms, slo.tpot_ms));
  }
  constexpr double kLateMs = 10;
  if (report.max_late_ms > kLateMs) {
    absl::StrAppend(&text, absl::StrFormat("\nthe client was up to %.0f ms late: it is short of processor time, and "
                                           "latencies include that\n",
                                           report.max_late_ms));
  }
  if (report.num_failed > 0) absl::StrAppend(&text, absl::StrFormat("\n%d failed:\n", report.num_failed));
  for (const auto& [error, count] : report.errors) absl::StrAppend(&text, absl::StrFormat("%6d  %s\n", count, error));
  if (report.num_cancelled + report.num_unsent > 0) {
    absl::StrAppend(&text, absl::StrFormat("\ninterrupted: these are the %d requests that had ended; %d more were "
                                           "running and %d were not sent\n",
                                           report.num_requests, report.num_cancelled, report.num_unsent));
  }
  return text;
}

json ToJson(const LoadReport& report, const Slo& slo) {
  json errors = json::object();
  for (const auto& [error, count] : report.errors) errors[error] = count;
  return {{"wall_s", report.wall_s},
          {"num_requests", report.num_requests},
          {"num_failed", report.num_failed},
          {"num_cancelled", report.num_cancelled},
          {"num_unsent", report.num_unsent},
          {"num_prompt_tokens", report.num_prompt_tokens},
          {"num_output_tokens", report.num_output_tokens},
          {"requests_per_s", report.requests_per_s()},
          {"output_tokens_per_s", report.output_tokens_per_s()},
          {"prompt_tokens_per_s", report.prompt_tokens_per_s()},
          {"ttft_ms", ToJson(report.ttft_ms)},
          {"tpot_ms", ToJson(report.tpot_ms)},
          {"itl_ms", ToJson(report.itl_ms)},
          {"e2e_ms", ToJson(report.e2e_ms)},
          {"max_late_ms", report.max_late_ms},
          {"goodput",
           {{"slo_ttft_ms", slo.ttft_ms},
            {"slo_tpot_ms", slo.tpot_ms},
            {"num_good", report.num_good},
            {"requests_per_s", report.good_per_s()}}},
          {"errors", errors}};
}

json ToJson(const std::vector<RequestRecord>& records) {
  json rows = json::array();
  for (const RequestRecord& record : records) {
    json row = {{"due_s", record.due_s},
                {"sent_s", record.sent_s},
                {"ended_s", record.ended_s},
                {"num_prompt_tokens", record.num_prompt_tokens},
                {"num_output_tokens", record.num_output_tokens}};
    if (record.first_token_s) row["first_token_s"] = *record.first_token_s;
    if (record.last_token_s) row["last_token_s"] = *record.last_token_s;
    if (record.was_cancelled) {
      row["was_cancelled"] = true;
    } else if (!record.error.empty()) {
      row["error"] = record.error;
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace weir::tools
