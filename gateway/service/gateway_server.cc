#include "gateway/service/gateway_server.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/grpc.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <limits>
#include <thread>
#include <utility>

#include "channels/live_calls.h"
#include "gateway/replica/scheduler_streams.h"
#include "gateway/request/limits.h"
#include "gateway/service/health_service.h"
#include "gateway/service/inference_service.h"
#include "gateway/service/tls_credentials.h"
#include "gateway/serving/gateway_metrics.h"
#include "gateway/serving/text_pool.h"

namespace weir::gateway {
namespace {

constexpr std::chrono::milliseconds kTurn{20};
constexpr int kTurnsPerLook = 10;             // at what every request may need
constexpr int kTurnsPerRefresh = 50;          // of keys and certificate
constexpr TimeUs kLongestTurnUs = 5'000'000;  // a loop that has not turned for so long does not move

// What one connection may ask for.  A client that keeps to these never notices them.
constexpr int kStreamWindowBytes = 64 << 10;
constexpr int kKeepaliveMs = 30'000;
constexpr int kKeepaliveTimeoutMs = 10'000;
constexpr int kMinPingIntervalMs = 10'000;
constexpr int kMaxPingStrikes = 2;
constexpr int kConnectionAgeMs = 30 * 60'000;  // then the client is asked to connect again; streams go on

void SetLimits(const GatewayOptions& options, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(static_cast<int>(limits::kMaxReceivedBytes));
  // gRPC bounds a message before it is unpacked, not after: a thousandth of what it then takes.
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_streams_per_connection);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, static_cast<int>(limits::kMaxReceivedMetadataBytes));
  builder.AddChannelArgument(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, kStreamWindowBytes);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_BDP_PROBE, 0);  // would let windows grow
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kKeepaliveMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kKeepaliveTimeoutMs);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, kMinPingIntervalMs);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, kMaxPingStrikes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, kConnectionAgeMs);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, std::numeric_limits<int>::max());
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a second gateway on the port is a mistake
}

std::shared_ptr<grpc::ServerCredentials> CredentialsOf(const GatewayOptions& options) {
  if (options.certificate == nullptr) return grpc::InsecureServerCredentials();
  return NewTlsCredentials(options.certificate.get());
}

// Once a process.  gRPC closes itself down with the last object of its kind, and may wait 10 s for a poller of its own
// while it does: it is kept until the process ends.  Protobuf writes a line of its own about every message that is not
// UTF-8, as often as a client likes: the client is told, and that is enough.
void SetUpLibraries() {
  static const bool is_set_up = [] {
    grpc_init();
    google::protobuf::SetLogHandler(nullptr);
    return true;
  }();
  static_cast<void>(is_set_up);
}

// The replicas of one model and the streams to them.
struct Replicas {
  std::unique_ptr<SchedulerStreams> streams;
  std::unique_ptr<ReplicaSet> set;
};

}  // namespace

class GatewayServer::Parts {
 public:
  Parts(GatewayOptions&& given, std::shared_ptr<prometheus::Registry> registry)
      : options(std::move(given)),
        authenticator(std::move(options.keys)),
        metrics(std::move(registry), options.build, options.desk.max_requests, options.max_preparing_bytes),
        pool(std::make_unique<TextPool>(options.text_threads, options.max_preparing_bytes)),
        desk(options.desk, pool.get(), &metrics),
        health({"weir.v1.InferenceService"}) {
    for (const GatewayOptions::ServedBy& served : options.models) AddModel(served);
    service = NewInferenceService(&offers, &authenticator, &desk, &live_calls);
  }

  void AddModel(const GatewayOptions::ServedBy& served) {
    auto& one = *replicas.emplace_back(std::make_unique<Replicas>());
    ReplicaSet::Options set_options = options.replicas;
    set_options.addresses = served.schedulers;
    set_options.vocab_size = served.model->vocab_size;
    one.streams = std::make_unique<SchedulerStreams>(
        SchedulerStreams::Options{.addresses = served.schedulers, .build = options.build, .gateway_name = options.name},
        [&one](ReplicaEvent event) { one.set->On(NowUs(), std::move(event)); });
    one.set = std::make_unique<ReplicaSet>(std::move(set_options), one.streams.get());
    offers.push_back({.model = served.model, .replicas = one.set.get()});
  }

  bool Listen() {
    credentials = CredentialsOf(options);
    if (options.has_reflection) grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    SetLimits(options, builder);
    builder.AddListeningPort(options.listen, credentials, &port);
    builder.RegisterService(service.get());
    builder.RegisterService(&health);
    server = builder.BuildAndStart();
    return server != nullptr;
  }

