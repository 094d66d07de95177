#include "metrics/ops_server.h"

#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/strand.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <thread>
#include <utility>

#include "absl/status/status.h"

namespace weir::metrics {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;

constexpr int kMaxConnections = 64;
constexpr auto kTimeout = std::chrono::seconds(10);
constexpr size_t kMaxRequestBytes = 8192;

struct Pages {
  OpsServer::Options options;
  std::shared_ptr<prometheus::Registry> registry;
  int num_connections = 0;
};

using Response = http::response<http::string_body>;

Response Page(http::status status, const char* type, std::string body) {
  Response response{status, 11};
  response.set(http::field::content_type, type);
  response.body() = std::move(body);
  return response;
}

Response Probe(const std::function<std::string()>& probe) {
  const std::string trouble = probe ? probe() : std::string();
  if (trouble.empty()) return Page(http::status::ok, "text/plain", "ok\n");
  return Page(http::status::service_unavailable, "text/plain", trouble + "\n");
}

Response Answer(const Pages& pages, const http::request<http::empty_body>& request) {
  const auto target = request.target().substr(0, request.target().find('?'));
  if (request.method() != http::verb::get && request.method() != http::verb::head) {
    return Page(http::status::method_not_allowed, "text/plain", "only GET\n");
  }
  if (target == "/metrics") {
    return Page(http::status::ok, "text/plain; version=0.0.4; charset=utf-8",
                prometheus::TextSerializer().Serialize(pages.registry->Collect()));
  }
  if (target == "/healthz") return Probe(pages.options.liveness);
  if (target == "/readyz") return Probe(pages.options.readiness);
  return Page(http::status::not_found, "text/plain", "pages: /metrics /healthz /readyz\n");
}

// One connection; keeps itself alive through its callbacks.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, std::shared_ptr<Pages> pages) : stream_(std::move(socket)), pages_(std::move(pages)) {
    ++pages_->num_connections;
  }
  ~Connection() { --pages_->num_connections; }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void Read() {
    parser_.emplace();
    parser_->header_limit(kMaxRequestBytes);
    stream_.expires_after(kTimeout);
    http::async_read(stream_, buffer_, *parser_, [self = shared_from_this()](beast::error_code error, size_t) {
      if (!error) self->Write();
    });
  }

 private:
  void Write() {
    const auto& request = parser_->get();
    response_ = Answer(*pages_, request);
    response_.keep_alive(request.keep_alive());
    const bool is_head = request.method() == http::verb::head;
    response_.prepare_payload();
    if (is_head) response_.body().clear();
    stream_.expires_after(kTimeout);
    http::async_write(stream_, response_, [self = shared_from_this()](beast::error_code error, size_t) {
      if (!error && self->response_.keep_alive()) self->Read();
    });
  }

  beast::tcp_stream stream_;
  beast::flat_buffer buffer_{kMaxRequestBytes};
  std::optional<http::request_parser<http::empty_body>> parser_;
  Response response_;
  std::shared_ptr<Pages> pages_;
};

}  // namespace

class OpsServer::Loop {
 public:
  explicit Loop(std::shared_ptr<Pages> pages) : pages_(std::move(pages)), acceptor_(context_) {}
  ~Loop() {
    context_.stop();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Listen(const std::string& address) {
    const size_t colon = address.rfind(':');
    if (colon == std::string::npos)
      return absl::InvalidArgumentError("ops address '" + address + "': host:port is expected");
    beast::error_code error;
    tcp::resolver resolver(context_);
    const auto found = resolver.resolve(address.substr(0, colon), address.substr(colon + 1), error);
    if (error) return absl::UnavailableError("ops address " + address + ": " + error.message());
    const tcp::endpoint endpoint = found.begin()->endpoint();
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(asio::socket_base::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(kMaxConnections, error);
    if (error)
      return absl::UnavailableError("cannot listen for metrics and health on " + address + ": " + error.message());
    port_ = acceptor_.local_endpoint().port();
    Accept();
    thread_ = std::thread([this] { context_.run(); });
    return absl::OkStatus();
  }

  int port() const { return port_; }

 private:
  void Accept() {
    acceptor_.async_accept([this](beast::error_code error, tcp::socket socket) {
      if (error == asio::error::operation_aborted) return;
      // Over the bound the connection is closed at once.
      if (!error && pages_->num_connections < kMaxConnections)
        std::make_shared<Connection>(std::move(socket), pages_)->Read();
      Accept();
    });
  }

  std::shared_ptr<Pages> pages_;
  asio::io_context context_{1};
  tcp::acceptor acceptor_;
  std::thread thread_;
  int port_ = 0;
};

OpsServer::OpsServer(std::unique_ptr<Loop> loop) : loop_(std::move(loop)) {}
OpsServer::~OpsServer() = default;
int OpsServer::port() const { return loop_->port(); }

absl::StatusOr<std::unique_ptr<OpsServer>> OpsServer::Start(const Options& options,
                                                            std::shared_ptr<prometheus::Registry> registry) {
  auto pages = std::make_shared<Pages>();
  pages->options = options;
  pages->registry = std::move(registry);
  auto loop = std::make_unique<Loop>(std::move(pages));
  if (const absl::Status status = loop->Listen(options.listen); !status.ok()) return status;
  return std::unique_ptr<OpsServer>(new OpsServer(std::move(loop)));
}

}  // namespace weir::metrics
