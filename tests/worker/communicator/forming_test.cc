// How groups over sockets come to be: hellos, strangers, missing ranks, later epochs, and what is left behind.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <future>
#include <thread>

#include "tests/worker/communicator/group_of_threads.h"
#include "worker/communicator/communicator.h"
#include "worker/communicator/hello.h"
#include "worker/communicator/socket_address.h"

namespace weir::worker {
namespace {

using std::chrono::milliseconds;
using testing::AllOf;
using testing::HasSubstr;

using Formed = absl::StatusOr<std::unique_ptr<Communicator>>;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

int NumOpenFiles() {
  int count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

class FormingTest : public testing::TestWithParam<GroupKind> {
 protected:
  SocketGroupOptions Options(int rank, int world_size, uint64_t epoch = 5) {
    if (addresses_.empty()) addresses_ = NewAddresses(GetParam(), world_size, folder_.path());
    SocketGroupOptions options;
    options.rank = rank;
    options.addresses = addresses_;
    options.epoch = epoch;
    options.token = "secret";
    return options;
  }
  static std::future<Formed> Form(const SocketGroupOptions& options) {
    return std::async(std::launch::async, [options] { return NewSocketGroup(options); });
  }
  static SocketGroupOptions Within(milliseconds connect_deadline, SocketGroupOptions options) {
    options.connect_deadline = connect_deadline;
    return options;
  }
  // Connects to a rank's address as soon as it listens.
  FileDescriptor ConnectTo(int rank) {
    const SocketAddress address = *ParseSocketAddress(addresses_[rank]);
    for (int attempt = 0; attempt < 5000; ++attempt) {
      auto socket = StartConnect(address);
      if (socket.ok()) {
        pollfd entry{socket->get(), POLLOUT, 0};
        if (::poll(&entry, 1, 1000) == 1 && ConnectError(*socket).ok()) return *std::move(socket);
      }
      std::this_thread::sleep_for(milliseconds(1));
    }
    ADD_FAILURE() << "rank " << rank << " does not listen";
    return FileDescriptor();
  }
  void SendTo(const FileDescriptor& socket, std::string_view bytes) {
    (void)!::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  // Barriers run in both communicators of a pair.
  static void ExpectWorks(Communicator& a, Communicator& b) {
    auto other = std::async(std::launch::async, [&] { return b.Barrier(); });
    EXPECT_TRUE(a.Barrier().ok());
    EXPECT_TRUE(other.get().ok());
  }

  TemporaryFolder folder_;
  std::vector<std::string> addresses_;
};

INSTANTIATE_TEST_SUITE_P(Sockets, FormingTest, testing::Values(GroupKind::kUnix, GroupKind::kTcp),
                         [](const auto& one) { return NameOf(one.param); });

TEST_P(FormingTest, StrangersHarmNothing) {
  auto first = Form(Options(0, 2));
  std::vector<FileDescriptor> silent;
  for (int i = 0; i < 200; ++i) silent.push_back(ConnectTo(0));  // more than may be unfinished at once
  ConnectTo(0).Close();                                          // a port scanner
  const FileDescriptor chatty = ConnectTo(0);
  SendTo(chatty, std::string(100000, 'x'));
  const FileDescriptor half = ConnectTo(0);
  SendTo(half, EncodeHello({Verdict::kHello, 1, 2, 5, "secret"}).substr(0, 20));
  auto second = Form(Options(1, 2));
  Formed a = first.get();
  Formed b = second.get();
  ASSERT_TRUE(a.ok()) << a.status();
  ASSERT_TRUE(b.ok()) << b.status();
  ExpectWorks(**a, **b);
}

TEST_P(FormingTest, HelloThatStopsInTheMiddleIsDropped) {
  auto first = Form(Within(milliseconds(5000), Options(0, 2)));
  const FileDescriptor half = ConnectTo(0);
  SendTo(half, EncodeHello({Verdict::kHello, 1, 2, 5, "secret"}).substr(0, 20));
  pollfd entry{half.get(), POLLIN, 0};
  EXPECT_EQ(::poll(&entry, 1, 4000), 1);  // closed long before the group's deadline
  auto second = Form(Options(1, 2));
  EXPECT_TRUE(first.get().ok());
  EXPECT_TRUE(second.get().ok());
}

TEST_P(FormingTest, HelloWithoutTheTokenIsRefusedAndLearnsNothing) {
  auto first = Form(Within(milliseconds(500), Options(0, 2)));
  const FileDescriptor stranger = ConnectTo(0);
  SendTo(stranger, EncodeHello({Verdict::kHello, 1, 2, 5, "guess"}));
  pollfd entry{stranger.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&entry, 1, 5000), 1);
  char buffer[kMaxHelloBytes];
  const ssize_t n = ::recv(stranger.get(), buffer, sizeof buffer, 0);
  ASSERT_GT(n, 0);
  Hello answer;
  ASSERT_EQ(*DecodeHello(std::string_view(buffer, n), answer), 0);
  EXPECT_EQ(answer.verdict, Verdict::kWrongToken);
  EXPECT_EQ(answer.epoch, 0);
  EXPECT_EQ(answer.token, "");
  const absl::Status status = first.get().status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status));
  EXPECT_THAT(Message(status), HasSubstr("refused a connection: the tokens differ"));
}

TEST_P(FormingTest, RanksWithDifferentTokensSayWhyTheyCannotMeet) {
  SocketGroupOptions other = Within(milliseconds(400), Options(1, 2));
  other.token = "another";
  auto first = Form(Within(milliseconds(400), Options(0, 2)));
  auto second = Form(other);
  EXPECT_THAT(Message(first.get().status()), HasSubstr("the tokens differ"));
  EXPECT_THAT(Message(second.get().status()), HasSubstr("it refused the token"));
}

// An impostor listens at rank 0's address and accepts everybody, but does not know the token.
TEST_P(FormingTest, RankThatConnectsChecksTheAnswerToo) {
  const SocketGroupOptions options = Within(milliseconds(400), Options(1, 2));
  auto listener = Listener::Open(*ParseSocketAddress(addresses_[0]), 10);
  ASSERT_TRUE(listener.ok()) << listener.status();
  auto second = Form(options);
  std::vector<FileDescriptor> accepted;
  while (second.wait_for(milliseconds(5)) != std::future_status::ready) {
    FileDescriptor socket = listener->Accept();
    if (!socket.is_open()) continue;
    SendTo(socket, EncodeHello({Verdict::kAccepted, 0, 2, 5, "guess"}));
    accepted.push_back(std::move(socket));
  }
  EXPECT_THAT(Message(second.get().status()), AllOf(HasSubstr("rank 0"), HasSubstr("the tokens differ")));
}

TEST_P(FormingTest, ServerOfAnotherKindIsRecognised) {
  const SocketGroupOptions options = Within(milliseconds(400), Options(1, 2));
  auto listener = Listener::Open(*ParseSocketAddress(addresses_[0]), 10);
  ASSERT_TRUE(listener.ok()) << listener.status();
  auto second = Form(options);
  std::vector<FileDescriptor> accepted;
  while (second.wait_for(milliseconds(5)) != std::future_status::ready) {
    FileDescriptor socket = listener->Accept();
    if (!socket.is_open()) continue;
    SendTo(socket, "HTTP/1.1 400 Bad Request\r\n\r\n");
    accepted.push_back(std::move(socket));
  }
  EXPECT_THAT(Message(second.get().status()), HasSubstr("does not speak the protocol of ranks"));
}

TEST_P(FormingTest, HelloOfAnotherEpochIsRefusedWithBothNumbers) {
  auto first = Form(Within(milliseconds(500), Options(0, 2, 5)));
  const absl::Status status = Form(Options(1, 2, 4)).get().status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;  // at once: epoch 4 will not come again
  EXPECT_THAT(Message(status), HasSubstr("rank 0 is in epoch 5, this rank in epoch 4"));
  EXPECT_THAT(Message(first.get().status()), HasSubstr("rank 1 is in epoch 4, this rank in epoch 5"));
}

TEST_P(FormingTest, RankStillInItsLastEpochIsWaitedFor) {
  auto second = Form(Options(1, 2, 5));
  EXPECT_FALSE(Form(Within(milliseconds(200), Options(0, 2, 4))).get().ok());
  auto first = Form(Options(0, 2, 5));
  Formed a = first.get();
  Formed b = second.get();
  ASSERT_TRUE(a.ok()) << a.status();
  ASSERT_TRUE(b.ok()) << b.status();
  ExpectWorks(**a, **b);
}

TEST_P(FormingTest, RankOfAGroupOfAnotherSizeIsRefused) {
  SocketGroupOptions larger = Within(milliseconds(300), Options(1, 2));
  larger.addresses.push_back(GetParam() == GroupKind::kUnix ? "unix:" + folder_.path() + "/more" : "127.0.0.1:1");
  auto first = Form(Within(milliseconds(300), Options(0, 2)));
  auto second = Form(larger);
  EXPECT_THAT(Message(first.get().status()), HasSubstr("rank 1 belongs to a group of 3, this rank to one of 2"));
  EXPECT_THAT(Message(second.get().status()), HasSubstr("rank 0 belongs to a group of 2, this rank to one of 3"));
}

TEST_P(FormingTest, ExpiryNamesEveryMissingRank) {
  auto first = Form(Within(milliseconds(300), Options(1, 4)));
  auto second = Form(Within(milliseconds(300), Options(2, 4)));
  for (auto* one : {&first, &second}) {
    const absl::Status status = one->get().status();
    EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
    EXPECT_THAT(Message(status), AllOf(HasSubstr("epoch 5"), HasSubstr("rank 0 ("), HasSubstr("rank 3 (")));
  }
}

TEST_P(FormingTest, FormingCanBeCancelled) {
  std::atomic<bool> cancelled{false};
  SocketGroupOptions options = Options(0, 3);
  options.connect_deadline = milliseconds(60000);
  options.cancelled = &cancelled;
  auto first = Form(options);
  const FileDescriptor stranger = ConnectTo(0);
  cancelled = true;
  EXPECT_TRUE(absl::IsAborted(first.get().status()));
}

// Rank 0 is connected with an impostor of rank 1 that never comes to the last barrier.
TEST_P(FormingTest, WaitForTheLastBarrierCanBeCancelled) {
  std::atomic<bool> cancelled{false};
  SocketGroupOptions options = Options(0, 2);
  options.connect_deadline = milliseconds(60000);
  options.cancelled = &cancelled;
  auto first = Form(options);
  const FileDescriptor impostor = ConnectTo(0);
  SendTo(impostor, EncodeHello({Verdict::kHello, 1, 2, 5, "secret"}));
  char buffer[kMaxHelloBytes];
  pollfd entry{impostor.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&entry, 1, 5000), 1);
  EXPECT_GT(::recv(impostor.get(), buffer, sizeof buffer, 0), 0);
  std::this_thread::sleep_for(milliseconds(20));
  cancelled = true;
  EXPECT_TRUE(absl::IsAborted(first.get().status()));
}

