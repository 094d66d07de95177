#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "tools/weir/cluster/supervisor.h"

// One gateway, one scheduler and the ranks of one replica, as processes of this machine: which programs with which
// flags.

namespace weir::tools {

inline constexpr int kDefaultPort = 7000;     // clients
inline constexpr int kDefaultOpsPort = 7001;  // /metrics, /healthz, /readyz of the gateway; the scheduler's is next

struct ClusterOptions {
  std::string model;       // directory
  std::string model_name;  // what requests call it
  int32_t tp = 1;
  int32_t dp = 1;
  std::string host = "127.0.0.1";
  int32_t port = kDefaultPort;
  int32_t ops_port = kDefaultOpsPort;
  int32_t threads = 0;  // of each rank; 0 = this machine's processors, shared
  std::string backend = "cpu";
  std::string isa;
  std::string dtype = "auto";
  int64_t num_blocks = 0;  // 0 = chosen from the memory that is free
  bool allows_overcommit = false;
  int32_t max_num_seqs = 64;
  int32_t max_num_batched_tokens = 2048;
  int64_t max_model_len = 0;             // 0 = the model's own
  std::string keys;                      // file; empty: no keys, loopback only
  std::string tls_certificate, tls_key;  // PEM files; empty: no TLS
  bool has_gateway = true;
  int32_t drain_timeout_s = 30;
  std::vector<std::string> gateway_flags, scheduler_flags, worker_flags;  // handed on as they are
};

struct ClusterPlan {
  std::vector<ProcessSpec> processes;  // ranks, scheduler, gateway
  std::string address;                 // of the gateway; without one, of the scheduler
  std::string gateway_ops_address, scheduler_ops_address;
};

// `program_directory` holds weir-worker, weir-scheduler and weir-gateway; `run_directory` is for their sockets.  All
// numbers of `options` are chosen: no zero that means "choose".
ClusterPlan PlanCluster(const ClusterOptions& options, const std::string& program_directory,
                        const std::string& run_directory);

// For people: "2 ranks (tp 2, dp 1) of 1 thread; room for 32768 tokens".
std::string LayoutText(const ClusterOptions& options, int32_t block_size);

// The command line that talks to it from this machine, `weir` being how the program was called.
std::string ChatCommand(const ClusterOptions& options, const std::string& weir);

// INVALID_ARGUMENT for what cannot work: names that have no program, a directory whose sockets' paths would be too
// long.
absl::Status CheckPlan(const ClusterPlan& plan, const std::string& run_directory);

// How far a rank's load is, from a line of its output.
struct LoadLine {
  int32_t percent = 0;
  double total_gb = 0;
  double gb_per_s = 0;
};
std::optional<LoadLine> ParseLoadLine(std::string_view line);

// Blocks for a rank whose cache may grow into half of the memory that weights and workspaces leave, up to 4 GiB, and
// not beyond what all its sequences can use.  At least enough for one sequence of full length, if that fits at all.
struct CacheNeeds {
  int64_t bytes_per_block = 0;
  int64_t free_bytes = 0;      // of the machine, when weights and workspaces of all ranks are loaded
  int64_t blocks_per_seq = 0;  // of full length
  int32_t max_num_seqs = 0;
  int32_t world_size = 1;
};
int64_t ChooseNumBlocks(const CacheNeeds& needs);

}  // namespace weir::tools
