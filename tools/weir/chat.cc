// weir chat: a conversation in the terminal.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "tools/weir/client/answer.h"
#include "tools/weir/client/inference_client.h"
#include "tools/weir/client/interrupt.h"
#include "tools/weir/client/sampling_flags.h"
#include "tools/weir/commands.h"
#include "tools/weir/line_reader.h"
#include "tools/weir/terminal.h"

namespace weir::tools {
namespace {

constexpr const char* kExamples =
    "Examples:\n"
    "  weir chat\n"
    "  weir chat --server gateway.example:7000 --tls --api-key-file key --system \"Answer in one sentence.\"\n"
    "  echo \"What is a weir?\" | weir chat\n"
    "Ctrl-C ends an answer and keeps what came of it; Ctrl-D or /quit ends the program.";

constexpr const char* kCommands =
    "  /reset          forget the conversation\n"
    "  /system TEXT    set the system message and forget the conversation; without TEXT: none\n"
    "  /think on|off   let the model think first, where it can\n"
    "  /tokens         what the last answer used\n"
    "  /quit           end (Ctrl-D, too)\n"
    "  A line that ends in \\ goes on in the next.  Ctrl-C ends an answer.\n";

struct ChatOptions {
  ServerOptions server;
  SamplingFlags sampling;
  std::string model;
  std::string system;
  std::optional<bool> thinking;
};

class Conversation {
 public:
  Conversation(const ChatOptions& options, const InferenceClient& client, v1::Model model, Cancellation& cancellation)
      : options_(options), client_(client), model_(std::move(model)), cancellation_(cancellation) {
    request_.set_model(model_.name());
    *request_.mutable_sampling() = options_.sampling.Params();
    *request_.mutable_stop_conditions() = options_.sampling.Stop();
    if (options_.thinking) request_.set_thinking(*options_.thinking);
    Reset(options_.system);
  }

  // The error of a question that got no answer: the conversation stands as before it, and may go on.
  absl::Status Ask(const std::string& question) {
    Append(v1::ROLE_USER, question);
    Answer answer(Answer::Clock::now());
    part_ = Part::kNone;
    const absl::Status status = client_.Chat(
        request_,
        [&](const v1::ChatResponse& event) {
          answer.Add(event, Answer::Clock::now());
          Show(event);
        },
        cancellation_);
    EndPart();
    if (answer.num_tokens() == 0 && !status.ok()) {
      request_.mutable_messages()->RemoveLast();
      return cancellation_.was_cancelled() ? absl::OkStatus() : status;
    }
    ShowToolCalls(answer);
    Keep(answer);
    summary_ = answer.Summary();
    std::printf("%s[%s%s]%s\n", DimOn(), summary_.c_str(), cancellation_.was_cancelled() ? "; cancelled" : "",
                LookOff());
    if (cancellation_.was_cancelled()) return absl::OkStatus();
    if (answer.finished() && answer.finished()->has_error()) {
      return absl::AbortedError("the answer is cut short: " + answer.finished()->error().message());
    }
    return status;
  }

  void Reset(const std::string& system) {
    request_.clear_messages();
    system_ = system;
    if (!system.empty()) Append(v1::ROLE_SYSTEM, system);
  }

  // A line that begins with a slash.  False: the program is to end.
  bool Command(const std::string& line) {
    const size_t space = line.find(' ');
    const std::string name = line.substr(0, space);
    const std::string rest = space == std::string::npos ? "" : line.substr(space + 1);
    if (name == "/quit" || name == "/exit") return false;
    if (name == "/reset") {
      Reset(system_);
      std::printf("the conversation is forgotten\n");
    } else if (name == "/system") {
      Reset(rest);
      std::printf("%s; the conversation is forgotten\n", rest.empty() ? "no system message" : "system message set");
    } else if (name == "/think" && (rest == "on" || rest == "off")) {
      request_.set_thinking(rest == "on");
      std::printf("thinking is %s\n", rest.c_str());
    } else if (name == "/tokens") {
      std::printf("%s\n", summary_.empty() ? "no answer yet" : summary_.c_str());
    } else {
      std::printf("%s", kCommands);
    }
    return true;
  }

 private:
  enum class Part { kNone, kReasoning, kContent };

  void Append(v1::Role role, const std::string& content) {
    v1::Message& message = *request_.add_messages();
    message.set_role(role);
    message.set_content(content);
  }