TEST_P(FormingTest, RankThatStartsAgainWhileTheGroupFormsIsTakenBack) {
  auto first = Form(Options(0, 3));
  EXPECT_FALSE(Form(Within(milliseconds(200), Options(1, 3))).get().ok());
  auto second = Form(Options(1, 3));
  auto third = Form(Options(2, 3));
  Formed a = first.get();
  Formed b = second.get();
  Formed c = third.get();
  EXPECT_TRUE(a.ok()) << a.status();
  EXPECT_TRUE(b.ok()) << b.status();
  EXPECT_TRUE(c.ok()) << c.status();
}

TEST_P(FormingTest, GroupsFormAgainAndAgainInOneProcess) {
  for (uint64_t epoch = 1; epoch <= 10; ++epoch) {
    auto first = Form(Options(0, 2, epoch));
    auto second = Form(Options(1, 2, epoch));
    Formed a = first.get();
    Formed b = second.get();
    ASSERT_TRUE(a.ok()) << a.status();
    ASSERT_TRUE(b.ok()) << b.status();
    ExpectWorks(**a, **b);
    if (epoch % 2 == 0) (*a)->Abort("the next epoch");
  }
}

TEST_P(FormingTest, NothingIsLeftBehind) {
  const int before = NumOpenFiles();
  {
    auto first = Form(Options(0, 3));
    auto second = Form(Options(1, 3));
    auto third = Form(Options(2, 3));
    Formed a = first.get();
    Formed b = second.get();
    Formed c = third.get();
    ASSERT_TRUE(a.ok() && b.ok() && c.ok());
    EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));  // the socket files go when the group is formed
    (*b)->Abort("enough");
    EXPECT_FALSE((*a)->Barrier().ok());
  }
  EXPECT_EQ(NumOpenFiles(), before);
  EXPECT_FALSE(NewSocketGroup(Within(milliseconds(50), Options(1, 3))).ok());
  EXPECT_EQ(NumOpenFiles(), before);
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

