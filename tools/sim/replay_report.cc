#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_format.h"
#include "tools/sim/replay.h"

namespace weir::sim {
namespace {

using nlohmann::ordered_json;

std::string Ms(double ms) {
  if (std::isinf(ms)) return "never";
  return ms >= 10000 ? absl::StrFormat("%.1fs", ms / 1000) : absl::StrFormat("%.0f", ms);
}

// The same tenant when nobody attacked.
const TenantResult* Find(const ReplayResult* alone, const std::string& name) {
  if (alone == nullptr) return nullptr;
  if (name == alone->all.name) return &alone->all;
  const auto found = std::find_if(alone->tenants.begin(), alone->tenants.end(),
                                  [&](const TenantResult& tenant) { return tenant.name == name; });
  return found == alone->tenants.end() ? nullptr : &*found;
}

std::string Ratio(double attacked, double alone) {
  if (std::isinf(attacked)) return std::isinf(alone) ? "-" : "never";
  return alone > 0 && !std::isinf(alone) ? absl::StrFormat("%.2fx", attacked / alone) : "-";
}

void AppendRow(const TenantResult& tenant, const TenantResult* alone, size_t name_width, std::string& text) {
  absl::StrAppendFormat(&text, "%-*s %8d %7d | %7s %7s %7s | %6.1f %6.1f %6.1f | %9.1f %6.1f%% %6d %5.1f%%",
                        static_cast<int>(name_width), tenant.name, tenant.num_requests, tenant.num_refused,
                        Ms(tenant.ttft_ms.p50), Ms(tenant.ttft_ms.p90), Ms(tenant.ttft_ms.p99), tenant.tpot_ms.p50,
                        tenant.tpot_ms.p90, tenant.tpot_ms.p99, tenant.goodput_tokens_per_s, 100 * tenant.share,
                        tenant.num_preemptions, 100 * tenant.hit_rate);
  if (alone != nullptr) {
    absl::StrAppendFormat(&text, " | %8s %8s", Ratio(tenant.ttft_ms.p99, alone->ttft_ms.p99),
                          Ratio(tenant.tpot_ms.p99, alone->tpot_ms.p99));
  }
  text += '\n';
}

ordered_json Json(const Percentiles& percentiles) {
  const auto value = [](double ms) { return std::isinf(ms) ? ordered_json(nullptr) : ordered_json(ms); };
  return {{"p50", value(percentiles.p50)}, {"p90", value(percentiles.p90)}, {"p99", value(percentiles.p99)}};
}

ordered_json Json(const TenantResult& tenant) {
  return {{"name", tenant.name},
          {"requests", tenant.num_requests},
          {"finished", tenant.num_finished},
          {"refused", tenant.num_refused},
          {"ttft_ms", Json(tenant.ttft_ms)},
          {"tpot_ms", Json(tenant.tpot_ms)},
          {"goodput_tokens_per_s", tenant.goodput_tokens_per_s},
          {"share", tenant.share},
          {"preemptions", tenant.num_preemptions},
          {"hit_rate", tenant.hit_rate}};
}

ordered_json Json(const ReplayResult& result) {
  ordered_json tenants = ordered_json::array();
  for (const TenantResult& tenant : result.tenants) tenants.push_back(Json(tenant));
  return {{"trace_s", result.trace_s},
          {"makespan_s", result.makespan_s},
          {"steps", result.num_steps},
          {"tokens_per_s", result.tokens_per_s},
          {"max_service_gap_over_u", result.max_gap_over_u},
          {"jain_min", result.jain_min},
          {"jain_mean", result.jain_mean},
          {"jain_windows", result.num_jain_windows},
          {"all", Json(result.all)},
          {"tenants", tenants}};
}

}  // namespace

std::string ResultTable(const ReplayResult& result, const ReplayResult* alone) {
  size_t name_width = 6;
  for (const TenantResult& tenant : result.tenants) name_width = std::max(name_width, tenant.name.size());
  std::string text =
      absl::StrFormat("%-*s %8s %7s | %23s | %20s | %9s %7s %6s %6s%s\n", static_cast<int>(name_width), "tenant",
                      "requests", "refused", "TTFT ms p50/p90/p99", "TPOT ms p50/p90/p99", "goodput/s", "share",
                      "preem.", "hits", alone == nullptr ? "" : " | TTFT p99 TPOT p99 vs alone");
  for (const TenantResult& tenant : result.tenants) AppendRow(tenant, Find(alone, tenant.name), name_width, text);
  AppendRow(result.all, Find(alone, result.all.name), name_width, text);
  absl::StrAppendFormat(&text, "\n%.0f s of trace, %.0f s until the last answer, %d steps, %.0f tokens/s computed\n",
                        result.trace_s, result.makespan_s, result.num_steps, result.tokens_per_s);
  absl::StrAppendFormat(&text, "largest service gap between tenants that both kept waiting: %.3f U (the bound is 2)\n",
                        result.max_gap_over_u);
  if (result.num_jain_windows > 0) {
    absl::StrAppendFormat(&text,
                          "Jain index among tenants that waited through a minute: %.4f mean, %.4f least, %d minutes\n",
                          result.jain_mean, result.jain_min, result.num_jain_windows);
  } else {
    text += "Jain index: in no minute did two tenants wait all through\n";
  }
  return text;
}

std::string ResultJson(const ReplayResult& result, const ReplayResult* alone) {
  ordered_json json = Json(result);
  if (alone != nullptr) json["alone"] = Json(*alone);
  return json.dump(2) + "\n";
}

}  // namespace weir::sim
