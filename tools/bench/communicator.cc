// What a collective costs between ranks of one host, beside the plainest exchange of the same bytes over the same kind
// of socket, measured in turns by the same two processes.

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "worker/communicator/communicator.h"

namespace weir::tools {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr int kNumRounds = 9;
constexpr milliseconds kRound{100};  // how long one case runs in one round

struct Setting {
  std::string transport;  // "unix", "tcp", "threads"
  int world_size = 2;
  bool is_pinned = false;
  bool spins = true;
};

struct Row {
  Setting setting;
  std::string name;
  int64_t num_bytes = 0;
  double median_us = 0;
  double plain_us = 0;  // 0: nothing to compare with
};

void Pin(int rank) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(rank % std::max(1u, std::thread::hardware_concurrency()), &set);
  ::sched_setaffinity(0, sizeof set, &set);
}

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<ptrdiff_t>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

// ---- the plain exchange ----

std::pair<int, int> ConnectedPair(const std::string& transport) {
  int pair[2];
  if (transport == "unix") {
    if (::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) std::abort();
    return {pair[0], pair[1]};
  }
  const int listener = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  auto* generic = reinterpret_cast<sockaddr*>(&address);
  if (::bind(listener, generic, length) != 0 || ::listen(listener, 1) != 0) std::abort();
  ::getsockname(listener, generic, &length);
  pair[0] = ::socket(AF_INET, SOCK_STREAM, 0);
  if (::connect(pair[0], generic, length) != 0) std::abort();
  pair[1] = ::accept(listener, nullptr, nullptr);
  ::close(listener);
  const int one = 1;
  for (const int fd : pair) ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return {pair[0], pair[1]};
}

// Sends the floats, receives as many, adds them.
void PlainExchange(int fd, bool spins, std::vector<float>& data, std::vector<float>& theirs) {
  const size_t num_bytes = data.size() * sizeof(float);
  size_t sent = 0;
  size_t received = 0;
  while (sent < num_bytes || received < num_bytes) {
    ssize_t n = sent == num_bytes ? 0
                                  : ::send(fd, reinterpret_cast<char*>(data.data()) + sent, num_bytes - sent,
                                           MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) sent += static_cast<size_t>(n);
    n = ::recv(fd, reinterpret_cast<char*>(theirs.data()) + received, num_bytes - received, MSG_DONTWAIT);
    if (n > 0) received += static_cast<size_t>(n);
    if (n == 0) return;
    if (n > 0 || spins) continue;
    pollfd entry{fd, static_cast<short>(POLLIN | (sent < num_bytes ? POLLOUT : 0)), 0};
    (void)::poll(&entry, 1, 1000);
  }
  for (size_t i = 0; i < data.size(); ++i) data[i] = (data[i] + theirs[i]) * 0.5f;
}

// ---- one rank ----

struct Case {
  std::string name;
  int64_t num_bytes = 0;
  std::string compare_with;  // another case's name
  std::function<void()> run;
};

// Runs each case in turns.  Rank 0 keeps the clock: it says before each call whether another one follows.  The word
// lies in memory that all ranks see, so that it costs no message.
class Turns {
 public:
  Turns() {
    void* memory = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    last_ = new (memory) std::atomic<int64_t>(0);
  }

  std::map<std::string, double> Run(const std::vector<Case>& cases, int rank) {
    std::map<std::string, std::vector<double>> medians;
    for (int round = 0; round < kNumRounds; ++round) {
      for (const Case& one : cases) medians[one.name].push_back(RunOnce(one, rank));
    }
    std::map<std::string, double> result;
    for (auto& [name, values] : medians) result[name] = Median(values);
    return result;
  }

 private:
  // The calls of a case are counted; rank 0 allows the next one or ends the case at the current count.
  double RunOnce(const Case& one, int rank) {
    std::vector<double> times;
    const auto end = Clock::now() + kRound;
    for (bool is_over = false; !is_over;) {
      constexpr int kBatch = 20;
      for (int i = 0; i < kBatch; ++i) {
        const auto start = Clock::now();
        one.run();
        times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
      }
      is_over = Agree(rank, rank == 0 && Clock::now() >= end);
    }
    return Median(times);
  }

