#include "tools/weir/cluster/ops_probe.h"

#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace weir::tools {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using tcp = asio::ip::tcp;

// One request, asynchronous for the sake of its time limit.
class Exchange {
 public:
  Exchange(const std::string& host, const std::string& path, std::chrono::milliseconds patience)
      : stream_(io_), request_(http::verb::get, path, 11) {
    request_.set(http::field::host, host);
    stream_.expires_after(patience);
  }

  void Run(const tcp::resolver::results_type& endpoints) {
    stream_.async_connect(endpoints, [this](beast::error_code error, const auto&) {
      if (Failed(error)) return;
      http::async_write(stream_, request_, [this](beast::error_code write_error, size_t) {
        if (Failed(write_error)) return;
        http::async_read(stream_, buffer_, response_, [this](beast::error_code read_error, size_t) {
          Failed(read_error);
          is_done_ = true;
        });
      });
    });
    io_.run();
  }

  asio::io_context& io() { return io_; }
  bool is_done() const { return is_done_ && !error_; }
  std::string error() const { return error_.message(); }
  OpsPage page() { return {response_.result() == http::status::ok, std::move(response_.body())}; }

 private:
  bool Failed(beast::error_code error) {
    error_ = error;
    return static_cast<bool>(error);
  }

  asio::io_context io_;
  beast::tcp_stream stream_;
  beast::flat_buffer buffer_;
  http::request<http::empty_body> request_;
  http::response<http::string_body> response_;
  beast::error_code error_;
  bool is_done_ = false;
};

}  // namespace

absl::StatusOr<OpsPage> GetOpsPage(const std::string& address, const std::string& path,
                                   std::chrono::milliseconds patience) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) return absl::InvalidArgumentError(absl::StrCat(address, " is not host:port"));
  const std::string host = address.substr(0, colon);
  Exchange exchange(host, path, patience);
  beast::error_code error;
  const auto endpoints = tcp::resolver(exchange.io()).resolve(host, address.substr(colon + 1), error);
  if (error) return absl::UnavailableError(absl::StrCat(address, ": ", error.message()));
  exchange.Run(endpoints);
  if (!exchange.is_done()) return absl::UnavailableError(absl::StrCat(address, ": ", exchange.error()));
  return exchange.page();
}

}  // namespace weir::tools