TEST_P(FormingTest, OccupiedAddressIsSaidAtOnce) {
  const SocketGroupOptions options = Options(0, 2);
  auto listener = Listener::Open(*ParseSocketAddress(addresses_[0]), 10);
  ASSERT_TRUE(listener.ok());
  const absl::Status status = NewSocketGroup(options).status();
  EXPECT_THAT(Message(status), HasSubstr(addresses_[0]));
  EXPECT_FALSE(absl::IsDeadlineExceeded(status)) << status;
}

TEST(UnixSocketFiles, StaleOneIsReplacedButNothingElse) {
  TemporaryFolder folder;
  const std::string path = folder.path() + "/socket";
  const SocketAddress address = *ParseSocketAddress("unix:" + path);
  std::ofstream(path) << "precious";
  EXPECT_TRUE(absl::IsAlreadyExists(Listener::Open(address, 1).status()));
  EXPECT_TRUE(std::filesystem::is_regular_file(path));
  std::filesystem::remove(path);

  {  // what a killed process leaves: a file without a listener
    auto first = Listener::Open(address, 1);
    ASSERT_TRUE(first.ok());
    EXPECT_TRUE(absl::IsAlreadyExists(Listener::Open(address, 1).status()));
    std::filesystem::rename(path, path + "2");
  }
  std::filesystem::rename(path + "2", path);
  EXPECT_TRUE(Listener::Open(address, 1).ok());
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(SocketAddresses, AreReadAndRefused) {
  EXPECT_EQ(ParseSocketAddress("unix:/a/b")->host, "/a/b");
  EXPECT_EQ(ParseSocketAddress("node-1:7000")->port, "7000");
  EXPECT_EQ(ParseSocketAddress("[::1]:7000")->host, "::1");
  for (const char* text : {"unix:/a/b", "node-1:7000", "[::1]:7000"}) {
    EXPECT_EQ(ParseSocketAddress(text)->ToString(), text);
  }
  for (const std::string& text :
       {std::string(), std::string("unix:"), std::string("host"), std::string("host:"), std::string(":70"),
        std::string("host:0"), std::string("host:65536"), std::string("host:7x"), "unix:/" + std::string(200, 'a')}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseSocketAddress(text).status())) << text;
  }
}

TEST(SocketGroupOptions, AreChecked) {
  SocketGroupOptions options;
  EXPECT_TRUE(absl::IsInvalidArgument(NewSocketGroup(options).status()));
  options.addresses = {"unix:/tmp/a", "nonsense"};
  EXPECT_TRUE(absl::IsInvalidArgument(NewSocketGroup(options).status()));
  options.addresses = {"unix:/tmp/a", "unix:/tmp/b"};
  options.rank = 2;
  EXPECT_TRUE(absl::IsInvalidArgument(NewSocketGroup(options).status()));
  options.rank = 0;
  options.token = std::string(kMaxTokenBytes + 1, 'x');
  EXPECT_TRUE(absl::IsInvalidArgument(NewSocketGroup(options).status()));
}

}  // namespace
}  // namespace weir::worker
