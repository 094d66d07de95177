#include "worker/checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/worker/checkpoint_writer.h"
#include "worker/checkpoint/index_file.h"
#include "worker/checkpoint/json.h"

namespace weir::worker {
namespace {

using kernels::DType;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kNoData = 0;

absl::StatusOr<std::vector<SafetensorsEntry>> Parse(const std::string& header, int64_t data_bytes,
                                                    bool needs_data = true) {
  return ParseSafetensorsHeader(header, 8 + static_cast<int64_t>(header.size()) + data_bytes, needs_data, "f");
}

std::string Entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}";
}

std::string Header(const std::string& entries) { return "{" + entries + "}"; }

TEST(SafetensorsTest, GivesEntriesInTheOrderOfTheirData) {
  const std::string header =
      Header(Entry("b", "F8_E4M3", "[2,3]", "[8,14]") + "," + Entry("a", "F32", "[2]", "[0,8]") + "," +
             Entry("c", "BF16", "[]", "[14,16]") + ",\"__metadata__\":{\"format\":\"pt\"}");
  const auto entries = Parse(header, 16);
  ASSERT_TRUE(entries.ok()) << entries.status();
  ASSERT_EQ(entries->size(), 3u);
  EXPECT_EQ((*entries)[0].name, "a");
  EXPECT_EQ((*entries)[0].dtype, DType::kF32);
  EXPECT_EQ((*entries)[0].begin, 8 + static_cast<int64_t>(header.size()));
  EXPECT_EQ((*entries)[1].name, "b");
  EXPECT_THAT((*entries)[1].shape, ElementsAre(2, 3));
  EXPECT_EQ((*entries)[2].name, "c");
  EXPECT_EQ((*entries)[2].end, 24 + static_cast<int64_t>(header.size()));
}

TEST(SafetensorsTest, AcceptsPaddingAndEmptyTensors) {
  EXPECT_TRUE(Parse("{}   ", kNoData).ok());
  EXPECT_TRUE(Parse(Header(Entry("a", "F32", "[0,7]", "[0,0]") + "," + Entry("b", "F16", "[1]", "[0,2]")), 2).ok());
}

TEST(SafetensorsTest, AcceptsDataThatHasNotComeWhenToldSo) {
  const std::string header = Header(Entry("a", "F32", "[2]", "[0,8]"));
  EXPECT_FALSE(Parse(header, 3).ok());
  EXPECT_TRUE(Parse(header, 3, /*needs_data=*/false).ok());
}

struct BadHeader {
  const char* name;
  std::string header;
  int64_t data_bytes;
  std::string message;
};
void PrintTo(const BadHeader& bad, std::ostream* out) { *out << bad.name; }

const std::string kOne = Entry("a", "F32", "[2]", "[0,8]");

