#include "worker/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>

#include "kernels/check.h"
#include "tests/worker/checkpoint_writer.h"
#include "worker/checkpoint/scale_blocks.h"
#include "worker/checkpoint/unreadable_files.h"

namespace weir::worker {
namespace {

using kernels::DType;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenWritten(const CheckpointWriter& writer,
                                                        const TestDirectory& directory) {
  writer.Write(directory.path());
  return Checkpoint::Open(directory.path());
}

const TensorSpec& SpecOf(const Checkpoint& checkpoint, std::string_view name) {
  for (const TensorSpec& spec : checkpoint.table()) {
    if (spec.name == name) return spec;
  }
  ADD_FAILURE() << name;
  return checkpoint.table().front();
}

// ---- what is good ----

class EveryFamilyTest : public ::testing::TestWithParam<nlohmann::json (*)()> {};
INSTANTIATE_TEST_SUITE_P(Families, EveryFamilyTest,
                         ::testing::Values(TinyV3Config, TinyV3Fp8Config, TinyV2Config, TinyV2LiteConfig));

TEST_P(EveryFamilyTest, OpensFromOneFileAndFromSeveral) {
  for (const int num_files : {0, 1, 3}) {
    TestDirectory directory;
    CheckpointWriter writer(GetParam()());
    if (num_files > 0) writer.Shard(num_files);
    const auto checkpoint = OpenWritten(writer, directory);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->num_tensors(), static_cast<int64_t>(writer.tensors.size()));
    EXPECT_EQ((*checkpoint)->files().size(), std::max<size_t>(num_files, 1));
    for (const WrittenTensor& written : writer.tensors) {
      const TensorInfo& tensor = (*checkpoint)->tensor(written.name);
      ASSERT_EQ(tensor.num_bytes, static_cast<int64_t>(written.bytes.size()));
      EXPECT_EQ(std::memcmp(tensor.data, written.bytes.data(), written.bytes.size()), 0) << written.name;
    }
  }
}

TEST_P(EveryFamilyTest, OpensInEveryWideDType) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    TestDirectory directory;
    const auto checkpoint = OpenWritten(CheckpointWriter(GetParam()(), dtype), directory);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->tensor("lm_head.weight").dtype, dtype);
  }
}

// The parts of all ranks of a tp group, put together, are the tensor.
TEST_P(EveryFamilyTest, PartsOfAllRanksMakeTheWhole) {
  TestDirectory directory;
  const auto opened = OpenWritten(CheckpointWriter(GetParam()()), directory);
  ASSERT_TRUE(opened.ok()) << opened.status();
  const Checkpoint& checkpoint = **opened;
  constexpr int32_t kTp = 4;
  const ExpertMap experts = ExpertMap::Contiguous(checkpoint.config().n_routed_experts, kTp);
  for (const TensorSpec& spec : checkpoint.table()) {
    const TensorInfo& tensor = checkpoint.tensor(spec.name);
    std::string rebuilt(tensor.num_bytes, '\0');
    int64_t num_elements = 0;
    for (int32_t rank = 0; rank < kTp; ++rank) {
      const TensorPart part = PartOf(spec, {kTp, 1, rank}, experts);
      const kernels::HostMatrix matrix = checkpoint.Part(spec, part);
      const int64_t size = kernels::SizeOf(matrix.dtype);
      num_elements += matrix.rows * matrix.cols;
      for (int64_t row = 0; row < matrix.rows; ++row) {
        std::memcpy(&rebuilt[((matrix.first_row + row) * spec.shape.back() + matrix.first_col) * size],
                    static_cast<const char*>(matrix.data) + row * matrix.row_stride * size, matrix.cols * size);
      }
    }
    if (spec.split == TensorSplit::kUnused) {
      EXPECT_EQ(num_elements, 0) << spec.name;
      continue;
    }
    const int64_t copies = spec.split == TensorSplit::kReplicated ? kTp : 1;
    EXPECT_EQ(num_elements * kernels::SizeOf(tensor.dtype), tensor.num_bytes * copies) << spec.name;
    EXPECT_EQ(std::memcmp(rebuilt.data(), tensor.data, tensor.num_bytes), 0) << spec.name;
  }
}

