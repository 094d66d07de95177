#pragma once

#include "absl/status/statusor.h"
#include "weir/worker/v1/worker.pb.h"
#include "worker/service/rank_messages.h"

// The hello of a rank and the order to form a group <-> their messages.  Decoding checks ranges: INVALID_ARGUMENT names
// the field.

namespace weir::worker {

void EncodeRankHello(const RankHello& hello, v1::WorkerHello& message);
absl::StatusOr<RankHello> DecodeRankHello(const v1::WorkerHello& message);

void EncodeGroupOrder(const GroupOrder& order, v1::FormGroup& message);
absl::StatusOr<GroupOrder> DecodeGroupOrder(const v1::FormGroup& message);

}  // namespace weir::worker
