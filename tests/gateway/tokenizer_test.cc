#include "gateway/text/tokenizer.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "gateway/text/utf8.h"
#include "tests/gateway/text_samples.h"

namespace weir::gateway {
namespace {

constexpr char kNoTokenizer[] = "the published tokenizer is not here: run tools/fetch_tokenizer.sh";

TEST(TokenizerTest, PlainTextNeverBecomesAControlToken) {
  const auto tokenizer = ByteTokenizer();
  const std::string text = "<｜User｜>";
  EXPECT_EQ(tokenizer->EncodeWithAddedTokens(text)->size(), 1u);
  EXPECT_EQ(tokenizer->EncodePlain(text)->size(), text.size());
  EXPECT_EQ(tokenizer->Decode(*tokenizer->EncodePlain(text)), text);
}

TEST(TokenizerTest, TextThatIsNotUtf8IsRefused) {
  EXPECT_EQ(ByteTokenizer()->EncodePlain("\xFF").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(TokenizerTest, AFileThatIsNoTokenizerIsRefusedByName) {
  const auto missing = Tokenizer::FromFile("/nonexistent/tokenizer.json");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  for (const char* json : {"", "{}", "[1,2", "{\"version\":\"1.0\"}"}) {
    EXPECT_EQ(Tokenizer::FromJson(json).status().code(), absl::StatusCode::kInvalidArgument) << json;
  }
}

TEST(TokenizerTest, PublishedSamplesAreExact) {
  const auto tokenizer = PublishedTokenizer(/*thinks=*/false);
  if (tokenizer == nullptr) GTEST_SKIP() << kNoTokenizer;
  int num_texts = 0, num_decodes = 0;
  for (const auto& sample : Samples("tokenizer_samples.jsonl")) {
    const std::string name = sample["name"];
    if (name.starts_with("decode/")) {
      std::string bytes;
      for (const TokenId id : sample["ids"]) bytes.append(tokenizer->TokenBytes(id));
      std::string hex;
      for (const char c : bytes) {
        constexpr char kDigits[] = "0123456789abcdef";
        hex.push_back(kDigits[static_cast<unsigned char>(c) >> 4]);
        hex.push_back(kDigits[static_cast<unsigned char>(c) & 15]);
      }
      EXPECT_EQ(hex, sample["bytes_hex"].get<std::string>()) << name;
      EXPECT_EQ(tokenizer->Decode(sample["ids"]), sample["decoded_with_special"].get<std::string>()) << name;
      ++num_decodes;
      continue;
    }
    const std::string text = sample["text"];
    EXPECT_EQ(*tokenizer->EncodePlain(text), sample["ids_plain"].get<std::vector<TokenId>>()) << name;
    EXPECT_EQ(*tokenizer->EncodeWithAddedTokens(text), sample["ids_with_special"].get<std::vector<TokenId>>()) << name;
    EXPECT_EQ(tokenizer->Decode(sample["ids_plain"]), sample["decoded_plain"].get<std::string>()) << name;
    EXPECT_EQ(tokenizer->Decode(sample["ids_with_special"]), sample["decoded_with_special"].get<std::string>()) << name;
    ++num_texts;
  }
  EXPECT_EQ(num_texts, 64);
  EXPECT_EQ(num_decodes, 6);
}

// What a stream shows, token by token, is what all tokens give at once.
TEST(TokenizerTest, StreamedTextEqualsDecodingAtOnce) {
  auto tokenizer = PublishedTokenizer(/*thinks=*/true);
  if (tokenizer == nullptr) tokenizer = ByteTokenizer();
  std::mt19937 random(11);
  for (int round = 0; round < 10000; ++round) {
    std::vector<TokenId> ids(1 + random() % 24);
    for (TokenId& id : ids) id = static_cast<TokenId>(random() % static_cast<uint32_t>(tokenizer->vocab_size()));
    Utf8Stream stream;
    std::string text;
    for (const TokenId id : ids) {
      stream.Append(tokenizer->TokenBytes(id), text);
      ASSERT_TRUE(IsValidUtf8(text));
    }
    stream.Finish(text);
    ASSERT_EQ(text, tokenizer->Decode(ids));
  }
}

}  // namespace
}  // namespace weir::gateway