TEST(CheckpointTest, GivesScalesAlignedWhereverTheFilePutsThem) {
  for (const int remainder : {0, 1, 2, 3}) {
    TestDirectory directory;
    CheckpointWriter writer(TinyV3Fp8Config());
    writer.set_data_remainder(remainder);
    const auto opened = OpenWritten(writer, directory);
    ASSERT_TRUE(opened.ok()) << opened.status();
    const Checkpoint& checkpoint = **opened;
    const ExpertMap experts = ExpertMap::Contiguous(checkpoint.config().n_routed_experts, 2);
    for (const TensorSpec& spec : checkpoint.table()) {
      const TensorPart part = PartOf(spec, {2, 1, 1}, experts);
      const kernels::HostMatrix matrix = checkpoint.Part(spec, part);
      if (matrix.dtype != DType::kF8E4M3) {
        EXPECT_EQ(matrix.scales, nullptr);
        continue;
      }
      ASSERT_EQ(reinterpret_cast<uintptr_t>(matrix.scales) % alignof(float), 0u);
      EXPECT_TRUE(checkpoint.CheckScales(spec, part).ok());
      const std::string& written = writer.Find(spec.name + "_scale_inv").bytes;
      const ScaleBlocks blocks = ScaleBlocksOf(part);
      for (int64_t row = blocks.first_row; row < blocks.first_row + blocks.rows; ++row) {
        EXPECT_EQ(std::memcmp(matrix.scales + row * matrix.scales_stride + blocks.first_col,
                              written.data() + (row * matrix.scales_stride + blocks.first_col) * sizeof(float),
                              blocks.cols * sizeof(float)),
                  0)
            << spec.name;
      }
    }
  }
}

TEST(CheckpointTest, OpensWithoutTheMtpLayerThatTheConfigPromises) {
  TestDirectory directory;
  CheckpointWriter writer(TinyV3Config());
  std::erase_if(writer.tensors, [](const WrittenTensor& t) { return t.name.starts_with("model.layers.3."); });
  const auto checkpoint = OpenWritten(writer, directory);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->config().num_nextn_predict_layers, 0);
}

TEST(CheckpointTest, IgnoresTheFrequencyBuffersOfOldExports) {
  TestDirectory directory;
  CheckpointWriter writer(TinyV3Config());
  writer.tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", "F32", {8}, std::string(32, 'x'), 0});
  const auto checkpoint = OpenWritten(writer, directory);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
}

TEST(CheckpointTest, TakesEndTokensFromTheGenerationConfig) {
  TestDirectory directory;
  CheckpointWriter writer(TinyV3Config());
  writer.generation_config = {{"eos_token_id", {1, 7}}};
  const auto checkpoint = OpenWritten(writer, directory);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT((*checkpoint)->config().eos_token_ids, ::testing::ElementsAre(1, 7));
}

TEST(CheckpointTest, HashesWhatIsInTheDirectoryAndNotWhereItLies) {
  TestDirectory first, second, third;
  CheckpointWriter writer(TinyV3Config());
  const auto a = OpenWritten(writer, first);
  const auto b = OpenWritten(writer, second);
  std::swap(writer.tensors[3], writer.tensors[4]);
  const auto c = OpenWritten(writer, third);
  ASSERT_TRUE(a.ok() && b.ok() && c.ok());
  EXPECT_EQ((*a)->manifest_hash(), (*b)->manifest_hash());
  EXPECT_NE((*a)->manifest_hash(), (*c)->manifest_hash());
}

TEST(CheckpointTest, FollowsTheLinksOfHuggingFacesCache) {
  TestDirectory cache;
  const std::string model = cache / "models--lab--tiny";
  const std::string snapshot = model + "/snapshots/abc";
  CheckpointWriter(TinyV3Config()).Write(snapshot);
  std::filesystem::create_directories(model + "/blobs");
  std::filesystem::rename(snapshot + "/model.safetensors", model + "/blobs/d1");
  std::filesystem::create_symlink("../../blobs/d1", snapshot + "/model.safetensors");
  EXPECT_TRUE(Checkpoint::Open(snapshot).ok());
}

