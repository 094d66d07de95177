#pragma once

#include <memory>
#include <vector>

#include "tests/sim/request.h"
#include "tests/sim/world.h"

// Draws requests: prompts that begin like earlier ones, prompts that share a registered prefix, answers half generated
// elsewhere, deadlines, classes, stop tokens, and now and then something that must be refused.

namespace weir::sim {

class Workload {
 public:
  explicit Workload(const World& world);

  // A request of this tenant.  Its id counts up from 1.  A flood's requests are all of its tenant's own class; of those
  // that come by themselves the tenant may mix the classes.
  std::unique_ptr<Request> Draw(scheduler::TenantId tenant, bool is_of_flood, scheduler::TimeUs now);
  scheduler::TenantId DrawTenant() {
    return world_.leaves[static_cast<size_t>(random_.Below(std::ssize(world_.leaves)))];
  }

  // A conversation that may come back as the beginning of another prompt.
  void Remember(const Request& request);

 private:
  struct Conversation {
    std::vector<scheduler::TokenId> tokens;
    int32_t num_shared = 0;
  };

  Conversation DrawPrompt(scheduler::TenantId tenant);
  scheduler::TokenId DrawToken() { return static_cast<scheduler::TokenId>(random_.Below(world_.vocabulary)); }
  void AddKeys(const Conversation& prompt, Request& request) const;
  void AddResumed(Request& request);
  void AddDeadline(Request& request, scheduler::TimeUs now);
  void Spoil(Request& request);

  const World& world_;
  Random random_;
  Random deadlines_;  // generators of their own: without the fault, all else stays as it is
  Random spoilers_;
  scheduler::RequestId next_id_ = 1;
  std::vector<std::vector<scheduler::TokenId>> shared_prefixes_;
  std::vector<std::vector<Conversation>> conversations_;  // by tenant
};

}  // namespace weir::sim
