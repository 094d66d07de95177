// weir complete: one prompt, one answer.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>

#include "tools/weir/client/answer.h"
#include "tools/weir/client/inference_client.h"
#include "tools/weir/client/interrupt.h"
#include "tools/weir/client/sampling_flags.h"
#include "tools/weir/commands.h"
#include "tools/weir/terminal.h"

namespace weir::tools {
namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  weir complete \"The capital of Guangdong is\" --max-tokens 8\n"
    "  weir complete --chat \"Write a haiku about rivers.\"\n"
    "  weir complete --json < prompt.txt > answer.json";

struct CompleteOptions {
  ServerOptions server;
  SamplingFlags sampling;
  std::string model;
  std::optional<std::string> prompt;
  std::string system;
  std::optional<bool> thinking;
  bool is_chat = false;
  bool prints_json = false;
};

std::string PromptOf(const CompleteOptions& options) {
  if (options.prompt) return *options.prompt;
  if (isatty(STDIN_FILENO) == 1) std::fprintf(stderr, "Prompt, ended by Ctrl-D:\n");
  return {std::istreambuf_iterator<char>(std::cin), {}};
}

class Completion {
 public:
  Completion(const CompleteOptions& options, const InferenceClient& client, std::string model,
             Cancellation& cancellation)
      : options_(options),
        client_(client),
        model_(std::move(model)),
        cancellation_(cancellation),
        answer_(Answer::Clock::now()) {}

  absl::Status Run(const std::string& prompt) {
    absl::Status status = options_.is_chat ? Chat(prompt) : Generate(prompt);
    if (!options_.prints_json && answer_.num_tokens() > 0) std::printf("\n");
    if (!status.ok()) return status;
    if (options_.prints_json) std::printf("%s\n", answer_.ToJson().dump(2).c_str());
    if (!options_.prints_json && IsTerminal()) std::printf("%s%s%s\n", DimOn(), answer_.Summary().c_str(), LookOff());
    return CheckEnd();
  }

 private:
  absl::Status Chat(const std::string& prompt) {
    v1::ChatRequest request;
    request.set_model(model_);
    if (!options_.system.empty()) Add(request, v1::ROLE_SYSTEM, options_.system);
    Add(request, v1::ROLE_USER, prompt);
    if (options_.thinking) request.set_thinking(*options_.thinking);
    *request.mutable_sampling() = options_.sampling.Params();
    *request.mutable_stop_conditions() = options_.sampling.Stop();
    return client_.Chat(
        request,
        [this](const v1::ChatResponse& event) {
          answer_.Add(event, Answer::Clock::now());
          if (event.has_reasoning_delta()) Show(event.reasoning_delta().text(), true);
          if (event.has_content_delta()) Show(event.content_delta().text(), false);
        },
        cancellation_);
  }

  absl::Status Generate(const std::string& prompt) {
    v1::GenerateRequest request;
    request.set_model(model_);
    request.set_text(prompt);
    *request.mutable_sampling() = options_.sampling.Params();
    *request.mutable_stop_conditions() = options_.sampling.Stop();
    return client_.Generate(
        request,
        [this](const v1::GenerateResponse& event) {
          answer_.Add(event, Answer::Clock::now());
          if (event.has_content_delta()) Show(event.content_delta().text(), false);
        },
        cancellation_);
  }

  static void Add(v1::ChatRequest& request, v1::Role role, const std::string& content) {
    v1::Message& message = *request.add_messages();
    message.set_role(role);
    message.set_content(content);
  }

  // Into a file or a pipe goes the answer alone, byte by byte.
  void Show(const std::string& text, bool is_reasoning) const {
    if (options_.prints_json || (is_reasoning && !IsTerminal())) return;
    std::printf("%s%s%s", is_reasoning ? DimOn() : "", IsTerminal() ? Printable(text).c_str() : text.c_str(),
                is_reasoning ? LookOff() : "");
    std::fflush(stdout);
  }

  absl::Status CheckEnd() const {
    if (!answer_.finished()) return absl::InternalError("the stream ended without a last message");
    if (!answer_.finished()->has_error()) return absl::OkStatus();
    const v1::StreamError& error = answer_.finished()->error();
    return absl::AbortedError(error.message() + (error.is_retriable() ? "; a new attempt may succeed" : ""));
  }

  const CompleteOptions& options_;
  const InferenceClient& client_;
  const std::string model_;
  Cancellation& cancellation_;
  Answer answer_;
};

absl::Status Complete(const CompleteOptions& options) {
  Cancellation cancellation;
  const Interrupt interrupt([&] { return cancellation.Cancel(); });
  const auto client = InferenceClient::Connect(options.server);
  if (!client.ok()) return client.status();
  const std::string prompt = PromptOf(options);
  if (prompt.empty())
    return absl::InvalidArgumentError("the prompt is empty: give it as an argument or on standard input");
  const auto model = (*client)->FindModel(options.model);
  if (!model.ok()) return model.status();
  return Completion(options, **client, model->name(), cancellation).Run(prompt);
}

}  // namespace

void AddComplete(CLI::App& app) {
  auto options = std::make_shared<CompleteOptions>();
  CLI::App* command = app.add_subcommand("complete", "Continue one prompt, or answer one question");
  command->footer(kExamples);
  command->add_option("prompt", options->prompt, "the text; without it, standard input is read");
  command->add_option("--model", options->model, "which model; default: the only one");
  auto* chat = command->add_flag("--chat", options->is_chat, "put the prompt to the model as a user's message");
  command->add_option("--system", options->system, "system message")->needs(chat);
  command->add_flag("--think,!--no-think", options->thinking, "let the model think first, where it can")->needs(chat);
  command->add_flag("--json", options->prints_json, "print one JSON object: text, token_ids, usage, timing, ...");
  AddSamplingFlags(*command, options->sampling);
  AddServerOptions(*command, options->server);
  command->callback([options] {
    const absl::Status status = Complete(*options);
    if (status.ok()) return;
    std::fprintf(stderr, "weir complete: %s\n", std::string(status.message()).c_str());
    throw CLI::RuntimeError(1);
  });
}

}  // namespace weir::tools