  void Show(const v1::ChatResponse& event) {
    if (event.has_reasoning_delta()) Show(event.reasoning_delta().text(), Part::kReasoning);
    if (event.has_content_delta()) Show(event.content_delta().text(), Part::kContent);
  }

  // Thoughts are dim, and apart from the answer by an empty line.
  void Show(const std::string& text, Part part) {
    if (text.empty()) return;
    if (part_ != part && part_ == Part::kReasoning) std::printf("%s\n\n", LookOff());
    if (part_ != part && part == Part::kReasoning) std::printf("%s%s", DimOn(), IsTerminal() ? "" : "(thinking) ");
    part_ = part;
    std::printf("%s", Printable(text).c_str());
    std::fflush(stdout);
  }

  void EndPart() {
    if (part_ == Part::kReasoning) std::printf("%s", LookOff());
    if (part_ != Part::kNone) std::printf("\n");
  }

  static void ShowToolCalls(const Answer& answer) {
    for (const Answer::ToolCall& call : answer.tool_calls()) {
      std::printf("%scall %s(%s)%s\n", BoldOn(), Printable(call.name).c_str(), Printable(call.arguments).c_str(),
                  LookOff());
    }
  }

  void Keep(const Answer& answer) {
    Append(v1::ROLE_ASSISTANT, answer.text());
    v1::Message& message = *request_.mutable_messages()->rbegin();
    message.set_reasoning_content(answer.reasoning());
    for (const Answer::ToolCall& call : answer.tool_calls()) {
      v1::ToolCall& kept = *message.add_tool_calls();
      kept.set_id(call.id);
      kept.set_name(call.name);
      kept.set_arguments(call.arguments);
    }
  }

  const ChatOptions& options_;
  const InferenceClient& client_;
  const v1::Model model_;
  Cancellation& cancellation_;
  v1::ChatRequest request_;  // with the conversation so far
  std::string system_;
  std::string summary_;
  Part part_ = Part::kNone;
};

// A question may span lines.
std::optional<std::string> ReadQuestion(LineReader& reader) {
  std::optional<std::string> question = reader.Read("> ");
  while (question && !question->empty() && question->back() == '\\') {
    question->back() = '\n';
    const std::optional<std::string> more = reader.Read(". ");
    if (!more) break;
    *question += *more;
  }
  return question;
}

absl::Status Chat(const ChatOptions& options) {
  LineReader reader(DefaultHistoryFile());
  Cancellation cancellation;
  const Interrupt interrupt([&] { return cancellation.Cancel() || reader.is_interactive(); });
  const auto client = InferenceClient::Connect(options.server);
  if (!client.ok()) return client.status();
  const auto model = (*client)->FindModel(options.model);
  if (!model.ok()) return model.status();
  Conversation conversation(options, **client, *model, cancellation);
  if (reader.is_interactive()) {
    std::printf("%s at %s, %llu tokens of context; /help lists commands\n", model->name().c_str(),
                options.server.address.c_str(), static_cast<unsigned long long>(model->max_model_len()));
  }
  absl::Status last;
  while (const std::optional<std::string> line = ReadQuestion(reader)) {
    if (line->find_first_not_of(" \t") == std::string::npos) continue;
    if (line->front() == '/') {
      if (!conversation.Command(*line)) break;
      continue;
    }
    last = conversation.Ask(*line);
    if (!last.ok()) std::fprintf(stderr, "weir chat: %s\n", std::string(last.message()).c_str());
  }
  // A script wants to know; a person has seen it.
  return reader.is_interactive() ? absl::OkStatus() : last;
}

}  // namespace

void AddChat(CLI::App& app) {
  auto options = std::make_shared<ChatOptions>();
  CLI::App* command = app.add_subcommand("chat", "Talk with a model");
  command->footer(kExamples);
  command->add_option("--model", options->model, "which model; default: the only one");
  command->add_option("--system", options->system, "system message");
  command->add_flag("--think,!--no-think", options->thinking, "let the model think first, where it can");
  AddSamplingFlags(*command, options->sampling);
  AddServerOptions(*command, options->server);
  command->callback([options] {
    const absl::Status status = Chat(*options);
    if (status.ok()) return;
    std::fprintf(stderr, "weir chat: %s\n", std::string(status.message()).c_str());
    throw CLI::RuntimeError(1);
  });
}

}  // namespace weir::tools
