#include "tools/sim/request_trace.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "tools/sim/random.h"

namespace weir::sim {
namespace {

constexpr int64_t kMaxTokens = 1 << 24;  // of one prompt: beyond any model, and short of overflow
constexpr std::string_view kAzureHeader = "TIMESTAMP,ContextTokens,GeneratedTokens";

// Takes digits from the front; nothing if there are none or too many.
std::optional<int64_t> TakeInteger(std::string_view& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || value < 0) return std::nullopt;
  text.remove_prefix(static_cast<size_t>(end - text.data()));
  return value;
}

bool TakeChar(std::string_view& text, char c) {
  if (text.empty() || text.front() != c) return false;
  text.remove_prefix(1);
  return true;
}

// Days since 1970-01-01 of a Gregorian date (Howard Hinnant, "chrono-compatible low-level date algorithms").
int64_t DaysOf(int64_t year, int64_t month, int64_t day) {
  year -= month <= 2 ? 1 : 0;
  const int64_t era = year / 400;
  const int64_t year_of_era = year - era * 400;
  const int64_t day_of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
  return era * 146097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719468;
}

// "+08:00" in seconds; 0 when there is none.
std::optional<int64_t> TakeUtcOffset(std::string_view& text) {
  if (text.empty() || (text.front() != '+' && text.front() != '-')) return 0;
  const int64_t sign = text.front() == '+' ? 1 : -1;
  text.remove_prefix(1);
  const auto hours = TakeInteger(text);
  if (!hours || *hours > 14 || !TakeChar(text, ':')) return std::nullopt;
  const auto minutes = TakeInteger(text);
  if (!minutes || *minutes > 59) return std::nullopt;
  return sign * (*hours * 60 + *minutes) * 60;
}

// "2023-11-16 18:15:46.6805900" or "2024-05-10 00:00:00.009930+00:00" in microseconds.
std::optional<int64_t> TakeTimestamp(std::string_view& text) {
  constexpr std::string_view kSeparators = "-- ::";
  std::array<int64_t, 6> parts = {};
  for (size_t i = 0; i < parts.size(); ++i) {
    const auto value = TakeInteger(text);
    if (!value || *value > 9999 || (i < 5 && !TakeChar(text, kSeparators[i]))) return std::nullopt;
    parts[i] = *value;
  }
  int64_t micros = 0;
  if (TakeChar(text, '.')) {
    int64_t unit = 100000;
    for (; !text.empty() && text.front() >= '0' && text.front() <= '9'; text.remove_prefix(1), unit /= 10) {
      micros += (text.front() - '0') * unit;
    }
  }
  const auto offset = TakeUtcOffset(text);
  if (!offset) return std::nullopt;
  const int64_t seconds =
      ((DaysOf(parts[0], parts[1], parts[2]) * 24 + parts[3]) * 60 + parts[4]) * 60 + parts[5] - *offset;
  return seconds * 1000000 + micros;
}

std::optional<TraceRequest> ParseAzureLine(std::string_view line) {
  const auto time = TakeTimestamp(line);
  if (!time || !TakeChar(line, ',')) return std::nullopt;
  const auto prompt = TakeInteger(line);
  if (!prompt || !TakeChar(line, ',')) return std::nullopt;
  const auto output = TakeInteger(line);
  if (!output || !line.empty() || *prompt > kMaxTokens || *output > kMaxTokens) return std::nullopt;
  TraceRequest request;
  request.arrival_us = *time;
  request.num_prompt_tokens = static_cast<int32_t>(*prompt);
  request.num_output_tokens = static_cast<int32_t>(*output);
  return request;
}

std::optional<int64_t> Member(const nlohmann::json& row, const char* name, int64_t limit) {
  const auto member = row.find(name);
  if (member == row.end() || !member->is_number_unsigned()) return std::nullopt;
  const auto value = member->get<uint64_t>();
  return value > static_cast<uint64_t>(limit) ? std::nullopt : std::optional(static_cast<int64_t>(value));
}

std::optional<TraceRequest> ParseMooncakeLine(std::string_view line) {
  const nlohmann::json row = nlohmann::json::parse(line, nullptr, false);
  if (!row.is_object()) return std::nullopt;
  const auto time_ms = Member(row, "timestamp", int64_t{1} << 40);
  const auto prompt = Member(row, "input_length", kMaxTokens);
  const auto output = Member(row, "output_length", kMaxTokens);
  const auto ids = row.find("hash_ids");
  if (!time_ms || !prompt || !output || ids == row.end() || !ids->is_array()) return std::nullopt;
  TraceRequest request;
  request.arrival_us = *time_ms * 1000;
  request.num_prompt_tokens = static_cast<int32_t>(*prompt);
  request.num_output_tokens = static_cast<int32_t>(*output);
  for (const nlohmann::json& id : *ids) {
    if (!id.is_number_unsigned()) return std::nullopt;
    request.hash_ids.push_back(id.get<uint64_t>());
  }
  return request;
}

std::string_view TakeLine(std::string_view& text) {
  const size_t end = std::min(text.find('\n'), text.size());
  std::string_view line = text.substr(0, end);
  text.remove_prefix(std::min(end + 1, text.size()));
  if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
  return line;
}

// How many hash ids all requests begin with.
int32_t CountSharedIds(const std::vector<TraceRequest>& requests) {
  if (requests.size() < 2) return 0;
  size_t num_shared = requests.front().hash_ids.size();
  for (const TraceRequest& request : requests) {
    const auto [end, other] = std::mismatch(requests.front().hash_ids.begin(), requests.front().hash_ids.end(),
                                            request.hash_ids.begin(), request.hash_ids.end());
    num_shared = std::min(num_shared, static_cast<size_t>(end - requests.front().hash_ids.begin()));
  }
  return static_cast<int32_t>(num_shared);
}

void SortAndStartAtZero(std::vector<TraceRequest>& requests) {
  std::stable_sort(requests.begin(), requests.end(),
                   [](const TraceRequest& a, const TraceRequest& b) { return a.arrival_us < b.arrival_us; });
  const scheduler::TimeUs first = requests.front().arrival_us;
  for (TraceRequest& request : requests) request.arrival_us -= first;
}

}  // namespace

