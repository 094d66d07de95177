// What a client is told of bytes that are no message.

#include "gateway/request/wire_faults.h"

#include <gmock/gmock.h>
#include <google/protobuf/stubs/logging.h>
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "weir/v1/inference.pb.h"

namespace weir::gateway {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

struct Case {
  std::string bytes, field, description;
};

std::string Bytes(std::initializer_list<int> list) { return {list.begin(), list.end()}; }

// messages[0] { tool_calls[0] { id: "..." } } with the lengths as they should be, around `inner`.
std::string InToolCall(const std::string& inner) {
  const std::string call = Bytes({0x22, static_cast<int>(inner.size())}) + inner;
  return Bytes({0x12, static_cast<int>(call.size())}) + call;
}

TEST(WireFaultsTest, NamesTheFieldAndWhatIsWrongWithIt) {
  const google::protobuf::LogSilencer silence;
  const std::vector<Case> cases = {
      {Bytes({0x0a, 0x05, 'a'}), "model", "is said to be 5 bytes long, but only 1 are left (byte 2)"},
      {Bytes({0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f}), "model", "is said to be 4294967295 bytes long, but only 0"},
      {Bytes({0x0a}), "model", "is cut off inside of its size"},
      {Bytes({0x0a, 0x01, 0xff}), "model", "is not valid UTF-8"},
      {InToolCall(Bytes({0x0a, 0x02, 0xc3, 0x28})), "messages[0].tool_calls[0].id", "is not valid UTF-8"},
      {InToolCall("") + InToolCall(Bytes({0x12, 0x09})), "messages[1].tool_calls[0].name", "but only 0 are left"},
      {Bytes({0x00}), "", "has a field with the number 0"},
      {Bytes({0x80}), "", "is cut off inside of a field's number"},
      {Bytes({0xed, 0xff, 0xff, 0xff, 0xff, 0x03}), "", "or the number is too large"},
      {Bytes({0x0c}), "", "ends a group that has not begun"},
      {Bytes({0x0e}), "model", "has wire type 6, which does not exist"},
      {InToolCall(Bytes({0x0b})), "messages[0].tool_calls[0].id", "is cut off"},
      {Bytes({0xf8, 0x3f}), "field 1023", "is cut off, or a number of more than 64 bits"},
      {Bytes({0xf9, 0x3f, 1, 2}), "field 1023", "is cut off inside of a number of 8 bytes"},
      {Bytes({0xfd, 0x3f, 1, 2}), "field 1023", "is cut off inside of a number of 4 bytes"},
  };
  for (const Case& one : cases) {
    ASSERT_FALSE(v1::ChatRequest().ParseFromString(one.bytes));
    const RequestError error = MalformedMessage(*v1::ChatRequest::descriptor(), one.bytes);
    EXPECT_EQ(error.code, RequestError::Code::kInvalidArgument);
    EXPECT_EQ(error.reason, "MALFORMED_MESSAGE");
    ASSERT_EQ(error.violations.size(), 1u);
    EXPECT_THAT(error.message, StartsWith("the bytes are no weir.v1.ChatRequest: "));
    EXPECT_THAT(error.message, EndsWith(error.violations[0].description));
    EXPECT_EQ(error.violations[0].field, one.field);
    EXPECT_THAT(error.violations[0].description, HasSubstr(one.description));
  }
}

TEST(WireFaultsTest, SaysWhenMessagesAreNestedTooDeep) {
  const RequestError error = MalformedMessage(*v1::ChatRequest::descriptor(), std::string(200, 0x0b));
  EXPECT_THAT(error.message, HasSubstr("is nested deeper than 100 messages"));
}

// Numbers in one length: token_ids { ids: [...] }, whose last number is cut off.
TEST(WireFaultsTest, LooksIntoPackedNumbers) {
  const std::string ids = Bytes({0x0a, 0x03, 0x01, 0x02, 0x80});
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(1);
  const std::string good = request.SerializeAsString();
  const std::string bytes = good.substr(0, 1) + Bytes({static_cast<int>(ids.size())}) + ids;
  ASSERT_FALSE(request.ParseFromString(bytes));
  const RequestError error = MalformedMessage(*v1::GenerateRequest::descriptor(), bytes);
  EXPECT_EQ(error.violations[0].field, "token_ids.ids[0]");
  EXPECT_THAT(error.message, HasSubstr("is cut off, or a number of more than 64 bits"));
}

// Whatever protobuf refuses has a place at which it is wrong.
TEST(WireFaultsTest, FindsAFaultInEverythingThatCannotBeParsed) {
  const google::protobuf::LogSilencer silence;
  v1::ChatRequest request;
  request.set_model("model");
  for (int i = 0; i < 3; ++i) {
    v1::Message& message = *request.add_messages();
    message.set_content("some text");
    message.add_tool_calls()->set_name("name");
  }
  request.mutable_sampling()->set_temperature(0.5F);
  request.mutable_stop_conditions()->add_stop("stop");
  const std::string good = request.SerializeAsString();
  std::mt19937 random(1);
  int num_bad = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string bytes = good.substr(0, random() % (good.size() + 1));
    for (uint32_t n = random() % 4; n > 0 && !bytes.empty(); --n) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    if (request.ParseFromString(bytes)) continue;
    ++num_bad;
    const RequestError error = MalformedMessage(*v1::ChatRequest::descriptor(), bytes);
    ASSERT_THAT(error.message, HasSubstr("(byte ")) << testing::PrintToString(bytes);
  }
  EXPECT_GT(num_bad, 1000);
}

TEST(WireFaultsTest, SaysBothSizesOfWhatIsTooLarge) {
  const RequestError error = MessageTooLarge(9'000'000);
  EXPECT_EQ(error.reason, "MESSAGE_TOO_LARGE");
  EXPECT_EQ(error.message, "the message has 9000000 bytes; at most 8388608 are allowed");
  EXPECT_EQ(error.violations[0].field, "");
  EXPECT_EQ(MetadataTooLarge(9'000).message, "metadata has 9000 bytes; at most 8192 are allowed");
}

}  // namespace
}  // namespace weir::gateway