TEST(CheckpointTest, OpensHeadersWhoseDataHasNotCome) {
  TestDirectory directory;
  CheckpointWriter writer(TinyV3Config());
  writer.Write(directory.path());
  std::filesystem::resize_file(directory / "model.safetensors", 8 + writer.HeaderJson(0).size() + 1000);
  EXPECT_FALSE(Checkpoint::Open(directory.path()).ok());
  const auto checkpoint = Checkpoint::Open(directory.path(), {.needs_data = false});
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->tensor("lm_head.weight").data, nullptr);
  EXPECT_GT(Summarize(**checkpoint).bytes.total(), 1000);
}

// ---- what is bad: each with the file, the tensor, what is expected and what was found ----

struct BadDirectory {
  const char* name;
  nlohmann::json (*config)();
  std::function<void(CheckpointWriter&)> break_writer;    // before writing
  std::function<void(const TestDirectory&)> break_files;  // after writing
  std::string message;                                    // without the directory in front
};

void PrintTo(const BadDirectory& bad, std::ostream* out) { *out << bad.name; }

// Replaces model.safetensors.
std::function<void(const TestDirectory&)> WithFile(const std::string& bytes) {
  return [bytes](const TestDirectory& directory) { WriteTextFile(directory / "model.safetensors", bytes); };
}

std::function<void(const TestDirectory&)> WithIndexEntry(const char* tensor, const char* file) {
  return [=](const TestDirectory& directory) {
    CheckpointWriter writer(TinyV3Config());
    writer.Shard(2);
    nlohmann::json index = writer.Index();
    if (file == nullptr) {
      index["weight_map"].erase(tensor);
    } else {
      index["weight_map"][tensor] = file;
    }
    WriteTextFile(directory / "model.safetensors.index.json", index.dump());
  };
}

const auto kShard = [](CheckpointWriter& writer) { writer.Shard(2); };