absl::StatusOr<RequestTrace> ParseTrace(std::string_view text, int64_t limit) {
  RequestTrace trace;
  int64_t line_number = 0;
  std::string_view first_line = text;
  first_line = TakeLine(first_line);
  const bool is_azure = first_line == kAzureHeader;
  if (is_azure) {
    TakeLine(text);
    ++line_number;
  } else if (first_line.empty() || first_line.front() != '{') {
    return absl::InvalidArgumentError(
        absl::StrFormat("line 1 is neither the header '%s' of an Azure trace nor a JSON object of a Mooncake trace",
                        std::string(kAzureHeader)));
  }
  while (!text.empty() && (limit == 0 || std::ssize(trace.requests) < limit)) {
    const std::string_view line = TakeLine(text);
    ++line_number;
    if (line.empty()) continue;
    std::optional<TraceRequest> request = is_azure ? ParseAzureLine(line) : ParseMooncakeLine(line);
    if (!request) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "line %d: expected %s, found '%s'", line_number,
          is_azure ? "'2023-11-16 18:15:46.68,374,44' (time, prompt tokens, output tokens)"
                   : "{\"timestamp\": ms, \"input_length\": n, \"output_length\": m, \"hash_ids\": [ids]}",
          std::string(line.substr(0, 80))));
    }
    trace.requests.push_back(*std::move(request));
  }
  if (trace.requests.empty()) return absl::InvalidArgumentError("the trace holds no request");
  SortAndStartAtZero(trace.requests);
  trace.has_prefixes = !is_azure;
  trace.num_shared_ids = CountSharedIds(trace.requests);
  return trace;
}

absl::StatusOr<RequestTrace> ReadTrace(const std::string& path, int64_t limit) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrFormat("%s cannot be opened for reading", path));
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  auto trace = ParseTrace(text, limit);
  if (trace.ok()) return trace;
  return absl::Status(trace.status().code(), path + ": " + std::string(trace.status().message()));
}

void AssignTenants(const std::vector<scheduler::TenantId>& tenants, uint64_t seed, RequestTrace& trace) {
  std::vector<double> cumulative;
  double sum = 0;
  for (size_t rank = 1; rank <= tenants.size(); ++rank) {
    sum += 1 / std::pow(static_cast<double>(rank), 1.1);
    cumulative.push_back(sum);
  }
  uint64_t row = 0;
  for (TraceRequest& request : trace.requests) {
    const auto first_own = static_cast<size_t>(trace.num_shared_ids);
    const uint64_t conversation = request.hash_ids.size() > first_own ? request.hash_ids[first_own] : Mix(0xa11, row);
    ++row;
    const double drawn = Random(seed, conversation).Uniform() * sum;
    const auto rank = std::upper_bound(cumulative.begin(), cumulative.end() - 1, drawn) - cumulative.begin();
    request.tenant = tenants[static_cast<size_t>(rank)];
  }
}

void Rescale(double scale, double speed, RequestTrace& trace) {
  const auto scaled = [scale](int32_t n) { return std::max(1, static_cast<int32_t>(std::lround(n * scale))); };
  for (TraceRequest& request : trace.requests) {
    request.num_prompt_tokens = scaled(request.num_prompt_tokens);
    request.num_output_tokens = scaled(request.num_output_tokens);
    request.arrival_us = static_cast<scheduler::TimeUs>(static_cast<double>(request.arrival_us) / speed);
  }
}

void Amplify(scheduler::TenantId tenant, int32_t factor, uint64_t seed, RequestTrace& trace) {
  Random random(seed, 77);
  std::vector<TraceRequest> copies;
  scheduler::TimeUs previous = 0;
  for (const TraceRequest& request : trace.requests) {
    if (request.tenant != tenant) continue;
    for (int32_t i = 1; i < factor; ++i) {
      TraceRequest copy = request;
      copy.arrival_us = random.Between(previous, request.arrival_us);
      for (uint64_t& id : copy.hash_ids) id = Mix(id, static_cast<uint64_t>(i));  // of other texts
      std::copy_n(request.hash_ids.begin(),
                  std::min<size_t>(static_cast<size_t>(trace.num_shared_ids), copy.hash_ids.size()),
                  copy.hash_ids.begin());
      copies.push_back(std::move(copy));
    }
    previous = request.arrival_us;
  }
  trace.requests.insert(trace.requests.end(), std::make_move_iterator(copies.begin()),
                        std::make_move_iterator(copies.end()));
  std::stable_sort(trace.requests.begin(), trace.requests.end(),
                   [](const TraceRequest& a, const TraceRequest& b) { return a.arrival_us < b.arrival_us; });
}

}  // namespace weir::sim
