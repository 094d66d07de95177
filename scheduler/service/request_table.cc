#include "scheduler/service/request_table.h"

#include <algorithm>
#include <limits>

#include "scheduler/core/check.h"

namespace weir::scheduler {

uint64_t NoiseName(std::string_view request_name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : request_name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

LiveRequest& RequestTable::Add(LiveRequest request) {
  const RequestId id = request.id;
  const bool is_first = by_number_.emplace(std::pair(request.gateway, request.number), id).second;
  WEIR_CHECK(is_first, "a gateway's number names one live request");
  return by_id_[id] = std::move(request);
}

LiveRequest* RequestTable::Find(RequestId id) {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &found->second;
}

LiveRequest* RequestTable::Find(GatewayId gateway, uint64_t number) {
  const auto found = by_number_.find({gateway, number});
  return found == by_number_.end() ? nullptr : Find(found->second);
}

void RequestTable::Remove(RequestId id) {
  const auto found = by_id_.find(id);
  if (found == by_id_.end()) return;
  by_number_.erase({found->second.gateway, found->second.number});
  by_id_.erase(found);
}

std::vector<RequestId> RequestTable::Of(GatewayId gateway) const {
  std::vector<RequestId> ids;
  for (auto entry = by_number_.lower_bound({gateway, 0}); entry != by_number_.end() && entry->first.first == gateway;
       ++entry) {
    ids.push_back(entry->second);
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

std::vector<RequestId> RequestTable::All() const {
  std::vector<RequestId> ids;
  for (const auto& [number, id] : by_number_) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  return ids;
}

}  // namespace weir::scheduler