const BadDirectory kBadDirectories[] = {
    {"MissingTensor",
     TinyV3Config,
     [](CheckpointWriter& w) { w.Remove("model.layers.1.mlp.gate.weight"); },
     {},
     ": tensor \"model.layers.1.mlp.gate.weight\": expected shape [16, 64], found no such tensor in 1 file (1 of 207 "
     "are "
     "missing)"},
    {"MissingMtpTensor",
     TinyV3Config,
     [](CheckpointWriter& w) { w.Remove("model.layers.3.enorm.weight"); },
     {},
     ": tensor \"model.layers.3.enorm.weight\": expected shape [64], found no such tensor in 1 file (1 of 207 are "
     "missing)"},
    {"ExtraTensor",
     TinyV3Config,
     [](CheckpointWriter& w) { w.tensors.push_back({"model.layers.0.mlp.bias", "F32", {1}, "1234", 0}); },
     {},
     "/model.safetensors: tensor \"model.layers.0.mlp.bias\": expected no such tensor in a DeepseekV3ForCausalLM of "
     "config.json's sizes, found one"},
    {"MtpTensorsWithoutConfig",
     TinyV3Config,
     [](CheckpointWriter& w) { w.config["num_nextn_predict_layers"] = 0; },
     {},
     "/model.safetensors: tensor \"model.layers.3.eh_proj.weight\": expected no MTP layer, since config.json has no "
     "num_nextn_predict_layers, found this tensor of one"},
    {"WrongShape",
     TinyV3Config,
     [](CheckpointWriter& w) { w.Find("lm_head.weight").shape = {64, 96}; },
     {},
     "/model.safetensors: tensor \"lm_head.weight\": expected shape [96, 64], which config.json gives, found [64, 96]"},
    {"WrongDimensions",
     TinyV3Config,
     [](CheckpointWriter& w) { w.Find("model.norm.weight").shape = {64, 1}; },
     {},
     "/model.safetensors: tensor \"model.norm.weight\": expected shape [64], which config.json gives, found [64, 1]"},
    {"UnknownDType",
     TinyV3Config,
     [](CheckpointWriter& w) { w.Find("model.norm.weight").dtype = "I16"; },
     {},
     "/model.safetensors: tensor \"model.norm.weight\": expected dtype F32, F16, BF16 or F8_E4M3, found \"I16\""},
    {"Fp8WhereNoneBelongs",
     TinyV3Fp8Config,
     [](CheckpointWriter& w) {
       w.Find("lm_head.weight").dtype = "F8_E4M3";
       w.Find("lm_head.weight").bytes.resize(96 * 192);
     },
     {},
     "/model.safetensors: tensor \"lm_head.weight\": expected dtype BF16, F16 or F32, found F8_E4M3"},
    {"Fp8WithoutQuantizationConfig",
     TinyV3Fp8Config,
     [](CheckpointWriter& w) { w.config.erase("quantization_config"); },
     {},
     "/model.safetensors: tensor \"model.layers.0.self_attn.q_a_proj.weight\": expected dtype BF16, F16 or F32, since "
     "config.json has no quantization_config, found F8_E4M3"},
    {"Fp8WithoutScales",
     TinyV3Fp8Config,
     [](CheckpointWriter& w) { w.Remove("model.layers.0.self_attn.o_proj.weight_scale_inv"); },
     {},
     ": tensor \"model.layers.0.self_attn.o_proj.weight_scale_inv\": expected F32 [2, 2], the scales of an F8_E4M3 "
     "tensor, "
     "found no such tensor"},
    {"ScalesOfWrongShape",
     TinyV3Fp8Config,
     [](CheckpointWriter& w) { w.Find("model.layers.0.self_attn.o_proj.weight_scale_inv").shape = {4, 1}; },
     {},
     "/model.safetensors: tensor \"model.layers.0.self_attn.o_proj.weight_scale_inv\": expected F32 [2, 2], found F32 "
     "[4, "
     "1]"},
    {"ScalesOfWrongDType",
     TinyV3Fp8Config,
     [](CheckpointWriter& w) {
       w.Find("model.layers.0.self_attn.o_proj.weight_scale_inv").dtype = "BF16";
       w.Find("model.layers.0.self_attn.o_proj.weight_scale_inv").bytes.resize(8);
     },
     {},
     "/model.safetensors: tensor \"model.layers.0.self_attn.o_proj.weight_scale_inv\": expected F32 [2, 2], found BF16 "
     "[2, "
     "2]"},
    {"ScalesWithoutFp8",
     TinyV3Config,
     [](CheckpointWriter& w) { w.tensors.push_back({"lm_head.weight_scale_inv", "F32", {1, 1}, "1234", 0}); },
     {},
     "/model.safetensors: tensor \"lm_head.weight_scale_inv\": expected no scales, since lm_head.weight is not "
     "F8_E4M3"},
    {"TensorInTwoFiles",
     TinyV3Config,
     [](CheckpointWriter& w) {
       w.Shard(2);
       w.tensors.push_back(w.tensors.front());
       w.tensors.back().file = 1;
     },
     {},
     "/model-00002-of-000002.safetensors: tensor \"model.embed_tokens.weight\": expected once, found in "},
    {"TruncatedData",
     TinyV3Config,
     {},
     [](const TestDirectory& d) {
       std::filesystem::resize_file(d / "model.safetensors", std::filesystem::file_size(d / "model.safetensors") - 1);
     },
     "/model.safetensors: tensor \"model.layers.3.shared_head.head.weight\": expected "},
    {"TruncatedHeader",
     TinyV3Config,
     {},
     [](const TestDirectory& d) { std::filesystem::resize_file(d / "model.safetensors", 100); },
     "/model.safetensors: expected a header of "},
    {"EmptyFile",
     TinyV3Config,
     {},
     WithFile(""),
     "/model.safetensors: expected a safetensors file of at least 8 bytes, found 0"},
    {"HeaderBeyondTheBound",
     TinyV3Config,
     {},
     WithFile("\xff\xff\xff\xff\xff\xff\xff\xff{}"),
     "/model.safetensors: expected a header of at most 100000000 bytes, found a length of 18446744073709551615: not a "
     "safetensors file, or a damaged one"},
    {"NoModelFile",
     TinyV3Config,
     {},
     [](const TestDirectory& d) { std::filesystem::remove(d / "model.safetensors"); },
     ": expected model.safetensors or model.safetensors.index.json, found neither"},
    {"NoConfig",
     TinyV3Config,
     {},
     [](const TestDirectory& d) { std::filesystem::remove(d / "config.json"); },
     "/config.json: cannot open it"},
    {"MalformedConfig",
     TinyV3Config,
     {},
     [](const TestDirectory& d) { WriteTextFile(d / "config.json", "{\"a\": 1,"); },
     "/config.json: not valid JSON: parse error at line 1, column 9"},
    {"MalformedGenerationConfig",
     TinyV3Config,
     {},
     [](const TestDirectory& d) { WriteTextFile(d / "generation_config.json", ""); },
     "/config.json (generation_config.json): not valid JSON: "},
    {"IndexNamesAMissingFile", TinyV3Config, kShard, WithIndexEntry("lm_head.weight", "model-9.safetensors"),
     "/model.safetensors.index.json: weight_map: expected the file \"model-9.safetensors\" in the directory, found "
     "none"},
    {"IndexLacksATensor", TinyV3Config, kShard, WithIndexEntry("model.embed_tokens.weight", nullptr),
     "/model-00001-of-000002.safetensors: tensor \"model.embed_tokens.weight\": expected an entry in "},
    {"IndexPutsATensorElsewhere", TinyV3Config, kShard,
     WithIndexEntry("model.embed_tokens.weight", "model-00002-of-000002.safetensors"),
     "/model-00001-of-000002.safetensors: tensor \"model.embed_tokens.weight\": expected in "},
    {"IndexNamesAnUnknownTensor", TinyV3Config, kShard, WithIndexEntry("phantom", "model-00002-of-000002.safetensors"),
     "/model-00002-of-000002.safetensors: tensor \"phantom\": expected here by "},
    {"IndexLeavesTheDirectory", TinyV3Config, kShard, WithIndexEntry("lm_head.weight", "../other/model.safetensors"),
     "/model.safetensors.index.json: weight_map: tensor \"lm_head.weight\": expected the name of a .safetensors file "
     "in the "
     "same directory, found \"../other/model.safetensors\""},
    {"IndexHasAnAbsolutePath", TinyV3Config, kShard, WithIndexEntry("lm_head.weight", "/etc/model.safetensors"),
     "/model.safetensors.index.json: weight_map: tensor \"lm_head.weight\": expected the name of a .safetensors file "
     "in the "
     "same directory, found \"/etc/model.safetensors\""},
    {"MalformedIndex", TinyV3Config, kShard,
     [](const TestDirectory& d) { WriteTextFile(d / "model.safetensors.index.json", "{\"weight_map\": []}"); },
     "/model.safetensors.index.json: weight_map: expected an object that gives each tensor its file"},
    {"TwoModels", TinyV3Config, kShard, WithFile("x"),
     ": expected one model, found two: model.safetensors and the files of model.safetensors.index.json; remove one"},
    {"LinkThatLeavesTheDirectory",
     TinyV3Config,
     {},
     [](const TestDirectory& d) {
       std::filesystem::remove(d / "model.safetensors");
       std::filesystem::create_symlink("/etc/hostname", d / "model.safetensors");
     },
     "/model.safetensors: expected a file inside the directory, found a symbolic link that leaves it, to "
     "/etc/hostname: "
     "copy the file in its place"},
    {"DirectoryInPlaceOfAFile",
     TinyV3Config,
     {},
     [](const TestDirectory& d) {
       std::filesystem::remove(d / "model.safetensors");
       std::filesystem::create_directory(d / "model.safetensors");
     },
     "/model.safetensors: expected a regular file"},
    {"PipeInPlaceOfAFile",
     TinyV3Config,
     {},
     [](const TestDirectory& d) {
       std::filesystem::remove(d / "model.safetensors");
       ASSERT_EQ(mkfifo((d / "model.safetensors").c_str(), 0600), 0);
     },
     "/model.safetensors: expected a regular file"},
};

