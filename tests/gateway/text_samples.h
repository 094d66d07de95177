#pragma once

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "gateway/text/tokenizer.h"

// The tokenizers and sample files that tests of text share.

namespace weir::gateway {

inline std::string TestData(const std::string& name) {
  return std::string(WEIR_SOURCE_DIR) + "/tests/gateway/testdata/" + name;
}

inline std::unique_ptr<Tokenizer> ByteTokenizer() {
  return std::move(Tokenizer::FromFile(TestData("byte_tokenizer.json"))).value();
}

// The published DeepSeek-V3 tokenizer; with `thinks`, its placeholders 798 and 799 are <think> and </think>, as in R1
// and V3.1. Null when tools/fetch_tokenizer.sh has not been run.
inline std::unique_ptr<Tokenizer> PublishedTokenizer(bool thinks) {
  const std::string path = std::string(WEIR_SOURCE_DIR) + "/build/downloads/deepseek_v3/tokenizer.json";
  if (!std::filesystem::exists(path)) return nullptr;
  std::ifstream file(path);
  nlohmann::json json = nlohmann::json::parse(file);
  if (thinks) {
    for (auto& token : json["added_tokens"]) {
      if (token["id"] == 128798) token["content"] = "<think>";
      if (token["id"] == 128799) token["content"] = "</think>";
    }
  }
  return std::move(Tokenizer::FromJson(json.dump())).value();
}

inline std::vector<nlohmann::json> Samples(const std::string& name) {
  std::vector<nlohmann::json> samples;
  std::ifstream file(TestData(name));
  for (std::string line; std::getline(file, line);) samples.push_back(nlohmann::json::parse(line));
  return samples;
}

}  // namespace weir::gateway
