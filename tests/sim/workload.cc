#include "tests/sim/workload.h"

#include <algorithm>
#include <utility>

namespace weir::sim {
namespace {

constexpr size_t kRemembered = 4;  // conversations of a tenant

scheduler::BlockKey KeyAfter(const scheduler::BlockKey& parent, Domain domain, uint64_t chain) {
  return {Mix(parent.high, Mix(domain, chain)), Mix(parent.low ^ 0x10, Mix(chain, domain))};
}

}  // namespace

Workload::Workload(const World& world)
    : world_(world), random_(world.seed, 2), deadlines_(world.seed, 3), spoilers_(world.seed, 4) {
  for (int i = 0; i < 2; ++i) {
    std::vector<scheduler::TokenId>& prefix = shared_prefixes_.emplace_back();
    for (auto n = random_.Between(1, world.max_prompt); n > 0; --n) prefix.push_back(DrawToken());
  }
  conversations_.resize(world.loads.size());
}

std::unique_ptr<Request> Workload::Draw(scheduler::TenantId tenant, bool is_of_flood, scheduler::TimeUs now) {
  auto request = std::make_unique<Request>();
  scheduler::Arrival& arrival = request->arrival;
  const TenantLoad& load = world_.loads[static_cast<size_t>(tenant)];
  arrival.id = next_id_++;
  arrival.tenant = tenant;
  arrival.priority = load.mixes_classes && !is_of_flood
                         ? static_cast<scheduler::PriorityClass>(random_.Below(scheduler::kNumPriorityClasses))
                         : load.priority;
  const Conversation prompt = DrawPrompt(tenant);
  arrival.prompt = prompt.tokens;
  for (const scheduler::TokenId token : prompt.tokens) request->Append(token);
  arrival.max_tokens = static_cast<int32_t>(random_.Chance(0.5) ? random_.Between(1, world_.max_output)
                                                                : random_.Spread(1, world_.max_output));
  for (int i = 0; i < world_.num_stop_tokens; ++i) arrival.stop_tokens.push_back(static_cast<scheduler::TokenId>(i));
  if (random_.Chance(0.2)) arrival.min_tokens = static_cast<int32_t>(random_.Between(0, arrival.max_tokens));
  if (!random_.Chance(world_.uncached_chance)) AddKeys(prompt, *request);
  if (random_.Chance(world_.resume_chance)) AddResumed(*request);
  if (world_.faults.contains(Fault::kDeadline)) AddDeadline(*request, now);
  if (world_.faults.contains(Fault::kInvalidArrival)) Spoil(*request);
  request->num_known = request->num_sampled = static_cast<int32_t>(request->tokens.size());
  request->arrived_at = now;
  return request;
}

Workload::Conversation Workload::DrawPrompt(scheduler::TenantId tenant) {
  Conversation prompt;
  const std::vector<Conversation>& earlier = conversations_[static_cast<size_t>(tenant)];
  if (!earlier.empty() && random_.Chance(world_.prefix_chance)) {
    prompt = earlier[static_cast<size_t>(random_.Below(std::ssize(earlier)))];
    if (random_.Chance(0.5)) prompt.tokens.resize(static_cast<size_t>(random_.Between(1, std::ssize(prompt.tokens))));
  } else if (random_.Chance(world_.shared_chance)) {
    prompt.tokens = shared_prefixes_[static_cast<size_t>(random_.Below(2))];
    prompt.num_shared = static_cast<int32_t>(prompt.tokens.size());
  }
  const bool repeats = !prompt.tokens.empty() && random_.Chance(0.2);  // a prompt that may be in the cache whole
  for (auto n = repeats ? 0 : random_.Spread(1, world_.max_prompt); n > 0; --n) prompt.tokens.push_back(DrawToken());
  if (std::ssize(prompt.tokens) > 2 * world_.max_prompt) prompt.tokens.resize(static_cast<size_t>(world_.max_prompt));
  prompt.num_shared = std::min(prompt.num_shared, static_cast<int32_t>(prompt.tokens.size()));
  return prompt;
}

void Workload::AddKeys(const Conversation& prompt, Request& request) const {
  const int32_t block_size = world_.limits.block_size;
  request.num_shared_blocks = prompt.num_shared / block_size;
  scheduler::BlockKey key;
  for (int32_t end = block_size; end <= request.num_prompt(); end += block_size) {
    const Domain domain =
        end / block_size <= request.num_shared_blocks ? kShared : TenantDomain(request.arrival.tenant);
    key = KeyAfter(key, domain, request.chain[static_cast<size_t>(end - 1)]);
    request.arrival.block_keys.push_back(key);
  }
}

// What another replica would have generated and delivered before it died: never beyond a token that ends the answer.
void Workload::AddResumed(Request& request) {
  scheduler::Arrival& arrival = request.arrival;
  const auto wanted = random_.Below(arrival.max_tokens);
  while (std::ssize(arrival.resumed) < wanted) {
    const scheduler::TokenId token = NextToken(request.chain.back(), world_.vocabulary);
    const bool is_stop = token < world_.num_stop_tokens;
    if (is_stop && std::ssize(arrival.resumed) + 1 >= arrival.min_tokens) break;
    arrival.resumed.push_back(token);
    request.Append(token);
  }
}

void Workload::AddDeadline(Request& request, scheduler::TimeUs now) {
  if (!deadlines_.Chance(0.4)) return;
  const bool is_past = deadlines_.Chance(0.05);
  request.arrival.deadline = is_past ? now - deadlines_.Below(1000) : now + deadlines_.Spread(1000, 1000000);
}

void Workload::Spoil(Request& request) {
  if (!spoilers_.Chance(0.1)) return;
  scheduler::Arrival& arrival = request.arrival;
  switch (spoilers_.Below(6)) {
    case 0:
      arrival.tenant = static_cast<scheduler::TenantId>(spoilers_.Chance(0.5) ? -1 : 1000000);
      break;
    case 1:
      arrival.prompt.clear();
      arrival.block_keys.clear();
      break;
    case 2:
      arrival.max_tokens = static_cast<int32_t>(arrival.resumed.size());
      break;
    case 3:
      arrival.max_tokens = static_cast<int32_t>(-spoilers_.Below(3));
      break;
    case 4:
      arrival.max_tokens = INT32_MAX - static_cast<int32_t>(spoilers_.Below(2));
      break;
    default:
      arrival.id = 1 + static_cast<scheduler::RequestId>(spoilers_.Below(static_cast<int64_t>(arrival.id)));
      break;
  }
}

void Workload::Remember(const Request& request) {
  std::vector<Conversation>& earlier = conversations_[static_cast<size_t>(request.arrival.tenant)];
  Conversation conversation;
  conversation.tokens.assign(request.tokens.begin(), request.tokens.begin() + request.num_known);
  conversation.num_shared =
      std::min(request.num_shared_blocks * world_.limits.block_size, static_cast<int32_t>(conversation.tokens.size()));
  if (earlier.size() < kRemembered) {
    earlier.push_back(std::move(conversation));
  } else {
    earlier[static_cast<size_t>(random_.Below(kRemembered))] = std::move(conversation);
  }
}

}  // namespace weir::sim