  bool Agree(int rank, bool is_over) {
    const int64_t turn = ++turn_[rank];
    if (rank == 0) {
      last_->store(turn * 2 + (is_over ? 1 : 0));
      return is_over;
    }
    while (last_->load() / 2 < turn) ::sched_yield();
    // Rank 0 cannot go on to a further turn before this rank has taken part in its calls.
    return last_->load() % 2 == 1;
  }

  std::atomic<int64_t>* last_;
  std::map<int, int64_t> turn_ = {{0, 0}, {1, 0}, {2, 0}, {3, 0}, {4, 0}, {5, 0}, {6, 0}, {7, 0}};
};

void MustBeOk(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "bench_communicator: %s\n", std::string(status.message()).c_str());
  std::_Exit(1);
}

std::vector<Row> RunRank(const Setting& setting, int rank, worker::Communicator& communicator, int plain_fd,
                         Turns& turns) {
  if (setting.is_pinned) Pin(rank);
  constexpr size_t kDecode = 7168;  // floats of one row of a 7168-wide model
  constexpr size_t kPrefill = 1 << 20;
  std::vector<float> small(kDecode, 1.0f), theirs(kDecode), large(kPrefill, 1.0f);
  std::vector<std::byte> chunk(14336);
  std::vector<std::span<const std::byte>> send(static_cast<size_t>(setting.world_size), chunk);
  std::vector<std::vector<std::byte>> receive(static_cast<size_t>(setting.world_size));

  std::vector<Case> cases;
  if (plain_fd >= 0) {
    cases.push_back(
        {"plain exchange", kDecode * 4, "", [&] { PlainExchange(plain_fd, setting.spins, small, theirs); }});
  }
  const std::string plain = plain_fd >= 0 ? "plain exchange" : "";
  cases.push_back({"all-reduce", kDecode * 4, plain, [&] { MustBeOk(communicator.AllReduceSum(small)); }});
  cases.push_back({"all-to-all", 14336, plain, [&] { MustBeOk(communicator.AllToAll(send, receive)); }});
  cases.push_back({"barrier", 0, "", [&] { MustBeOk(communicator.Barrier()); }});
  cases.push_back({"all-reduce large", kPrefill * 4, "", [&] { MustBeOk(communicator.AllReduceSum(large)); }});
  const std::map<std::string, double> medians = turns.Run(cases, rank);

  std::vector<Row> rows;
  for (const Case& one : cases) {
    const double plain_us = one.compare_with.empty() ? 0 : medians.at(one.compare_with);
    rows.push_back({setting, one.name, one.num_bytes, medians.at(one.name), plain_us});
  }
  return rows;
}

