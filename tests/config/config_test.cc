#include "config/config.h"

#include <gtest/gtest.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

namespace weir::config {
namespace {

struct Options {
  int max_num_seqs = 256;
  std::string listen = "127.0.0.1:0";
  std::vector<std::string> rank;
  bool verbose = false;
};

class ConfigTest : public testing::Test {
 protected:
  ConfigTest() {
    app_.add_option("--max-num-seqs", options_.max_num_seqs, "Sequences at once");
    app_.add_option("--listen", options_.listen, "Where to listen");
    app_.add_option("--rank", options_.rank, "A rank's address");
    app_.add_flag("--verbose", options_.verbose, "Say more");
    AddConfigOptions(app_);
  }
  std::string File(const std::string& text) {
    const std::string path = testing::TempDir() + "/weir_config_test_" + std::to_string(::getpid()) + ".yaml";
    std::ofstream(path) << text;
    return path;
  }
  void Parse(std::vector<std::string> arguments) {
    std::reverse(arguments.begin(), arguments.end());
    app_.parse(arguments);
  }
  std::string ErrorOf(const std::string& text) {
    try {
      Parse({"--config", File(text)});
    } catch (const CLI::ParseError& error) {
      return error.what();
    }
    return "";
  }

  Options options_;
  CLI::App app_;
};

TEST_F(ConfigTest, FileFillsOptionsAndFlagsWin) {
  Parse({"--config", File("max_num_seqs: 8\nlisten: unix:/tmp/x\nrank: [a, b]\nverbose: true\n"), "--listen", "y:1"});
  EXPECT_EQ(options_.max_num_seqs, 8);
  EXPECT_EQ(options_.listen, "y:1");
  EXPECT_EQ(options_.rank, (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(options_.verbose);
}

TEST_F(ConfigTest, AnUnknownKeyNamesTheNearestOne) {
  EXPECT_NE(ErrorOf("max_num_seq: 8\n").find("unknown configuration key 'max_num_seq'; did you mean 'max_num_seqs'?"),
            std::string::npos);
}

TEST_F(ConfigTest, AFarKeyIsNotGuessed) {
  EXPECT_NE(ErrorOf("tenants: 8\n").find("--print-config shows the known ones"), std::string::npos);
}

TEST_F(ConfigTest, AWrongValueIsAnError) { EXPECT_NE(ErrorOf("max_num_seqs: many\n"), ""); }
TEST_F(ConfigTest, WhatIsNotYamlIsAnError) {
  EXPECT_NE(ErrorOf("max_num_seqs: [1\n").find("not YAML"), std::string::npos);
}
TEST_F(ConfigTest, AMapInAValueIsAnError) {
  EXPECT_NE(ErrorOf("listen: {a: 1}\n").find("'listen'"), std::string::npos);
}

TEST_F(ConfigTest, AMissingFileIsAnError) {
  EXPECT_THROW(Parse({"--config", "/nonexistent/weir.yaml"}), CLI::ParseError);
}

TEST_F(ConfigTest, PrintConfigShowsWhatIsInForceAndCanBeReadBack) {
  testing::internal::CaptureStdout();
  EXPECT_THROW(Parse({"--max-num-seqs", "12", "--rank", "a", "--rank", "b: c", "--print-config"}), CLI::Success);
  const std::string text = testing::internal::GetCapturedStdout();
  EXPECT_EQ(text,
            "# Sequences at once\nmax_num_seqs: 12\n# Where to listen\nlisten: 127.0.0.1:0\n# A rank's address\nrank: "
            "[a, \"b: "
            "c\"]\n# Say more\nverbose: false\n");
  Parse({"--config", File(text)});
  EXPECT_EQ(options_.max_num_seqs, 12);
  EXPECT_EQ(options_.rank, (std::vector<std::string>{"a", "b: c"}));
}

class ExitTest : public ::testing::Test {
 protected:
  ExitTest() {
    CLI::App* up = app_.add_subcommand("up");
    up->add_option("--model", model_)->required();
    up->add_flag("--verbose");
    app_.add_subcommand("chat");
    app_.require_subcommand(1);
  }

  // What `weir` and these arguments print to standard error.
  std::string ErrorOf(std::vector<const char*> arguments) {
    arguments.insert(arguments.begin(), "/usr/bin/weir");
    const int count = static_cast<int>(arguments.size());
    testing::internal::CaptureStderr();
    try {
      app_.parse(count, arguments.data());
      exit_code_ = -1;
    } catch (const CLI::ParseError& error) {
      exit_code_ = Exit(app_, error, count, arguments.data());
    }
    return testing::internal::GetCapturedStderr();
  }

  CLI::App app_;
  std::string model_;
  int exit_code_ = -1;
};

TEST_F(ExitTest, NamesAMisspeltOptionBeforeWhatIsMissingBecauseOfIt) {
  EXPECT_EQ(ErrorOf({"up", "--modle", "DIR"}),
            "weir up: unknown option '--modle'; did you mean '--model'?\n`weir up --help` tells what there is.\n");
  EXPECT_EQ(exit_code_, 2);
  EXPECT_EQ(ErrorOf({"up", "--modle=DIR"}).find("weir up: unknown option '--modle'; did you"), 0U);
}

TEST_F(ExitTest, NamesAMisspeltCommand) {
  EXPECT_EQ(ErrorOf({"caht"}).find("weir: unknown command 'caht'; did you mean 'chat'?"), 0U);
  EXPECT_EQ(exit_code_, 2);
}

TEST_F(ExitTest, TakesAnOptionsValueForNoWordOfItsOwn) {
  EXPECT_EQ(ErrorOf({"up", "--model", "chat", "--verbos"}).find("weir up: unknown option '--verbos'"), 0U);
  EXPECT_EQ(ErrorOf({"up", "--verbose"}).find("weir up: --model is required"), 0U);
}

TEST(NearestTest, FindsTypingErrors) {
  const std::vector<std::string> known = {"listen", "max_num_seqs", "model"};
  EXPECT_EQ(Nearest("lsiten", known), "listen");
  EXPECT_EQ(Nearest("max-num-seqs", known), "max_num_seqs");
  EXPECT_EQ(Nearest("quota", known), "");
}

}  // namespace
}  // namespace weir::config
