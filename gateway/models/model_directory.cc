#include "gateway/models/model_directory.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/status/status.h"

namespace weir::gateway {
namespace {

using nlohmann::json;

constexpr int64_t kMaxConfigBytes = 16 << 20;
constexpr int64_t kMaxModelLen = int64_t{1} << 30;

absl::Status Bad(const std::string& what) { return absl::InvalidArgumentError(what); }

// One JSON file of the directory, read field by field; errors name file and field.
class ConfigFile {
 public:
  static absl::StatusOr<ConfigFile> Read(const std::string& path, bool is_required) {
    std::ifstream file(path, std::ios::binary);
    if (!file && !is_required) return ConfigFile(path, json::object());
    if (!file) return absl::NotFoundError(path + ": cannot be opened; a model directory needs it");
    std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (static_cast<int64_t>(text.size()) > kMaxConfigBytes) return Bad(path + ": is larger than 16 MiB");
    json parsed = json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!parsed.is_object()) return Bad(path + ": must be a JSON object");
    return ConfigFile(path, std::move(parsed));
  }

  // Absent and null are nothing.
  absl::StatusOr<std::optional<int64_t>> Integer(const char* field, int64_t low, int64_t high) const {
    const json* value = Find(field);
    if (value == nullptr) return std::optional<int64_t>();
    return InRange(*value, field, low, high);
  }

  absl::StatusOr<std::optional<float>> Number(const char* field) const {
    const json* value = Find(field);
    if (value == nullptr) return std::optional<float>();
    if (!value->is_number()) return Wrong(field, "a number");
    return std::optional<float>(value->get<float>());
  }

  // One id or a list of them.
  absl::StatusOr<std::vector<TokenId>> Ids(const char* field, int64_t vocab_size) const {
    const json* value = Find(field);
    std::vector<TokenId> ids;
    if (value == nullptr) return ids;
    for (const json& entry : value->is_array() ? *value : json::array({*value})) {
      const auto id = InRange(entry, field, 0, vocab_size - 1);
      if (!id.ok()) return id.status();
      ids.push_back(static_cast<TokenId>(**id));
    }
    return ids;
  }

  std::optional<bool> Bool(const char* field) const {
    const json* value = Find(field);
    return value != nullptr && value->is_boolean() ? std::optional<bool>(value->get<bool>()) : std::nullopt;
  }

  std::string Text(const char* field) const {
    const json* value = Find(field);
    return value != nullptr && value->is_string() ? value->get<std::string>() : "";
  }

 private:
  ConfigFile(std::string path, json parsed) : path_(std::move(path)), json_(std::move(parsed)) {}

  const json* Find(const char* field) const {
    const auto found = json_.find(field);
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }

  absl::Status Wrong(const char* field, const std::string& expected) const {
    return Bad(path_ + ": " + field + " must be " + expected);
  }

  absl::StatusOr<std::optional<int64_t>> InRange(const json& value, const char* field, int64_t low,
                                                 int64_t high) const {
    const bool is_whole = value.is_number_integer() &&
                          (!value.is_number_unsigned() || value.get<uint64_t>() <= static_cast<uint64_t>(high));
    if (!is_whole || value.get<int64_t>() < low || value.get<int64_t>() > high) {
      return Wrong(field, "a whole number from " + std::to_string(low) + " to " + std::to_string(high));
    }
    return std::optional<int64_t>(value.get<int64_t>());
  }