const BadHeader kBadHeaders[] = {
    {"Empty", "", 0, "f: expected a header that begins with '{', found none"},
    {"NoObject", "[1]", 0, "f: expected a header that begins with '{', found \"[\""},
    {"LeadingSpace", " {}", 0, "f: expected a header that begins with '{', found \" \""},
    {"MalformedJson", "{\"a\":", 0, "f: not valid JSON: parse error at line 1, column 6: syntax error"},
    {"TwoValues", "{}{}", 0, "f: not valid JSON: parse error at line 1, column 3"},
    {"MalformedUtf8", "{\"a\xff\":1}", 0, "f: not valid JSON: parse error at line 1, column 4"},
    {"LoneSurrogate", "{\"\\ud800\":1}", 0, "f: not valid JSON: parse error at line 1, column 9"},
    {"DuplicateName", Header(kOne + "," + kOne), 8, "f: not valid JSON: the key \"a\" stands twice in one object"},
    {"DuplicateField", "{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F16\"}}", 8,
     "f: not valid JSON: the key \"dtype\" stands twice in one object"},
    {"TooDeep", "{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}", 0,
     "f: not valid JSON: nested deeper than 32 levels"},
    {"NotAnEntry", "{\"a\":1}", 0,
     "f: tensor \"a\": expected an object with \"dtype\", \"shape\" and \"data_offsets\""},
    {"NoOffsets", "{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8,
     "f: tensor \"a\": expected an object with \"dtype\", \"shape\" and \"data_offsets\""},
    {"UnknownDType", Header(Entry("a", "F64", "[1]", "[0,8]")), 8,
     "f: tensor \"a\": expected dtype F32, F16, BF16 or F8_E4M3, found \"F64\""},
    {"DTypeIsNoString", "{\"a\":{\"dtype\":3,\"shape\":[2],\"data_offsets\":[0,8]}}", 8,
     "f: tensor \"a\": expected dtype F32, F16, BF16 or F8_E4M3, found no string"},
    {"NegativeShape", Header(Entry("a", "F32", "[-2]", "[0,8]")), 8,
     "f: tensor \"a\": expected a shape of at most 8 non-negative integers"},
    {"FractionalShape", Header(Entry("a", "F32", "[2.0]", "[0,8]")), 8,
     "f: tensor \"a\": expected a shape of at most 8 non-negative integers"},
    {"HugeShape", Header(Entry("a", "F32", "[18446744073709551615]", "[0,8]")), 8,
     "f: tensor \"a\": expected a shape of at most 8 non-negative integers"},
    {"TooManyDimensions", Header(Entry("a", "F32", "[1,1,1,1,1,1,1,1,2]", "[0,8]")), 8,
     "f: tensor \"a\": expected a shape of at most 8 non-negative integers"},
    {"OverflowingShape", Header(Entry("a", "F32", "[4294967296,4294967296]", "[0,0]")), 0,
     "f: tensor \"a\": expected more than 2^63 bytes for shape [4294967296, 4294967296] of F32, found 0 (data_offsets "
     "[0, "
     "0])"},
    {"OneOffset", Header(Entry("a", "F32", "[2]", "[8]")), 8,
     "f: tensor \"a\": expected data_offsets [begin, end], two non-negative integers"},
    {"NegativeOffset", Header(Entry("a", "F32", "[2]", "[-8,0]")), 8,
     "f: tensor \"a\": expected data_offsets [begin, end], two non-negative integers"},
    {"UnsortedOffsets", Header(Entry("a", "F32", "[2]", "[8,0]")), 8,
     "f: tensor \"a\": expected data_offsets in order, found [8, 0]"},
    {"SizeIsNotShapeTimesDType", Header(Entry("a", "F32", "[3]", "[0,8]")), 8,
     "f: tensor \"a\": expected 12 bytes for shape [3] of F32, found 8 (data_offsets [0, 8])"},
    {"Overlap", Header(kOne + "," + Entry("b", "F32", "[2]", "[4,12]")), 12,
     "f: tensor \"b\": its data begins at byte 4 and overlaps tensor \"a\", which ends at 8"},
    {"SamePlace", Header(kOne + "," + Entry("b", "F32", "[2]", "[0,8]")), 8,
     "f: tensor \"b\": its data begins at byte 0 and overlaps tensor \"a\", which ends at 8"},
    {"GapAtTheStart", Header(Entry("a", "F32", "[2]", "[4,12]")), 12,
     "f: tensor \"a\": expected its data to begin at byte 0, where the tensor before it ends, found 4: a gap that the "
     "format does not allow"},
    {"Gap", Header(kOne + "," + Entry("b", "F32", "[2]", "[9,17]")), 17,
     "f: tensor \"b\": expected its data to begin at byte 8, where the tensor before it ends, found 9: a gap that the "
     "format does not allow"},
    {"DataAtTheEndOfNoTensor", Header(kOne), 9,
     "f: expected 8 bytes of data after the header, found 9: the last 1 belong to no tensor"},
    {"Truncated", Header(kOne), 7,
     "f: tensor \"a\": expected 8 bytes of data, found 7: the file is truncated; fetch it again"},
    {"HugeOffsets", Header(Entry("a", "F8_E4M3", "[9223372036854775807]", "[0,9223372036854775807]")), 8,
     "f: tensor \"a\": expected 9223372036854775807 bytes of data, found 8: the file is truncated; fetch it again"},
    {"MetadataIsNoText", "{\"__metadata__\":{\"a\":1}}", 0, "f: expected \"__metadata__\" to be an object of strings"},
};

class BadHeaderTest : public ::testing::TestWithParam<BadHeader> {};
INSTANTIATE_TEST_SUITE_P(Bad, BadHeaderTest, ::testing::ValuesIn(kBadHeaders),
                         [](const auto& test) { return test.param.name; });

TEST_P(BadHeaderTest, IsRefusedByName) {
  const auto entries = Parse(GetParam().header, GetParam().data_bytes);
  ASSERT_FALSE(entries.ok());
  EXPECT_THAT(std::string(entries.status().message()), ::testing::StartsWith(GetParam().message));
}