class BadDirectoryTest : public ::testing::TestWithParam<BadDirectory> {};
INSTANTIATE_TEST_SUITE_P(Bad, BadDirectoryTest, ::testing::ValuesIn(kBadDirectories),
                         [](const auto& test) { return test.param.name; });

TEST_P(BadDirectoryTest, IsRefusedByName) {
  const BadDirectory& bad = GetParam();
  TestDirectory directory;
  CheckpointWriter writer(bad.config());
  if (bad.break_writer) bad.break_writer(writer);
  writer.Write(directory.path());
  if (bad.break_files) bad.break_files(directory);
  const auto checkpoint = Checkpoint::Open(directory.path());
  ASSERT_FALSE(checkpoint.ok());
  EXPECT_THAT(std::string(checkpoint.status().message()), StartsWith(directory.path() + bad.message));
}

TEST(CheckpointTest, RefusesADirectoryThatIsNotThereOrIsNone) {
  TestDirectory directory;
  EXPECT_EQ(Checkpoint::Open(directory / "nothing").status().code(), absl::StatusCode::kNotFound);
  WriteTextFile(directory / "file", "x");
  EXPECT_THAT(std::string(Checkpoint::Open(directory / "file").status().message()),
              HasSubstr("cannot open it as a model directory"));
}

