#include "gateway/service/caller.h"

#include <algorithm>
#include <cctype>
#include <chrono>

#include "gateway/serving/endings.h"

namespace weir::gateway {
namespace {

constexpr TimeUs kLastFrameUs = 20'000;  // for a last frame to reach the client
constexpr size_t kTraceparentBytes = 55;

}  // namespace

std::optional<std::string_view> Metadata(const grpc::CallbackServerContext& context, const char* key) {
  const auto found = context.client_metadata().find(key);
  if (found == context.client_metadata().end()) return std::nullopt;
  return std::string_view(found->second.data(), found->second.size());
}

int64_t MetadataBytes(const grpc::CallbackServerContext& context) {
  size_t bytes = 0;
  for (const auto& [name, value] : context.client_metadata()) bytes += name.size() + value.size() + 32;
  return static_cast<int64_t>(bytes);
}

std::variant<Identity, RequestError> IdentityOf(const grpc::CallbackServerContext& context,
                                                const Authenticator& authenticator) {
  auto identity = authenticator.Authenticate(Metadata(context, "authorization"));
  if (!identity.ok()) return Unauthenticated(std::string(identity.status().message()));
  return *std::move(identity);
}

std::optional<TimeUs> DeadlineOf(const grpc::CallbackServerContext& context, TimeUs now) {
  using std::chrono::system_clock;
  const system_clock::time_point deadline = context.deadline();
  if (deadline == system_clock::time_point::max()) return std::nullopt;
  const TimeUs left = std::chrono::duration_cast<std::chrono::microseconds>(deadline - system_clock::now()).count();
  return now + left - std::clamp<TimeUs>(left / 10, 0, kLastFrameUs);
}

std::string TraceparentOf(const grpc::CallbackServerContext& context) {
  const std::string_view value = Metadata(context, "traceparent").value_or("");
  const auto is_allowed = [](unsigned char c) { return std::isxdigit(c) != 0 || c == '-'; };
  if (value.size() != kTraceparentBytes || !std::all_of(value.begin(), value.end(), is_allowed)) return "";
  return std::string(value);
}

}  // namespace weir::gateway