TEST(SafetensorsTest, KeepsPlacesBeyondSixtyThreeBitsOutOfTheFile) {
  const std::string header = Header(Entry("a", "F8_E4M3", "[9223372036854775807]", "[0,9223372036854775807]"));
  EXPECT_THAT(std::string(Parse(header, 8, /*needs_data=*/false).status().message()),
              HasSubstr("its place in the file is beyond 2^63 bytes"));
}

TEST(SafetensorsTest, ReadsThePrefix) {
  const std::string prefix("\x10\x00\x00\x00\x00\x00\x00\x00", 8);
  EXPECT_EQ(*ParseSafetensorsPrefix(prefix, 24, "f"), 16);
  EXPECT_EQ(
      ParseSafetensorsPrefix(prefix, 23, "f").status().message(),
      "f: expected a header of 16 bytes, but the file ends 15 bytes after its length: the file is truncated; fetch it "
      "again");
  EXPECT_FALSE(ParseSafetensorsPrefix(prefix.substr(0, 7), 7, "f").ok());
  EXPECT_FALSE(ParseSafetensorsPrefix(std::string("\x01\xe1\xf5\x05\x00\x00\x00\x00", 8), int64_t{1} << 40, "f").ok());
  EXPECT_TRUE(ParseSafetensorsPrefix(std::string("\x00\xe1\xf5\x05\x00\x00\x00\x00", 8), int64_t{1} << 40, "f").ok());
}

TEST(IndexFileTest, GivesEachTensorItsFile) {
  const auto index = ParseIndexFile(
      R"({"metadata":{"total_size":3},"weight_map":{"x":"b.safetensors","y":"a.safetensors","z":"b.safetensors"}})",
      "i");
  ASSERT_TRUE(index.ok()) << index.status();
  EXPECT_THAT(index->files, ElementsAre("a.safetensors", "b.safetensors"));
  EXPECT_THAT(index->file_of_tensor, ElementsAre(std::pair("x", 1), std::pair("y", 0), std::pair("z", 1)));
}

TEST(IndexFileTest, RefusesWhatIsNoMapOfFileNames) {
  const auto message = [](const std::string& text) {
    return std::string(ParseIndexFile(text, "i").status().message());
  };
  EXPECT_EQ(message("{}"), "i: weight_map: expected an object that gives each tensor its file");
  EXPECT_EQ(message("[]"), "i: weight_map: expected an object that gives each tensor its file");
  EXPECT_EQ(message(R"({"weight_map":{}})"), "i: weight_map: expected an object that gives each tensor its file");
  const std::string expected =
      "i: weight_map: tensor \"x\": expected the name of a .safetensors file in the same directory, found ";
  EXPECT_EQ(message(R"({"weight_map":{"x":1}})"), expected + "no string");
  EXPECT_EQ(message(R"({"weight_map":{"x":"../a.safetensors"}})"), expected + "\"../a.safetensors\"");
  EXPECT_EQ(message(R"({"weight_map":{"x":"/a.safetensors"}})"), expected + "\"/a.safetensors\"");
  EXPECT_EQ(message(R"({"weight_map":{"x":"model.bin"}})"), expected + "\"model.bin\"");
  EXPECT_EQ(message(R"({"weight_map":{"x":"a\u0000.safetensors"}})"), expected + "\"a\\x00.safetensors\"");
  EXPECT_THAT(message(R"({"weight_map":{"x":"a.safetensors","x":"b.safetensors"}})"), HasSubstr("stands twice"));
}

TEST(JsonTest, RefusesMoreValuesThanItsBound) {
  std::string text = "[1";
  for (int64_t i = 0; i < kMaxJsonValues; ++i) text += ",1";
  EXPECT_EQ(ParseJson(text + "]", "j").status().message(), "j: not valid JSON: more than 8000000 values");
}

TEST(JsonTest, QuotesOutsideTextSafely) {
  EXPECT_EQ(Quoted("a\nb\x1b[31m\xff"), "\"a\\x0ab\\x1b[31m\\xff\"");
  EXPECT_EQ(Quoted("模型"), "\"模型\"");
  EXPECT_EQ(Quoted("\xc2\x9b"), "\"\\xc2\\x9b\"");
  EXPECT_EQ(Quoted(std::string(1000, 'x')).size(), 205u);
}

}  // namespace
}  // namespace weir::worker