TEST(CheckpointTest, RefusesScalesThatAreNotFinitePositiveNumbers) {
  const std::string name = "model.layers.0.self_attn.o_proj.weight_scale_inv";
  for (const float bad : {NAN, INFINITY, 0.0f, -1.0f}) {
    TestDirectory directory;
    CheckpointWriter writer(TinyV3Fp8Config());
    std::memcpy(&writer.Find(name).bytes[4], &bad, 4);  // block [0, 1]
    const auto checkpoint = OpenWritten(writer, directory);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const TensorSpec& spec = SpecOf(**checkpoint, "model.layers.0.self_attn.o_proj.weight");
    const absl::Status whole = (*checkpoint)->CheckScales(spec, {0, 192, 0, 192});
    EXPECT_EQ(whole.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(whole.message()), AllOf(HasSubstr("/model.safetensors: tensor \"" + name +
                                                              "\": block [0, 1]: expected a finite scale above "
                                                              "zero, found ")));
    // A rank looks only at the blocks it needs.
    EXPECT_TRUE((*checkpoint)->CheckScales(spec, {0, 192, 0, 128}).ok());
    EXPECT_FALSE((*checkpoint)->CheckScales(spec, {0, 192, 96, 96}).ok());
  }
}

// A signal and not a status: the threads that pack read straight from the mapping.
TEST(UnreadableFileTest, IsNamedWhenItWasCutAfterOpening) {
  TestDirectory directory;
  CheckpointWriter(TinyV3Config()).Write(directory.path());
  const auto read_what_is_gone = [&] {
    ReportUnreadableFiles([](const char* path) { std::fprintf(stderr, "gone: %s", path); });
    const auto checkpoint = Checkpoint::Open(directory.path());
    WEIR_CHECK(checkpoint.ok(), std::string(checkpoint.status().message()));
    std::filesystem::resize_file((*checkpoint)->files()[0], 0);
    const auto* bytes = static_cast<const volatile char*>((*checkpoint)->tensor("lm_head.weight").data);
    std::exit(bytes[0]);
  };
  EXPECT_EXIT(read_what_is_gone(), testing::ExitedWithCode(1), "gone: .*/model.safetensors");
}

TEST(UnreadableFileTest, BusErrorsElsewhereEndTheProcessAsEver) {
  const auto raise_elsewhere = [] {
    ReportUnreadableFiles([](const char*) { std::fprintf(stderr, "gone"); });
    raise(SIGBUS);
    raise(SIGBUS);
  };
  EXPECT_EXIT(raise_elsewhere(), testing::KilledBySignal(SIGBUS), "^$");
}

}  // namespace
}  // namespace weir::worker