std::vector<Row> RunThreads(const Setting& setting) {
  auto group = worker::NewThreadGroup(setting.world_size, milliseconds(5000));
  Turns turns;
  std::vector<Row> rows;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < setting.world_size; ++rank) {
    threads.emplace_back([&, rank] {
      auto mine = RunRank(setting, rank, *group[rank], -1, turns);
      if (rank == 0) rows = std::move(mine);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return rows;
}

std::vector<std::string> Addresses(const Setting& setting, const std::string& directory) {
  const int first_port = 20000 + ::getpid() % 10000;
  std::vector<std::string> addresses;
  for (int rank = 0; rank < setting.world_size; ++rank) {
    if (setting.transport == "unix") {
      addresses.push_back("unix:" + directory + "/" + std::to_string(rank));
    } else {
      addresses.push_back("127.0.0.1:" + std::to_string(first_port + rank));
    }
  }
  return addresses;
}

std::vector<Row> RunSocketRank(const Setting& setting, int rank, const std::vector<std::string>& addresses,
                               int plain_fd, Turns& turns) {
  worker::SocketGroupOptions options;
  options.rank = rank;
  options.addresses = addresses;
  options.deadline = milliseconds(5000);
  if (!setting.spins) options.spin = microseconds(1);
  auto communicator = worker::NewSocketGroup(options);
  MustBeOk(communicator.status());
  return RunRank(setting, rank, **communicator, plain_fd, turns);
}

// Rank 0 is this process; the others are its children.
std::vector<Row> RunSockets(const Setting& setting, const std::string& directory) {
  std::pair<int, int> plain{-1, -1};
  if (setting.world_size == 2) plain = ConnectedPair(setting.transport);
  Turns turns;
  std::vector<pid_t> children;
  const std::vector<std::string> addresses = Addresses(setting, directory);  // named after this process
  for (int rank = 1; rank < setting.world_size; ++rank) {
    const pid_t child = ::fork();
    if (child != 0) {
      children.push_back(child);
      continue;
    }
    RunSocketRank(setting, rank, addresses, rank == 1 ? plain.second : -1, turns);
    std::_Exit(0);
  }
  cpu_set_t everywhere;
  ::sched_getaffinity(0, sizeof everywhere, &everywhere);
  std::vector<Row> rows = RunSocketRank(setting, 0, addresses, plain.first, turns);
  ::sched_setaffinity(0, sizeof everywhere, &everywhere);
  for (const pid_t child : children) ::waitpid(child, nullptr, 0);
  ::close(plain.first);
  ::close(plain.second);
  return rows;
}

void Print(const Row& row) {
  const Setting& s = row.setting;
  std::printf("%-8s %5d  %-6s  %-5s  %-17s %9ld  %9.1f", s.transport.c_str(), s.world_size,
              s.is_pinned ? "pinned" : "free", s.spins ? "spin" : "poll", row.name.c_str(), row.num_bytes,
              row.median_us);
  if (row.plain_us > 0 && row.name != "plain exchange") std::printf("  %6.2f", row.median_us / row.plain_us);
  std::printf("\n");
  std::fflush(stdout);
}

nlohmann::json ToJson(const Row& row) {
  nlohmann::json json = {{"name", row.name},
                         {"transport", row.setting.transport},
                         {"ranks", row.setting.world_size},
                         {"pinned", row.setting.is_pinned},
                         {"spin", row.setting.spins},
                         {"bytes", row.num_bytes},
                         {"median_us", row.median_us}};
  if (row.plain_us > 0) json["ratio_to_plain_exchange"] = row.median_us / row.plain_us;
  return json;
}

std::vector<Setting> Settings() {
  std::vector<Setting> settings;
  for (const char* transport : {"unix", "tcp"}) {
    for (const bool is_pinned : {true, false}) {
      for (const bool spins : {true, false}) settings.push_back({transport, 2, is_pinned, spins});
    }
  }
  settings.push_back({"unix", 4, false, false});
  settings.push_back({"tcp", 4, false, false});
  settings.push_back({"threads", 2, true, true});
  settings.push_back({"threads", 4, false, false});
  return settings;
}

std::string ProcessorName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

int Main(int argc, char** argv) {
  CLI::App app{
      "Latency of collectives between ranks of one host.  The ratio is to a plain exchange over a socket of the same "
      "kind (send 28 KB, receive 28 KB, add), run in turns with it.  Takes about a minute."};
  std::string json_path;
  app.add_option("--json", json_path, "write the rows to this file, too");
  app.footer("Example: bench_communicator --json /tmp/communicator.json");
  CLI11_PARSE(app, argc, argv);

  char directory[] = "/tmp/weir-bench-XXXXXX";
  if (::mkdtemp(directory) == nullptr) return 1;
  std::printf("%s, %u processors; medians of %d interleaved rounds\n", ProcessorName().c_str(),
              std::thread::hardware_concurrency(), kNumRounds);
  std::printf("%-8s %5s  %-6s  %-5s  %-17s %9s  %9s  %6s\n", "over", "ranks", "cores", "wait", "collective", "bytes",
              "us", "ratio");
  nlohmann::json json = {{"machine", ProcessorName()}, {"rows", nlohmann::json::array()}};
  for (const Setting& setting : Settings()) {
    for (const Row& row : setting.transport == "threads" ? RunThreads(setting) : RunSockets(setting, directory)) {
      Print(row);
      json["rows"].push_back(ToJson(row));
    }
  }
  ::rmdir(directory);
  if (!json_path.empty()) std::ofstream(json_path) << json.dump(2) << "\n";
  return 0;
}

}  // namespace
}  // namespace weir::tools

int main(int argc, char** argv) { return weir::tools::Main(argc, argv); }