  void Turn() {
    const TimeUs now = NowUs();
    heartbeat = now;
    bool is_ready = false;
    for (const Offer& offer : offers) {
      offer.replicas->OnTime(now);
      const ReplicaSet::View view = offer.replicas->view();
      metrics.SetReplicas(offer.model->name, view);
      is_ready = is_ready || view.num_ready > 0;
    }
    health.SetServing(is_ready && !desk.is_draining());
    if (num_turns % kTurnsPerLook == 0) desk.OnTime(now);
    if (num_turns++ % kTurnsPerRefresh == 0) Refresh();
  }

  void Refresh() {
    if (const absl::Status status = authenticator.Refresh(); !status.ok()) {
      spdlog::error("keys: {}; the last good ones stay in force", std::string(status.message()));
    }
    if (options.certificate == nullptr) return;
    const absl::StatusOr<bool> is_renewed = options.certificate->Refresh();
    if (!is_renewed.ok()) {
      spdlog::error("{}; what was read before stays in force", std::string(is_renewed.status().message()));
    } else if (*is_renewed) {
      SayCertificate();
    }
  }

  void SayCertificate() const {
    const auto certificate = options.certificate->current();
    const auto level = certificate->has_expired ? spdlog::level::warn : spdlog::level::info;
    spdlog::log(level, "TLS certificate: {} {}", certificate->has_expired ? "expired at" : "valid until",
                certificate->valid_until);
  }

  void TurnUntilStopped() {
    std::unique_lock lock(mutex);
    while (!is_stopping) {
      lock.unlock();
      Turn();
      lock.lock();
      stopping.wait_for(lock, kTurn, [this] { return is_stopping; });
    }
  }

  void StopTurning() {
    {
      std::lock_guard lock(mutex);
      is_stopping = true;
    }
    stopping.notify_all();
    if (thread.joinable()) thread.join();
  }

  void Stop(int64_t patience_ms) {
    if (std::exchange(is_stopped, true)) return;
    desk.StartDrain();
    desk.StopShort();
    health.SetServing(false);
    health.Shutdown();
    if (server != nullptr) channels::Close(*server, live_calls, std::chrono::milliseconds(patience_ms));
    StopTurning();
    pool.reset();  // no call waits any more, so no job does
    for (const auto& one : replicas) one->streams.reset();
  }

  GatewayOptions options;
  Authenticator authenticator;
  GatewayMetrics metrics;
  std::vector<std::unique_ptr<Replicas>> replicas;
  std::vector<Offer> offers;
  std::unique_ptr<TextPool> pool;
  FrontDesk desk;
  HealthService health;
  channels::LiveCalls live_calls;
  std::unique_ptr<grpc::Service> service;
  int port = 0;
  std::shared_ptr<grpc::ServerCredentials> credentials;
  std::unique_ptr<grpc::Server> server;

  std::atomic<TimeUs> heartbeat{NowUs()};
  int64_t num_turns = 0;
  std::mutex mutex;
  std::condition_variable stopping;
  bool is_stopping = false;
  bool is_stopped = false;
  std::thread thread;
};

GatewayServer::GatewayServer(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

std::unique_ptr<GatewayServer> GatewayServer::Start(GatewayOptions options,
                                                    std::shared_ptr<prometheus::Registry> registry,
                                                    std::string& error) {
  const std::string listen = options.listen;
  SetUpLibraries();
  auto parts = std::make_unique<Parts>(std::move(options), std::move(registry));
  if (!parts->Listen()) {
    error = "cannot listen on " + listen + ": is another process there, or the address not of this machine?";
    parts->Stop(0);
    return nullptr;
  }
  if (parts->options.certificate != nullptr) parts->SayCertificate();
  parts->thread = std::thread([raw = parts.get()] { raw->TurnUntilStopped(); });
  return std::unique_ptr<GatewayServer>(new GatewayServer(std::move(parts)));
}

GatewayServer::~GatewayServer() { parts_->Stop(0); }

int GatewayServer::port() const { return parts_->port > 1 ? parts_->port : 0; }

std::string GatewayServer::WhyNotReady() const {
  if (parts_->desk.is_draining()) return "draining";
  for (const Offer& offer : parts_->offers) {
    if (offer.replicas->view().num_ready > 0) return "";
  }
  return "no replica is ready";
}

std::string GatewayServer::WhyNotAlive() const {
  const TimeUs idle = NowUs() - parts_->heartbeat;
  return idle < kLongestTurnUs ? "" : "the gateway's loop has not turned for " + std::to_string(idle / 1000) + " ms";
}

void GatewayServer::StartDrain() {
  parts_->health.SetServing(false);
  parts_->desk.StartDrain();
}

int64_t GatewayServer::num_requests() const { return parts_->desk.num_requests(); }

void GatewayServer::Stop(int64_t patience_ms) { parts_->Stop(patience_ms); }

}  // namespace weir::gateway
