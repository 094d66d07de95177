// weir tokenize: what a model sees of a text or of a conversation.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "tools/weir/client/chat_json.h"
#include "tools/weir/client/inference_client.h"
#include "tools/weir/commands.h"
#include "tools/weir/terminal.h"

namespace weir::tools {
namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  weir tokenize \"Hello, world\"\n"
    "  weir tokenize --ids < report.txt | wc -w\n"
    "  echo '[{\"role\": \"user\", \"content\": \"Hello\"}]' | weir tokenize --chat -";

struct TokenizeOptions {
  ServerOptions server;
  std::string model;
  std::optional<std::string> text;
  std::string chat_file;  // "-": standard input
  bool prints_ids = false;
  bool prints_json = false;
};

std::string ReadAll(std::istream& in) { return {std::istreambuf_iterator<char>(in), {}}; }

absl::StatusOr<v1::TokenizeRequest> RequestOf(const TokenizeOptions& options) {
  v1::TokenizeRequest request;
  if (options.chat_file.empty()) {
    request.set_text(options.text ? *options.text : ReadAll(std::cin));
    return request;
  }
  std::ifstream file(options.chat_file);
  if (options.chat_file != "-" && !file) return absl::InvalidArgumentError("cannot read " + options.chat_file);
  absl::StatusOr<v1::ChatPrompt> prompt = ParseChatJson(ReadAll(options.chat_file == "-" ? std::cin : file));
  if (!prompt.ok()) return prompt.status();
  *request.mutable_chat() = *std::move(prompt);
  return request;
}

// The bytes of a token between quotes: what is not printable ASCII or whole UTF-8 as \xNN.
std::string Quoted(const std::string& bytes) {
  const std::string text = nlohmann::json(bytes).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  const bool is_whole = text.find("\xEF\xBF\xBD") == std::string::npos;
  if (is_whole) return text;
  std::string hex;
  for (const char c : bytes) {
    char code[5];
    std::snprintf(code, sizeof code, "\\x%02x", static_cast<unsigned>(static_cast<unsigned char>(c)));
    hex += code;
  }
  return hex;
}

absl::Status PrintPieces(const InferenceClient& client, const std::string& model, const v1::TokenizeResponse& response,
                         bool as_json) {
  std::map<uint32_t, std::string> pieces;
  nlohmann::json list = nlohmann::json::array();
  for (const uint32_t id : response.token_ids()) {
    if (!pieces.contains(id)) {
      const absl::StatusOr<std::string> bytes = client.TokenBytes(model, id);
      if (!bytes.ok()) return bytes.status();
      pieces[id] = Quoted(*bytes);
    }
    list.push_back(pieces[id]);
    if (!as_json) std::printf("%8u  %s\n", id, pieces[id].c_str());
  }
  if (as_json) {
    nlohmann::json object = {{"model", model}, {"token_ids", response.token_ids()}, {"pieces", list}};
    if (!response.rendered_text().empty()) object["rendered_text"] = response.rendered_text();
    std::printf("%s\n", object.dump(2).c_str());
  }
  return absl::OkStatus();
}

absl::Status Tokenize(const TokenizeOptions& options) {
  const auto client = InferenceClient::Connect(options.server);
  if (!client.ok()) return client.status();
  absl::StatusOr<v1::TokenizeRequest> request = RequestOf(options);
  if (!request.ok()) return request.status();
  const auto model = (*client)->FindModel(options.model);
  if (!model.ok()) return model.status();
  request->set_model(model->name());
  const auto response = (*client)->Tokenize(*request);
  if (!response.ok()) return response.status();
  if (options.prints_ids) {
    for (int i = 0; i < response->token_ids_size(); ++i) std::printf("%s%u", i == 0 ? "" : " ", response->token_ids(i));
    std::printf("\n");
    return absl::OkStatus();
  }
  if (absl::Status status = PrintPieces(**client, model->name(), *response, options.prints_json); !status.ok()) {
    return status;
  }
  const int num_tokens = response->token_ids_size();
  if (!options.prints_json) std::printf("%d %s\n", num_tokens, num_tokens == 1 ? "token" : "tokens");
  return absl::OkStatus();
}

}  // namespace

void AddTokenize(CLI::App& app) {
  auto options = std::make_shared<TokenizeOptions>();
  CLI::App* command = app.add_subcommand("tokenize", "Show the tokens of a text or of a conversation");
  command->footer(kExamples);
  auto* text = command->add_option("text", options->text, "the text; without it, standard input is read");
  command
      ->add_option("--chat", options->chat_file,
                   "JSON file with a list of messages, or {messages, tools, thinking}; - is standard input")
      ->excludes(text);
  command->add_option("--model", options->model, "which model; default: the only one");
  auto* ids = command->add_flag("--ids", options->prints_ids, "print the ids alone, in one line");
  command->add_flag("--json", options->prints_json, "print one JSON object: token_ids, pieces, rendered_text")
      ->excludes(ids);
  AddServerOptions(*command, options->server);
  command->callback([options] {
    const absl::Status status = Tokenize(*options);
    if (status.ok()) return;
    std::fprintf(stderr, "weir tokenize: %s\n", std::string(status.message()).c_str());
    throw CLI::RuntimeError(1);
  });
}

}  // namespace weir::tools
