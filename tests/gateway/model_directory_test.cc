#include "gateway/models/model_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tests/gateway/text_samples.h"

namespace weir::gateway {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

class ModelDirectoryTest : public testing::Test {
 protected:
  ModelDirectoryTest() {
    char name[] = "/tmp/weir_model_directory_XXXXXX";
    path_ = mkdtemp(name);
    std::filesystem::copy_file(TestData("byte_tokenizer.json"), path_ + "/tokenizer.json");
    Write("config.json",
          R"({"vocab_size": 300, "max_position_embeddings": 2000, "bos_token_id": 0, "eos_token_id": 1})");
  }
  ~ModelDirectoryTest() override { std::filesystem::remove_all(path_); }

  void Write(const std::string& file, const std::string& text) const { std::ofstream(path_ + "/" + file) << text; }
  absl::StatusOr<std::unique_ptr<ServedModel>> Load(const std::string& chat_template = "auto",
                                                    int64_t max_model_len = 0) {
    notes_.clear();
    return LoadServedModel({.name = "m", .path = path_, .chat_template = chat_template, .max_model_len = max_model_len},
                           notes_);
  }
  std::string LoadError(const std::string& chat_template = "auto", int64_t max_model_len = 0) {
    const auto model = Load(chat_template, max_model_len);
    return model.ok() ? "" : std::string(model.status().message());
  }

  std::string path_;
  std::vector<std::string> notes_;
};

TEST_F(ModelDirectoryTest, ReadsTheLeastThatADirectoryHolds) {
  const auto model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->vocab_size, 300);
  EXPECT_EQ((*model)->max_model_len, 2000);
  EXPECT_THAT((*model)->eos_tokens, ElementsAre(1));
  EXPECT_EQ((*model)->bos_token, 0);
  EXPECT_FALSE((*model)->default_temperature.has_value());
  EXPECT_THAT(notes_, IsEmpty());
}

TEST_F(ModelDirectoryTest, GenerationConfigComesBeforeConfig) {
  Write("generation_config.json", R"({"eos_token_id": [2, 1], "temperature": 0.6, "top_p": 0.95, "top_k": null})");
  Write("tokenizer_config.json", R"({"add_bos_token": false})");
  const auto model = Load("auto", 100);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_THAT((*model)->eos_tokens, ElementsAre(2, 1));
  EXPECT_FLOAT_EQ(*(*model)->default_temperature, 0.6f);
  EXPECT_FLOAT_EQ(*(*model)->default_top_p, 0.95f);
  EXPECT_FALSE((*model)->bos_token.has_value());
  EXPECT_EQ((*model)->max_model_len, 100);
}

TEST_F(ModelDirectoryTest, TellsThePublishedTemplatesApart) {
  EXPECT_EQ((*Load())->chat_template->dialect(), ChatDialect::kV31) << "a vocabulary that can mark thoughts";
  Write("tokenizer_config.json", R"({"chat_template": "{% if thinking %}<think>{% endif %}"})");
  EXPECT_EQ((*Load())->chat_template->dialect(), ChatDialect::kV31);
  Write("tokenizer_config.json", R"({"chat_template": "{{'<｜Assistant｜><think>\\n'}}"})");
  EXPECT_EQ((*Load())->chat_template->dialect(), ChatDialect::kR1);
  Write("tokenizer_config.json", R"({"chat_template": "{{'<｜Assistant｜>'}}"})");
  EXPECT_EQ((*Load())->chat_template->dialect(), ChatDialect::kV3);
  EXPECT_EQ((*Load("deepseek_r1"))->chat_template->dialect(), ChatDialect::kR1);
  EXPECT_EQ((*Load("none"))->chat_template, nullptr);
}

TEST_F(ModelDirectoryTest, ATokenizerWithoutControlTokensOnlyGenerates) {
  nlohmann::json tokenizer;
  std::ifstream(TestData("byte_tokenizer.json")) >> tokenizer;
  tokenizer["added_tokens"] = nlohmann::json::array();
  Write("tokenizer.json", tokenizer.dump());
  const auto model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ((*model)->chat_template, nullptr);
  EXPECT_THAT(notes_, ElementsAre(HasSubstr("only generates")));
  EXPECT_THAT(LoadError("deepseek_v3"), HasSubstr(path_));
}

TEST_F(ModelDirectoryTest, EveryErrorNamesTheFileAndWhatIsExpected) {
  const auto with_config = [&](const std::string& config) {
    Write("config.json", config);
    return LoadError();
  };
  EXPECT_THAT(with_config("[1]"), HasSubstr("config.json: must be a JSON object"));
  EXPECT_THAT(with_config(R"({"max_position_embeddings": 5})"), HasSubstr("vocab_size is missing"));
  EXPECT_THAT(with_config(R"({"vocab_size": "many"})"), HasSubstr("vocab_size must be a whole number"));
  EXPECT_THAT(with_config(R"({"vocab_size": 18446744073709551615})"), HasSubstr("vocab_size must be a whole number"));
  EXPECT_THAT(with_config(R"({"vocab_size": 300, "max_position_embeddings": -1})"),
              HasSubstr("max_position_embeddings"));
  EXPECT_THAT(with_config(R"({"vocab_size": 300, "max_position_embeddings": 9, "eos_token_id": 300})"),
              HasSubstr("eos_token_id must be a whole number from 0 to 299"));
  EXPECT_THAT(with_config(R"({"vocab_size": 100, "max_position_embeddings": 9})"), HasSubstr("not of the same model"));
  Write("config.json", R"({"vocab_size": 300, "max_position_embeddings": 9})");
  EXPECT_EQ(LoadError(), "");
  EXPECT_THAT(notes_, ElementsAre(HasSubstr("no eos_token_id")));
  EXPECT_THAT(LoadError("auto", 10), HasSubstr("beyond the model's own 9"));
  EXPECT_THAT(LoadError("jinja"), HasSubstr("deepseek_v3"));
  Write("generation_config.json", R"({"temperature": 7})");
  EXPECT_THAT(LoadError(), HasSubstr("generation_config.json: temperature must be from 0 to 2"));
  std::filesystem::remove(path_ + "/generation_config.json");
  std::filesystem::remove(path_ + "/tokenizer.json");
  EXPECT_THAT(LoadError(), HasSubstr("tokenizer.json"));
  std::filesystem::remove(path_ + "/config.json");
  EXPECT_THAT(LoadError(), HasSubstr("config.json: cannot be opened"));
}

TEST(ParseModelFlagTest, TakesANameOrMakesOneOfTheDirectory) {
  EXPECT_EQ(ParseModelFlag("v3=/models/a")->name, "v3");
  EXPECT_EQ(ParseModelFlag("v3=/models/a")->path, "/models/a");
  EXPECT_EQ(ParseModelFlag("/models/DeepSeek-V3")->name, "DeepSeek-V3");
  EXPECT_EQ(ParseModelFlag("/models/DeepSeek-V3/")->name, "DeepSeek-V3");
  EXPECT_EQ(ParseModelFlag("org/v3:latest=x")->name, "org/v3:latest");
  for (const char* bad : {"", "=x", "a b=x", "v3=", "/"}) EXPECT_FALSE(ParseModelFlag(bad).ok()) << bad;
}

}  // namespace
}  // namespace weir::gateway