  std::string path_;
  json json_;
};

struct Configs {
  ConfigFile model, generation, tokenizer;
};

absl::StatusOr<Configs> ReadConfigs(const std::string& path) {
  auto model = ConfigFile::Read(path + "/config.json", true);
  if (!model.ok()) return model.status();
  auto generation = ConfigFile::Read(path + "/generation_config.json", false);
  if (!generation.ok()) return generation.status();
  auto tokenizer = ConfigFile::Read(path + "/tokenizer_config.json", false);
  if (!tokenizer.ok()) return tokenizer.status();
  return Configs{*std::move(model), *std::move(generation), *std::move(tokenizer)};
}

absl::Status TakeSizes(const Configs& configs, const ModelDirectory& directory, ServedModel& model) {
  const auto vocab_size = configs.model.Integer("vocab_size", 1, std::numeric_limits<TokenId>::max());
  if (!vocab_size.ok()) return vocab_size.status();
  if (!vocab_size->has_value()) return Bad(directory.path + "/config.json: vocab_size is missing");
  model.vocab_size = static_cast<int32_t>(**vocab_size);
  const auto longest = configs.model.Integer("max_position_embeddings", 1, kMaxModelLen);
  if (!longest.ok()) return longest.status();
  if (!longest->has_value()) return Bad(directory.path + "/config.json: max_position_embeddings is missing");
  model.max_model_len = **longest;
  if (directory.max_model_len > model.max_model_len) {
    return Bad("max_model_len is " + std::to_string(directory.max_model_len) + ", beyond the model's own " +
               std::to_string(model.max_model_len));
  }
  if (directory.max_model_len > 0) model.max_model_len = directory.max_model_len;
  return absl::OkStatus();
}

absl::Status TakeTokens(const Configs& configs, ServedModel& model) {
  auto eos = configs.generation.Ids("eos_token_id", model.vocab_size);
  if (eos.ok() && eos->empty()) eos = configs.model.Ids("eos_token_id", model.vocab_size);
  if (!eos.ok()) return eos.status();
  model.eos_tokens = *std::move(eos);
  const auto bos = configs.model.Ids("bos_token_id", model.vocab_size);
  if (!bos.ok()) return bos.status();
  if (!bos->empty() && configs.tokenizer.Bool("add_bos_token").value_or(true)) model.bos_token = bos->front();
  return absl::OkStatus();
}

absl::Status TakeDefaults(const Configs& configs, const std::string& path, ServedModel& model) {
  const auto temperature = configs.generation.Number("temperature");
  if (!temperature.ok()) return temperature.status();
  const auto top_p = configs.generation.Number("top_p");
  if (!top_p.ok()) return top_p.status();
  model.default_temperature = *temperature;
  model.default_top_p = *top_p;
  if (!(model.default_temperature.value_or(1) >= 0 && model.default_temperature.value_or(1) <= 2)) {
    return Bad(path + "/generation_config.json: temperature must be from 0 to 2");
  }
  if (!(model.default_top_p.value_or(1) > 0 && model.default_top_p.value_or(1) <= 1)) {
    return Bad(path + "/generation_config.json: top_p must be above 0 and at most 1");
  }
  return absl::OkStatus();
}

// The published templates tell themselves apart: only V3.1's asks whether it should think, and R1's always does.
// Without one, a vocabulary that can mark thoughts is V3.1's, where thinking is a choice.
ChatDialect GuessDialect(const Configs& configs, const Tokenizer& tokenizer) {
  const std::string published = configs.tokenizer.Text("chat_template");
  if (published.empty()) {
    return tokenizer.AddedToken(control::kThink).has_value() ? ChatDialect::kV31 : ChatDialect::kV3;
  }
  if (published.find("thinking") != std::string::npos) return ChatDialect::kV31;
  return published.find(std::string(control::kThink)) != std::string::npos ? ChatDialect::kR1 : ChatDialect::kV3;
}

absl::Status TakeChatTemplate(const Configs& configs, const ModelDirectory& directory, ServedModel& model,
                              std::vector<std::string>& notes) {
  if (directory.chat_template == "none") return absl::OkStatus();
  const bool is_guessed = directory.chat_template == "auto";
  ChatDialect dialect = ChatDialect::kV3;
  if (is_guessed) {
    dialect = GuessDialect(configs, *model.tokenizer);
  } else if (const auto named = ChatTemplate::DialectByName(directory.chat_template); named.ok()) {
    dialect = *named;
  } else {
    return named.status();
  }
  auto chat_template = ChatTemplate::Create(dialect, model.tokenizer.get());
  if (chat_template.ok()) {
    model.chat_template = *std::move(chat_template);
    return absl::OkStatus();
  }
  const std::string why(chat_template.status().message());
  if (!is_guessed) return Bad(directory.path + ": " + why);
  notes.push_back("model " + directory.name + " has no chat template and only generates: " + why);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServedModel>> LoadServedModel(const ModelDirectory& directory,
                                                             std::vector<std::string>& notes) {
  const auto configs = ReadConfigs(directory.path);
  if (!configs.ok()) return configs.status();
  auto tokenizer = Tokenizer::FromFile(directory.path + "/tokenizer.json");
  if (!tokenizer.ok()) return tokenizer.status();
  auto model = std::make_unique<ServedModel>();
  model->name = directory.name;
  model->tokenizer = *std::move(tokenizer);
  for (const absl::Status& status :
       {TakeSizes(*configs, directory, *model), TakeTokens(*configs, *model),
        TakeDefaults(*configs, directory.path, *model), TakeChatTemplate(*configs, directory, *model, notes)}) {
    if (!status.ok()) return status;
  }
  if (model->tokenizer->vocab_size() > model->vocab_size) {
    return Bad(directory.path + ": tokenizer.json has ids up to " + std::to_string(model->tokenizer->vocab_size() - 1) +
               ", but config.json says vocab_size " + std::to_string(model->vocab_size) +
               "; they are not of the same model");
  }
  if (model->eos_tokens.empty()) {
    notes.push_back("model " + directory.name + " names no eos_token_id: answers end at max_tokens only");
  }
  return model;
}

absl::StatusOr<ModelDirectory> ParseModelFlag(std::string_view flag) {
  ModelDirectory directory;
  const size_t equals = flag.find('=');
  directory.path = std::string(equals == std::string_view::npos ? flag : flag.substr(equals + 1));
  if (directory.path.empty()) return Bad("a model's directory is missing; give NAME=DIR");
  directory.name =
      equals == std::string_view::npos
          ? std::filesystem::path(directory.path + "/").lexically_normal().parent_path().filename().string()
          : std::string(flag.substr(0, equals));
  const auto is_allowed = [](unsigned char c) {
    return std::isalnum(c) != 0 || std::string_view("-_.:/").find(static_cast<char>(c)) != std::string_view::npos;
  };
  if (directory.name.empty() || directory.name.size() > 128 ||
      !std::all_of(directory.name.begin(), directory.name.end(), is_allowed)) {
    return Bad("a model's name must be 1 to 128 of letters, digits and \"-_.:/\"; give NAME=DIR");
  }
  return directory;
}

}  // namespace weir::gateway
