// What a rank does with messages that no RankClient would send.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "tests/worker/communicator/group_of_threads.h"
#include "tests/worker/service/served_rank.h"
#include "weir/worker/v1/worker.grpc.pb.h"
#include "worker/service/plan_codec.h"

namespace weir::worker {
namespace {

using testing::HasSubstr;

class RawStreamTest : public testing::Test {
 protected:
  RawStreamTest() { rank_.FinishLoading(); }

  // Sends what `request` was made to hold, and reads on; the status of the call.
  grpc::Status StatusAfter(const std::vector<v1::RunRequest>& requests) {
    auto stub = v1::WorkerService::NewStub(grpc::CreateChannel(rank_.address(), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    auto stream = stub->Run(&context);
    for (const v1::RunRequest& request : requests) {
      if (!stream->Write(request)) break;
      if (request.has_hello() && !stream->Read(&response_)) break;
    }
    while (stream->Read(&response_)) {
    }
    return stream->Finish();
  }
  static v1::RunRequest Hello() {
    v1::RunRequest request;
    request.mutable_hello()->set_build("build-1");
    return request;
  }

  TemporaryFolder folder_;
  ServedRank rank_{folder_.path(), {}};
  v1::RunResponse response_;
};

TEST_F(RawStreamTest, FirstMessageMustBeAHello) {
  v1::RunRequest request;
  EncodePlan(PlanOf(1, 1, {0}), *request.mutable_plan());
  const grpc::Status status = StatusAfter({request});
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("hello"));
}

TEST_F(RawStreamTest, SecondHelloEndsTheStream) {
  const grpc::Status status = StatusAfter({Hello(), Hello()});
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(RawStreamTest, EmptyRequestEndsTheStream) {
  EXPECT_EQ(StatusAfter({Hello(), v1::RunRequest()}).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(RawStreamTest, MalformedPlanEndsTheStreamWithTheFieldsName) {
  v1::RunRequest request;
  EncodePlan(PlanOf(1, 1, {0}), *request.mutable_plan());
  request.mutable_plan()->mutable_work(0)->set_slot(0x80000000u);
  const grpc::Status status = StatusAfter({Hello(), request});
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("work[0].slot is 2147483648"));
  EXPECT_EQ(rank_.rank->num_steps, 0);
}

TEST_F(RawStreamTest, MalformedGroupOrderEndsTheStream) {
  v1::RunRequest request;
  request.mutable_form_group()->set_epoch(1);
  const grpc::Status status = StatusAfter({Hello(), request});
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("addresses"));
}

}  // namespace
}  // namespace weir::worker
