#include "metrics/ops_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <prometheus/counter.h>
#include <prometheus/registry.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <vector>

namespace weir::metrics {
namespace {

int Connect(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  return fd;
}

std::string Get(int port, const std::string& request) {
  const int fd = Connect(port);
  EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string answer;
  char buffer[4096];
  for (ssize_t n; (n = read(fd, buffer, sizeof buffer)) > 0;) answer.append(buffer, static_cast<size_t>(n));
  close(fd);
  return answer;
}

std::string GetPage(int port, const std::string& target) {
  return Get(port, "GET " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
}

class OpsServerTest : public testing::Test {
 protected:
  void SetUp() override {
    registry_ = std::make_shared<prometheus::Registry>();
    prometheus::BuildCounter()
        .Name("weir_test_total")
        .Help("A test")
        .Register(*registry_)
        .Add({{"kind", "x"}})
        .Increment(3);
    OpsServer::Options options;
    options.liveness = [] { return std::string(); };
    options.readiness = [this] { return is_ready_ ? std::string() : std::string("no worker group"); };
    server_ = std::move(OpsServer::Start(options, registry_)).value();
  }
  std::shared_ptr<prometheus::Registry> registry_;
  std::atomic<bool> is_ready_{false};
  std::unique_ptr<OpsServer> server_;
};

TEST_F(OpsServerTest, ServesMetricsAndProbes) {
  EXPECT_THAT(GetPage(server_->port(), "/metrics"), testing::HasSubstr("weir_test_total{kind=\"x\"} 3"));
  EXPECT_THAT(GetPage(server_->port(), "/healthz"), testing::StartsWith("HTTP/1.1 200"));
  const std::string not_ready = GetPage(server_->port(), "/readyz");
  EXPECT_THAT(not_ready, testing::StartsWith("HTTP/1.1 503"));
  EXPECT_THAT(not_ready, testing::HasSubstr("no worker group"));
  is_ready_ = true;
  EXPECT_THAT(GetPage(server_->port(), "/readyz?x=1"), testing::StartsWith("HTTP/1.1 200"));
  EXPECT_THAT(GetPage(server_->port(), "/elsewhere"), testing::StartsWith("HTTP/1.1 404"));
}

TEST_F(OpsServerTest, GarbageAndOtherMethodsHarmNothing) {
  EXPECT_THAT(Get(server_->port(), "POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
              testing::StartsWith("HTTP/1.1 405"));
  Get(server_->port(), "\x16\x03\x01\x02\x01\r\n\r\n");
  Get(server_->port(), "GET /" + std::string(20000, 'x') + " HTTP/1.1\r\n\r\n");
  EXPECT_THAT(GetPage(server_->port(), "/healthz"), testing::StartsWith("HTTP/1.1 200"));
}

TEST_F(OpsServerTest, ConnectionsOverTheBoundAreClosed) {
  std::vector<int> idle;
  for (int i = 0; i < 64; ++i) idle.push_back(Connect(server_->port()));
  // Each idle one must have been accepted before the next is refused: ask until it is.
  for (int i = 0; i < 1000 && !GetPage(server_->port(), "/healthz").empty(); ++i) usleep(1000);
  EXPECT_EQ(GetPage(server_->port(), "/healthz"), "");
  for (const int fd : idle) close(fd);
  std::string answer;
  for (int i = 0; i < 1000 && answer.empty(); ++i) {
    answer = GetPage(server_->port(), "/healthz");
    usleep(1000);
  }
  EXPECT_THAT(answer, testing::StartsWith("HTTP/1.1 200"));
}

TEST_F(OpsServerTest, AnAddressInUseIsAnErrorThatNamesIt) {
  OpsServer::Options options;
  options.listen = "127.0.0.1:" + std::to_string(server_->port());
  const auto second = OpsServer::Start(options, registry_);
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), testing::HasSubstr(options.listen));
}

}  // namespace
}  // namespace weir::metrics
