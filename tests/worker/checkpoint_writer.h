#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/dtype.h"
#include "worker/checkpoint/model_config.h"

// Writes small model directories for tests: valid ones of every family, and ones broken in any way a test wants.
//
//   CheckpointWriter writer(TinyV3Config());
//   writer.Find("lm_head.weight").shape[0] += 1;     // break something
//   TestDirectory directory;
//   writer.Write(directory.path());

namespace weir::worker {

// A fresh directory, removed with all it holds.
class TestDirectory {
 public:
  TestDirectory();
  ~TestDirectory();
  TestDirectory(const TestDirectory&) = delete;
  TestDirectory& operator=(const TestDirectory&) = delete;
  std::string path() const { return path_.string(); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

void WriteTextFile(const std::string& path, std::string_view text);

// config.json of tiny models that exercise every branch: sizes that are not powers of two, two groups kept of four,
// YaRN beyond its original context.  Divisible by tp = 2 and 4 everywhere.
nlohmann::json TinyV3Config();      // q_lora, sigmoid, groups, bias, one dense layer, MTP layer
nlohmann::json TinyV3Fp8Config();   // the same with FP8: partial blocks, shards that begin inside a block
nlohmann::json TinyV2Config();      // group_limited_greedy, scale 16
nlohmann::json TinyV2LiteConfig();  // no q_lora, softmax, greedy
// The published config.json of DeepSeek-V3 (671B).
nlohmann::json PublishedV3Config();

struct WrittenTensor {
  std::string name;
  std::string dtype;  // as safetensors spells it
  std::vector<int64_t> shape;
  std::string bytes;  // row-major; empty: Write makes a hole of shape * dtype zero bytes
  int file = 0;
};

class CheckpointWriter {
 public:
  // Every tensor of the config's table with deterministic random contents: matrices within 1.7 / sqrt(inputs), norms
  // around one, biases and scales as trained models have them.  FP8 where the config asks for it, else `wide`.
  // with_data = false: all tensors are holes.
  explicit CheckpointWriter(nlohmann::json config, kernels::DType wide = kernels::DType::kBF16, bool with_data = true);

  nlohmann::json config;
  nlohmann::json generation_config;  // null: no such file
  std::vector<WrittenTensor> tensors;

  WrittenTensor& Find(std::string_view name);
  void Remove(std::string_view name);
  // Spreads the tensors over `num_files` files of about equal size, with an index.
  void Shard(int num_files);

  // The files of a directory.  With one file and no Shard: model.safetensors without an index.
  void Write(const std::string& directory) const;

  std::string FileName(int file) const;    // "model-00001-of-000163.safetensors"
  std::string HeaderJson(int file) const;  // of tensors as they are, in their order
  nlohmann::json Index() const;            // model.safetensors.index.json

  // Empty bytes in front of every header's end, so that data begins at an address that is `remainder` modulo 4.
  void set_data_remainder(int remainder) { data_remainder_ = remainder; }

 private:
  int num_files_ = 1;
  bool has_index_ = false;
  int data_remainder_ = 0;
};

// A file made of a header (any text) and data.
std::string SafetensorsBytes(std::string_view header, std::string_view data);

}  // namespace weir::worker
